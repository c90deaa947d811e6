//! The state of a check, and its first steps: file type identifier, headers, region tables.

use std::ops::Range;

use super::codes::*;
use super::fix::{Change, Fix};
use super::log::Overlay;
use super::report::Report;
use super::source::{Fields, Source, checksum, guid_text};
use crate::error::Result;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

pub(in crate::vhdx) const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
pub(in crate::vhdx) const REGION_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
const REGION_ENTRIES_MAX: u32 = 2047;
/// `2DC27766-F623-4200-9D64-115E9BFD4A08`
pub(in crate::vhdx) const BAT_GUID: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
/// `8B7CA206-4790-4B9A-B8FE-575F050F886E`
pub(in crate::vhdx) const METADATA_GUID: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];

/// What a valid header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vhdx) struct Header {
    pub sequence: u64,
    pub file_write_guid: [u8; 16],
    pub data_write_guid: [u8; 16],
    pub log_guid: [u8; 16],
    pub log_version: u16,
    pub log_offset: u64,
    pub log_length: u32,
}

/// A region of the file with its owner.
#[derive(Clone, Debug)]
pub(in crate::vhdx) struct Region {
    pub guid: [u8; 16],
    pub range: Range<u64>,
}

/// A check under way.
pub(in crate::vhdx) struct Walk<'a> {
    source: &'a dyn Source,
    /// What the dirty log puts over the source.
    pub overlay: Overlay,
    /// Bytes of the file, after replay.
    pub len: u64,
    pub report: Report,
    pub header: Option<Header>,
    pub log: Option<Range<u64>>,
    pub regions: Vec<Region>,
    pub fixes: Vec<Fix>,
    /// Index, region and flags of each entry of the region table.
    region_flags: Vec<(usize, [u8; 16], u32)>,
}

impl<'a> Walk<'a> {
    pub fn new(source: &'a dyn Source) -> Walk<'a> {
        let mut report = Report::default();
        report.facts.file_bytes = source.len();
        Walk {
            source,
            overlay: Overlay::default(),
            len: source.len(),
            report,
            header: None,
            log: None,
            regions: Vec::new(),
            fixes: Vec::new(),
            region_flags: Vec::new(),
        }
    }

    pub fn add(&mut self, info: &'static CodeInfo, structure: impl Into<String>, offset: u64, what: impl Into<String>) {
        self.report.add(info, structure, offset, what.into());
    }

    /// Reads as after a replay.
    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.source.read(offset, &mut buf)?;
        self.overlay.apply(self.source, offset, &mut buf)?;
        Ok(buf)
    }

    /// Reads what is in the file, without replay.
    pub fn read_raw(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.source.read(offset, &mut buf)?;
        Ok(buf)
    }

    /// The next run of the file that may hold something, after replay.
    pub fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        match (self.source.next_data(offset), self.overlay.next_change(offset)) {
            (Some(a), Some(b)) if b.start < a.start => Some(b.start..b.end.max(b.start + 1)),
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }

    /// The file type identifier. Whether it has its signature.
    pub fn identifier(&mut self) -> Result<bool> {
        let id = self.read_raw(0, 520)?;
        let good = id.bytes(0, 8) == b"vhdxfile";
        if !good {
            self.add(&ID_SIGNATURE, "file type identifier", 0, "it does not begin with \"vhdxfile\"");
            self.fix(&ID_SIGNATURE, "file type identifier", 0, Change::Identifier, "its signature is written");
        }
        let units: Vec<u16> = (0..256).map(|i| id.u16(8 + 2 * i)).take_while(|unit| *unit != 0).collect();
        if String::from_utf16(&units).is_err() {
            self.add(&ID_CREATOR, "file type identifier", 8, "the creator is not UTF-16");
        }
        if self.len < MIB {
            self.add(&FILE_SHORT, "file", self.len, format!("it has {} bytes; the first MiB is not whole", self.len));
        }
        Ok(good)
    }

    /// Both headers; chooses the current one. Whether at least one has its signature.
    pub fn headers(&mut self) -> Result<bool> {
        let mut seen = false;
        let mut valid: Vec<(Header, Vec<u8>)> = Vec::new();
        for (number, offset) in HEADER_OFFSETS.into_iter().enumerate() {
            let name = format!("header {}", number + 1);
            let bytes = self.read_raw(offset, 4096)?;
            if bytes.bytes(0, 4) != b"head" {
                self.add(&HEADER_SIGNATURE, name, offset, "it does not begin with \"head\"");
                continue;
            }
            seen = true;
            let (stored, computed) = (bytes.u32(4), checksum(&bytes));
            if stored != computed {
                let what = format!("its checksum is {stored:#010x}, its contents have {computed:#010x}");
                self.add(&HEADER_CHECKSUM, name, offset + 4, what);
                continue;
            }
            if bytes.u16(66) != 1 {
                self.add(&HEADER_VERSION, name, offset + 66, format!("its version is {}", bytes.u16(66)));
                continue;
            }
            if let Some(at) = bytes.iter().skip(80).position(|b| *b != 0) {
                self.add(&HEADER_RESERVED, name, offset + 80 + at as u64, "a reserved byte is not zero");
            }
            let header = Header {
                sequence: bytes.u64(8),
                file_write_guid: bytes.guid(16),
                data_write_guid: bytes.guid(32),
                log_guid: bytes.guid(48),
                log_version: bytes.u16(64),
                log_length: bytes.u32(68),
                log_offset: bytes.u64(72),
            };
            valid.push((header, bytes));
        }
        if let [(first, a), (second, b)] = valid.as_slice()
            && first.sequence == second.sequence
            && a != b
        {
            let what = format!("both have sequence number {} and differ", first.sequence);
            self.add(&HEADER_EQUAL_SEQUENCE, "headers", HEADER_OFFSETS[0] + 8, what);
        }
        let Some((header, _)) = valid.into_iter().max_by_key(|(header, _)| header.sequence) else {
            self.add(&HEADER_NONE, "headers", HEADER_OFFSETS[0], "neither of the two is valid");
            return Ok(seen);
        };
        self.header = Some(header);
        let faults = [&HEADER_SIGNATURE, &HEADER_CHECKSUM, &HEADER_RESERVED];
        if let Some(code) = faults.into_iter().find(|code| self.report.has(code.code)) {
            let done = "both headers are written anew from the current one";
            self.fix(code, "headers", HEADER_OFFSETS[0], Change::Headers, done);
        }
        self.header_fields(&header);
        Ok(seen)
    }

    fn header_fields(&mut self, header: &Header) {
        let name = "current header";
        let at = HEADER_OFFSETS[0];
        let dirty = header.log_guid != [0; 16];
        if header.log_version != 0 {
            let info = if dirty { &HEADER_LOG_VERSION } else { &HEADER_LOG_VERSION_UNUSED };
            self.add(info, name, at + 64, format!("the log version is {}", header.log_version));
        }
        let (offset, length) = (header.log_offset, u64::from(header.log_length));
        let mut usable = true;
        if length == 0 || !length.is_multiple_of(MIB) {
            self.add(&HEADER_LOG_LENGTH, name, at + 68, format!("the log has a length of {length:#x}"));
            usable = false;
        }
        if offset < MIB || !offset.is_multiple_of(MIB) {
            self.add(&HEADER_LOG_OFFSET, name, at + 72, format!("the log is at {offset:#x}"));
            usable = false;
        }
        let end = offset.saturating_add(length);
        if end > self.len {
            let what = format!("the log ends at {end:#x}, the file at {:#x}", self.len);
            self.add(&HEADER_LOG_BEYOND, name, at + 72, what);
            usable = false;
        }
        if usable {
            self.log = Some(offset..end);
        }
        if header.file_write_guid == [0; 16] {
            self.add(&HEADER_FILE_WRITE_GUID, name, at + 16, "FileWriteGuid is zero");
        }
        if header.data_write_guid == [0; 16] {
            self.add(&HEADER_DATA_WRITE_GUID, name, at + 32, "DataWriteGuid is zero");
        }
    }

    /// Space before the first MiB that belongs to nothing.
    pub fn reserved_area(&mut self) -> Result<()> {
        let from = 320 * KIB;
        let Some(run) = self.next_data(from).filter(|run| run.start < MIB) else { return Ok(()) };
        let bytes = self.read(run.start, usize::try_from(MIB - run.start).unwrap_or(0))?;
        if let Some(at) = bytes.iter().position(|b| *b != 0) {
            self.add(&RESERVED_AREA, "reserved space", run.start + at as u64, "it is not zero");
        }
        Ok(())
    }

    /// Both region tables; takes the regions from the first valid one.
    pub fn region_tables(&mut self) -> Result<()> {
        let mut valid: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, offset) in REGION_OFFSETS.into_iter().enumerate() {
            let name = format!("region table {}", number + 1);
            let bytes = self.read(offset, 65536)?;
            let (stored, computed) = (bytes.u32(4), checksum(&bytes));
            if bytes.bytes(0, 4) != b"regi" {
                self.add(&REGION_SIGNATURE, name, offset, "it does not begin with \"regi\"");
            } else if stored != computed {
                let what = format!("its checksum is {stored:#010x}, its contents have {computed:#010x}");
                self.add(&REGION_CHECKSUM, name, offset + 4, what);
            } else if bytes.u32(8) > REGION_ENTRIES_MAX {
                self.add(&REGION_COUNT, name, offset + 8, format!("it has {} entries", bytes.u32(8)));
            } else {
                valid.push((offset, bytes));
            }
        }
        if let [(_, a), (offset, b)] = valid.as_slice()
            && let Some(at) = a.iter().zip(b).position(|(a, b)| a != b)
        {
            let at = offset + at as u64;
            self.add(&REGION_DIFFER, "region tables", at, "the second differs from the first");
        }
        let Some((offset, bytes)) = valid.into_iter().next() else {
            self.add(&REGION_NONE, "region tables", REGION_OFFSETS[0], "neither of the two is valid");
            return Ok(());
        };
        self.region_entries(offset, &bytes);
        self.fix_region_tables(bytes);
        Ok(())
    }

    /// Both tables as they should be: as the valid one, with its bits set right.
    fn fix_region_tables(&mut self, mut bytes: Vec<u8>) {
        let faults = [
            &REGION_SIGNATURE,
            &REGION_CHECKSUM,
            &REGION_COUNT,
            &REGION_DIFFER,
            &REGION_RESERVED,
            &REGION_NOT_REQUIRED,
        ];
        let Some(code) = faults.into_iter().find(|code| self.report.has(code.code)) else { return };
        let mut put = |at: usize, value: u32| {
            if let Some(field) = bytes.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(12, 0);
        for (index, guid, flags) in &self.region_flags {
            let needed = u32::from(*guid == BAT_GUID || *guid == METADATA_GUID);
            put(16 + 32 * index + 28, flags & 1 | needed);
        }
        let sum = checksum(&bytes);
        if let Some(field) = bytes.get_mut(4..8) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        let done = "both tables are written anew from the valid one";
        self.fix(code, "region tables", REGION_OFFSETS[0], Change::RegionTables(bytes), done);
    }

    fn region_entries(&mut self, table: u64, bytes: &[u8]) {
        if bytes.u32(12) != 0 {
            self.add(&REGION_RESERVED, "region table", table + 12, "a reserved field is not zero");
        }
        let mut seen: Vec<[u8; 16]> = Vec::new();
        for index in 0..bytes.u32(8) as usize {
            let (entry, at) = (16 + 32 * index, table + 16 + 32 * index as u64);
            let (guid, offset, length) = (bytes.guid(entry), bytes.u64(entry + 16), u64::from(bytes.u32(entry + 24)));
            let flags = bytes.u32(entry + 28);
            self.region_flags.push((index, guid, flags));
            let name = format!("region entry {index} ({})", region_name(&guid));
            if seen.contains(&guid) {
                self.add(&REGION_DUPLICATE, name.clone(), at, "this region is listed before");
                continue;
            }
            seen.push(guid);
            if flags & !1 != 0 {
                self.add(&REGION_RESERVED, name.clone(), at + 28, format!("the flags are {flags:#x}"));
            }
            if guid == BAT_GUID || guid == METADATA_GUID {
                if flags & 1 == 0 {
                    self.add(&REGION_NOT_REQUIRED, name.clone(), at + 28, "it is not marked as required");
                }
            } else {
                let info = if flags & 1 == 1 { &REGION_UNKNOWN_REQUIRED } else { &REGION_UNKNOWN };
                self.add(info, name.clone(), at, "nothing is known about it");
            }
            let mut usable = true;
            if offset < MIB || !offset.is_multiple_of(MIB) {
                self.add(&REGION_OFFSET, name.clone(), at + 16, format!("it is at {offset:#x}"));
                usable = false;
            }
            if length == 0 || !length.is_multiple_of(MIB) {
                self.add(&REGION_LENGTH, name.clone(), at + 24, format!("it has a length of {length:#x}"));
                usable = false;
            }
            let range = offset..offset.saturating_add(length);
            if range.end > self.len {
                let what = format!("it ends at {:#x}, the file at {:#x}", range.end, self.len);
                self.add(&REGION_BEYOND, name.clone(), at + 16, what);
                usable = false;
            }
            if !usable {
                continue;
            }
            let log = self.log.clone().filter(|log| overlap(log, &range)).map(|_| "the log".to_owned());
            let other = self.regions.iter().find(|r| overlap(&r.range, &range)).map(|r| region_name(&r.guid));
            if let Some(other) = log.or(other) {
                self.add(
                    &REGION_OVERLAP,
                    name,
                    at + 16,
                    format!("{:#x}..{:#x} overlaps {other}", range.start, range.end),
                );
            }
            self.regions.push(Region { guid, range });
        }
        for (guid, what) in [(BAT_GUID, "BAT"), (METADATA_GUID, "metadata")] {
            if !seen.contains(&guid) {
                self.add(&REGION_MISSING, "region table", table, format!("the {what} region is not listed"));
            }
        }
    }

    /// Where a region lies, if it can be used.
    pub fn region(&self, guid: &[u8; 16]) -> Option<Range<u64>> {
        self.regions.iter().find(|region| region.guid == *guid).map(|region| region.range.clone())
    }
}

/// What people call a region.
pub(super) fn region_name(guid: &[u8; 16]) -> String {
    match *guid {
        BAT_GUID => "BAT".to_owned(),
        METADATA_GUID => "metadata".to_owned(),
        _ => guid_text(guid),
    }
}

pub(super) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
