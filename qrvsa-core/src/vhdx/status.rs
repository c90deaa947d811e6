//! What an image holds where, for copies that leave out what is not there.

use super::format::{PayloadState, SECTORS_PER_CHUNK};
use super::image::{Image, Shape};
use super::pages::WORDS;
use crate::error::Result;

/// What a run of a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentKind {
    /// In this file, from this file offset on.
    Data {
        /// File offset, bytes.
        file_offset: u64,
    },
    /// Zeros, without space in this file or in a hole of it.
    Zero,
    /// Whatever the parent has.
    Parent,
}

/// A run of a disk of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes; not 0, unless at the end of the disk.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

impl Image {
    /// What lies at `offset`, a multiple of the logical sector, and how far that goes on; runs of one kind may be reported in
    /// several pieces. Holes of the file inside blocks count as zeros.
    ///
    /// # Errors
    /// As for [`Image::read`].
    pub fn status(&self, offset: u64) -> Result<Extent> {
        let shape = self.shape.read();
        self.check_range(&shape, offset, 0)?;
        if offset >= shape.disk.disk_size {
            return Ok(Extent { offset, length: 0, kind: ExtentKind::Zero });
        }
        let block_size = shape.layout.block_size;
        let mut found = self.status_in_block(&shape, offset)?;
        // Blocks without space follow each other in long runs.
        while matches!(found.kind, ExtentKind::Zero | ExtentKind::Parent) {
            let next = offset + found.length;
            if next >= shape.disk.disk_size || !next.is_multiple_of(block_size) {
                break;
            }
            let skipped = self.skip_absent(&shape, next / block_size, found.kind)?;
            if skipped > 0 {
                found.length = ((next / block_size + skipped) * block_size).min(shape.disk.disk_size) - offset;
                continue;
            }
            let more = self.status_in_block(&shape, next)?;
            if more.kind != found.kind {
                break;
            }
            found.length += more.length;
        }
        Ok(Extent { offset, ..found })
    }

    /// Blocks from `block` on that are not present, by looking at holes of the table instead of entries.
    fn skip_absent(&self, shape: &Shape, block: u64, kind: ExtentKind) -> Result<u64> {
        let absent = if self.parent.is_some() { ExtentKind::Parent } else { ExtentKind::Zero };
        let index = shape.layout.payload_index(block);
        let page = (index / WORDS as u64) as usize;
        if kind != absent || !index.is_multiple_of(WORDS as u64) || shape.table.is_loaded(page) {
            return Ok(0);
        }
        let from = shape.table.page_offset(page);
        let data = self.file.next_data(from).map_err(self.failed("cannot read the table of"))?;
        let entries = shape.layout.entries();
        let mut free = data.map_or(entries, |d| d.saturating_sub(shape.table.offset) / 8).min(entries);
        // Pages in memory may have been changed since.
        let mut loaded = page;
        while (loaded as u64) * (WORDS as u64) < free {
            if shape.table.is_loaded(loaded) {
                free = (loaded * WORDS) as u64;
                break;
            }
            loaded += 1;
        }
        // Entries before `free` are zero; those of payload blocks among them are what we want.
        let per_chunk = shape.layout.chunk_ratio + 1;
        let blocks = free / per_chunk * shape.layout.chunk_ratio + (free % per_chunk).min(shape.layout.chunk_ratio);
        Ok(blocks.min(shape.layout.payload_blocks).saturating_sub(block))
    }

    fn status_in_block(&self, shape: &Shape, offset: u64) -> Result<Extent> {
        let block = offset / shape.layout.block_size;
        let within = offset % shape.layout.block_size;
        let left = shape.bytes_in(block) - within;
        let _pass = self.gates.enter(block);
        let entry = self.entry(shape, block)?;
        let whole = |kind| Ok(Extent { offset, length: left, kind });
        match entry.payload_state() {
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => whole(ExtentKind::Zero),
            PayloadState::NotPresent if self.parent.is_some() => whole(ExtentKind::Parent),
            PayloadState::NotPresent => whole(ExtentKind::Zero),
            PayloadState::Reserved(bits) => Err(self.reserved_state(block, bits)),
            PayloadState::FullyPresent => {
                let place = self.place(shape, block, entry)? + within;
                self.status_of_file(shape, offset, place, left)
            }
            PayloadState::PartiallyPresent => {
                let place = self.place(shape, block, entry)? + within;
                let most = left.min(SECTORS_PER_CHUNK / 8 * shape.layout.sector) as usize;
                match self.bitmap_run(shape, block, within, most)? {
                    (true, run) => self.status_of_file(shape, offset, place, run as u64),
                    (false, run) => Ok(Extent { offset, length: run as u64, kind: ExtentKind::Parent }),
                }
            }
        }
    }

    /// Data or a hole, from `place` of the file on.
    fn status_of_file(&self, shape: &Shape, offset: u64, place: u64, left: u64) -> Result<Extent> {
        let failed = || self.failed("cannot read");
        let data = self.file.next_data(place).map_err(failed())?.map_or(left, |d| (d - place).min(left));
        // A hole that ends inside a sector is none.
        let hole = data - data % shape.layout.sector;
        if hole > 0 {
            return Ok(Extent { offset, length: hole, kind: ExtentKind::Zero });
        }
        let end = self.file.next_hole(place + data).map_err(failed())?.saturating_sub(place);
        let length = end.next_multiple_of(shape.layout.sector).clamp(shape.layout.sector, left);
        Ok(Extent { offset, length, kind: ExtentKind::Data { file_offset: place } })
    }
}
