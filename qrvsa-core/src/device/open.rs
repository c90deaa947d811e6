//! Opening a block device or a file as a device: checks with clear errors, the exclusive claim, direct I/O.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, fstat};

use super::probe::{self, Kind};
use super::uring::{DeviceFile, UringDevice};
use super::{Device, DeviceInfo};
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::error::{Error, ErrorKind, Result};

/// How to open a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Make a sparse file of so many bytes, rounded down to 4 KiB, if there is nothing yet. What exists must have this size.
    pub create_size: Option<u64>,
    /// Refuse a device that anybody else uses (mounted, in another pool, behind a loop device), and keep others out.
    pub exclusive: bool,
    /// Writes and discards fail with `EROFS`.
    pub read_only: bool,
}

/// Opens a block device, a partition or a regular file.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is nothing at `path` and nothing is to be made, [`ErrorKind::Invalid`] if it is neither
/// a block device nor a regular file or is smaller than 4 KiB, [`ErrorKind::Exists`] if it has another size than the one to
/// be made, [`ErrorKind::Busy`] if it is mounted or in use and `exclusive` is wanted, else what the system says.
pub fn open(path: &Path, options: OpenOptions) -> Result<Arc<dyn Device>> {
    open_uring(path, options).map(|device| Arc::new(device) as Arc<dyn Device>)
}

pub(super) fn open_uring(path: &Path, options: OpenOptions) -> Result<UringDevice> {
    let created = match options.create_size {
        Some(size) => create(path, size, options.read_only)?,
        None => false,
    };
    let opened = open_existing(path, options);
    if opened.is_err() && created {
        // Nobody has seen the file; a failure to remove it matters less than the failure to open it.
        let _ = fs::remove_file(path);
    }
    opened.map(UringDevice::new)
}

/// Opens a file whose length is somebody else's affair: requests may go anywhere, and nobody is kept out.
///
/// # Errors
/// As for [`open`].
pub(crate) fn open_growing(path: &Path, read_only: bool) -> Result<UringDevice> {
    let mut file = open_existing(path, OpenOptions { read_only, ..OpenOptions::default() })?;
    file.info.size_bytes = i64::MAX as u64 / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
    Ok(UringDevice::new(file))
}

/// Refuses a block device that is mounted, and a file that a loop device has as its backing file.
///
/// # Errors
/// [`ErrorKind::Busy`], saying by whom it is used; [`ErrorKind::Invalid`] if it is neither a block device nor a regular file;
/// what the system says.
pub fn refuse_if_used(path: &Path, file: &File) -> Result<()> {
    let stat = fstat(file).map_err(|errno| system_error(path, "cannot examine", errno.into()))?;
    probe::refuse_if_used(path, probe::kind(path, stat.st_mode, stat.st_rdev)?, &stat)
}

/// Makes the file unless something is there already. Returns whether it did.
fn create(path: &Path, size: u64, read_only: bool) -> Result<bool> {
    let size = size - size % BLOCK_SIZE as u64;
    if size == 0 {
        crate::fail!(Invalid, "{}: a device needs at least 4 KiB", path.display());
    }
    if i64::try_from(size).is_err() {
        crate::fail!(Invalid, "{}: no file can be {size} bytes long", path.display());
    }
    if read_only || path.exists() {
        return Ok(false);
    }
    let failed = |error| system_error(path, "cannot create", error);
    let file = match File::options().read(true).write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let made = file.set_len(size).and_then(|()| file.sync_all()).and_then(|()| sync_directory_of(path));
    if let Err(error) = made {
        let _ = fs::remove_file(path);
        return Err(failed(error));
    }
    Ok(true)
}

/// Makes a new name durable.
fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

fn system_error(path: &Path, what: &str, error: std::io::Error) -> Error {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::new(ErrorKind::NotFound, format!("{path} does not exist")),
        Some(libc::EBUSY) => Error::new(ErrorKind::Busy, format!("{path} is in use or mounted")),
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Error::new(ErrorKind::NoSpace, format!("{what} {path}")).with_source(error)
        }
        Some(errno) => {
            let errno = nix::errno::Errno::from_raw(errno);
            Error::new(ErrorKind::Posix(errno), format!("{what} {path}"))
        }
        None => Error::new(ErrorKind::Io, format!("{what} {path}")).with_source(error),
    }
}

fn open_existing(path: &Path, options: OpenOptions) -> Result<DeviceFile> {
    // Looked at before it is opened: opening a pipe or a tape has effects.
    let metadata = fs::metadata(path).map_err(|error| system_error(path, "cannot examine", error))?;
    let expected = probe::kind(path, metadata.mode(), metadata.rdev())?;

    // The claim first, so that nobody changes what is probed afterwards.
    let claim = if options.exclusive { Some(claim(path, expected)?) } else { None };
    let fd = open_plain(path, options.read_only).map_err(|error| system_error(path, "cannot open", error))?;
    let stat = fstat(&fd).map_err(|errno| system_error(path, "cannot examine", errno.into()))?;
    let kind = probe::kind(path, stat.st_mode, stat.st_rdev)?;
    if let Some(claim) = &claim {
        same_file(path, claim, &stat)?;
        probe::refuse_if_used(path, kind, &stat)?;
    }
    let info = probe::probe(path, &fd, &stat, kind)?;
    check_size(&info, options.create_size)?;
    let direct = set_direct(&fd, &info);
    Ok(DeviceFile::new(fd, claim, info, direct, options.read_only))
}

fn open_plain(path: &Path, read_only: bool) -> std::io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    Ok(File::options().read(true).write(!read_only).custom_flags(flags).open(path)?.into())
}

/// Claims the device for this process: `O_EXCL` on a block device (the kernel refuses mounts, other claims and claims on
/// its partitions from then on), `flock` on a file.
fn claim(path: &Path, kind: Kind) -> Result<OwnedFd> {
    let in_use = || Error::new(ErrorKind::Busy, format!("{} is in use or mounted", path.display()));
    let exclusive = if kind == Kind::File { 0 } else { libc::O_EXCL };
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | exclusive;
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            // Say where it is mounted, if that is the reason.
            if let Kind::Block(device) = kind {
                let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                if let Some(point) = probe::mount_point_in(&table, device) {
                    crate::fail!(Busy, "{} is mounted at {point}", path.display());
                }
            }
            return Err(in_use());
        }
        Err(error) => return Err(system_error(path, "cannot open", error)),
    };
    if kind == Kind::File {
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(in_use()),
            Err(fs::TryLockError::Error(error)) => return Err(system_error(path, "cannot lock", error)),
        }
    }
    Ok(file.into())
}

/// The claim and the I/O descriptor were opened by name, one after the other: they must be the same thing.
fn same_file(path: &Path, claim: &OwnedFd, stat: &FileStat) -> Result<()> {
    let claimed = fstat(claim).map_err(|errno| system_error(path, "cannot examine", errno.into()))?;
    if (claimed.st_dev, claimed.st_ino, claimed.st_rdev) != (stat.st_dev, stat.st_ino, stat.st_rdev) {
        crate::fail!(Busy, "{} was replaced while it was opened", path.display());
    }
    Ok(())
}

fn check_size(info: &DeviceInfo, create_size: Option<u64>) -> Result<()> {
    let path = info.path.display();
    if let Some(wanted) = create_size.map(|size| size - size % BLOCK_SIZE as u64)
        && wanted != info.size_bytes
    {
        crate::fail!(Exists, "{path} exists and has {} bytes, not {wanted}", info.size_bytes);
    }
    if info.size_bytes == 0 {
        crate::fail!(Invalid, "{path} is smaller than 4 KiB");
    }
    if info.logical_sector_bytes as usize > BLOCK_SIZE {
        crate::fail!(Unsupported, "{path} has sectors of {} bytes, more than 4096", info.logical_sector_bytes);
    }
    Ok(())
}

/// Turns direct I/O on and tries it on the first block. Returns whether it works.
fn set_direct(fd: &OwnedFd, info: &DeviceInfo) -> bool {
    let set = |on: bool| {
        let flags = if on { OFlag::O_DIRECT } else { OFlag::empty() };
        fcntl(fd, FcntlArg::F_SETFL(flags))
    };
    // The probe read also finds filesystems that take the flag but not our alignment.
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
    let refused = match set(true) {
        Ok(_) => match nix::sys::uio::pread(fd, &mut block, 0) {
            Err(errno @ (nix::errno::Errno::EINVAL | nix::errno::Errno::EOPNOTSUPP)) => Some(errno),
            // A bad first block is no reason to go through the page cache; whoever reads it next will know.
            _ => None,
        },
        Err(errno) => Some(errno),
    };
    if let Some(errno) = refused {
        let _ = set(false);
        tracing::info!(path = %info.path.display(), %errno, "no direct I/O here, transfers go through the page cache");
    }
    refused.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn error(path: &Path, options: OpenOptions) -> Error {
        match open(path, options) {
            Ok(_) => panic!("{} must not open", path.display()),
            Err(error) => error,
        }
    }

    fn sized(size: u64) -> OpenOptions {
        OpenOptions { create_size: Some(size), exclusive: true, read_only: false }
    }

    #[test]
    fn creates_sparse_files_and_keeps_what_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let info = open(&path, sized((64 << 20) + 4095)).unwrap().info().clone();
        assert_eq!((info.size_bytes, info.kind), (64 << 20, "file"));
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() < 64, "sparse");
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(open(&path, sized(64 << 20)).is_ok(), "the same size is accepted");
        let other = error(&path, sized(32 << 20));
        assert_eq!(other.kind(), ErrorKind::Exists);
        assert!(other.to_string().contains("not 33554432"), "{other}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 64 << 20);
        assert_eq!(error(&dir.path().join("new"), sized(100)).kind(), ErrorKind::Invalid);
        assert_eq!(error(&dir.path().join("new"), sized(u64::MAX)).kind(), ErrorKind::Invalid);
        assert_eq!(error(&dir.path().join("no/new"), sized(1 << 20)).kind(), ErrorKind::NotFound);
        let read_only = OpenOptions { read_only: true, ..sized(1 << 20) };
        assert_eq!(error(&dir.path().join("new"), read_only).kind(), ErrorKind::NotFound);
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn refuses_what_is_no_device() {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions::default();
        let missing = error(&dir.path().join("missing"), options);
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.to_string().ends_with("missing does not exist"));
        assert!(error(dir.path(), options).to_string().contains("is a directory"));
        assert!(error(Path::new("/dev/null"), options).to_string().contains("is a character device"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(error(&fifo, options).to_string().contains("is a pipe"));
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert_eq!(error(&dir.path().join("dangling"), options).kind(), ErrorKind::NotFound);
        fs::write(dir.path().join("small"), b"x").unwrap();
        assert!(error(&dir.path().join("small"), options).to_string().contains("smaller than 4 KiB"));
    }

    #[test]
    fn an_exclusive_claim_keeps_others_out_until_the_device_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = open(&path, sized(1 << 20)).unwrap();
        assert_eq!(error(&path, sized(1 << 20)).kind(), ErrorKind::Busy);
        symlink(&path, dir.path().join("other-name")).unwrap();
        let busy = error(&dir.path().join("other-name"), OpenOptions { exclusive: true, ..OpenOptions::default() });
        assert!(busy.to_string().ends_with("is in use or mounted"), "{busy}");
        assert!(path.exists(), "a refused open removes nothing");
        assert!(open(&path, OpenOptions { read_only: true, ..OpenOptions::default() }).is_ok(), "looking is allowed");
        drop(first);
        assert!(open(&path, sized(1 << 20)).is_ok());
    }
}
