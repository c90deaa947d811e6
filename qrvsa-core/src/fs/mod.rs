//! The POSIX filesystem over a dataset: inodes, directories, xattrs, and the rules between them.
//!
//! [`ops::Operations`] is what front ends call, [`FileSystem`] implements it, [`store::Store`] is what it stands on. The
//! items it keeps, and the module that documents their bytes:
//!
//! | key (object, kind, offset) | item | module |
//! |---|---|---|
//! | (0, 1, 0) | SETTINGS | `filesystem` |
//! | (ino, 1, 0) | INODE | `inode` |
//! | (ino, 2, name hash) | XATTR | `xattr` |
//! | (ino, 3, chunk number) | XATTR_CHUNK | `xattr` |
//! | (dir, 4, name hash) | DIRENT | `dirent` |
//! | (dir, 5, index) | DIRINDEX | `dirent` |
//! | (ino, 6, 0) | INLINE | `inode` |
//! | (0, 199, ino) | ORPHAN | `store` |
//!
//! Contents that are not inline are the store's objects, under the inode's number.

pub mod acl;
mod attr;
pub mod check;
pub mod claims;
pub(crate) mod contents;
mod directory;
pub mod dirent;
mod edit;
mod fallocate;
mod filesystem;
pub mod inode;
mod locks;
#[cfg(any(test, feature = "test-util"))]
pub mod mem_store;
mod namei;
mod open_files;
pub mod ops;
mod rename;
mod seek;
pub mod store;
mod sync;
#[cfg(test)]
mod tests;
pub mod xattr;

pub use check::{CheckCounts, check};
pub use directory::path_of;
pub use filesystem::{AtimeMode, FileSystem, FormatOptions, Options};
