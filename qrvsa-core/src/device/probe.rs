//! Facts about an open block device or file, from `fstat`, `ioctl` and sysfs; and whether somebody else uses it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};

use super::{DeviceInfo, IoError};
use crate::buf::BLOCK_SIZE;
use crate::error::{Error, ErrorKind, Result};

mod ioctl {
    nix::ioctl_read_bad!(logical_sector, nix::libc::BLKSSZGET, nix::libc::c_int);
    nix::ioctl_read_bad!(physical_sector, nix::libc::BLKPBSZGET, nix::libc::c_uint);
    nix::ioctl_read!(size_bytes, 0x12, 114, u64);
}

/// What a path turns out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A block device, with its number.
    Block(u64),
    /// A regular file.
    File,
}

/// The kind of what `stat` describes.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a directory and everything else that is neither.
pub fn kind(path: &Path, mode: u32, rdev: u64) -> Result<Kind> {
    let what = match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFBLK => return Ok(Kind::Block(rdev)),
        SFlag::S_IFREG => return Ok(Kind::File),
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFCHR => "a character device",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFSOCK => "a socket",
        _ => "of an unknown type",
    };
    let path = path.display();
    Err(Error::new(ErrorKind::Invalid, format!("{path} is {what}; a device is a block device or a regular file")))
}

fn block_size_bytes(fd: &impl AsRawFd) -> nix::Result<u64> {
    let mut size = 0u64;
    // SAFETY: BLKGETSIZE64 writes one u64 to the address given.
    unsafe { ioctl::size_bytes(fd.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

fn block_sectors(fd: &impl AsRawFd) -> (u32, u32) {
    let (mut logical, mut physical) = (0, 0);
    // SAFETY: BLKSSZGET writes one int to the address given.
    let logical_known = unsafe { ioctl::logical_sector(fd.as_raw_fd(), &raw mut logical) }.is_ok();
    // SAFETY: BLKPBSZGET writes one unsigned int to the address given.
    let physical_known = unsafe { ioctl::physical_sector(fd.as_raw_fd(), &raw mut physical) }.is_ok();
    let logical = if logical_known && logical > 0 { logical.unsigned_abs() } else { 512 };
    (logical, if physical_known { physical.max(logical) } else { logical })
}

/// The sysfs directory of a block device's `queue`; a partition has its disk's.
fn queue_directory(device: u64) -> Option<PathBuf> {
    let directory = sysfs_directory(device);
    [directory.join("queue"), directory.join("../queue")].into_iter().find(|d| d.is_dir())
}

fn sysfs_directory(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// A number from a one-line file.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Facts about an open device.
pub fn probe(path: &Path, fd: &OwnedFd, stat: &FileStat, kind: Kind) -> Result<DeviceInfo> {
    let failed = |errno: nix::errno::Errno| {
        Error::new(ErrorKind::Io, format!("cannot read the size of {}", path.display())).with_source(errno)
    };
    let (number_of_device, size) = match kind {
        Kind::Block(device) => (device, block_size_bytes(fd).map_err(failed)?),
        // The disk under the filesystem, where the filesystem has one.
        Kind::File => (stat.st_dev, u64::try_from(stat.st_size).unwrap_or(0)),
    };
    let queue = queue_directory(number_of_device);
    let in_queue = |name: &str| queue.as_ref().and_then(|q| number(&q.join(name)));
    let sector = |name: &str, otherwise| in_queue(name).and_then(|n| u32::try_from(n).ok()).unwrap_or(otherwise);
    let (logical, physical) = match kind {
        Kind::Block(_) => block_sectors(fd),
        Kind::File => (sector("logical_block_size", 512), sector("physical_block_size", 4096)),
    };
    Ok(DeviceInfo {
        path: path.to_path_buf(),
        size_bytes: size - size % BLOCK_SIZE as u64,
        logical_sector_bytes: logical,
        physical_sector_bytes: physical,
        rotational: in_queue("rotational") == Some(1),
        // A hole in a file gives its space back wherever the filesystem can have holes.
        discard: kind == Kind::File || in_queue("discard_max_bytes").is_some_and(|n| n > 0),
        kind: if kind == Kind::File { "file" } else { "block" },
    })
}

/// Whether the open device is still there, whole, and the one that was opened. No I/O to the medium.
pub fn check_presence(fd: &OwnedFd, info: &DeviceInfo) -> Result<(), IoError> {
    let gone = |errno: i32, why: &str| Err(IoError { errno, what: format!("{} {why}", info.path.display()) });
    let stat = match fstat(fd.as_fd()) {
        Ok(stat) => stat,
        Err(errno) => return gone(errno as i32, "cannot be examined"),
    };
    let size = if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK {
        // A device node may be moved about; the device itself is gone when the kernel forgets it.
        if sysfs_present() && !sysfs_directory(stat.st_rdev).exists() {
            return gone(libc::ENODEV, "is gone: the device was removed");
        }
        if let Some(backing) = loop_backing_state(stat.st_rdev)
            && backing.is_none_or(|file| file.ends_with(" (deleted)"))
        {
            return gone(libc::ENODEV, "is gone: the file behind the loop device was removed");
        }
        match block_size_bytes(fd) {
            Ok(size) => size,
            Err(errno) => return gone(errno as i32, "is gone"),
        }
    } else {
        if stat.st_nlink == 0 {
            return gone(libc::ENOENT, "was unlinked");
        }
        u64::try_from(stat.st_size).unwrap_or(0)
    };
    if size < info.size_bytes {
        return gone(libc::EIO, &format!("shrank from {} to {size} bytes", info.size_bytes));
    }
    Ok(())
}

fn sysfs_present() -> bool {
    Path::new("/sys/dev/block").is_dir()
}

/// For a loop device (or a partition of one): the path of its backing file as the kernel tells it, or `Some(None)` when it
/// has none any more. `None` for all other devices.
fn loop_backing_state(device: u64) -> Option<Option<String>> {
    let directory = sysfs_directory(device);
    let name = fs::read_link(&directory).ok()?;
    let mut components = name.components().rev().map(|c| c.as_os_str().to_string_lossy());
    let is_loop = |n: Option<std::borrow::Cow<'_, str>>| {
        n.is_some_and(|n| n.strip_prefix("loop").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit())))
    };
    let disk = if !directory.join("partition").exists() { directory } else { directory.join("..") };
    if !is_loop(components.next()) && !is_loop(components.next()) {
        return None;
    }
    Some(fs::read_to_string(disk.join("loop/backing_file")).ok().map(|text| text.trim_end().to_string()))
}

/// Where a block device is mounted: the first mount point, from a `mountinfo` table.
pub fn mount_point_in(mountinfo: &str, device: u64) -> Option<String> {
    let wanted = format!("{}:{}", major(device), minor(device));
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        (number == wanted).then(|| unescape(point))
    })
}

/// Whether a path is on the filesystem with this device number, by a `mountinfo` table alone. Filesystems without a block device (btrfs, overlay)
/// show other numbers in files than in the table: any of these counts as a match for one that the table does not have.
fn lies_on(mountinfo: &str, path: &str, device: u64) -> bool {
    let wanted = format!("{}:{}", major(device), minor(device));
    let (mut longest, mut found, mut known) = (0, None, false);
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let (Some(number), Some(point)) = (fields.nth(2), fields.nth(1).map(unescape)) else { continue };
        known |= number == wanted;
        if Path::new(path).starts_with(&point) && point.len() >= longest {
            longest = point.len();
            found = Some((number, line.contains(" - fuse")));
        }
    }
    match found {
        Some((number, _)) if known => number == wanted,
        Some((number, fuse)) => number.starts_with("0:") && !fuse,
        None => false,
    }
}

/// Undoes the octal escapes of `mountinfo` (blank, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Refuses a block device that is mounted, and a file that a loop device uses.
///
/// # Errors
/// [`ErrorKind::Busy`], saying by whom.
pub fn refuse_if_used(path: &Path, kind: Kind, stat: &FileStat) -> Result<()> {
    let busy = |why: String| Err(Error::new(ErrorKind::Busy, format!("{} {why}", path.display())));
    match kind {
        Kind::Block(device) => {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            match mount_point_in(&table, device) {
                Some(point) => busy(format!("is mounted at {point}")),
                None => Ok(()),
            }
        }
        Kind::File => match loop_device_of(stat) {
            Some(name) => busy(format!("is in use: it is the backing file of /dev/{name}")),
            None => Ok(()),
        },
    }
}

/// The loop device that has this file as its backing file. A backing file is looked at only where it lies on the same mounted
/// filesystem as ours: another one may be dead, and whoever asks it for anything then waits for ever.
fn loop_device_of(stat: &FileStat) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let backing = backing.trim_end_matches('\n');
        let same = |m: fs::Metadata| m.st_dev() == stat.st_dev && m.st_ino() == stat.st_ino;
        if lies_on(&table, backing, stat.st_dev) && fs::metadata(backing).is_ok_and(same) {
            return Some(name);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    #[test]
    fn mount_table() {
        let table = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                     30 22 8:17 / /mnt/a\\040b\\134c rw - xfs /dev/sdb1 rw\n\
                     31 22 0:25 / /run rw - tmpfs tmpfs rw\n\
                     broken line\n";
        assert_eq!(mount_point_in(table, makedev(8, 1)).as_deref(), Some("/"));
        assert_eq!(mount_point_in(table, makedev(8, 17)).as_deref(), Some("/mnt/a b\\c"));
        assert_eq!(mount_point_in(table, makedev(8, 2)), None);
        assert_eq!(mount_point_in("", makedev(8, 2)), None);
    }

    #[test]
    fn what_lies_on_another_filesystem_is_not_looked_at() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     30 22 8:17 / /mnt/a\\040b rw - xfs /dev/sdb1 rw\n\
                     31 22 0:40 / /mnt/pool rw - fuse.qrvsa tank rw\n\
                     32 22 0:41 / /data rw - btrfs /dev/sdc rw\n\
                     broken line\n";
        assert!(lies_on(table, "/home/x.img", makedev(8, 1)));
        assert!(lies_on(table, "/mnt/a b/x.img", makedev(8, 17)));
        assert!(!lies_on(table, "/mnt/a b/x.img", makedev(8, 1)));
        assert!(!lies_on(table, "/mnt/pool/x.img", makedev(8, 1)));
        assert!(lies_on(table, "/mnt/pools", makedev(8, 1)), "whole names, not beginnings of names");
        // a subvolume's number is not in the table
        assert!(lies_on(table, "/data/x.img", makedev(0, 77)));
        assert!(!lies_on(table, "/mnt/pool/x.img", makedev(0, 77)));
        assert!(!lies_on("", "/x", makedev(8, 1)));
    }

    #[test]
    fn kinds() {
        let path = Path::new("/x");
        assert_eq!(kind(path, libc::S_IFREG | 0o644, 0).unwrap(), Kind::File);
        assert_eq!(kind(path, libc::S_IFBLK, 7).unwrap(), Kind::Block(7));
        for mode in [libc::S_IFDIR, libc::S_IFCHR, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFLNK, 0] {
            assert_eq!(kind(path, mode, 0).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
