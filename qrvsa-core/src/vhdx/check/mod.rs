//! The check of an image: a tolerant walk over the whole file that reports every violation of the specification, each with
//! a stable code, structure, offset, what is wrong and what to do.
//!
//! It shares no code with the decoders that open images (only the places where parents are looked for), so that a mistake in one is found by the other. It changes
//! nothing: a dirty log is replayed in memory. It never stops at the first fault: whatever can still be told from what
//! is valid is looked at. Memory is bounded by the size of the file and of its log, not by what numbers in it claim.

mod bat;
pub(in crate::vhdx) mod chain;
pub mod codes;
pub(in crate::vhdx) mod fix;
mod locator;
pub(in crate::vhdx) mod log;
mod metadata;
mod report;
pub(in crate::vhdx) mod source;
#[cfg(test)]
pub(in crate::vhdx) mod testing {
    //! Images to be broken and repaired, for tests.
    pub use super::tests::image::{differencing, dirty, dynamic};
    pub use super::tests::violations::VIOLATIONS;
}
#[cfg(test)]
mod tests;
pub(in crate::vhdx) mod walk;

use std::path::Path;

pub use codes::{CODES, CodeInfo};
pub use locator::ParentName;
pub use report::{Facts, Finding, Report, Severity};
pub use source::{FileSource, ImageSource, Source};

use crate::error::{Error, ErrorKind, Result};
use walk::Walk;

/// Checks an image. Parents are not looked at; [`check_file`] does. `on_progress` gets bytes of the block allocation table
/// done and in all.
///
/// # Errors
/// [`ErrorKind::Io`] when the medium cannot be read, [`ErrorKind::Invalid`] when it holds no VHDX image at all.
pub fn check(source: &dyn Source, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    Ok(examine(&mut Walk::new(source), on_progress)?.report)
}

/// Checks an image in a file and the chain of its parents.
///
/// # Errors
/// As [`check`]; faults of parents are findings.
pub fn check_file(path: &Path, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
    chain::check_file(path, on_progress)
}

/// What an examination leaves besides the report.
pub(in crate::vhdx) struct Examined {
    pub report: Report,
    pub parent: Option<ParentName>,
    pub logical_sector: Option<u32>,
    pub data_write_guid: [u8; 16],
}

fn examine(walk: &mut Walk<'_>, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Examined> {
    let identified = walk.identifier()?;
    let header_seen = walk.headers()?;
    if !identified && !header_seen {
        return Err(Error::new(ErrorKind::Invalid, "this is no VHDX image: it has neither identifier nor header"));
    }
    walk.dirty_log()?;
    walk.reserved_area()?;
    walk.region_tables()?;
    let disk = walk.metadata()?;
    let parent = walk.locator(&disk);
    walk.bat(&disk, on_progress)?;
    Ok(Examined {
        data_write_guid: walk.header.map_or([0; 16], |header| header.data_write_guid),
        report: std::mem::take(&mut walk.report),
        parent,
        logical_sector: disk.logical_sector,
    })
}
