//! Making changes durable, and the beginning and the end of changing an image.
//!
//! A commit takes a snapshot of the dirty pages; flushes, so that everything the snapshot refers to is durable (payload,
//! length of the file, holes), and with it the changes of the commit before in their places; writes one log entry and
//! flushes; and makes the changes in their places, without waiting for them. Space that the snapshot gave up is used again
//! only then. The first entry of a log needs no flush before it: it counts from the header on that names the log.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::format::log::Change;
use super::format::{BatEntry, BatSlot, BitmapState, Guid, MIB, PayloadState};
use super::image::{Image, Shape};
use super::journal::{self, Journal};
use super::pages::WORDS;
use super::space::{FILE_MIB_MAX, SpaceMap, mebibytes};
use crate::error::{Error, ErrorKind, Result};

const FILE_CHANGES: u8 = 1;
const DISK_CHANGES: u8 = 2;

impl Image {
    /// Makes everything written, trimmed or zeroed before durable.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`], [`ErrorKind::Io`]: then nothing is known of what was not flushed before, and the image takes
    /// no more changes; opened again, it has everything up to the last flush that succeeded.
    pub fn flush(&self) -> Result<()> {
        if self.modified.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        self.commit()
    }

    /// Whether allocations wait for a commit, and for how long, nanoseconds.
    pub fn uncommitted_ns(&self) -> Option<u64> {
        let since = self.space.lock().dirty_since_ns?;
        Some(self.env.clock.monotonic_ns().saturating_sub(since))
    }

    /// Whether a flush of the file alone would not make everything durable that was written.
    pub(super) fn has_uncommitted(&self) -> bool {
        let space = self.space.lock();
        space.committing || !space.dirty_pages.is_empty()
    }

    /// Whether a commit failed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    pub(super) fn check_usable(&self) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            let path = self.file.path().display();
            crate::fail!(Io, "{path} takes no changes since one failed; close it and open it again");
        }
        Ok(())
    }

    /// A commit of all that is dirty now, or the end of one that began after this call.
    pub(super) fn commit(&self) -> Result<()> {
        let before = self.commits_started.load(Ordering::Acquire);
        let mut journal = self.journal.lock();
        if self.commits_done.load(Ordering::Acquire) > before {
            return Ok(());
        }
        self.commit_with(&mut journal, Vec::new())
    }

    /// A commit that makes further changes of whole sectors in the same log entry.
    pub(super) fn commit_with(&self, journal: &mut MutexGuard<'_, Journal>, more: Vec<Change>) -> Result<()> {
        self.check_usable()?;
        let number = self.commits_started.fetch_add(1, Ordering::AcqRel) + 1;
        let done = self.try_commit(journal, more);
        match &done {
            Ok(()) => self.commits_done.store(number, Ordering::Release),
            Err(_) => self.broken.store(true, Ordering::Release),
        }
        done
    }

    fn try_commit(&self, journal: &mut Journal, more: Vec<Change>) -> Result<()> {
        let (pages, mut changes, freed) = {
            let mut space = self.space.lock();
            let pages = std::mem::take(&mut space.dirty_pages);
            let changes: Vec<Change> = pages.iter().map(|(offset, page)| page.change(*offset)).collect();
            (space.freed_bytes, space.dirty_since_ns) = (0, None);
            space.committing = !pages.is_empty();
            (pages, changes, std::mem::take(&mut space.freed))
        };
        changes.extend(more);
        let length = self.file_length();
        let first = !changes.is_empty() && !journal.is_log_open();
        if !first {
            self.file.flush().map_err(self.failed("cannot flush"))?;
            journal.set_flushed_length(length);
        }
        if changes.is_empty() {
            return Ok(());
        }
        // The entry needs the changes, and so do we; they are at most 80 sectors.
        journal.append(&*self.file, changes.clone(), length, self.random_guid())?;
        journal::make(&*self.file, &changes)?;
        pages.values().for_each(|page| page.unpin());
        self.space.lock().committing = false;
        for (offset, length) in freed {
            // What cannot be given back to the filesystem is zeroed when it is used again.
            let _ = self.file.zero(offset, length, true);
            self.untake_space(&mut self.space.lock(), offset, length);
        }
        Ok(())
    }

    /// To be called before every change: of what the disk's user sees (`disk`), or of the file only.
    pub(super) fn begin_change(&self, disk: bool) -> Result<()> {
        // Random numbers cost two system calls each: they are asked for once, not for every write.
        let wanted = FILE_CHANGES | if disk { DISK_CHANGES } else { 0 };
        if self.modified.load(Ordering::Acquire) & wanted == wanted {
            return self.check_usable();
        }
        self.begin_change_as(disk, self.random_guid())
    }

    /// The same; if the contents get a new identity, then this one.
    pub(super) fn begin_change_as(&self, disk: bool, data_guid: Guid) -> Result<()> {
        let wanted = FILE_CHANGES | if disk { DISK_CHANGES } else { 0 };
        if self.modified.load(Ordering::Acquire) & wanted == wanted {
            return self.check_usable();
        }
        let path = self.file.path().display();
        if !self.writable {
            crate::fail!(ReadOnly, "{path} is open for reading only");
        }
        let shape = self.shape.read();
        let mut journal = self.journal.lock();
        self.check_usable()?;
        let done = self.modified.load(Ordering::Acquire);
        if done & wanted == wanted {
            return Ok(());
        }
        self.prepare_space(&shape, &journal)?;
        let file_guid = self.random_guid();
        let updated = journal.update_header(&*self.file, |header| {
            if done & FILE_CHANGES == 0 {
                header.file_write_guid = file_guid;
            }
            if disk {
                header.data_write_guid = data_guid;
            }
        });
        if updated.is_err() {
            // One of two headers may have been written, with a higher number: no later one must be lower.
            self.broken.store(true, Ordering::Release);
        }
        updated?;
        // After the header, whose flush would wait for the filesystem to make this durable, too.
        let (offset, length) = (journal.header().log_offset, u64::from(journal.header().log_length));
        self.file.reserve(offset, length).map_err(self.failed("cannot grow"))?;
        self.modified.store(done | wanted, Ordering::Release);
        Ok(())
    }

    /// Makes the map of the file, unless there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if blocks overlap or lie outside the file: nothing is changed in such an image.
    fn prepare_space(&self, shape: &Shape, journal: &Journal) -> Result<()> {
        if self.space.lock().map.is_some() {
            return Ok(());
        }
        let map = self.map_of_file(shape, journal)?;
        let end = map.end() * MIB;
        if end > self.file_length() {
            // A last block that was cut at the end of the disk.
            self.file.set_length(end).map_err(self.failed("cannot grow"))?;
            self.file_length.store(end, Ordering::Release);
        }
        self.space.lock().map = Some(map);
        Ok(())
    }

    pub(super) fn map_of_file(&self, shape: &Shape, journal: &Journal) -> Result<SpaceMap> {
        let path = self.file.path().display();
        let length = self.file_length();
        if length.div_ceil(MIB) > FILE_MIB_MAX {
            crate::fail!(Unsupported, "{path} is longer than 128 TiB");
        }
        let mut map = SpaceMap::new(length);
        let header = journal.header();
        let regions = [shape.regions.bat, shape.regions.metadata].into_iter();
        let regions = regions.chain(shape.regions.others.iter().map(|o| o.region));
        let fixed = [(0, MIB), (header.log_offset, u64::from(header.log_length))].into_iter();
        for (offset, len) in fixed.chain(regions.map(|r| (r.offset, u64::from(r.length)))) {
            if offset.checked_add(len).is_none_or(|end| end > length) || map.take(mebibytes(offset, len)).is_err() {
                crate::fail!(Corrupt, "{path}: the region at {offset} overlaps another or lies outside the file");
            }
        }
        let mut kept = false;
        self.for_each_entry(shape, |slot, entry| {
            let (len, needed) = match slot {
                BatSlot::Payload(block) if entry.payload_state().has_space() => {
                    (shape.layout.block_size, shape.bytes_in(block))
                }
                BatSlot::Bitmap(_) if entry.bitmap_state() == BitmapState::Present => (MIB, MIB),
                _ => {
                    kept |= keeps_place(slot, entry);
                    return Ok(());
                }
            };
            let offset = entry.offset();
            if offset < MIB || offset.saturating_add(needed) > length {
                crate::fail!(Corrupt, "{path}: {} lies at {offset}, outside the file; see its check", name(slot));
            }
            map.take(mebibytes(offset, len)).map_err(|mib| {
                let what = format!(
                    "{path}: {} overlaps something else at {}; see its check. Nothing is changed in such an image",
                    name(slot),
                    mib * MIB
                );
                Error::new(ErrorKind::Corrupt, what)
            })
        })?;
        if kept {
            // Discarded blocks that keep their place may get it back from another program.
            self.for_each_entry(shape, |slot, entry| {
                let run = mebibytes(entry.offset(), shape.layout.block_size);
                if keeps_place(slot, entry) && run.end <= length / MIB {
                    let _ = map.take(run);
                }
                Ok(())
            })?;
        }
        map.find_gaps();
        Ok(map)
    }

    /// Calls `f` for every entry of the table in the file that is not zero. Nothing is dirty.
    pub(super) fn for_each_entry(
        &self,
        shape: &Shape,
        mut f: impl FnMut(BatSlot, BatEntry) -> Result<()>,
    ) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let entries = shape.layout.entries();
        let end = shape.table.offset + entries * 8;
        let mut buf = vec![0; CHUNK as usize];
        let mut at = shape.table.offset;
        let failed = || self.failed("cannot read the table of");
        while let Some(data) = self.file.next_data(at).map_err(failed())?.filter(|data| *data < end) {
            // Whole entries, from the start of a page.
            at = data - (data - shape.table.offset) % (WORDS as u64 * 8);
            let len = CHUNK.min(end - at) as usize;
            self.file.read_at(&mut buf[..len], at).map_err(failed())?;
            let first = (at - shape.table.offset) / 8;
            let (words, _) = buf[..len].as_chunks::<8>();
            for (i, word) in words.iter().enumerate().filter(|(_, w)| **w != [0; 8]) {
                f(shape.layout.slot(first + i as u64), BatEntry(u64::from_le_bytes(*word)))?;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Ends all changes: flushes, empties the log and cuts off what the file grew too far. Reading goes on; a later change
    /// begins anew. Called when the image is dropped, too, where errors go to the log of the program.
    ///
    /// # Errors
    /// As for [`Image::flush`].
    pub fn close(&self) -> Result<()> {
        if self.modified.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let shape = self.shape.read();
        let mut journal = self.journal.lock();
        self.commit_with(&mut journal, Vec::new())?;
        let closed = self.try_close(&mut journal);
        if closed.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        drop(shape);
        closed
    }

    fn try_close(&self, journal: &mut Journal) -> Result<()> {
        if journal.is_log_open() {
            let length = self.file_length();
            self.file.flush().map_err(self.failed("cannot flush"))?;
            journal.set_flushed_length(length);
            journal.close_log(&*self.file)?;
        }
        let space = self.space.lock();
        let clean = space.dirty_pages.is_empty() && space.freed.is_empty();
        if let Some(map) = space.map.as_ref().filter(|_| clean) {
            let end = map.end() * MIB;
            if end < self.file_length() {
                self.file.set_length(end).map_err(self.failed("cannot cut"))?;
                self.file_length.store(end, Ordering::Release);
                self.file.flush().map_err(self.failed("cannot flush"))?;
                journal.set_flushed_length(end);
            }
        }
        Ok(())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.broken.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.close() {
            tracing::error!(path = %self.file.path().display(), %error, "an image could not be closed");
        }
    }
}

/// A discarded block that still names a place.
fn keeps_place(slot: BatSlot, entry: BatEntry) -> bool {
    let discarded = matches!(entry.payload_state(), PayloadState::Undefined | PayloadState::Unmapped);
    matches!(slot, BatSlot::Payload(_)) && discarded && entry.offset() >= MIB
}

fn name(slot: BatSlot) -> String {
    match slot {
        BatSlot::Payload(block) => format!("block {block}"),
        BatSlot::Bitmap(chunk) => format!("the sector bitmap of chunk {chunk}"),
        BatSlot::Unused => "an unused entry".to_string(),
    }
}
