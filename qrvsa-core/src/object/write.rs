//! Writing into the open layer.
//!
//! What needs devices or items (the extents of a slot that gets dirty, the rest of a block written in part) is found
//! without the object's mutex; then, under it, checked to be still valid, priced, reserved and done. The contents below
//! the open layer do not change while the caller's transaction holds the txg open, so a block read from there stays
//! valid; the extents of a slot may be republished, which the shard's sequence number tells.
//!
//! Whole slots and other large pieces are copied to their buffer before any lock is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use super::bits::Bits;
use super::extents::Extent;
use super::layer::{BLOCK, Cover, Layer, Object, Shape, State};
use super::plan::Span;
use super::slot::{Below, DirtySlot};
use super::{Objects, blocks_of};
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::error::Result;
use crate::item::{Intent, ObjectRef};

/// Slots from this size on are worth writing out as soon as they are whole, bytes, and smaller ones that a write of this
/// size makes whole. What else is written to small slots may be written at random, and make whole slots too: waiting
/// spares tree nodes.
const LARGE_BYTES: u64 = 64 << 10;

/// What was found out without the object's mutex.
#[derive(Default)]
pub(super) struct Known {
    /// Contents below the open layer of blocks changed in part; `None` where there is no data. Stays valid.
    bases: Vec<(u64, Option<AlignedBuf>)>,
    /// Extents of slots, valid for a sequence number of the shard.
    spans: Vec<(u64, Vec<Span>)>,
    sequence: u64,
}

impl Known {
    /// What lies below the open layer in a block asked for earlier.
    pub fn base(&self, block: u64) -> Option<&[u8]> {
        self.bases.iter().find(|(b, _)| *b == block).and_then(|(_, base)| base.as_deref())
    }

    /// What may lie below a slot asked for earlier.
    pub fn below(&self, slot: u64, shape: Shape, syncing: Option<&Layer>) -> Below {
        let spans = self.spans.iter().find(|(s, _)| *s == slot).map(|(_, spans)| spans.clone());
        Below::new(spans.unwrap_or_default(), syncing.and_then(|layer| layer.touch(shape, slot)))
    }
}

impl Objects {
    /// Whether everything about `blocks` (changed in part) and `slots` (changed in part) is known that `state` does not
    /// tell.
    pub(super) fn knows(&self, object: &Object, state: &State, known: &Known, blocks: &[u64], slots: &[u64]) -> bool {
        let base_known = |&block: &u64| {
            known.bases.iter().any(|(b, _)| *b == block)
                || !matches!(state.open_cover(object.shape, block), Cover::Below { .. })
        };
        let has_entry = |slot: &u64| state.open.as_ref().is_some_and(|open| open.slots.contains_key(slot));
        let valid = || known.sequence == self.shard(object.id).sequence.load(SeqCst);
        let slot_known = |slot: &u64| has_entry(slot) || (known.spans.iter().any(|(s, _)| s == slot) && valid());
        blocks.iter().all(base_known) && slots.iter().all(slot_known)
    }

    /// Finds out about `blocks` and `slots`. To be called without the object's mutex, under a transaction.
    pub(super) fn learn(
        &self,
        object: ObjectRef,
        shape: Shape,
        known: &mut Known,
        blocks: &[u64],
        slots: &[u64],
    ) -> Result<()> {
        for &block in blocks {
            if known.bases.iter().all(|(b, _)| *b != block) {
                let base = self.read_below_open(object, shape, block)?;
                known.bases.push((block, base));
            }
        }
        let look = || {
            let spans_of = |&slot: &u64| -> Result<(u64, Vec<Span>)> {
                let extents: Vec<Extent> = self.extents(object, shape, shape.range(slot))?;
                Ok((slot, extents.iter().map(|e| e.span(shape)).collect()))
            };
            slots.iter().map(spans_of).collect::<Result<Vec<_>>>()
        };
        (known.spans, known.sequence) = self.shard(object.id).stable(look)?;
        Ok(())
    }

    /// Writes into the object's contents, under a transaction of `txg`. All or nothing.
    ///
    /// # Errors
    /// `NoSpace`; `Io`, `Corrupt` (reading the rest of a partly written block); `Suspended`; `Invalid` past 2^63 bytes.
    pub fn write(&self, txg: u64, object: ObjectRef, offset: u64, data: &[u8]) -> Result<()> {
        let shape = Shape::of(object)?;
        let blocks = blocks_of(offset, data.len())?;
        self.check_running()?;
        if data.is_empty() {
            return Ok(());
        }
        let pieces = cut(shape, offset, data);
        let end = offset + data.len() as u64;
        let mut edges = Vec::new();
        if !offset.is_multiple_of(BLOCK) {
            edges.push(blocks.start);
        }
        if !end.is_multiple_of(BLOCK) && edges.first() != Some(&(blocks.end - 1)) {
            edges.push(blocks.end - 1);
        }
        // Below a slot that is overwritten as a whole, nothing matters.
        let slots: Vec<u64> =
            pieces.iter().filter(|p| p.data.len() < shape.blocks() * BLOCK_SIZE).map(|p| p.slot).collect();

        let mut known = Known::default();
        loop {
            let found = self.find_or_insert(object, shape)?;
            let mut state = found.state.lock();
            if state.dead {
                continue;
            }
            state.switch_to(txg);
            if self.knows(&found, &state, &known, &edges, &slots) {
                let done = self.write_open(txg, shape, &mut state, &known, &edges, &pieces);
                drop(state);
                if done.is_err() {
                    self.forget_if_clean(&found);
                }
                return done;
            }
            drop(state);
            let learned = self.learn(object, shape, &mut known, &edges, &slots);
            if learned.is_err() {
                self.forget_if_clean(&found);
                return learned;
            }
        }
    }

    /// Prices, reserves and does a write.
    fn write_open(
        &self,
        txg: u64,
        shape: Shape,
        state: &mut State,
        known: &Known,
        edges: &[u64],
        pieces: &[Piece<'_>],
    ) -> Result<()> {
        let State { open, syncing, .. } = state;
        let layer = open.get_or_insert_with(|| Layer::new(txg));
        let record_cost = |blocks| self.io.cost_blocks(blocks);

        let mut priced = Vec::with_capacity(pieces.len());
        let (mut more, mut less) = (0, 0);
        for piece in pieces {
            let bits = Bits::range(piece.blocks());
            let holes = layer.hole_bits(shape, piece.slot);
            let (cost, old, below) = match layer.slots.get(&piece.slot) {
                Some(entry) => (entry.below.cost(holes, entry.dirty | bits, record_cost), entry.reserved, None),
                None => {
                    let below = known.below(piece.slot, shape, syncing.as_ref());
                    (below.cost(holes, bits, record_cost), 0, Some(below))
                }
            };
            more += cost.saturating_sub(old);
            less += old.saturating_sub(cost);
            priced.push((cost, below));
        }
        if more > less {
            self.io.reserve(more - less, Intent::Grow)?;
        }

        let (mut memory_before, mut memory_after, mut whole) = (0, 0, 0);
        let all = Bits::range(0..shape.blocks());
        for (piece, (cost, below)) in pieces.iter().zip(priced) {
            let holes = &layer.holes;
            let entry = layer
                .slots
                .entry(piece.slot)
                .and_modify(|entry| memory_before += entry.memory())
                .or_insert_with(|| DirtySlot::new(below.unwrap_or_default()));
            let range = piece.blocks();
            let was_whole = entry.dirty == all;
            let installed = piece.ready.as_ref().is_some_and(|ready| entry.install(range.clone(), ready));
            if !installed {
                let start = shape.range(piece.slot).start;
                for &edge in edges.iter().filter(|&&b| shape.slot(b) == piece.slot) {
                    let block = (edge - start) as usize;
                    if !entry.dirty.contains(block) {
                        let hole = holes.end_of(edge).is_some();
                        entry.set_block(shape.blocks(), block, known.base(edge).filter(|_| !hole));
                    }
                }
                entry.write(shape.blocks(), piece.start, piece.data);
            }
            if !was_whole && entry.dirty == all {
                whole += shape.slot_blocks * BLOCK;
            }
            entry.reserved = cost;
            layer.unlogged_slots.insert(piece.slot);
            memory_after += entry.memory();
        }
        if less > more {
            self.io.release(less - more);
        }
        self.account(memory_before, memory_after);
        let written: usize = pieces.iter().map(|piece| piece.data.len()).sum();
        if whole > 0 && (shape.slot_blocks * BLOCK >= LARGE_BYTES || written as u64 >= LARGE_BYTES) {
            self.io.whole_dirty(whole);
        }
        Ok(())
    }
}

/// The part of a write in one slot.
struct Piece<'a> {
    slot: u64,
    /// Byte offset in the slot.
    start: usize,
    data: &'a [u8],
    /// The data in a buffer of its own, if it is whole blocks and more than a quarter of the slot.
    ready: Option<Arc<AlignedBuf>>,
}

impl Piece<'_> {
    /// The blocks it touches, counted from the start of the slot.
    fn blocks(&self) -> std::ops::Range<usize> {
        self.start / BLOCK_SIZE..(self.start + self.data.len()).div_ceil(BLOCK_SIZE)
    }
}

fn cut(shape: Shape, offset: u64, data: &[u8]) -> Vec<Piece<'_>> {
    let slot_bytes = shape.blocks() * BLOCK_SIZE;
    let mut pieces = Vec::with_capacity(data.len() / slot_bytes + 2);
    let (mut slot, mut start) = (offset / slot_bytes as u64, (offset % slot_bytes as u64) as usize);
    let mut rest = data;
    while !rest.is_empty() {
        let (data, after) = rest.split_at(rest.len().min(slot_bytes - start));
        let aligned = start.is_multiple_of(BLOCK_SIZE) && data.len().is_multiple_of(BLOCK_SIZE);
        let ready = (aligned && data.len() * 4 > slot_bytes).then(|| Arc::new(AlignedBuf::from_slice(data)));
        pieces.push(Piece { slot, start, data, ready });
        (slot, start, rest) = (slot + 1, 0, after);
    }
    pieces
}
