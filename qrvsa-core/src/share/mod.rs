//! Volumes as files: the directory `.volumes` of a filesystem, in which each volume of the pool is a VHDX file.
//!
//! [`face`] makes the bytes of the file out of a volume: no copy, nothing is stored but what a program that has the file open
//! for writing puts into its headers and its log. [`directory`] puts the files beside the operations of a filesystem.
//!
//! And the other way round: [`disk`] is a file of a filesystem as a disk.

mod directory;
mod disk;
mod face;

pub use directory::{Access, NAME, WithVolumes};
pub use disk::DiskFile;
pub use face::Face;
