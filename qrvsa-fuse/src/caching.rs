//! What the kernel may remember, and for how long. The reasons stand in the crate's documentation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileHandle, FopenFlags};
use qrvsa_core::fs::ops::Attr;

/// How long the kernel may use a name, found or not, without asking.
pub(crate) const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// How long the kernel may use attributes without asking, while nothing happens to the inode.
pub(crate) const ATTR_TTL: Duration = Duration::from_secs(3600);
/// The same for an inode that changed lately: `st_blocks` is not final until the change is committed.
pub(crate) const UNSETTLED_ATTR_TTL: Duration = Duration::from_secs(1);
/// How long after its last change an inode counts as changed lately. Longer than any commit interval.
pub(crate) const SETTLING_NS: i64 = 60_000_000_000;

/// Bit of the handle of a file opened for direct I/O.
const DIRECT: u64 = 1;
/// Bit of the handle of a file that is counted among those that may be written.
const WRITES: u64 = 2;

/// Whether the file was opened for direct I/O.
pub(crate) fn is_direct(handle: FileHandle) -> bool {
    handle.0 & DIRECT != 0
}

/// Whether the open was counted as one that may write.
pub(crate) fn is_writer(handle: FileHandle) -> bool {
    handle.0 & WRITES != 0
}

/// Whether an open with these flags may change the file.
pub(crate) fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

/// Whether the file has a bit that gives somebody else's rights, or that a write takes away.
pub(crate) fn has_set_id(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFREG && mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// How long attributes hold, from `now` on.
pub(crate) fn attr_ttl(attr: &Attr, now: SystemTime) -> Duration {
    if has_set_id(attr.mode) {
        return Duration::ZERO;
    }
    let now_ns = now.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    // A change in the future (the clock went back) counts as recent too.
    if now_ns.saturating_sub(attr.ctime_ns) < SETTLING_NS { UNSETTLED_ATTR_TTL } else { ATTR_TTL }
}

/// How an open file is to be cached, and the handle that says so: see the table in the crate's documentation.
/// `late_errors`: an accepted write can fail later. `keep`: what is cached of it still holds.
pub(crate) fn open_file(flags: i32, late_errors: bool, keep: bool) -> (FileHandle, FopenFlags) {
    let mut shown = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
    let writes = if may_write(flags) { WRITES } else { 0 };
    let mode = flags & libc::O_ACCMODE;
    if mode == libc::O_RDONLY || mode == libc::O_WRONLY && !late_errors {
        shown |= FopenFlags::FOPEN_NOFLUSH;
    }
    if flags & libc::O_DIRECT == 0 {
        return (FileHandle(writes), shown);
    }
    (FileHandle(DIRECT | writes), shown | FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(mode: u32, ctime_ns: i64) -> Attr {
        Attr {
            ino: 5,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns,
            btime_ns: 0,
        }
    }

    #[test]
    fn how_long_attributes_hold() {
        const SECOND: i64 = 1_000_000_000;
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(attr_ttl(&attr(0o100_755, 10 * SECOND), now), ATTR_TTL);
        assert_eq!(attr_ttl(&attr(0o100_755, 950 * SECOND), now), UNSETTLED_ATTR_TTL);
        assert_eq!(attr_ttl(&attr(0o100_755, 5000 * SECOND), now), UNSETTLED_ATTR_TTL, "the clock went back");
        assert_eq!(attr_ttl(&attr(0o100_755, i64::MIN), now), ATTR_TTL);
        assert_eq!(attr_ttl(&attr(0o104_755, 0), now), Duration::ZERO);
        assert_eq!(attr_ttl(&attr(0o102_755, 0), now), Duration::ZERO);
        assert_eq!(attr_ttl(&attr(0o102_644, 0), now), Duration::ZERO);
        assert_eq!(attr_ttl(&attr(0o042_755, 0), now), ATTR_TTL, "on directories the bit gives no rights");
    }

    #[test]
    fn only_direct_opens_bypass_the_cache() {
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let (keep, no_flush) = (FopenFlags::FOPEN_KEEP_CACHE, FopenFlags::FOPEN_NOFLUSH);
        for late_errors in [false, true] {
            assert_eq!(open_file(libc::O_RDWR, late_errors, true), (FileHandle(WRITES), keep));
            assert_eq!(open_file(libc::O_RDONLY, late_errors, true), (FileHandle(0), keep | no_flush));
            assert_eq!(open_file(libc::O_RDONLY, late_errors, false), (FileHandle(0), no_flush));
        }
        let both = FileHandle(WRITES | DIRECT);
        assert_eq!(open_file(libc::O_WRONLY | libc::O_DIRECT, true, true), (both, keep | direct));
        assert_eq!(open_file(libc::O_WRONLY | libc::O_DIRECT, false, true), (both, keep | no_flush | direct));
        assert_eq!(open_file(libc::O_WRONLY, true, true), (FileHandle(WRITES), keep));
        assert_eq!(open_file(libc::O_WRONLY, false, true), (FileHandle(WRITES), keep | no_flush));
        let reader = open_file(libc::O_RDONLY | libc::O_DIRECT, false, false).0;
        assert!(is_direct(reader) && !is_writer(reader) && is_writer(both) && !is_direct(FileHandle(WRITES)));
        assert!(may_write(libc::O_RDONLY | libc::O_TRUNC) && !may_write(libc::O_RDONLY));
    }
}
