//! What the intent log takes: the changes of an object that it does not have yet.
//!
//! A layer is a final state, not a history: its unlogged holes first and its unlogged dirty blocks after them give the
//! same contents as the calls did, in whatever order those were.

use std::ops::Range;

use super::Objects;
use super::bits::Bits;
use super::extents::bytes;
use super::layer::{BLOCK, BLOCKS_END, Cover, Layer, Object, Shape, State};
use crate::buf::BufSlice;
use crate::item::ObjectRef;

/// A change of an object's contents for the intent log. On replay, changes of a txg that is committed are passed over.
#[derive(Clone, Debug)]
pub enum LogOp {
    /// Whole blocks of data.
    Write {
        /// The txg the change belongs to.
        txg: u64,
        /// Byte offset, a multiple of 4 KiB.
        offset: u64,
        /// Whole blocks.
        data: BufSlice,
    },
    /// Whole blocks that read as zeros.
    Punch {
        /// The txg the change belongs to.
        txg: u64,
        /// Byte range, whole blocks; `end` is `u64::MAX` for "to the end".
        range: Range<u64>,
    },
}

/// What [`Objects::take_unlogged`] found.
#[derive(Clone, Debug, Default)]
pub struct Unlogged {
    /// Changes to log, in order.
    pub ops: Vec<LogOp>,
    /// Further changes were written out already without having been logged, and become durable when this txg commits.
    /// Whoever must answer for durability waits for that.
    pub committing: Option<u64>,
    /// There is more than the caller asked for at most.
    pub too_much: bool,
}

/// Bytes of the log that a punch is counted as.
const PUNCH_BYTES: u64 = 32;

impl Objects {
    /// The changes of an object in a byte range that are not in the intent log yet, in order, which are then held to be
    /// there. If logging them fails, the caller commits the open txg instead. When `committing` or `too_much` is set,
    /// nothing is taken: others who sync the object before that commit is through must find what is unlogged, too.
    pub fn take_unlogged(&self, object: ObjectRef, range: Range<u64>, bytes_max: u64) -> Unlogged {
        let found = self.find(object.id);
        let mut state = found.as_ref().map(|found| found.state.lock());
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK).min(BLOCKS_END);
        // Looked at under the object's mutex, as the sync thread notes it before it drops a slot.
        let committing = self.committing.lock().get(&object.id).copied();
        // What the open layer holds is not part of that commit.
        let open = |state: &State, shape| state.open.as_ref().is_some_and(|open| open.holds(shape, blocks.clone()));
        let (Some(state), Some(found)) = (&mut state, &found) else {
            return Unlogged { committing, ..Unlogged::default() };
        };
        if committing.is_some() && !open(state, found.shape) {
            return Unlogged { committing, ..Unlogged::default() };
        }
        let layers = || [&state.syncing, &state.open].into_iter().flatten();
        if layers().map(|layer| unlogged(layer, found.shape, &blocks)).sum::<u64>() > bytes_max {
            return Unlogged { too_much: true, ..Unlogged::default() };
        }
        let mut ops = Vec::new();
        if let Some(syncing) = &mut state.syncing {
            take(syncing, found, &blocks, &mut ops);
        }
        if let Some(open) = &mut state.open {
            take(open, found, &blocks, &mut ops);
        }
        Unlogged { ops, committing: None, too_much: false }
    }
}

impl Layer {
    /// Whether every one of `blocks` is dirty here. Looked at block run by block run.
    fn holds(&self, shape: Shape, blocks: Range<u64>) -> bool {
        let mut at = blocks.start;
        while at < blocks.end {
            match self.cover(shape, at) {
                Cover::Data { until } => at = until,
                Cover::Hole { .. } | Cover::Below { .. } => return false,
            }
        }
        true
    }
}

/// Whether and how much of a layer is unlogged in `blocks`, in bytes.
pub(super) fn unlogged(layer: &Layer, shape: Shape, blocks: &Range<u64>) -> u64 {
    let mut bytes = layer.unlogged_holes.within(blocks.clone()).count() as u64 * PUNCH_BYTES;
    for slot in layer.unlogged_slots.range(slots(shape, blocks)) {
        let Some(entry) = layer.slots.get(slot) else { continue };
        bytes += (entry.unlogged & Bits::range(shape.clip(*slot, blocks))).count() as u64 * BLOCK;
    }
    bytes
}

fn slots(shape: Shape, blocks: &Range<u64>) -> Range<u64> {
    let first = shape.slot(blocks.start);
    first..blocks.end.div_ceil(shape.slot_blocks).max(first)
}

fn take(layer: &mut Layer, object: &Object, blocks: &Range<u64>, ops: &mut Vec<LogOp>) {
    let (txg, shape) = (layer.txg, object.shape);
    for hole in layer.unlogged_holes.within(blocks.clone()) {
        let end = if hole.end == BLOCKS_END { u64::MAX } else { hole.end * BLOCK };
        ops.push(LogOp::Punch { txg, range: hole.start * BLOCK..end });
    }
    layer.unlogged_holes.remove(blocks.clone());
    let touched: Vec<u64> = layer.unlogged_slots.range(slots(shape, blocks)).copied().collect();
    for slot in touched {
        let Some(entry) = layer.slots.get_mut(&slot) else {
            layer.unlogged_slots.remove(&slot);
            continue;
        };
        let start = shape.range(slot).start * BLOCK;
        let taken = entry.unlogged & Bits::range(shape.clip(slot, blocks));
        for run in taken.runs() {
            let offset = start + bytes(run.start as u64) as u64;
            ops.push(LogOp::Write { txg, offset, data: entry.data.gathered(run) });
        }
        entry.unlogged = entry.unlogged & !taken;
        if entry.unlogged.is_empty() {
            layer.unlogged_slots.remove(&slot);
        }
    }
}
