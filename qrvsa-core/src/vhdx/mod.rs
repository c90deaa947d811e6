//! VHDX images ([MS-VHDX] version 8): the format, and an engine that reads and writes them.
//!
//! [`format`](mod@format) knows bytes: decoders that are total on any input, encoders, and arithmetic. It does no I/O. The
//! rest works on an [`ImageFile`], which is a file of this machine or a simulated one. `docs/vhdx.md` tells the layout that is
//! written and the order in which changes become durable.

mod bits;
pub mod check;
mod commit;
mod compact;
mod convert;
mod create;
mod device;
mod file;
mod foreign;
pub mod format;
mod gate;
mod image;
mod journal;
mod locate;
mod map;
mod merge;
mod open;
mod overlay;
mod pages;
mod parents;
pub mod repair;
mod replace;
mod replay;
mod resize;
mod space;
mod status;
mod stripes;
#[cfg(test)]
mod tests;
mod trim;
mod write;

pub use compact::Compacted;
pub use convert::{ConvertSource, ConvertTarget, Converted, Progress, SourceDisk, TargetDisk, convert, convert_to};
pub use create::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_DIFFERENCING, CreateOptions, create, create_differencing, create_in, locator_to,
};
pub use device::{VhdxDevice, is_vhdx, open_any, open_device};
pub use file::{Files, HostFile, HostFiles, ImageFile, io_error};
pub use image::Image;
pub use map::MapExtent;
pub use merge::{Merged, merge, merge_image};
pub use parents::parent_candidates;
pub use replay::{ActiveLog, active_log};
pub use status::{Extent, ExtentKind};
