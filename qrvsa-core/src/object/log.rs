//! What the intent log takes: the changes of an object that it does not have yet.
//!
//! A layer is a final state, not a history: its unlogged holes first and its unlogged dirty blocks after them give the
//! same contents as the calls did, in whatever order those were.

use std::ops::Range;

use super::Objects;
use super::extents::bytes;
use super::layer::{BLOCK, BLOCKS_END, Layer, Object};
use crate::buf::BufSlice;
use crate::fs::store::ObjectRef;

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
    /// Whoever must answer for durability waits for that (the txg may have committed already).
    pub committing: Option<u64>,
}

/// Bytes of the log that a punch is counted as.
const PUNCH_BYTES: u64 = 32;

impl Objects {
    /// The changes of an object that are not in the intent log yet, in order, which are then held to be there. If logging
    /// them fails, the caller commits the open txg instead. When `committing` is set, nothing is taken: others who sync
    /// the object before that commit is through must find what is unlogged, too.
    pub fn take_unlogged(&self, object: ObjectRef) -> Unlogged {
        let found = self.find(object.id);
        let mut state = found.as_ref().map(|found| found.state.lock());
        // Looked at under the object's mutex, as the sync thread notes it before it drops a slot.
        let committing = self.committing.lock().get(&object.id).copied();
        let mut ops = Vec::new();
        if committing.is_some() {
            return Unlogged { ops, committing };
        }
        if let (Some(state), Some(found)) = (&mut state, &found) {
            if let Some(syncing) = &mut state.syncing {
                take(syncing, found, &mut ops);
            }
            if let Some(open) = &mut state.open {
                take(open, found, &mut ops);
            }
        }
        Unlogged { ops, committing }
    }

    /// About how many bytes [`Objects::take_unlogged`] would hand out.
    pub fn unlogged_bytes(&self, object: u64) -> u64 {
        let Some(found) = self.find(object) else { return 0 };
        let state = found.state.lock();
        [&state.open, &state.syncing].into_iter().flatten().map(unlogged).sum()
    }
}

/// Whether and how much of a layer is unlogged, in bytes.
pub(super) fn unlogged(layer: &Layer) -> u64 {
    let blocks = |slot| layer.slots.get(slot).map_or(0, |entry| entry.unlogged.count() as u64);
    layer.unlogged_slots.iter().map(blocks).sum::<u64>() * BLOCK + layer.unlogged_holes.len() as u64 * PUNCH_BYTES
}

fn take(layer: &mut Layer, object: &Object, ops: &mut Vec<LogOp>) {
    let txg = layer.txg;
    for hole in layer.unlogged_holes.iter() {
        let end = if hole.end == BLOCKS_END { u64::MAX } else { hole.end * BLOCK };
        ops.push(LogOp::Punch { txg, range: hole.start * BLOCK..end });
    }
    layer.unlogged_holes.clear();
    for slot in std::mem::take(&mut layer.unlogged_slots) {
        let Some(entry) = layer.slots.get_mut(&slot) else { continue };
        let start = object.shape.range(slot).start * BLOCK;
        for run in entry.unlogged.runs() {
            let offset = start + bytes(run.start as u64) as u64;
            ops.push(LogOp::Write { txg, offset, data: entry.data.gathered(run) });
        }
        entry.unlogged = super::bits::Bits::EMPTY;
    }
}
