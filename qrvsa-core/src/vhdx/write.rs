//! Writing, and taking space for what is written.
//!
//! A block that gets its first bytes is given space in memory only: the table's page becomes dirty and goes into the log with
//! the next flush, together with all others. Until then a crash takes block and bytes away together, which is what an
//! unflushed write may suffer. See `commit` for the order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::format::{BatEntry, BitmapState, MIB, PayloadState};
use super::image::{Image, Piece, Shape};
use super::pages::Page;
use super::space::SpaceMap;
use crate::error::Result;

/// Dirty pages at which a commit comes before the next change: with what a change adds (a page of payload entries, one of
/// bitmap entries, 16 of bits), they fit into one log entry.
const DIRTY_PAGES_MAX: usize = 56;
/// Bytes freed at which a commit makes them usable again.
const FREED_BYTES_MAX: u64 = 4 << 30;
/// The file grows by at least so many bytes at once; what is unused goes when the image is closed.
const GROWTH: u64 = 64 << 20;
/// Shorter writes are not looked at for whether they go on in new space.
const LONG_BYTES: usize = 64 << 10;
/// Space for the table is taken from the filesystem in pieces of so many bytes.
const RESERVE_BYTES: u64 = 64 << 10;

/// What is changed in memory and not in the file.
#[derive(Default)]
pub(super) struct Allocation {
    /// Which part of the file is whose; made at the first change.
    pub map: Option<SpaceMap>,
    /// Changed pages by file offset, pinned.
    pub dirty_pages: BTreeMap<u64, Arc<Page>>,
    /// Runs of the file that the table gives up with the next commit: offset and length.
    pub freed: Vec<(u64, u64)>,
    pub freed_bytes: u64,
    /// A commit of pages that were dirty is under way.
    pub committing: bool,
    /// Monotonic time at which the oldest dirty page became so.
    pub dirty_since_ns: Option<u64>,
    /// File offsets of the pieces of the table that have space in the filesystem.
    reserved: HashSet<u64>,
}

impl Allocation {
    /// Takes a pinned page among the dirty ones; a second pin is let go.
    pub fn dirty(&mut self, offset: u64, page: Arc<Page>, now_ns: u64) {
        self.dirty_since_ns.get_or_insert(now_ns);
        if let Some(before) = self.dirty_pages.insert(offset, page) {
            before.unpin();
        }
    }

    fn is_full(&self) -> bool {
        self.dirty_pages.len() >= DIRTY_PAGES_MAX || self.freed_bytes >= FREED_BYTES_MAX
    }
}

/// Where bytes of a block may be written.
pub(super) struct Target {
    /// File offset of the piece.
    pub offset: u64,
    /// The sectors must be marked as present afterwards.
    pub mark: bool,
    /// The block was given its space for this piece.
    pub fresh: bool,
}

impl Image {
    /// Writes `bytes` at `offset`, both multiples of the logical sector. Volatile until a flush.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) outside the disk or not aligned;
    /// [`ErrorKind::ReadOnly`](crate::ErrorKind::ReadOnly); [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace) if the
    /// filesystem is full: the image is as good as before; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if its
    /// structures make writing unsafe; [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.begin_change(true)?;
        let shape = self.shape.read();
        self.check_range(&shape, offset, bytes.len() as u64)?;
        for piece in Self::pieces(&shape.layout, offset, bytes.len()) {
            let _pass = self.gates.enter(piece.block);
            let target = self.target(&shape, piece)?;
            let part = &bytes[piece.at..piece.at + piece.len];
            self.file.write_at(part, target.offset).map_err(self.failed("cannot write"))?;
            if target.mark {
                self.wrote_part(&shape, piece)?;
            }
            if target.fresh || part.len() >= LONG_BYTES {
                self.file.wrote_new(target.offset, part.len() as u64, target.fresh);
            }
        }
        Ok(())
    }

    /// The allocation state, with room for one more change; commits if there is none.
    pub(super) fn space_with_room(&self) -> Result<MutexGuard<'_, Allocation>> {
        loop {
            let space = self.space.lock();
            if !space.is_full() {
                return Ok(space);
            }
            drop(space);
            self.commit()?;
        }
    }

    /// Where a piece can be written, taking space for its block if it has none. The caller holds the block's pass.
    pub(super) fn target(&self, shape: &Shape, piece: Piece) -> Result<Target> {
        // Looked at again after space was taken.
        for fresh in [false, true] {
            let entry = self.entry(shape, piece.block)?;
            match entry.payload_state() {
                state @ (PayloadState::FullyPresent | PayloadState::PartiallyPresent) => {
                    let offset = self.place(shape, piece.block, entry)? + piece.within;
                    return Ok(Target { offset, mark: state == PayloadState::PartiallyPresent, fresh });
                }
                PayloadState::Reserved(bits) => return Err(self.reserved_state(piece.block, bits)),
                _ => self.allocate(shape, piece.block)?,
            }
        }
        crate::fail!(Io, "{}: block {} lost its space while it was written", self.file.path().display(), piece.block)
    }

    /// The bytes of a piece of a partially present block are written: its sectors are in this file now.
    pub(super) fn wrote_part(&self, shape: &Shape, piece: Piece) -> Result<()> {
        let mut space = self.space_with_room()?;
        let entry = self.entry(shape, piece.block)?;
        if entry.payload_state() != PayloadState::PartiallyPresent {
            return Ok(());
        }
        if piece.len as u64 == shape.bytes_in(piece.block) {
            let full = BatEntry::payload(PayloadState::FullyPresent, entry.offset());
            return self.set_entry(shape, &mut space, shape.layout.payload_index(piece.block), full);
        }
        self.mark_sectors(shape, &mut space, piece.block, piece.within, piece.len as u64, true)
    }

    /// Gives a block space that reads as what the block reads as now.
    fn allocate(&self, shape: &Shape, block: u64) -> Result<()> {
        let mut space = self.space_with_room()?;
        let entry = self.entry(shape, block)?;
        if entry.payload_state().has_space() {
            return Ok(());
        }
        let index = shape.layout.payload_index(block);
        self.reserve_table(shape, &mut space, index)?;
        let over_parent = entry.payload_state() == PayloadState::NotPresent && self.parent.is_some();
        if !over_parent {
            let offset = self.take_space(&mut space, shape.layout.block_size)?;
            return self.set_entry_or_free(
                shape,
                &mut space,
                index,
                BatEntry::payload(PayloadState::FullyPresent, offset),
            );
        }
        let chunk = shape.layout.chunk_of(block);
        let bitmap_index = shape.layout.bitmap_index(chunk);
        let bitmap = BatEntry(shape.table.word(&*self.file, bitmap_index)?);
        if bitmap.bitmap_state() != BitmapState::Present {
            self.reserve_table(shape, &mut space, bitmap_index)?;
            let offset = self.take_space(&mut space, MIB)?;
            self.set_entry_or_free(shape, &mut space, bitmap_index, BatEntry::bitmap(offset))?;
        }
        let offset = self.take_space(&mut space, shape.layout.block_size)?;
        // Bits that somebody left behind would hide the parent.
        let cleared = self.mark_sectors(shape, &mut space, block, 0, shape.layout.block_size, false);
        if let Err(error) = cleared {
            self.untake_space(&mut space, offset, shape.layout.block_size);
            return Err(error);
        }
        self.set_entry_or_free(shape, &mut space, index, BatEntry::payload(PayloadState::PartiallyPresent, offset))
    }

    /// Changes an entry of the table in memory.
    pub(super) fn set_entry(&self, shape: &Shape, space: &mut Allocation, index: u64, entry: BatEntry) -> Result<()> {
        let (page, word) = shape.table.pin(&*self.file, index)?;
        page.set(word, entry.0);
        let offset = shape.table.page_offset((index / super::pages::WORDS as u64) as usize);
        space.dirty(offset, page, self.env.clock.monotonic_ns());
        Ok(())
    }

    fn set_entry_or_free(&self, shape: &Shape, space: &mut Allocation, index: u64, entry: BatEntry) -> Result<()> {
        let set = self.set_entry(shape, space, index, entry);
        if set.is_err() {
            let bitmap = matches!(shape.layout.slot(index), super::format::BatSlot::Bitmap(_));
            let length = if bitmap { MIB } else { shape.layout.block_size };
            self.untake_space(space, entry.offset(), length);
        }
        set
    }

    /// Takes space from the filesystem for the place where the entry stands, so that the commit cannot fail for want of it.
    fn reserve_table(&self, shape: &Shape, space: &mut Allocation, index: u64) -> Result<()> {
        let offset = shape.table.offset + index * 8 / RESERVE_BYTES * RESERVE_BYTES;
        if space.reserved.contains(&offset) {
            return Ok(());
        }
        self.file.reserve(offset, RESERVE_BYTES).map_err(self.failed("cannot grow"))?;
        if space.reserved.len() > 1 << 16 {
            space.reserved.clear();
        }
        space.reserved.insert(offset);
        Ok(())
    }

    /// Takes a run of the file that reads as zeros.
    pub(super) fn take_space(&self, space: &mut Allocation, length: u64) -> Result<u64> {
        let path = self.file.path().display();
        let Some(map) = &mut space.map else {
            crate::fail!(Io, "{path}: space is taken before the image is prepared for changes");
        };
        let Some((mib, reused)) = map.allocate(length / MIB) else {
            crate::fail!(NoSpace, "{path}: the file cannot become longer");
        };
        let offset = mib * MIB;
        let end = offset + length;
        let taken = (|| {
            if end > self.file_length() {
                let longer = (self.file_length() + GROWTH.max(length)).max(end);
                // A limit of the filesystem may lie between what is needed and what is comfortable.
                let longer = match self.file.set_length(longer) {
                    Ok(()) => longer,
                    Err(_) => self.file.set_length(end).map(|()| end)?,
                };
                self.file_length.store(longer, Ordering::Release);
            }
            if reused { self.file.zero(offset, length, true) } else { Ok(()) }
        })();
        taken.map_err(|error| {
            self.untake_space(space, offset, length);
            self.failed("cannot grow")(error)
        })?;
        Ok(offset)
    }

    /// Gives a run back that nothing in the file refers to.
    pub(super) fn untake_space(&self, space: &mut Allocation, offset: u64, length: u64) {
        if let Some(map) = &mut space.map {
            map.release(super::space::mebibytes(offset, length));
        }
    }
}
