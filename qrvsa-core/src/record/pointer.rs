//! The pointer to a record: where it lies in the pool, when it was born, and the checksums of its fragments.
//!
//! A pointer names (block group, row, length), never devices: the block-group table maps columns to zones, so zones move
//! without a pointer changing. The record's bytes, padded to whole blocks, are cut into `width` contiguous fragments of
//! `rows()` blocks; `parity` fragments follow. A group of width 1 holds `1 + parity` identical copies. Checksums are
//! CRC-64/NVME over units of at most [`UNIT_BLOCKS`] blocks of each fragment, column by column; the copies of a width-1
//! group share one set.
//!
//! The byte layout stands in `docs/format.md`, "Record pointer".

use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};

/// Blocks per checksum unit: 16 KiB.
pub const UNIT_BLOCKS: u32 = 4;
/// Largest record, in blocks: 1 MiB.
pub const RECORD_BLOCKS_MAX: u32 = 256;
/// Bytes of an encoded pointer before its checksums.
pub const POINTER_HEADER_BYTES: usize = 32;

/// The address and the proof of one record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pointer {
    /// Block group.
    pub group: u32,
    /// First row in the group's zones.
    pub row: u32,
    /// Transaction group that wrote it.
    pub birth: u64,
    /// Length in blocks, 1 to 256.
    pub blocks: u16,
    /// Data columns of the group when it was written.
    pub width: u8,
    /// Parity columns (or further copies) of the group when it was written.
    pub parity: u8,
    /// One per unit, column by column.
    pub checksums: Box<[u64]>,
}

impl Pointer {
    /// Length in bytes, padding included.
    pub fn len_bytes(&self) -> usize {
        usize::from(self.blocks) * BLOCK_SIZE
    }

    /// Rows the record occupies, which is also the length of a fragment in blocks.
    pub fn rows(&self) -> u32 {
        u32::from(self.blocks).div_ceil(u32::from(self.width))
    }

    /// Checksum units in one fragment.
    pub fn units_per_column(&self) -> u32 {
        self.rows().div_ceil(UNIT_BLOCKS)
    }

    /// All columns of the group: data and parity.
    pub fn columns(&self) -> u32 {
        u32::from(self.width) + u32::from(self.parity)
    }

    /// 4 KiB blocks occupied on devices.
    pub fn physical_blocks(&self) -> u64 {
        u64::from(self.rows()) * u64::from(self.columns())
    }

    /// The checksum of a unit of a column.
    pub fn checksum(&self, column: u32, unit: u32) -> u64 {
        let column = if self.width == 1 { 0 } else { column };
        self.checksums[(column * self.units_per_column() + unit) as usize]
    }

    fn checksum_count(blocks: u16, width: u8, parity: u8) -> usize {
        let rows = u32::from(blocks).div_ceil(u32::from(width));
        let columns = if width == 1 { 1 } else { usize::from(width) + usize::from(parity) };
        rows.div_ceil(UNIT_BLOCKS) as usize * columns
    }

    /// Bytes [`Pointer::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        POINTER_HEADER_BYTES + self.checksums.len() * 8
    }

    /// Appends the on-disk form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
        out.extend_from_slice(&self.birth.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.push(self.width);
        out.push(self.parity);
        // logical blocks (equal while nothing is compressed), compression, flags, key epoch
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.push(0);
        out.push(0);
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        for sum in &self.checksums {
            out.extend_from_slice(&sum.to_le_bytes());
        }
    }

    /// Reads a pointer from the front of `bytes`; returns it and the bytes it took.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for impossible lengths or shapes, [`ErrorKind::Unsupported`] for features not known here.
    pub fn decode(bytes: &[u8]) -> Result<(Pointer, usize)> {
        let bad = |what: &'static str| Error::new(ErrorKind::Corrupt, what);
        let Some((head, rest)) = bytes.split_at_checked(POINTER_HEADER_BYTES) else {
            return Err(bad("record pointer is cut short"));
        };
        let u16_at = |i: usize| u16::from_le_bytes([head[i], head[i + 1]]);
        let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (group, row) = (u32_at(0), u32_at(4));
        let birth = u64::from(u32_at(8)) | u64::from(u32_at(12)) << 32;
        let (blocks, width, parity) = (u16_at(16), head[18], head[19]);
        if blocks == 0 || u32::from(blocks) > RECORD_BLOCKS_MAX {
            return Err(bad("record pointer has an impossible length"));
        }
        if width == 0 || usize::from(width) + usize::from(parity) > 255 {
            return Err(bad("record pointer has an impossible geometry"));
        }
        if u16_at(20) != blocks || head[22] != 0 || head[23] != 0 || u32_at(24) != 0 || u32_at(28) != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "record pointer uses a feature this version does not know"));
        }
        let count = Pointer::checksum_count(blocks, width, parity);
        let Some(sums) = rest.get(..count * 8) else { return Err(bad("record pointer is cut short")) };
        let checksums = sums.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().expect("chunks of 8"))).collect();
        let pointer = Pointer { group, row, birth, blocks, width, parity, checksums };
        Ok((pointer, POINTER_HEADER_BYTES + count * 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_hostile_bytes() {
        let pointer =
            Pointer { group: 7, row: 9, birth: 1 << 40, blocks: 32, width: 4, parity: 2, checksums: (0..12).collect() };
        let mut bytes = Vec::new();
        pointer.encode(&mut bytes);
        assert_eq!(bytes.len(), pointer.encoded_len());
        bytes.extend_from_slice(b"tail");
        let (back, used) = Pointer::decode(&bytes).unwrap();
        assert_eq!((back, used), (pointer, bytes.len() - 4));
        for cut in 0..used {
            assert!(Pointer::decode(&bytes[..cut]).is_err());
        }
        for i in 0..used {
            let mut bent = bytes.clone();
            bent[i] ^= 0xff;
            let _ = Pointer::decode(&bent);
        }
    }
}
