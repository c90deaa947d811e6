//! The writing side of a repair: headers by their protocol, structures through the log.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::ImageFile;
use super::super::check::fix::{Change, Diagnosis, Fix};
use super::super::check::walk::{HEADER_OFFSETS, REGION_OFFSETS};
use super::super::format::log::{Change as LogChange, Entry, EntryHeader, SECTOR};
use super::super::format::{Guid, Header, MIB, SIGNATURE};
use super::io_error;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Sectors in one log entry, so that it fits into the smallest log.
const BATCH: usize = 120;

/// Whole sectors by file offset.
pub(in crate::vhdx) type Sectors = BTreeMap<u64, Box<[u8; SECTOR]>>;

/// Puts bytes over the sectors that hold them.
pub(in crate::vhdx) fn stage(file: &dyn ImageFile, sectors: &mut Sectors, offset: u64, bytes: &[u8]) -> Result<()> {
    for (i, byte) in bytes.iter().enumerate() {
        let at = offset.saturating_add(i as u64);
        let start = at - at % SECTOR as u64;
        let sector = match sectors.entry(start) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut sector = Box::new([0; SECTOR]);
                file.read_at(&mut *sector, start).map_err(|e| io_error(file, "cannot read", e))?;
                entry.insert(sector)
            }
        };
        if let Some(to) = usize::try_from(at - start).ok().and_then(|i| sector.get_mut(i)) {
            *to = *byte;
        }
    }
    Ok(())
}

/// An image under repair.
pub(super) struct Edit<'a> {
    file: &'a dyn ImageFile,
    env: &'a Environment,
    header: Header,
    log: Range<u64>,
    len: u64,
}

impl<'a> Edit<'a> {
    pub fn new(file: &'a dyn ImageFile, env: &'a Environment, found: &Diagnosis) -> Result<Edit<'a>> {
        let (Some(header), Some(log)) = (found.header, found.log.clone()) else {
            return Err(Error::new(ErrorKind::Corrupt, "there is no valid header to begin with"));
        };
        let header = Header {
            sequence: header.sequence,
            file_write_guid: Guid::from_bytes(header.file_write_guid),
            data_write_guid: Guid::from_bytes(header.data_write_guid),
            log_guid: Guid::from_bytes(header.log_guid),
            log_version: header.log_version,
            version: 1,
            log_length: header.log_length,
            log_offset: header.log_offset,
        };
        Ok(Edit { file, env, header, log, len: found.len })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(bytes, offset).map_err(|e| io_error(self.file, "cannot write", e))
    }

    fn flush(&self) -> Result<()> {
        self.file.flush().map_err(|e| io_error(self.file, "cannot flush", e))
    }

    fn new_guid(&self) -> Guid {
        Guid::from_bytes(self.env.random_u128().to_le_bytes())
    }

    /// Writes the headers with this log: first that which is not current, so that one valid header is always there.
    fn headers(&mut self, log_guid: Guid) -> Result<()> {
        self.header.log_guid = log_guid;
        // Of two headers one is always durable, whatever was done before.
        self.flush()?;
        // Which of the two is current is told by reading them again: the other one is written first.
        let mut current = 0;
        for (number, offset) in HEADER_OFFSETS.into_iter().enumerate() {
            let mut bytes = vec![0; 4096];
            self.file.read_at(&mut bytes, offset).map_err(|e| io_error(self.file, "cannot read", e))?;
            let raw = super::super::format::RawHeader::decode(&bytes);
            if raw.is_intact() && raw.claimed.sequence == self.header.sequence {
                current = number;
            }
        }
        for number in [1 - current, current] {
            self.header.sequence = self.header.sequence.checked_add(1).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "the sequence number of the header is at its end; convert the image")
            })?;
            let offset = HEADER_OFFSETS.get(number).copied().unwrap_or(HEADER_OFFSETS[0]);
            self.write(&self.header.encode(), offset)?;
            self.flush()?;
        }
        Ok(())
    }

    /// Makes the changes of the dirty log in place.
    pub fn replay(&mut self, found: &Diagnosis) -> Result<()> {
        self.header.file_write_guid = self.new_guid();
        self.headers(self.header.log_guid)?;
        let io = |e| io_error(self.file, "cannot replay the log", e);
        if self.file.length().map_err(io)? < self.len {
            self.file.set_length(self.len).map_err(io)?;
        }
        let source = super::super::check::ImageSource(self.file);
        for (range, zero) in found.overlay.runs() {
            let end = range.end.min(self.len);
            if zero {
                if range.start < end {
                    self.file.zero(range.start, end - range.start, false).map_err(io)?;
                }
                continue;
            }
            let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            found.overlay.apply(&source, range.start, &mut bytes)?;
            self.write(&bytes, range.start)?;
        }
        self.flush()?;
        self.headers(Guid::default())
    }

    /// Makes fixes; the log is empty.
    pub fn apply(&mut self, fixes: &[Fix]) -> Result<()> {
        let mut sectors = Sectors::new();
        let mut space = Vec::new();
        let mut identifier = false;
        for fix in fixes {
            match &fix.change {
                Change::Identifier => identifier = true,
                Change::Headers => {}
                Change::Bytes(bytes) => stage(self.file, &mut sectors, fix.offset, bytes)?,
                Change::RegionTables(bytes) => {
                    for offset in REGION_OFFSETS {
                        stage(self.file, &mut sectors, offset, bytes)?;
                    }
                }
                Change::Release(range) => space.push(range.clone()),
                Change::Truncate(len) => space.push(*len..u64::MAX),
            }
        }
        // What is right already is not written.
        let staged: Vec<(u64, Box<[u8; SECTOR]>)> = sectors.into_iter().collect();
        let mut changes = Vec::new();
        for (offset, sector) in staged {
            let mut old = [0; SECTOR];
            self.file.read_at(&mut old, offset).map_err(|e| io_error(self.file, "cannot read", e))?;
            if old != *sector {
                changes.push(LogChange::Data { offset, sector });
            }
        }
        self.begin()?;
        if identifier {
            self.write(SIGNATURE, 0)?;
            self.flush()?;
        }
        for batch in changes.chunks(BATCH) {
            self.logged(batch)?;
        }
        let io = |e| io_error(self.file, "cannot give space back", e);
        for range in space {
            if range.end == u64::MAX {
                self.file.set_length(range.start).map_err(io)?;
            } else {
                self.file.zero(range.start, range.end - range.start, true).map_err(io)?;
            }
        }
        self.flush()
    }

    /// Says in the headers that the file changes.
    pub fn begin(&mut self) -> Result<()> {
        self.header.file_write_guid = self.new_guid();
        self.headers(Guid::default())
    }

    /// Says in the headers that the file and the disk change.
    pub fn begin_contents(&mut self) -> Result<()> {
        self.header.data_write_guid = self.new_guid();
        self.begin()
    }

    /// Changes through the log: the entry, the header that makes it count, the changes in place, the header without it.
    pub fn logged(&mut self, changes: &[LogChange]) -> Result<()> {
        let length = self.file.length().map_err(|e| io_error(self.file, "cannot tell the length", e))?;
        let log_guid = self.new_guid();
        // FileOffsets count in whole MiB.
        let whole = length - length % MIB;
        let entry = Entry {
            header: EntryHeader {
                checksum: 0,
                length: 0,
                tail: 0,
                sequence: 1,
                descriptors: 0,
                log_guid,
                flushed_file_offset: whole,
                last_file_offset: whole,
            },
            changes: changes.to_vec(),
        };
        self.write(&entry.encode(), self.log.start)?;
        self.flush()?;
        self.headers(log_guid)?;
        for change in changes {
            if let LogChange::Data { offset, sector } = change {
                self.write(&sector[..], *offset)?;
            }
        }
        self.flush()?;
        self.headers(Guid::default())
    }
}
