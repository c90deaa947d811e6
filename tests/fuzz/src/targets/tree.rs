//! Tree nodes and record pointers.

use std::sync::Arc;

use qrvsa_core::ErrorKind;
use qrvsa_core::buf::{AlignedBuf, BLOCK_SIZE};
use qrvsa_core::record::pointer::{Pointer, RECORD_BLOCKS_MAX};
use qrvsa_core::tree::mem::MemStore;
use qrvsa_core::tree::node::{HEADER_BYTES, NODE_BYTES_MAX};
use qrvsa_core::tree::{Key, Node, NodeStore, Root, Value, apply};
use xxhash_rust::xxh3::xxh3_64;

use super::MEMORY_MAX;
use crate::Target;

/// Nodes: the header's check is made right, so that changes reach the entries.
pub const NODE: Target = Target {
    name: "tree-node",
    covers: "tree nodes, with right and wrong header checks",
    run: node,
    seeds: nodes,
    words: &[b"QVTN"],
    bytes_max: NODE_BYTES_MAX,
    memory_max: MEMORY_MAX,
};

/// Record pointers.
pub const POINTER: Target = Target {
    name: "record-pointer",
    covers: "record pointers of every shape",
    run: |input| decode_pointer(input),
    seeds: || {
        let shapes = [(1, 0, 1), (1, 2, 4), (4, 2, 32), (8, 3, 256), (200, 55, 256)];
        shapes.map(|(width, parity, blocks)| encode(&pointer(width, parity, blocks))).to_vec()
    },
    words: &[],
    bytes_max: 20_000,
    memory_max: MEMORY_MAX,
};

/// A pointer of this shape.
pub(super) fn pointer(width: u8, parity: u8, blocks: u16) -> Pointer {
    let rows = u32::from(blocks).div_ceil(u32::from(width));
    let columns = if width == 1 { 1 } else { u64::from(width) + u64::from(parity) };
    let sums = u64::from(rows.div_ceil(4)) * columns;
    let checksums = (0..sums).map(|i| i.wrapping_mul(0x0101_0101_0101)).collect();
    Pointer { group: 7, row: 9, birth: 1 << 33, blocks, width, parity, checksums }
}

fn encode(pointer: &Pointer) -> Vec<u8> {
    let mut bytes = Vec::new();
    pointer.encode(&mut bytes);
    bytes
}

fn decode_pointer(input: &[u8]) -> bool {
    match Pointer::decode(input) {
        Ok((pointer, used)) => {
            assert_eq!(encode(&pointer), input[..used]);
            assert!((1..=RECORD_BLOCKS_MAX as usize).contains(&(pointer.len_bytes() / BLOCK_SIZE)));
            assert!(pointer.row.checked_add(pointer.rows()).is_some());
            for column in 0..pointer.columns() {
                for unit in 0..pointer.units_per_column() {
                    let _ = pointer.checksum(column, unit);
                }
            }
            assert!(pointer.physical_blocks() >= u64::from(pointer.blocks));
            true
        }
        Err(e) => {
            assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{e:?}");
            false
        }
    }
}

/// Everything that a node can be asked.
fn walk(node: &Node) {
    let mut last = None;
    for (i, (key, value)) in node.items().enumerate() {
        assert!(last.is_none_or(|last| last < key), "keys ascend");
        assert_eq!(node.find(key), Some(i));
        let _ = node.route(key);
        if !node.is_leaf() {
            assert_eq!(encode(node.pointer(i)), value);
        }
        last = Some(key);
    }
    assert_eq!((Some(node.last_key()), node.len() > 0), (last, true));
    assert!(node.used_bytes() <= node.bytes().len() && node.memory_bytes() >= node.bytes().len());
    let _ = (node.owner(), node.birth(), node.level(), node.first_key());
}

fn node(input: &[u8]) -> bool {
    if input.is_empty() {
        return false;
    }
    let _ = Node::parse(AlignedBuf::from_slice_padded(input));
    let mut bytes = input.to_vec();
    bytes.resize(bytes.len().max(HEADER_BYTES), 0);
    let check = xxh3_64(&bytes[..HEADER_BYTES - 8]);
    bytes[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&check.to_le_bytes());
    match Node::parse(AlignedBuf::from_slice_padded(&bytes)) {
        Ok(node) => {
            walk(&node);
            true
        }
        Err(e) => {
            assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{e:?}");
            false
        }
    }
}

/// The nodes of two real trees: leaves with short and with long values, and the internal nodes above them.
fn nodes() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (items, bytes) in [(3u64, 20usize), (150, 120), (600, 40)] {
        let store = MemStore::new(1, 2);
        let value: Value = Arc::from(vec![0x5a; bytes]);
        let batch = (0..items).map(|i| (Key::new(i / 5, 1 + (i % 5) as u8, i * 3), Some(value.clone())));
        let Ok(root) = apply(&store, &Root::EMPTY, 7, 1, batch) else { continue };
        let mut at = root.pointer;
        while let Some(pointer) = at.take() {
            let Ok(node) = store.read_node(&pointer) else { break };
            all.push(node.bytes()[..node.used_bytes()].to_vec());
            at = (!node.is_leaf()).then(|| node.pointer(node.len() - 1).clone());
        }
    }
    all
}
