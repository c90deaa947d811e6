//! The metadata region: its table, the known items, their flags and values.

use std::ops::Range;

use super::codes::*;
use super::fix::Change;
use super::source::{Fields, guid_text};
use super::walk::{METADATA_GUID, MIB, Walk, overlap};
use crate::error::Result;

const TABLE_BYTES: u64 = 64 << 10;
const ENTRIES_MAX: u16 = 2047;
const USER_ENTRIES_MAX: u32 = 1024;
const ITEM_MAX: u64 = MIB;
const DISK_MAX: u64 = 64 << 40;

/// A known item: its flags (user 1, virtual disk 2, required 4), and its length if that is fixed.
struct Known {
    guid: [u8; 16],
    name: &'static str,
    flags: u32,
    length: Option<u64>,
}

const fn known(guid: [u8; 16], name: &'static str, flags: u32, length: Option<u64>) -> Known {
    Known { guid, name, flags, length }
}

#[rustfmt::skip]
const KNOWN: [Known; 6] = [
    known([0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b], "file parameters", 4, Some(8)),
    known([0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8], "virtual disk size", 6, Some(8)),
    known([0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46], "virtual disk id", 6, Some(16)),
    known([0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f], "logical sector size", 6, Some(4)),
    known([0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56], "physical sector size", 6, Some(4)),
    known([0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c], "parent locator", 4, None),
];

/// What the metadata says of the disk; only values that are valid.
#[derive(Clone, Debug, Default)]
pub(in crate::vhdx) struct Disk {
    pub block_bytes: Option<u32>,
    pub leave_allocated: bool,
    pub has_parent: bool,
    pub size_bytes: Option<u64>,
    pub logical_sector: Option<u32>,
    /// Where the parent locator lies in the file, and its bytes.
    pub locator: Option<(u64, Vec<u8>)>,
}

impl Walk<'_> {
    /// Checks the metadata region.
    pub fn metadata(&mut self) -> Result<Disk> {
        let mut disk = Disk::default();
        let Some(region) = self.region(&METADATA_GUID) else { return Ok(disk) };
        let table = self.read(region.start, 65536)?;
        if table.bytes(0, 8) != b"metadata" {
            self.add(&METADATA_SIGNATURE, "metadata table", region.start, "it does not begin with \"metadata\"");
            return Ok(disk);
        }
        let count = table.u16(10);
        if count > ENTRIES_MAX {
            self.add(&METADATA_COUNT, "metadata table", region.start + 10, format!("it has {count} entries"));
            return Ok(disk);
        }
        if table.u16(8) != 0 || table.bytes(12, 20).iter().any(|b| *b != 0) {
            self.add(&METADATA_RESERVED, "metadata table", region.start + 8, "reserved bytes are not zero");
            let zeros = |from: usize, len| (region.start + from as u64, Change::Bytes(vec![0; len]));
            for (at, change) in [zeros(8, 2), zeros(12, 20)] {
                self.fix(&METADATA_RESERVED, "metadata table", at, change, "the reserved bytes are zero now");
            }
        }
        let items = self.metadata_entries(&region, &table, count);
        for known in &KNOWN {
            let Some((at, length)) = items.iter().find(|item| item.0 == known.guid).map(|item| (item.1, item.2)) else {
                if known.name != "parent locator" && !self.listed(&table, count, &known.guid) {
                    let what = format!("the item {} is not listed", known.name);
                    self.add(&METADATA_MISSING, "metadata table", region.start, what);
                }
                continue;
            };
            let bytes = self.read(at, usize::try_from(length).unwrap_or(0))?;
            self.metadata_value(known.name, at, bytes, &mut disk);
        }
        self.report.facts.disk_bytes = disk.size_bytes;
        self.report.facts.block_bytes = disk.block_bytes;
        self.report.facts.differencing = disk.has_parent;
        Ok(disk)
    }

    fn listed(&self, table: &[u8], count: u16, guid: &[u8; 16]) -> bool {
        (0..usize::from(count)).any(|index| table.guid(32 + 32 * index) == *guid)
    }

    /// The items that can be read: identifier, place in the file, length.
    fn metadata_entries(&mut self, region: &Range<u64>, table: &[u8], count: u16) -> Vec<([u8; 16], u64, u64)> {
        let mut items: Vec<([u8; 16], u64, u64)> = Vec::new();
        let mut places: Vec<Range<u64>> = Vec::new();
        let mut seen: Vec<([u8; 16], bool)> = Vec::new();
        let mut users = 0u32;
        for index in 0..usize::from(count) {
            let (entry, at) = (32 + 32 * index, region.start + 32 + 32 * index as u64);
            let guid = table.guid(entry);
            let (offset, length) = (u64::from(table.u32(entry + 16)), u64::from(table.u32(entry + 20)));
            let flags = table.u32(entry + 24);
            let user = flags & 1 == 1;
            let known = KNOWN.iter().find(|known| known.guid == guid);
            let label = known.map_or_else(|| guid_text(&guid), |known| known.name.to_owned());
            let name = format!("metadata entry {index} ({label})");
            if seen.contains(&(guid, user)) {
                self.add(&METADATA_DUPLICATE, name, at, "this item is listed before");
                continue;
            }
            seen.push((guid, user));
            users += u32::from(user);
            if users == USER_ENTRIES_MAX + 1 && user {
                self.add(&METADATA_USER_COUNT, name.clone(), at, "it is one user item more than 1024");
            }
            if flags & !7 != 0 || table.u32(entry + 28) != 0 {
                let what = format!("its flags are {flags:#x}, its reserved field {:#x}", table.u32(entry + 28));
                self.add(&METADATA_RESERVED, name.clone(), at + 24, what);
                let flags = known.map_or(flags & 7, |known| known.flags);
                let bytes = [flags.to_le_bytes(), [0; 4]].concat();
                let done = "its reserved bits are zero now";
                self.fix(&METADATA_RESERVED, name.clone(), at + 24, Change::Bytes(bytes), done);
            }
            match known {
                Some(known) if flags & 7 != known.flags => {
                    let what = format!("its flags are {:#x}, not {:#x}", flags & 7, known.flags);
                    self.add(&METADATA_FLAGS, name.clone(), at + 24, what);
                    self.fix_u32(&METADATA_FLAGS, name.clone(), at + 24, known.flags);
                }
                Some(_) => {}
                None if flags & 4 == 4 => {
                    self.add(&METADATA_UNKNOWN_REQUIRED, name.clone(), at, "nothing is known about it");
                }
                None => self.add(&METADATA_UNKNOWN, name.clone(), at, "nothing is known about it"),
            }
            if length == 0 {
                if offset != 0 {
                    let what = format!("it is empty, but has the offset {offset:#x}");
                    self.add(&METADATA_OFFSET, name.clone(), at + 16, what);
                }
            } else if offset < TABLE_BYTES {
                self.add(&METADATA_OFFSET, name, at + 16, format!("its offset {offset:#x} lies inside the table"));
                continue;
            }
            let wanted = known.and_then(|known| known.length);
            if length > ITEM_MAX || wanted.is_some_and(|wanted| wanted != length) {
                self.add(&METADATA_LENGTH, name, at + 20, format!("its length is {length}"));
                continue;
            }
            let place = region.start + offset..region.start + offset + length;
            if place.end > region.end {
                let what =
                    format!("it ends at {:#x} of the region's {:#x}", offset + length, region.end - region.start);
                self.add(&METADATA_BEYOND, name, at + 16, what);
                continue;
            }
            if length > 0 && places.iter().any(|other| overlap(other, &place)) {
                self.add(&METADATA_OVERLAP, name, at + 16, "it shares bytes with another item");
            }
            items.push((guid, place.start, length));
            places.push(place);
        }
        items
    }

    fn metadata_value(&mut self, name: &'static str, at: u64, bytes: Vec<u8>, disk: &mut Disk) {
        match name {
            "file parameters" => {
                let (block, bits) = (bytes.u32(0), bytes.u32(4));
                if block.is_power_of_two() && (1 << 20..=256 << 20).contains(&block) {
                    disk.block_bytes = Some(block);
                } else {
                    self.add(&PARAMS_BLOCK_SIZE, name, at, format!("the block size is {block}"));
                }
                if bits & !3 != 0 {
                    self.add(&PARAMS_RESERVED, name, at + 4, format!("the bits are {bits:#x}"));
                    self.fix_u32(&PARAMS_RESERVED, name, at + 4, bits & 3);
                }
                disk.leave_allocated = bits & 1 == 1;
                disk.has_parent = bits & 2 == 2;
            }
            "virtual disk size" => {
                let size = bytes.u64(0);
                disk.size_bytes = Some(size);
                if size == 0 {
                    self.add(&SIZE_ZERO, name, at, "the disk has no bytes");
                    disk.size_bytes = None;
                } else if size > DISK_MAX {
                    self.add(&SIZE_LIMIT, name, at, format!("the disk has {size} bytes"));
                    disk.size_bytes = None;
                }
            }
            "virtual disk id" if bytes.iter().all(|b| *b == 0) => self.add(&DISK_ID, name, at, "it is zero"),
            "logical sector size" => match bytes.u32(0) {
                sector @ (512 | 4096) => {
                    disk.logical_sector = Some(sector);
                    let size = disk.size_bytes.unwrap_or(0);
                    if !size.is_multiple_of(u64::from(sector)) {
                        let what = format!("the disk has {size} bytes, no multiple of {sector}");
                        self.add(&SIZE_ALIGNMENT, "virtual disk size", at, what);
                    }
                }
                sector => self.add(&SECTOR_LOGICAL, name, at, format!("it is {sector}")),
            },
            "physical sector size" if !matches!(bytes.u32(0), 512 | 4096) => {
                self.add(&SECTOR_PHYSICAL, name, at, format!("it is {}", bytes.u32(0)));
                self.fix_u32(&SECTOR_PHYSICAL, name, at, 4096);
            }
            "parent locator" => disk.locator = Some((at, bytes)),
            _ => {}
        }
    }
}
