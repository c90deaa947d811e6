//! What is kept of work on a medium, for [`Persistence`]: a text of lines, so that it can be read by people. With it, the work goes on
//! after a restart, and a medium that it has left half done is not taken for a sound one.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{FAILED, FAILED_UNRESTRICTED, FORMAT_FAILED, FORMATTING, SANITIZING, Work};
use crate::scsi::Persistence;
use crate::scsi::unit::Shape;

const HEADER: &str = "qrvsa-sanitize 1\n";
const STATES: [(&str, u8); 5] = [
    ("sanitizing", SANITIZING),
    ("formatting", FORMATTING),
    ("failed", FAILED),
    ("failed-exit-allowed", FAILED_UNRESTRICTED),
    ("format-failed", FORMAT_FAILED),
];
/// Longest pattern, bytes: more than any block.
const PATTERN_BYTES_MAX: usize = 64 << 10;

/// A state other than idle, and the work that leads out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Which storage it is about, see [`name_of`].
    pub of: String,
    pub state: u8,
    pub unrestricted: bool,
    pub work: Work,
}

/// Names storage, so that no other is ever overwritten in its place.
pub(crate) fn name_of(shape: &Shape) -> String {
    match shape.backing.identity() {
        Some(id) => format!("{id:032x}"),
        None => format!("{:032x}-{}", u128::from_be_bytes(shape.ident.naa), shape.backing.size_bytes()),
    }
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let word = STATES.iter().find(|(_, state)| *state == self.state).map_or("failed", |(word, _)| word);
        let mut out = format!("{HEADER}of {}\nstate {word}\nexit {}\n", self.of, u8::from(self.unrestricted));
        match &self.work {
            Work::Erase => out.push_str("erase\n"),
            Work::Overwrite { pattern, times } => {
                let _ = write!(out, "overwrite {times} ");
                for byte in pattern {
                    let _ = write!(out, "{byte:02x}");
                }
                out.push('\n');
            }
        }
        out.push_str("end\n");
        out.into_bytes()
    }

    /// What was stored; empty bytes are nothing.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Self>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let damaged = "what was stored of its being sanitized or formatted is damaged; remove the LUN and add it anew";
        parse(bytes).map(Some).ok_or_else(|| damaged.into())
    }
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.strip_prefix(HEADER)?.strip_suffix("end\n")?.lines();
    let of = lines.next()?.strip_prefix("of ")?.to_owned();
    let word = lines.next()?.strip_prefix("state ")?;
    let state = STATES.iter().find(|(known, _)| *known == word)?.1;
    let unrestricted = match lines.next()? {
        "exit 0" => false,
        "exit 1" => true,
        _ => return None,
    };
    let work = match lines.next()? {
        "erase" => Work::Erase,
        other => {
            let (times, hex) = other.strip_prefix("overwrite ")?.split_once(' ')?;
            let times = times.parse().ok().filter(|times| (1..=31).contains(times))?;
            Work::Overwrite { pattern: unhex(hex)?, times }
        }
    };
    if lines.next().is_some() { None } else { Some(Record { of, state, unrestricted, work }) }
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let fits = hex.bytes().all(|b| b.is_ascii_hexdigit()) && hex.len().is_multiple_of(2);
    if !fits || hex.is_empty() || hex.len() / 2 > PATTERN_BYTES_MAX {
        return None;
    }
    hex.as_bytes().chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}

/// Where the record of one unit lies.
#[derive(Clone)]
pub(crate) struct Keeper {
    /// `None`: nothing survives the process.
    pub store: Option<Arc<dyn Persistence>>,
    pub key: String,
}

impl Keeper {
    pub(crate) fn get(&self) -> Result<Option<Record>, String> {
        let bytes = self.store.as_ref().map_or(Ok(None), |store| store.get(&self.key))?;
        Record::decode(&bytes.unwrap_or_default())
    }

    pub(crate) fn put(&self, record: &Record) -> Result<(), String> {
        self.store.as_ref().map_or(Ok(()), |store| store.put(&self.key, &record.encode()))
    }

    /// Forgets the record, if there is one.
    pub(crate) fn clear(&self) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        if store.get(&self.key)?.is_some_and(|bytes| !bytes.is_empty()) { store.put(&self.key, &[]) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damaged_ones_do_not() {
        for (_, state) in STATES {
            for work in [Work::Erase, Work::Overwrite { pattern: vec![0, 0xa5, 0xff], times: 31 }] {
                let record = Record { of: "ab-1".into(), state, unrestricted: state == FAILED, work };
                let bytes = record.encode();
                assert_eq!(Record::decode(&bytes), Ok(Some(record)));
                for cut in 1..bytes.len() {
                    assert!(Record::decode(&bytes[..cut]).is_err(), "cut at {cut}");
                }
            }
        }
        assert_eq!(Record::decode(&[]), Ok(None));
        for bad in ["overwrite 0 00", "overwrite 1 0", "overwrite 1 ", "overwrite 1 +1", "erase\nerase", "x"] {
            let text = format!("{HEADER}of a\nstate failed\nexit 0\n{bad}\nend\n");
            assert!(Record::decode(text.as_bytes()).is_err(), "{bad}");
        }
    }
}
