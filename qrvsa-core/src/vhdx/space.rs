//! Which mebibytes of the file are taken. Built from the table when an image is first changed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::format::MIB;

/// Longest file that is changed, in mebibytes: twice the largest disk. Bounds the memory (16 MiB).
pub const FILE_MIB_MAX: u64 = 128 << 20;

/// A map of the file, one bit per mebibyte, and the gaps that can be used.
#[derive(Default)]
pub struct SpaceMap {
    taken: Vec<u64>,
    /// Mebibytes behind the last taken one are free.
    end: u64,
    /// Gaps below `end`: start and length.
    gaps: BTreeMap<u64, u64>,
    /// What lies before may hold old bytes.
    fresh_from: u64,
}

impl SpaceMap {
    /// An empty map of a file of so many bytes.
    pub fn new(file_length: u64) -> SpaceMap {
        SpaceMap { fresh_from: file_length.div_ceil(MIB), ..SpaceMap::default() }
    }

    fn is_taken(&self, mib: u64) -> bool {
        let word = usize::try_from(mib / 64).ok().and_then(|i| self.taken.get(i)).copied().unwrap_or(0);
        word >> (mib % 64) & 1 != 0
    }

    /// Notes that the run is taken; `Err` with the first mebibyte that was so already. Nothing is noted then.
    pub fn take(&mut self, run: Range<u64>) -> Result<(), u64> {
        debug_assert!(run.end <= FILE_MIB_MAX);
        if let Some(taken) = run.clone().find(|mib| self.is_taken(*mib)) {
            return Err(taken);
        }
        let words = (run.end.div_ceil(64)) as usize;
        if self.taken.len() < words {
            self.taken.resize(words.next_power_of_two(), 0);
        }
        for mib in run.clone() {
            self.taken[(mib / 64) as usize] |= 1 << (mib % 64);
        }
        self.end = self.end.max(run.end);
        Ok(())
    }

    /// Finds the gaps, once everything is noted.
    pub fn find_gaps(&mut self) {
        self.gaps.clear();
        let mut start = None;
        for mib in 0..self.end {
            match (self.is_taken(mib), start) {
                (false, None) => start = Some(mib),
                (true, Some(from)) => {
                    self.gaps.insert(from, mib - from);
                    start = None;
                }
                _ => {}
            }
        }
    }

    /// A free run of `length` mebibytes, noted as taken, and whether it may hold old bytes. Behind the last taken mebibyte
    /// if no gap is large enough; `None` at the limit of the file's length.
    pub fn allocate(&mut self, length: u64) -> Option<(u64, bool)> {
        let gap = self.gaps.iter().find(|(_, len)| **len >= length).map(|(start, len)| (*start, *len));
        let start = match gap {
            Some((start, len)) => {
                self.gaps.remove(&start);
                if len > length {
                    self.gaps.insert(start + length, len - length);
                }
                start
            }
            None => self.end,
        };
        let end = start.checked_add(length).filter(|end| *end <= FILE_MIB_MAX)?;
        self.take(start..end).ok()?;
        Some((start, start < self.fresh_from))
    }

    /// Gives a run back.
    pub fn release(&mut self, run: Range<u64>) {
        for mib in run.clone() {
            if let Some(word) = self.taken.get_mut((mib / 64) as usize) {
                *word &= !(1 << (mib % 64));
            }
        }
        self.fresh_from = self.fresh_from.max(run.end);
        let (mut start, mut end) = (run.start, run.end);
        if let Some((before, len)) = self.gaps.range(..start).next_back().map(|(s, l)| (*s, *l))
            && before + len == start
        {
            start = before;
            self.gaps.remove(&before);
        }
        if let Some(len) = self.gaps.remove(&end) {
            end += len;
        }
        if end >= self.end {
            self.end = start;
        } else {
            self.gaps.insert(start, end - start);
        }
    }

    /// The first mebibyte behind everything taken.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Mebibytes taken.
    pub fn taken(&self) -> u64 {
        self.end - self.gaps.values().sum::<u64>()
    }
}

/// The mebibytes that a run of bytes touches.
pub fn mebibytes(offset: u64, length: u64) -> Range<u64> {
    offset / MIB..offset.saturating_add(length).div_ceil(MIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gaps_are_used_before_the_end() {
        let mut map = SpaceMap::new(8 << 20);
        map.take(0..3).unwrap();
        map.take(5..8).unwrap();
        assert_eq!(map.take(7..9), Err(7));
        map.find_gaps();
        assert_eq!(map.allocate(3), Some((8, false)));
        assert_eq!(map.allocate(2), Some((3, true)));
        assert_eq!(map.allocate(1), Some((11, false)));
        map.release(5..8);
        map.release(3..5);
        assert_eq!(map.taken(), 7);
        assert_eq!(map.allocate(5), Some((3, true)));
        map.release(8..12);
        assert_eq!(map.end(), 8);
        assert_eq!(map.allocate(5), Some((8, true)), "the old end is not fresh");
        assert_eq!(map.allocate(FILE_MIB_MAX), None);
    }

    proptest! {
        #[test]
        fn no_mebibyte_has_two_owners(steps in proptest::collection::vec((1u64..9, any::<u8>()), 1..200)) {
            let mut map = SpaceMap::new(0);
            let mut owned: Vec<Range<u64>> = Vec::new();
            for (length, pick) in steps {
                if pick % 3 == 0 && !owned.is_empty() {
                    map.release(owned.swap_remove(usize::from(pick) % owned.len()));
                    continue;
                }
                let (start, _) = map.allocate(length).unwrap();
                let run = start..start + length;
                prop_assert!(owned.iter().all(|o| o.end <= run.start || run.end <= o.start));
                owned.push(run);
                prop_assert_eq!(map.taken(), owned.iter().map(|o| o.end - o.start).sum::<u64>());
                prop_assert_eq!(map.end(), owned.iter().map(|o| o.end).max().unwrap());
            }
        }
    }
}
