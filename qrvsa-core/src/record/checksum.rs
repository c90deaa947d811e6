//! The checksum of everything on disk: CRC-64/NVME.
//!
//! Chosen because with carry-less multiplication it runs near the speed of memory (about 60 GB/s in cache), and because
//! as a CRC it finds every burst of up to 64 flipped bits. It guards against faults, not against forgers.
//! The start value is not zero, so a block of zeros does not have the checksum zero.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-64/NVME of `bytes`.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

/// The CRC-64/NVME of the concatenation of `parts`, without concatenating them.
pub fn checksum_parts(parts: &[&[u8]]) -> u64 {
    match parts {
        [] => checksum(&[]),
        [one] => checksum(one),
        _ => {
            let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
            for part in parts {
                digest.update(part);
            }
            digest.finalize()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bit by bit, from the definition in the NVM Express command set specification: polynomial 0xad93d23594c93659,
    /// reflected, start value and final XOR all ones.
    fn model(bytes: &[u8]) -> u64 {
        let mut crc = u64::MAX;
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ 0xad93_d235_94c9_3659u64.reverse_bits() } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn has_the_check_value_of_the_standard() {
        assert_eq!(checksum(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(checksum_parts(&[b"1234", b"", b"56789"]), 0xae8b_1486_0a79_9888);
        assert_eq!(checksum(&[]), 0);
        assert_eq!(checksum_parts(&[]), 0);
        assert_ne!(checksum(&[0; 4096]), 0);
        assert_ne!(checksum(&[0; 4096]), checksum(&[0; 8192]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equals_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..3000), cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..5)) {
            let expected = model(&bytes);
            prop_assert_eq!(checksum(&bytes), expected);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut start = 0;
            let mut parts = Vec::new();
            for cut in cuts {
                parts.push(&bytes[start..cut]);
                start = cut;
            }
            prop_assert_eq!(checksum_parts(&parts), expected);
        }
    }
}
