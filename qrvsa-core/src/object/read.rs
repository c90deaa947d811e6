//! Reading: dirty blocks from the layers, the rest through one batch of record reads straight into the caller's memory.
//!
//! The layers are looked at first, under the object's mutex; then, without it, the extents for what they did not hold.
//! Whatever happens in between is legal: a block that was in no layer then has, in the extents now, the same content or
//! newer one that was written since.

use std::ops::Range;
use std::{mem, slice};

use super::extents::Extent;
use super::layer::{BLOCK, Cover, Layer, Shape, State};
use super::{Objects, ReadRequest, blocks_of};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::error::{ErrorKind, Result};
use crate::item::ObjectRef;

/// Look-ups of the extents for one read, when records turn out unreadable and the extents changed meanwhile.
const LOOKUPS_MAX: usize = 8;

/// A caller's buffer and where in the object it lies.
pub(super) struct Window<'a> {
    pub offset: u64,
    pub buf: &'a mut [u8],
}

impl Window<'_> {
    /// The part of the buffer that bytes `start..end` of the object fall on, and how much of their front is cut off.
    fn part(&mut self, start: u64, end: u64) -> (&mut [u8], usize) {
        let (low, high) = (start.max(self.offset), end.min(self.offset + self.buf.len() as u64));
        if low >= high {
            return (&mut [], 0);
        }
        (&mut self.buf[(low - self.offset) as usize..(high - self.offset) as usize], (low - start) as usize)
    }

    fn copy(&mut self, block: u64, bytes: &[u8]) {
        let start = block * BLOCK;
        let (part, skip) = self.part(start, start + bytes.len() as u64);
        part.copy_from_slice(&bytes[skip..skip + part.len()]);
    }

    fn zero(&mut self, blocks: Range<u64>) {
        self.part(blocks.start * BLOCK, blocks.end * BLOCK).0.fill(0);
    }
}

impl Layer {
    /// Copies what this layer has of `blocks`; what lies below goes to `rest`.
    fn read(&self, shape: Shape, blocks: Range<u64>, window: &mut Window<'_>, rest: &mut Vec<Range<u64>>) {
        let mut gap = |gap: Range<u64>, window: &mut Window<'_>| {
            if gap.is_empty() {
                return;
            }
            let mut at = gap.start;
            for hole in self.holes.within(gap.clone()) {
                if at < hole.start {
                    rest.push(at..hole.start);
                }
                at = hole.end;
                window.zero(hole);
            }
            if at < gap.end {
                rest.push(at..gap.end);
            }
        };
        let mut at = blocks.start;
        for (slot, entry, run) in self.dirty_runs(shape, blocks.clone()) {
            let start = shape.range(slot).start;
            gap(at..start + run.start as u64, window);
            at = start + run.end as u64;
            entry.data.pieces(run, |block, bytes| window.copy(start + block as u64, bytes));
        }
        gap(at..blocks.end, window);
    }
}

impl State {
    /// Whether a layer has anything to say about `blocks`.
    fn touches(&self, shape: Shape, blocks: &Range<u64>) -> bool {
        let says = |layer: &Layer| {
            layer.dirty_runs(shape, blocks.clone()).next().is_some()
                || layer.holes.within(blocks.clone()).next().is_some()
        };
        [&self.open, &self.syncing].into_iter().flatten().any(says)
    }

    /// Copies what the layers have of `blocks`; returns what has to come from the extents.
    fn read(&self, shape: Shape, blocks: Range<u64>, window: &mut Window<'_>) -> Vec<Range<u64>> {
        let mut missing = vec![blocks];
        for layer in [&self.open, &self.syncing].into_iter().flatten() {
            let mut rest = Vec::new();
            for range in missing {
                layer.read(shape, range, window, &mut rest);
            }
            missing = rest;
        }
        missing
    }
}

impl Objects {
    /// Fills `buf` from the object's contents at `offset`; what was never written reads as zeros. Every block is read
    /// as it was before or after each concurrent change of it, never in between.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; `Invalid` past 2^63 bytes.
    pub fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        let shape = Shape::of(object)?;
        let blocks = blocks_of(offset, buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        let mut window = Window { offset, buf };
        let missing = match self.find(object.id) {
            Some(found) => found.state.lock().read(shape, blocks, &mut window),
            None => vec![blocks],
        };
        self.fill(object, shape, &missing, &mut window)?;
        Ok(())
    }

    /// The bytes at `offset` as they lie in a cache, if all of them are in one and none is dirty or was never written;
    /// `None`: they have to be read. They are as [`Objects::read`] would have returned them, and stay so.
    ///
    /// # Errors
    /// As for `read`, of looking them up.
    pub fn lend(&self, object: ObjectRef, offset: u64, len: usize) -> Result<Option<Vec<BufSlice>>> {
        let shape = Shape::of(object)?;
        let blocks = blocks_of(offset, len)?;
        if blocks.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if let Some(found) = self.find(object.id)
            && found.state.lock().touches(shape, &blocks)
        {
            return Ok(None);
        }
        let _pin = self.io.pin();
        let (extents, _) = self.stable_extents(object, shape, &blocks)?;
        let (mut at, end) = (offset, offset + len as u64);
        let mut parts = Vec::with_capacity(extents.len());
        for extent in &extents {
            let start = extent.block * BLOCK;
            let to = end.min(extent.end() * BLOCK);
            if at < start {
                return Ok(None);
            }
            if at < to {
                if !self.io.lend(&extent.pointer, (at - start) as usize..(to - start) as usize, &mut parts) {
                    return Ok(None);
                }
                at = to;
            }
        }
        Ok((at == end).then_some(parts))
    }

    /// What `block` holds below the open layer; `None` where there is no data.
    pub(super) fn read_below_open(&self, object: ObjectRef, shape: Shape, block: u64) -> Result<Option<AlignedBuf>> {
        let mut buf = AlignedBuf::zeroed(BLOCK_SIZE);
        let mut window = Window { offset: block * BLOCK, buf: &mut buf };
        if let Some(found) = self.find(object.id)
            && let Some(syncing) = &found.state.lock().syncing
        {
            match syncing.cover(shape, block) {
                Cover::Data { .. } => {
                    syncing.read(shape, block..block + 1, &mut window, &mut Vec::new());
                    return Ok(Some(buf));
                }
                Cover::Hole { .. } => return Ok(None),
                Cover::Below { .. } => (),
            }
        }
        let any = self.fill(object, shape, slice::from_ref(&(block..block + 1)), &mut window)?;
        Ok(any.then_some(buf))
    }

    /// Fills the blocks `missing` (ascending) from the extents; returns whether there was any.
    fn fill(&self, object: ObjectRef, shape: Shape, missing: &[Range<u64>], window: &mut Window<'_>) -> Result<bool> {
        let (Some(first), Some(last)) = (missing.first(), missing.last()) else { return Ok(false) };
        let hull = first.start..last.end;
        let mut lookups = 1;
        let mut _pin = self.io.pin();
        let (mut extents, _) = self.stable_extents(object, shape, &hull)?;
        loop {
            let error = match self.read_records(&extents, missing, window) {
                Ok(any) => return Ok(any),
                Err(error) => error,
            };
            if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt) || lookups == LOOKUPS_MAX {
                return Err(error);
            }
            lookups += 1;
            _pin = self.io.pin();
            let (again, _) = self.stable_extents(object, shape, &hull)?;
            if again == extents {
                return Err(error);
            }
            extents = again;
        }
    }

    /// Reads the blocks `missing` through `extents`; what lies in none is zeroed. Returns whether anything was read.
    fn read_records(&self, extents: &[Extent], missing: &[Range<u64>], window: &mut Window<'_>) -> Result<bool> {
        let (start, end) = (window.offset, window.offset + window.buf.len() as u64);
        // Blocks that the buffer holds only a part of are read aside.
        let head = (!start.is_multiple_of(BLOCK)).then_some(start / BLOCK);
        let tail = (!end.is_multiple_of(BLOCK)).then_some(end / BLOCK).filter(|_| head != Some(end / BLOCK));
        let mut edges: Vec<(u64, &Extent)> = Vec::new();
        let mut requests: Vec<ReadRequest<'_>> = Vec::with_capacity(extents.len() + 2);
        let mut rest = Rest { at: start, end, buf: &mut *window.buf };
        for range in missing {
            let mut at = range.start;
            let skip = extents.partition_point(|e| e.end() <= range.start);
            for extent in &extents[skip..] {
                let (mut from, mut to) = (extent.block.max(at), extent.end().min(range.end));
                if extent.block >= range.end {
                    break;
                }
                rest.take(at, from).fill(0);
                at = to;
                if head == Some(from) {
                    edges.push((from, extent));
                    from += 1;
                }
                if from < to && tail == Some(to - 1) {
                    edges.push((to - 1, extent));
                    to -= 1;
                }
                if from < to {
                    let first_block = (from - extent.block) as u16;
                    requests.push(ReadRequest { pointer: &extent.pointer, first_block, out: rest.take(from, to) });
                }
            }
            rest.take(at, range.end).fill(0);
        }
        let mut aside: Vec<AlignedBuf> = edges.iter().map(|_| AlignedBuf::zeroed(BLOCK_SIZE)).collect();
        for (&(block, extent), buf) in edges.iter().zip(&mut aside) {
            let first_block = (block - extent.block) as u16;
            requests.push(ReadRequest { pointer: &extent.pointer, first_block, out: buf });
        }
        if requests.is_empty() {
            return Ok(false);
        }
        self.io.read(&mut requests)?;
        drop(requests);
        for (&(block, _), buf) in edges.iter().zip(&aside) {
            window.copy(block, buf);
        }
        Ok(true)
    }
}

/// The part of a buffer behind what was handed out.
struct Rest<'a> {
    at: u64,
    end: u64,
    buf: &'a mut [u8],
}

impl<'a> Rest<'a> {
    /// The part for blocks `from..to`, clipped to the buffer. Parts are taken in ascending order.
    fn take(&mut self, from: u64, to: u64) -> &'a mut [u8] {
        let low = (from * BLOCK).clamp(self.at, self.end);
        let high = (to * BLOCK).clamp(low, self.end);
        let (_, buf) = mem::take(&mut self.buf).split_at_mut((low - self.at) as usize);
        let (part, rest) = buf.split_at_mut((high - low) as usize);
        self.buf = rest;
        self.at = high;
        part
    }
}
