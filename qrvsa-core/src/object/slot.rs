//! The dirty blocks of one slot in one layer.
//!
//! Two representations. A large or a sequential write keeps one contiguous buffer, in the block order of the slot, which
//! goes to the device without another copy. Small random writes keep a map of single blocks, so that 4 KiB written to a
//! slot of 1 MiB do not take 1 MiB; past a quarter of the slot the map becomes a buffer. Buffers are shared by reference
//! count with the sync thread and the intent log: a write to a shared one copies it first.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::bits::Bits;
use super::plan::{self, Span};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};

/// Memory a dirty slot takes besides its data, in bytes, for the accounting.
const SLOT_OVERHEAD_BYTES: u64 = 256;

/// Where the bytes of the dirty blocks are.
#[derive(Clone)]
pub(super) enum SlotData {
    /// Single blocks by their number in the slot.
    Sparse(BTreeMap<u16, Arc<AlignedBuf>>),
    /// The blocks from `first` on. What is not dirty in it is meaningless.
    Contiguous { first: usize, buf: Arc<AlignedBuf> },
}

impl SlotData {
    fn memory(&self) -> u64 {
        match self {
            SlotData::Sparse(blocks) => (blocks.len() * BLOCK_SIZE) as u64,
            SlotData::Contiguous { buf, .. } => buf.len() as u64,
        }
    }

    /// Calls `each` with the bytes of dirty blocks `range`, in pieces: (first block of the piece, bytes).
    pub fn pieces<'a>(&'a self, range: Range<usize>, mut each: impl FnMut(usize, &'a [u8])) {
        match self {
            SlotData::Sparse(blocks) => {
                for (&block, bytes) in blocks.range(range.start as u16..range.end as u16) {
                    each(usize::from(block), bytes);
                }
            }
            SlotData::Contiguous { first, buf } => {
                each(range.start, &buf[(range.start - first) * BLOCK_SIZE..(range.end - first) * BLOCK_SIZE]);
            }
        }
    }

    /// The dirty blocks `range` as a part of a shared buffer, if they are in one.
    pub fn shared(&self, range: Range<usize>) -> Option<BufSlice> {
        match self {
            // a block by itself is a buffer by itself
            SlotData::Sparse(blocks) if range.len() == 1 => {
                blocks.get(&(range.start as u16)).map(|block| BufSlice::whole(block.clone()))
            }
            SlotData::Sparse(_) => None,
            SlotData::Contiguous { first, buf } => {
                Some(BufSlice::new(buf.clone(), (range.start - first) * BLOCK_SIZE..(range.end - first) * BLOCK_SIZE))
            }
        }
    }

    /// The dirty blocks `range`, copied if need be.
    pub fn gathered(&self, range: Range<usize>) -> BufSlice {
        self.shared(range.clone()).unwrap_or_else(|| {
            let mut buf = AlignedBuf::zeroed(range.len() * BLOCK_SIZE);
            self.pieces(range.clone(), |block, bytes| {
                buf[(block - range.start) * BLOCK_SIZE..][..bytes.len()].copy_from_slice(bytes);
            });
            BufSlice::whole(Arc::new(buf))
        })
    }
}

/// What may lie below the slot when its txg is synced, for the reservation. The syncing layer may or may not have been
/// carried out yet for this slot, so there are up to two possibilities; the dearer one counts.
#[derive(Default)]
pub(super) struct Below {
    now: Vec<Span>,
    after_sync: Option<Vec<Span>>,
}

impl Below {
    /// The extents as they are, and the holes and dirty blocks of the syncing layer if it touches the slot.
    pub fn new(now: Vec<Span>, syncing: Option<(Bits, Bits)>) -> Below {
        let after_sync = syncing.map(|(holes, dirty)| plan::outcome(&now, holes, dirty));
        Below { now, after_sync }
    }

    pub fn is_empty(&self) -> bool {
        self.now.is_empty() && self.after_sync.as_ref().is_none_or(Vec::is_empty)
    }

    /// Most that the sync of the slot may cost.
    pub fn cost(&self, holes: Bits, dirty: Bits, record_cost: impl Fn(u32) -> u64 + Copy) -> u64 {
        let now = plan::cost(&self.now, holes, dirty, record_cost);
        let later = self.after_sync.as_ref().map_or(0, |spans| plan::cost(spans, holes, dirty, record_cost));
        now.max(later)
    }
}

/// The dirty blocks of a slot. An entry without any stands for a slot that a hole covers in part.
pub(super) struct DirtySlot {
    pub dirty: Bits,
    /// Dirty blocks not yet in the intent log; a subset of `dirty`.
    pub unlogged: Bits,
    pub data: SlotData,
    /// Physical blocks reserved for the sync of this slot.
    pub reserved: u64,
    pub below: Below,
}

impl DirtySlot {
    pub fn new(below: Below) -> DirtySlot {
        let data = SlotData::Sparse(BTreeMap::new());
        DirtySlot { dirty: Bits::EMPTY, unlogged: Bits::EMPTY, data, reserved: 0, below }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> u64 {
        SLOT_OVERHEAD_BYTES + self.data.memory()
    }

    /// Makes `range` dirty with the contents of `buf` (as long as the range), if nothing else is dirty.
    /// Returns whether it did.
    pub fn install(&mut self, range: Range<usize>, buf: &Arc<AlignedBuf>) -> bool {
        debug_assert_eq!(buf.len(), range.len() * BLOCK_SIZE);
        let bits = Bits::range(range.clone());
        if !bits.contains_all(self.dirty) {
            return false;
        }
        self.data = SlotData::Contiguous { first: range.start, buf: buf.clone() };
        self.dirty = bits;
        self.unlogged = bits;
        true
    }

    /// Makes one block dirty: with `bytes`, or with zeros.
    pub fn set_block(&mut self, slot_blocks: usize, block: usize, bytes: Option<&[u8]>) {
        self.write(slot_blocks, block * BLOCK_SIZE, bytes.unwrap_or(&[0; BLOCK_SIZE]));
    }

    /// Overwrites bytes from `start` (in the slot) on. Blocks written in part must be dirty already.
    pub fn write(&mut self, slot_blocks: usize, start: usize, data: &[u8]) {
        let end = start + data.len();
        let range = start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE);
        let bits = Bits::range(range.clone());
        debug_assert!(start.is_multiple_of(BLOCK_SIZE) || self.dirty.contains(range.start));
        debug_assert!(end.is_multiple_of(BLOCK_SIZE) || self.dirty.contains(range.end - 1));
        self.make_room(slot_blocks, range);
        match &mut self.data {
            SlotData::Contiguous { first, buf } => {
                let at = start - *first * BLOCK_SIZE;
                Arc::make_mut(buf)[at..at + data.len()].copy_from_slice(data);
            }
            SlotData::Sparse(blocks) => {
                let mut at = start;
                let mut rest = data;
                while !rest.is_empty() {
                    let in_block = at % BLOCK_SIZE;
                    let (piece, after) = rest.split_at(rest.len().min(BLOCK_SIZE - in_block));
                    let number = (at / BLOCK_SIZE) as u16;
                    match blocks.get_mut(&number) {
                        Some(block) => Arc::make_mut(block)[in_block..in_block + piece.len()].copy_from_slice(piece),
                        None => {
                            debug_assert_eq!(piece.len(), BLOCK_SIZE);
                            blocks.insert(number, Arc::new(AlignedBuf::from_slice(piece)));
                        }
                    }
                    at += piece.len();
                    rest = after;
                }
            }
        }
        self.dirty |= bits;
        self.unlogged |= bits;
    }

    /// Makes the representation fit for writing blocks `range`.
    fn make_room(&mut self, slot_blocks: usize, range: Range<usize>) {
        let after = self.dirty | Bits::range(range.clone());
        let (first, end) = match &self.data {
            SlotData::Sparse(_) if after.count() * 4 <= slot_blocks => return,
            SlotData::Sparse(blocks) if blocks.is_empty() => (range.start, range.end),
            // It grows; likely upwards.
            SlotData::Sparse(_) => (after.next_set(0).unwrap_or(0), slot_blocks),
            SlotData::Contiguous { first, buf } => {
                let end = first + buf.len() / BLOCK_SIZE;
                if *first <= range.start && range.end <= end {
                    return;
                }
                (if range.start < *first { 0 } else { *first }, if range.end > end { slot_blocks } else { end })
            }
        };
        let mut buf = AlignedBuf::zeroed((end - first) * BLOCK_SIZE);
        for run in self.dirty.runs() {
            self.data.pieces(run, |block, bytes| {
                buf[(block - first) * BLOCK_SIZE..][..bytes.len()].copy_from_slice(bytes);
            });
        }
        self.data = SlotData::Contiguous { first, buf: Arc::new(buf) };
    }

    /// Takes blocks out.
    pub fn punch(&mut self, bits: Bits) {
        if !self.dirty.intersects(bits) {
            return;
        }
        self.dirty = self.dirty & !bits;
        self.unlogged = self.unlogged & !bits;
        if self.dirty.is_empty() {
            self.data = SlotData::Sparse(BTreeMap::new());
        } else if let SlotData::Sparse(blocks) = &mut self.data {
            let dirty = self.dirty;
            blocks.retain(|&block, _| dirty.contains(usize::from(block)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(slot: &DirtySlot) -> BTreeMap<usize, Vec<u8>> {
        let mut all = BTreeMap::new();
        for run in slot.dirty.runs() {
            slot.data.pieces(run.clone(), |first, bytes| {
                for (i, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
                    all.insert(first + i, block.to_vec());
                }
            });
            assert_eq!(slot.data.gathered(run.clone()).len(), run.len() * BLOCK_SIZE);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn like_a_map_of_blocks(ops in prop::collection::vec((0u8..4, 0usize..32, 1usize..20, any::<u8>()), 1..25)) {
            const BLOCKS: usize = 32;
            let mut slot = DirtySlot::new(Below::default());
            let mut model: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
            let mut held = Vec::new();
            for (op, first, len, fill) in ops {
                let range = first..(first + len).min(BLOCKS);
                let data = vec![fill; range.len() * BLOCK_SIZE];
                match op {
                    0 => {
                        slot.punch(Bits::range(range.clone()));
                        model.retain(|b, _| !range.contains(b));
                    }
                    1 => {
                        let free = model.keys().all(|b| range.contains(b));
                        let done = slot.install(range.clone(), &Arc::new(AlignedBuf::from_slice(&data)));
                        prop_assert_eq!(done, free);
                        if done { model.extend(range.map(|b| (b, vec![fill; BLOCK_SIZE]))); }
                    }
                    2 => {
                        slot.write(BLOCKS, range.start * BLOCK_SIZE, &data);
                        model.extend(range.map(|b| (b, vec![fill; BLOCK_SIZE])));
                    }
                    _ => if let Some(block) = model.get_mut(&first) {
                        block[100..300].fill(fill);
                        slot.write(BLOCKS, first * BLOCK_SIZE + 100, &data[..200]);
                        // A holder of the shared data sees no later write.
                        held.push((slot.data.clone(), slot.dirty, model.clone()));
                    },
                }
                prop_assert_eq!(&contents(&slot), &model);
                prop_assert!(slot.dirty.contains_all(slot.unlogged));
            }
            for (data, dirty, then) in held {
                let old = DirtySlot { data, dirty, unlogged: Bits::EMPTY, reserved: 0, below: Below::default() };
                prop_assert_eq!(contents(&old), then);
            }
        }
    }
}
