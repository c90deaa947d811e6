//! The POSIX filesystem over a dataset: inodes, directories, xattrs, and the rules between them.

pub mod ops;
pub mod store;
