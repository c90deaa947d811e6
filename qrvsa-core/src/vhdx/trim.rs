//! Taking contents away: the run reads as zeros afterwards, and its space goes back where that is allowed.
//!
//! A whole block loses its place: the table says "zero", never "not present", which would show what a parent has. A part of a
//! block becomes a hole in the file. A fixed image keeps its blocks and their space, but for those behind its new end when
//! it becomes smaller.

use super::format::{BatEntry, PayloadState};
use super::image::{Image, Piece, Shape};
use crate::error::Result;

impl Image {
    /// Makes `len` bytes from `offset`, both multiples of the logical sector, read as zeros, and gives back what space that
    /// frees, for good once flushed.
    ///
    /// # Errors
    /// As for [`Image::write`].
    pub fn trim(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_change(true)?;
        let shape = self.shape.read();
        self.check_range(&shape, offset, len)?;
        self.trim_range(&shape, offset, len, shape.disk.leave_allocated)
    }

    /// With `keep`, whole blocks keep their space, too.
    pub(super) fn trim_range(&self, shape: &Shape, offset: u64, len: u64, keep: bool) -> Result<()> {
        let block_size = shape.layout.block_size;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (block, within) = (at / block_size, at % block_size);
            let here = shape.bytes_in(block);
            let len = (end - at).min(here - within);
            if within == 0 && len == here {
                self.trim_block(shape, block, keep)?;
            } else {
                self.trim_part(shape, block, within, len)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Whether a block reads as zeros without having space.
    fn is_nothing(&self, state: PayloadState) -> bool {
        match state {
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => true,
            PayloadState::NotPresent => self.parent.is_none(),
            _ => false,
        }
    }

    fn trim_block(&self, shape: &Shape, block: u64, keep: bool) -> Result<()> {
        if self.is_nothing(self.entry(shape, block)?.payload_state()) {
            return Ok(());
        }
        let _closed = self.gates.close(block);
        let mut space = self.space_with_room()?;
        let entry = self.entry(shape, block)?;
        match entry.payload_state() {
            PayloadState::Reserved(bits) => return Err(self.reserved_state(block, bits)),
            state if self.is_nothing(state) => return Ok(()),
            PayloadState::FullyPresent if keep => {
                let place = self.place(shape, block, entry)?;
                drop(space);
                return self.file.zero(place, shape.bytes_in(block), false).map_err(self.failed("cannot write"));
            }
            _ => {}
        }
        let index = shape.layout.payload_index(block);
        self.set_entry(shape, &mut space, index, BatEntry::without_space(PayloadState::Zero))?;
        if entry.payload_state().has_space() {
            space.freed.push((entry.offset(), shape.layout.block_size));
            space.freed_bytes += shape.layout.block_size;
        }
        Ok(())
    }

    fn trim_part(&self, shape: &Shape, block: u64, within: u64, len: u64) -> Result<()> {
        let release = !shape.disk.leave_allocated;
        let whole = usize::try_from(len).unwrap_or(usize::MAX);
        let start = block * shape.layout.block_size + within;
        for part in Self::pieces(&shape.layout, start, whole) {
            let _pass = self.gates.enter(block);
            let entry = self.entry(shape, block)?;
            if self.is_nothing(entry.payload_state()) {
                return Ok(());
            }
            // What shows the parent gets space of its own, which reads as zeros where nothing is written.
            let piece = Piece { at: 0, ..part };
            let target = self.target(shape, piece)?;
            self.file.zero(target.offset, piece.len as u64, release).map_err(self.failed("cannot write"))?;
            if target.mark {
                self.wrote_part(shape, piece)?;
            }
        }
        Ok(())
    }
}
