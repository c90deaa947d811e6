//! What a check reads from: a file, or bytes. Read only, bounded, with holes where they are known.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::super::ImageFile;
use crate::error::{Error, ErrorKind, Result};

/// Bytes that can be read at any place.
pub trait Source {
    /// Bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`; what lies beyond the end is zero.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the medium cannot be read.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// The first run at or after `offset` that is not a hole. Without knowledge of holes, all to the end.
    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        (offset < self.len()).then(|| offset..self.len())
    }
}

impl Source for &[u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let tail = usize::try_from(offset).ok().and_then(|start| self.get(start..)).unwrap_or_default();
        for (to, from) in buf.iter_mut().zip(tail) {
            *to = *from;
        }
        Ok(())
    }
}

/// A file, read only.
pub struct FileSource<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> FileSource<'a> {
    /// The contents of `file` as long as they are now.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when its size cannot be told.
    pub fn new(file: &'a File) -> Result<FileSource<'a>> {
        let io = |e: std::io::Error| Error::new(ErrorKind::Io, "cannot tell the size").with_source(e);
        let len = file.metadata().map_err(io)?.len();
        Ok(FileSource { file, len })
    }

    /// The first `len` bytes of `file`, which may be a block device.
    #[must_use]
    pub fn with_length(file: &'a File, len: u64) -> FileSource<'a> {
        FileSource { file, len }
    }
}

impl Source for FileSource<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Error::new(ErrorKind::Io, format!("cannot read at offset {at:#x}")).with_source(e));
                }
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        use nix::unistd::{Whence, lseek};
        if offset >= self.len {
            return None;
        }
        let everything = Some(offset..self.len);
        let Ok(from) = i64::try_from(offset) else { return everything };
        let start = match lseek(self.file, from, Whence::SeekData) {
            Ok(start) => start,
            Err(nix::errno::Errno::ENXIO) => return None,
            Err(_) => return everything,
        };
        let Ok(end) = lseek(self.file, start, Whence::SeekHole) else { return everything };
        let (start, end) = (u64::try_from(start).unwrap_or(offset), u64::try_from(end).unwrap_or(self.len));
        Some(start..end.min(self.len)).filter(|run| run.start < run.end)
    }
}

/// A file of an image, which may be simulated.
pub struct ImageSource<'a>(pub &'a dyn ImageFile);

impl Source for ImageSource<'_> {
    fn len(&self) -> u64 {
        self.0.length().unwrap_or(0)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0
            .read_at(buf, offset)
            .map_err(|e| Error::new(ErrorKind::Io, format!("{}: cannot read", self.0.path().display())).with_source(e))
    }

    fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let len = self.len();
        let start = self.0.next_data(offset).unwrap_or((offset < len).then_some(offset))?;
        let end = self.0.next_hole(start).unwrap_or(len).min(len);
        Some(start..end).filter(|run| run.start < run.end)
    }
}

/// Little-endian fields at an offset of a structure; zero where it ends earlier.
pub(super) trait Fields {
    fn bytes(&self, at: usize, len: usize) -> &[u8];

    fn u16(&self, at: usize) -> u16 {
        self.bytes(at, 2).try_into().map_or(0, u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> u32 {
        self.bytes(at, 4).try_into().map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.bytes(at, 8).try_into().map_or(0, u64::from_le_bytes)
    }

    fn guid(&self, at: usize) -> [u8; 16] {
        self.bytes(at, 16).try_into().unwrap_or_default()
    }
}

impl Fields for [u8] {
    fn bytes(&self, at: usize, len: usize) -> &[u8] {
        at.checked_add(len).and_then(|end| self.get(at..end)).unwrap_or_default()
    }
}

/// CRC-32C over a structure whose checksum field, at byte 4, counts as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(bytes.get(..4).unwrap_or_default());
    digest.update(&[0; 4]);
    digest.update(bytes.get(8..).unwrap_or_default());
    u32::try_from(digest.finalize()).unwrap_or_default()
}

/// A GUID (mixed-endian bytes) as text, lower case, without braces.
pub(super) fn guid_text(guid: &[u8; 16]) -> String {
    let hex = |range: Range<usize>, reverse: bool| -> String {
        let bytes = guid.get(range).unwrap_or_default();
        let one = |b: &u8| format!("{b:02x}");
        if reverse { bytes.iter().rev().map(one).collect() } else { bytes.iter().map(one).collect() }
    };
    [hex(0..4, true), hex(4..6, true), hex(6..8, true), hex(8..10, false), hex(10..16, false)].join("-")
}

/// A GUID from text without braces into mixed-endian bytes, or `None`.
pub(super) fn guid_from_text(text: &str) -> Option<[u8; 16]> {
    let parts: Vec<&str> = text.split('-').collect();
    let lens: Vec<usize> = parts.iter().map(|p| p.len()).collect();
    if lens != [8, 4, 4, 4, 12] || !text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = Vec::with_capacity(16);
    for (i, part) in parts.iter().enumerate() {
        let digits: Vec<u32> = part.chars().filter_map(|c| c.to_digit(16)).collect();
        let mut bytes: Vec<u8> =
            digits.chunks(2).filter_map(|pair| u8::try_from(pair.iter().fold(0, |n, d| n * 16 + d)).ok()).collect();
        if i < 3 {
            bytes.reverse();
        }
        out.extend(bytes);
    }
    out.try_into().ok()
}
