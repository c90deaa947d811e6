//! LUN fields of 8 bytes (SAM-5 4.6) and numbers.

/// Numbers beyond this have no single-level address.
pub(crate) const LUN_MAX: u64 = (1 << 14) - 1;

/// The number in a LUN field: peripheral device addressing on bus 0, or flat space addressing.
pub(crate) fn decode(field: [u8; 8]) -> Option<u64> {
    let [a, b, rest @ ..] = field;
    if rest != [0; 6] {
        return None;
    }
    match a >> 6 {
        0 if a == 0 => Some(u64::from(b)),
        1 => Some(u64::from(a & 0x3f) << 8 | u64::from(b)),
        _ => None,
    }
}

/// The LUN field of a number of at most [`LUN_MAX`].
pub(crate) fn encode(lun: u64) -> [u8; 8] {
    let [high, low] = u16::try_from(lun.min(LUN_MAX)).unwrap_or(0).to_be_bytes();
    let high = if high == 0 { 0 } else { high | 0x40 };
    [high, low, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_deep_addresses_are_refused() {
        for lun in [0, 1, 255, 256, 257, LUN_MAX] {
            assert_eq!(decode(encode(lun)), Some(lun));
        }
        assert_eq!(decode([0x40, 5, 0, 0, 0, 0, 0, 0]), Some(5), "flat addressing of a low number");
        assert_eq!(decode([1, 5, 0, 0, 0, 0, 0, 0]), None, "another bus");
        assert_eq!(decode([0, 5, 0, 1, 0, 0, 0, 0]), None, "a second level");
        assert_eq!(decode([0xc1, 1, 0, 0, 0, 0, 0, 0]), None, "well-known units");
    }
}
