//! What datasets keep: items of filesystems, and the intent log.

use qrvsa_core::fs::acl::Acl;
use qrvsa_core::fs::dirent::{Dirent, decode_bucket, decode_index, encode_bucket, encode_index};
use qrvsa_core::fs::inode::{Inode, merge_content_fields};
use qrvsa_core::fs::store::ObjectRef;
use qrvsa_core::tree::Key;
use qrvsa_core::txg::block;
use qrvsa_core::txg::entry::{Action, Entry, encode_change, items_entry, punch_entry, write_entry};

use super::MEMORY_MAX;
use crate::Target;

/// Blocks of the intent log and the entries in them.
pub const INTENT_LOG: Target = Target {
    name: "intent-log",
    covers: "intent log blocks, with right and wrong checksums, and their entries",
    run: intent_log,
    seeds: logs,
    words: &[b"QRVSALOG"],
    bytes_max: 8192,
    memory_max: MEMORY_MAX,
};

/// Items of a filesystem.
pub const ITEMS: Target = Target {
    name: "items",
    covers: "inodes, directory entries, ACLs",
    run: items,
    seeds: item_seeds,
    words: &[],
    bytes_max: 6200,
    memory_max: MEMORY_MAX,
};

const POOL: u128 = 0x1111_2222;

/// A block as it is; then the same bytes as the payload of a sound block.
fn intent_log(input: &[u8]) -> bool {
    if let Some(block::Header { len, sum, committed }) = block::parse_header(input, POOL, 1, 1)
        && let Some(payload) = input.get(block::HEADER_BYTES..).and_then(|rest| rest.get(..len))
        && block::sum(input, payload) == sum
    {
        assert_eq!(block::header(POOL, 1, 1, committed, payload)[..44], input[..44]);
    }
    let header = block::header(POOL, 1, 1, 3, input);
    assert_eq!(block::parse_header(&header, POOL, 1, 1).map(|h| (h.len, h.committed)), Some((input.len(), 3)));
    let mut accepted = false;
    let mut total = 0;
    for bytes in block::entries(input) {
        let Ok(bytes) = bytes else { break };
        total += 4 + bytes.len();
        accepted |= entry(bytes);
    }
    assert!(total <= input.len());
    accepted
}

fn entry(bytes: &[u8]) -> bool {
    let Ok(entry) = Entry::decode(bytes) else { return false };
    let again = match &entry.action {
        Action::Items(changes) => {
            let mut body = Vec::new();
            for c in changes {
                // a removal holds no value
                encode_change(&mut body, c.key, c.value.as_deref(), c.keep_content_fields);
            }
            items_entry(entry.dataset, entry.txg, &body)
        }
        Action::Write { object, offset, data } => {
            assert!(offset.checked_add(data.len() as u64).is_some());
            write_entry(entry.dataset, entry.txg, *object, *offset, [data.as_slice()])
        }
        Action::Punch { object, start, end } => punch_entry(entry.dataset, entry.txg, *object, *start, *end),
    };
    assert_eq!(Entry::decode(&again).as_ref().ok(), Some(&entry));
    true
}

fn items(input: &[u8]) -> bool {
    let Some((kind, bytes)) = input.split_first() else { return false };
    match kind % 5 {
        0 => Inode::decode(bytes).is_ok_and(|inode| {
            assert_eq!(inode.encode().as_slice(), bytes);
            let _ = (inode.attr(5, None), inode.object(5));
            true
        }),
        1 => decode_bucket(bytes).is_ok_and(|entries| {
            assert_eq!(encode_bucket(&entries).ok().as_deref(), Some(bytes));
            true
        }),
        2 => decode_index(7, bytes).is_ok_and(|e| {
            assert_eq!(encode_index(e.ino, e.file_type, &e.name), bytes);
            true
        }),
        3 => Acl::decode(bytes).is_ok_and(|acl| {
            let Some(mut acl) = acl else { return true };
            assert_eq!(acl.encode().len(), bytes.len());
            assert_eq!(Acl::decode(&acl.encode()).ok().flatten().as_ref(), Some(&acl));
            let _ = (acl.permission_bits(), acl.is_mode(), acl.inherit(0o777));
            acl.chmod(0o640);
            assert_eq!(Acl::decode(&acl.encode()).ok().flatten().as_ref(), Some(&acl));
            true
        }),
        _ => {
            // replay of an attribute change over what is on disk: two inodes, one of which may be damaged
            let (old, new) = bytes.split_at(bytes.len() / 2);
            let merged = merge_content_fields(Some(old), new);
            match Inode::decode(new) {
                Ok(_) => assert!(Inode::decode(&merged).is_ok(), "a sound inode was merged into a broken one"),
                Err(_) => assert_eq!(merged, new),
            }
            Inode::decode(new).is_ok()
        }
    }
}

fn logs() -> Vec<Vec<u8>> {
    let object = ObjectRef { id: 9, record_size: 131_072 };
    let mut body = Vec::new();
    encode_change(&mut body, Key::new(1, 2, 3), Some(b"value"), true);
    encode_change(&mut body, Key::new(4, 5, 6), None, false);
    let entries = [
        items_entry(1, 7, &body),
        write_entry(1, 7, object, 4096, [b"some".as_slice(), b" data"]),
        punch_entry(1, 7, object, 4096, 1 << 40),
    ];
    let packed = |list: &[Vec<u8>]| -> Vec<u8> {
        list.iter().flat_map(|e| [&(e.len() as u32).to_le_bytes()[..], e].concat()).collect()
    };
    let payload = packed(&entries);
    let whole = [&block::header(POOL, 1, 1, 0, &payload)[..], &payload].concat();
    entries.iter().map(|e| packed(std::slice::from_ref(e))).chain([payload, whole]).collect()
}

fn item_seeds() -> Vec<Vec<u8>> {
    let mut file = Inode::new(libc::S_IFREG | 0o644, 1_700_000_000_000_000_000, 131_072);
    file.size = 1000;
    let dir = Inode::new(libc::S_IFDIR | 0o755, 1, 131_072);
    let mut link = Inode::new(libc::S_IFLNK | 0o777, 1, 131_072);
    link.size = 12;
    let entry = |index, name: &[u8]| Dirent { index, ino: 1000 + index, file_type: libc::S_IFREG, name: name.to_vec() };
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(perm.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    let none = u32::MAX;
    let tagged = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    vec![
        tagged(0, &file.encode()),
        tagged(0, &dir.encode()),
        tagged(0, &link.encode()),
        tagged(1, &encode_bucket(&[entry(3, b"a"), entry(4, b"other name")]).unwrap_or_default()),
        tagged(2, &encode_index(1007, libc::S_IFDIR, b"directory")),
        tagged(3, &acl(&[(1, 6, none), (4, 4, none), (0x20, 4, none)])),
        tagged(3, &acl(&[(1, 7, none), (2, 5, 1000), (4, 5, none), (8, 4, 100), (0x10, 7, none), (0x20, 0, none)])),
        tagged(4, &[file.encode(), file.encode()].concat()),
        tagged(4, &[dir.encode(), file.encode()].concat()),
    ]
}
