//! The QRVSA FUSE front end: shows any [`qrvsa_core::fs::ops::Operations`] as a mounted filesystem.
//!
//! ```text
//!  options    mount options and their -o syntax
//!  remount    a change of flags
//!  atimes     what the mount wants about access times
//!  session    mount, unmount, end of a session
//!  target     the mount point: checks, stale mounts, mount(2), readahead
//!  mountinfo  /proc/self/mountinfo
//!  users      who keeps a mount from ending
//!  adapter    kernel requests -> Operations -> replies
//!  caching    what the kernel may remember, and for how long
//!  latency    processors that stay awake while requests come fast
//!  listing    directory listings into replies
//!  convert    attributes, times and flags between the two
//!  opens      opens the kernel has not released yet
//!  seats      all but one of the idle session threads stay away from the device
//!  report     panics and I/O errors of operations: caught, counted, logged
//! ```
//!
//! # Kernel behaviours relied upon
//!
//! This daemon is the only writer of what it mounts, through its mount but for files that serve as disks, and each filesystem has one kernel mount (show it twice with a bind
//! mount). So the kernel may cache without asking, and everything below follows from that.
//!
//! | behaviour | why it is right here |
//! |---|---|
//! | names are cached for an hour, also names that do not exist | every change of the namespace is made by this kernel, which updates its own entries |
//! | attributes are cached for an hour; for a second while the inode changed less than a minute ago | the kernel drops cached attributes at write, truncate, fallocate, link, rename, setxattr, and the access time at each READ. Only `st_blocks` changes by itself, when new data is written out within the store's commit interval, which is well inside the minute unless it was set longer |
//! | `FOPEN_KEEP_CACHE` on every open, `FOPEN_CACHE_DIR` on directories | contents change through this mount only; the kernel drops a cached listing when a name in that directory changes (by `i_version`) |
//! | `FOPEN_DIRECT_IO` with `FOPEN_PARALLEL_DIRECT_WRITES` on `O_DIRECT` opens only | without it the kernel holds the inode lock over each waiting direct write, so that four writers of one file take four times as long as one; the kernel keeps such writes and the page cache of other opens in step, and shared mappings work (`DIRECT_IO_ALLOW_MMAP`) |
//! | what [`may_cache`](qrvsa_core::fs::ops::Operations::may_cache) excepts is not cached: files are opened for direct I/O, directories read anew, names asked for each time | the files of `.volumes` change when the volumes do |
//! | a file that serves as a disk ([`claims`](qrvsa_core::fs::claims)) is opened for direct I/O, nothing cached of it is kept, its attributes are not cached | it changes below the mount. `FOPEN_KEEP_CACHE` stays away from its later opens too, so that the kernel drops what a mapping cached meanwhile. A mapping that is made while it changes shows what it first read |
//! | opens that may write are counted, by a bit of the handle | such a file has no writers but the disk |
//! | `FOPEN_NOFLUSH` on read-only opens, and on write-only ones of a filesystem none of whose writes can fail after it was accepted | there is nothing whose error a `close` could report. Opens for both keep FLUSH: there may be a shared mapping, whose pages the kernel writes out then |
//! | idle session threads are kept away from the device, but for one (`seats`) | the kernel wakes the thread that waits for longest: with one waiting, requests stay on a warm processor. A request that nobody is there to take waits a millisecond at most |
//! | no writeback cache | unsynced data sits in the store, whose bound on its age counts, never in the kernel; the exception are pages dirtied through a shared mapping, which the kernel writes out by its own timer |
//! | offsets of writes are the kernel's, also with `O_APPEND` | under the inode lock the kernel's size is the size; it cannot tell the server `RWF_NOAPPEND`, so the flag of the open file alone would put such a write at the wrong place |
//! | default permissions | the kernel checks modes, ACLs, sticky bits; operations get calls that are allowed |
//! | `POSIX_ACL` with `DONT_MASK` | the umask arrives with the request and is applied by the filesystem unless a default ACL replaces it |
//! | `HANDLE_KILLPRIV_V2` | without it every write is preceded by GETXATTR `security.capability`. The flag of WRITE arrives; those of OPEN, CREATE and SETATTR are not shown by the library, so the filesystem clears set-id bits at truncation and chown for any user but root; FALLOCATE and COPY_FILE_RANGE have no such flag, so the adapter does it for them |
//! | a buffered write by root to a file with set-id bits and a capability takes both | the kernel removes the capability by SETATTR without a change, which looks like a chown to nobody and is taken for one |
//! | access times are ours: options, `O_NOATIME` of READ and OPENDIR, a read-only mount; the table of mounts is polled for remounts | the kernel neither keeps them for FUSE nor says that a mount has other flags now |
//! | attributes of regular files with set-id bits are not cached | the kernel does not expect WRITE to change the mode: with a cached one it would execute what somebody just wrote with the rights of the file's owner. Not cached, it asks at each execution, and drops answers older than the last write |
//! | `O_DSYNC` of direct writes is done here | the kernel follows a buffered write with FSYNC by itself, but not a direct one |
//! | `dirsync` and `sync` for names are done here | the kernel keeps the flags for FUSE and does nothing about names |
//! | local locks | `flock`, POSIX and OFD locks are kept by the kernel: right for a mount used by one host, and interruptible |
//! | opens are counted here too | RELEASE is lost when a connection is aborted or unmounted in time; what is left over is released at the end of the session |
//! | unknown requests get ENOSYS once | the kernel then reports `O_TMPFILE` as EOPNOTSUPP, polls by default, and asks no more. For the same reason an operation's own ENOSYS is turned into EOPNOTSUPP: ENOSYS at FSYNC would switch fsync off for good |
//! | `umount` returns before the daemon has made everything durable | the kernel tells a server nothing at unmount. [`Mount::unmount`] waits for it; after an `umount` from outside, [`Mount::wait`] or the exit callback tells |
//!
//! Not there, because the library has no such call: `O_TMPFILE`, `statx` birth times, idmapped mounts. `syncfs` and `sync`
//! reach a server as nothing: the store bounds the age of unsynced data by itself.

pub mod adapter;
mod atimes;
mod caching;
mod convert;
pub mod latency;
mod listing;
mod mountinfo;
mod opens;
pub mod options;
pub mod remount;
mod report;
mod seats;
pub mod session;
mod target;
mod users;

pub use options::{Atime, MountOptions};
pub use session::{DETACH_PATIENCE, Exit, Mount, Unmount, mount};

/// The filesystem type as `/proc/mounts` shows it.
pub const FS_TYPE: &str = "fuse.qrvsa";
