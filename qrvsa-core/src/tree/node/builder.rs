//! Items on their way into nodes: a flat, growing run of sorted items, and the encoding of a part of it as a node.

use std::ops::Range;

use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::tree::Key;
use crate::tree::key::KEY_BYTES;

use super::header::{HEADER_BYTES, Header};
use super::{CONTENT_BYTES_MAX, ENTRY_BYTES, Node};

/// Sorted items in one arena. The space a range of items takes in a node is a difference of two prefix sums.
#[derive(Default)]
pub(in crate::tree) struct ItemRun {
    /// Key and end of the value in `bytes`.
    entries: Vec<(Key, usize)>,
    bytes: Vec<u8>,
}

impl ItemRun {
    /// Number of items.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The key of item `i`.
    pub fn key(&self, i: usize) -> Key {
        self.entries[i].0
    }

    /// The value of item `i`.
    pub fn value(&self, i: usize) -> &[u8] {
        &self.bytes[self.start(i)..self.start(i + 1)]
    }

    /// Where item `i` begins in `bytes`; for `len()`, where the last one ends.
    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.entries[i - 1].1 }
    }

    /// Bytes the items of a range take in a node, without its header.
    pub fn cost(&self, range: Range<usize>) -> usize {
        range.len() * ENTRY_BYTES + self.start(range.end) - self.start(range.start)
    }

    /// Bytes all items take, without headers.
    pub fn cost_all(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + self.bytes.len()
    }

    /// Appends an item. The caller keeps the order.
    pub fn push(&mut self, key: Key, value: &[u8]) {
        debug_assert!(self.entries.last().is_none_or(|(last, _)| *last < key));
        self.bytes.extend_from_slice(value);
        self.entries.push((key, self.bytes.len()));
    }

    /// Appends a range of a node's items, whose values lie side by side.
    pub fn push_range(&mut self, node: &Node, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let from = node.value_start(range.start);
        let base = self.bytes.len();
        self.bytes.extend_from_slice(&node.bytes()[from..node.value_start(range.end)]);
        self.entries.extend(range.map(|i| (node.key(i), base + node.value_start(i + 1) - from)));
    }

    /// Puts a node's items before all others.
    pub fn prepend(&mut self, node: &Node) {
        let mut run = ItemRun::default();
        run.push_range(node, 0..node.len());
        let base = run.bytes.len();
        run.bytes.extend_from_slice(&self.bytes);
        run.entries.extend(self.entries.iter().map(|&(key, end)| (key, base + end)));
        *self = run;
    }

    /// Keeps the first `len` items.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(self.start(len));
        self.entries.truncate(len);
    }

    /// Drops the first `count` items.
    pub fn drop_front(&mut self, count: usize) {
        let base = self.start(count);
        self.bytes.drain(..base);
        self.entries.drain(..count);
        for (_, end) in &mut self.entries {
            *end -= base;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The largest `end` such that `start..end` costs at most `limit`; at least one item.
    pub fn fit(&self, start: usize, limit: usize) -> usize {
        let base = self.start(start);
        let ends = &self.entries[start..];
        let (mut low, mut high) = (1, ends.len());
        while low < high {
            let middle = (low + high).div_ceil(2);
            if middle * ENTRY_BYTES + ends[middle - 1].1 - base <= limit {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        start + low
    }

    /// Encodes a range of items as a node, padded to whole blocks.
    ///
    /// # Panics
    /// If the range is empty or does not fit in a node.
    pub fn encode(&self, range: Range<usize>, level: u8, owner: u64, birth: u64) -> AlignedBuf {
        let cost = self.cost(range.clone());
        assert!(!range.is_empty() && cost <= CONTENT_BYTES_MAX, "the caller cuts runs into pieces that fit");
        let used = HEADER_BYTES + cost;
        let fits = "a node's size fits 16 bits";
        let header = Header {
            level,
            count: u16::try_from(range.len()).expect(fits),
            used: u16::try_from(used).expect(fits),
            owner,
            birth,
        };
        let mut buf = AlignedBuf::zeroed(used.next_multiple_of(BLOCK_SIZE));
        header.encode(&mut buf);
        let values_at = HEADER_BYTES + range.len() * ENTRY_BYTES;
        let base = self.start(range.start);
        let slots = buf[HEADER_BYTES..values_at].chunks_exact_mut(ENTRY_BYTES);
        for (slot, (key, end)) in slots.zip(&self.entries[range.clone()]) {
            let end = u16::try_from(values_at + end - base).expect(fits);
            slot[..KEY_BYTES].copy_from_slice(&key.to_bytes());
            slot[KEY_BYTES..].copy_from_slice(&end.to_le_bytes());
        }
        buf[values_at..used].copy_from_slice(&self.bytes[base..self.start(range.end)]);
        buf
    }
}
