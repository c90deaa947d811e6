//! A plain file or a block device.

use std::any::Any;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Backing, Extent, Failure, FailureKind, Result, Space, sys};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// Never write.
    pub read_only: bool,
    /// Past the page cache (`O_DIRECT`) wherever offset and length allow that.
    pub direct: bool,
    /// Space that initiators unmap is given back. A block device keeps its space in any case; unmapping zeroes it.
    pub thin: bool,
}

/// Offsets, lengths and addresses of direct transfers are multiples of this.
const DIRECT_ALIGN: usize = 4096;
/// A file is looked at for another size so often.
const SIZE_CHECK: Duration = Duration::from_secs(1);

/// A plain file or block device as storage. Writes go through the page cache unless opened for direct transfers.
pub struct FileBacking {
    path: PathBuf,
    file: File,
    direct: Option<File>,
    options: FileOptions,
    is_device: bool,
    size_bytes: AtomicU64,
    size_seen: Mutex<Instant>,
    /// The kernel has failed to write something back: it forgets that after telling it once, we do not.
    lost: AtomicBool,
    no_cached_reads: AtomicBool,
    /// Whatever keeps others out; let go of when the file is closed.
    _claim: Option<Arc<dyn Any + Send + Sync>>,
}

impl FileBacking {
    /// Opens an existing file or block device.
    ///
    /// # Errors
    /// It is not there, is neither, or may not be opened; one line with the way out.
    pub fn open(path: &Path, options: FileOptions) -> std::result::Result<Self, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let open = |flags| OpenOptions::new().read(true).write(!options.read_only).custom_flags(flags).open(path);
        let file = open(libc::O_NONBLOCK).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(format!("{}: neither a file nor a block device", path.display()));
        }
        let direct = if options.direct {
            let text = |e| format!("{}: direct transfers do not work here ({e}); use it without", path.display());
            Some(open(libc::O_DIRECT).map_err(text)?)
        } else {
            None
        };
        let backing = Self {
            path: path.to_owned(),
            file,
            direct,
            options,
            is_device: kind.is_block_device(),
            size_bytes: AtomicU64::new(0),
            size_seen: Mutex::new(Instant::now()),
            lost: AtomicBool::new(false),
            no_cached_reads: AtomicBool::new(false),
            _claim: None,
        };
        let size = backing.look_up_size().map_err(failed)?;
        backing.size_bytes.store(size, Ordering::Release);
        Ok(backing)
    }

    /// Keeps `claim` as long as the file is open.
    #[must_use]
    pub fn holding(mut self, claim: Arc<dyn Any + Send + Sync>) -> Self {
        self._claim = Some(claim);
        self
    }

    /// What the system knows about the open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    fn look_up_size(&self) -> io::Result<u64> {
        if self.is_device { (&self.file).seek(SeekFrom::End(0)) } else { Ok(self.file.metadata()?.len()) }
    }

    fn failure(&self, what: &str, offset: u64, otherwise: FailureKind, error: &io::Error) -> Failure {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => FailureKind::NoSpace,
            Some(libc::EROFS | libc::EPERM) => FailureKind::ReadOnly,
            Some(libc::ENODEV | libc::ENXIO) => FailureKind::Gone,
            _ => otherwise,
        };
        Failure { kind, text: format!("{what} {} at {offset}: {error}", self.path.display()), offset: Some(offset) }
    }

    fn check_writable(&self) -> Result<()> {
        if self.options.read_only {
            return Err(Failure {
                kind: FailureKind::ReadOnly,
                text: format!("{}: opened for reading only", self.path.display()),
                offset: None,
            });
        }
        if self.lost.load(Ordering::Acquire) {
            return Err(Failure {
                kind: FailureKind::Unwritable,
                text: format!("{}: writes were lost before; check it and open it anew", self.path.display()),
                offset: None,
            });
        }
        Ok(())
    }

    /// The descriptor for direct transfers if this one can be direct.
    fn direct_for(&self, offset: u64, bytes: usize) -> Option<&File> {
        let aligned = offset.is_multiple_of(DIRECT_ALIGN as u64) && bytes.is_multiple_of(DIRECT_ALIGN);
        self.direct.as_ref().filter(|_| aligned)
    }

    fn write_once(&self, file: &File, offset: u64, data: &[u8], durable: bool) -> io::Result<usize> {
        if durable { sys::write_durable(file, offset, data) } else { file.write_at(data, offset) }
    }

    fn write_all(&self, file: &File, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let wrote = match self.write_once(file, at, rest, durable) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => Ok(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // the filesystem does not know the flag
                Err(e) if durable && matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    self.write_all(file, at, rest, false)?;
                    return self.flush();
                }
                Err(e) => Err(e),
            };
            let wrote = wrote.map_err(|e| {
                if durable && e.raw_os_error() == Some(libc::EIO) {
                    self.lost.store(true, Ordering::Release);
                }
                self.failure("writing", at, FailureKind::Unwritable, &e)
            })?;
            at += wrote as u64;
            rest = rest.get(wrote..).unwrap_or_default();
        }
        Ok(())
    }

    fn write_zeroes_by_hand(&self, offset: u64, bytes: u64) -> Result<()> {
        let zeroes = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(0)];
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let length = (end - at).min(zeroes.len() as u64);
            self.write(at, zeroes.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default(), false)?;
            at += length;
        }
        Ok(())
    }
}

/// Runs `work` with a buffer at an address for direct transfers.
fn with_aligned<T>(bytes: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut memory = vec![0; bytes + DIRECT_ALIGN];
    let skip = memory.as_ptr().align_offset(DIRECT_ALIGN).min(DIRECT_ALIGN);
    work(memory.get_mut(skip..skip + bytes).unwrap_or_default())
}

impl Backing for FileBacking {
    fn size_bytes(&self) -> u64 {
        if let Some(mut seen) = self.size_seen.try_lock()
            && seen.elapsed() >= SIZE_CHECK
        {
            *seen = Instant::now();
            if let Ok(size) = self.look_up_size() {
                self.size_bytes.store(size, Ordering::Release);
            }
        }
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.options.read_only
    }

    fn thin(&self) -> bool {
        self.options.thin
    }

    fn preferred_bytes(&self) -> u32 {
        4096
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<()>> {
        if self.direct.is_some() || self.no_cached_reads.load(Ordering::Relaxed) {
            return None;
        }
        match sys::read_cached(&self.file, offset, buf) {
            Ok(n) if n == buf.len() => Some(Ok(())),
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.no_cached_reads.store(true, Ordering::Relaxed);
                None
            }
            _ => None,
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let result = match self.direct_for(offset, buf.len()) {
            Some(direct) => with_aligned(buf.len(), |aligned| {
                direct.read_exact_at(aligned, offset)?;
                buf.copy_from_slice(aligned);
                Ok(())
            }),
            None => self.file.read_exact_at(buf, offset),
        };
        result.map_err(|e: io::Error| self.failure("reading", offset, FailureKind::Unreadable, &e))
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.check_writable()?;
        match self.direct_for(offset, data.len()) {
            Some(direct) => with_aligned(data.len(), |aligned| {
                aligned.copy_from_slice(data);
                self.write_all(direct, offset, aligned, durable)
            }),
            None => self.write_all(&self.file, offset, data, durable),
        }
    }

    fn flush(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        self.check_writable()?;
        self.file.sync_data().map_err(|e| {
            self.lost.store(true, Ordering::Release);
            self.failure("flushing", 0, FailureKind::Unwritable, &e)
        })
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        self.check_writable()?;
        match sys::fallocate(&self.file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
                self.write_zeroes_by_hand(offset, bytes)
            }
            Err(e) => Err(self.failure("unmapping", offset, FailureKind::Unwritable, &e)),
        }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.check_writable()?;
        match sys::fallocate(&self.file, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, bytes) {
            Ok(()) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) => {
                self.write_zeroes_by_hand(offset, bytes)
            }
            Err(e) => Err(self.failure("zeroing", offset, FailureKind::Unwritable, &e)),
        }
    }

    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent> {
        let mapped = Extent { bytes: bytes_max, mapped: true };
        if self.is_device {
            return Ok(mapped);
        }
        let seek = |whence| {
            let failed = |e| self.failure("looking for holes in", offset, FailureKind::Unreadable, &e);
            sys::seek(&self.file, offset, whence).map_err(failed)
        };
        let end = offset.saturating_add(bytes_max);
        match seek(libc::SEEK_DATA)? {
            None => Ok(Extent { bytes: bytes_max, mapped: false }),
            Some(data) if data > offset => Ok(Extent { bytes: data.min(end) - offset, mapped: false }),
            Some(_) => match seek(libc::SEEK_HOLE)? {
                Some(hole) if hole > offset => Ok(Extent { bytes: hole.min(end) - offset, mapped: true }),
                _ => Ok(mapped),
            },
        }
    }

    fn space(&self) -> Space {
        if self.is_device {
            return Space { allocated_bytes: self.size_bytes(), available_bytes: 0 };
        }
        let allocated_bytes = self.file.metadata().map_or(0, |m| m.blocks().saturating_mul(512));
        Space { allocated_bytes, available_bytes: sys::available_bytes(&self.file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(options: FileOptions) -> (tempfile::NamedTempFile, FileBacking) {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(1 << 20).expect("length");
        let backing = FileBacking::open(file.path(), options).expect("opens");
        (file, backing)
    }

    fn holes(options: FileOptions) {
        let (_file, backing) = open(options);
        assert_eq!(backing.extent(0, 1 << 20), Ok(Extent { bytes: 1 << 20, mapped: false }));
        backing.write(65536, &[7; 8192], false).expect("writes");
        backing.write(65536 + 512, &[8; 512], true).expect("writes a part");
        backing.flush().expect("flushes");
        assert_eq!(backing.extent(0, 1 << 20).expect("extent"), Extent { bytes: 65536, mapped: false });
        let data = backing.extent(65536, 1 << 20).expect("extent");
        assert!(data.mapped && data.bytes >= 8192, "{data:?}");
        let mut buf = [1; 2048];
        backing.read(65536, &mut buf).expect("reads");
        assert!(buf[..512].iter().all(|b| *b == 7) && buf[512..1024].iter().all(|b| *b == 8));
        backing.unmap(65536, 8192).expect("unmaps");
        backing.read(65536, &mut buf).expect("reads");
        assert_eq!(buf, [0; 2048]);
        backing.write(0, &[9; 4096], false).expect("writes");
        backing.write_zeroes(0, 4096).expect("zeroes");
        backing.read(0, &mut buf).expect("reads");
        assert_eq!(buf, [0; 2048]);
    }

    #[test]
    fn holes_are_seen_made_and_filled() {
        holes(FileOptions { thin: true, ..FileOptions::default() });
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let direct = FileOptions { direct: true, ..FileOptions::default() };
        // some filesystems of temporary files have no direct transfers
        if FileBacking::open(file.path(), direct).is_ok() {
            holes(FileOptions { thin: true, ..direct });
        }
    }

    #[test]
    fn what_is_cached_is_read_at_once() {
        let (_file, backing) = open(FileOptions::default());
        backing.write(4096, &[5; 4096], false).expect("writes");
        let mut buf = [0; 4096];
        if let Some(result) = backing.read_now(4096, &mut buf) {
            result.expect("reads");
            assert_eq!(buf, [5; 4096]);
        }
    }

    #[test]
    fn a_read_only_file_and_the_end_are_respected() {
        let (_file, backing) = open(FileOptions { read_only: true, ..FileOptions::default() });
        assert_eq!(backing.write(0, &[0; 512], false).map_err(|f| f.kind), Err(FailureKind::ReadOnly));
        assert_eq!(backing.read(1 << 20, &mut [0; 512]).map_err(|f| f.kind), Err(FailureKind::Unreadable));
        assert!(FileBacking::open(Path::new("/dev/null"), FileOptions::default()).is_err());
    }

    #[test]
    fn growth_is_seen() {
        let (file, backing) = open(FileOptions::default());
        file.as_file().set_len(2 << 20).expect("grows");
        *backing.size_seen.lock() = Instant::now().checked_sub(SIZE_CHECK).expect("the clock has run for a second");
        assert_eq!(backing.size_bytes(), 2 << 20);
    }
}
