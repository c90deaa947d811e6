//! What a check found: violations with a stable code, in the order of the walk, and a summary.

use std::collections::BTreeMap;
use std::fmt;

use super::codes::{CODES, CodeInfo};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; allowed by the specification.
    Remark,
    /// Space of the file that nothing uses: harmless, but not given back.
    Leak,
    /// The specification is violated.
    Error,
}

impl Severity {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Remark => "remark",
            Severity::Leak => "leak",
            Severity::Error => "error",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name, one of [`CODES`].
    pub code: &'static str,
    /// How bad.
    pub severity: Severity,
    /// Where: `"header 1"`, `"BAT entry 5"`.
    pub structure: String,
    /// Byte offset in the file of the field or structure.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// What to do.
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { code, severity, structure, offset, what, advice } = self;
        write!(f, "{}: {structure} at {offset:#x}: {what} [{code}]; {advice}", severity.name())
    }
}

/// Facts about the image, as far as they could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Size of the disk, bytes.
    pub disk_bytes: Option<u64>,
    /// Block size, bytes.
    pub block_bytes: Option<u32>,
    /// It has a parent.
    pub differencing: bool,
    /// Entries of the dirty log that were replayed in memory.
    pub replayed_entries: u64,
    /// Payload and bitmap blocks with space in the file.
    pub blocks: u64,
    /// Bytes of the file that nothing refers to and that are not holes.
    pub leaked_bytes: u64,
    /// The check could walk the block allocation table to its end.
    pub complete: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The findings, at most [`Report::MAX_PER_CODE`] of each code.
    pub findings: Vec<Finding>,
    /// How many of each code there are in all.
    pub counts: BTreeMap<&'static str, u64>,
    /// About the image.
    pub facts: Facts,
}

impl Report {
    /// So many findings of one code are kept in full; more are counted.
    pub const MAX_PER_CODE: u64 = 100;

    /// Whether nothing violates the specification and no space is leaked.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.count(Severity::Error) == 0 && self.count(Severity::Leak) == 0
    }

    /// Whether nothing violates the specification; leaks are allowed, as a crash may leave them.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// How many findings of this severity there are.
    #[must_use]
    pub fn count(&self, severity: Severity) -> u64 {
        let of = |code: &str| CODES.iter().find(|info| info.code == code).map(|info| info.severity);
        self.counts.iter().filter(|(code, _)| of(code) == Some(severity)).map(|(_, n)| n).sum()
    }

    /// Whether there is a finding with this code.
    #[must_use]
    pub fn has(&self, code: &str) -> bool {
        self.counts.contains_key(code)
    }

    /// Adds a finding.
    pub(super) fn add(&mut self, info: &'static CodeInfo, structure: impl Into<String>, offset: u64, what: String) {
        let count = self.counts.entry(info.code).or_insert(0);
        *count += 1;
        if *count <= Report::MAX_PER_CODE {
            self.findings.push(Finding {
                code: info.code,
                severity: info.severity,
                structure: structure.into(),
                offset,
                what,
                advice: info.advice,
            });
        }
    }
}
