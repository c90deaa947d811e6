//! An open image: reading, and the frame that the other files fill in.
//!
//! Locks, from left to right: `shape` → gate of a block → `journal` → `space` → pages. A request holds `shape` shared and the
//! pass of one block; payload is read and written under no other lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::file::{ImageFile, io_error};
use super::format::{BatEntry, BatLayout, DiskParameters, Guid, MIB, Metadata, PayloadState, RegionTable};
use super::gate::Gates;
use super::journal::Journal;
use super::pages::{BitmapPages, TablePages};
use super::stripes::StripedLock;
use super::write::Allocation;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// What may change about the disk: its size, and with it the table.
pub(super) struct Shape {
    pub disk: DiskParameters,
    pub layout: BatLayout,
    pub table: TablePages,
    pub regions: RegionTable,
}

impl Shape {
    pub fn new(disk: DiskParameters, regions: RegionTable) -> Shape {
        let layout = BatLayout::new(&disk);
        let table = TablePages::new(regions.bat.offset, layout.entries());
        Shape { disk, layout, table, regions }
    }

    /// Bytes of the disk in this block: less than a block at its end.
    pub fn bytes_in(&self, block: u64) -> u64 {
        self.disk.disk_size.saturating_sub(block * self.layout.block_size).min(self.layout.block_size)
    }
}

/// A piece of a request inside one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub block: u64,
    /// Bytes from the start of the block.
    pub within: u64,
    /// Bytes from the start of the request.
    pub at: usize,
    pub len: usize,
}

/// An image that is open. All methods may be called from many threads at once.
pub struct Image {
    pub(super) file: Arc<dyn ImageFile>,
    pub(super) env: Environment,
    pub(super) writable: bool,
    pub(super) shape: StripedLock<Shape>,
    pub(super) metadata: RwLock<Metadata>,
    pub(super) bitmaps: BitmapPages,
    pub(super) gates: Arc<Gates>,
    pub(super) journal: Mutex<Journal>,
    pub(super) space: Mutex<Allocation>,
    pub(super) parent: Option<Arc<Image>>,
    pub(super) file_length: AtomicU64,
    /// What has been said in the header: bit 0 that the file, bit 1 that the disk changes.
    pub(super) modified: AtomicU8,
    /// A change failed half way: nothing is changed any more.
    pub(super) broken: AtomicBool,
    pub(super) commits_started: AtomicU64,
    pub(super) commits_done: AtomicU64,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", self.file.path().display())
    }
}

impl Image {
    /// What the metadata says of the disk.
    pub fn disk(&self) -> DiskParameters {
        self.shape.read().disk
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.shape.read().disk.disk_size
    }

    /// The metadata, with the locator of the parent.
    pub fn metadata(&self) -> Metadata {
        self.metadata.read().clone()
    }

    /// Regions as they lie now.
    pub fn regions(&self) -> RegionTable {
        self.shape.read().regions.clone()
    }

    /// The identity of the contents, by which children know their parent.
    pub fn data_write_guid(&self) -> Guid {
        self.journal.lock().header().data_write_guid
    }

    /// The parent of a differencing image.
    pub fn parent(&self) -> Option<&Arc<Image>> {
        self.parent.as_ref()
    }

    /// The file under it.
    pub fn file(&self) -> &Arc<dyn ImageFile> {
        &self.file
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Length of the file, bytes.
    pub fn file_length(&self) -> u64 {
        self.file_length.load(Ordering::Acquire)
    }

    pub(super) fn random_guid(&self) -> Guid {
        Guid::random(self.env.random_u128())
    }

    pub(super) fn failed(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |error| io_error(self.file.path(), what, error)
    }

    /// Checks alignment to the logical sector and bounds.
    pub(super) fn check_range(&self, shape: &Shape, offset: u64, len: u64) -> Result<()> {
        let sector = u64::from(shape.disk.logical_sector);
        let path = self.file.path().display();
        // A power of two, and so is the size of a block: a division takes longer than the rest.
        if (offset | len) & (sector - 1) != 0 {
            crate::fail!(Invalid, "{path}: {len} bytes at {offset} are not whole sectors of {sector}");
        }
        if offset.checked_add(len).is_none_or(|end| end > shape.disk.disk_size) {
            crate::fail!(Invalid, "{path}: {len} bytes at {offset} reach beyond the end of the disk");
        }
        Ok(())
    }

    /// Cuts a request at the ends of blocks, and into pieces of at most 16 MiB.
    pub(super) fn pieces(layout: &BatLayout, offset: u64, len: usize) -> impl Iterator<Item = Piece> + use<> {
        const PIECE_MAX: u64 = 16 << 20;
        let block_size = layout.block_size;
        debug_assert!(block_size.is_power_of_two());
        let shift = block_size.trailing_zeros();
        let mut at = 0;
        std::iter::from_fn(move || {
            let left = (len - at) as u64;
            if left == 0 {
                return None;
            }
            let start = offset + at as u64;
            let within = start & (block_size - 1);
            // Cut at multiples of 16 MiB of the block, so that a piece touches at most one page of a bitmap.
            let piece = left.min(block_size - within).min(PIECE_MAX - within % PIECE_MAX) as usize;
            let found = Piece { block: start >> shift, within, at, len: piece };
            at += piece;
            Some(found)
        })
    }

    /// The entry of a payload block.
    pub(super) fn entry(&self, shape: &Shape, block: u64) -> Result<BatEntry> {
        let entry = BatEntry(shape.table.word(&*self.file, shape.layout.payload_index(block))?);
        if entry.payload_state() == PayloadState::PartiallyPresent && !shape.layout.differencing {
            let path = self.file.path().display();
            crate::fail!(Corrupt, "{path}: block {block} is partially present, but there is no parent; see its check");
        }
        Ok(entry)
    }

    /// Where a block with space lies in the file.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if that is not inside it.
    pub(super) fn place(&self, shape: &Shape, block: u64, entry: BatEntry) -> Result<u64> {
        let offset = entry.offset();
        if offset < MIB || offset.saturating_add(shape.bytes_in(block)) > self.file_length() {
            return Err(self.outside(block, offset));
        }
        Ok(offset)
    }

    pub(super) fn outside(&self, block: u64, offset: u64) -> Error {
        let path = self.file.path().display();
        let what =
            format!("{path}: block {block} should lie at {offset}, outside the file; see the check of the image");
        Error::new(ErrorKind::Corrupt, what)
    }

    pub(super) fn reserved_state(&self, block: u64, bits: u8) -> Error {
        let path = self.file.path().display();
        let what =
            format!("{path}: block {block} has the state {bits}, which means nothing; see the check of the image");
        Error::new(ErrorKind::Corrupt, what)
    }

    /// Reads `buf.len()` bytes from `offset`, both multiples of the logical sector.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] outside the disk or not aligned; [`ErrorKind::Corrupt`] where the table makes no sense;
    /// [`ErrorKind::Io`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let shape = self.shape.read();
        self.check_range(&shape, offset, buf.len() as u64)?;
        for piece in Self::pieces(&shape.layout, offset, buf.len()) {
            let _pass = self.gates.enter(piece.block);
            self.read_piece(&shape, piece, &mut buf[piece.at..piece.at + piece.len])?;
        }
        Ok(())
    }

    fn read_piece(&self, shape: &Shape, piece: Piece, buf: &mut [u8]) -> Result<()> {
        let entry = self.entry(shape, piece.block)?;
        let read = |buf: &mut [u8], at: u64| self.file.read_at(buf, at).map_err(self.failed("cannot read"));
        match entry.payload_state() {
            PayloadState::FullyPresent => read(buf, self.place(shape, piece.block, entry)? + piece.within),
            PayloadState::NotPresent => self.read_parent(shape, piece, buf),
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => {
                buf.fill(0);
                Ok(())
            }
            PayloadState::PartiallyPresent => {
                let place = self.place(shape, piece.block, entry)?;
                let mut at = 0;
                while at < piece.len {
                    let (here, run) = self.bitmap_run(shape, piece.block, piece.within + at as u64, piece.len - at)?;
                    let part = Piece { within: piece.within + at as u64, at: piece.at + at, len: run, ..piece };
                    let part_buf = &mut buf[at..at + run];
                    if here {
                        read(part_buf, place + part.within)?;
                    } else {
                        self.read_parent(shape, part, part_buf)?;
                    }
                    at += run;
                }
                Ok(())
            }
            PayloadState::Reserved(bits) => Err(self.reserved_state(piece.block, bits)),
        }
    }

    /// What the parent has; zeros beyond its end or without one.
    fn read_parent(&self, shape: &Shape, piece: Piece, buf: &mut [u8]) -> Result<()> {
        let Some(parent) = &self.parent else {
            buf.fill(0);
            return Ok(());
        };
        let offset = piece.block * shape.layout.block_size + piece.within;
        let there = parent.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (seen, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        if seen.is_empty() { Ok(()) } else { parent.read(offset, seen) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_with_blocks() {
        let layout =
            BatLayout { block_size: 1 << 20, sector: 512, payload_blocks: 9, chunk_ratio: 4096, differencing: false };
        let pieces: Vec<_> = Image::pieces(&layout, (1 << 20) - 512, (1 << 20) + 1024).collect();
        let expected = [(0, (1 << 20) - 512, 0, 512), (1, 0, 512, 1 << 20), (2, 0, (1 << 20) + 512, 512)];
        assert_eq!(pieces.iter().map(|p| (p.block, p.within, p.at, p.len)).collect::<Vec<_>>(), expected);
        assert_eq!(Image::pieces(&layout, 512, 0).count(), 0);
    }
}
