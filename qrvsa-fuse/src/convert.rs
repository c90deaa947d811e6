//! Attributes, times and flags between the kernel's protocol, as the library shows it, and the operations.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use qrvsa_core::fs::ops::{AllocateMode, Attr, RenameMode, SetTime};

/// Nanoseconds since the epoch as a time, before 1970 too.
pub(crate) fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    let time = if ns < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    time.unwrap_or(UNIX_EPOCH)
}

/// A time of a SETATTR request in nanoseconds since the epoch, at the nearest end of the range if outside.
///
/// The library makes `epoch - (s + n)` of a request for `-s` seconds plus `n` nanoseconds; `-s + n` is what was asked for.
pub(crate) fn requested_ns(time: SystemTime) -> i64 {
    const SECOND: i128 = 1_000_000_000;
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(d) => i128::from(d.as_secs()) * SECOND + i128::from(d.subsec_nanos()),
        Err(e) => -i128::from(e.duration().as_secs()) * SECOND + i128::from(e.duration().subsec_nanos()),
    };
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

/// As [`requested_ns`], for a time that may be "now".
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(requested_ns(t)),
    }
}

/// The type of a file from its `st_mode`; `None` if the bits name none.
pub(crate) fn file_type(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

/// Attributes for the kernel; `None` if they name no file type.
pub(crate) fn file_attr(attr: &Attr) -> Option<FileAttr> {
    Some(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime_ns),
        mtime: system_time(attr.mtime_ns),
        ctime: system_time(attr.ctime_ns),
        crtime: system_time(attr.btime_ns),
        kind: file_type(attr.mode)?,
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    })
}

/// What an entry with no attributes of its own shows: a type and an inode number.
pub(crate) fn bare_attr(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The permission bits after somebody without privilege changed the contents of a regular file: no set-user-id, and no
/// set-group-id if the group may execute.
pub(crate) fn without_set_id(mode: u32) -> u32 {
    let mut bits = mode & 0o7777 & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        bits &= !libc::S_ISGID;
    }
    bits
}

/// `fallocate` mode bits; `None` for a combination that does not exist.
pub(crate) fn allocate_mode(mode: i32) -> Option<AllocateMode> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | KEEP;
    Some(match mode {
        0 => AllocateMode::Allocate { keep_size: false },
        KEEP => AllocateMode::Allocate { keep_size: true },
        PUNCH => AllocateMode::PunchHole,
        ZERO => AllocateMode::ZeroRange { keep_size: false },
        ZERO_KEEP => AllocateMode::ZeroRange { keep_size: true },
        libc::FALLOC_FL_COLLAPSE_RANGE => AllocateMode::CollapseRange,
        libc::FALLOC_FL_INSERT_RANGE => AllocateMode::InsertRange,
        _ => return None,
    })
}

/// `renameat2` flags; `None` for a combination that does not exist here (`RENAME_WHITEOUT` among them).
pub(crate) fn rename_mode(flags: RenameFlags) -> Option<RenameMode> {
    if flags.is_empty() {
        Some(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(RenameMode::Exchange)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        assert_eq!(system_time(-1), UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(system_time(1_500_000_000), UNIX_EPOCH + Duration::from_millis(1500));
        system_time(i64::MIN);
        system_time(i64::MAX);
        // -2 s + 0.5 s, as the library shows it.
        assert_eq!(requested_ns(UNIX_EPOCH - Duration::new(2, 500_000_000)), -1_500_000_000);
        assert_eq!(requested_ns(UNIX_EPOCH + Duration::new(2, 5)), 2_000_000_005);
        assert_eq!(requested_ns(UNIX_EPOCH + Duration::new(i64::MAX as u64, 0)), i64::MAX);
        assert_eq!(requested_ns(UNIX_EPOCH - Duration::new(i64::MAX as u64, 0)), i64::MIN);
    }

    #[test]
    fn set_id_bits() {
        assert_eq!(without_set_id(0o106_755), 0o755);
        assert_eq!(without_set_id(0o106_745), 0o2745, "set-group-id without group execute stays");
        assert_eq!(without_set_id(0o101_777), 0o1777);
    }

    #[test]
    fn mode_bits() {
        assert_eq!(allocate_mode(0), Some(AllocateMode::Allocate { keep_size: false }));
        assert_eq!(allocate_mode(3), Some(AllocateMode::PunchHole));
        assert_eq!(allocate_mode(2), None, "punching must keep the size");
        assert_eq!(allocate_mode(0x11), Some(AllocateMode::ZeroRange { keep_size: true }));
        assert_eq!(allocate_mode(0x40), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE), None);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Some(RenameMode::Exchange));
        assert_eq!(file_type(0o160_000), None);
    }
}
