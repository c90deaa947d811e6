//! The place a filesystem is mounted at: checks before, mount(2), settings after.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::unistd::{getgid, getuid};
use qrvsa_core::{Error, ErrorKind, Result, fail};

use crate::mountinfo::{self, Identity};
use crate::options::MountOptions;

/// How long a mount that is already there may take to show that it is alive.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many dead mounts on top of each other are cleared.
const STALE_MOUNTS_MAX: usize = 16;

/// The canonical path of a directory that can be mounted at: an existing directory which is no mount point yet. A dead
/// mount of the same filesystem (its daemon is gone) is detached first.
pub(crate) fn prepare(mount_point: &Path, fs_name: &str) -> Result<PathBuf> {
    let path = canonical(mount_point)?;
    for _ in 0..STALE_MOUNTS_MAX {
        let Some(entry) = mountinfo::topmost_at(&path)? else {
            return check_directory(path);
        };
        if !entry.is_ours(fs_name) || !is_dead(&path) {
            fail!(
                Busy,
                "{}: already a mount point of {} ({})",
                path.display(),
                entry.source.to_string_lossy(),
                entry.fs_type
            );
        }
        tracing::warn!(mount_point = %path.display(), filesystem = fs_name, "detaching the mount a dead daemon left");
        detach(&path, MntFlags::MNT_DETACH)?;
    }
    fail!(Busy, "{}: too many dead mounts on top of each other", path.display())
}

fn check_directory(path: PathBuf) -> Result<PathBuf> {
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => fail!(Invalid, "mount point {}: not a directory", path.display()),
        Err(error) => Err(io_error(&path, error)),
    }
}

/// Resolves links in all of the path, but does not need the last component to answer: it may be a dead mount.
fn canonical(path: &Path) -> Result<PathBuf> {
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
            let absolute = std::path::absolute(path).map_err(|e| io_error(path, e))?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(|e| io_error(path, e))?.join(name)),
                _ => Err(io_error(path, error)),
            }
        }
        Err(error) => Err(io_error(path, error)),
    }
}

fn io_error(path: &Path, error: std::io::Error) -> Error {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    let context = format!("mount point {}", path.display());
    match errno {
        Errno::ENOENT => Error::new(ErrorKind::NotFound, format!("{context}: does not exist")),
        Errno::ENOTDIR => Error::new(ErrorKind::Invalid, format!("{context}: not a directory")),
        errno => Error::new(ErrorKind::Posix(errno), context),
    }
}

/// Whether nobody serves the FUSE mount at `path`. Asks on a thread of its own: a daemon that hangs counts as alive.
fn is_dead(path: &Path) -> bool {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    let probe = std::thread::Builder::new().name("mount-probe".into()).spawn(move || {
        // Unlike stat, statfs is never answered from the kernel's caches.
        let result = nix::sys::statfs::statfs(&path);
        let _ = sender.send(matches!(result, Err(Errno::ENOTCONN | Errno::ECONNABORTED)));
    });
    probe.is_ok() && receiver.recv_timeout(PROBE_TIMEOUT).unwrap_or(false)
}

/// Unmounts what is topmost at `path`, without following a link there.
pub(crate) fn detach(path: &Path, flags: MntFlags) -> Result<()> {
    match nix::mount::umount2(path, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => fail!(Busy, "{}: in use", path.display()),
        Err(errno) => Err(Error::new(ErrorKind::Posix(errno), format!("unmounting {}", path.display()))),
    }
}

/// Opens `/dev/fuse` and mounts it at `path`. `None` if this process may not mount: the set-user-id helper may.
pub(crate) fn mount_device(path: &Path, options: &MountOptions) -> Result<Option<OwnedFd>> {
    const DEVICE: &str = "/dev/fuse";
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && !getuid().is_root() => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fail!(NotFound, "{DEVICE} does not exist: is the kernel module \"fuse\" loaded?")
        }
        Err(error) => {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
            return Err(Error::new(ErrorKind::Posix(errno), DEVICE));
        }
    };
    if !device.metadata().is_ok_and(|m| m.file_type().is_char_device()) {
        fail!(Invalid, "{DEVICE} is not a device");
    }
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        libc::S_IFDIR,
        getuid(),
        getgid()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let source = OsStr::new(&options.fs_name);
    match nix::mount::mount(Some(source), path, Some(crate::FS_TYPE), options.flags(), Some(data.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) if !getuid().is_root() => Ok(None),
        Err(errno) => Err(Error::new(ErrorKind::Posix(errno), format!("mounting at {}", path.display()))),
    }
}

/// Raises the readahead of a mounted filesystem. It is no more than a speed-up: failures are only logged.
pub(crate) fn set_readahead(identity: Identity, kib: u32) {
    let (major, minor) = identity.device;
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if kib != 0
        && let Err(error) = std::fs::write(&file, kib.to_string())
    {
        tracing::debug!(file, %error, "readahead stays as the kernel set it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsuitable_mount_points_are_refused_clearly() {
        let dir = tempfile::tempdir().unwrap();
        let missing = prepare(&dir.path().join("missing"), "t").unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(prepare(&file, "t").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(prepare(&file.join("below"), "t").unwrap_err().kind(), ErrorKind::Invalid);
        let root = prepare(Path::new("/"), "t").unwrap_err();
        assert_eq!(root.kind(), ErrorKind::Busy);
        assert!(root.to_string().contains("already a mount point"), "{root}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(prepare(&link, "t").unwrap(), dir.path().canonicalize().unwrap());
    }
}
