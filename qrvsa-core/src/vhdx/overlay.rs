//! A dirty log replayed in memory: what the file would hold, without touching it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file::ImageFile;
use super::format::log::{Change, SECTOR};
use crate::device::HostSpace;

/// A file seen through the changes of its log. Read-only. Memory: no more than the log.
pub struct ReplayedFile {
    base: Arc<dyn ImageFile>,
    length: u64,
    sectors: BTreeMap<u64, Box<[u8; SECTOR]>>,
    /// Start and end of runs that read as zeros, unless a sector lies over them.
    zeros: BTreeMap<u64, u64>,
}

impl ReplayedFile {
    /// The file with `changes` made in order, at least `length_min` bytes long.
    pub fn new(base: Arc<dyn ImageFile>, changes: Vec<Change>, length_min: u64) -> io::Result<ReplayedFile> {
        let mut file = ReplayedFile {
            length: base.length()?.max(length_min),
            base,
            sectors: BTreeMap::new(),
            zeros: BTreeMap::new(),
        };
        for change in changes {
            match change {
                Change::Data { offset, sector } => {
                    file.length = file.length.max(offset + SECTOR as u64);
                    file.sectors.insert(offset, sector);
                }
                Change::Zero { offset, length } => {
                    let end = offset + length;
                    file.length = file.length.max(end);
                    let covered: Vec<u64> = file.sectors.range(offset..end).map(|(k, _)| *k).collect();
                    covered.iter().for_each(|k| drop(file.sectors.remove(k)));
                    let longest = file.zeros.get(&offset).copied().unwrap_or(0);
                    file.zeros.insert(offset, end.max(longest));
                }
            }
        }
        Ok(file)
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(libc::EROFS))
}

impl ImageFile for ReplayedFile {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.length)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.base.read_at(buf, offset)?;
        let end = offset.saturating_add(buf.len() as u64);
        // The part of `buf` for a run of the file.
        let part = |from: u64, to: u64| {
            let (from, to) = (from.max(offset), to.min(end));
            (from < to).then(|| (from - offset) as usize..(to - offset) as usize)
        };
        for (from, to) in self.zeros.range(..end) {
            if let Some(zero) = part(*from, *to).and_then(|range| buf.get_mut(range)) {
                zero.fill(0);
            }
        }
        let first = offset.saturating_sub(SECTOR as u64 - 1);
        for (at, sector) in self.sectors.range(first..end) {
            let Some(range) = part(*at, at + SECTOR as u64) else { continue };
            let skip = offset.saturating_sub(*at) as usize;
            let len = range.len();
            if let (Some(to), Some(from)) = (buf.get_mut(range), sector.get(skip..skip + len)) {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_length(&self, _length: u64) -> io::Result<()> {
        read_only()
    }

    fn zero(&self, _offset: u64, _length: u64, _release: bool) -> io::Result<()> {
        read_only()
    }

    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        read_only()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let base = self.base.next_data(offset)?;
        let first = offset.saturating_sub(SECTOR as u64 - 1);
        let own = self.sectors.range(first..).next().map(|(at, _)| (*at).max(offset));
        Ok([base, own].into_iter().flatten().min())
    }

    fn next_hole(&self, _offset: u64) -> io::Result<u64> {
        // Holes of the file may be covered by changes; that there are none is always true enough.
        Ok(self.length)
    }

    fn identity(&self) -> (u64, u64) {
        self.base.identity()
    }

    fn host_space(&self) -> io::Result<HostSpace> {
        self.base.host_space()
    }
}
