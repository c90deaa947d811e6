//! Transaction groups and the intent log between them.
//!
//! A transaction holds the open group open ([`gate::Gate`]). Closing it is one short exclusive step; from then on its
//! changes are frozen and one thread writes them out while the next group fills.

pub mod block;
pub mod entry;
pub mod gate;
pub mod log;
mod read;
