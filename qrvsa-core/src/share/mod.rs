//! Volumes as files: the directory `.volumes` of a filesystem, in which each volume of the pool is a VHDX file.
//!
//! [`face`] makes the bytes of the file out of a volume: no copy, nothing is stored but what a program that has the file open
//! for writing puts into its headers and its log. [`directory`] puts the files beside the operations of a filesystem.

mod directory;
mod face;

pub use directory::{Access, NAME, WithVolumes};
pub use face::Face;
