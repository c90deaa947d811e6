//! Where there is data and where there are holes, over layers and extents; and how much there is.

use std::ops::Range;

use super::extents::PAGE;
use super::layer::{BLOCK, BLOCKS_END, Cover, Shape, State};
use super::ranges::RangeSet;
use super::{Objects, bits::Bits};
use crate::error::Result;
use crate::item::ObjectRef;

/// Extents per scan when one is looked for: past those of its slot before it.
const SEEK_PAGE: usize = 16;
/// Extents under holes that are counted for [`Objects::allocated_bytes`] at most.
const MASKED_EXTENTS_MAX: usize = 4096;

impl Objects {
    /// The first byte at or after `offset` that lies in a block with data, or `None`.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        let shape = Shape::of(object)?;
        let mut block = offset / BLOCK;
        while block < BLOCKS_END {
            match self.cover(object, shape, block) {
                Cover::Data { .. } => return Ok(Some(offset.max(block * BLOCK))),
                Cover::Hole { until } => block = until,
                Cover::Below { until } => {
                    if let Some(found) = self.first_extent_block(object, shape, block..until)? {
                        return Ok(Some(offset.max(found * BLOCK)));
                    }
                    block = until;
                }
            }
        }
        Ok(None)
    }

    /// The first byte at or after `offset` that lies in a hole. The end of data is one.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        let shape = Shape::of(object)?;
        let mut block = offset / BLOCK;
        while block < BLOCKS_END {
            match self.cover(object, shape, block) {
                Cover::Data { until } => block = until,
                Cover::Hole { .. } => break,
                Cover::Below { until } => {
                    block = self.extents_end(object, shape, block..until)?;
                    if block < until {
                        break;
                    }
                }
            }
        }
        Ok(offset.max(block * BLOCK))
    }

    /// Bytes of data blocks the object has, before redundancy, including blocks only in memory. Exact when nothing is
    /// dirty. Else, blocks that are dirty and on disk count twice, and of very many extents under a fresh hole some may
    /// still count.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn allocated_bytes(&self, object: ObjectRef) -> Result<u64> {
        let shape = Shape::of(object)?;
        let mut blocks = self.space_blocks(object.id)?;
        if let Some(found) = self.find(object.id) {
            let (dirty, masked) = found.state.lock().masked(shape);
            let mut budget = MASKED_EXTENTS_MAX;
            for range in masked.iter() {
                if budget == 0 {
                    break;
                }
                blocks = blocks.saturating_sub(self.blocks_in(object, shape, range, &mut budget)?);
            }
            blocks = blocks.saturating_add(dirty);
        }
        Ok(blocks.saturating_mul(BLOCK))
    }

    fn cover(&self, object: ObjectRef, shape: Shape, block: u64) -> Cover {
        match self.find(object.id) {
            Some(found) => found.state.lock().cover(shape, block),
            None => Cover::Below { until: BLOCKS_END },
        }
    }

    /// The first block of `blocks` that an extent holds.
    pub(super) fn first_extent_block(
        &self,
        object: ObjectRef,
        shape: Shape,
        blocks: Range<u64>,
    ) -> Result<Option<u64>> {
        let look = || {
            let mut next = Some(shape.slot_start(blocks.start));
            while let Some(from) = next {
                let page = self.extent_page(object, shape, from..blocks.end, SEEK_PAGE)?;
                if let Some(extent) = page.extents.iter().find(|e| e.end() > blocks.start) {
                    return Ok(Some(extent.block.max(blocks.start)));
                }
                next = page.next;
            }
            Ok(None)
        };
        self.shard(object.id).stable(look).map(|(found, _)| found)
    }

    /// Up to which block of `blocks` extents follow each other without a gap.
    fn extents_end(&self, object: ObjectRef, shape: Shape, blocks: Range<u64>) -> Result<u64> {
        let mut at = blocks.start;
        while at < blocks.end {
            let look = || self.extent_page(object, shape, shape.slot_start(at)..blocks.end, PAGE);
            let (page, _) = self.shard(object.id).stable(look)?;
            for extent in page.extents.iter().filter(|e| e.end() > blocks.start) {
                if extent.block > at {
                    return Ok(at);
                }
                at = at.max(extent.end());
            }
            match page.next {
                Some(next) if next == at => (),
                _ => break,
            }
        }
        Ok(at.min(blocks.end))
    }

    /// Blocks of `blocks` that extents hold, as far as the budget of extents reaches.
    fn blocks_in(&self, object: ObjectRef, shape: Shape, blocks: Range<u64>, budget: &mut usize) -> Result<u64> {
        let mut total = 0;
        let mut next = Some(shape.slot_start(blocks.start));
        while let Some(from) = next.filter(|_| *budget > 0) {
            let look = || self.extent_page(object, shape, from..blocks.end, PAGE);
            let (page, _) = self.shard(object.id).stable(look)?;
            for extent in &page.extents {
                total += extent.end().min(blocks.end).saturating_sub(extent.block.max(blocks.start));
            }
            *budget = budget.saturating_sub(page.extents.len());
            next = page.next;
        }
        Ok(total)
    }
}

impl State {
    /// Dirty blocks that can be seen or overwrite one that can, and the blocks whose extents a hole masks.
    fn masked(&self, shape: Shape) -> (u64, RangeSet) {
        let mut dirty = 0;
        let mut masked = RangeSet::default();
        // From the top: a dirty block of the syncing layer under an open hole does not count.
        for layer in [&self.open, &self.syncing].into_iter().flatten() {
            for (&slot, entry) in &layer.slots {
                let range = shape.range(slot);
                let hidden = masked.within(range).fold(Bits::EMPTY, |b, r| b | Bits::range(shape.clip(slot, &r)));
                dirty += (entry.dirty & !hidden).count() as u64;
            }
            let mut holes = layer.holes.clone();
            for (&slot, entry) in &layer.slots {
                let start = shape.range(slot).start;
                for run in entry.dirty.runs() {
                    holes.remove(start + run.start as u64..start + run.end as u64);
                }
            }
            for hole in holes.iter() {
                masked.insert(hole);
            }
        }
        (dirty, masked)
    }
}
