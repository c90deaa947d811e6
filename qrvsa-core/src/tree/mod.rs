//! The copy-on-write B+tree that holds all metadata, of the pool and of every dataset.

pub mod key;

pub use key::Key;
