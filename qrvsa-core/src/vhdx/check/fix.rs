//! What would set a finding right, noted during the walk for whoever repairs.

use std::ops::Range;

use super::log::Overlay;
use super::walk::{Header, Walk};
use super::{Examined, Source, examine};
use crate::error::Result;

/// More fixes are left for the next round.
const FIXES_MAX: usize = 1 << 16;

/// A change to the file that has no alternative.
#[derive(Clone, Debug)]
pub(in crate::vhdx) struct Fix {
    pub code: &'static str,
    pub structure: String,
    pub offset: u64,
    /// What was done, for the report.
    pub done: String,
    pub change: Change,
}

/// The change.
#[derive(Clone, Debug)]
pub(in crate::vhdx) enum Change {
    /// The file type identifier gets its signature.
    Identifier,
    /// Both headers are written anew, from the current one.
    Headers,
    /// Bytes inside the metadata or the BAT.
    Bytes(Vec<u8>),
    /// Both region tables get these contents.
    RegionTables(Vec<u8>),
    /// Space of nobody becomes a hole.
    Release(Range<u64>),
    /// The file ends here.
    Truncate(u64),
}

/// What a repair needs to know.
pub(in crate::vhdx) struct Diagnosis {
    pub examined: Examined,
    pub fixes: Vec<Fix>,
    pub header: Option<Header>,
    pub log: Option<Range<u64>>,
    pub overlay: Overlay,
    /// Bytes of the file, after replay.
    pub len: u64,
}

/// Examines an image, and notes what can be fixed.
pub(in crate::vhdx) fn diagnose(source: &dyn Source, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Diagnosis> {
    let mut walk = Walk::new(source);
    let examined = examine(&mut walk, on_progress)?;
    Ok(Diagnosis {
        examined,
        fixes: walk.fixes,
        header: walk.header,
        log: walk.log,
        overlay: walk.overlay,
        len: walk.len,
    })
}

impl Walk<'_> {
    /// Notes how the finding that was just added is set right.
    pub(super) fn fix(
        &mut self,
        code: &'static super::CodeInfo,
        structure: impl Into<String>,
        offset: u64,
        change: Change,
        done: impl Into<String>,
    ) {
        if self.fixes.len() < FIXES_MAX {
            self.fixes.push(Fix { code: code.code, structure: structure.into(), offset, done: done.into(), change });
        }
    }

    /// The same for a 32-bit field.
    pub(super) fn fix_u32(
        &mut self,
        code: &'static super::CodeInfo,
        structure: impl Into<String>,
        offset: u64,
        value: u32,
    ) {
        let done = format!("the field is {value:#x} now");
        self.fix(code, structure, offset, Change::Bytes(value.to_le_bytes().to_vec()), done);
    }
}
