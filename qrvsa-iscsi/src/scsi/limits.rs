//! Limits of single commands, told in VPD page B0h and kept.

use super::unit::Shape;
use super::vpd::blocks32;

/// Longest transfer of one command, bytes. Bounds the memory that a command takes.
pub(crate) const TRANSFER_BYTES_MAX: u64 = 16 << 20;
/// Longest VERIFY that only reads, bytes.
pub(crate) const VERIFY_BYTES_MAX: u64 = 1 << 30;
/// Most blocks of COMPARE AND WRITE.
pub(crate) const COMPARE_BLOCKS_MAX: u8 = 255;
/// Most descriptors of one UNMAP.
pub(crate) const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// Most blocks given back by one UNMAP.
const UNMAP_BLOCKS_MAX: u32 = 1 << 20;
/// Most bytes that one WRITE SAME fills.
const WRITE_SAME_BYTES_MAX: u64 = TRANSFER_BYTES_MAX;
/// Bytes in a set of blocks that thin provisioning thresholds count.
pub(crate) const THRESHOLD_SET_BYTES: u64 = 1 << 20;
/// Work is done in pieces of so many bytes where the data need not be in memory as a whole.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;

/// Limits of one unit, in blocks.
pub(crate) struct Limits {
    pub transfer: u32,
    pub granularity: u16,
    pub unmap: u32,
    pub unmap_granularity: u32,
    pub write_same: u64,
    pub atomic: u32,
}

impl Limits {
    pub(crate) fn of(shape: &Shape) -> Self {
        let physical = 1u32 << shape.config.physical_block_exponent.min(15);
        let preferred = (shape.backing.preferred_bytes() / shape.block).max(physical);
        let granularity = match shape.config.optimal_granularity {
            0 => u16::try_from(preferred).unwrap_or(0),
            own => own,
        };
        let transfer = blocks32(TRANSFER_BYTES_MAX, shape.block);
        Self {
            transfer,
            granularity,
            unmap: UNMAP_BLOCKS_MAX,
            unmap_granularity: preferred,
            write_same: WRITE_SAME_BYTES_MAX / u64::from(shape.block),
            atomic: blocks32(shape.backing.atomic_bytes_max().min(TRANSFER_BYTES_MAX), shape.block).min(transfer),
        }
    }
}
