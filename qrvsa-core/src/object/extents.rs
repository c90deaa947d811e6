//! Extent items: how they are read, checked, published and seen as a whole.
//!
//! The sync thread replaces the extents of a slot by several item changes. A reader's scan must see all of them or none:
//! half of them may lack a block that exists before and after. So each shard has a sequence number that is odd while a
//! publication runs; a scan that spans a change of the number is done again, after a few times with publications locked
//! out. This needs no atomicity of the items below.

use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use super::layer::{BLOCK, BLOCKS_END, Shape};
use super::plan::Span;
use super::{KIND_EXTENT, KIND_SPACE, Objects, Shard};
use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{ObjectRef, Value};
use crate::record::pointer::Pointer;
use crate::tree::Key;

/// Scans without a lock before publications are locked out.
const OPTIMISTIC_SCANS: usize = 4;
/// Extents per scan.
pub(super) const PAGE: usize = 128;

/// An extent of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// First block.
    pub block: u64,
    pub pointer: Pointer,
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.block + u64::from(self.pointer.blocks)
    }

    pub fn key(&self, object: u64) -> Key {
        extent_key(object, self.block)
    }

    /// The extent as a run of its slot.
    pub fn span(&self, shape: Shape) -> Span {
        Span { first: shape.in_slot(self.block) as u16, blocks: self.pointer.blocks }
    }
}

/// The key of the extent that starts at `block`.
pub(super) fn extent_key(object: u64, block: u64) -> Key {
    Key::new(object, KIND_EXTENT, block * BLOCK)
}

/// The item of an extent.
pub(super) fn extent_value(pointer: &Pointer) -> Value {
    let mut bytes = Vec::with_capacity(pointer.encoded_len());
    pointer.encode(&mut bytes);
    bytes.into()
}

/// Reads an extent item that is not known to be right.
pub(super) fn decode_extent(shape: Shape, key: Key, value: &[u8]) -> Result<Extent> {
    let bad = |what: &str| {
        Error::new(ErrorKind::Corrupt, format!("extent of object {} at {}: {what}", key.object, key.offset))
    };
    let (pointer, used) = Pointer::decode(value)?;
    if used != value.len() {
        return Err(bad("trailing bytes"));
    }
    let block = key.offset / BLOCK;
    if !key.offset.is_multiple_of(BLOCK) || block >= BLOCKS_END {
        return Err(bad("impossible offset"));
    }
    if shape.slot(block) != shape.slot(block + u64::from(pointer.blocks) - 1) {
        return Err(bad("crosses the end of its slot"));
    }
    Ok(Extent { block, pointer })
}

/// Some extents, ascending and without overlap, and where to go on if there may be more.
pub(super) struct Page {
    pub extents: Vec<Extent>,
    pub next: Option<u64>,
}

impl Shard {
    /// Runs `change` as one publication.
    pub fn publish(&self, change: impl FnOnce()) {
        let _lock = self.publishing.lock();
        self.sequence.fetch_add(1, SeqCst);
        change();
        self.sequence.fetch_add(1, SeqCst);
    }

    /// The sequence number between publications.
    fn stable_sequence(&self) -> u64 {
        loop {
            let sequence = self.sequence.load(SeqCst);
            if sequence.is_multiple_of(2) {
                return sequence;
            }
            drop(self.publishing.lock());
        }
    }

    /// Runs `look` so that no publication falls into it; returns its result and the sequence number it is valid for.
    pub fn stable<T>(&self, mut look: impl FnMut() -> Result<T>) -> Result<(T, u64)> {
        for _ in 0..OPTIMISTIC_SCANS {
            let before = self.stable_sequence();
            let found = look();
            if self.sequence.load(SeqCst) == before {
                return Ok((found?, before));
            }
        }
        let _lock = self.publishing.lock();
        Ok((look()?, self.sequence.load(SeqCst)))
    }
}

impl Objects {
    /// At most `limit` extents that start in `blocks`.
    pub(super) fn extent_page(
        &self,
        object: ObjectRef,
        shape: Shape,
        blocks: Range<u64>,
        limit: usize,
    ) -> Result<Page> {
        if blocks.is_empty() {
            return Ok(Page { extents: Vec::new(), next: None });
        }
        let (from, to) = (extent_key(object.id, blocks.start), extent_key(object.id, blocks.end - 1));
        let items = self.items.scan(from, to, limit)?;
        let mut extents: Vec<Extent> = Vec::with_capacity(items.len());
        for (key, value) in &items {
            let extent = decode_extent(shape, *key, value)?;
            if extents.last().is_some_and(|last| last.end() > extent.block) {
                return Err(Error::new(ErrorKind::Corrupt, format!("extents of object {} overlap", object.id)));
            }
            extents.push(extent);
        }
        let next = if items.len() < limit { None } else { extents.last().map(Extent::end).filter(|&n| n < blocks.end) };
        Ok(Page { extents, next })
    }

    /// All extents that touch `blocks`. For ranges of a bounded number of slots.
    pub(super) fn extents(&self, object: ObjectRef, shape: Shape, blocks: Range<u64>) -> Result<Vec<Extent>> {
        let page = self.extent_page(object, shape, shape.slot_start(blocks.start)..blocks.end, PAGE)?;
        let (mut all, mut next) = (page.extents, page.next);
        while let Some(from) = next {
            let page = self.extent_page(object, shape, from..blocks.end, PAGE)?;
            all.extend(page.extents);
            next = page.next;
        }
        let before = all.iter().take_while(|e| e.end() <= blocks.start).count();
        all.drain(..before);
        Ok(all)
    }

    /// As [`Objects::extents`], with no publication in between, and the sequence number it is valid for.
    pub(super) fn stable_extents(
        &self,
        object: ObjectRef,
        shape: Shape,
        blocks: &Range<u64>,
    ) -> Result<(Vec<Extent>, u64)> {
        self.shard(object.id).stable(|| self.extents(object, shape, blocks.clone()))
    }

    /// Blocks in all extents of an object (its `KIND_SPACE` item).
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn space_blocks(&self, object: u64) -> Result<u64> {
        let Some(value) = self.items.get(Key::new(object, KIND_SPACE, 0))? else { return Ok(0) };
        let bytes: [u8; 8] = value.as_ref().try_into().map_err(|_| {
            Error::new(ErrorKind::Corrupt, format!("space item of object {object} is not eight bytes long"))
        })?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Bytes of `blocks` blocks in memory.
pub(super) fn bytes(blocks: u64) -> usize {
    blocks as usize * BLOCK_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_extents() {
        let shape = Shape { slot_blocks: 32 };
        let pointer = |blocks| Pointer {
            group: 1,
            row: 2,
            birth: 3,
            blocks,
            width: 1,
            parity: 2,
            checksums: vec![0; usize::from(blocks).div_ceil(4)].into(),
        };
        let decode = |offset, value: &[u8]| decode_extent(shape, Key::new(9, KIND_EXTENT, offset), value);
        let good = extent_value(&pointer(4));
        assert_eq!(decode(28 * 4096, &good).unwrap().end(), 32);
        assert_eq!(decode(29 * 4096, &good).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(decode(4095, &good).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(decode(BLOCKS_END * BLOCK, &good).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(decode(!4095, &good).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(decode(0, &good[..good.len() - 1]).is_err());
        assert!(decode(0, &[&good[..], &[0]].concat()).is_err());
        assert!(decode(0, &[]).is_err());
    }
}
