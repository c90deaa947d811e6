//! Where to cut a run of items into nodes.

use super::node::{CONTENT_BYTES_MAX, HEADER_BYTES, ItemRun};
use crate::buf::BLOCK_SIZE;

/// Content a new node is filled to, where there is a choice: what is left takes later inserts without a split.
pub(super) const FILL_BYTES: usize = CONTENT_BYTES_MAX / 10 * 9;

/// Content below which a node is merged with a neighbour: a quarter, which is also what fits in a single block.
pub(super) const UNDERFULL_BYTES: usize = BLOCK_SIZE - HEADER_BYTES;

/// Content of the last node of an appended run below which it is merged after all: it is going to grow.
const APPENDED_TAIL_BYTES: usize = CONTENT_BYTES_MAX / 16;

/// How the items of a run came together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// New items only behind all old ones: more will likely follow there, so nodes are filled from the front.
    Appended,
    /// Anything else: items are spread evenly. The number says how many nodes held them before; no further node is begun
    /// while that many suffice.
    Spread(usize),
}

/// The ends of the nodes a run is cut into, ascending; the last one is the run's length. Each node fits; none is empty.
pub(super) fn partition(run: &ItemRun, shape: Shape) -> Vec<usize> {
    let (len, total) = (run.len(), run.cost_all());
    if len == 0 {
        return Vec::new();
    }
    if total <= CONTENT_BYTES_MAX {
        return vec![len];
    }
    let (mut ends, tail_min) = match shape {
        Shape::Appended => (fill_from_front(run), APPENDED_TAIL_BYTES),
        Shape::Spread(nodes_before) => {
            let mut nodes = total.div_ceil(FILL_BYTES);
            if total <= nodes_before * (CONTENT_BYTES_MAX / 100 * 98) {
                nodes = nodes.min(nodes_before);
            }
            (spread(run, nodes), UNDERFULL_BYTES)
        }
    };
    mend_tail(run, &mut ends, tail_min);
    ends
}

fn fill_from_front(run: &ItemRun) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut start = 0;
    while start < run.len() {
        start = run.fit(start, FILL_BYTES);
        ends.push(start);
    }
    ends
}

/// Cuts so that each node gets its share of what is left, as nearly as the items allow.
fn spread(run: &ItemRun, nodes: usize) -> Vec<usize> {
    let len = run.len();
    let (mut ends, mut start, mut left) = (Vec::with_capacity(nodes + 1), 0, nodes);
    while start < len {
        let share = run.cost(start..len).div_ceil(left.max(1));
        let mut end = run.fit(start, share.min(CONTENT_BYTES_MAX));
        if end < len && left > 1 {
            let more = run.cost(start..end + 1);
            if more <= CONTENT_BYTES_MAX && more.abs_diff(share) < share.abs_diff(run.cost(start..end)) {
                end += 1;
            }
        }
        ends.push(end);
        start = end;
        left = left.saturating_sub(1);
    }
    ends
}

/// Merges or evens out the last two nodes if the last one is small.
fn mend_tail(run: &ItemRun, ends: &mut Vec<usize>, tail_min: usize) {
    let &[.., middle, end] = ends.as_slice() else { return };
    let start = ends.len().checked_sub(3).map_or(0, |i| ends[i]);
    if run.cost(middle..end) >= tail_min {
        return;
    }
    let total = run.cost(start..end);
    ends.truncate(ends.len() - 2);
    if total > CONTENT_BYTES_MAX {
        // The item across the middle goes to the side where the larger half stays smaller, so that both fit: the total
        // is at most a node and a quarter, and an item at most three eighths of a node.
        let below = run.fit(start, total / 2);
        let larger = |cut: usize| run.cost(start..cut).max(run.cost(cut..end));
        let cut = if below + 1 < end && larger(below + 1) < larger(below) { below + 1 } else { below };
        ends.push(cut);
    }
    ends.push(end);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Key, VALUE_BYTES_MAX};
    use super::*;

    fn run_of(sizes: &[usize]) -> ItemRun {
        let mut run = ItemRun::default();
        for (i, size) in sizes.iter().enumerate() {
            run.push(Key::new(0, 0, i as u64), &vec![0; *size]);
        }
        run
    }

    fn costs(run: &ItemRun, ends: &[usize]) -> Vec<usize> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(a, b)| run.cost(a..*b)).collect()
    }

    #[test]
    fn appended_runs_fill_nodes_from_the_front() {
        let run = run_of(&[40; 3000]);
        let costs = costs(&run, &partition(&run, Shape::Appended));
        assert!(costs.len() > 5);
        assert!(costs[..costs.len() - 1].iter().all(|c| *c > FILL_BYTES - 60 && *c <= FILL_BYTES));
    }

    #[test]
    fn rewritten_full_nodes_do_not_multiply() {
        let run = run_of(&[40; 540]);
        assert!(run.cost_all() > CONTENT_BYTES_MAX * 19 / 10);
        assert_eq!(partition(&run, Shape::Spread(2)).len(), 2);
        assert_eq!(partition(&run, Shape::Spread(1)).len(), 3);
    }

    proptest! {
        #[test]
        fn every_cut_fits(
            sizes in proptest::collection::vec(prop_oneof![0usize..100, 0..=VALUE_BYTES_MAX, 5000..=VALUE_BYTES_MAX], 1..200),
            before in 0usize..20,
            appended in any::<bool>(),
        ) {
            let run = run_of(&sizes);
            let ends = partition(&run, if appended { Shape::Appended } else { Shape::Spread(before) });
            prop_assert!(ends.is_sorted_by(|a, b| a < b) && ends[0] > 0);
            prop_assert_eq!(*ends.last().unwrap(), run.len());
            let costs = costs(&run, &ends);
            prop_assert!(costs.iter().all(|c| *c <= CONTENT_BYTES_MAX), "{:?}", costs);
            let (last, all) = (*costs.last().unwrap(), run.cost_all());
            let tail_min = if appended { APPENDED_TAIL_BYTES } else { UNDERFULL_BYTES };
            prop_assert!(costs.len() == 1 || last >= tail_min, "{:?}", costs);
            prop_assert!(costs.len() <= 2 + all * 2 / CONTENT_BYTES_MAX, "{:?}", costs);
        }
    }
}
