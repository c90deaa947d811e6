//! Compacting: blocks of zeros lose their space, the last blocks move down into gaps, the file ends behind what remains.
//!
//! A block is copied to its new place, and the table changes with the next commit, which flushes the copy before; the old
//! place is used again only after it. So a crash leaves each block where it was or where it went, whole. The table itself goes
//! the same way, as in a change of the size: a disk that grew has it behind blocks that may be gone by now, and one that
//! became smaller needs less of it.

use super::format::{BatEntry, BatSlot, BitmapState, MIB, PayloadState, Region, RegionTable};
use super::image::{Image, Shape};
use super::write::Allocation;
use crate::error::Result;

/// Bytes read or copied at once.
const PIECE: u64 = 1 << 20;

/// What compacting did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Blocks that had space and hold nothing but zeros, or nothing at all.
    pub released_blocks: u64,
    /// Blocks that moved.
    pub moved_blocks: u64,
    /// Length of the file before, bytes.
    pub length_before: u64,
    /// Length of the file after closing it, bytes. For a plan: at least that.
    pub length_after: u64,
}

impl Image {
    /// What [`Image::compact`] would do; reads all data of the file. `on_progress` gets blocks done and in all.
    ///
    /// # Errors
    /// As for [`Image::read`].
    pub fn plan_compact(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Compacted> {
        let mut plan = Compacted { length_before: self.file_length(), ..Compacted::default() };
        let shape = self.shape.read();
        let total = shape.layout.payload_blocks;
        let mut kept = MIB + u64::from(self.journal.lock().header().log_length);
        let regions = [shape.regions.bat, shape.regions.metadata].into_iter();
        kept += regions.chain(shape.regions.others.iter().map(|o| o.region)).map(|r| u64::from(r.length)).sum::<u64>();
        kept -= u64::from(shape.regions.bat.length).saturating_sub(table_length(&shape));
        let mut blocks = Vec::new();
        self.for_each_entry(&shape, |slot, entry| {
            match slot {
                BatSlot::Payload(block) if entry.payload_state().has_space() => blocks.push(block),
                BatSlot::Bitmap(_) if entry.bitmap_state() == BitmapState::Present => kept += MIB,
                _ => {}
            }
            Ok(())
        })?;
        for block in blocks {
            on_progress(block, total);
            if !shape.disk.leave_allocated && self.is_empty_block(&shape, block)?.is_some() {
                plan.released_blocks += 1;
            } else {
                kept += shape.layout.block_size;
            }
        }
        plan.length_after = kept.min(plan.length_before);
        Ok(plan)
    }

    /// Makes the file as short as whole blocks allow. Contents, and with them the image's identity, stay. The file is cut
    /// when the image is closed. `on_progress` gets steps done and in all.
    ///
    /// # Errors
    /// As for [`Image::write`].
    pub fn compact(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Compacted> {
        let mut done = Compacted { length_before: self.file_length(), ..Compacted::default() };
        self.begin_change(false)?;
        done.released_blocks = self.release_empty(on_progress)?;
        self.commit()?;
        self.renew_map()?;
        done.moved_blocks = self.move_down(on_progress)?;
        self.commit()?;
        if self.move_table()? {
            done.moved_blocks += self.move_down(on_progress)?;
            self.commit()?;
        }
        self.close()?;
        done.length_after = self.file_length();
        Ok(done)
    }

    /// The state a block can have without space, if it needs none.
    fn is_empty_block(&self, shape: &Shape, block: u64) -> Result<Option<PayloadState>> {
        let state = self.entry(shape, block)?.payload_state();
        match state {
            PayloadState::PartiallyPresent => {
                let here = shape.bytes_in(block);
                let whole = usize::try_from(here).unwrap_or(usize::MAX);
                let (present, run) = self.bitmap_run(shape, block, 0, whole)?;
                Ok((!present && run as u64 == here).then_some(PayloadState::NotPresent))
            }
            PayloadState::FullyPresent => {
                let place = self.place(shape, block, self.entry(shape, block)?)?;
                let zero = self.is_zero(place, shape.bytes_in(block))?;
                Ok(zero.then_some(PayloadState::Zero))
            }
            _ => Ok(None),
        }
    }

    /// Whether a run of the file reads as zeros; holes are not read.
    fn is_zero(&self, offset: u64, length: u64) -> Result<bool> {
        let (mut at, end) = (offset, offset + length);
        let mut buf = vec![0; PIECE as usize];
        while let Some(data) = self.file.next_data(at).map_err(self.failed("cannot read"))?.filter(|d| *d < end) {
            let len = PIECE.min(end - data);
            let Some(piece) = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)) else { break };
            self.file.read_at(piece, data).map_err(self.failed("cannot read"))?;
            if piece.iter().any(|b| *b != 0) {
                return Ok(false);
            }
            at = data + len;
        }
        Ok(true)
    }

    /// Takes the space of blocks that need none, and forgets places that discarded blocks keep.
    fn release_empty(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
        let shape = self.shape.read();
        if shape.disk.leave_allocated {
            return Ok(0);
        }
        let mut released = 0;
        let mut candidates = Vec::new();
        self.for_each_entry(&shape, |slot, entry| {
            if let BatSlot::Payload(block) = slot
                && entry.0 != 0
            {
                candidates.push(block);
            }
            Ok(())
        })?;
        let total = candidates.len() as u64;
        for (number, block) in candidates.into_iter().enumerate() {
            on_progress(number as u64, total);
            let _closed = self.gates.close(block);
            let entry = self.entry(&shape, block)?;
            let state = entry.payload_state();
            let index = shape.layout.payload_index(block);
            if !state.has_space() {
                let discarded = matches!(state, PayloadState::Undefined | PayloadState::Unmapped);
                if discarded && entry.offset() != 0 {
                    let mut space = self.space_with_room()?;
                    self.set_entry(&shape, &mut space, index, BatEntry::without_space(state))?;
                }
                continue;
            }
            if let Some(empty) = self.is_empty_block(&shape, block)? {
                let mut space = self.space_with_room()?;
                self.set_entry(&shape, &mut space, index, BatEntry::without_space(empty))?;
                space.freed.push((entry.offset(), shape.layout.block_size));
                space.freed_bytes += shape.layout.block_size;
                released += 1;
            }
        }
        Ok(released)
    }

    /// Makes the map of the file anew: places that discarded blocks kept are free now.
    fn renew_map(&self) -> Result<()> {
        let shape = self.shape.read();
        let journal = self.journal.lock();
        let mut space = self.space.lock();
        if space.dirty_pages.is_empty() && space.freed.is_empty() {
            space.map = Some(self.map_of_file(&shape, &journal)?);
        }
        Ok(())
    }

    /// Moves blocks from the end of the file into gaps before them.
    fn move_down(&self, on_progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
        let shape = self.shape.read();
        // Nothing behind this can be needed when all gaps are filled; only blocks that reach behind it have to move.
        let fits = self.space.lock().map.as_ref().map_or(0, |map| map.taken() * MIB);
        let mut blocks: Vec<(u64, u64, BatSlot)> = Vec::new();
        self.for_each_entry(&shape, |slot, entry| {
            let length = match slot {
                BatSlot::Payload(_) if entry.payload_state().has_space() => shape.layout.block_size,
                BatSlot::Bitmap(_) if entry.bitmap_state() == BitmapState::Present => MIB,
                _ => return Ok(()),
            };
            if entry.offset() + length > fits {
                blocks.push((entry.offset(), length, slot));
            }
            Ok(())
        })?;
        blocks.sort_unstable_by_key(|(offset, _, _)| std::cmp::Reverse(*offset));
        let total = blocks.len() as u64;
        let mut moved = 0;
        for (number, (offset, length, slot)) in blocks.into_iter().enumerate() {
            on_progress(number as u64, total);
            moved += u64::from(self.move_block(&shape, offset, length, slot)?);
        }
        Ok(moved)
    }

    /// Moves one block into a gap before it, if there is one.
    fn move_block(&self, shape: &Shape, offset: u64, length: u64, slot: BatSlot) -> Result<bool> {
        let (index, gate) = match slot {
            BatSlot::Payload(block) => (shape.layout.payload_index(block), block),
            BatSlot::Bitmap(chunk) => (shape.layout.bitmap_index(chunk), chunk * shape.layout.chunk_ratio),
            BatSlot::Unused => return Ok(false),
        };
        // A bitmap is used by every block of its chunk; nobody writes while an image is compacted but for the same caller.
        let _closed = self.gates.close(gate);
        let target = {
            let mut space = self.space_with_room()?;
            let Some(target) = gap_before(&mut space, offset, length) else { return Ok(false) };
            target
        };
        let copied = self.copy_block(offset, target, length);
        let mut space = self.space_with_room()?;
        let set = copied.and_then(|()| {
            let state = shape.table.word(&*self.file, index)? & 7;
            self.set_entry(shape, &mut space, index, BatEntry(target | state))
        });
        if let Err(error) = set {
            self.untake_space(&mut space, target, length);
            return Err(error);
        }
        space.freed.push((offset, length));
        space.freed_bytes += length;
        drop(space);
        if matches!(slot, BatSlot::Bitmap(_)) {
            self.bitmaps.forget(offset, length);
        }
        Ok(true)
    }

    /// Moves the table into a gap before it, or, where there is none, gives back what it has too much; whether it did.
    fn move_table(&self) -> Result<bool> {
        let mut shape = self.shape.write();
        let mut journal = self.journal.lock();
        // Nothing is dirty and everything is in its place when the table is looked at.
        self.commit_with(&mut journal, Vec::new())?;
        let old = shape.regions.bat;
        let length = table_length(&shape);
        let gap = gap_before(&mut self.space.lock(), old.offset, length);
        let (new, rest) = match gap {
            Some(offset) => {
                if let Err(error) = self.file.zero(offset, length, true) {
                    self.untake_space(&mut self.space.lock(), offset, length);
                    return Err(self.failed("cannot move the table of")(error));
                }
                (self.copy_table_to(&shape, offset, length)?, (old.offset, u64::from(old.length)))
            }
            // At most 514 MiB.
            None if length < u64::from(old.length) => (
                Region { offset: old.offset, length: length as u32 },
                (old.offset + length, u64::from(old.length) - length),
            ),
            None => return Ok(false),
        };
        let regions = RegionTable { bat: new, ..shape.regions.clone() };
        let changes = self.region_changes(&regions)?;
        self.space.lock().freed.push(rest);
        self.commit_with(&mut journal, changes)?;
        let moved = Shape::new(shape.disk, regions);
        shape.replace(moved);
        Ok(true)
    }

    /// Copies a run of the file into another, with its holes.
    fn copy_block(&self, from: u64, to: u64, length: u64) -> Result<()> {
        let failed = || self.failed("cannot move a block of");
        self.file.zero(to, length, true).map_err(failed())?;
        let end = from + length;
        let mut at = from;
        let mut buf = vec![0; PIECE as usize];
        while let Some(data) = self.file.next_data(at).map_err(failed())?.filter(|data| *data < end) {
            let len = PIECE.min(end - data);
            let Some(piece) = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)) else { break };
            self.file.read_at(piece, data).map_err(failed())?;
            self.file.write_at(piece, to + (data - from)).map_err(failed())?;
            at = data + len;
        }
        Ok(())
    }
}

/// Bytes that the table needs.
fn table_length(shape: &Shape) -> u64 {
    shape.layout.bytes().next_multiple_of(MIB)
}

/// Takes a gap before `before`.
fn gap_before(space: &mut Allocation, before: u64, length: u64) -> Option<u64> {
    let map = space.map.as_mut()?;
    let (mib, _) = map.allocate(length / MIB)?;
    if mib * MIB < before {
        return Some(mib * MIB);
    }
    map.release(mib..mib + length / MIB);
    None
}
