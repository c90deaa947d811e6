//! The content of a medium, sparse: what was never written reads as zeros and takes no memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::buf::BLOCK_SIZE;

/// One 4 KiB block.
pub(super) type Block = [u8; BLOCK_SIZE];

/// A snapshot of a medium. Cheap to clone: blocks are shared until they change.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SimImage {
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl SimImage {
    /// The block with this number, if it was ever written.
    pub(super) fn block(&self, number: u64) -> Option<&Arc<Block>> {
        self.blocks.get(&number)
    }

    pub(super) fn set_block(&mut self, number: u64, block: Arc<Block>) {
        self.blocks.insert(number, block);
    }

    pub(super) fn remove_block(&mut self, number: u64) {
        self.blocks.remove(&number);
    }

    /// Numbers of the written blocks in a range of blocks.
    pub(super) fn written(&self, range: std::ops::Range<u64>) -> Vec<u64> {
        self.blocks.range(range).map(|(number, _)| *number).collect()
    }

    /// Moves everything from `newer` over this.
    pub(super) fn absorb(&mut self, newer: &mut SimImage) {
        self.blocks.append(&mut newer.blocks);
    }

    pub(super) fn clear(&mut self) {
        self.blocks.clear();
    }

    /// Copies bytes out; any offset and length.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        for_blocks(offset, buf.len(), |number, within, range| {
            let target = &mut buf[range];
            match self.block(number) {
                Some(block) => target.copy_from_slice(&block[within..within + target.len()]),
                None => target.fill(0),
            }
        });
    }

    /// Overwrites bytes; any offset and length.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for_blocks(offset, bytes.len(), |number, within, range| {
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK_SIZE]));
            let source = &bytes[range];
            Arc::make_mut(block)[within..within + source.len()].copy_from_slice(source);
        });
    }

    /// Blocks of 4 KiB that hold data.
    pub fn written_blocks(&self) -> usize {
        self.blocks.len()
    }
}

/// Cuts a byte range at block boundaries: block number, first byte in the block, range of the caller's buffer.
fn for_blocks(offset: u64, len: usize, mut f: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let block = BLOCK_SIZE as u64;
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(done as u64);
        let within = usize::try_from(at % block).expect("less than a block");
        let step = (BLOCK_SIZE - within).min(len - done);
        f(at / block, within, done..done + step);
        done += step;
    }
}

impl std::fmt::Debug for SimImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimImage({} blocks)", self.blocks.len())
    }
}
