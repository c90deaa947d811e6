use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::error::ErrorKind;

fn pointer(row: u32) -> Pointer {
    Pointer { group: 1, row, birth: 3, blocks: 4, width: 1, parity: 2, checksums: Box::new([u64::from(row)]) }
}

fn leaf() -> AlignedBuf {
    let mut run = ItemRun::default();
    for i in 0..50u64 {
        run.push(Key::new(i / 7, (i % 7) as u8, i), &vec![i as u8; i as usize * 3]);
    }
    run.encode(0..50, 0, 9, 5)
}

fn internal() -> AlignedBuf {
    let mut run = ItemRun::default();
    for i in 0..100u32 {
        let mut bytes = Vec::new();
        pointer(i).encode(&mut bytes);
        run.push(Key::new(u64::from(i), 0, 0), &bytes);
    }
    run.encode(0..100, 2, 9, 5)
}

/// Reads everything a caller can reach.
fn touch(node: &Node) -> usize {
    let mut sum = node.items().map(|(key, value)| key.offset as usize ^ value.len()).fold(0, usize::wrapping_add);
    for i in 0..node.len() {
        assert_eq!(node.find(node.key(i)), Some(i));
        assert_eq!(node.route(node.key(i)), i);
        if !node.is_leaf() {
            sum ^= node.pointer(i).row as usize;
        }
    }
    sum
}

fn reseal(bytes: &mut [u8]) {
    let check = xxh3_64(&bytes[..40]);
    bytes[40..48].copy_from_slice(&check.to_le_bytes());
}

#[test]
fn what_is_built_is_what_is_parsed() {
    let node = Node::parse(leaf()).unwrap();
    assert_eq!((node.level(), node.len(), node.owner(), node.birth()), (0, 50, 9, 5));
    for (i, (key, value)) in node.items().enumerate() {
        assert_eq!(key, Key::new(i as u64 / 7, (i % 7) as u8, i as u64));
        assert_eq!(value, vec![i as u8; i * 3]);
    }
    assert_eq!(node.find(Key::new(0, 0, 1)), None);
    assert_eq!(node.lower_bound(0, Key::MAX), 50);
    touch(&node);
    let node = Node::parse(internal()).unwrap();
    assert_eq!((node.level(), node.len()), (2, 100));
    assert_eq!(node.pointer(42), &pointer(42));
    assert_eq!(node.route(Key::MIN), 0);
    assert_eq!(node.route(Key::new(42, 1, 7)), 42);
    assert_eq!(node.route(Key::MAX), 99);
    touch(&node);
}

#[test]
fn a_full_node_is_exactly_the_limit() {
    let mut run = ItemRun::default();
    let rest = CONTENT_BYTES_MAX - 3 * ENTRY_BYTES - 2 * VALUE_BYTES_MAX;
    for (i, len) in [VALUE_BYTES_MAX, VALUE_BYTES_MAX, rest].into_iter().enumerate() {
        run.push(Key::new(0, 0, i as u64), &vec![1; len]);
    }
    let bytes = run.encode(0..3, 0, 1, 1);
    assert_eq!(bytes.len(), NODE_BYTES_MAX);
    assert_eq!(Node::parse(bytes).unwrap().used_bytes(), NODE_BYTES_MAX);
}

#[test]
fn later_formats_are_unsupported_not_corrupt() {
    for (offset, value) in [(4, 2), (12, 1), (14, 1), (33, 1)] {
        let mut bytes = leaf();
        bytes[offset] = value;
        assert_eq!(Node::parse(bytes.clone()).unwrap_err().kind(), ErrorKind::Corrupt);
        reseal(&mut bytes);
        assert_eq!(Node::parse(bytes).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn oversized_values_and_foreign_lengths_are_refused() {
    let mut run = ItemRun::default();
    run.push(Key::MIN, &[0; VALUE_BYTES_MAX + 1]);
    assert_eq!(Node::parse(run.encode(0..1, 0, 1, 1)).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(Node::parse(AlignedBuf::zeroed(0)).is_err());
    assert!(Node::parse(AlignedBuf::zeroed(4095)).is_err());
    let longer = AlignedBuf::from_slice(&[&leaf()[..], &[0; BLOCK_SIZE]].concat());
    assert!(Node::parse(longer).is_err());
    let mut run = ItemRun::default();
    let mut long = Vec::new();
    Pointer { blocks: 5, checksums: Box::new([0, 0]), ..pointer(1) }.encode(&mut long);
    run.push(Key::MIN, &long);
    assert_eq!(Node::parse(run.encode(0..1, 1, 1, 1)).unwrap_err().kind(), ErrorKind::Corrupt);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        prop_assert!(Node::parse(AlignedBuf::from_slice(&bytes)).is_err());
        prop_assert!(Node::parse(AlignedBuf::from_slice_padded(&bytes)).is_err());
    }

    #[test]
    fn bent_bytes_never_panic(
        inner in any::<bool>(),
        flips in proptest::collection::vec((0usize..8192, any::<u8>()), 1..8),
        low in proptest::collection::vec((6usize..3000, any::<u8>()), 0..4),
    ) {
        let mut bytes = if inner { internal() } else { leaf() };
        let len = bytes.len();
        for (at, xor) in flips.into_iter().chain(low) {
            bytes[at % len] ^= xor;
        }
        // With the header's own check made good again, so that the checks behind it are reached.
        for sealed in [false, true] {
            let mut bytes = bytes.clone();
            if sealed {
                bytes[..4].copy_from_slice(b"QVTN");
                bytes[4..6].copy_from_slice(&1u16.to_le_bytes());
                bytes[12..16].fill(0);
                bytes[32..40].fill(0);
                reseal(&mut bytes);
            }
            if let Ok(node) = Node::parse(bytes) {
                touch(&node);
            }
        }
    }
}
