//! Repair: sets right what has one safe answer, reports each action, and leaves everything else alone.
//!
//! What is changed comes from the check, so that nothing is repaired that is not reported. A dirty log is replayed first.
//! Changes of region tables, metadata and BAT go through the log, in batches: a crash or a failing disk leaves either
//! the old state or an image whose log says how to go on. Space is given back only when nothing else is wrong any
//! more: a damaged entry might have pointed there.

mod edit;
mod reparent;
#[cfg(test)]
mod tests;

use super::check::chain::check_parents;
use super::check::codes::{self, CodeInfo};
use super::check::fix::{Change, Diagnosis, Fix, diagnose};
use super::check::{Examined, ImageSource, Report, Severity};
use super::{HostFile, ImageFile};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
pub use reparent::{Reparented, reparent};

use edit::{Edit, Sectors, stage};

/// Rounds of checking and fixing: one fix may uncover the next.
const ROUNDS_MAX: u32 = 8;

/// With one of these, nothing is touched: what the image holds cannot be told.
const BLOCKING: [&CodeInfo; 12] = [
    &codes::FILE_SHORT,
    &codes::HEADER_NONE,
    &codes::HEADER_EQUAL_SEQUENCE,
    &codes::HEADER_LOG_VERSION,
    &codes::HEADER_LOG_LENGTH,
    &codes::HEADER_LOG_OFFSET,
    &codes::HEADER_LOG_BEYOND,
    &codes::LOG_NO_SEQUENCE,
    &codes::LOG_FILE_SHORT,
    &codes::REGION_NONE,
    &codes::REGION_OVERLAP,
    &codes::REGION_UNKNOWN_REQUIRED,
];

/// Something that was done, or, in a dry run, would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Code of the finding that it sets right.
    pub code: &'static str,
    /// Where.
    pub structure: String,
    /// Byte offset in the file.
    pub offset: u64,
    /// What was done.
    pub done: String,
}

/// What a repair found and did.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// The check before.
    pub before: Report,
    /// What was done, in order.
    pub actions: Vec<Action>,
    /// The check after; in a dry run, that before.
    pub after: Report,
}

fn io_error(file: &dyn ImageFile, what: &str, e: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{}: {what}", file.path().display())).with_source(e)
}

/// Repairs an image, which is open for writing and used by nobody else. With `dry_run`, only tells what it would do.
///
/// # Errors
/// [`ErrorKind::Invalid`] when it is no VHDX image, [`ErrorKind::Io`] when it cannot be read or written: what was written
/// until then leaves the image no worse than it was.
pub fn repair(
    file: &dyn ImageFile,
    env: &Environment,
    dry_run: bool,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<Repaired> {
    repair_examined(file, env, dry_run, on_progress).map(|(repaired, _)| repaired)
}

/// The same for a file of this machine, with the chain of its parents: what is wrong there cannot be repaired here, and is
/// reported.
///
/// # Errors
/// As [`repair`].
pub fn repair_file(
    file: &HostFile,
    env: &Environment,
    dry_run: bool,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<Repaired> {
    let (mut repaired, mut examined) = repair_examined(file, env, dry_run, on_progress)?;
    check_parents(file, &mut examined)?;
    repaired.after = examined.report;
    Ok(repaired)
}

fn repair_examined(
    file: &dyn ImageFile,
    env: &Environment,
    dry_run: bool,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<(Repaired, Examined)> {
    let mut actions: Vec<Action> = Vec::new();
    let mut before = None;
    for _ in 0..ROUNDS_MAX {
        let found = diagnose(&ImageSource(file), on_progress)?;
        let report = found.examined.report.clone();
        before.get_or_insert_with(|| report.clone());
        let fixes = chosen(&found);
        let replay = report.has(codes::LOG_DIRTY.code) && !blocked(&report);
        if replay {
            actions.push(Action {
                code: codes::LOG_DIRTY.code,
                structure: "log".to_owned(),
                offset: found.log.as_ref().map_or(0, |log| log.start),
                done: format!("{} entries are replayed", report.facts.replayed_entries),
            });
        }
        let note = |fix: &Fix| Action {
            code: fix.code,
            structure: fix.structure.clone(),
            offset: fix.offset,
            done: fix.done.clone(),
        };
        actions.extend(fixes.iter().filter(|_| dry_run || !replay).map(note));
        if dry_run || (fixes.is_empty() && !replay) {
            let before = before.unwrap_or_else(|| report.clone());
            return Ok((Repaired { before, actions, after: report }, found.examined));
        }
        let mut edit = Edit::new(file, env, &found)?;
        if replay {
            edit.replay(&found)?;
        } else {
            edit.apply(&fixes)?;
        }
    }
    let examined = diagnose(&ImageSource(file), on_progress)?.examined;
    let after = examined.report.clone();
    Ok((Repaired { before: before.unwrap_or_else(|| after.clone()), actions, after }, examined))
}

/// The sectors of a file with bytes written over them.
pub(super) fn sectors_of(file: &dyn ImageFile, writes: &[(u64, Vec<u8>)]) -> Result<Sectors> {
    let mut sectors = Sectors::new();
    for (offset, bytes) in writes {
        stage(file, &mut sectors, *offset, bytes)?;
    }
    Ok(sectors)
}

fn blocked(report: &Report) -> bool {
    BLOCKING.iter().any(|code| report.has(code.code))
}

/// The fixes that are made now.
fn chosen(found: &Diagnosis) -> Vec<Fix> {
    let report = &found.examined.report;
    if blocked(report) {
        return Vec::new();
    }
    let fixed: u64 = found.fixes.iter().filter(|fix| !is_space(fix)).count() as u64;
    if fixed > 0 {
        return found.fixes.iter().filter(|fix| !is_space(fix)).cloned().collect();
    }
    if report.count(Severity::Error) > 0 || !report.facts.complete {
        return Vec::new();
    }
    found.fixes.clone()
}

fn is_space(fix: &Fix) -> bool {
    matches!(fix.change, Change::Release(_) | Change::Truncate(_))
}
