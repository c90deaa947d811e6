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
    ///
    /// # Panics
    /// If the record has no such column or unit.
    pub fn checksum(&self, column: u32, unit: u32) -> u64 {
        assert!(column < self.columns() && unit < self.units_per_column(), "a unit of the record");
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
    ///
    /// # Panics
    /// If there are more or fewer checksums than units: nothing could read that back.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let expected = Pointer::checksum_count(self.blocks, self.width, self.parity);
        assert_eq!(self.checksums.len(), expected, "one checksum per unit");
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
        // so that the end of the extent can be computed anywhere; whether it lies in the zone, the pool knows
        if row.checked_add(u32::from(blocks).div_ceil(u32::from(width))).is_none() {
            return Err(bad("record pointer reaches beyond the last possible row"));
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
    use proptest::prelude::*;

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
            survives(&bent);
        }
    }

    /// Decodes hostile bytes: an error, or a pointer all of whose methods work, and whose bytes are the ones read.
    fn survives(bytes: &[u8]) -> bool {
        let (pointer, used) = match Pointer::decode(bytes) {
            Ok(decoded) => decoded,
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported), "{e:?}");
                return false;
            }
        };
        let mut again = Vec::new();
        pointer.encode(&mut again);
        assert_eq!(again, bytes[..used]);
        assert_eq!(pointer.encoded_len(), used);

        assert!((1..=RECORD_BLOCKS_MAX as usize).contains(&(pointer.len_bytes() / BLOCK_SIZE)));
        assert!((1..=255).contains(&pointer.columns()));
        assert!(pointer.row.checked_add(pointer.rows()).is_some());
        // the fragments hold the record, and not with a row to spare
        let width = u32::from(pointer.width);
        assert!(pointer.rows() * width >= u32::from(pointer.blocks));
        assert!((pointer.rows() - 1) * width < u32::from(pointer.blocks));
        assert!(pointer.physical_blocks() >= u64::from(pointer.blocks));
        // each checksum belongs to exactly one unit (copies share theirs)
        let mut next = 0;
        for column in 0..pointer.columns() {
            for unit in 0..pointer.units_per_column() {
                let sum = pointer.checksum(column, unit);
                if pointer.width > 1 || column == 0 {
                    assert_eq!(sum, pointer.checksums[next]);
                    next += 1;
                } else {
                    assert_eq!(sum, pointer.checksum(0, unit));
                }
            }
        }
        assert_eq!(next, pointer.checksums.len());
        true
    }

    fn header(row: u32, blocks: u16, width: u8, parity: u8) -> Vec<u8> {
        let mut bytes = vec![0; POINTER_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&row.to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        (bytes[18], bytes[19]) = (width, parity);
        bytes[20..22].copy_from_slice(&blocks.to_le_bytes());
        bytes
    }

    /// Bytes enough for the checksums of any shape: 2 + 253 columns of 128 blocks.
    const ENOUGH: usize = POINTER_HEADER_BYTES + 255 * 32 * 8;

    #[test]
    fn every_shape_is_decoded_or_refused() {
        for width in 0..=255u8 {
            for parity in (0..=255u8).step_by(5).chain([1, 2, 3, 254]) {
                for blocks in [0u16, 1, 3, 4, 5, 16, 17, 255, 256, 257, 32768, u16::MAX] {
                    let mut bytes = header(0, blocks, width, parity);
                    bytes.resize(ENOUGH, 0x5a);
                    let possible =
                        (1..=256).contains(&blocks) && width > 0 && usize::from(width) + usize::from(parity) <= 255;
                    assert_eq!(survives(&bytes), possible, "{blocks} blocks on {width}+{parity}");
                }
            }
        }
    }

    #[test]
    fn extents_end_within_the_possible_rows() {
        let with_row = |row| {
            let mut bytes = header(row, 8, 4, 0);
            bytes.resize(ENOUGH, 0);
            survives(&bytes)
        };
        assert!(with_row(u32::MAX - 2));
        assert!(!with_row(u32::MAX - 1));
        assert!(!with_row(u32::MAX));
    }

    #[test]
    fn unknown_features_are_told_from_damage() {
        for at in 20..32 {
            let mut bytes = header(0, 8, 4, 2);
            bytes[at] ^= 1;
            bytes.resize(ENOUGH, 0);
            assert_eq!(Pointer::decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
        }
    }

    #[test]
    fn units_that_are_not_there_are_not_mistaken_for_others() {
        let mut bytes = header(0, 20, 2, 1);
        bytes.resize(ENOUGH, 0);
        let (pointer, _) = Pointer::decode(&bytes).unwrap();
        assert_eq!((pointer.rows(), pointer.units_per_column(), pointer.columns()), (10, 3, 3));
        for (column, unit) in [(0, 3), (3, 0), (u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
            assert!(std::panic::catch_unwind(|| pointer.checksum(column, unit)).is_err());
        }
        let short = Pointer { checksums: pointer.checksums[1..].into(), ..pointer };
        assert!(std::panic::catch_unwind(|| short.encode(&mut Vec::new())).is_err());
    }

    fn any_pointer() -> impl Strategy<Value = Pointer> {
        let shape =
            (1..=256u16, 1..=255u8).prop_flat_map(|(blocks, width)| (Just(blocks), Just(width), 0..=255 - width));
        (shape, any::<u32>(), 0..u32::MAX - RECORD_BLOCKS_MAX, any::<u64>(), any::<u64>()).prop_map(
            |((blocks, width, parity), group, row, birth, seed)| {
                let count = Pointer::checksum_count(blocks, width, parity) as u64;
                let checksums = (1..=count).map(|i| seed.wrapping_mul(i)).collect();
                Pointer { group, row, birth, blocks, width, parity, checksums }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(pointer in any_pointer(), before in 0usize..9, after in 0usize..9) {
            let mut bytes = vec![1; before];
            pointer.encode(&mut bytes);
            let end = bytes.len();
            prop_assert_eq!(end, before + pointer.encoded_len());
            prop_assert!(Pointer::decode(&bytes[before..end - 1]).is_err());
            bytes.resize(end + after, 2);
            prop_assert_eq!(Pointer::decode(&bytes[before..]).unwrap(), (pointer, end - before));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            survives(&bytes);
        }

        #[test]
        fn damaged_pointers_are_decoded_or_refused(
            pointer in any_pointer(),
            damage in proptest::collection::vec((0..POINTER_HEADER_BYTES, any::<u8>()), 1..4),
            len in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            pointer.encode(&mut bytes);
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            survives(&bytes);
            survives(&bytes[..len.index(bytes.len())]);
        }
    }
}
