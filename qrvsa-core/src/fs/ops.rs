//! The operations of a POSIX filesystem, without any transport.
//!
//! Permission checks on paths and modes are done by whoever calls (the kernel, with `default_permissions`); what only
//! the filesystem can do (set-id clearing, sticky inheritance, ACL inheritance, limits) is done here. Names are bytes.
//! Inode numbers are never reused, so an inode number needs no generation. All methods may be called from any thread,
//! and may block on devices.

use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::AtimeMode;
use crate::fs::claims::Tell;

/// An inode number. 1 is the root directory.
pub type Ino = u64;
/// The root directory.
pub const ROOT_INO: Ino = 1;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
    /// Thread id, to look supplementary groups up; 0 when unknown.
    pub pid: u32,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `st_rdev`.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units, as `st_blocks`.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Birth, nanoseconds since the epoch.
    pub btime_ns: i64,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the operation.
    Now,
    /// Nanoseconds since the epoch.
    At(i64),
}

/// What a mount wants done about access times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAtime {
    /// When reading updates them; `None`: as the filesystem itself is set.
    pub mode: Option<AtimeMode>,
    /// Never those of directories.
    pub no_dirs: bool,
}

/// Asks a mount what it wants now; the default when the mount has ended. Must not wait for an operation.
pub type AskMount = Arc<dyn Fn() -> MountAtime + Send + Sync>;

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size: truncate or extend.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time; only the kernel's writeback sets it, otherwise it is the time of the operation.
    pub ctime: Option<SetTime>,
}

/// What mknod makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Type and permission bits; the type is one of regular, fifo, socket, char, block, directory.
    pub mode: u32,
    /// The caller's umask, applied unless the parent has a default ACL.
    pub umask: u32,
    /// Device number.
    pub rdev: u32,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode.
    pub ino: Ino,
    /// Where to continue after this entry. Stable while the entry exists, also when others come and go.
    pub cookie: u64,
    /// `d_type` as the file type bits of `st_mode` (0o170000 mask).
    pub file_type: u32,
    /// Name.
    pub name: Vec<u8>,
    /// Attributes, when asked for with `plus` and when they can be read.
    pub attr: Option<Attr>,
}

/// How rename treats an existing target (`renameat2` flags).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// `RENAME_NOREPLACE`: fails with `EEXIST`.
    NoReplace,
    /// `RENAME_EXCHANGE`: swaps the two.
    Exchange,
}

/// `fallocate` modes that exist here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Mode 0: the range will read as it does, the file grows to hold it.
    Allocate {
        /// `FALLOC_FL_KEEP_SIZE`.
        keep_size: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`.
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`.
    ZeroRange {
        /// `FALLOC_FL_KEEP_SIZE`.
        keep_size: bool,
    },
    /// `FALLOC_FL_COLLAPSE_RANGE`.
    CollapseRange,
    /// `FALLOC_FL_INSERT_RANGE`.
    InsertRange,
}

/// `setxattr` flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces.
    Set,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Fragment size in bytes, the unit of the next three.
    pub frsize: u32,
    /// Total.
    pub blocks: u64,
    /// Free.
    pub bfree: u64,
    /// Available to users.
    pub bavail: u64,
    /// Inodes there could be.
    pub files: u64,
    /// Inodes still free.
    pub ffree: u64,
    /// Longest name.
    pub namelen: u32,
}

/// Filesystem operations. Errors carry the errno the caller sees.
#[allow(clippy::missing_errors_doc, reason = "each returns the errors of the system call of its name")]
pub trait Operations: Send + Sync + 'static {
    /// Finds a name in a directory; `.` and `..` included.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// Attributes.
    fn getattr(&self, ino: Ino) -> Result<Attr>;
    /// Changes attributes.
    fn setattr(&self, caller: Caller, ino: Ino, change: SetAttr) -> Result<Attr>;
    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Makes a node of any type but symlink; `mkdir` too.
    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Attr>;
    /// Makes a symbolic link.
    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr>;
    /// Makes a hard link.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// Removes a name that is not a directory.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()>;
    /// Renames.
    fn rename(&self, caller: Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()>;
    /// Opens or makes a regular file in one step (`O_CREAT`); the bool says whether it was made. Counts as an open.
    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        exclusive: bool,
        truncate: bool,
    ) -> Result<(Attr, bool)>;
    /// Counts an open of a file or directory, so that it outlives its last name. `truncate` for `O_TRUNC`.
    fn open(&self, caller: Caller, ino: Ino, truncate: bool) -> Result<()>;
    /// Ends one open.
    fn release(&self, ino: Ino);
    /// Somebody is about to open the file to write, or has just made it to: `ETXTBSY` while it serves as a disk. Who then
    /// does not open it after all, or no longer has it open, calls [`Operations::end_writing`].
    fn begin_writing(&self, ino: Ino) -> Result<()> {
        let _ = ino;
        Ok(())
    }
    /// Takes back one [`Operations::begin_writing`] that succeeded.
    fn end_writing(&self, ino: Ino) {
        let _ = ino;
    }
    /// The caller goes on knowing this inode, by number, after the operation that returned it: like an open one, it
    /// outlives its last name until it is forgotten. Called before anybody can remove the name.
    fn remember(&self, ino: Ino) {
        let _ = ino;
    }
    /// Finds an inode by its number, for a file handle: `ENOENT` when its last name is gone. (Whoever has it open knows it
    /// already and does not ask.) Counts as [`Operations::remember`], in one step: it cannot be removed in between.
    fn find_and_remember(&self, ino: Ino) -> Result<Attr> {
        let attr = self.getattr(ino)?;
        if attr.nlink == 0 {
            return Err(Error::posix(Errno::ENOENT));
        }
        self.remember(ino);
        Ok(attr)
    }
    /// Takes back so many calls of [`Operations::remember`].
    fn forget(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
    }
    /// Takes back all calls of [`Operations::remember`] and all opens: nobody is left who knows an inode.
    fn forget_all(&self) {}
    /// Reads at most `buf.len()` bytes; fewer only at the end of the file.
    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// The same as [`Operations::read`], leaving the access time as it is (`O_NOATIME`).
    fn read_quietly(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read(ino, offset, buf)
    }
    /// Writes all of `data` at `offset`, or at the end of the file if `append`, and removes `security.capability`.
    /// `kill_priv`: clears set-id bits too.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], append: bool, kill_priv: bool) -> Result<usize>;
    /// Writes as [`Operations::write`] does for a caller without the privilege to leave set-id bits: set-group-id goes
    /// from a file that the group may not execute, too, unless the caller is in that group.
    fn write_unprivileged(&self, caller: Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        let _ = caller;
        self.write(ino, offset, data, false, true)
    }
    /// Whether an accepted write can fail later, so that [`Operations::flush`] has something to report. Fixed.
    fn has_late_errors(&self) -> bool {
        true
    }
    /// At each close: reports errors of writes that were accepted earlier.
    fn flush(&self, ino: Ino) -> Result<()>;
    /// Makes contents and attributes durable. Directories too.
    fn fsync(&self, ino: Ino, data_only: bool) -> Result<()>;
    /// Makes everything durable.
    fn sync_all(&self) -> Result<()>;
    /// Lists a directory from a cookie (0: from the start, with `.` and `..`). `emit` returns false when it has no room
    /// for the entry; it is then offered again by the next call.
    fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()>;
    /// The last cookie of a directory now: what comes in later has a higher one.
    fn listing_end(&self, ino: Ino) -> Result<u64> {
        let _ = ino;
        Ok(u64::MAX)
    }
    /// The same as [`Operations::readdir`] up to a cookie, that of [`Operations::listing_end`] when the listing began. So it
    /// ends, whoever adds or renames for each entry he is shown.
    fn readdir_until(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let _ = end;
        self.readdir(ino, cookie, plus, emit)
    }
    /// The same as [`Operations::readdir_until`], leaving the access time as it is (`O_NOATIME`).
    fn readdir_quietly(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.readdir_until(ino, cookie, end, plus, emit)
    }
    /// From now on `ask` is asked at each read what is wanted about access times, by the mount that shows this filesystem.
    fn on_read(&self, ask: AskMount) {
        let _ = ask;
    }
    /// Space and inodes.
    fn statfs(&self) -> Result<StatFs>;
    /// Sets an extended attribute.
    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;
    /// Value of an extended attribute.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// Names of the extended attributes.
    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// Removes an extended attribute.
    fn removexattr(&self, caller: Caller, ino: Ino, name: &[u8]) -> Result<()>;
    /// Allocates, zeroes, punches, shifts.
    fn fallocate(&self, caller: Caller, ino: Ino, mode: AllocateMode, range: Range<u64>) -> Result<()>;
    /// `SEEK_DATA`: the next data at or after `offset`; `ENXIO` at or beyond the end, or when there is none.
    fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64>;
    /// `SEEK_HOLE`: the next hole at or after `offset`; the end of the file is one. `ENXIO` at or beyond the end.
    fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64>;
    /// Whether the inode changes by these operations alone, so that its contents may be remembered by the caller.
    fn may_cache(&self, ino: Ino) -> bool {
        let _ = ino;
        true
    }
    /// Whether contents or attributes of the inode change without these operations just now: nothing of it is to be remembered.
    fn changes_below(&self, ino: Ino) -> bool {
        let _ = ino;
        false
    }
    /// Whether contents that the caller remembers from earlier opens still hold.
    fn may_keep(&self, ino: Ino) -> bool {
        let _ = ino;
        true
    }
    /// `tell` makes the caller forget the attributes that it remembers of an inode. It is called when
    /// [`Operations::changes_below`] begins to hold, and must not wait for an operation.
    fn on_change(&self, tell: Tell) {
        let _ = tell;
    }
    /// The same as [`Operations::may_cache`] for a name in a directory, found or not.
    fn may_cache_name(&self, parent: Ino, name: &[u8]) -> bool {
        let _ = (parent, name);
        true
    }
    /// Copies bytes between files of this filesystem; returns how many.
    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64>;
}
