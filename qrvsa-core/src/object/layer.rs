//! The dirty state of one object: an open and a syncing layer over the extents.
//!
//! A layer belongs to one txg. It holds dirty blocks by slot, and holes: blocks that read as zeros and mask everything
//! below. In one layer a dirty block wins over a hole. A block is looked up in order: open dirty, open holes, syncing
//! dirty, syncing holes, extents.
//!
//! The first change under a newer txg, or the sync thread if it comes first, turns the open layer into the syncing one.
//! The data of a syncing layer never changes; the sync thread takes slots out as it publishes their extents.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use parking_lot::Mutex;

use super::bits::Bits;
use super::ranges::RangeSet;
use super::slot::DirtySlot;
use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};
use crate::item::ObjectRef;

/// Block numbers end here: contents reach to 2^63 bytes, as far as a file offset can.
pub(super) const BLOCKS_END: u64 = 1 << 51;
/// Bytes in a block.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Memory a hole takes, in bytes, for the accounting.
const HOLE_BYTES: u64 = 64;

/// How an object is cut into slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Blocks in a slot, a power of two from 1 to 256.
    pub slot_blocks: u64,
}

impl Shape {
    pub fn of(object: ObjectRef) -> Result<Shape> {
        let size = object.record_size as usize;
        if !size.is_power_of_two() || !(BLOCK_SIZE..=256 * BLOCK_SIZE).contains(&size) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "record size of an object is not a power of two from 4 KiB to 1 MiB",
            ));
        }
        Ok(Shape { slot_blocks: (size / BLOCK_SIZE) as u64 })
    }

    /// Blocks in a slot.
    pub fn blocks(self) -> usize {
        self.slot_blocks as usize
    }

    /// The slot of a block.
    pub fn slot(self, block: u64) -> u64 {
        block / self.slot_blocks
    }

    /// The blocks of a slot.
    pub fn range(self, slot: u64) -> Range<u64> {
        slot * self.slot_blocks..(slot + 1) * self.slot_blocks
    }

    /// First block of the slot that `block` is in.
    pub fn slot_start(self, block: u64) -> u64 {
        block & !(self.slot_blocks - 1)
    }

    /// A block's number in its slot.
    pub fn in_slot(self, block: u64) -> usize {
        (block & (self.slot_blocks - 1)) as usize
    }

    /// The part of `blocks` in `slot`, counted from the slot's start.
    pub fn clip(self, slot: u64, blocks: &Range<u64>) -> Range<usize> {
        let all = self.range(slot);
        let start = blocks.start.clamp(all.start, all.end) - all.start;
        let end = blocks.end.clamp(all.start, all.end) - all.start;
        start as usize..end.max(start) as usize
    }
}

/// What a layer, or both, say about a block, and up to which block (not included) they say at least the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cover {
    /// Dirty data.
    Data { until: u64 },
    /// Reads as zeros.
    Hole { until: u64 },
    /// Look below.
    Below { until: u64 },
}

/// The changes of one txg to one object.
pub(super) struct Layer {
    pub txg: u64,
    pub slots: BTreeMap<u64, DirtySlot>,
    pub holes: RangeSet,
    /// The part of the holes that is not in the intent log yet.
    pub unlogged_holes: RangeSet,
    /// Slots with unlogged blocks, and maybe some without.
    pub unlogged_slots: BTreeSet<u64>,
}

impl Layer {
    pub fn new(txg: u64) -> Layer {
        Layer {
            txg,
            slots: BTreeMap::new(),
            holes: RangeSet::default(),
            unlogged_holes: RangeSet::default(),
            unlogged_slots: BTreeSet::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.holes.is_empty()
    }

    /// Bytes that the holes take.
    pub fn holes_memory(&self) -> u64 {
        self.holes.len() as u64 * HOLE_BYTES
    }

    /// The holes in a slot.
    pub fn hole_bits(&self, shape: Shape, slot: u64) -> Bits {
        if self.holes.is_empty() {
            return Bits::EMPTY;
        }
        self.holes.within(shape.range(slot)).fold(Bits::EMPTY, |bits, r| bits | Bits::range(shape.clip(slot, &r)))
    }

    /// Holes and dirty blocks of a slot, if there are any.
    pub fn touch(&self, shape: Shape, slot: u64) -> Option<(Bits, Bits)> {
        let holes = self.hole_bits(shape, slot);
        let dirty = self.slots.get(&slot).map_or(Bits::EMPTY, |s| s.dirty);
        (!holes.is_empty() || !dirty.is_empty()).then_some((holes, dirty))
    }

    /// The dirty runs inside `blocks`, ascending: slot, its entry, run in the slot.
    pub fn dirty_runs(
        &self,
        shape: Shape,
        blocks: Range<u64>,
    ) -> impl Iterator<Item = (u64, &DirtySlot, Range<usize>)> {
        let slots = shape.slot(blocks.start)..blocks.end.div_ceil(shape.slot_blocks);
        self.slots.range(slots).flat_map(move |(&slot, entry)| {
            let clipped = Bits::range(shape.clip(slot, &blocks));
            (entry.dirty & clipped).runs().map(move |run| (slot, entry, run))
        })
    }

    /// What the layer says about `block`.
    pub fn cover(&self, shape: Shape, block: u64) -> Cover {
        let slot = shape.slot(block);
        let first = shape.in_slot(block);
        let mut next_dirty = BLOCKS_END;
        for (&s, entry) in self.slots.range(slot..) {
            let from = if s == slot { first } else { 0 };
            if s == slot && entry.dirty.contains(first) {
                let end = entry.dirty.next_clear(first).min(shape.blocks());
                return Cover::Data { until: shape.range(s).start + end as u64 };
            }
            if let Some(next) = entry.dirty.next_set(from) {
                next_dirty = shape.range(s).start + next as u64;
                break;
            }
        }
        match self.holes.end_of(block) {
            Some(end) => Cover::Hole { until: end.min(next_dirty) },
            None => Cover::Below { until: self.holes.next_start(block).unwrap_or(BLOCKS_END).min(next_dirty) },
        }
    }
}

/// What the mutex of an object guards.
#[derive(Default)]
pub(super) struct State {
    /// Changes of the open txg (or of one that has closed since, until somebody notices).
    pub open: Option<Layer>,
    /// Changes of the syncing txg that are not published yet.
    pub syncing: Option<Layer>,
    /// The object is no longer in the map: look it up again.
    pub dead: bool,
}

impl State {
    pub fn is_clean(&self) -> bool {
        self.open.as_ref().is_none_or(Layer::is_empty) && self.syncing.is_none()
    }

    /// Makes sure that an open layer belongs to `txg`, by turning one of an earlier txg into the syncing layer.
    ///
    /// # Panics
    /// If two txgs would be syncing at once, or the open layer is of a later txg.
    pub fn switch_to(&mut self, txg: u64) {
        if self.open.as_ref().is_some_and(|open| open.txg < txg) {
            let open = self.open.take().filter(|open| !open.is_empty());
            if open.is_some() {
                assert!(self.syncing.is_none(), "a second transaction group starts to sync before the first is done");
                self.syncing = open;
            }
        }
        if let Some(open) = &self.open {
            assert!(open.txg == txg, "change under transaction group {txg} after one under {}", open.txg);
        }
    }

    /// What both layers say about `block`.
    pub fn cover(&self, shape: Shape, block: u64) -> Cover {
        let mut until = BLOCKS_END;
        for layer in [&self.open, &self.syncing].into_iter().flatten() {
            match layer.cover(shape, block) {
                Cover::Data { until: u } => return Cover::Data { until: u.min(until) },
                Cover::Hole { until: u } => return Cover::Hole { until: u.min(until) },
                Cover::Below { until: u } => until = until.min(u),
            }
        }
        Cover::Below { until }
    }

    /// What the open layer says about `block`.
    pub fn open_cover(&self, shape: Shape, block: u64) -> Cover {
        self.open.as_ref().map_or(Cover::Below { until: BLOCKS_END }, |layer| layer.cover(shape, block))
    }
}

/// An object with dirty state.
pub(super) struct Object {
    pub id: u64,
    pub shape: Shape,
    pub record_size: u32,
    pub state: Mutex<State>,
}

impl Object {
    pub fn reference(&self) -> ObjectRef {
        ObjectRef { id: self.id, record_size: self.record_size }
    }
}
