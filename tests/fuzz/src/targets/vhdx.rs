//! The structures of VHDX, one by one.

use qrvsa_core::vhdx::format::log::{Change, Entry, EntryHeader, SECTOR, entry_checksum};
use qrvsa_core::vhdx::format::{
    BAT_REGION, BatEntry, BatLayout, DiskParameters, FileIdentifier, Guid, HEADER_BYTES, Header, MIB, Metadata,
    ParentLocator, REGION_TABLE_BYTES, RawHeader, RawLocator, RawMetadataTable, RawRegion, RawRegionTable, Region,
    RegionTable, checksum_with_hole, choose_header,
};

use super::{Input, MEMORY_MAX};
use crate::Target;

/// Headers, region tables, metadata, locators, the block allocation table.
pub const STRUCTURES: Target = Target {
    name: "vhdx-structures",
    covers: "VHDX headers, region tables, metadata, parent locators, block allocation tables",
    run: structures,
    seeds: structure_seeds,
    words: &[b"head", b"regi", b"metadata", b"vhdxfile", b"{", b"p\0a\0r\0e\0n\0t\0_\0"],
    bytes_max: 8192,
    memory_max: MEMORY_MAX,
};

/// Entries of the log.
pub const LOG: Target = Target {
    name: "vhdx-log",
    covers: "VHDX log entries, with right and wrong checksums",
    run: log,
    seeds: || log_entries().iter().map(|e| short(&e.encode())).collect(),
    words: &[b"loge", b"desc", b"zero", b"data"],
    bytes_max: 5 * SECTOR,
    memory_max: MEMORY_MAX,
};

/// Bytes of the log that entries are decoded for.
const LOG_BYTES: u32 = MIB as u32;

/// Without the zeros at the end, which the target adds again.
fn short(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1)].to_vec()
}

/// Of this length, and with the right checksum.
fn sealed(input: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    bytes.resize(len, 0);
    let sum = checksum_with_hole(&bytes, 4);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn structures(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    match kind % 7 {
        0 => {
            let first = RawHeader::decode(&sealed(bytes, HEADER_BYTES));
            let second = RawHeader::decode(bytes);
            let _ = (second.problems(), second.validate());
            let _ = choose_header(&[first.clone(), second]);
            first.validate().is_ok_and(|header| {
                assert_eq!(RawHeader::decode(&header.encode()).validate().ok(), Some(header));
                true
            })
        }
        1 => {
            let _ = RawRegionTable::decode(bytes).problems();
            let raw = RawRegionTable::decode(&sealed(bytes, REGION_TABLE_BYTES));
            assert!(raw.entries.len() <= 2047);
            let _ = raw.problems();
            raw.validate().is_ok_and(|table| {
                assert!(table.bat.offset >= MIB && table.metadata.offset >= MIB);
                assert_eq!(RawRegionTable::decode(&table.encode()).validate().ok(), Some(table));
                true
            })
        }
        2 => metadata(bytes),
        3 => {
            let raw = RawLocator::decode(bytes);
            let _ = raw.problems();
            raw.validate().is_ok_and(|locator| {
                let _ = (locator.paths(), locator.linkage2());
                let again = RawLocator::decode(&locator.encode()).validate();
                assert_eq!(again.ok(), Some(locator));
                true
            })
        }
        4 => bat(bytes),
        5 => FileIdentifier::decode(bytes).is_some_and(|identifier| {
            let again = FileIdentifier::decode(&identifier.encode());
            assert!(again.is_some());
            true
        }),
        _ => std::str::from_utf8(bytes).is_ok_and(|text| {
            text.parse::<Guid>().is_ok_and(|guid| {
                assert_eq!(guid.to_string().parse::<Guid>().ok(), Some(guid));
                true
            })
        }),
    }
}

/// A metadata region of 1 MiB: the table takes the first 64 KiB, of which an input holds the first 4 KiB; items follow.
fn metadata(bytes: &[u8]) -> bool {
    let (table, items) = bytes.split_at(bytes.len().min(512));
    let raw = RawMetadataTable::decode(table);
    let _ = raw.problems(LOG_BYTES);
    let Ok(table) = raw.validate(LOG_BYTES) else { return false };
    let loaded = Metadata::load(&table, |entry| {
        // an empty item may claim to lie anywhere
        assert!(entry.length == 0 || u64::from(entry.offset) + u64::from(entry.length) <= MIB);
        let start = usize::try_from(entry.offset).unwrap_or(0).saturating_sub(64 << 10);
        let mut item: Vec<u8> = items.iter().skip(start).take(entry.length as usize).copied().collect();
        item.resize(entry.length as usize, 0);
        Ok(item)
    });
    loaded.is_ok_and(|metadata| {
        assert!(metadata.disk.problems().is_empty());
        let layout = BatLayout::new(&metadata.disk);
        assert!(layout.payload_blocks >= 1 && layout.bytes() <= 1 << 40);
        assert_eq!(metadata.disk.has_parent, metadata.locator.is_some());
        true
    })
}

/// A disk, and entries of its table.
fn bat(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let disk = DiskParameters {
        block_size: (1 << 20) << (input.u8() % 9),
        leave_allocated: false,
        has_parent: input.u8() & 1 != 0,
        disk_size: (u64::from(input.u32()) + 1) * 4096,
        disk_id: Guid::NIL,
        logical_sector: if input.u8() & 1 != 0 { 512 } else { 4096 },
        physical_sector: 4096,
    };
    assert!(disk.problems().is_empty());
    let layout = BatLayout::new(&disk);
    let last = layout.payload_index(layout.payload_blocks - 1);
    assert!(last < layout.entries());
    let mut sound = true;
    for index in (0..64).chain([last]) {
        let entry = BatEntry(u64::from(input.u32()) | u64::from(input.u32()) << 32);
        let slot = layout.slot(index);
        sound &= entry.problems(slot, &layout).is_empty();
        let _ = (entry.payload_state(), entry.bitmap_state(), entry.offset(), entry.reserved_bits());
        assert!(layout.payload_index(index) >= index);
        let offset = u64::from(input.u32()) * 512;
        assert!(layout.bitmap_bit(offset).0 < MIB);
    }
    sound
}

fn log(input: &[u8]) -> bool {
    let mut bytes = input.to_vec();
    bytes.resize(bytes.len().next_multiple_of(SECTOR).max(SECTOR), 0);
    let _ = Entry::decode(&bytes, LOG_BYTES);
    let sum = entry_checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    if let Some(header) = EntryHeader::decode(&bytes, LOG_BYTES) {
        assert!(header.length <= LOG_BYTES && header.tail < LOG_BYTES && header.sequence > 0);
    }
    Entry::decode(&bytes, LOG_BYTES).is_some_and(|entry| {
        assert_eq!(Entry::encoded_length(&entry.changes), bytes.len() as u64);
        // reserved bytes apart, what is encoded says the same
        let again = Entry::decode(&entry.encode(), LOG_BYTES).expect("what was encoded decodes");
        assert_eq!(again.changes, entry.changes);
        for change in &entry.changes {
            match change {
                Change::Zero { offset, length } => assert!(offset.checked_add(*length).is_some()),
                Change::Data { offset, .. } => assert!(offset.checked_add(SECTOR as u64).is_some()),
            }
        }
        true
    })
}

pub(super) fn disk(has_parent: bool) -> DiskParameters {
    DiskParameters {
        block_size: 1 << 20,
        leave_allocated: false,
        has_parent,
        disk_size: 16 << 20,
        disk_id: Guid::random(77),
        logical_sector: 512,
        physical_sector: 4096,
    }
}

pub(super) fn locator(linkage: Guid) -> ParentLocator {
    ParentLocator::new(linkage, [("relative_path", ".\\parent.vhdx"), ("absolute_win32_path", "C:\\parent.vhdx")])
}

pub(super) fn log_entries() -> Vec<Entry> {
    let header = EntryHeader {
        checksum: 0,
        length: 0,
        tail: 0,
        sequence: 9,
        descriptors: 0,
        log_guid: Guid::random(5),
        flushed_file_offset: 4 << 20,
        last_file_offset: 5 << 20,
    };
    let data = |offset: u64, byte: u8| Change::Data { offset, sector: Box::new([byte; SECTOR]) };
    let zero = Change::Zero { offset: 3 << 20, length: 64 << 10 };
    vec![
        Entry { header, changes: vec![zero.clone()] },
        Entry { header, changes: vec![data(4 << 20, 0x31), zero, data(3 << 20, 0x32)] },
        Entry { header, changes: Vec::new() },
    ]
}

fn structure_seeds() -> Vec<Vec<u8>> {
    let tagged = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let header = Header {
        sequence: 5,
        file_write_guid: Guid::random(1),
        data_write_guid: Guid::random(2),
        log_guid: Guid::random(3),
        log_version: 0,
        version: 1,
        log_length: MIB as u32,
        log_offset: MIB,
    };
    let region = |mib: u64| Region { offset: mib * MIB, length: MIB as u32 };
    let other = RawRegion { guid: Guid::random(9), region: region(7), flags: 0 };
    let regions = RegionTable { bat: region(2), metadata: region(3), others: vec![other] };
    assert_ne!(other.guid, BAT_REGION);
    let metadata = |has_parent: bool| {
        let metadata = Metadata { disk: disk(has_parent), locator: has_parent.then(|| locator(Guid::random(4))) };
        let bytes = metadata.encode();
        let (table, items) = bytes.split_at(64 << 10);
        [&table[..512], items].concat()
    };
    vec![
        tagged(0, &short(&header.encode())),
        tagged(0, &short(&Header { log_guid: Guid::NIL, ..header }.encode())),
        tagged(1, &short(&regions.encode())),
        tagged(2, &metadata(false)),
        tagged(2, &metadata(true)),
        tagged(3, &locator(Guid::random(4)).with_linkage2(Some(Guid::random(6))).encode()),
        tagged(4, &[0, 1, 0, 16, 0, 0, 1, 6, 0, 0x30, 0, 0, 0, 0, 0, 7, 0, 0x40, 0]),
        tagged(5, &short(&FileIdentifier::decode(b"vhdxfileq\0r\0").map(|i| i.encode()).unwrap_or_default())),
        tagged(6, b"{2DC27766-F623-4200-9D64-115E9BFD4A08}"),
    ]
}
