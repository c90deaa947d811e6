//! A volume as a fixed VHDX file.
//!
//! | file offset | what | a write there |
//! |---|---|---|
//! | 0 | file identifier, made up | accepted if it changes nothing |
//! | 64 KiB | two headers, made up until they are written | kept beside the volume |
//! | 192 KiB | two region tables, made up | accepted if it changes nothing |
//! | 1 MiB | log of 1 MiB, zeros until it is written | kept beside the volume |
//! | 2 MiB | metadata, made up from the volume's size, block and id | accepted if it changes nothing |
//! | 3 MiB | BAT, made up: every block is present at its place | accepted if it changes nothing |
//! | behind it | the volume, then zeros up to a whole block | goes to the volume; behind its end only zeros are accepted |
//!
//! So a program may open the file for writing, give it new identities, and keep a log; it cannot move a block or resize the
//! disk: that is `EPERM`, and logged. Everything made up follows from the volume alone and is the same after every import.

use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fail;
use crate::vhdx::format::{
    BatEntry, BatLayout, BatSlot, DiskParameters, FileIdentifier, Guid, HEADER_OFFSETS, Header, MIB, Metadata,
    PayloadState, REGION_TABLE_OFFSETS, Region, RegionTable,
};
use crate::volume::{SIDE_BLOCK, Volume};

/// Bytes of a block. A table of 16 MiB for the largest disk.
const BLOCK_BYTES: u32 = 32 << 20;
/// Largest disk of the format, bytes.
pub(super) const SIZE_BYTES_MAX: u64 = 64 << 40;
const LOG: Range<u64> = MIB..2 * MIB;
const METADATA: Region = Region { offset: 2 * MIB, length: MIB as u32 };
const BAT_OFFSET: u64 = 3 * MIB;
/// The headers, each in 64 KiB of its own.
const HEADERS: Range<u64> = 64 << 10..192 << 10;

/// A volume seen as a VHDX file.
pub struct Face {
    volume: Arc<Volume>,
    /// Held while blocks beside the volume are read, changed and written.
    side: Mutex<()>,
}

/// Where things lie, for a size of the volume.
struct Shape {
    disk: DiskParameters,
    layout: BatLayout,
    bat: Region,
    /// File offset of the volume's first byte.
    first: u64,
    /// Bytes of the file.
    length: u64,
}

impl Shape {
    fn of(volume: &Volume) -> Result<Shape> {
        let disk = DiskParameters {
            block_size: BLOCK_BYTES,
            leave_allocated: true,
            has_parent: false,
            disk_size: volume.size_bytes(),
            disk_id: Guid::random(volume.id()),
            logical_sector: volume.block_bytes(),
            physical_sector: 4096,
        };
        if disk.disk_size > SIZE_BYTES_MAX {
            fail!(Invalid, "volume '{}' is larger than 64 TiB, the largest disk of a VHDX file", volume.name());
        }
        let layout = BatLayout::new(&disk);
        // at most 17 MiB
        let bat = Region { offset: BAT_OFFSET, length: layout.bytes().next_multiple_of(MIB) as u32 };
        let first = bat.end();
        Ok(Shape { disk, layout, bat, first, length: first + layout.payload_blocks * layout.block_size })
    }
}

impl Face {
    /// The face of a volume.
    pub fn new(volume: Arc<Volume>) -> Face {
        Face { volume, side: Mutex::new(()) }
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Bytes of the file.
    ///
    /// # Errors
    /// `Invalid` for a volume of more than 64 TiB; so for all methods.
    pub fn length(&self) -> Result<u64> {
        Ok(Shape::of(&self.volume)?.length)
    }

    /// Bytes that the file takes: what the volume holds and what is before it.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn allocated_bytes(&self) -> Result<u64> {
        Ok(Shape::of(&self.volume)?.first + self.volume.usage()?.allocated_bytes)
    }

    /// Reads at most `buf.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let shape = Shape::of(&self.volume)?;
        let len = usize::try_from(shape.length.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..len) else { return Ok(0) };
        let before = usize::try_from(shape.first.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let (head, body) = buf.split_at_mut(before);
        if !head.is_empty() {
            self.front(&shape, offset, head)?;
        }
        if !body.is_empty() {
            let at = offset.max(shape.first) - shape.first;
            let inside = usize::try_from(shape.disk.disk_size.saturating_sub(at)).unwrap_or(usize::MAX);
            let (inside, behind) = body.split_at_mut(inside.min(body.len()));
            if !inside.is_empty() {
                self.volume.read(at, inside)?;
            }
            behind.fill(0);
        }
        Ok(len)
    }

    /// What is before the volume: made up, under what was written.
    fn front(&self, shape: &Shape, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.made_up(shape, offset, buf);
        self.volume.read_side(offset, buf)
    }

    fn made_up(&self, shape: &Shape, offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let touches = |at: u64, len: u64| offset < at + len && at < offset + buf.len() as u64;
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        if touches(0, FileIdentifier::BYTES as u64) {
            let creator = "QRVSA volume".to_owned();
            parts.push((0, FileIdentifier { creator }.encode()));
        }
        for (sequence, at) in (1..).zip(HEADER_OFFSETS) {
            if touches(at, 4096) {
                parts.push((at, self.header(sequence).encode()));
            }
        }
        for at in REGION_TABLE_OFFSETS {
            if touches(at, 64 << 10) {
                let table = RegionTable { bat: shape.bat, metadata: METADATA, others: Vec::new() };
                parts.push((at, table.encode()));
            }
        }
        if touches(METADATA.offset, u64::from(METADATA.length)) {
            parts.push((METADATA.offset, Metadata { disk: shape.disk, locator: None }.encode()));
        }
        if touches(BAT_OFFSET, shape.layout.bytes()) {
            parts.push(table_part(shape, offset, buf.len() as u64));
        }
        for (at, bytes) in parts {
            copy(offset, buf, at, &bytes);
        }
    }

    fn header(&self, sequence: u64) -> Header {
        let id = self.volume.id();
        Header {
            sequence,
            file_write_guid: Guid::random(id.rotate_left(31) ^ 1),
            data_write_guid: Guid::random(id.rotate_left(67) ^ 2),
            log_guid: Guid::NIL,
            log_version: 0,
            version: 1,
            log_length: MIB as u32,
            log_offset: LOG.start,
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// `EPERM` for a change of what is made up; `EFBIG` behind the end of the file; those of the volume.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let shape = Shape::of(&self.volume)?;
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > shape.length) {
            return Err(Error::posix(Errno::EFBIG));
        }
        // cut where the kinds of places meet
        let cuts = [HEADERS.start, HEADERS.end, LOG.start, LOG.end, shape.first, shape.first + shape.disk.disk_size];
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let next = cuts.into_iter().find(|cut| *cut > at).unwrap_or(u64::MAX);
            let (piece, after) = rest.split_at(usize::try_from(next - at).unwrap_or(usize::MAX).min(rest.len()));
            self.write_piece(&shape, at, piece)?;
            at += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn write_piece(&self, shape: &Shape, offset: u64, data: &[u8]) -> Result<()> {
        if (shape.first..shape.first + shape.disk.disk_size).contains(&offset) {
            return self.volume.write(offset - shape.first, data, false);
        }
        if HEADERS.contains(&offset) || LOG.contains(&offset) {
            return self.write_front(shape, offset, data);
        }
        let mut now = vec![0; data.len()];
        self.read(offset, &mut now)?;
        if now == data {
            return Ok(());
        }
        tracing::warn!(
            volume = %self.volume.name(),
            offset,
            "a write to the VHDX face was refused: it would move blocks or resize the disk ('volume resize' does)"
        );
        Err(Error::posix(Errno::EPERM))
    }

    /// Keeps bytes of the headers or the log beside the volume, in whole blocks.
    fn write_front(&self, shape: &Shape, offset: u64, data: &[u8]) -> Result<()> {
        let _side = self.side.lock();
        let start = offset - offset % SIDE_BLOCK;
        let end = (offset + data.len() as u64).next_multiple_of(SIDE_BLOCK);
        // at most the log: 1 MiB
        let mut blocks = vec![0; usize::try_from(end - start).unwrap_or(0)];
        self.front(shape, start, &mut blocks)?;
        copy(start, &mut blocks, offset, data);
        self.volume.write_side(start, &blocks)
    }

    /// Makes everything durable: the volume, and what is kept beside it.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn flush(&self) -> Result<()> {
        // first what a header or the log speaks of
        self.volume.flush()?;
        self.volume.flush_side()
    }

    /// Makes a range read as zeros and gives its space back, where it lies in the volume. Before the volume, what was kept of
    /// headers and log is forgotten in whole blocks: they are as made up again, for the case that a program spoilt them.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        let shape = Shape::of(&self.volume)?;
        let front = range.start.next_multiple_of(SIDE_BLOCK)..range.end.min(shape.first) / SIDE_BLOCK * SIDE_BLOCK;
        if front.start < front.end {
            let _side = self.side.lock();
            self.volume.forget_side(front)?;
        }
        let end = range.end.saturating_sub(shape.first).min(shape.disk.disk_size);
        let start = range.start.saturating_sub(shape.first);
        if start < end { self.volume.discard(start, end - start) } else { Ok(()) }
    }

    /// The next data at or after `offset`, if there is any. Everything before the volume counts as data.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        let shape = Shape::of(&self.volume)?;
        if offset < shape.first {
            return Ok(Some(offset));
        }
        Ok(self.volume.next_data(offset - shape.first)?.map(|at| at + shape.first))
    }

    /// The next hole at or after `offset`; the end of the file is one.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        let shape = Shape::of(&self.volume)?;
        let hole = self.volume.next_hole(offset.saturating_sub(shape.first))? + shape.first;
        // behind the volume's end nothing is
        Ok(hole.max(offset).min(shape.length))
    }
}

/// The entries of the table that a range of the file touches, and where they stand.
fn table_part(shape: &Shape, offset: u64, len: u64) -> (u64, Vec<u8>) {
    let first = offset.saturating_sub(BAT_OFFSET) / 8;
    let end = (offset + len).saturating_sub(BAT_OFFSET).div_ceil(8).min(shape.layout.entries());
    let mut bytes = Vec::new();
    for index in first..end {
        let entry = match shape.layout.slot(index) {
            BatSlot::Payload(block) => {
                BatEntry::payload(PayloadState::FullyPresent, shape.first + block * shape.layout.block_size)
            }
            BatSlot::Bitmap(_) | BatSlot::Unused => BatEntry::default(),
        };
        bytes.extend(entry.0.to_le_bytes());
    }
    (BAT_OFFSET + first * 8, bytes)
}

/// Copies what `bytes`, which stand at `at`, have in common with `buf`, which stands at `offset`.
fn copy(offset: u64, buf: &mut [u8], at: u64, bytes: &[u8]) {
    let (start, end) = (offset.max(at), (offset + buf.len() as u64).min(at + bytes.len() as u64));
    if start >= end {
        return;
    }
    let within = |base: u64| {
        usize::try_from(start - base).unwrap_or(usize::MAX)..usize::try_from(end - base).unwrap_or(usize::MAX)
    };
    if let (Some(to), Some(from)) = (buf.get_mut(within(offset)), bytes.get(within(at))) {
        to.copy_from_slice(from);
    }
}
