//! Labels, uberblocks, and the entries of the pool tree.

use qrvsa_core::ErrorKind;
use qrvsa_core::bytes::{Reader, Writer};
use qrvsa_core::pool::format::entries::{
    Class, ColumnEntry, Content, DatasetEntry, DeviceEntry, GroupEntry, MemberState, ZoneRef,
};
use qrvsa_core::pool::format::label::{Label, NAME_BYTES_MAX};
use qrvsa_core::pool::format::layout::{LABEL_BYTES, SLOT_BYTES};
use qrvsa_core::pool::format::uberblock::{LogStart, UberMember, Uberblock};
use qrvsa_core::record::checksum::checksum;
use qrvsa_core::tree::Root;
use qrvsa_core::volume::Settings;

use super::MEMORY_MAX;
use crate::Target;

const DEVICE_BYTES: u64 = 1 << 40;

/// The label block.
pub const LABEL: Target = Target {
    name: "label",
    covers: "pool labels, with right and wrong checksums",
    run: label,
    seeds: || labels().iter().map(|l| content(&l.encode())).collect(),
    words: &[b"QRVSALBL"],
    bytes_max: LABEL_BYTES,
    memory_max: MEMORY_MAX,
};

/// The uberblock.
pub const UBERBLOCK: Target = Target {
    name: "uberblock",
    covers: "uberblocks, with right and wrong checksums",
    run: uberblock,
    seeds: || uberblocks().iter().map(|u| content(&u.encode().unwrap_or_default())).collect(),
    words: &[b"QRVSAUBR"],
    bytes_max: SLOT_BYTES,
    memory_max: MEMORY_MAX,
};

/// Items of the pool tree.
pub const ENTRIES: Target = Target {
    name: "pool-entries",
    covers: "groups, members, datasets, tree roots, volume settings",
    run: entries,
    seeds: entry_seeds,
    words: &[],
    bytes_max: 8192,
    memory_max: MEMORY_MAX,
};

/// A sealed block without the padding and the checksum, which the target adds again.
fn content(block: &[u8]) -> Vec<u8> {
    let end = block.len().saturating_sub(8);
    let used = block[..end].iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    block[..used].to_vec()
}

/// The bytes as a sealed block.
fn sealed(input: &[u8], len: usize) -> Vec<u8> {
    let mut block = input.to_vec();
    block.resize(len - 8, 0);
    let sum = checksum(&block);
    block.extend_from_slice(&sum.to_le_bytes());
    block
}

/// Errors of a decoder are about the bytes, nothing else.
fn honest(kind: ErrorKind) {
    assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::NotFound), "{kind:?}");
}

fn label(input: &[u8]) -> bool {
    let _ = Label::decode(input, DEVICE_BYTES);
    match Label::decode(&sealed(input, LABEL_BYTES), DEVICE_BYTES) {
        Ok(label) => {
            assert!(label.data > 0 && label.size_bytes <= DEVICE_BYTES);
            assert!(label.pool_name.len() <= NAME_BYTES_MAX, "a name of {} bytes", label.pool_name.len());
            assert_eq!(Label::decode(&label.encode(), DEVICE_BYTES).as_ref().ok(), Some(&label));
            let _ = label.writable();
            true
        }
        Err(e) => {
            honest(e.kind());
            false
        }
    }
}

fn uberblock(input: &[u8]) -> bool {
    let _ = Uberblock::decode(input);
    match Uberblock::decode(&sealed(input, SLOT_BYTES)) {
        Ok(uberblock) => {
            let again = uberblock.encode().expect("what was in a slot fits a slot");
            assert_eq!(Uberblock::decode(&again).as_ref().ok(), Some(&uberblock));
            true
        }
        Err(e) => {
            honest(e.kind());
            false
        }
    }
}

fn entries(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    match kind % 5 {
        0 => GroupEntry::decode(&mut Reader::new(bytes, "group")).is_ok_and(|group| {
            assert_eq!(group.columns.len(), usize::from(group.width) + usize::from(group.parity));
            let mut w = Writer::new();
            group.encode(&mut w);
            let again = GroupEntry::decode(&mut Reader::new(&w.finish(), "group"));
            assert_eq!(again.as_ref().ok(), Some(&group));
            true
        }),
        1 => DeviceEntry::decode(bytes).is_ok_and(|device| {
            let again = DeviceEntry::decode(&device.encode()).expect("what was encoded decodes");
            // long texts are cut when they are written
            assert!(device.path.starts_with(&again.path) && device.message.starts_with(&again.message));
            let texts = (again.path.clone(), again.message.clone());
            assert_eq!(again, DeviceEntry { path: texts.0, message: texts.1, ..device });
            true
        }),
        2 => DatasetEntry::decode(bytes).is_ok_and(|dataset| {
            assert_eq!(DatasetEntry::decode(&dataset.encode()).as_ref().ok(), Some(&dataset));
            let _ = Root::decode(&dataset.root);
            true
        }),
        3 => Root::decode(bytes).is_ok_and(|(root, used)| {
            let mut again = Vec::new();
            root.encode(&mut again);
            assert_eq!(again, bytes[..used]);
            true
        }),
        _ => Settings::decode(bytes).is_ok_and(|settings| {
            assert_eq!(settings.encode(), bytes);
            let _ = (settings.naa(), settings.object());
            true
        }),
    }
}

fn labels() -> Vec<Label> {
    let one = |data, parity, name: &str| Label {
        pool_id: 0x1234_5678,
        device_id: 0x9abc,
        index: 3,
        data,
        parity,
        zone_shift: 22,
        size_bytes: 1 << 30,
        created_ns: 1_700_000_000_000_000_000,
        incompatible: 0,
        readonly_compatible: 0,
        pool_name: name.to_owned(),
    };
    vec![one(2, 1, "tank"), one(8, 3, &"n".repeat(NAME_BYTES_MAX)), Label { readonly_compatible: 1, ..one(1, 0, "a") }]
}

fn group(id: u32, class: Class, width: u8, parity: u8) -> GroupEntry {
    let columns = (0..u16::from(width) + u16::from(parity))
        .map(|i| ColumnEntry {
            place: ZoneRef { device: i, zone: id },
            stale: i == 1,
            previous: (i == 1).then_some(ZoneRef { device: 9, zone: 8 }),
        })
        .collect();
    GroupEntry { id, class, width, parity, used_rows: 77, columns }
}

fn pointer() -> qrvsa_core::record::pointer::Pointer {
    super::tree::pointer(4, 2, 1)
}

fn root() -> Vec<u8> {
    let mut bytes = Vec::new();
    Root { pointer: Some(pointer()), height: 2, items: 500, nodes: 9 }.encode(&mut bytes);
    bytes
}

fn uberblocks() -> Vec<Uberblock> {
    let member = |index, state| UberMember { index, device_id: u128::from(index) << 100 | 5, state };
    let one = Uberblock {
        pool_id: 1,
        device_id: 2,
        txg: 900,
        generation: 4,
        time_ns: 1_700_000_000_000_000_000,
        root: root(),
        members: vec![
            member(0, MemberState::Online),
            member(1, MemberState::Rebuilding),
            member(2, MemberState::Faulted),
        ],
        system_groups: vec![group(1, Class::System, 1, 2), group(5, Class::System, 1, 2)],
        log_groups: vec![group(2, Class::Log, 1, 2)],
        log: LogStart { generation: 4, segment: 0, row: 17, sequence: 300, base_txg: 899 },
        clean: false,
    };
    let empty = Uberblock {
        root: Vec::new(),
        members: Vec::new(),
        system_groups: Vec::new(),
        log_groups: Vec::new(),
        clean: true,
        ..one.clone()
    };
    vec![one, empty]
}

fn entry_seeds() -> Vec<Vec<u8>> {
    let tagged = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    let mut w = Writer::new();
    group(7, Class::Data, 4, 2).encode(&mut w);
    let device = DeviceEntry {
        index: 2,
        device_id: 77,
        state: MemberState::Leaving,
        size_bytes: 1 << 33,
        read_errors: 1,
        write_errors: 2,
        checksum_errors: 3,
        repaired: 4,
        path: "/dev/disk/by-id/x".to_owned(),
        message: "replaced by 5".to_owned(),
    };
    let dataset = DatasetEntry {
        id: 5,
        content: Content::Volume,
        destroying: false,
        reserved: true,
        hash_seed: 99,
        next_object: 1000,
        created_ns: 1,
        name: "vol".to_owned(),
        properties: vec![("recordsize".to_owned(), "16384".to_owned())],
        root: root(),
    };
    let settings = Settings { size_bytes: 1 << 30, block_bytes: 512, record_bytes: 16384, id: 12345 };
    vec![
        tagged(0, w.finish()),
        tagged(1, device.encode()),
        tagged(2, dataset.encode()),
        tagged(3, root()),
        tagged(4, settings.encode()),
    ]
}
