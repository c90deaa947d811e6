//! How one slot is rewritten: from its existing extents, the holes and the dirty blocks of a layer to the runs that
//! become new records and the extents that go.
//!
//! A pure function, used twice: at write time to know what the sync of the slot will cost at most (the reservation), and
//! at sync time to do it. Both see the same inputs, so the reservation is exact.
//!
//! Rules:
//! - present are the dirty blocks and the blocks of existing extents that no hole masks (a dirty block wins over a hole);
//! - every maximal run of present blocks becomes one record, so that a slot never gathers small extents over time;
//! - a run without a dirty block and without an extent that a hole touched stays as it is;
//! - more than [`RUNS_MAX`] runs are joined over the smallest gaps; the blocks of those gaps become zero data.

use std::ops::Range;

use super::bits::Bits;

/// Most runs in one slot.
pub(super) const RUNS_MAX: usize = 8;

/// A run of blocks in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// First block, counted from the start of the slot.
    pub first: u16,
    /// Number of blocks, at least 1.
    pub blocks: u16,
}

impl Span {
    pub fn from_range(range: Range<usize>) -> Span {
        debug_assert!(range.start < range.end && range.end <= super::bits::SLOT_BLOCKS_MAX);
        Span { first: range.start as u16, blocks: (range.end - range.start) as u16 }
    }

    pub fn range(self) -> Range<usize> {
        usize::from(self.first)..usize::from(self.first) + usize::from(self.blocks)
    }

    pub fn bits(self) -> Bits {
        Bits::range(self.range())
    }
}

/// What the sync of a slot does.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// Runs to write as one record each, ascending.
    pub runs: Vec<Span>,
    /// Indices of the existing extents that go, ascending.
    pub replaced: Vec<usize>,
}

/// Calls `each` with every run of the slot as it will be, ascending, and whether it has to be written.
fn lay_out(existing: &[Span], holes: Bits, dirty: Bits, mut each: impl FnMut(Range<usize>, bool)) {
    let changed = dirty | holes;
    let (mut present, mut seeds) = (dirty, dirty);
    for span in existing {
        let bits = span.bits();
        let kept = bits & !changed;
        present |= kept;
        if bits.intersects(changed) {
            seeds |= kept;
        }
    }

    // A slot has at most 128 separate runs.
    let mut runs = [(0usize, 0usize); super::bits::SLOT_BLOCKS_MAX / 2];
    let mut count = 0;
    for run in present.runs() {
        runs[count] = (run.start, run.end);
        count += 1;
    }
    let runs = &runs[..count];
    let mut joined = [false; super::bits::SLOT_BLOCKS_MAX / 2];
    if count > RUNS_MAX {
        let mut gaps = [(0usize, 0usize); super::bits::SLOT_BLOCKS_MAX / 2];
        for (i, pair) in runs.windows(2).enumerate() {
            gaps[i] = (pair[1].0 - pair[0].1, i);
        }
        let gaps = &mut gaps[..count - 1];
        gaps.sort_unstable();
        for &(_, i) in &gaps[..count - RUNS_MAX] {
            joined[i] = true;
        }
    }
    let mut at = 0;
    while at < count {
        let mut last = at;
        while joined[last] {
            last += 1;
        }
        let range = runs[at].0..runs[last].1;
        let write = last > at || Bits::range(range.clone()).intersects(seeds);
        each(range, write);
        at = last + 1;
    }
}

/// Plans the sync of a slot. `existing` is ascending and does not overlap.
pub(super) fn plan(existing: &[Span], holes: Bits, dirty: Bits) -> Plan {
    let mut runs = Vec::new();
    let mut gone = dirty | holes;
    lay_out(existing, holes, dirty, |range, write| {
        if write {
            gone |= Bits::range(range.clone());
            runs.push(Span::from_range(range));
        }
    });
    let replaced = (0..existing.len()).filter(|&i| existing[i].bits().intersects(gone)).collect();
    Plan { runs, replaced }
}

/// The extents of the slot after the plan has been carried out.
pub(super) fn outcome(existing: &[Span], holes: Bits, dirty: Bits) -> Vec<Span> {
    let Plan { mut runs, replaced } = plan(existing, holes, dirty);
    runs.extend(existing.iter().enumerate().filter(|(i, _)| !replaced.contains(i)).map(|(_, &span)| span));
    runs.sort_unstable_by_key(|span| span.first);
    runs
}

/// What carrying out the plan costs, with the cost of a record of n blocks given.
pub(super) fn cost(existing: &[Span], holes: Bits, dirty: Bits, record_cost: impl Fn(u32) -> u64) -> u64 {
    let mut total = 0;
    lay_out(existing, holes, dirty, |range, write| {
        if write {
            total += record_cost(range.len() as u32);
        }
    });
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(first: u16, blocks: u16) -> Span {
        Span { first, blocks }
    }

    fn bits(ranges: &[(usize, usize)]) -> Bits {
        ranges.iter().fold(Bits::EMPTY, |all, &(start, end)| all | Bits::range(start..end))
    }

    #[test]
    fn fresh_slot() {
        assert_eq!(plan(&[], Bits::EMPTY, bits(&[(0, 32)])), Plan { runs: vec![span(0, 32)], replaced: vec![] });
    }

    #[test]
    fn overwrite_inside_an_extent_rewrites_it() {
        assert_eq!(
            plan(&[span(0, 32)], Bits::EMPTY, bits(&[(5, 6)])),
            Plan { runs: vec![span(0, 32)], replaced: vec![0] }
        );
    }

    #[test]
    fn separate_extent_stays() {
        assert_eq!(
            plan(&[span(0, 4), span(20, 4)], Bits::EMPTY, bits(&[(10, 12)])),
            Plan { runs: vec![span(10, 2)], replaced: vec![] }
        );
        // A hole in one extent does not touch the other.
        assert_eq!(
            plan(&[span(0, 4), span(20, 4)], bits(&[(21, 22)]), Bits::EMPTY),
            Plan { runs: vec![span(20, 1), span(22, 2)], replaced: vec![1] }
        );
    }

    #[test]
    fn adjacent_extent_is_joined() {
        assert_eq!(
            plan(&[span(0, 4)], Bits::EMPTY, bits(&[(4, 6)])),
            Plan { runs: vec![span(0, 6)], replaced: vec![0] }
        );
    }

    #[test]
    fn punched_extent_is_only_freed() {
        assert_eq!(
            plan(&[span(0, 4), span(8, 4)], bits(&[(0, 5)]), Bits::EMPTY),
            Plan { runs: vec![], replaced: vec![0] }
        );
        assert_eq!(
            plan(&[span(0, 4)], bits(&[(0, 32)]), bits(&[(1, 2)])),
            Plan { runs: vec![span(1, 1)], replaced: vec![0] }
        );
    }

    #[test]
    fn many_runs_are_joined_over_the_smallest_gaps() {
        // Ten one-block runs, gaps 1 between the first three, 2 elsewhere.
        let dirty = bits(&[(0, 1), (2, 3), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (19, 20), (22, 23), (25, 26)]);
        let plan = plan(&[], Bits::EMPTY, dirty);
        assert_eq!(plan.runs.len(), RUNS_MAX);
        assert_eq!(plan.runs[0], span(0, 5));
        // An untouched extent that gets joined is rewritten.
        let existing: Vec<Span> = (0..8).map(|i| span(i * 4, 1)).collect();
        let plan = super::plan(&existing, Bits::EMPTY, bits(&[(2, 3)]));
        assert_eq!(plan.runs, vec![span(0, 3)]);
        assert_eq!(plan.replaced, vec![0]);
    }

    proptest! {
        #[test]
        fn keeps_what_is_present_and_nothing_masked(
            cuts in prop::collection::vec((0usize..12, 1usize..12), 0..12),
            holes in prop::collection::vec((0usize..64, 1usize..10), 0..6),
            dirty in prop::collection::vec((0usize..64, 1usize..4), 0..20),
        ) {
            let mut existing = Vec::new();
            let mut at = 0;
            for (gap, len) in cuts {
                at += gap;
                if at + len > 64 { break; }
                existing.push(Span::from_range(at..at + len));
                at += len;
            }
            let of = |list: &[(usize, usize)]| list.iter().fold(Bits::EMPTY, |b, &(s, n)| b | Bits::range(s..(s + n).min(64)));
            let (holes, dirty) = (of(&holes), of(&dirty));
            let plan = plan(&existing, holes, dirty);
            let before = existing.iter().fold(Bits::EMPTY, |b, s| b | s.bits());
            let after = outcome(&existing, holes, dirty);
            let after_bits = after.iter().fold(Bits::EMPTY, |b, s| b | s.bits());
            prop_assert_eq!(after.iter().map(|s| usize::from(s.blocks)).sum::<usize>(), after_bits.count(), "overlap");
            let present = dirty | (before & !holes);
            prop_assert!(after_bits.contains_all(present));
            if present.runs().count() <= RUNS_MAX {
                prop_assert_eq!(after_bits, present);
            }
            prop_assert!(after_bits.runs().count() <= RUNS_MAX);
            // What stays holds no changed block.
            for (i, span) in existing.iter().enumerate() {
                if !plan.replaced.contains(&i) {
                    prop_assert!(!span.bits().intersects(holes | dirty));
                }
            }
            // Carrying nothing out again changes nothing.
            let again = super::plan(&after, Bits::EMPTY, Bits::EMPTY);
            prop_assert!(again.runs.is_empty() && again.replaced.is_empty());
            let total: u64 = plan.runs.iter().map(|s| 3 + u64::from(s.blocks)).sum();
            prop_assert_eq!(cost(&existing, holes, dirty, |n| 3 + u64::from(n)), total);
        }
    }
}
