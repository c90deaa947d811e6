//! Where things lie on a device.
//!
//! ```text
//!        0  reserved, zero                64 KiB
//!   64 KiB  label A                        4 KiB
//!  128 KiB  label B                        4 KiB
//!  256 KiB  uberblock ring, 32 slots of 32 KiB
//!    4 MiB  zones
//!  end-128 KiB  label C                    4 KiB
//!  end-64 KiB   label D                    4 KiB
//! ```

/// Bytes of a label.
pub const LABEL_BYTES: usize = 4096;
/// First byte of the uberblock ring.
pub const RING_OFFSET: u64 = 256 << 10;
/// Slots in the ring.
pub const RING_SLOTS: u64 = 32;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 32 << 10;
/// First byte of the first zone.
pub const DATA_START: u64 = 4 << 20;
/// Bytes kept at the end for labels.
pub const TAIL_BYTES: u64 = 1 << 20;
/// Smallest and largest zone, log2 of bytes.
pub const ZONE_SHIFT_MIN: u8 = 22;
/// Largest zone, log2 of bytes.
pub const ZONE_SHIFT_MAX: u8 = 28;
/// A device needs at least this many zones.
pub const ZONES_MIN: u32 = 12;

/// Smallest device in bytes.
pub const DEVICE_BYTES_MIN: u64 = DATA_START + TAIL_BYTES + ((ZONES_MIN as u64) << ZONE_SHIFT_MIN);

/// Offsets of the four labels on a device of `size` bytes (a multiple of 4 KiB, at least the minimum).
pub fn label_offsets(size: u64) -> [u64; 4] {
    [64 << 10, 128 << 10, size - (128 << 10), size - (64 << 10)]
}

/// Zones on a device of `size` bytes.
pub fn zone_count(size: u64, zone_shift: u8) -> u32 {
    u32::try_from(size.saturating_sub(DATA_START + TAIL_BYTES) >> zone_shift).unwrap_or(u32::MAX)
}

/// First byte of a zone.
pub fn zone_offset(zone: u32, zone_shift: u8) -> u64 {
    DATA_START + (u64::from(zone) << zone_shift)
}

/// The zone size for a pool whose smallest device has `size` bytes: about 512 zones, within the limits.
pub fn choose_zone_shift(size: u64) -> u8 {
    let target = (size / 512).max(1);
    let shift = u8::try_from(target.ilog2()).unwrap_or(ZONE_SHIFT_MAX);
    shift.clamp(ZONE_SHIFT_MIN, ZONE_SHIFT_MAX)
}

/// Offset of the slot for a transaction group.
pub fn slot_offset(txg: u64) -> u64 {
    RING_OFFSET + (txg % RING_SLOTS) * SLOT_BYTES as u64
}
