//! The log of an image that was not closed: which entries count, and making their changes (2.3.2, 2.3.3).

use std::collections::{BTreeMap, HashMap};

use super::file::{ImageFile, io_error};
use super::format::log::{Change, Entry, EntryHeader, SECTOR};
use super::format::{Header, REGION_TABLE_OFFSETS};
use crate::error::{Error, ErrorKind, Result};

/// Longest log that is read. Windows and QEMU make logs of 1 MiB.
const LOG_BYTES_MAX: u32 = 256 << 20;
/// Bytes read at once when looking for entries.
const SCAN_BYTES: u64 = 1 << 20;
/// Entries are checked for at most so many times the log's length altogether: entries forged to overlap take no more.
const CHECK_BUDGET: u64 = 16;

/// The changes that must be made before the file means anything.
#[derive(Debug)]
pub struct ActiveLog {
    /// In order.
    pub changes: Vec<Change>,
    /// The file must be at least so long afterwards, bytes.
    pub length_min: u64,
    /// Entries replayed.
    pub entries: usize,
    /// Sequence number of the newest.
    pub sequence: u64,
}

/// An entry that is valid by itself.
struct Found {
    header: EntryHeader,
    /// Where the next one would begin.
    next: u32,
}

/// Finds the active sequence of a log; `None` if the header says that the log is empty.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if there should be one and is none, or if the file is shorter than it says;
/// [`ErrorKind::Unsupported`] for a log longer than 256 MiB; [`ErrorKind::Io`].
pub fn active_log(file: &dyn ImageFile, header: &Header) -> Result<Option<ActiveLog>> {
    if header.log_guid.is_nil() {
        return Ok(None);
    }
    let path = file.path().display();
    if header.log_length > LOG_BYTES_MAX {
        crate::fail!(Unsupported, "{path}: its log has {} bytes, more than 256 MiB", header.log_length);
    }
    let found = scan(file, header)?;
    let Some((tail, newest)) = newest_sequence(&found) else {
        crate::fail!(Corrupt, "{path}: its log should hold changes that must be made first, but holds no valid ones");
    };
    let length = file.length().map_err(|e| io_error(file.path(), "cannot examine", e))?;
    if length < newest.flushed_file_offset {
        crate::fail!(
            Corrupt,
            "{path}: the file was cut off: it has {length} bytes, and its log says that it had {}",
            newest.flushed_file_offset
        );
    }
    let mut active =
        ActiveLog { changes: Vec::new(), length_min: newest.last_file_offset, entries: 0, sequence: newest.sequence };
    if i64::try_from(active.length_min).is_err() {
        crate::fail!(Corrupt, "{path}: its log wants a file of {} bytes", active.length_min);
    }
    let mut at = tail;
    loop {
        let Some(entry) = read_entry(file, header, at)? else {
            crate::fail!(Corrupt, "{path}: an entry of the log changed while it was read");
        };
        active.changes.extend(entry.changes);
        active.entries += 1;
        if entry.header.sequence == newest.sequence {
            return Ok(Some(active));
        }
        at = found.get(&at).map_or(at, |f| f.next);
    }
}

/// Reads a run of the ring, which goes on at its start behind its end.
fn read_ring(file: &dyn ImageFile, header: &Header, at: u32, buf: &mut [u8]) -> Result<()> {
    let to_end = (header.log_length - at) as usize;
    let (first, rest) = buf.split_at_mut(to_end.min(buf.len()));
    let read = |buf: &mut [u8], offset: u64| {
        file.read_at(buf, header.log_offset + offset).map_err(|e| io_error(file.path(), "cannot read the log of", e))
    };
    read(first, u64::from(at))?;
    if rest.is_empty() { Ok(()) } else { read(rest, 0) }
}

/// The entry at `at`, if it is valid, of this log, and changes nothing that no log may change.
fn read_entry(file: &dyn ImageFile, header: &Header, at: u32) -> Result<Option<Entry>> {
    let mut head = vec![0; SECTOR];
    read_ring(file, header, at, &mut head)?;
    let Some(entry) = EntryHeader::decode(&head, header.log_length) else { return Ok(None) };
    if entry.log_guid != header.log_guid {
        return Ok(None);
    }
    let mut bytes = vec![0; entry.length as usize];
    read_ring(file, header, at, &mut bytes)?;
    let entry = Entry::decode(&bytes, header.log_length);
    Ok(entry.filter(|entry| entry.changes.iter().all(|change| may_change(header, change))))
}

/// Whether an entry may make this change: never to the identifier, a header or the log. The region tables are the only thing
/// before the first mebibyte that a log changes.
fn may_change(header: &Header, change: &Change) -> bool {
    let (start, length) = match change {
        Change::Data { offset, .. } => (*offset, SECTOR as u64),
        Change::Zero { offset, length } => (*offset, *length),
    };
    let (end, log_end) = (start.saturating_add(length), header.log_offset.saturating_add(header.log_length.into()));
    (start >= REGION_TABLE_OFFSETS[0] || end == 0) && (end <= header.log_offset || start >= log_end)
}

/// All valid entries by their place in the ring.
fn scan(file: &dyn ImageFile, header: &Header) -> Result<BTreeMap<u32, Found>> {
    let mut found = BTreeMap::new();
    let mut budget = CHECK_BUDGET * u64::from(header.log_length);
    let mut chunk = vec![0; SCAN_BYTES as usize];
    let mut start = 0;
    while start < header.log_length {
        let len = (header.log_length - start).min(SCAN_BYTES as u32) as usize;
        read_ring(file, header, start, &mut chunk[..len])?;
        for (i, sector) in chunk[..len].chunks_exact(SECTOR).enumerate() {
            let at = start + (i * SECTOR) as u32;
            match EntryHeader::decode(sector, header.log_length) {
                Some(entry) if entry.log_guid == header.log_guid => {
                    budget = budget.checked_sub(u64::from(entry.length)).ok_or_else(|| {
                        Error::new(ErrorKind::Corrupt, format!("{}: its log is a maze", file.path().display()))
                    })?;
                }
                _ => continue,
            }
            if let Some(entry) = read_entry(file, header, at)? {
                let next = (u64::from(at) + u64::from(entry.header.length)) % u64::from(header.log_length);
                found.insert(at, Found { header: entry.header, next: next as u32 });
            }
        }
        start += len as u32;
    }
    Ok(found)
}

/// The sequence that counts: the place of its oldest entry and the header of its newest. A sequence is a run of entries,
/// each directly behind the one before and with the next sequence number; it counts only if it holds the entry that its
/// newest one names as its tail.
fn newest_sequence(found: &BTreeMap<u32, Found>) -> Option<(u32, EntryHeader)> {
    let successor = |f: &Found| {
        let next = found.get(&f.next)?;
        (Some(next.header.sequence) == f.header.sequence.checked_add(1)).then_some(f.next)
    };
    // The last entry of the run that begins at each place. Sequence numbers grow along a run, so it ends.
    let mut ends: HashMap<u32, u32> = HashMap::new();
    for start in found.keys() {
        let mut run = vec![*start];
        let mut at = *start;
        let end = loop {
            if let Some(end) = ends.get(&at) {
                break *end;
            }
            match found.get(&at).and_then(successor) {
                Some(next) => {
                    run.push(next);
                    at = next;
                }
                None => break at,
            }
        };
        ends.extend(run.into_iter().map(|at| (at, end)));
    }
    let counts = |at: &u32, f: &Found| ends.get(at) == Some(at) && ends.get(&f.header.tail) == Some(at);
    let newest = found.iter().filter(|(at, f)| counts(at, f)).max_by_key(|(_, f)| f.header.sequence)?;
    Some((newest.1.header.tail, newest.1.header))
}

/// Makes the changes in the file and flushes it.
///
/// # Errors
/// [`ErrorKind::NoSpace`], [`ErrorKind::Io`].
pub fn apply(file: &dyn ImageFile, log: &ActiveLog) -> Result<()> {
    let failed = |e| io_error(file.path(), "cannot make the changes in the log of", e);
    let mut length = file.length().map_err(failed)?;
    let mut grow = |to: u64| -> Result<()> {
        if to > length {
            file.set_length(to).map_err(failed)?;
            length = to;
        }
        Ok(())
    };
    for change in &log.changes {
        match change {
            Change::Data { offset, sector } => file.write_at(&**sector, *offset).map_err(failed)?,
            Change::Zero { offset, length } => {
                grow(offset + length)?;
                file.zero(*offset, *length, false).map_err(failed)?;
            }
        }
    }
    length = file.length().map_err(failed)?;
    if log.length_min > length {
        file.set_length(log.length_min).map_err(failed)?;
    }
    file.flush().map_err(failed)
}
