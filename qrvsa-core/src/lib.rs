//! The QRVSA storage engine.
//!
//! The modules are the layers of the architecture picture in `docs/architecture.md`; imports run downwards only:
//!
//! ```text
//!  share     volumes as VHDX files beside a filesystem
//!  volume    block volumes: one object each
//!  fs        POSIX objects: inodes, directories, xattrs
//!  object    file and volume contents: dirty data, holes, extents, read path
//!  dataset   a named tree of keys and values, seen through the open and the syncing transaction group
//!  txg       transaction groups, intent log, commit, recovery
//!  item      words that all above share: values, objects, intents
//!  tree      copy-on-write B+tree, one kind for all metadata
//!  record    pointers, erasure coding, checksums, the batched record reader and writer
//!  pool      labels, uberblocks, zones, block groups, allocation, scrub, rebuild
//!  vhdx      VHDX images: the format, and an engine that reads and writes them
//!  device    one trait: io_uring disk or file, simulated disk
//! ```
//!
//! Front ends (FUSE, iSCSI, the management API) use this crate; it knows none of them.

pub mod buf;
pub mod bytes;
pub mod dataset;
pub mod device;
pub mod engine;
pub mod env;
pub mod error;
pub mod fs;
pub mod item;
pub mod object;
pub mod pool;
pub mod record;
pub mod share;
pub mod tree;
pub mod txg;
pub mod vhdx;
pub mod volume;
pub mod waits;

pub use error::{Error, ErrorKind, Result};
