//! Storage in memory: thin, gone with the process. For tests, and for what need not last.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::{Backing, Extent, Failure, FailureKind, Result, Space};

const PAGE: u64 = 4096;

/// Thin storage in memory. All its operations are indivisible.
#[derive(Debug)]
pub struct MemoryBacking {
    inner: RwLock<Inner>,
    /// Bytes that it takes at most.
    limit_bytes: u64,
}

#[derive(Debug)]
struct Inner {
    size_bytes: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

fn within(at: u64) -> usize {
    usize::try_from(at % PAGE).unwrap_or(0)
}

/// The pieces of a run, page by page: number of the page, offset in it, length.
fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let length = (PAGE - at % PAGE).min(end - at);
        let piece = (at / PAGE, within(at), usize::try_from(length).unwrap_or(0));
        at += length;
        Some(piece)
    })
}

impl MemoryBacking {
    /// Of so many bytes, all of which it may take.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self::with_limit(size_bytes, u64::MAX)
    }

    /// Of so many bytes, but with room for `limit_bytes` only: writes fail for space beyond.
    #[must_use]
    pub fn with_limit(size_bytes: u64, limit_bytes: u64) -> Self {
        Self { inner: RwLock::new(Inner { size_bytes, pages: BTreeMap::new() }), limit_bytes }
    }

    /// Makes it larger.
    pub fn grow(&self, size_bytes: u64) {
        let mut inner = self.inner.write();
        inner.size_bytes = inner.size_bytes.max(size_bytes);
    }
}

fn check(inner: &Inner, offset: u64, bytes: u64) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= inner.size_bytes => Ok(()),
        _ => Err(Failure {
            kind: FailureKind::Unreadable,
            text: format!("memory: {bytes} bytes at {offset} are beyond its end"),
            offset: Some(offset),
        }),
    }
}

impl Backing for MemoryBacking {
    fn size_bytes(&self) -> u64 {
        self.inner.read().size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn thin(&self) -> bool {
        true
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<()>> {
        Some(self.read(offset, buf))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inner = self.inner.read();
        check(&inner, offset, buf.len() as u64)?;
        let mut rest = buf;
        for (page, from, length) in pieces(offset, rest.len() as u64) {
            let (part, after) = rest.split_at_mut(length);
            match inner.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[from..from + length]),
                None => part.fill(0),
            }
            rest = after;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _durable: bool) -> Result<()> {
        let mut inner = self.inner.write();
        check(&inner, offset, data.len() as u64)?;
        let new = pieces(offset, data.len() as u64).filter(|(page, ..)| !inner.pages.contains_key(page)).count();
        if (inner.pages.len() + new) as u64 * PAGE > self.limit_bytes {
            return Err(Failure {
                kind: FailureKind::NoSpace,
                text: format!("memory: its {} bytes are full", self.limit_bytes),
                offset: None,
            });
        }
        let mut rest = data;
        for (page, from, length) in pieces(offset, data.len() as u64) {
            let (part, after) = rest.split_at(length);
            let bytes = inner.pages.entry(page).or_insert_with(|| vec![0; 4096].into_boxed_slice());
            bytes[from..from + length].copy_from_slice(part);
            rest = after;
        }
        Ok(())
    }

    fn write_atomic(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.write(offset, data, durable)
    }

    fn atomic_bytes_max(&self) -> u64 {
        1 << 20
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        let mut inner = self.inner.write();
        check(&inner, offset, bytes)?;
        let (first, end) = (offset.div_ceil(PAGE), (offset + bytes) / PAGE);
        if first < end {
            let mut after = inner.pages.split_off(&first);
            inner.pages.append(&mut after.split_off(&end));
        }
        let edges = [(offset, (first * PAGE).min(offset + bytes)), ((end * PAGE).max(offset), offset + bytes)];
        for (from, to) in edges.into_iter().filter(|(from, to)| from < to) {
            for (page, at, length) in pieces(from, to - from) {
                if let Some(bytes) = inner.pages.get_mut(&page) {
                    bytes[at..at + length].fill(0);
                }
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        let zeroes = vec![0; 1 << 20];
        let mut at = offset;
        while at < offset + bytes {
            let length = (offset + bytes - at).min(zeroes.len() as u64);
            self.write(at, &zeroes[..usize::try_from(length).unwrap_or(0)], false)?;
            at += length;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent> {
        let inner = self.inner.read();
        check(&inner, offset, bytes_max)?;
        let (first, end) = (offset / PAGE, (offset + bytes_max).div_ceil(PAGE));
        let mapped = inner.pages.contains_key(&first);
        let next = if mapped {
            (first..end).find(|page| !inner.pages.contains_key(page)).unwrap_or(end)
        } else {
            inner.pages.range(first..end).next().map_or(end, |(page, _)| *page)
        };
        Ok(Extent { bytes: (next * PAGE - offset).min(bytes_max), mapped })
    }

    fn space(&self) -> Space {
        let inner = self.inner.read();
        let allocated_bytes = inner.pages.len() as u64 * PAGE;
        Space { allocated_bytes, available_bytes: self.limit_bytes.saturating_sub(allocated_bytes) }
    }
}
