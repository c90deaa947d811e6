//! The region table (2.2.3): where BAT and metadata lie.

use super::fields::{checksum_with_hole, guid_at, has_at, put, u32_at, u64_at};
use super::guid::Guid;
use super::problem::Problem;
use super::{MIB, REGION_TABLE_BYTES};
use crate::error::{Error, ErrorKind, Result};

/// The region of the block allocation table.
pub const BAT_REGION: Guid = Guid::from_printed(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The region of the metadata.
pub const METADATA_REGION: Guid = Guid::from_printed(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);

const MAGIC: &[u8; 4] = b"regi";
const CHECKSUM_AT: usize = 4;
const ENTRIES_AT: usize = 16;
const ENTRY_BYTES: usize = 32;
/// Most entries a table can have.
const ENTRIES_MAX: u32 = 2047;

/// Where a region lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// File offset, a multiple of 1 MiB, at least 1 MiB.
    pub offset: u64,
    /// Bytes, a multiple of 1 MiB.
    pub length: u32,
}

impl Region {
    /// File offset of the first byte behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// An entry as found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawRegion {
    /// What kind of region.
    pub guid: Guid,
    /// Where it claims to lie.
    pub region: Region,
    /// Bit 0: who does not know the kind must not open the file. The rest is reserved.
    pub flags: u32,
}

impl RawRegion {
    /// Whether a reader must know this kind of region.
    pub fn required(&self) -> bool {
        self.flags & 1 != 0
    }

    fn known(&self) -> bool {
        self.guid == BAT_REGION || self.guid == METADATA_REGION
    }
}

/// A region table as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawRegionTable {
    /// The entries, at most 2047; none if the table is not intact.
    pub entries: Vec<RawRegion>,
    /// The number of entries the table claims to have.
    pub count: u32,
    signature: bool,
    checksum: bool,
}

/// A region table that makes sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionTable {
    /// The block allocation table.
    pub bat: Region,
    /// The metadata.
    pub metadata: Region,
    /// Optional regions of other kinds, to be kept as they are.
    pub others: Vec<RawRegion>,
}

impl RegionTable {
    /// The 64 KiB with the checksum.
    ///
    /// # Panics
    /// With more than 2045 other regions; a decoded table has no more.
    pub fn encode(&self) -> Vec<u8> {
        let own = [(BAT_REGION, self.bat), (METADATA_REGION, self.metadata)];
        let own = own.map(|(guid, region)| RawRegion { guid, region, flags: 1 });
        let mut bytes = vec![0; REGION_TABLE_BYTES];
        put(&mut bytes, 0, MAGIC);
        let mut count = 0u32;
        for (i, entry) in own.iter().chain(&self.others).enumerate() {
            let at = ENTRIES_AT + i * ENTRY_BYTES;
            put(&mut bytes, at, &entry.guid.bytes());
            put(&mut bytes, at + 16, &entry.region.offset.to_le_bytes());
            put(&mut bytes, at + 24, &entry.region.length.to_le_bytes());
            put(&mut bytes, at + 28, &entry.flags.to_le_bytes());
            count += 1;
        }
        put(&mut bytes, 8, &count.to_le_bytes());
        let checksum = checksum_with_hole(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }
}

impl RawRegionTable {
    /// Reads 64 KiB.
    pub fn decode(bytes: &[u8]) -> RawRegionTable {
        let bytes = bytes.get(..REGION_TABLE_BYTES).unwrap_or(bytes);
        let checksum =
            bytes.len() == REGION_TABLE_BYTES && u32_at(bytes, CHECKSUM_AT) == checksum_with_hole(bytes, CHECKSUM_AT);
        let signature = has_at(bytes, 0, MAGIC);
        let count = u32_at(bytes, 8);
        let entry = |bytes: &[u8]| RawRegion {
            guid: guid_at(bytes, 0),
            region: Region { offset: u64_at(bytes, 16), length: u32_at(bytes, 24) },
            flags: u32_at(bytes, 28),
        };
        let taken = if signature && checksum { count.min(ENTRIES_MAX) as usize } else { 0 };
        let entries = bytes.get(ENTRIES_AT..).unwrap_or(&[]).chunks_exact(ENTRY_BYTES).take(taken).map(entry).collect();
        RawRegionTable { entries, count, signature, checksum }
    }

    /// Whether it was written whole.
    pub fn is_intact(&self) -> bool {
        self.signature && self.checksum
    }

    /// Everything that is wrong within the table: also overlaps among its regions. Overlaps with the log and the end of the
    /// file are for whoever knows those.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !self.signature {
            problems.push(Problem::fatal(0, "the signature is not \"regi\""));
        }
        if !self.checksum {
            problems.push(Problem::fatal(CHECKSUM_AT as u64, "the checksum is wrong"));
        }
        if !self.is_intact() {
            return problems;
        }
        if self.count > ENTRIES_MAX {
            problems.push(Problem::fatal(8, format!("{} entries, more than 2047", self.count)));
            return problems;
        }
        for (i, entry) in self.entries.iter().enumerate() {
            self.entry_problems(i, entry, &mut problems);
        }
        for (guid, name) in [(BAT_REGION, "block allocation table"), (METADATA_REGION, "metadata")] {
            if !self.entries.iter().any(|e| e.guid == guid) {
                problems.push(Problem::fatal(ENTRIES_AT as u64, format!("there is no region for the {name}")));
            }
        }
        self.overlaps(&mut problems);
        problems
    }

    fn entry_problems(&self, index: usize, entry: &RawRegion, problems: &mut Vec<Problem>) {
        let at = (ENTRIES_AT + index * ENTRY_BYTES) as u64;
        let Region { offset, length } = entry.region;
        if !offset.is_multiple_of(MIB) || offset < MIB {
            let what = format!("the offset of region {index}, {offset}, is not a multiple of 1 MiB from 1 MiB on");
            problems.push(Problem::fatal(at + 16, what));
        }
        if !u64::from(length).is_multiple_of(MIB) || length == 0 {
            let what = format!("the length of region {index}, {length}, is not a positive multiple of 1 MiB");
            problems.push(Problem::fatal(at + 24, what));
        }
        if offset.checked_add(u64::from(length)).is_none_or(|end| i64::try_from(end).is_err()) {
            problems.push(Problem::fatal(at + 16, format!("region {index} ends beyond what a file can hold")));
        }
        if entry.flags & !1 != 0 {
            problems.push(Problem::minor(at + 28, format!("reserved bits of region {index} are set")));
        }
        if entry.known() && !entry.required() {
            problems.push(Problem::minor(at + 28, format!("region {index} is not marked as required")));
        }
        if !entry.known() && entry.required() {
            let what = format!("region {index} is required, but of an unknown kind, {}", entry.guid);
            problems.push(Problem::fatal(at, what));
        }
        if self.entries.iter().take(index).any(|e| e.guid == entry.guid) {
            problems.push(Problem::fatal(at, format!("there are two regions of the kind {}", entry.guid)));
        }
    }

    fn overlaps(&self, problems: &mut Vec<Problem>) {
        let mut order: Vec<(usize, Region)> = self.entries.iter().map(|e| e.region).enumerate().collect();
        order.sort_by_key(|(_, region)| region.offset);
        let mut last: Option<(usize, Region)> = None;
        for (i, region) in order {
            if let Some((before, previous)) = last
                && previous.end() > region.offset
            {
                let at = (ENTRIES_AT + i * ENTRY_BYTES + 16) as u64;
                problems.push(Problem::fatal(at, format!("region {i} overlaps region {before}")));
            }
            if last.is_none_or(|(_, previous)| previous.end() < region.end()) {
                last = Some((i, region));
            }
        }
    }

    /// The table, if the engine can work with it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the first problem that forbids it; [`ErrorKind::Unsupported`] for an unknown required
    /// region.
    pub fn validate(&self) -> Result<RegionTable> {
        if self.is_intact()
            && let Some(entry) = self.entries.iter().find(|e| !e.known() && e.required())
        {
            crate::fail!(Unsupported, "region table: region {} is required and of an unknown kind", entry.guid);
        }
        Problem::refuse(self.problems(), "region table")?;
        let find = |guid| self.entries.iter().find(|e| e.guid == guid).map(|e| e.region);
        let missing = || Error::new(ErrorKind::Corrupt, "region table: a region is missing");
        Ok(RegionTable {
            bat: find(BAT_REGION).ok_or_else(missing)?,
            metadata: find(METADATA_REGION).ok_or_else(missing)?,
            others: self.entries.iter().filter(|e| !e.known()).copied().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> RegionTable {
        let optional =
            RawRegion { guid: Guid::random(5), region: Region { offset: 9 << 20, length: 1 << 20 }, flags: 0 };
        RegionTable {
            bat: Region { offset: 3 << 20, length: 2 << 20 },
            metadata: Region { offset: 2 << 20, length: 1 << 20 },
            others: vec![optional],
        }
    }

    fn problems(change: fn(&mut RegionTable)) -> Vec<String> {
        let mut table = table();
        change(&mut table);
        RawRegionTable::decode(&table.encode()).problems().iter().map(|p| p.what.to_string()).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = table().encode();
        assert_eq!(RawRegionTable::decode(&bytes).validate().unwrap(), table());
        let mut damaged = bytes.clone();
        damaged[40] ^= 1;
        assert!(RawRegionTable::decode(&damaged).validate().is_err());
        assert!(RawRegionTable::decode(&bytes[..1000]).validate().is_err());
    }

    #[test]
    fn violations() {
        assert!(problems(|_| ()).is_empty());
        assert!(problems(|t| t.bat.offset = 0)[0].contains("offset"));
        assert!(problems(|t| t.bat.length = 0)[0].contains("length"));
        assert!(problems(|t| t.bat.offset = u64::MAX - (1 << 20) + 1)[0].contains("beyond"));
        assert_eq!(problems(|t| t.metadata.offset = 4 << 20), ["region 1 overlaps region 0"]);
        assert_eq!(problems(|t| t.others[0].flags = 2), ["reserved bits of region 2 are set"]);
        assert!(problems(|t| t.others[0].flags = 1)[0].contains("unknown kind"));
        assert!(problems(|t| t.others[0].guid = BAT_REGION).iter().any(|p| p.contains("two regions")));
        let mut unknown = table();
        unknown.others[0].flags = 1;
        let error = RawRegionTable::decode(&unknown.encode()).validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn total(head in proptest::collection::vec(any::<u8>(), 12..400), seal in any::<bool>()) {
            let mut bytes = vec![0; REGION_TABLE_BYTES];
            put(&mut bytes, 0, MAGIC);
            put(&mut bytes, 8, &head);
            if seal {
                let sum = checksum_with_hole(&bytes, 4);
                put(&mut bytes, 4, &sum.to_le_bytes());
            }
            let raw = RawRegionTable::decode(&bytes);
            let _ = raw.problems();
            let _ = raw.validate();
        }
    }
}
