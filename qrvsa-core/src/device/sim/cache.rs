//! The medium and the volatile cache before it.
//!
//! Unflushed changes are kept in order, each as blocks with a mask of the sectors it carries. A crash takes any choice of
//! their sectors and applies it in order. That covers every reordering a disk may do: two changes of the same sector end as
//! the older, the newer or neither, and different sectors do not care about order.
//!
//! Invariant: `fresh` over `medium` is what a read sees: all acknowledged changes.

use std::sync::Arc;

use super::SECTOR_BYTES;
use super::image::{Block, SimImage};
use crate::buf::BLOCK_SIZE;

const SECTORS_PER_BLOCK: usize = BLOCK_SIZE / SECTOR_BYTES;
/// One bit per sector of a block.
type SectorMask = u8;
const WHOLE: SectorMask = SectorMask::MAX;

/// What a discarded block reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardMode {
    /// Zeros.
    Zeros,
    /// Its old content.
    Keep,
    /// Bytes that were never written.
    Garbage,
}

/// An unflushed change, as [`SimControl::unflushed`](super::SimControl::unflushed) lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unflushed {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Whether its issuer was told that it succeeded; else the power failed while it was on its way.
    pub acknowledged: bool,
}

/// Part of a change: the sectors of one block.
struct Piece {
    block: u64,
    data: Arc<Block>,
    /// The sectors this piece still carries.
    mask: SectorMask,
}

struct Change {
    offset: u64,
    len: u64,
    pieces: Vec<Piece>,
    acknowledged: bool,
}

pub(super) struct Cache {
    medium: SimImage,
    /// Whole blocks that differ from the medium.
    fresh: SimImage,
    changes: Vec<Change>,
    pub discard_mode: DiscardMode,
}

/// `new` where the mask says so, else `old`.
fn merge(old: Option<&Arc<Block>>, new: &Arc<Block>, mask: SectorMask) -> Arc<Block> {
    if mask == WHOLE {
        return new.clone();
    }
    let mut block = old.map_or([0; BLOCK_SIZE], |b| **b);
    for sector in (0..SECTORS_PER_BLOCK).filter(|s| mask & (1 << s) != 0) {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        block[range.clone()].copy_from_slice(&new[range]);
    }
    Arc::new(block)
}

impl Cache {
    pub fn new(medium: SimImage) -> Cache {
        Cache { medium, fresh: SimImage::default(), changes: Vec::new(), discard_mode: DiscardMode::Zeros }
    }

    fn visible(&self, block: u64) -> Option<&Arc<Block>> {
        self.fresh.block(block).or_else(|| self.medium.block(block))
    }

    /// Reads whole blocks.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let first = offset / BLOCK_SIZE as u64;
        for (number, target) in (first..).zip(buf.chunks_mut(BLOCK_SIZE)) {
            match self.visible(number) {
                Some(block) => target.copy_from_slice(&block[..target.len()]),
                None => target.fill(0),
            }
        }
    }

    /// Writes whole blocks, of which only the first `sectors` arrive.
    pub fn write(&mut self, offset: u64, data: &[u8], durable: bool, sectors: usize) {
        let pieces = pieces(offset, data, sectors);
        let len = data.len() as u64;
        if durable {
            self.persist(&pieces);
        } else {
            self.apply(Change { offset, len, pieces, acknowledged: true });
        }
    }

    /// A write caught by a power failure: on its way, seen by nobody.
    pub fn write_unacknowledged(&mut self, offset: u64, data: &[u8]) {
        let pieces = pieces(offset, data, usize::MAX);
        self.changes.push(Change { offset, len: data.len() as u64, pieces, acknowledged: false });
    }

    pub fn discard(&mut self, offset: u64, len: u64) {
        let pieces = self.discard_pieces(offset, len);
        self.apply(Change { offset, len, pieces, acknowledged: true });
    }

    pub fn discard_unacknowledged(&mut self, offset: u64, len: u64) {
        let pieces = self.discard_pieces(offset, len);
        self.changes.push(Change { offset, len, pieces, acknowledged: false });
    }

    /// A discard as a write to those blocks that hold anything.
    fn discard_pieces(&self, offset: u64, len: u64) -> Vec<Piece> {
        let block = BLOCK_SIZE as u64;
        let range = offset / block..(offset + len) / block;
        let mut numbers = self.medium.written(range.clone());
        numbers.extend(self.fresh.written(range));
        numbers.sort_unstable();
        numbers.dedup();
        let piece = |number: u64| {
            let data = match self.discard_mode {
                DiscardMode::Keep => return None,
                DiscardMode::Zeros => [0; BLOCK_SIZE],
                DiscardMode::Garbage => std::array::from_fn(|i| (number as u8).wrapping_mul(31) ^ (i as u8) ^ 0xa5),
            };
            Some(Piece { block: number, data: Arc::new(data), mask: WHOLE })
        };
        numbers.into_iter().filter_map(piece).collect()
    }

    fn apply(&mut self, change: Change) {
        for piece in &change.pieces {
            let merged = merge(self.visible(piece.block), &piece.data, piece.mask);
            self.fresh.set_block(piece.block, merged);
        }
        self.changes.push(change);
    }

    /// Writes through to the medium. Older unflushed changes no longer carry these sectors.
    fn persist(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let seen = merge(self.visible(piece.block), &piece.data, piece.mask);
            let stored = merge(self.medium.block(piece.block), &piece.data, piece.mask);
            let (first, last) = (pieces.first().map_or(0, |p| p.block), pieces.last().map_or(0, |p| p.block));
            for change in &mut self.changes {
                let start = change.offset / BLOCK_SIZE as u64;
                let end = start + change.len.div_ceil(BLOCK_SIZE as u64);
                if start > last || end <= first {
                    continue;
                }
                for older in change.pieces.iter_mut().filter(|p| p.block == piece.block) {
                    older.mask &= !piece.mask;
                }
            }
            if seen == stored {
                self.fresh.remove_block(piece.block);
            } else {
                self.fresh.set_block(piece.block, seen);
            }
            self.medium.set_block(piece.block, stored);
        }
    }

    /// Everything acknowledged reaches the medium.
    pub fn flush(&mut self) {
        self.medium.absorb(&mut self.fresh);
        self.changes.clear();
    }

    /// The cache loses power. `survives` is asked for each sector of each unflushed change, by number of the change and of
    /// the sector within it, whether it reached the medium.
    pub fn crash(&mut self, mut survives: impl FnMut(usize, usize) -> bool) {
        for (index, change) in std::mem::take(&mut self.changes).into_iter().enumerate() {
            let start = change.offset / BLOCK_SIZE as u64;
            for piece in &change.pieces {
                let base = usize::try_from(piece.block - start).unwrap_or(0) * SECTORS_PER_BLOCK;
                let bit = |sector: usize| SectorMask::from(survives(index, base + sector)) << sector;
                let mask = (0..SECTORS_PER_BLOCK).map(bit).fold(0, |mask, bit| mask | bit) & piece.mask;
                if mask != 0 {
                    let merged = merge(self.medium.block(piece.block), &piece.data, mask);
                    self.medium.set_block(piece.block, merged);
                }
            }
        }
        self.fresh.clear();
    }

    pub fn unflushed(&self) -> Vec<Unflushed> {
        let entry = |c: &Change| Unflushed { offset: c.offset, len: c.len, acknowledged: c.acknowledged };
        self.changes.iter().map(entry).collect()
    }

    /// What would be left if everything unflushed were lost.
    pub fn medium(&self) -> &SimImage {
        &self.medium
    }

    /// What a read sees.
    pub fn seen(&self) -> SimImage {
        let mut image = self.medium.clone();
        image.absorb(&mut self.fresh.clone());
        image
    }

    /// Another medium; the cache is emptied.
    pub fn replace(&mut self, medium: SimImage) {
        self.medium = medium;
        self.fresh.clear();
        self.changes.clear();
    }

    /// Changes bytes behind the disk's back, on the medium and in the cache.
    pub fn tamper(&mut self, offset: u64, len: usize, change: impl Fn(&mut [u8])) {
        let block = BLOCK_SIZE as u64;
        let mut bytes = vec![0; len];
        self.medium.read(offset, &mut bytes);
        change(&mut bytes);
        self.medium.write(offset, &bytes);
        let end = offset.saturating_add(len as u64).div_ceil(block);
        for number in self.fresh.written(offset / block..end) {
            let from = offset.max(number * block);
            let to = offset.saturating_add(len as u64).min((number + 1) * block);
            let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
            let skip = usize::try_from(from - offset).unwrap_or(0);
            let mut all = vec![0; len];
            self.fresh.read(from, &mut bytes);
            all[skip..skip + bytes.len()].copy_from_slice(&bytes);
            change(&mut all);
            self.fresh.write(from, &all[skip..skip + bytes.len()]);
        }
    }
}

/// Cuts a write into blocks; only the first `sectors` sectors are carried.
fn pieces(offset: u64, data: &[u8], sectors: usize) -> Vec<Piece> {
    let first = offset / BLOCK_SIZE as u64;
    let piece = |(index, chunk): (usize, &[u8])| {
        let mut block = [0; BLOCK_SIZE];
        block[..chunk.len()].copy_from_slice(chunk);
        let carried = sectors.saturating_sub(index * SECTORS_PER_BLOCK).min(SECTORS_PER_BLOCK);
        let mask = (0..carried).fold(0, |mask, sector| mask | 1 << sector);
        Piece { block: first + index as u64, data: Arc::new(block), mask }
    };
    data.chunks(BLOCK_SIZE).enumerate().map(piece).filter(|p| p.mask != 0).collect()
}
