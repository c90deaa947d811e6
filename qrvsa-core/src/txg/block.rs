//! A block of the intent log as bytes: its header, its checksum, and the entries it holds. The byte table stands in
//! `docs/format.md`.

use crate::buf::BLOCK_SIZE;
use crate::bytes::Reader;
use crate::error::Result;
use crate::record::checksum::checksum;

const MAGIC: &[u8; 8] = b"QRVSALOG";
/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 64;
/// Longest block in rows: 1 MiB.
pub const BLOCK_ROWS_MAX: u64 = 256;

/// What a block's first bytes tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Length of the payload, bytes.
    pub len: usize,
    /// The checksum that [`sum`] has to give.
    pub sum: u64,
    /// The newest transaction group that was durable when the block was written; 0: not told.
    pub committed: u64,
}

/// The header of a block with this payload, written while group `committed` is the newest that is durable.
pub fn header(pool_id: u128, generation: u64, sequence: u64, committed: u64, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..24].copy_from_slice(&pool_id.to_le_bytes());
    header[24..32].copy_from_slice(&generation.to_le_bytes());
    header[32..40].copy_from_slice(&sequence.to_le_bytes());
    header[40..44].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[56..64].copy_from_slice(&committed.to_le_bytes());
    let sum = sum(&header, payload);
    header[48..56].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Checksum over the header (its own field zero) and the payload.
///
/// # Panics
/// If the header is cut short.
pub fn sum(header: &[u8], payload: &[u8]) -> u64 {
    let mut clean = [0u8; HEADER_BYTES];
    clean.copy_from_slice(&header[..HEADER_BYTES]);
    clean[48..56].fill(0);
    checksum(&clean) ^ checksum(payload).rotate_left(1)
}

/// What a block's first bytes tell; `None` when this is not the block that is expected here.
pub fn parse_header(block: &[u8], pool_id: u128, generation: u64, sequence: u64) -> Option<Header> {
    let mut r = Reader::new(block, "intent log block");
    let ok = r.raw(8).ok()? == MAGIC
        && r.u128().ok()? == pool_id
        && r.u64().ok()? == generation
        && r.u64().ok()? == sequence;
    if !ok {
        return None;
    }
    let len = r.u32().ok()? as usize;
    r.u32().ok()?;
    let sum = r.u64().ok()?;
    let committed = r.u64().ok()?;
    (len <= BLOCK_ROWS_MAX as usize * BLOCK_SIZE - HEADER_BYTES).then_some(Header { len, sum, committed })
}

/// The entries of a payload, in order; after the first error nothing.
pub fn entries(payload: &[u8]) -> impl Iterator<Item = Result<&[u8]>> {
    let mut r = Reader::new(payload, "intent log block");
    let mut broken = false;
    std::iter::from_fn(move || {
        if broken || r.rest().is_empty() {
            return None;
        }
        let entry = r.u32().and_then(|len| r.raw(len as usize));
        broken = entry.is_err();
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let payload = [&3u32.to_le_bytes()[..], b"abc", &0u32.to_le_bytes(), &1u32.to_le_bytes(), b"d"].concat();
        let block = [&header(7, 1, 9, 5, &payload)[..], &payload].concat();
        let read = parse_header(&block, 7, 1, 9).unwrap();
        assert_eq!(read, Header { len: payload.len(), sum: sum(&block, &payload), committed: 5 });
        assert!(parse_header(&block, 8, 1, 9).is_none());
        assert!(parse_header(&block, 7, 2, 9).is_none());
        assert!(parse_header(&block, 7, 1, 10).is_none());
        assert!(parse_header(&block[..HEADER_BYTES / 2], 7, 1, 9).is_none());
        let read: Vec<_> = entries(&payload).map(Result::unwrap).collect();
        assert_eq!(read, [&b"abc"[..], b"", b"d"]);
    }

    #[test]
    fn a_length_beyond_the_payload_ends_it() {
        let payload = [&1u32.to_le_bytes()[..], b"a", &u32::MAX.to_le_bytes(), b"b"].concat();
        let read: Vec<_> = entries(&payload).collect();
        assert_eq!(read.len(), 2);
        assert!(read[0].is_ok() && read[1].is_err());
    }
}
