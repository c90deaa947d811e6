//! Punching holes into the open layer, which is also how contents are truncated.
//!
//! Only the first and the last slot of the range are looked at: what lies between is dropped from the layer and masked by
//! one range, however long. A slot that is punched in part gets an entry even if nothing in it is dirty: it holds the
//! reservation for writing the rest of a record anew.

use std::ops::Range;

use super::Objects;
use super::bits::Bits;
use super::layer::{BLOCK, BLOCKS_END, Cover, Layer, Shape, State};
use super::slot::DirtySlot;
use super::write::Known;
use crate::buf::BLOCK_SIZE;
use crate::error::Result;
use crate::item::{Intent, ObjectRef};

/// A punch, cut up.
struct Cut {
    /// Blocks that become holes.
    whole: Range<u64>,
    /// Blocks of which some bytes become zero, and which bytes.
    edges: Vec<(u64, Range<usize>)>,
    /// Slots that are changed in part.
    slots: Vec<u64>,
    /// Slots that are covered as a whole.
    covered: Range<u64>,
}

fn cut(shape: Shape, range: &Range<u64>) -> Cut {
    let limit = BLOCKS_END * BLOCK;
    let (start, end) = (range.start.min(limit), range.end.min(limit));
    let first = start.div_ceil(BLOCK);
    let whole = first..(end / BLOCK).max(first);
    let mut edges = Vec::new();
    if !start.is_multiple_of(BLOCK) {
        let block = start / BLOCK;
        edges.push((block, (start % BLOCK) as usize..(end - block * BLOCK).min(BLOCK) as usize));
    }
    if !end.is_multiple_of(BLOCK) && edges.first().is_none_or(|(b, _)| *b != end / BLOCK) {
        edges.push((end / BLOCK, 0..(end % BLOCK) as usize));
    }
    let covered = whole.start.div_ceil(shape.slot_blocks)..whole.end / shape.slot_blocks;
    let covered = covered.start..covered.end.max(covered.start);
    let mut slots: Vec<u64> = edges.iter().map(|(b, _)| shape.slot(*b)).collect();
    if !whole.is_empty() {
        slots.extend([shape.slot(whole.start), shape.slot(whole.end - 1)]);
    }
    slots.retain(|s| !covered.contains(s));
    slots.sort_unstable();
    slots.dedup();
    Cut { whole, edges, slots, covered }
}

impl Objects {
    /// Makes a byte range read as zeros, under a transaction of `txg`: whole blocks become holes, parts of blocks are
    /// zeroed where they hold data. `range.end` may be `u64::MAX` for "to the end". All or nothing.
    ///
    /// # Errors
    /// `Io`, `Corrupt` (reading a partly zeroed block), `NoSpace` (even the pool's reserve does not hold the rest of a
    /// record that is punched in part), `Suspended`.
    pub fn punch(&self, txg: u64, object: ObjectRef, range: Range<u64>) -> Result<()> {
        let shape = Shape::of(object)?;
        self.check_running()?;
        if range.start >= range.end {
            return Ok(());
        }
        let cut = cut(shape, &range);
        let touched = range.start / BLOCK..range.end.div_ceil(BLOCK).min(BLOCKS_END);
        if touched.is_empty() {
            return Ok(());
        }
        // Nothing there, nothing to do: most truncations of new or growing files.
        if self.find(object.id).is_none() && self.first_extent_block(object, shape, touched)?.is_none() {
            return Ok(());
        }
        let edges: Vec<u64> = cut.edges.iter().map(|(b, _)| *b).collect();
        let mut known = Known::default();
        loop {
            let found = self.find_or_insert(object, shape)?;
            let mut state = found.state.lock();
            if state.dead {
                continue;
            }
            state.switch_to(txg);
            let done = if self.knows(&found, &state, &known, &edges, &cut.slots) {
                let done = self.punch_open(txg, shape, &mut state, &known, &cut);
                drop(state);
                Some(done)
            } else {
                drop(state);
                self.learn(object, shape, &mut known, &edges, &cut.slots).err().map(Err)
            };
            if let Some(done) = done {
                self.forget_if_clean(&found);
                return done;
            }
        }
    }

    /// Prices, reserves and does a punch.
    fn punch_open(&self, txg: u64, shape: Shape, state: &mut State, known: &Known, cut: &Cut) -> Result<()> {
        let State { open, syncing, .. } = state;
        let layer = open.get_or_insert_with(|| Layer::new(txg));
        let record_cost = |blocks| self.io.cost_blocks(blocks);

        let (mut more, mut less) = (0, 0);
        let mut priced = Vec::with_capacity(cut.slots.len());
        for &slot in &cut.slots {
            let punched = Bits::range(shape.clip(slot, &cut.whole));
            let holes = layer.hole_bits(shape, slot) | punched;
            let mut added = Bits::EMPTY;
            for (block, _) in cut.edges.iter().filter(|(b, _)| shape.slot(*b) == slot) {
                let below = matches!(layer.cover(shape, *block), Cover::Below { .. });
                if below && known.base(*block).is_some() {
                    let block = shape.in_slot(*block);
                    added |= Bits::range(block..block + 1);
                }
            }
            let (cost, old, below) = match layer.slots.get(&slot) {
                Some(entry) => {
                    (entry.below.cost(holes, (entry.dirty & !punched) | added, record_cost), entry.reserved, None)
                }
                None => {
                    let below = known.below(slot, shape, syncing.as_ref());
                    (below.cost(holes, added, record_cost), 0, Some(below))
                }
            };
            more += cost.saturating_sub(old);
            less += old.saturating_sub(cost);
            priced.push((slot, punched, added, cost, below));
        }
        less += layer.slots.range(cut.covered.clone()).map(|(_, entry)| entry.reserved).sum::<u64>();
        if more > less {
            self.io.reserve(more - less, Intent::Shrink)?;
        }

        let (mut memory_before, mut memory_after) = (layer.holes_memory(), 0);
        // Taken out in ascending order; a layer may hold very many slots outside the range.
        while let Some((&slot, _)) = layer.slots.range(cut.covered.clone()).next() {
            memory_before += layer.slots.remove(&slot).map_or(0, |entry| entry.memory());
        }
        for (slot, punched, added, cost, below) in priced {
            if below.as_ref().is_some_and(|below| below.is_empty() && added.is_empty()) {
                continue;
            }
            let entry = layer
                .slots
                .entry(slot)
                .and_modify(|entry| memory_before += entry.memory())
                .or_insert_with(|| DirtySlot::new(below.unwrap_or_default()));
            entry.punch(punched);
            for (block, bytes) in cut.edges.iter().filter(|(b, _)| shape.slot(*b) == slot) {
                let in_slot = shape.in_slot(*block);
                if added.contains(in_slot) {
                    entry.set_block(shape.blocks(), in_slot, known.base(*block));
                }
                if entry.dirty.contains(in_slot) {
                    entry.write(shape.blocks(), in_slot * BLOCK_SIZE + bytes.start, &[0; BLOCK_SIZE][bytes.clone()]);
                }
            }
            entry.reserved = cost;
            if !entry.unlogged.is_empty() {
                layer.unlogged_slots.insert(slot);
            }
            memory_after += entry.memory();
        }
        layer.holes.insert(cut.whole.clone());
        layer.unlogged_holes.insert(cut.whole.clone());
        memory_after += layer.holes_memory();
        if less > more {
            self.io.release(less - more);
        }
        self.account(memory_before, memory_after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts() {
        let shape = Shape { slot_blocks: 4 };
        let c = cut(shape, &(100..200));
        assert_eq!(
            (c.whole.is_empty(), c.edges, c.slots, c.covered.is_empty()),
            (true, vec![(0, 100..200)], vec![0], true)
        );
        let c = cut(shape, &(4095..4096 * 9 + 1));
        assert_eq!(c.edges, vec![(0, 4095..4096), (9, 0..1)]);
        assert_eq!((c.whole, c.slots, c.covered), (1..9, vec![0, 2], 1..2));
        let c = cut(shape, &(0..u64::MAX));
        assert_eq!((c.whole, c.edges, c.slots), (0..BLOCKS_END, vec![], vec![]));
        let c = cut(shape, &(4096 * 5..u64::MAX));
        assert_eq!((c.whole, c.slots, c.covered), (5..BLOCKS_END, vec![1], 2..BLOCKS_END / 4));
        let c = cut(shape, &(u64::MAX - 5..u64::MAX));
        assert!(c.whole.is_empty() && c.edges.is_empty() && c.slots.is_empty());
        let c = cut(shape, &(4096 * 4..4096 * 4 + 7));
        assert_eq!((c.edges, c.slots), (vec![(4, 0..7)], vec![1]));
    }
}
