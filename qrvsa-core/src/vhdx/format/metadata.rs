//! The metadata region (2.6): its table, and the items that say what kind of disk this is.

use super::fields::{guid_at, has_at, put, u16_at, u32_at, u64_at};
use super::guid::Guid;
use super::locator::{ParentLocator, RawLocator};
use super::problem::Problem;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the metadata table; items lie behind it.
pub const METADATA_TABLE_BYTES: usize = 64 << 10;
/// Smallest block, bytes.
pub const BLOCK_SIZE_MIN: u32 = 1 << 20;
/// Largest block, bytes.
pub const BLOCK_SIZE_MAX: u32 = 256 << 20;
/// Largest disk, bytes.
pub const DISK_SIZE_MAX: u64 = 64 << 40;

const MAGIC: &[u8; 8] = b"metadata";
const ENTRIES_AT: usize = 32;
const ENTRY_BYTES: usize = 32;
const ENTRIES_MAX: u16 = 2047;
const USER_ENTRIES_MAX: usize = 1024;
const ITEM_BYTES_MAX: u32 = 1 << 20;

const FLAG_USER: u32 = 1;
const FLAG_DISK: u32 = 2;
const FLAG_REQUIRED: u32 = 4;

/// The items the format knows.
pub mod items {
    use super::Guid;

    /// Block size and kind of the file.
    pub const FILE_PARAMETERS: Guid = Guid::from_printed(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
    /// Size of the disk.
    pub const DISK_SIZE: Guid = Guid::from_printed(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
    /// Identity of the disk, for SCSI's page 83h.
    pub const DISK_ID: Guid = Guid::from_printed(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
    /// Logical sector size.
    pub const LOGICAL_SECTOR: Guid = Guid::from_printed(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
    /// Physical sector size.
    pub const PHYSICAL_SECTOR: Guid = Guid::from_printed(0xCDA348C7_445D_4471_9CC9_E9885251C556);
    /// Where the parent is.
    pub const PARENT_LOCATOR: Guid = Guid::from_printed(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
}

/// A known item: its identity, flags and exact length (`None`: varies).
struct Known {
    id: Guid,
    flags: u32,
    length: Option<u32>,
    name: &'static str,
}

const KNOWN: [Known; 6] = [
    Known { id: items::FILE_PARAMETERS, flags: FLAG_REQUIRED, length: Some(8), name: "file parameters" },
    Known { id: items::DISK_SIZE, flags: FLAG_DISK | FLAG_REQUIRED, length: Some(8), name: "virtual disk size" },
    Known { id: items::DISK_ID, flags: FLAG_DISK | FLAG_REQUIRED, length: Some(16), name: "virtual disk id" },
    Known { id: items::LOGICAL_SECTOR, flags: FLAG_DISK | FLAG_REQUIRED, length: Some(4), name: "logical sector size" },
    Known {
        id: items::PHYSICAL_SECTOR,
        flags: FLAG_DISK | FLAG_REQUIRED,
        length: Some(4),
        name: "physical sector size",
    },
    Known { id: items::PARENT_LOCATOR, flags: FLAG_REQUIRED, length: None, name: "parent locator" },
];

fn known(entry: &ItemEntry) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.id == entry.id && entry.flags & FLAG_USER == 0)
}

/// An entry of the metadata table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItemEntry {
    /// Which item.
    pub id: Guid,
    /// Bytes from the start of the metadata region; 0 for an empty item.
    pub offset: u32,
    /// Bytes of the item.
    pub length: u32,
    /// Bit 0 user's own, bit 1 about the disk, bit 2 must be known.
    pub flags: u32,
}

impl ItemEntry {
    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

/// A metadata table as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawMetadataTable {
    /// The entries, at most 2047; none without a signature.
    pub entries: Vec<ItemEntry>,
    /// The number of entries the table claims to have.
    pub count: u16,
    signature: bool,
}

/// A metadata table that makes sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataTable {
    /// The entries.
    pub entries: Vec<ItemEntry>,
}

impl MetadataTable {
    /// The entry of an item of the format.
    pub fn find(&self, id: Guid) -> Option<&ItemEntry> {
        self.entries.iter().find(|e| e.id == id && e.flags & FLAG_USER == 0)
    }

    /// The 64 KiB.
    ///
    /// # Panics
    /// With more than 2047 entries; a decoded table has no more.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; METADATA_TABLE_BYTES];
        put(&mut bytes, 0, MAGIC);
        let count = u16::try_from(self.entries.len()).expect("at most 2047 entries");
        put(&mut bytes, 10, &count.to_le_bytes());
        for (i, entry) in self.entries.iter().enumerate() {
            let at = ENTRIES_AT + i * ENTRY_BYTES;
            put(&mut bytes, at, &entry.id.bytes());
            put(&mut bytes, at + 16, &entry.offset.to_le_bytes());
            put(&mut bytes, at + 20, &entry.length.to_le_bytes());
            put(&mut bytes, at + 24, &entry.flags.to_le_bytes());
        }
        bytes
    }
}

impl RawMetadataTable {
    /// Reads 64 KiB.
    pub fn decode(bytes: &[u8]) -> RawMetadataTable {
        let bytes = bytes.get(..METADATA_TABLE_BYTES).unwrap_or(bytes);
        let signature = has_at(bytes, 0, MAGIC);
        let count = u16_at(bytes, 10);
        let entry = |bytes: &[u8]| ItemEntry {
            id: guid_at(bytes, 0),
            offset: u32_at(bytes, 16),
            length: u32_at(bytes, 20),
            flags: u32_at(bytes, 24),
        };
        let taken = if signature { usize::from(count.min(ENTRIES_MAX)) } else { 0 };
        let entries = bytes.get(ENTRIES_AT..).unwrap_or(&[]).chunks_exact(ENTRY_BYTES).take(taken).map(entry).collect();
        RawMetadataTable { entries, count, signature }
    }

    /// Everything that is wrong within the table, for a region of `region_length` bytes.
    pub fn problems(&self, region_length: u32) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !self.signature {
            problems.push(Problem::fatal(0, "the signature is not \"metadata\""));
            return problems;
        }
        if self.count > ENTRIES_MAX {
            problems.push(Problem::fatal(10, format!("{} entries, more than 2047", self.count)));
            return problems;
        }
        let users = self.entries.iter().filter(|e| e.flags & FLAG_USER != 0).count();
        if users > USER_ENTRIES_MAX {
            problems.push(Problem::minor(10, format!("{users} entries of users, more than 1024")));
        }
        for (i, entry) in self.entries.iter().enumerate() {
            self.entry_problems(i, entry, region_length, &mut problems);
        }
        for item in KNOWN.iter().filter(|k| k.length.is_some()) {
            if !self.entries.iter().any(|e| known(e).is_some_and(|k| k.id == item.id)) {
                problems.push(Problem::fatal(ENTRIES_AT as u64, format!("there is no {}", item.name)));
            }
        }
        self.overlaps(&mut problems);
        problems
    }

    fn entry_problems(&self, index: usize, entry: &ItemEntry, region_length: u32, problems: &mut Vec<Problem>) {
        let at = (ENTRIES_AT + index * ENTRY_BYTES) as u64;
        let known = known(entry);
        let name = known.map_or_else(|| entry.id.to_string(), |k| k.name.to_string());
        let ItemEntry { offset, length, flags, .. } = *entry;
        match length {
            0 if offset != 0 => problems.push(Problem::minor(at + 16, format!("{name} is empty, but has an offset"))),
            0 => {}
            _ if (offset as usize) < METADATA_TABLE_BYTES => {
                problems.push(Problem::fatal(at + 16, format!("{name} lies at {offset}, inside the table")));
            }
            _ if entry.end() > u64::from(region_length) => {
                problems.push(Problem::fatal(at + 16, format!("{name} reaches beyond the region")));
            }
            _ => {}
        }
        if length > ITEM_BYTES_MAX {
            problems.push(Problem::fatal(at + 20, format!("{name} has {length} bytes, more than 1 MiB")));
        }
        if flags & !(FLAG_USER | FLAG_DISK | FLAG_REQUIRED) != 0 {
            problems.push(Problem::minor(at + 24, format!("reserved bits of {name} are set")));
        }
        match known {
            None if flags & FLAG_REQUIRED != 0 => {
                problems.push(Problem::fatal(at, format!("item {name} is required, but of an unknown kind")));
            }
            Some(known) => {
                if flags & (FLAG_DISK | FLAG_REQUIRED) != known.flags {
                    problems.push(Problem::minor(at + 24, format!("{name} has flags {flags}, not {}", known.flags)));
                }
                if known.length.is_some_and(|l| l != length) {
                    problems.push(Problem::fatal(at + 20, format!("{name} has {length} bytes")));
                }
            }
            None => {}
        }
        if self.entries.iter().take(index).any(|e| e.id == entry.id && (e.flags ^ flags) & FLAG_USER == 0) {
            problems.push(Problem::fatal(at, format!("{name} is there twice")));
        }
    }

    fn overlaps(&self, problems: &mut Vec<Problem>) {
        let mut order: Vec<(usize, &ItemEntry)> =
            self.entries.iter().enumerate().filter(|(_, e)| e.length > 0).collect();
        order.sort_by_key(|(_, e)| e.offset);
        let mut reached = 0;
        for (i, entry) in order {
            if u64::from(entry.offset) < reached {
                let at = (ENTRIES_AT + i * ENTRY_BYTES + 16) as u64;
                problems.push(Problem::fatal(at, format!("entry {i} overlaps another item")));
            }
            reached = reached.max(entry.end());
        }
    }

    /// The table, if the engine can work with it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the first problem that forbids it; [`ErrorKind::Unsupported`] for an unknown required
    /// item.
    pub fn validate(&self, region_length: u32) -> Result<MetadataTable> {
        if let Some(entry) = self.entries.iter().find(|e| known(e).is_none() && e.flags & FLAG_REQUIRED != 0) {
            crate::fail!(Unsupported, "metadata: item {} is required and of an unknown kind", entry.id);
        }
        Problem::refuse(self.problems(region_length), "metadata table")?;
        Ok(MetadataTable { entries: self.entries.clone() })
    }
}

/// What the fixed items say about the disk, found to be possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskParameters {
    /// Bytes of a payload block: a power of two from 1 to 256 MiB.
    pub block_size: u32,
    /// A fixed file: blocks stay allocated.
    pub leave_allocated: bool,
    /// A differencing file.
    pub has_parent: bool,
    /// Bytes of the disk, a multiple of the logical sector, at most 64 TiB.
    pub disk_size: u64,
    /// Identity of the disk.
    pub disk_id: Guid,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
}

impl DiskParameters {
    /// Everything that is wrong with the values; `at` of a problem is 0.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut bad = |what: String| problems.push(Problem::fatal(0, what));
        let DiskParameters { block_size, disk_size, logical_sector, physical_sector, .. } = *self;
        if !block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) {
            bad(format!("a block size of {block_size} bytes is not a power of two from 1 MiB to 256 MiB"));
        }
        if !matches!(logical_sector, 512 | 4096) {
            bad(format!("a logical sector size of {logical_sector} bytes is neither 512 nor 4096"));
        } else if !disk_size.is_multiple_of(u64::from(logical_sector)) {
            bad(format!("a disk size of {disk_size} bytes is not a multiple of the sector, {logical_sector}"));
        }
        if !matches!(physical_sector, 512 | 4096) {
            bad(format!("a physical sector size of {physical_sector} bytes is neither 512 nor 4096"));
        }
        if disk_size == 0 || disk_size > DISK_SIZE_MAX {
            bad(format!("a disk size of {disk_size} bytes is not from 1 sector to 64 TiB"));
        }
        problems
    }
}

/// One item to be written: its entry's identity and its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Identity.
    pub id: Guid,
    /// Flags of the entry.
    pub flags: u32,
    /// Contents, at most 1 MiB.
    pub bytes: Vec<u8>,
}

/// What the metadata says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The disk.
    pub disk: DiskParameters,
    /// Where the parent is; exactly for differencing files.
    pub locator: Option<ParentLocator>,
}

impl Metadata {
    /// Reads the items through `read`, which gets an entry of at most 1 MiB and returns its bytes.
    ///
    /// # Errors
    /// Those of `read`; [`ErrorKind::Corrupt`] for values that are not possible or a differencing file without a usable
    /// locator.
    pub fn load(table: &MetadataTable, mut read: impl FnMut(&ItemEntry) -> Result<Vec<u8>>) -> Result<Metadata> {
        let mut item = |id: Guid| match table.find(id) {
            Some(entry) => read(entry),
            None => Err(Error::new(ErrorKind::Corrupt, format!("metadata: item {id} is missing"))),
        };
        let parameters = item(items::FILE_PARAMETERS)?;
        let bits = u32_at(&parameters, 4);
        let disk = DiskParameters {
            block_size: u32_at(&parameters, 0),
            leave_allocated: bits & 1 != 0,
            has_parent: bits & 2 != 0,
            disk_size: u64_at(&item(items::DISK_SIZE)?, 0),
            disk_id: guid_at(&item(items::DISK_ID)?, 0),
            logical_sector: u32_at(&item(items::LOGICAL_SECTOR)?, 0),
            physical_sector: u32_at(&item(items::PHYSICAL_SECTOR)?, 0),
        };
        Problem::refuse(disk.problems(), "metadata")?;
        let locator = match disk.has_parent {
            true => Some(RawLocator::decode(&item(items::PARENT_LOCATOR)?).validate()?),
            false => None,
        };
        Ok(Metadata { disk, locator })
    }

    /// The items in the order in which this program writes them.
    pub fn items(&self) -> Vec<Item> {
        let disk = &self.disk;
        let mut parameters = disk.block_size.to_le_bytes().to_vec();
        let bits = u32::from(disk.leave_allocated) | u32::from(disk.has_parent) << 1;
        parameters.extend(bits.to_le_bytes());
        let values = [
            parameters,
            disk.disk_size.to_le_bytes().to_vec(),
            disk.disk_id.bytes().to_vec(),
            disk.logical_sector.to_le_bytes().to_vec(),
            disk.physical_sector.to_le_bytes().to_vec(),
        ];
        let values = values.into_iter().chain(self.locator.as_ref().map(ParentLocator::encode));
        KNOWN.iter().zip(values).map(|(k, bytes)| Item { id: k.id, flags: k.flags, bytes }).collect()
    }

    /// The first bytes of a new metadata region: the table, and the items behind it. At most 1 MiB as long as the locator
    /// stays below 900 KiB.
    pub fn encode(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        let mut body: Vec<u8> = Vec::new();
        for item in self.items() {
            // The locator begins on a fresh 4 KiB, so that rewriting it changes no other item.
            if item.id == items::PARENT_LOCATOR {
                body.resize(body.len().next_multiple_of(4096), 0);
            }
            let at = METADATA_TABLE_BYTES + body.len();
            let field = |n: usize| u32::try_from(n).expect("items are at most 1 MiB long");
            entries.push(ItemEntry {
                id: item.id,
                offset: field(at),
                length: field(item.bytes.len()),
                flags: item.flags,
            });
            body.extend(item.bytes);
        }
        let mut bytes = MetadataTable { entries }.encode();
        bytes.extend(body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata() -> Metadata {
        let disk = DiskParameters {
            block_size: 1 << 20,
            leave_allocated: false,
            has_parent: true,
            disk_size: 4 << 20,
            disk_id: Guid::random(77),
            logical_sector: 512,
            physical_sector: 4096,
        };
        let locator = ParentLocator::new(Guid::random(8), [("relative_path", ".\\base.vhdx")]);
        Metadata { disk, locator: Some(locator) }
    }

    fn load(bytes: &[u8]) -> Result<Metadata> {
        let table = RawMetadataTable::decode(bytes).validate(1 << 20)?;
        Metadata::load(&table, |entry| {
            let start = entry.offset as usize;
            Ok(bytes.get(start..start + entry.length as usize).unwrap_or(&[]).to_vec())
        })
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(load(&metadata().encode()).unwrap(), metadata());
        let mut plain = metadata();
        plain.disk.has_parent = false;
        plain.locator = None;
        assert_eq!(load(&plain.encode()).unwrap(), plain);
        assert!(RawMetadataTable::decode(&plain.encode()).problems(1 << 20).is_empty());
    }

    #[test]
    fn violations() {
        let check = |change: fn(&mut Vec<ItemEntry>)| {
            let mut table = RawMetadataTable::decode(&metadata().encode()).validate(1 << 20).unwrap();
            change(&mut table.entries);
            let problems = RawMetadataTable::decode(&table.encode()).problems(1 << 20);
            problems.iter().map(|p| p.what.to_string()).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(check(|_| ()), "");
        assert!(check(|e| e[0].offset = 100).contains("inside the table"));
        assert!(check(|e| e[0].offset = u32::MAX).contains("beyond the region"));
        assert!(check(|e| e[5].length = 2 << 20).contains("more than 1 MiB"));
        assert!(check(|e| e[1].length = 4).contains("virtual disk size has 4 bytes"));
        assert!(check(|e| e[1].offset = e[0].offset).contains("overlaps"));
        assert!(check(|e| e[2].flags = 6 | 8).contains("reserved bits"));
        assert!(check(|e| e[2].flags = 4).contains("has flags 4, not 6"));
        assert!(check(|e| e.truncate(3)).contains("there is no logical sector size"));
        assert!(check(|e| e[5].id = Guid::random(1)).contains("unknown kind"));
        assert!(check(|e| e.push(e[0])).contains("twice"));
        assert!(check(|e| (e[5].offset, e[5].length) = (70000, 0)).contains("is empty, but has an offset"));
    }

    #[test]
    fn impossible_disks() {
        let refused = |change: fn(&mut DiskParameters)| {
            let mut metadata = metadata();
            change(&mut metadata.disk);
            load(&metadata.encode()).is_err()
        };
        assert!(refused(|d| d.block_size = 3 << 20));
        assert!(refused(|d| d.block_size = 512 << 20));
        assert!(refused(|d| d.block_size = 0));
        assert!(refused(|d| d.logical_sector = 0));
        assert!(refused(|d| d.physical_sector = 1));
        assert!(refused(|d| d.disk_size = 1000));
        assert!(refused(|d| d.disk_size = 0));
        assert!(refused(|d| d.disk_size = DISK_SIZE_MAX + 512));
        assert!(!refused(|d| d.disk_size = DISK_SIZE_MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn total(tail in proptest::collection::vec(any::<u8>(), 0..300), region in any::<u32>()) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(tail);
            let raw = RawMetadataTable::decode(&bytes);
            let _ = raw.problems(region);
            let _ = raw.validate(region);
        }

        #[test]
        fn damage_never_panics(at in 0usize..70_000, bit in 0u8..8) {
            let mut bytes = metadata().encode();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            let _ = load(&bytes);
        }
    }
}
