//! The block allocation table: states, offsets, and who owns each MiB of the file.
//!
//! The table is walked in pieces and holes of the file are skipped, so that the empty table of a disk of 64 TiB costs
//! nothing. Ownership is one bit for each MiB of the file that exists, whatever the entries claim.

use std::ops::Range;

use super::codes::*;
use super::fix::Change;
use super::metadata::Disk;
use super::report::Severity;
use super::source::Fields;
use super::walk::{BAT_GUID, METADATA_GUID, MIB, Walk, overlap, region_name};
use crate::error::Result;

/// Entries are read in pieces of so many bytes.
const PIECE: u64 = MIB;
/// Beyond this a file is not looked at for overlaps and leaks: no disk needs as much.
const TRACKED_MAX: u64 = 256 << 40;

const NOT_PRESENT: u64 = 0;
const ZERO: u64 = 2;
const FULL: u64 = 6;
const PARTIAL: u64 = 7;

/// Geometry of the table.
struct Shape {
    block: u64,
    /// Payload entries between two bitmap entries.
    ratio: u64,
    /// Payload blocks of the disk.
    blocks: u64,
    /// Entries that the disk needs.
    entries: u64,
    has_parent: bool,
}

impl Shape {
    fn of(disk: &Disk) -> Option<Shape> {
        let (block, sector) = (u64::from(disk.block_bytes?), u64::from(disk.logical_sector?));
        let blocks = disk.size_bytes?.div_ceil(block);
        let ratio = ((1 << 23) * sector / block).max(1);
        let entries = if disk.has_parent {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        };
        Some(Shape { block, ratio, blocks, entries, has_parent: disk.has_parent })
    }

    /// The payload block of an entry, or `None` for a bitmap.
    fn payload(&self, entry: u64) -> Option<u64> {
        let (chunk, rest) = (entry / (self.ratio + 1), entry % (self.ratio + 1));
        (rest != self.ratio).then(|| chunk * self.ratio + rest)
    }
}

/// One bit for each MiB of the file.
struct Owned {
    words: Vec<u64>,
}

impl Owned {
    fn new(file_bytes: u64) -> Owned {
        let mibs = file_bytes.min(TRACKED_MAX).div_ceil(MIB);
        Owned { words: vec![0; usize::try_from(mibs.div_ceil(64)).unwrap_or(0)] }
    }

    /// Takes a range of MiBs; whether all were free.
    fn take(&mut self, mibs: Range<u64>) -> bool {
        let mut free = true;
        for mib in mibs {
            let Some(word) = usize::try_from(mib / 64).ok().and_then(|i| self.words.get_mut(i)) else { break };
            free &= *word & (1 << (mib % 64)) == 0;
            *word |= 1 << (mib % 64);
        }
        free
    }

    fn is_taken(&self, mib: u64) -> bool {
        let word = usize::try_from(mib / 64).ok().and_then(|i| self.words.get(i));
        word.is_some_and(|word| word & (1 << (mib % 64)) != 0)
    }
}

fn mibs(range: &Range<u64>) -> Range<u64> {
    range.start / MIB..range.end.div_ceil(MIB)
}

impl Walk<'_> {
    /// Checks the whole table and the space of the file. `on_progress` gets bytes of the table done and in all.
    pub fn bat(&mut self, disk: &Disk, on_progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let mut owned = Owned::new(self.len);
        owned.take(0..1);
        if let Some(log) = self.log.clone() {
            owned.take(mibs(&log));
        }
        for region in self.regions.clone() {
            owned.take(mibs(&region.range));
        }
        let (Some(region), Some(shape)) = (self.region(&BAT_GUID), Shape::of(disk)) else { return Ok(()) };
        let there = (region.end - region.start) / 8;
        if there < shape.entries {
            let what = format!("it holds {there} entries, the disk needs {}", shape.entries);
            self.add(&BAT_SHORT, "BAT", region.start, what);
        }
        let mut stale = false;
        let mut bitmap_of: Option<(u64, u64)> = None;
        self.bat_pieces(&region, on_progress, &mut |walk, entry, at, value| {
            stale |= walk.bat_entry(&shape, entry, at, value, &mut owned);
            if value & 7 == PARTIAL && shape.has_parent && shape.payload(entry).is_some() {
                walk.bat_bitmap_of(&shape, &region, entry, at, &mut bitmap_of)?;
            }
            Ok(())
        })?;
        if stale {
            // Undefined and unmapped blocks may keep their space as long as nobody else has it.
            self.bat_pieces(&region, &mut |_, _| {}, &mut |walk, entry, at, value| {
                let offset = (value >> 20) * MIB;
                if matches!(value & 7, 1 | 3) && offset != 0 && shape.payload(entry).is_some_and(|b| b < shape.blocks) {
                    let range = offset..offset.saturating_add(shape.block);
                    if range.end > walk.len || !owned.take(mibs(&range)) {
                        walk.add(
                            &BAT_STALE_OFFSET,
                            entry_name(&shape, entry),
                            at,
                            format!("its old place is {offset:#x}"),
                        );
                    }
                }
                Ok(())
            })?;
        }
        self.report.facts.complete = there >= shape.entries;
        // Without a log or the metadata, what is free cannot be told.
        if self.log.is_some() && self.region(&METADATA_GUID).is_some() {
            self.space(&owned);
        }
        Ok(())
    }

    /// Calls `each` with index, place and value of every entry that is not zero.
    fn bat_pieces(
        &mut self,
        region: &Range<u64>,
        on_progress: &mut dyn FnMut(u64, u64),
        each: &mut dyn FnMut(&mut Self, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = region.start;
        while let Some(run) = self.next_data(at).filter(|run| run.start < region.end) {
            at = run.start.max(at) & !7;
            let end = run.end.min(region.end).min(at + PIECE).max(at + 8).next_multiple_of(8);
            let bytes = self.read(at, usize::try_from(end - at).unwrap_or(0))?;
            for (index, chunk) in bytes.chunks_exact(8).enumerate() {
                let value = chunk.u64(0);
                if value != 0 {
                    let place = at + 8 * index as u64;
                    each(self, (place - region.start) / 8, place, value)?;
                }
            }
            at = end;
            on_progress(at - region.start, region.end - region.start);
        }
        Ok(())
    }

    /// One entry. Whether it is an undefined or unmapped block with an offset, which is looked at later.
    fn bat_entry(&mut self, shape: &Shape, entry: u64, at: u64, value: u64, owned: &mut Owned) -> bool {
        let name = || entry_name(shape, entry);
        let (state, offset) = (value & 7, (value >> 20).saturating_mul(MIB));
        let payload = shape.payload(entry);
        let behind = match payload {
            Some(block) => block >= shape.blocks,
            None => entry >= shape.entries,
        };
        if behind {
            // States without space mean nothing there; a disk that was made smaller leaves them behind.
            if offset == 0 && state < 6 && value & 0xf_fff8 == 0 {
                return false;
            }
            self.add(&BAT_TAIL, name(), at, format!("it is {value:#x}, behind the last block of the disk"));
            self.fix_entry(&BAT_TAIL, name(), at, 0);
            return false;
        }
        if value & 0xf_fff8 != 0 {
            self.add(&BAT_RESERVED, name(), at, format!("bits 3 to 19 of {value:#x} are not zero"));
            self.fix_entry(&BAT_RESERVED, name(), at, value & !0xf_fff8);
        }
        let length = match (payload, state) {
            (None, 0) => 0,
            (None, FULL) if !shape.has_parent => {
                self.add(&BAT_BITMAP_UNEXPECTED, name(), at, "a bitmap is present without a parent");
                self.fix_entry(&BAT_BITMAP_UNEXPECTED, name(), at, 0);
                MIB
            }
            (None, FULL) => MIB,
            (None, _) => {
                self.add(&BAT_BITMAP_STATE, name(), at, format!("the state of the bitmap is {state}"));
                return false;
            }
            (Some(_), 4 | 5) => {
                self.add(&BAT_STATE, name(), at, format!("its state is {state}"));
                return false;
            }
            (Some(_), PARTIAL) if !shape.has_parent => {
                self.add(&BAT_PARTIAL, name(), at, "it is partially present without a parent");
                shape.block
            }
            (Some(_), FULL | PARTIAL) => shape.block,
            (Some(_), NOT_PRESENT | ZERO) => 0,
            (Some(_), _) => return offset != 0,
        };
        if length == 0 {
            if offset != 0 {
                self.add(&BAT_OFFSET_ZERO, name(), at, format!("its state is {state}, its offset {offset:#x}"));
                self.fix_entry(&BAT_OFFSET_ZERO, name(), at, state);
            }
            return false;
        }
        if offset < MIB {
            self.add(&BAT_OFFSET_MISSING, name(), at, "it is present, but at offset 0");
            return false;
        }
        self.report.facts.blocks += 1;
        let range = offset..offset.saturating_add(length);
        if range.end > self.len {
            let what = format!("it ends at {:#x}, the file at {:#x}", range.end, self.len);
            self.add(&BAT_BEYOND, name(), at, what);
            // What lies inside the file is still owned.
        }
        let mut in_structure = false;
        if self.log.as_ref().is_some_and(|log| overlap(log, &range)) {
            self.add(&BAT_IN_LOG, name(), at, format!("its place {offset:#x} lies in the log"));
            in_structure = true;
        }
        for region in self.regions.clone().iter().filter(|region| overlap(&region.range, &range)) {
            let info = match region.guid {
                BAT_GUID => &BAT_IN_BAT,
                METADATA_GUID => &BAT_IN_METADATA,
                _ => &BAT_IN_REGION,
            };
            let what = format!("its place {offset:#x} lies in the region {}", region_name(&region.guid));
            self.add(info, name(), at, what);
            in_structure = true;
        }
        if !owned.take(mibs(&range)) && !in_structure {
            self.add(&BAT_OVERLAP, name(), at, format!("its place {offset:#x} belongs to another block too"));
        }
        false
    }

    fn fix_entry(&mut self, code: &'static CodeInfo, name: String, at: u64, value: u64) {
        let change = Change::Bytes(value.to_le_bytes().to_vec());
        self.fix(code, name, at, change, format!("the entry is {value:#x} now"));
    }

    /// A partially present block needs the bitmap of its chunk. `known` remembers the last chunk and its entry.
    fn bat_bitmap_of(
        &mut self,
        shape: &Shape,
        region: &Range<u64>,
        entry: u64,
        at: u64,
        known: &mut Option<(u64, u64)>,
    ) -> Result<()> {
        let chunk = entry / (shape.ratio + 1);
        let value = match *known {
            Some((number, value)) if number == chunk => value,
            _ => {
                let place = region.start + 8 * (chunk * (shape.ratio + 1) + shape.ratio);
                let value = if place + 8 <= region.end { self.read(place, 8)?.u64(0) } else { 0 };
                *known = Some((chunk, value));
                value
            }
        };
        if value & 7 != FULL {
            let what = format!("it is partially present, the bitmap of chunk {chunk} is {value:#x}");
            self.add(&BAT_BITMAP_MISSING, entry_name(shape, entry), at, what);
        }
        Ok(())
    }

    /// Space of the file that nothing owns: behind the last owner, and inside where it is no hole.
    fn space(&mut self, owned: &Owned) {
        let tracked = self.len.min(TRACKED_MAX);
        let mut last = tracked.div_ceil(MIB);
        while last > 0 && !owned.is_taken(last - 1) {
            last -= 1;
        }
        let end = last * MIB;
        if end < self.len {
            let bytes = self.len - end;
            let info = if self.next_data(end).is_some() { &SPACE_TRAILING } else { &SPACE_TRAILING_HOLE };
            if info.severity == Severity::Leak {
                self.report.facts.leaked_bytes += bytes;
            }
            self.add(info, "file", end, format!("{bytes} bytes are behind the last structure"));
            self.fix(info, "file", end, Change::Truncate(end), format!("it ends at {end:#x} now"));
        }
        // Runs of free MiBs, looked at only where the file has data.
        let mut at = 0;
        while let Some(run) = self.next_data(at).filter(|run| run.start < end) {
            let until = run.end.min(end);
            let mut mib = run.start / MIB;
            while mib * MIB < until {
                if owned.is_taken(mib) {
                    mib += 1;
                    continue;
                }
                let first = mib;
                while mib * MIB < until && !owned.is_taken(mib) {
                    mib += 1;
                }
                let (from, to) = ((first * MIB).max(run.start), (mib * MIB).min(until));
                self.report.facts.leaked_bytes += to - from;
                self.add(&SPACE_UNUSED, "file", from, format!("{} bytes belong to nothing", to - from));
                let done = format!("{} bytes are given back", to - from);
                self.fix(&SPACE_UNUSED, "file", from, Change::Release(from..to), done);
            }
            at = run.end.max(at + 1);
        }
    }
}

fn entry_name(shape: &Shape, entry: u64) -> String {
    match shape.payload(entry) {
        Some(block) => format!("BAT entry {entry} (block {block})"),
        None => format!("BAT entry {entry} (bitmap {})", entry / (shape.ratio + 1)),
    }
}
