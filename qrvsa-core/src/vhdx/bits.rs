//! Sector bitmaps of a differencing image: which sectors of a partially present block are in this file.

use super::format::{BatEntry, BitmapState, MIB};
use super::image::{Image, Shape};
use super::pages::WORDS;
use super::write::Allocation;
use crate::error::{Error, ErrorKind, Result};

/// Bits of a page.
const PAGE_BITS: u64 = WORDS as u64 * 64;

impl Image {
    /// Where the bitmap of a block's chunk lies in the file.
    fn bitmap_place(&self, shape: &Shape, block: u64) -> Result<u64> {
        let chunk = shape.layout.chunk_of(block);
        let entry = BatEntry(shape.table.word(&*self.file, shape.layout.bitmap_index(chunk))?);
        let offset = entry.offset();
        let fits = offset >= MIB && offset.saturating_add(MIB) <= self.file_length();
        if entry.bitmap_state() != BitmapState::Present || !fits {
            let path = self.file.path().display();
            let what = format!("{path}: block {block} is partially present, but its sector bitmap is not in the file");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        Ok(offset)
    }

    /// Number of the bit of a sector in its bitmap.
    fn bit_of(shape: &Shape, block: u64, within: u64) -> u64 {
        let in_chunk = block % shape.layout.chunk_ratio * shape.layout.block_size + within;
        in_chunk / shape.layout.sector
    }

    /// Whether the sector at `within` is in this file, and for how many bytes, at most `len`, that goes on.
    pub(super) fn bitmap_run(&self, shape: &Shape, block: u64, within: u64, len: usize) -> Result<(bool, usize)> {
        let place = self.bitmap_place(shape, block)?;
        let sector = shape.layout.sector as usize;
        let first = Self::bit_of(shape, block, within);
        let count = (len / sector) as u64;
        let mut run = 0;
        let mut here = None;
        while run < count {
            let bit = first + run;
            let page = self.bitmaps.page(&*self.file, place + bit / PAGE_BITS * (PAGE_BITS / 8), false)?;
            let in_page = bit % PAGE_BITS;
            let until = (count - run).min(PAGE_BITS - in_page);
            for bit in in_page..in_page + until {
                let set = page.get((bit / 64) as usize) >> (bit % 64) & 1 != 0;
                if *here.get_or_insert(set) != set {
                    return Ok((!set, run as usize * sector));
                }
                run += 1;
            }
        }
        Ok((here.unwrap_or(false), len))
    }

    /// Notes that the sectors of a run are (or are not) in this file.
    pub(super) fn mark_sectors(
        &self,
        shape: &Shape,
        space: &mut Allocation,
        block: u64,
        within: u64,
        len: u64,
        present: bool,
    ) -> Result<()> {
        let place = self.bitmap_place(shape, block)?;
        let first = Self::bit_of(shape, block, within);
        let end = first + len.div_ceil(shape.layout.sector);
        let mut bit = first;
        while bit < end {
            let offset = place + bit / PAGE_BITS * (PAGE_BITS / 8);
            let page = self.bitmaps.page(&*self.file, offset, true)?;
            let page_end = end.min((bit / PAGE_BITS + 1) * PAGE_BITS);
            while bit < page_end {
                let low = bit % 64;
                let count = (64 - low).min(page_end - bit);
                let mask = (u64::MAX >> (64 - count)) << low;
                page.set_bits((bit % PAGE_BITS / 64) as usize, mask, if present { mask } else { 0 });
                bit += count;
            }
            space.dirty(offset, page, self.env.clock.monotonic_ns());
        }
        Ok(())
    }
}
