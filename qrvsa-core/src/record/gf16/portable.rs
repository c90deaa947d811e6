//! The matrix product in plain Rust, for processors without a kernel of their own.
//!
//! Look-up tables, indexed by the four nibbles of an element. An entry holds the products for all rows of a group, 16
//! bits each, side by side: one look-up serves up to four rows. The tables of one input take 512 bytes, so that those of
//! ordinary geometries stay in the first-level cache.

use std::ops::Range;

use super::GROUP_BYTES;

const HALF: usize = GROUP_BYTES / 2;
/// Elements whose sums are kept in registers.
const LANES: usize = 8;
/// Most rows that fit an entry.
const ROWS_MAX: usize = 4;
/// Bytes summed at a time, so that the sum stays in the first-level cache.
const SUM_STRIP_BYTES: usize = 2048;

/// What one input contributes to a group of up to four rows: for each nibble of an element, lowest first, the products
/// of its sixteen values, row i in bits 16 i to 16 i + 15.
pub struct Tables([[u64; 16]; 4]);

impl Tables {
    /// From the images of the sixteen input bits, row by row.
    pub fn new(rows: &[[u16; 16]]) -> Tables {
        assert!(rows.len() <= ROWS_MAX, "a group of rows");
        let image = |bit: usize| rows.iter().rev().fold(0, |entry, images| entry << 16 | u64::from(images[bit]));
        Tables(std::array::from_fn(|nibble| {
            std::array::from_fn(|value| {
                (0..4).filter(|bit| value >> bit & 1 != 0).fold(0, |sum, bit| sum ^ image(nibble * 4 + bit))
            })
        }))
    }

    #[inline(always)]
    fn products(&self, low: u8, high: u8) -> u64 {
        let [a, b, c, d] = &self.0;
        a[usize::from(low & 15)] ^ b[usize::from(low >> 4)] ^ c[usize::from(high & 15)] ^ d[usize::from(high >> 4)]
    }
}

/// Writes a group of rows of the product over a range of whole groups of elements. One table per source.
pub fn product(tables: &[Tables], sources: &[&[u8]], outputs: &mut [&mut [u8]], range: Range<usize>) {
    for group in range.step_by(GROUP_BYTES) {
        for at in (group..group + HALF).step_by(LANES) {
            let mut sums = [0u64; LANES];
            for (source, tables) in sources.iter().zip(tables) {
                let (low, high) = (&source[at..at + LANES], &source[at + HALF..at + HALF + LANES]);
                for (sum, (low, high)) in sums.iter_mut().zip(low.iter().zip(high)) {
                    *sum ^= tables.products(*low, *high);
                }
            }
            for (row, output) in outputs.iter_mut().enumerate() {
                let element = |sum: u64| ((sum >> (16 * row)) as u16).to_le_bytes();
                output[at..at + LANES].copy_from_slice(&sums.map(|sum| element(sum)[0]));
                output[at + HALF..at + HALF + LANES].copy_from_slice(&sums.map(|sum| element(sum)[1]));
            }
        }
    }
}

/// Writes the plain sum of the sources over a range.
pub fn sum(sources: &[&[u8]], output: &mut [u8], range: Range<usize>) {
    for start in range.clone().step_by(SUM_STRIP_BYTES) {
        let strip = start..range.end.min(start + SUM_STRIP_BYTES);
        let output = &mut output[strip.clone()];
        let (first, rest) = sources.split_first().expect("a matrix has a column");
        output.copy_from_slice(&first[strip.clone()]);
        for source in rest {
            for (out, byte) in output.iter_mut().zip(&source[strip.clone()]) {
                *out ^= byte;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_hold_the_rows_side_by_side() {
        let rows: Vec<[u16; 16]> = (0..3).map(|row| std::array::from_fn(|bit| 0x1001 * row + bit as u16)).collect();
        let tables = Tables::new(&rows);
        assert_eq!(tables.products(0, 0), 0);
        // bits 1, 4 and 15 are set in 0x8012
        let expected = rows.iter().rev().fold(0, |entry, r| entry << 16 | u64::from(r[1] ^ r[4] ^ r[15]));
        assert_eq!(tables.products(0x12, 0x80), expected);
    }
}
