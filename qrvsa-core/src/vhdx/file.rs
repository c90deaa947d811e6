//! The file under an image, as narrow as the engine can do with; so that a simulated one can crash at every step.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use parking_lot::Mutex;

use crate::device::HostSpace;
use crate::error::{Error, ErrorKind, Result};

/// How long an open waits for a lock that somebody is just about to release: a second. Counted in looks, so that time in which
/// this process stood still is none.
const LOCK_RETRY: Duration = Duration::from_millis(20);
const LOCK_RETRIES: u32 = 50;

/// A file that holds an image. All methods may be called from many threads at once. Writes are volatile until a later
/// [`flush`](ImageFile::flush).
pub trait ImageFile: Send + Sync {
    /// Its name, for messages and for finding parents.
    fn path(&self) -> &Path;

    /// Its length, bytes.
    ///
    /// # Errors
    /// What the system says; so for all methods.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`; what lies beyond the end reads as zeros.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Says that a run was just written into space that is new (`fresh`), or may continue such a run. Nobody will write it
    /// again soon: the file may begin to bring it to its medium, so that a flush has less to wait for. A hint; errors show
    /// at the flush.
    fn wrote_new(&self, _offset: u64, _length: u64, _fresh: bool) {}

    /// Makes all that was completed before durable: contents, length, holes.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn flush(&self) -> io::Result<()>;

    /// Changes the length. What is added reads as zeros and takes no space.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes the run, inside the file, read as zeros; with `release`, gives its space back where the filesystem can.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn zero(&self, offset: u64, length: u64, release: bool) -> io::Result<()>;

    /// Takes space for the run without changing it, so that a later write there does not fail for want of space. Where
    /// the filesystem cannot, nothing happens.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()>;

    /// The first offset from `offset` on that may hold anything but zeros; `None` if there is none up to the end.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// The first offset from `offset` on, at most the length, where a hole begins.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn next_hole(&self, offset: u64) -> io::Result<u64>;

    /// Identity of the file, to find loops: device and inode.
    fn identity(&self) -> (u64, u64);

    /// Space the file takes, and what its filesystem has left for it.
    #[allow(clippy::missing_errors_doc, reason = "see length")]
    fn host_space(&self) -> io::Result<HostSpace> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writing back begins when so many bytes in a row were written into new space.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;

/// The last run in new space, as far as it is not being written back.
#[derive(Default)]
struct NewRun {
    start: u64,
    end: u64,
}

impl NewRun {
    /// Notes what was written; the part of the file that shall be written back now.
    fn wrote(&mut self, offset: u64, length: u64, fresh: bool) -> Option<Range<u64>> {
        let end = offset.saturating_add(length);
        match self.end == offset {
            true => self.end = end,
            false if fresh => (self.start, self.end) = (offset, end),
            false => return None,
        }
        if self.end - self.start < WRITE_BEHIND_BYTES {
            return None;
        }
        let due = self.start..self.end;
        self.start = self.end;
        Some(due)
    }
}

/// A file of this machine, locked: shared for reading, exclusively for writing.
pub struct HostFile {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
    new: Mutex<NewRun>,
    /// Holds the lock, if there is one. Another open file than `file`, whose descriptors may be duplicated and live longer.
    _claim: Option<File>,
}

impl HostFile {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] if somebody writes it, or, for writing, if somebody uses it at all;
    /// [`ErrorKind::Invalid`] if it is no regular file; else what the system says.
    pub fn open(path: &Path, write: bool) -> Result<HostFile> {
        let metadata = std::fs::metadata(path).map_err(|e| io_error(path, "cannot open", e))?;
        if !metadata.is_file() {
            crate::fail!(Invalid, "{} is not a regular file", path.display());
        }
        let options = |write: bool| {
            File::options().read(true).write(write).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK).open(path)
        };
        let claim = options(false).map_err(|e| io_error(path, "cannot open", e))?;
        lock(&claim, path, write)?;
        refuse_disk(&claim, path)?;
        let file = options(write).map_err(|e| io_error(path, "cannot open", e))?;
        Self::same(path, Some(claim), file)
    }

    /// Opens a file for a look, whoever uses it. What is read may change at any moment.
    ///
    /// # Errors
    /// As for [`HostFile::open`], but never [`ErrorKind::Busy`].
    pub fn look(path: &Path) -> Result<HostFile> {
        let file = File::options().read(true).custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK).open(path);
        Self::same(path, None, file.map_err(|e| io_error(path, "cannot open", e))?)
    }

    /// Makes a new, empty file, locked exclusively.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if there is something; else what the system says.
    pub fn create(path: &Path) -> Result<HostFile> {
        Self::create_as(path, path)
    }

    /// The same for a file that is going to have another name, which messages tell.
    pub(super) fn create_as(path: &Path, name: &Path) -> Result<HostFile> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|e| io_error(name, "cannot create", e))?;
        let claim = File::open(path).map_err(|e| io_error(name, "cannot open", e))?;
        lock(&claim, name, true)?;
        Self::same(name, Some(claim), file)
    }

    fn same(path: &Path, claim: Option<File>, file: File) -> Result<HostFile> {
        let identity =
            |f: &File| f.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| io_error(path, "cannot open", e));
        let found = identity(&file)?;
        if let Some(claim) = &claim
            && found != identity(claim)?
        {
            crate::fail!(Busy, "{} was replaced while it was opened", path.display());
        }
        Ok(HostFile { file, path: path.to_path_buf(), identity: found, new: Mutex::default(), _claim: claim })
    }

    /// Whether the file still has a name.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_linked(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 0)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> nix::Result<()> {
        let number = |n: u64| libc::off_t::try_from(n).map_err(|_| Errno::EFBIG);
        loop {
            match nix::fcntl::fallocate(&self.file, flags, number(offset)?, number(length)?) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }

    fn seek(&self, offset: u64, what: libc::c_int) -> nix::Result<u64> {
        let from = libc::off_t::try_from(offset).map_err(|_| Errno::ENXIO)?;
        // SAFETY: lseek takes no memory; nobody depends on the position of this file.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), from, what) };
        u64::try_from(found).map_err(|_| Errno::last())
    }

    fn write_zeros(&self, mut offset: u64, length: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut left = length;
        while left > 0 {
            let piece = left.min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..usize::try_from(piece).unwrap_or(zeros.len())], offset)?;
            (offset, left) = (offset + piece, left - piece);
        }
        Ok(())
    }
}

/// Makes a new or removed name durable.
///
/// # Errors
/// What the system says.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn lock(claim: &File, path: &Path, write: bool) -> Result<()> {
    let mut retries = 0;
    loop {
        match if write { claim.try_lock() } else { claim.try_lock_shared() } {
            Ok(()) => return Ok(()),
            // Who closes an image lets go of it a moment later, when the kernel has dropped the last reference.
            Err(TryLockError::WouldBlock) if retries < LOCK_RETRIES => {
                std::thread::sleep(LOCK_RETRY);
                retries += 1;
            }
            Err(TryLockError::WouldBlock) => {
                let why = if write { "in use" } else { "being written" };
                crate::fail!(Busy, "{} is {why} by another program or export", path.display());
            }
            Err(TryLockError::Error(e)) => return Err(io_error(path, "cannot lock", e)),
        }
    }
}

/// Refuses a file of a QRVSA filesystem that serves as a disk: locks do not reach below its mount.
fn refuse_disk(file: &File, path: &Path) -> Result<()> {
    let mut user = [0; 256];
    // SAFETY: the name ends with a NUL; the buffer is writable for as many bytes as are told.
    let length = unsafe {
        libc::fgetxattr(file.as_raw_fd(), c"user.qrvsa.in_use".as_ptr(), user.as_mut_ptr().cast(), user.len())
    };
    match usize::try_from(length).ok().and_then(|length| user.get(..length)) {
        Some(user) => crate::fail!(Busy, "{} is in use by {}", path.display(), String::from_utf8_lossy(user)),
        // nobody, or a filesystem that has no such thing
        None => Ok(()),
    }
}

/// The crate's error for a system error on an image.
pub fn io_error(path: &Path, what: &str, error: io::Error) -> Error {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::new(ErrorKind::NotFound, format!("{path} does not exist")),
        Some(libc::ETXTBSY) => {
            Error::new(ErrorKind::Busy, format!("{path} is in use as a disk; `qrvsa target list` shows the targets"))
        }
        Some(libc::EBUSY) => Error::new(ErrorKind::Busy, format!("{path} is in use or mounted")),
        Some(libc::EEXIST) => Error::new(ErrorKind::Exists, format!("{path} exists already")),
        Some(libc::ENOSPC | libc::EDQUOT) => {
            let what = format!("{what} {path}: the filesystem that holds it is full");
            Error::new(ErrorKind::NoSpace, what)
        }
        Some(libc::EROFS) => {
            Error::new(ErrorKind::ReadOnly, format!("{what} {path}: the filesystem that holds it is read-only"))
        }
        Some(errno @ (libc::EACCES | libc::EPERM | libc::EFBIG)) => {
            Error::new(ErrorKind::Posix(Errno::from_raw(errno)), format!("{what} {path}"))
        }
        _ => Error::new(ErrorKind::Io, format!("{what} {path}")).with_source(error),
    }
}

impl ImageFile for HostFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn wrote_new(&self, offset: u64, length: u64, fresh: bool) {
        let due = self.new.lock().wrote(offset, length, fresh);
        let Some(Range { start, end }) = due else { return };
        if let (Ok(start), Ok(length)) = (libc::off64_t::try_from(start), libc::off64_t::try_from(end - start)) {
            // SAFETY: the call takes no memory.
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn zero(&self, offset: u64, length: u64, release: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let flags = if release { FallocateFlags::FALLOC_FL_PUNCH_HOLE } else { FallocateFlags::FALLOC_FL_ZERO_RANGE };
        match self.allocate(flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => self.write_zeros(offset, length),
            Err(errno) => Err(errno.into()),
        }
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match self.seek(offset, libc::SEEK_DATA) {
            Ok(found) => Ok(Some(found.max(offset))),
            Err(Errno::ENXIO) => Ok(None),
            // A filesystem without holes: everything may be data.
            Err(_) => Ok((offset < self.length()?).then_some(offset)),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let length = self.length()?;
        Ok(self.seek(offset, libc::SEEK_HOLE).unwrap_or(length).min(length).max(offset))
    }

    fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn host_space(&self) -> io::Result<HostSpace> {
        let filesystem = nix::sys::statvfs::fstatvfs(&self.file)?;
        Ok(HostSpace {
            taken_bytes: self.file.metadata()?.blocks() * 512,
            free_bytes: filesystem.blocks_available().saturating_mul(filesystem.fragment_size()),
        })
    }
}

/// Where an image and its parents are looked for.
pub trait Files {
    /// Device and inode of what is at a path; `None` if nothing is. Takes no lock.
    fn identity(&self, path: &Path) -> Option<(u64, u64)>;

    /// Opens a file that exists, locked: shared for reading, exclusively for writing.
    ///
    /// # Errors
    /// As for [`HostFile::open`].
    fn open(&self, path: &Path, write: bool) -> Result<Arc<dyn ImageFile>>;
}

/// The files of this machine.
pub struct HostFiles;

impl Files for HostFiles {
    fn identity(&self, path: &Path) -> Option<(u64, u64)> {
        std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
    }

    fn open(&self, path: &Path, write: bool) -> Result<Arc<dyn ImageFile>> {
        Ok(Arc::new(HostFile::open(path, write)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 1 << 20;
    const DUE: u64 = WRITE_BEHIND_BYTES / PIECE;

    #[test]
    fn new_space_is_written_back_once_and_in_long_runs() {
        let mut run = NewRun::default();
        let at = 5 * PIECE;
        for i in 1..=3 * DUE {
            // The first write to a block says that it is fresh; what follows inside the block goes on.
            let due = run.wrote(at + (i - 1) * PIECE, PIECE, i % 2 == 1);
            let expected = (i % DUE == 0).then(|| at + (i - DUE) * PIECE..at + i * PIECE);
            assert_eq!(due, expected, "piece {i}");
        }
        // One long write is a run by itself.
        assert_eq!(run.wrote(1 << 40, WRITE_BEHIND_BYTES, true), Some(1 << 40..(1 << 40) + WRITE_BEHIND_BYTES));
    }

    #[test]
    fn a_read_only_filesystem_is_told_apart() {
        let error = io_error(Path::new("/m/a.vhdx"), "cannot open", io::Error::from_raw_os_error(libc::EROFS));
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(error.errno(), Errno::EROFS);
        assert!(error.to_string().contains("/m/a.vhdx: the filesystem that holds it is read-only"), "{error}");
    }

    #[test]
    fn what_was_there_before_is_left_to_the_system() {
        let mut run = NewRun::default();
        assert_eq!(run.wrote(PIECE, 2 * WRITE_BEHIND_BYTES, false), None, "nothing is new");
        assert_eq!(run.wrote(4 * PIECE, PIECE, true), None);
        // Elsewhere: the run is still open afterwards.
        assert_eq!(run.wrote(1 << 40, WRITE_BEHIND_BYTES, false), None);
        let rest = WRITE_BEHIND_BYTES - PIECE;
        assert_eq!(run.wrote(5 * PIECE, rest, false), Some(4 * PIECE..4 * PIECE + WRITE_BEHIND_BYTES));
        // New space elsewhere begins another run; the short one is left.
        assert_eq!(run.wrote(4 * PIECE + WRITE_BEHIND_BYTES, PIECE, false), None);
        assert_eq!(run.wrote(1 << 40, PIECE, true), None);
        assert_eq!(run.wrote(u64::MAX - PIECE, 2 * PIECE, true), None, "no file is so long");
    }
}
