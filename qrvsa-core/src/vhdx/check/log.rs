//! The log of an image that was not closed: its active sequence, its faults, and its effect as an overlay in memory.
//!
//! The overlay keeps where each sector's new contents are in the log, not the contents, so that it takes a few bytes
//! for each descriptor, whatever the descriptors claim.

use std::collections::BTreeMap;
use std::ops::Range;

use super::codes::*;
use super::source::{Fields, Source};
use super::walk::{MIB, Walk, overlap};
use crate::error::Result;

const SECTOR: u64 = 4096;
/// Descriptors in the first sector of an entry, after its header of 64 bytes, and in each further one.
const FIRST_DESCRIPTORS: u64 = 126;
const MORE_DESCRIPTORS: u64 = 128;

/// What replay puts over the file.
#[derive(Default)]
pub(in crate::vhdx) struct Overlay {
    /// By first byte: the end, and what is there.
    runs: BTreeMap<u64, (u64, Patch)>,
}

#[derive(Clone, Copy)]
enum Patch {
    Zero,
    /// A data sector in the log, with the bytes that its signature and sequence number displaced.
    Sector {
        position: u64,
        leading: [u8; 8],
        trailing: [u8; 4],
    },
}

impl Overlay {
    fn insert(&mut self, range: Range<u64>, patch: Patch) {
        if range.is_empty() {
            return;
        }
        // The run that reaches into the range from the left, and those that begin inside.
        let left = self.runs.range(..range.start).next_back().map(|(start, (end, patch))| (*start, *end, *patch));
        if let Some((start, end, old)) = left.filter(|(_, end, _)| *end > range.start) {
            self.runs.insert(start, (range.start, old));
            if end > range.end {
                self.runs.insert(range.end, (end, old));
            }
        }
        let inside: Vec<u64> = self.runs.range(range.clone()).map(|(start, _)| *start).collect();
        for start in inside {
            if let Some((end, old)) = self.runs.remove(&start)
                && end > range.end
            {
                self.runs.insert(range.end, (end, old));
            }
        }
        self.runs.insert(range.start, (range.end, patch));
    }

    /// The changed runs in order; those that are zero are marked.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        self.runs.iter().map(|(start, (end, patch))| (*start..*end, matches!(patch, Patch::Zero)))
    }

    /// Puts the changes over bytes that were read at `offset`.
    pub fn apply(&self, source: &dyn Source, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        let first = self.runs.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (start, (stop, patch)) in self.runs.range(first..end) {
            let (from, to) = ((*start).max(offset), (*stop).min(end));
            if from >= to {
                continue;
            }
            let range = usize::try_from(from - offset).unwrap_or(0)..usize::try_from(to - offset).unwrap_or(0);
            let Some(target) = buf.get_mut(range) else { continue };
            match patch {
                Patch::Zero => target.fill(0),
                Patch::Sector { position, leading, trailing } => {
                    let mut sector = vec![0; 4096];
                    source.read(*position, &mut sector)?;
                    let whole = leading.iter().chain(sector.bytes(8, 4084)).chain(trailing);
                    let skip = usize::try_from(from - start).unwrap_or(0);
                    for (to, from) in target.iter_mut().zip(whole.skip(skip)) {
                        *to = *from;
                    }
                }
            }
        }
        Ok(())
    }

    /// The first changed run at or after `offset`.
    pub fn next_change(&self, offset: u64) -> Option<Range<u64>> {
        let before = self.runs.range(..=offset).next_back().map(|(start, (end, _))| *start..*end);
        let after = self.runs.range(offset..).next().map(|(start, (end, _))| *start..*end);
        before.filter(|run| run.end > offset).map(|run| offset..run.end).or(after)
    }
}

/// An entry whose checksum and identity are right.
struct Entry {
    /// Position in the log, bytes.
    at: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
    changes: Vec<(Range<u64>, Patch)>,
}

impl Walk<'_> {
    /// Finds the active sequence of a dirty log and prepares its replay in memory.
    pub fn dirty_log(&mut self) -> Result<()> {
        let Some(header) = self.header.filter(|header| header.log_guid != [0; 16]) else { return Ok(()) };
        let Some(log) = self.log.clone() else { return Ok(()) };
        let entries = self.log_entries(&log, &header.log_guid)?;
        let Some(chain) = active_sequence(&entries, log.end - log.start) else {
            self.add(&LOG_NO_SEQUENCE, "log", log.start, "no valid active sequence of entries is in it");
            return Ok(());
        };
        let Some(head) = chain.last() else { return Ok(()) };
        if self.len < head.flushed {
            let what = format!(
                "the file has {:#x} bytes, of {:#x} when entry {} was written",
                self.len, head.flushed, head.sequence
            );
            self.add(&LOG_FILE_SHORT, "log", log.start + head.at + 48, what);
        }
        self.len = self.len.max(head.last.min(i64::MAX.unsigned_abs()));
        self.report.facts.replayed_entries = chain.len() as u64;
        let what = format!(
            "{} log entries, {} to {}, are replayed in memory",
            chain.len(),
            chain.first().map_or(0, |e| e.sequence),
            head.sequence
        );
        self.add(&LOG_DIRTY, "log", log.start + head.at, what);
        for entry in chain {
            for (range, patch) in &entry.changes {
                self.overlay.insert(range.clone(), *patch);
            }
        }
        Ok(())
    }

    /// All entries of this log that may be part of a sequence, by position; reports those that break a rule under a
    /// valid checksum.
    fn log_entries(&mut self, log: &Range<u64>, guid: &[u8; 16]) -> Result<BTreeMap<u64, Entry>> {
        let mut entries = BTreeMap::new();
        let mut at = log.start;
        while let Some(run) = self.next_data(at).filter(|run| run.start < log.end) {
            // Positions are multiples of 4 KiB from the start of the log; so are the bounds of the log.
            at = run.start - run.start % SECTOR;
            let until = run.end.min(log.end);
            while at < until {
                let sector = self.read_raw(at, 4096)?;
                if sector.bytes(0, 4) == b"loge"
                    && sector.bytes(32, 16) == guid
                    && let Some(entry) = self.log_entry(log, at, &sector)?
                {
                    entries.insert(entry.at, entry);
                }
                at += SECTOR;
            }
        }
        Ok(entries)
    }

    fn log_entry(&mut self, log: &Range<u64>, at: u64, sector: &[u8]) -> Result<Option<Entry>> {
        let size = log.end - log.start;
        let name = format!("log entry {}", sector.u64(16));
        let (length, tail, sequence) = (u64::from(sector.u32(8)), u64::from(sector.u32(12)), sector.u64(16));
        let descriptors = u64::from(sector.u32(24));
        let (flushed, last) = (sector.u64(48), sector.u64(56));
        if length == 0 || !length.is_multiple_of(SECTOR) || length > size {
            self.add(&LOG_ENTRY_LENGTH, name, at + 8, format!("its length is {length:#x}"));
            return Ok(None);
        }
        let sum = self.log_checksum(log, at, length)?;
        if sum != sector.u32(4) {
            let what = format!("its checksum is {:#010x}, its contents have {sum:#010x}", sector.u32(4));
            self.add(&LOG_TORN, name, at + 4, what);
            return Ok(None);
        }
        let mut good = true;
        if !tail.is_multiple_of(SECTOR) || tail >= size {
            self.add(&LOG_ENTRY_TAIL, name.clone(), at + 12, format!("its tail is {tail:#x}"));
            good = false;
        }
        if sequence == 0 {
            self.add(&LOG_ENTRY_SEQUENCE, name.clone(), at + 16, "its sequence number is 0");
            good = false;
        }
        if sector.u32(28) != 0 {
            self.add(&LOG_ENTRY_RESERVED, name.clone(), at + 28, "a reserved field is not zero");
        }
        for (value, field, what) in [(flushed, 48, "FlushedFileOffset"), (last, 56, "LastFileOffset")] {
            if value == 0 || !value.is_multiple_of(MIB) {
                self.add(&LOG_ENTRY_OFFSETS, name.clone(), at + field, format!("{what} is {value:#x}"));
            }
        }
        let table = descriptor_sectors(descriptors);
        if table.is_none_or(|sectors| sectors * SECTOR > length) {
            self.add(
                &LOG_ENTRY_LENGTH,
                name,
                at + 24,
                format!("{descriptors} descriptors do not fit into {length:#x} bytes"),
            );
            return Ok(None);
        }
        let mut data = table.unwrap_or(1);
        let mut changes = Vec::new();
        let mut block = Vec::new();
        for index in 0..descriptors {
            // Descriptor i is the (i + 2)-th of 32 bytes: the header has the place of two.
            let position = (index + 2) * 32;
            let (in_sector, sector_number) = (usize::try_from(position % SECTOR).unwrap_or(0), position / SECTOR);
            if index == 0 || in_sector == 0 {
                block = self.read_raw(ring(log, at, sector_number * SECTOR), 4096)?;
            }
            let place = ring(log, at, position);
            let name = || format!("{name}, descriptor {index}");
            let (target, number) = (block.u64(in_sector + 16), block.u64(in_sector + 24));
            let kind = block.bytes(in_sector, 4);
            if kind != b"zero" && kind != b"desc" {
                self.add(&LOG_DESCRIPTOR, name(), place, "its signature is unknown");
                return Ok(None);
            }
            if number != sequence {
                self.add(&LOG_DESCRIPTOR_SEQUENCE, name(), place + 24, format!("its sequence number is {number}"));
                good = false;
            }
            let zero = kind == b"zero";
            let span = if zero { block.u64(in_sector + 8) } else { SECTOR };
            let end = target.checked_add(span).filter(|end| *end <= i64::MAX.unsigned_abs());
            if zero && !span.is_multiple_of(SECTOR) {
                self.add(&LOG_DESCRIPTOR_LENGTH, name(), place + 8, format!("its length is {span:#x}"));
                good = false;
            }
            let Some(end) = end.filter(|_| target.is_multiple_of(SECTOR)) else {
                self.add(&LOG_DESCRIPTOR_OFFSET, name(), place + 16, format!("its target is {target:#x}"));
                good = false;
                continue;
            };
            // Region tables are the only thing before the first MiB that a log may change.
            let first = overlap(&(target..end), &(0..192 * 1024));
            if first || overlap(&(target..end), log) {
                let what =
                    format!("it changes {target:#x}..{end:#x}: {}", if first { "the headers" } else { "the log" });
                self.add(&LOG_DESCRIPTOR_TARGET, name(), place + 16, what);
                good = false;
            }
            let mut patch = Patch::Zero;
            if !zero {
                let position = ring(log, at, data * SECTOR);
                let sector = self.read_raw(position, 4096)?;
                let number = u64::from(sector.u32(4)) << 32 | u64::from(sector.u32(4092));
                if data * SECTOR >= length || sector.bytes(0, 4) != b"data" || number != sequence {
                    self.add(&LOG_DATA, name(), position, "its data sector is missing, or not of this entry");
                    return Ok(None);
                }
                let leading = block.u64(in_sector + 8).to_le_bytes();
                patch = Patch::Sector { position, leading, trailing: block.u32(in_sector + 4).to_le_bytes() };
                data += 1;
            }
            changes.push((target..end, patch));
        }
        if good && data * SECTOR != length {
            self.add(
                &LOG_ENTRY_LENGTH,
                name,
                at + 8,
                format!("its length is {length:#x}, its parts take {:#x}", data * SECTOR),
            );
            good = false;
        }
        Ok(good.then(|| Entry { at: at - log.start, length, tail, sequence, flushed, last, changes }))
    }

    /// CRC-32C of an entry, which may go round the end of the log. `length` is at most that of the log.
    fn log_checksum(&self, log: &Range<u64>, at: u64, length: u64) -> Result<u32> {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut done = 0;
        while done < length {
            let sector = self.read_raw(ring(log, at, done), 4096)?;
            if done == 0 {
                digest.update(sector.bytes(0, 4));
                digest.update(&[0; 4]);
                digest.update(sector.bytes(8, 4088));
            } else {
                digest.update(&sector);
            }
            done += SECTOR;
        }
        Ok(u32::try_from(digest.finalize()).unwrap_or_default())
    }
}

/// Sectors that the header and so many descriptors take, or `None` when they are absurdly many.
fn descriptor_sectors(descriptors: u64) -> Option<u64> {
    let more = descriptors.saturating_sub(FIRST_DESCRIPTORS).div_ceil(MORE_DESCRIPTORS);
    (more < u64::from(u32::MAX) / SECTOR).then_some(1 + more)
}

/// The place in the file `ahead` bytes after `at`, round the end of the log.
fn ring(log: &Range<u64>, at: u64, ahead: u64) -> u64 {
    let size = (log.end - log.start).max(1);
    log.start + (at - log.start + ahead) % size
}

/// The entries from tail to head of the newest valid sequence.
fn active_sequence(entries: &BTreeMap<u64, Entry>, size: u64) -> Option<Vec<&Entry>> {
    // Newest head first: the highest sequence number wins.
    let mut heads: Vec<&Entry> = entries.values().collect();
    heads.sort_by_key(|entry| std::cmp::Reverse(entry.sequence));
    let mut before: BTreeMap<(u64, u64), &Entry> = BTreeMap::new();
    for entry in entries.values() {
        before.insert(((entry.at + entry.length) % size, entry.sequence), entry);
    }
    let grows = |entry: &Entry| {
        let next = entries.get(&((entry.at + entry.length) % size));
        next.is_some_and(|next| Some(next.sequence) == entry.sequence.checked_add(1))
    };
    for head in heads.into_iter().filter(|entry| !grows(entry)) {
        let mut chain = vec![head];
        let mut total = head.length;
        let mut first = head;
        while first.at != head.tail {
            let previous = first.sequence.checked_sub(1).and_then(|number| before.get(&(first.at, number)));
            let Some(previous) = previous.filter(|p| total.saturating_add(p.length) <= size) else { break };
            total += previous.length;
            chain.push(previous);
            first = previous;
        }
        if first.at == head.tail {
            chain.reverse();
            return Some(chain);
        }
    }
    None
}
