//! Changing the size of the disk.
//!
//! The new size goes into the metadata and, where the table has to move, its new place into both region tables, all in one
//! log entry: a crash leaves the old disk or the new one. What the new disk needs and the old one does not look at (entries
//! behind the old end, the table's copy at its new place) is written and flushed before.

use parking_lot::MutexGuard;

use super::format::log::{Change, SECTOR};
use super::format::{
    BatEntry, BatLayout, DiskParameters, METADATA_TABLE_BYTES, MIB, PayloadState, REGION_TABLE_OFFSETS,
    RawMetadataTable, Region, RegionTable, items,
};
use super::image::{Image, Shape};
use super::journal::Journal;
use super::status::ExtentKind;
use super::stripes::Exclusive;
use crate::error::{Error, ErrorKind, Result};

impl Image {
    /// Makes the disk `size` bytes long, a multiple of the logical sector. What is added reads as zeros.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsForce`] if anything but zeros would be cut off and `force` is not given;
    /// [`ErrorKind::Invalid`] for a size that cannot be; [`ErrorKind::NoSpace`] if there is no room for all blocks of a fixed
    /// image: it keeps its size then; else as for [`Image::write`].
    pub fn resize(&self, size: u64, force: bool) -> Result<()> {
        let path = self.file.path().display();
        let old = self.disk();
        let new = DiskParameters { disk_size: size, ..old };
        if let Some(problem) = new.problems().first() {
            crate::fail!(Invalid, "{path}: {}", problem.what);
        }
        if size == old.disk_size {
            return Ok(());
        }
        if size < old.disk_size && !force {
            self.refuse_loss(size)?;
        }
        self.begin_change(true)?;
        if size < old.disk_size {
            let shape = self.shape.read();
            // Blocks behind the new end give up their space in a fixed image, too: no entry may keep it there.
            self.trim_range(&shape, size, old.disk_size - size, false)?;
        }
        let mut shape = self.shape.write();
        if shape.disk.disk_size != old.disk_size {
            crate::fail!(Busy, "{path}: its size is being changed already");
        }
        let mut journal = self.journal.lock();
        // Nothing is dirty and everything is in its place when the table is looked at.
        self.commit_with(&mut journal, Vec::new())?;
        let resized = self.resize_prepared(&mut shape, &mut journal, new);
        if resized.is_err() && journal.is_log_open() {
            // A commit that failed has said so itself; what failed before it has changed nothing that counts.
            tracing::debug!(%path, "a change of the size failed");
        }
        resized?;
        drop((journal, shape));
        let finished = self.finish_growth(old.disk_size, size);
        if finished.is_err() && size > old.disk_size && old.leave_allocated {
            // A fixed image has space for all of its disk, or does not grow.
            if let Err(error) = self.resize(old.disk_size, true) {
                tracing::warn!(%path, %error, "the disk has grown, but not all of it has space");
            }
        }
        finished
    }

    /// Refuses to cut off anything but zeros.
    fn refuse_loss(&self, size: u64) -> Result<()> {
        let end = self.size();
        let mut at = size;
        let mut buf = Vec::new();
        while at < end {
            let extent = self.status(at)?;
            let mut left = extent.length;
            while extent.kind != ExtentKind::Zero && left > 0 {
                let piece = left.min(1 << 20);
                buf.resize(piece as usize, 0);
                self.read(at + extent.length - left, &mut buf)?;
                if buf.iter().any(|b| *b != 0) {
                    let path = self.file.path().display();
                    crate::fail!(
                        NeedsForce,
                        "{path}: there is data behind {size} bytes; nothing was changed, --force cuts it off"
                    );
                }
                left -= piece;
            }
            at += extent.length;
        }
        Ok(())
    }

    fn resize_prepared(
        &self,
        shape: &mut Exclusive<'_, Shape>,
        journal: &mut MutexGuard<'_, Journal>,
        new: DiskParameters,
    ) -> Result<()> {
        let layout = BatLayout::new(&new);
        let mut regions = shape.regions.clone();
        let mut changes = vec![self.size_change(shape, new.disk_size)?];
        if new.disk_size > shape.disk.disk_size {
            self.clear_behind_end(shape)?;
            let within = shape.regions.bat.length / 8;
            self.clear_entries(shape, layout.entries().min(u64::from(within)))?;
        }
        let moved = layout.bytes() > u64::from(regions.bat.length);
        if moved {
            regions.bat = self.copy_table(shape, &layout)?;
            changes.extend(self.region_changes(&regions)?);
            let old = shape.regions.bat;
            let mut space = self.space.lock();
            space.freed.push((old.offset, u64::from(old.length)));
        }
        self.commit_with(journal, changes)?;
        // Entries behind the end of a smaller disk are zero: its blocks were trimmed, and their entries count no more.
        shape.replace(Shape::new(new, regions));
        self.metadata.write().disk = new;
        Ok(())
    }

    /// The sector of the metadata with the new size in it.
    fn size_change(&self, shape: &Shape, size: u64) -> Result<Change> {
        let region = shape.regions.metadata;
        let failed = || self.failed("cannot read the metadata of");
        let mut table = vec![0; METADATA_TABLE_BYTES];
        self.file.read_at(&mut table, region.offset).map_err(failed())?;
        let table = RawMetadataTable::decode(&table).validate(region.length)?;
        let entry = table.find(items::DISK_SIZE).ok_or_else(|| self.odd("its metadata has lost the size"))?;
        let at = region.offset + u64::from(entry.offset);
        let start = at - at % SECTOR as u64;
        let within = (at - start) as usize;
        let mut sector = Box::new([0; SECTOR]);
        self.file.read_at(&mut *sector, start).map_err(failed())?;
        match sector.get_mut(within..within + 8) {
            Some(field) => field.copy_from_slice(&size.to_le_bytes()),
            // Eight bytes across two sectors: legal, and written by nobody.
            None => return Err(self.odd("its size lies across two sectors of the metadata")),
        }
        Ok(Change::Data { offset: start, sector })
    }

    fn odd(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{}: {what}", self.file.path().display()))
    }

    /// Those sectors of `bytes` at `offset` that differ from the file.
    fn changed_sectors(&self, offset: u64, bytes: &[u8]) -> Result<Vec<Change>> {
        let mut old = vec![0; bytes.len()];
        self.file.read_at(&mut old, offset).map_err(self.failed("cannot read the region table of"))?;
        let (new, _) = bytes.as_chunks::<SECTOR>();
        let (old, _) = old.as_chunks::<SECTOR>();
        let pairs = new.iter().zip(old).enumerate().filter(|(_, (new, old))| new != old);
        Ok(pairs
            .map(|(i, (new, _))| Change::Data { offset: offset + (i * SECTOR) as u64, sector: Box::new(*new) })
            .collect())
    }

    /// Bytes of the last block behind the old end of the disk must read as zeros when they become part of it.
    fn clear_behind_end(&self, shape: &Shape) -> Result<()> {
        let Some(block) = shape.layout.payload_blocks.checked_sub(1) else { return Ok(()) };
        let here = shape.bytes_in(block);
        let entry = self.entry(shape, block)?;
        if here < shape.layout.block_size && entry.payload_state().has_space() {
            let place = self.place(shape, block, entry)? + here;
            let rest = shape.layout.block_size - here;
            self.file.zero(place, rest, !shape.disk.leave_allocated).map_err(self.failed("cannot write"))?;
        }
        Ok(())
    }

    /// Entries that the table of a larger disk has more must be zero.
    fn clear_entries(&self, shape: &Shape, entries: u64) -> Result<()> {
        let old = &shape.layout;
        let clear = |from: u64, to: u64| {
            if to <= from {
                return Ok(());
            }
            self.file.zero(shape.table.offset + from * 8, (to - from) * 8, true).map_err(self.failed("cannot write"))
        };
        if old.differencing && old.payload_blocks > 0 {
            // The unused entries of the last chunk.
            let last = old.chunk_of(old.payload_blocks - 1);
            clear(old.payload_index(old.payload_blocks - 1) + 1, old.bitmap_index(last))?;
        }
        clear(old.entries(), entries)
    }

    /// The sectors of both region tables that differ when they say this.
    pub(super) fn region_changes(&self, regions: &RegionTable) -> Result<Vec<Change>> {
        let table = regions.encode();
        let mut changes = Vec::new();
        for offset in REGION_TABLE_OFFSETS {
            changes.extend(self.changed_sectors(offset, &table)?);
        }
        Ok(changes)
    }

    /// Copies the table to a place where the larger one fits.
    fn copy_table(&self, shape: &Shape, layout: &BatLayout) -> Result<Region> {
        let length = layout.bytes().next_multiple_of(MIB);
        let offset = {
            let mut space = self.space.lock();
            self.take_space(&mut space, length)?
        };
        self.copy_table_to(shape, offset, length)
    }

    /// Copies the table to a place that was taken for it and reads as zeros; gives the place back if that fails.
    pub(super) fn copy_table_to(&self, shape: &Shape, offset: u64, length: u64) -> Result<Region> {
        const CHUNK: u64 = 1 << 20;
        let copied = (|| {
            let end = shape.table.offset + shape.layout.bytes();
            let mut at = shape.table.offset;
            let mut buf = vec![0; CHUNK as usize];
            while let Some(data) = self.file.next_data(at)?.filter(|data| *data < end) {
                at = data - data % SECTOR as u64;
                let len = CHUNK.min(end - at) as usize;
                self.file.read_at(&mut buf[..len], at)?;
                self.file.write_at(&buf[..len], offset + (at - shape.table.offset))?;
                at += len as u64;
            }
            Ok(())
        })();
        if let Err(error) = copied {
            self.untake_space(&mut self.space.lock(), offset, length);
            return Err(self.failed("cannot move the table of")(error));
        }
        // At most 514 MiB.
        Ok(Region { offset, length: length as u32 })
    }

    /// What remains to do when the disk has grown: a fixed image gets its new blocks; a parent that is longer than the old
    /// disk must not show through.
    fn finish_growth(&self, old: u64, new: u64) -> Result<()> {
        if new <= old {
            return self.flush();
        }
        let shape = self.shape.read();
        if let Some(parent) = &self.parent {
            let end = parent.size().min(new);
            if end > old {
                self.trim_range(&shape, old, end - old, shape.disk.leave_allocated)?;
            }
        }
        if shape.disk.leave_allocated {
            for block in old / shape.layout.block_size..shape.layout.payload_blocks {
                let _pass = self.gates.enter(block);
                if self.entry(&shape, block)?.payload_state() == PayloadState::NotPresent {
                    let piece = super::image::Piece { block, within: 0, at: 0, len: 0 };
                    let place = self.target(&shape, piece)?.offset;
                    let reserved = self.file.reserve(place, shape.layout.block_size);
                    reserved.map_err(self.failed("cannot grow"))?;
                }
            }
        }
        drop(shape);
        self.flush()
    }

    /// The entry of a payload block as it is now, dirty or not; for checks and tests.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] behind the end of the disk; [`ErrorKind::Io`].
    pub fn block_entry(&self, block: u64) -> Result<BatEntry> {
        let shape = self.shape.read();
        if block >= shape.layout.payload_blocks {
            crate::fail!(Invalid, "{} has no block {block}", self.file.path().display());
        }
        self.entry(&shape, block)
    }
}
