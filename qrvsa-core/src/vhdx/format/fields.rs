//! Little-endian fields at fixed places of bytes from anywhere, checksums, UTF-16.

use crc_fast::{CrcAlgorithm, Digest};

use super::guid::Guid;

/// `N` bytes at `at`; what lies beyond the end reads as zero.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    let rest = bytes.get(at..).unwrap_or(&[]);
    for (to, from) in out.iter_mut().zip(rest) {
        *to = *from;
    }
    out
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn guid_at(bytes: &[u8], at: usize) -> Guid {
    Guid::from_bytes(array(bytes, at))
}

pub(super) fn has_at(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    at.checked_add(magic.len()).and_then(|end| bytes.get(at..end)) == Some(magic)
}

/// Writes a field where an encoder's own, long enough buffer wants it.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// CRC-32C of `bytes` with the four bytes at `hole` taken as zero: the checksum of every VHDX structure (its own field
/// zeroed).
pub fn checksum_with_hole(bytes: &[u8], hole: usize) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let (before, after) = bytes.split_at(hole.min(bytes.len()));
    digest.update(before);
    digest.update(&[0; 4][..after.len().min(4)]);
    digest.update(after.get(4..).unwrap_or(&[]));
    // The algorithm has 32 bits.
    (digest.finalize() & 0xffff_ffff) as u32
}

/// Little-endian UTF-16 as units; an odd last byte is dropped.
pub fn utf16_units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16_at(pair, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_beyond_the_end_read_as_zero() {
        assert_eq!(u32_at(&[1, 2], 0), 0x201);
        assert_eq!(u64_at(&[1, 2], usize::MAX), 0);
        assert!(!has_at(b"head", usize::MAX, b"head"));
        assert!(has_at(b"xhead", 1, b"head"));
    }

    #[test]
    fn checksum_is_crc32c_without_its_field() {
        // The check value of CRC-32C is e3069283; the hole takes the place of four zeros.
        assert_eq!(checksum_with_hole(b"123456789", 9), 0xe306_9283);
        assert_eq!(checksum_with_hole(b"1234\0\0\0\x006789", 4), checksum_with_hole(b"1234abcd6789", 4));
        assert_eq!(checksum_with_hole(b"12", 1), checksum_with_hole(b"1x", 1));
        assert_eq!(checksum_with_hole(b"", 4), 0);
    }
}
