//! Writing headers and the log: the order in which a change of the image's structures becomes durable.
//!
//! One entry holds one whole change. Its tail is itself: it is written only after a flush that made the changes of the entry
//! before durable in their places. It never touches the bytes of that entry, which stays the valid one until the new one is
//! on the disk. The log's identity goes into the header after the first entry that bears it is durable, because an
//! identity without an entry makes an image unreadable. Before that, the entry counts for nothing: so one flush makes it durable
//! together with what it refers to, and the header commits it.
//!
//! Of two headers one is always durable: none is written while the other is on its way.

use super::file::{ImageFile, io_error};
use super::format::log::{Change, Entry, EntryHeader, SECTOR};
use super::format::{Guid, HEADER_OFFSETS, Header};
use crate::error::Result;

/// What became of a header and a log while they are used.
pub struct Journal {
    /// The current header, as it stands in the file.
    header: Header,
    /// Which of the two is older, and written first.
    older: usize,
    /// Where the newest entry lies: start and end in the ring.
    newest: (u32, u32),
    sequence: u64,
    /// Length of the file that a flush has made durable.
    flushed_length: u64,
    /// The header written last may not be durable yet.
    unsettled: bool,
}

/// Most sectors of data that one entry may carry: with it, an entry takes less than a third of the smallest log, so that
/// there is always room beside the one before.
pub const ENTRY_SECTORS_MAX: usize = 80;

impl Journal {
    /// The journal of an image whose log is empty; `current` is the index of the header that counts, and both are durable.
    pub fn new(header: Header, current: usize, flushed_length: u64) -> Journal {
        Journal { header, older: 1 - current.min(1), newest: (0, 0), sequence: 0, flushed_length, unsettled: false }
    }

    /// The current header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// A flush has made the file durable at this length.
    pub fn set_flushed_length(&mut self, length: u64) {
        self.flushed_length = length;
        self.unsettled = false;
    }

    /// Whether the header names a log.
    pub fn is_log_open(&self) -> bool {
        !self.header.log_guid.is_nil()
    }

    /// Writes both headers, one after the other, with a flush behind each.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`](crate::ErrorKind::NoSpace), [`ErrorKind::Io`](crate::ErrorKind::Io); so for all here.
    pub fn update_header(&mut self, file: &dyn ImageFile, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.begin_update(file, change)?;
        self.settle(file)
    }

    /// The same, but the second header is left to the next flush.
    fn begin_update(&mut self, file: &dyn ImageFile, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = self.header.clone();
        change(&mut header);
        for _ in 0..2 {
            self.settle(file)?;
            header.sequence = header.sequence.wrapping_add(1);
            let failed = |e| io_error(file.path(), "cannot write the header of", e);
            file.write_at(&header.encode(), HEADER_OFFSETS[self.older]).map_err(failed)?;
            self.unsettled = true;
            self.older = 1 - self.older;
            self.header = header.clone();
        }
        Ok(())
    }

    /// Waits until the header written last is durable.
    fn settle(&mut self, file: &dyn ImageFile) -> Result<()> {
        if self.unsettled {
            file.flush().map_err(|e| io_error(file.path(), "cannot write the header of", e))?;
            self.unsettled = false;
        }
        Ok(())
    }

    /// Makes `changes` durable in the log. If a log is open, the caller has flushed the file since the changes before were made.
    /// He makes these in their places afterwards. `length` is the file's length now.
    #[allow(clippy::missing_errors_doc, reason = "see update_header")]
    pub fn append(&mut self, file: &dyn ImageFile, changes: Vec<Change>, length: u64, new_guid: Guid) -> Result<()> {
        if self.is_log_open() {
            let guid = self.header.log_guid;
            return self.write_entry(file, changes, length, guid);
        }
        self.sequence = 0;
        self.newest = (0, 0);
        // When the entry counts, the length is durable with everything else.
        self.flushed_length = length;
        self.write_entry(file, changes, length, new_guid)?;
        self.begin_update(file, |header| (header.log_guid, header.log_version) = (new_guid, 0))
    }

    fn write_entry(&mut self, file: &dyn ImageFile, changes: Vec<Change>, length: u64, guid: Guid) -> Result<()> {
        debug_assert!(changes.len() <= ENTRY_SECTORS_MAX);
        let size = Entry::encoded_length(&changes);
        let log = u64::from(self.header.log_length);
        let (start, end) = self.newest;
        let at = if u64::from(end) + size <= log { end } else { 0 };
        assert!(
            at == end || size <= u64::from(start),
            "an entry of {size} bytes finds no room beside the one at {start} in a log of {log}"
        );
        let header = EntryHeader {
            checksum: 0,
            length: 0,
            tail: at,
            sequence: self.sequence + 1,
            descriptors: 0,
            log_guid: guid,
            flushed_file_offset: self.flushed_length,
            last_file_offset: length,
        };
        let bytes = Entry { header, changes }.encode();
        let failed = |e| io_error(file.path(), "cannot write the log of", e);
        file.write_at(&bytes, self.header.log_offset + u64::from(at)).map_err(failed)?;
        file.flush().map_err(failed)?;
        self.set_flushed_length(length);
        self.sequence += 1;
        // It fits into the log, which is shorter than 4 GiB.
        self.newest = (at, at + bytes.len() as u32);
        Ok(())
    }

    /// Empties the log. The caller has flushed the file since the last changes were made.
    #[allow(clippy::missing_errors_doc, reason = "see update_header")]
    pub fn close_log(&mut self, file: &dyn ImageFile) -> Result<()> {
        if !self.is_log_open() {
            return Ok(());
        }
        self.update_header(file, |header| header.log_guid = Guid::NIL)
    }
}

/// Makes changes in their places, without a flush.
///
/// # Errors
/// As [`Journal::update_header`].
pub fn make(file: &dyn ImageFile, changes: &[Change]) -> Result<()> {
    let failed = |e| io_error(file.path(), "cannot write the structures of", e);
    // Neighbouring sectors in one write.
    let mut run: Vec<u8> = Vec::new();
    let mut run_at = 0;
    for change in changes {
        let Change::Data { offset, sector } = change else { continue };
        if !run.is_empty() && run_at + run.len() as u64 != *offset {
            file.write_at(&run, run_at).map_err(failed)?;
            run.clear();
        }
        if run.is_empty() {
            run_at = *offset;
        }
        run.extend_from_slice(&**sector);
    }
    if !run.is_empty() {
        file.write_at(&run, run_at).map_err(failed)?;
    }
    debug_assert!(run.len().is_multiple_of(SECTOR));
    Ok(())
}
