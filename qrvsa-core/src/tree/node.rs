//! Tree nodes: sorted items in at most 16 KiB, read-only once loaded.
//!
//! A node is a record of 1 to 4 whole blocks. Its checksum is in the pointer that names it; inside there is only a check
//! over the header, which catches a program error (a wrong buffer written under a right checksum). Leaves hold items
//! (key, value). Internal nodes hold, for each child, the first key the child holds and the encoded record pointer to
//! it. Both kinds share one layout; a node always has at least one item (an empty tree has no node).
//!
//! All fields little-endian.
//!
//! Header, 48 bytes:
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0  | 4 | magic `QVTN` |
//! | 4  | 2 | version: 1 |
//! | 6  | 1 | kind: 1 leaf, 2 internal |
//! | 7  | 1 | level: 0 for a leaf, 1 to 31 for an internal node |
//! | 8  | 2 | item count *n*, at least 1 |
//! | 10 | 2 | used bytes, header included, at most 16384; the node takes as many blocks as this needs |
//! | 12 | 2 | offset of the message buffer: 0 (anything else is a later format: `Unsupported`) |
//! | 14 | 2 | length of the message buffer: 0 (same) |
//! | 16 | 8 | owner: id of the tree that wrote the node |
//! | 24 | 8 | birth: transaction group that wrote the node; equals the birth in the pointer |
//! | 32 | 8 | flags: 0 (anything else is `Unsupported`) |
//! | 40 | 8 | XXH3-64 of bytes 0 to 39 |
//!
//! Entries, *n* times 19 bytes from offset 48, by strictly ascending key:
//!
//! | offset | size | field |
//! |-------:|-----:|-------|
//! | 0  | 17 | key: object (u64), kind (u8), offset (u64) |
//! | 17 | 2  | end of the value, from the start of the node |
//!
//! Values follow the entries without gaps, in the same order: a value begins where the one before it ends, the first one
//! where the entries end, and the last one ends at "used bytes". A leaf's value is 0 to 6144 bytes; an internal node's
//! is a record pointer (see "Record pointer") of at most 4 blocks. The rest of the last block is zeros.
//!
//! **Typestate.** [`Node::parse`] checks every count, offset, length and order, and decodes the pointers; a [`Node`]
//! therefore never reads out of bounds, whatever the device returned.

mod builder;
mod header;

use std::ops::Range;

use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::error::Result;
use crate::fail;
use crate::record::pointer::Pointer;

use super::key::KEY_BYTES;
use super::{Key, VALUE_BYTES_MAX};

pub(super) use builder::ItemRun;
use header::Header;
pub use header::{HEADER_BYTES, NODE_VERSION};

/// Largest node in bytes.
pub const NODE_BYTES_MAX: usize = 16 * 1024;
/// Highest level of a node.
pub const LEVEL_MAX: u8 = 31;
/// Bytes of an entry, without its value.
pub const ENTRY_BYTES: usize = KEY_BYTES + 2;
/// Largest content (entries and values) of a node in bytes.
pub const CONTENT_BYTES_MAX: usize = NODE_BYTES_MAX - HEADER_BYTES;

/// A validated node.
pub struct Node {
    bytes: AlignedBuf,
    header: Header,
    /// The decoded values of an internal node; empty for a leaf.
    pointers: Box<[Pointer]>,
}

impl Node {
    /// Checks the bytes of a node (all its blocks) completely.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for anything no version writes,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for what a later version may have written.
    pub fn parse(bytes: AlignedBuf) -> Result<Node> {
        let header = Header::parse(&bytes)?;
        let mut node = Node { bytes, header, pointers: Box::default() };
        let mut start = node.value_start(0);
        for i in 0..node.len() {
            let end = node.value_start(i + 1);
            if end < start || end > usize::from(header.used) {
                fail!(Corrupt, "tree node whose item {i} lies at {start}..{end} of {} bytes", header.used);
            }
            if i > 0 && node.key(i - 1) >= node.key(i) {
                fail!(Corrupt, "tree node whose keys are out of order at item {i}");
            }
            if header.level == 0 && end - start > VALUE_BYTES_MAX {
                fail!(Corrupt, "tree leaf with a value of {} bytes", end - start);
            }
            start = end;
        }
        if start != usize::from(header.used) {
            fail!(Corrupt, "tree node with {} bytes after its last value", usize::from(header.used) - start);
        }
        if header.level > 0 {
            node.pointers = (0..node.len()).map(|i| child_pointer(node.value(i))).collect::<Result<_>>()?;
        }
        Ok(node)
    }

    /// 0 for a leaf, else the distance to the leaves.
    pub fn level(&self) -> u8 {
        self.header.level
    }

    /// Whether this is a leaf.
    pub fn is_leaf(&self) -> bool {
        self.header.level == 0
    }

    /// Items (children, for an internal node), at least 1.
    #[allow(clippy::len_without_is_empty, reason = "a node is never empty")]
    pub fn len(&self) -> usize {
        usize::from(self.header.count)
    }

    /// Id of the tree that wrote the node.
    pub fn owner(&self) -> u64 {
        self.header.owner
    }

    /// Transaction group that wrote the node.
    pub fn birth(&self) -> u64 {
        self.header.birth
    }

    /// Bytes in use, header included, padding not.
    pub fn used_bytes(&self) -> usize {
        usize::from(self.header.used)
    }

    /// The node as on disk, padding included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory the node takes, in bytes, for a cache's accounts.
    pub fn memory_bytes(&self) -> usize {
        let pointer_bytes = |p: &Pointer| size_of::<Pointer>() + p.checksums.len() * 8 + 16;
        size_of::<Node>() + self.bytes.len() + self.pointers.iter().map(pointer_bytes).sum::<usize>()
    }

    fn entry(&self, i: usize) -> &[u8; ENTRY_BYTES] {
        let at = HEADER_BYTES + i * ENTRY_BYTES;
        self.bytes[at..at + ENTRY_BYTES].try_into().expect("the slice has this length")
    }

    /// The key of item `i`.
    ///
    /// # Panics
    /// If there is no such item.
    pub fn key(&self, i: usize) -> Key {
        assert!(i < self.len());
        let (key, _) = self.entry(i).split_first_chunk().expect("an entry begins with a key");
        Key::from_bytes(key)
    }

    /// Where the value of item `i` begins; for `len()`, where the last one ends.
    fn value_start(&self, i: usize) -> usize {
        if i == 0 {
            return HEADER_BYTES + self.len() * ENTRY_BYTES;
        }
        let entry = self.entry(i - 1);
        usize::from(u16::from_le_bytes([entry[KEY_BYTES], entry[KEY_BYTES + 1]]))
    }

    /// The value of item `i` (of an internal node: the encoded pointer).
    ///
    /// # Panics
    /// If there is no such item.
    pub fn value(&self, i: usize) -> &[u8] {
        assert!(i < self.len());
        &self.bytes[self.value_start(i)..self.value_start(i + 1)]
    }

    /// The pointer to child `i` of an internal node.
    ///
    /// # Panics
    /// If there is no such child.
    pub fn pointer(&self, i: usize) -> &Pointer {
        &self.pointers[i]
    }

    /// The first key, which is also the key under which the parent lists this node.
    pub fn first_key(&self) -> Key {
        self.key(0)
    }

    /// The last key.
    pub fn last_key(&self) -> Key {
        self.key(self.len() - 1)
    }

    /// All items in order.
    pub fn items(&self) -> impl ExactSizeIterator<Item = (Key, &[u8])> {
        (0..self.len()).map(|i| (self.key(i), self.value(i)))
    }

    /// The first item at or after `from` whose key is not below `key`; `len()` if there is none.
    pub fn lower_bound(&self, from: usize, key: Key) -> usize {
        let Range { start: mut low, end: mut high } = from..self.len();
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The item with this key.
    pub fn find(&self, key: Key) -> Option<usize> {
        let i = self.lower_bound(0, key);
        (i < self.len() && self.key(i) == key).then_some(i)
    }

    /// The child whose range holds `key`. The first child's range reaches down to the smallest key.
    pub fn route(&self, key: Key) -> usize {
        match key.successor() {
            Some(after) => self.lower_bound(0, after).saturating_sub(1),
            None => self.len() - 1,
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Header { level, count, used, owner, birth } = self.header;
        write!(f, "Node(level {level}, {count} items, {used} bytes, owner {owner}, birth {birth})")
    }
}

/// Decodes the value of an internal node's item.
fn child_pointer(value: &[u8]) -> Result<Pointer> {
    let (pointer, used) = Pointer::decode(value)?;
    if used != value.len() {
        fail!(Corrupt, "child pointer with {} bytes after its end", value.len() - used);
    }
    if pointer.len_bytes() > NODE_BYTES_MAX {
        fail!(Corrupt, "child pointer to a node of {} blocks", pointer.blocks);
    }
    Ok(pointer)
}

const _: () = assert!(NODE_BYTES_MAX.is_multiple_of(BLOCK_SIZE) && NODE_BYTES_MAX <= u16::MAX as usize);

#[cfg(test)]
mod tests;
