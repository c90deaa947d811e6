//! Questions to the system the daemon runs on: mounts, memory, shutdown.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use qrvsa_core::{Error, ErrorKind, Result};

/// Whether a FUSE mount is there whose server is gone.
#[must_use]
pub fn is_stale_mount(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|e| is_stale_error(&e))
}

/// Whether the error is what the kernel answers for a FUSE mount whose server is gone.
#[must_use]
pub fn is_stale_error(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOTCONN as i32)
}

/// Detaches dead FUSE mounts, which may be stacked, from a directory; returns whether there were any.
///
/// # Errors
/// What `umount2` says.
pub fn detach_stale_mounts(path: &Path) -> Result<bool> {
    const STACKED_MAX: usize = 64;
    for detached in 0..STACKED_MAX {
        if !is_stale_mount(path) {
            return Ok(detached > 0);
        }
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| {
            Error::new(ErrorKind::Posix(errno), format!("cannot detach the dead mount on {}", path.display()))
        })?;
    }
    Err(Error::new(ErrorKind::Busy, format!("more than {STACKED_MAX} dead mounts are stacked on {}", path.display())))
}

/// Whether anything is mounted exactly there. Does not touch the path, so it cannot hang on it.
#[must_use]
pub fn is_mountpoint(path: &Path) -> bool {
    std::fs::read("/proc/self/mountinfo").is_ok_and(|table| mountpoints(&table).any(|point| point == path))
}

/// The mount points of a mountinfo table: the fifth field, with octal escapes for blanks and backslashes.
fn mountpoints(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape_octal(field))))
}

fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (byte, tail) {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Whether systemd is taking the system down. Its mount units are stopped in parallel with the daemon then, which looks
/// like an administrator's `umount`, but must not make the daemon forget its mounts.
#[must_use]
pub fn system_is_stopping() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    ["/usr/bin/systemctl", "/bin/systemctl"].iter().any(|systemctl| {
        Command::new(systemctl)
            .arg("is-system-running")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|output| output.stdout.trim_ascii() == b"stopping")
    })
}

/// Memory of the machine, or of the control group the daemon is in, whichever is less, bytes. `None` when unknown.
#[must_use]
pub fn memory_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let limit = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path).join("memory.max")).ok()?;
        limit.trim().parse::<u64>().ok()
    });
    match (machine, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_escapes() {
        let table = b"36 35 98:0 / / rw - ext4 /dev/root rw\n\
            40 36 0:50 / /mnt/a\\040b\\134c rw - fuse.qrvsa tank rw\n\
            garbage\n\n41 36 0:51 / /mnt/x\\09 rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mountpoints(table).collect();
        assert_eq!(points, [Path::new("/"), Path::new("/mnt/a b\\c"), Path::new("/mnt/x\\09")]);
    }

    #[test]
    fn mountpoints_of_this_system() {
        assert!(is_mountpoint(Path::new("/proc")));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mountpoint(dir.path()));
        assert!(!is_stale_mount(dir.path()));
        assert!(!is_stale_mount(&dir.path().join("none")));
        assert!(!detach_stale_mounts(dir.path()).unwrap());
    }

    #[test]
    fn memory_is_known() {
        assert!(memory_bytes().unwrap() > 16 << 20);
    }
}
