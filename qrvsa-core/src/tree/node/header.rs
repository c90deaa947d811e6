//! The header of a node: who owns it, what it is, how much of it is used.

use xxhash_rust::xxh3::xxh3_64;

use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;

use super::{ENTRY_BYTES, LEVEL_MAX, NODE_BYTES_MAX};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 48;
/// Version of the node format this program writes and reads.
pub const NODE_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"QVTN";
const KIND_LEAF: u8 = 1;
const KIND_INTERNAL: u8 = 2;
/// The bytes covered by the check in the header's last field.
const CHECKED_BYTES: usize = 40;

/// A validated header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    /// 0 for a leaf.
    pub level: u8,
    /// Items, at least one.
    pub count: u16,
    /// Bytes in use, header included.
    pub used: u16,
    /// Tree that wrote the node.
    pub owner: u64,
    /// Transaction group that wrote the node.
    pub birth: u64,
}

impl Header {
    /// Writes the header to the front of `bytes`.
    pub fn encode(&self, bytes: &mut [u8]) {
        let bytes = &mut bytes[..HEADER_BYTES];
        bytes.fill(0);
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&NODE_VERSION.to_le_bytes());
        bytes[6] = if self.level == 0 { KIND_LEAF } else { KIND_INTERNAL };
        bytes[7] = self.level;
        bytes[8..10].copy_from_slice(&self.count.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.used.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.owner.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.birth.to_le_bytes());
        let check = xxh3_64(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&check.to_le_bytes());
    }

    /// Reads and checks the header of the node that `bytes` (all its blocks) holds.
    pub fn parse(bytes: &[u8]) -> Result<Header> {
        if bytes.is_empty() || bytes.len() > NODE_BYTES_MAX || !bytes.len().is_multiple_of(BLOCK_SIZE) {
            fail!(Corrupt, "tree node of {} bytes: not 1 to 4 whole blocks", bytes.len());
        }
        let corrupt = |what: &'static str| Error::new(ErrorKind::Corrupt, what);
        let u16_at = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let u64_at = |i: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[i..i + 8]);
            u64::from_le_bytes(raw)
        };
        if bytes[..4] != MAGIC {
            return Err(corrupt("tree node without the magic"));
        }
        if xxh3_64(&bytes[..CHECKED_BYTES]) != u64_at(CHECKED_BYTES) {
            return Err(corrupt("tree node whose header does not match its check"));
        }
        if u16_at(4) != NODE_VERSION {
            fail!(Unsupported, "tree node of version {}; this program knows {NODE_VERSION}", u16_at(4));
        }
        if u16_at(12) != 0 || u16_at(14) != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "tree node with a message buffer"));
        }
        if u64_at(32) != 0 {
            fail!(Unsupported, "tree node with unknown flags {:#x}", u64_at(32));
        }
        let level = bytes[7];
        match (bytes[6], level) {
            (KIND_LEAF, 0) | (KIND_INTERNAL, 1..=LEVEL_MAX) => {}
            (kind, _) => fail!(Corrupt, "tree node of kind {kind} at level {level}"),
        }
        let header = Header { level, count: u16_at(8), used: u16_at(10), owner: u64_at(16), birth: u64_at(24) };
        let used = usize::from(header.used);
        if header.count == 0 || HEADER_BYTES + usize::from(header.count) * ENTRY_BYTES > used {
            fail!(Corrupt, "tree node with {} items in {used} bytes", header.count);
        }
        if used.next_multiple_of(BLOCK_SIZE) != bytes.len() {
            fail!(Corrupt, "tree node of {used} bytes in {} bytes of blocks", bytes.len());
        }
        Ok(header)
    }
}
