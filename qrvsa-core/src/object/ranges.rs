//! A normalised set of block ranges: disjoint, not touching, ascending. Holds the holes of a layer.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of block numbers, kept as maximal ranges.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct RangeSet {
    /// Start of a range to its end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Adds all of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Everything that starts at or before the end and ends at or after the start is swallowed.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < range.start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes all of `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.ranges.remove(&s);
            if e > range.end {
                self.ranges.insert(range.end, e);
            }
            if s < range.start {
                self.ranges.insert(s, range.start);
            }
        }
    }

    /// The end of the range that contains `block`, if one does.
    pub fn end_of(&self, block: u64) -> Option<u64> {
        self.ranges.range(..=block).next_back().map(|(_, &end)| end).filter(|&end| end > block)
    }

    /// Start of the first range that starts after `block`.
    pub fn next_start(&self, block: u64) -> Option<u64> {
        self.ranges.range(block + 1..).next().map(|(&start, _)| start)
    }

    /// Whether all of `range` is in the set.
    pub fn contains_range(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.end_of(range.start).is_some_and(|end| end >= range.end)
    }

    /// The parts of the set inside `range`, ascending.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let head = self.end_of(range.start).map(|end| range.start..end.min(range.end));
        let tail_from = range.start + 1;
        let tail = (tail_from < range.end).then(|| self.ranges.range(tail_from..range.end)).into_iter().flatten();
        let limit = range.end;
        head.into_iter().filter(|r| !r.is_empty()).chain(tail.map(move |(&s, &e)| s..e.min(limit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_a_set_of_numbers(ops in prop::collection::vec((any::<bool>(), 0u64..100, 0u64..30), 1..60)) {
            let mut set = RangeSet::default();
            let mut model = [false; 140];
            for (add, start, len) in ops {
                let range = start..start + len;
                if add { set.insert(range.clone()) } else { set.remove(range.clone()) }
                for b in range { model[b as usize] = add; }
                let mut previous = None;
                for r in set.iter() {
                    prop_assert!(r.start < r.end);
                    prop_assert!(previous.is_none_or(|p| p < r.start), "touching or out of order");
                    previous = Some(r.end);
                }
                for b in 0..139u64 {
                    let end = set.end_of(b);
                    prop_assert_eq!(end.is_some(), model[b as usize]);
                    if let Some(end) = end {
                        prop_assert!((b..end).all(|x| model[x as usize]) && !model[end as usize]);
                    }
                    prop_assert_eq!(set.contains_range(b..b + 1), model[b as usize]);
                }
                let mut seen = [false; 140];
                for r in set.within(20..77) {
                    prop_assert!(r.start >= 20 && r.end <= 77 && r.start < r.end);
                    for b in r { seen[b as usize] = true; }
                }
                for b in 20..77 { prop_assert_eq!(seen[b], model[b]); }
            }
        }
    }
}
