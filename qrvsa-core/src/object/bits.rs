//! A set of the blocks of one slot: 256 bits, as a slot has at most 256 blocks.

use std::ops::{BitAnd, BitOr, BitOrAssign, Not, Range};

/// Most blocks in one slot.
pub(super) const SLOT_BLOCKS_MAX: usize = 256;

/// A set of block numbers below [`SLOT_BLOCKS_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Bits([u64; SLOT_BLOCKS_MAX / 64]);

impl Bits {
    pub const EMPTY: Bits = Bits([0; SLOT_BLOCKS_MAX / 64]);

    /// All numbers in `range`.
    pub fn range(range: Range<usize>) -> Bits {
        assert!(range.end <= SLOT_BLOCKS_MAX);
        let mut bits = Bits::EMPTY;
        for (word, base) in bits.0.iter_mut().zip((0..).step_by(64)) {
            let (low, high) = (range.start.max(base), range.end.min(base + 64));
            if low < high {
                *word = (u64::MAX >> (64 - (high - low))) << (low - base);
            }
        }
        bits
    }

    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; SLOT_BLOCKS_MAX / 64]
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether every number of `other` is in this set.
    pub fn contains_all(&self, other: Bits) -> bool {
        (other & !*self).is_empty()
    }

    pub fn intersects(&self, other: Bits) -> bool {
        !(*self & other).is_empty()
    }

    /// The smallest member that is at least `from`.
    pub fn next_set(&self, from: usize) -> Option<usize> {
        if from >= SLOT_BLOCKS_MAX {
            return None;
        }
        let mut word = from / 64;
        let mut rest = self.0[word] & (u64::MAX << (from % 64));
        loop {
            if rest != 0 {
                return Some(word * 64 + rest.trailing_zeros() as usize);
            }
            word += 1;
            rest = *self.0.get(word)?;
        }
    }

    /// The smallest number from `from` on that is not a member; [`SLOT_BLOCKS_MAX`] if there is none.
    pub fn next_clear(&self, from: usize) -> usize {
        (!*self).next_set(from).unwrap_or(SLOT_BLOCKS_MAX)
    }

    /// The maximal runs of members, ascending.
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next_set(at)?;
            at = self.next_clear(start);
            Some(start..at)
        })
    }
}

impl BitAnd for Bits {
    type Output = Bits;
    fn bitand(self, other: Bits) -> Bits {
        Bits(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}

impl BitOr for Bits {
    type Output = Bits;
    fn bitor(self, other: Bits) -> Bits {
        Bits(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

impl BitOrAssign for Bits {
    fn bitor_assign(&mut self, other: Bits) {
        *self = *self | other;
    }
}

impl Not for Bits {
    type Output = Bits;
    fn not(self) -> Bits {
        Bits(self.0.map(|w| !w))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_every_length_and_place() {
        for start in 0..=SLOT_BLOCKS_MAX {
            for end in start..=SLOT_BLOCKS_MAX {
                let bits = Bits::range(start..end);
                assert_eq!(bits.count(), end - start);
                let runs: Vec<_> = bits.runs().collect();
                if start == end {
                    assert!(runs.is_empty() && bits.is_empty());
                } else {
                    assert_eq!(runs, vec![start..end]);
                    assert!(bits.contains(start) && bits.contains(end - 1));
                    assert_eq!(bits.next_clear(start), end);
                }
            }
        }
    }

    #[test]
    fn set_algebra() {
        let a = Bits::range(10..200);
        let b = Bits::range(60..70);
        assert_eq!((a & !b).runs().collect::<Vec<_>>(), vec![10..60, 70..200]);
        assert!(a.contains_all(b) && !b.contains_all(a) && a.intersects(b));
        assert_eq!((a & !b) | b, a);
        assert_eq!(a.next_set(0), Some(10));
        assert_eq!(a.next_set(200), None);
    }
}
