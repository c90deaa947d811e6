//! The content of a simulated medium: a shared base and the blocks that differ from it. Taking a copy costs as much as the
//! differences, so thousands of crash states share one base.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Bytes written or lost as one: the unit of tearing.
pub const SECTOR: usize = 512;
/// Sectors of a block.
pub const SECTORS: usize = BLOCK / SECTOR;

/// One block's content, shared until it changes.
pub type Block = Arc<[u8; BLOCK]>;

/// Block numbers are spread well enough by a multiplication.
#[derive(Default, Clone, Copy)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type Blocks = HashMap<u64, Block, BuildHasherDefault<NumberHasher>>;

/// What a medium holds; what was never written reads as zeros.
#[derive(Clone, Default)]
pub struct Image {
    base: Arc<Blocks>,
    over: Blocks,
}

impl Image {
    /// The block with this number, if it was ever written.
    pub fn block(&self, number: u64) -> Option<&Block> {
        self.over.get(&number).or_else(|| self.base.get(&number))
    }

    /// Writes one block.
    pub fn set(&mut self, number: u64, block: Block) {
        self.over.insert(number, block);
    }

    /// Copies whole blocks out, beginning at a block.
    pub fn read(&self, first: u64, buf: &mut [u8]) {
        for (number, target) in (first..).zip(buf.chunks_mut(BLOCK)) {
            match self.block(number) {
                Some(block) => target.copy_from_slice(&block[..target.len()]),
                None => target.fill(0),
            }
        }
    }

    /// Makes the differences part of the base, so that copies from here on are cheap.
    pub fn settle(&mut self) {
        if !self.over.is_empty() {
            let over = std::mem::take(&mut self.over);
            Arc::make_mut(&mut self.base).extend(over);
        }
    }

    /// All written blocks, in order.
    pub fn blocks(&self) -> BTreeMap<u64, Block> {
        self.base.iter().chain(&self.over).map(|(n, b)| (*n, b.clone())).collect()
    }
}

/// `new` in the sectors of the mask, else `old`.
pub fn merge(old: Option<&Block>, new: &Block, mask: u8) -> Block {
    if mask == u8::MAX {
        return new.clone();
    }
    let mut block = old.map_or([0; BLOCK], |b| **b);
    for sector in (0..SECTORS).filter(|s| mask & (1 << s) != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        block[range.clone()].copy_from_slice(&new[range]);
    }
    Arc::new(block)
}

/// A write on its way to a medium.
#[derive(Clone)]
pub struct Change {
    /// First block.
    pub first: u64,
    /// Contents, each with the sectors of it that are carried.
    pub blocks: Vec<(Block, u8)>,
}

impl Change {
    /// A write of whole blocks.
    pub fn new(offset: u64, data: &[u8]) -> Change {
        let block = |chunk: &[u8]| {
            let mut block = [0; BLOCK];
            block[..chunk.len()].copy_from_slice(chunk);
            (Arc::new(block), u8::MAX)
        };
        Change { first: offset / BLOCK as u64, blocks: data.chunks(BLOCK).map(block).collect() }
    }

    /// Sectors.
    pub fn sectors(&self) -> usize {
        self.blocks.len() * SECTORS
    }

    /// Writes those sectors of it that `keep` wants.
    pub fn apply(&self, image: &mut Image, mut keep: impl FnMut(usize) -> bool) {
        for (i, (block, mask)) in self.blocks.iter().enumerate() {
            let kept = (0..SECTORS).filter(|s| keep(i * SECTORS + s)).fold(0u8, |m, s| m | 1 << s) & mask;
            if kept != 0 {
                let number = self.first + i as u64;
                let merged = merge(image.block(number), block, kept);
                image.set(number, merged);
            }
        }
    }

    /// Writes all of it.
    pub fn apply_all(&self, image: &mut Image) {
        for (i, (block, mask)) in self.blocks.iter().enumerate() {
            let number = self.first + i as u64;
            let merged = merge(image.block(number), block, *mask);
            image.set(number, merged);
        }
    }

    /// Whether it has blocks in common with another.
    pub fn overlaps(&self, other: &Change) -> bool {
        self.first < other.first + other.blocks.len() as u64 && other.first < self.first + self.blocks.len() as u64
    }
}
