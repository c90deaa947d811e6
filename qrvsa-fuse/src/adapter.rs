//! Kernel requests, as the `fuser` library shows them, to [`Operations`] and back.
//!
//! Stateless but for the count of opens and the ends of listings: inode numbers are never reused. Handles of files only tell
//! direct I/O, and who may write; FORGET is passed on to those who keep inodes for the kernel. Every operation runs on the session
//! thread that received it and blocks that thread only.
//!
//! Invariants: each request is answered exactly once, also when the operation panics; nothing here touches a mounted path.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno as FuseErrno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use qrvsa_core::buf::AlignedBuf;
use qrvsa_core::fs::ops::{Attr, Caller, DirEntry, Ino, NewNode, Operations, ROOT_INO, SetAttr, XattrMode};
use qrvsa_core::{Error, Result};

use crate::caching::{ENTRY_TTL, attr_ttl, has_set_id, is_direct, is_writer, may_write, open_file};
use crate::convert;
use crate::latency;
use crate::listing::{Emit, Ends, Listed, is_quiet, list};
use crate::opens::OpenTable;
use crate::options::MountOptions;
use crate::report::Reporter;
use crate::seats::Seats;

/// Bytes of the largest READ and WRITE. The kernel's own limit is 1 MiB (`fs.fuse.max_pages_limit` pages).
pub const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// Bytes one COPY_FILE_RANGE may move, so that it does not hold a session thread for long; callers loop.
const COPY_BYTES_MAX: u64 = 64 << 20;
/// Bit of the numbers of [`placeholder`].
const PLACEHOLDER: Ino = 1 << 62;
/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// What the kernel is asked for, if it has it. What is left out, and why, stands in the crate's documentation.
const CAPABILITIES: [InitFlags; 11] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_CACHE_SYMLINKS,
];

type Reply<T> = std::result::Result<T, Errno>;

/// The `fuser` filesystem over the operations.
pub(crate) struct Adapter {
    ops: Arc<dyn Operations>,
    opens: OpenTable,
    /// Those of them that may write.
    writers: OpenTable,
    listings: Ends,
    seats: Arc<Seats>,
    report: Reporter,
    max_background: u16,
    /// A close has to ask for errors of earlier writes.
    late_errors: bool,
    /// Directory changes are durable when they return: the kernel leaves `sync` and `dirsync` to us.
    sync_names: bool,
    /// Called after the last request has been answered and everything is durable, or cannot be made so.
    on_destroy: Option<Box<dyn FnOnce(Reply<()>) + Send + Sync>>,
}

impl Adapter {
    pub fn new(
        ops: Arc<dyn Operations>,
        options: &MountOptions,
        seats: Arc<Seats>,
        on_destroy: impl FnOnce(Reply<()>) + Send + Sync + 'static,
    ) -> Adapter {
        let late_errors = ops.has_late_errors();
        Adapter {
            ops,
            opens: OpenTable::default(),
            writers: OpenTable::default(),
            listings: Ends::default(),
            seats,
            report: Reporter::new(&options.fs_name),
            max_background: options.max_background,
            late_errors,
            sync_names: options.sync || options.dirsync,
            on_destroy: Some(Box::new(on_destroy)),
        }
    }

    fn run<T>(&self, operation: &'static str, ino: INodeNo, f: impl FnOnce(&dyn Operations) -> Result<T>) -> Reply<T> {
        latency::request();
        let result = self.report.run(operation, ino.0, || f(&*self.ops));
        match result {
            // the inode itself is gone, between a look-up of its name and this: the kernel looks the name up again
            Err(Errno::ENOENT) if OF_THE_INODE.contains(&operation) => Err(Errno::ESTALE),
            result => result,
        }
    }

    /// Runs a change of names in directories.
    fn run_names<T>(
        &self,
        operation: &'static str,
        dirs: &[INodeNo],
        f: impl FnOnce(&dyn Operations) -> Result<T>,
    ) -> Reply<T> {
        self.run(operation, dirs[0], |ops| {
            let value = f(ops)?;
            if self.sync_names {
                for dir in dirs {
                    ops.fsync(dir.0, false)?;
                }
            }
            Ok(value)
        })
    }

    /// Attributes for the kernel and how long they hold. Attributes without a type are an error of the operation.
    fn shown(&self, operation: &'static str, result: Reply<Attr>) -> Reply<(FileAttr, Duration)> {
        let attr = result?;
        match convert::file_attr(&attr) {
            Some(shown) => Ok((shown, self.attr_ttl(&attr, SystemTime::now()))),
            None => {
                self.report.log(operation, attr.ino, &format!("attributes without a file type: mode {:o}", attr.mode));
                Err(Errno::EIO)
            }
        }
    }

    /// How long attributes hold.
    fn attr_ttl(&self, attr: &Attr, now: SystemTime) -> Duration {
        if self.ops.changes_below(attr.ino) { Duration::ZERO } else { attr_ttl(attr, now) }
    }

    /// How a file is opened with these flags.
    fn opened(&self, ino: Ino, flags: i32) -> (FileHandle, FopenFlags) {
        // what changes beneath the kernel is read anew each time
        let direct = if self.ops.may_cache(ino) { 0 } else { libc::O_DIRECT };
        open_file(flags | direct, self.late_errors, self.ops.may_keep(ino))
    }

    /// Counts an open that may write.
    fn begin_writing(&self, ops: &dyn Operations, ino: Ino) -> Result<()> {
        ops.begin_writing(ino)?;
        self.writers.add(ino);
        Ok(())
    }

    fn end_writing(&self, ops: &dyn Operations, ino: Ino) {
        if self.writers.remove(ino) {
            ops.end_writing(ino);
        }
    }

    fn reply_entry(&self, operation: &'static str, result: Reply<Attr>, reply: ReplyEntry) {
        self.reply_entry_for(operation, result, ENTRY_TTL, reply);
    }

    fn reply_entry_for(&self, operation: &'static str, result: Reply<Attr>, name_ttl: Duration, reply: ReplyEntry) {
        match self.shown(operation, result) {
            Ok((attr, ttl)) => {
                // the kernel counts a look-up with this answer, and may take it back at once
                self.ops.remember(attr.ino.0);
                reply.entry_with_ttls(&ttl, &name_ttl, &attr, GENERATION);
            }
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn reply_attr(&self, operation: &'static str, result: Reply<Attr>, reply: ReplyAttr) {
        match self.shown(operation, result) {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn release_one(&self, operation: &'static str, ino: INodeNo) {
        if self.opens.remove(ino.0) {
            // Release has no error to report; only a panic is caught here.
            let _ = self.run(operation, ino, |ops| {
                ops.release(ino.0);
                Ok(())
            });
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// Operations whose `ENOENT` can only mean the inode, never a name.
const OF_THE_INODE: [&str; 7] = ["getattr", "setattr", "readlink", "open", "opendir", "getxattr", "listxattr"];

fn shown_errno(errno: Errno) -> FuseErrno {
    FuseErrno::from_i32(errno as i32)
}

fn reply_empty(result: Reply<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(shown_errno(errno)),
    }
}

/// Answers a request for an xattr value or list: its length if `room` is 0, itself if it fits.
fn reply_sized(result: Reply<Vec<u8>>, room: u32, reply: ReplyXattr) {
    /// The kernel's `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
    const BYTES_MAX: usize = 65536;
    match result {
        Ok(bytes) if bytes.len() > BYTES_MAX => reply.error(FuseErrno::E2BIG),
        Ok(bytes) if room == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > room as usize => reply.error(FuseErrno::ERANGE),
        Ok(bytes) => reply.data(&bytes),
        Err(errno) => reply.error(shown_errno(errno)),
    }
}

thread_local! {
    /// Reads go through this: one buffer per session thread, made at its first read.
    static READ_BUFFER: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not have it");
            }
        }
        let refused = |what: &str| io::Error::other(format!("{what} refused"));
        config.set_max_write(TRANSFER_BYTES_MAX).map_err(|_| refused("max_write"))?;
        config.set_max_background(self.max_background).map_err(|_| refused("max_background"))?;
        let congestion = (self.max_background / 4 * 3).max(1);
        config.set_congestion_threshold(congestion).map_err(|_| refused("congestion_threshold"))?;
        Ok(())
    }

    fn destroy(&mut self) {
        for (ino, count) in self.writers.drain() {
            for _ in 0..count {
                let _ = self.run("release", INodeNo(ino), |ops| {
                    ops.end_writing(ino);
                    Ok(())
                });
            }
        }
        for (ino, count) in self.opens.drain() {
            for _ in 0..count {
                let _ = self.run("release", INodeNo(ino), |ops| {
                    ops.release(ino);
                    Ok(())
                });
            }
        }
        // the kernel does not forget one by one what it drops with the mount
        let _ = self.run("forget", INodeNo(ROOT_INO), |ops| {
            ops.forget_all();
            Ok(())
        });
        let synced = self.run("sync", INodeNo(ROOT_INO), |ops| ops.sync_all());
        if let Err(errno) = synced {
            tracing::error!(%errno, "not everything is durable at the end of the mount");
        }
        if let Some(f) = self.on_destroy.take() {
            f(synced);
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _seat = Seats::take(&self.seats);
        if name == "." {
            // Asked for by file handles (NFS, open_by_handle_at), for files too. Nobody keeps the inode from being removed
            // meanwhile, as the directory's lock does for a name.
            let found = self.run("lookup", parent, |ops| ops.find_and_remember(parent.0));
            return match self.shown("lookup", found) {
                Ok((attr, ttl)) => reply.entry_with_ttls(&ttl, &ENTRY_TTL, &attr, GENERATION),
                Err(errno) => reply.error(shown_errno(errno)),
            };
        }
        let result = self.run("lookup", parent, |ops| ops.lookup(parent.0, name.as_bytes()));
        if !self.ops.may_cache_name(parent.0, name.as_bytes()) {
            return self.reply_entry_for("lookup", result, Duration::ZERO, reply);
        }
        if result == Err(Errno::ENOENT) && name != ".." {
            // Inode 0: "does not exist", and the kernel may remember that.
            let nothing = convert::bare_attr(0, FileType::RegularFile);
            return reply.entry_with_ttls(&Duration::ZERO, &ENTRY_TTL, &nothing, GENERATION);
        }
        self.reply_entry("lookup", result, reply);
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        // one of many, perhaps: the thread does not park between them
        let _seat = Seats::take_one_of_many(&self.seats);
        if is_placeholder(ino.0) {
            return;
        }
        let _ = self.run("forget", ino, |ops| {
            ops.forget(ino.0, count);
            Ok(())
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let _seat = Seats::take(&self.seats);
        self.reply_attr("getattr", self.run("getattr", ino, |ops| ops.getattr(ino.0)), reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _seat = Seats::take(&self.seats);
        let caller = caller(request);
        let change = SetAttr {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(|t| qrvsa_core::fs::ops::SetTime::At(convert::requested_ns(t))),
        };
        let result = self.run("setattr", ino, |ops| {
            if change != SetAttr::default() {
                return ops.setattr(caller, ino.0, change);
            }
            // What is left of a chown to nobody, which takes set-id bits away like any other; anybody may ask for it, but
            // only the owner changes something. The same comes before a write that will itself say what to take away.
            let attr = ops.getattr(ino.0)?;
            if caller.uid != 0 && caller.uid != attr.uid {
                return Ok(attr);
            }
            ops.setattr(caller, ino.0, SetAttr { uid: Some(attr.uid), ..SetAttr::default() })
        });
        self.reply_attr("setattr", result, reply);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let _seat = Seats::take(&self.seats);
        match self.run("readlink", ino, |ops| ops.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _seat = Seats::take(&self.seats);
        let mode = if mode & libc::S_IFMT == 0 { mode | libc::S_IFREG } else { mode };
        let node = NewNode { mode, umask, rdev };
        let result =
            self.run_names("mknod", &[parent], |ops| ops.mknod(caller(request), parent.0, name.as_bytes(), node));
        self.reply_entry("mknod", result, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _seat = Seats::take(&self.seats);
        let node = NewNode { mode: libc::S_IFDIR | (mode & 0o7777), umask, rdev: 0 };
        let result =
            self.run_names("mkdir", &[parent], |ops| ops.mknod(caller(request), parent.0, name.as_bytes(), node));
        self.reply_entry("mkdir", result, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        reply_empty(self.run_names("unlink", &[parent], |ops| ops.unlink(parent.0, name.as_bytes())), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        reply_empty(self.run_names("rmdir", &[parent], |ops| ops.rmdir(parent.0, name.as_bytes())), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _seat = Seats::take(&self.seats);
        let target = target.as_os_str().as_bytes();
        let result =
            self.run_names("symlink", &[parent], |ops| ops.symlink(caller(request), parent.0, name.as_bytes(), target));
        self.reply_entry("symlink", result, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _seat = Seats::take(&self.seats);
        let Some(mode) = convert::rename_mode(flags) else {
            return reply.error(FuseErrno::EINVAL);
        };
        let result = self.run_names("rename", &[parent, new_parent], |ops| {
            ops.rename(caller(request), (parent.0, name.as_bytes()), (new_parent.0, new_name.as_bytes()), mode)
        });
        reply_empty(result, reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let _seat = Seats::take(&self.seats);
        let result = self.run_names("link", &[new_parent], |ops| ops.link(ino.0, new_parent.0, new_name.as_bytes()));
        self.reply_entry("link", result, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _seat = Seats::take(&self.seats);
        let node = NewNode { mode: libc::S_IFREG | (mode & 0o7777), umask, rdev: 0 };
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let result = self.run("create", parent, |ops| {
            let (attr, made) = ops.create(caller(request), parent.0, name.as_bytes(), node, exclusive, truncate)?;
            // Counted before anything else can fail, so that it is released in any case.
            self.opens.add(attr.ino);
            if may_write(flags)
                && let Err(e) = self.begin_writing(ops, attr.ino)
            {
                if self.opens.remove(attr.ino) {
                    ops.release(attr.ino);
                }
                return Err(e);
            }
            Ok((attr, made))
        });
        let (attr, made) = match result {
            Ok(made) => made,
            Err(errno) => return reply.error(shown_errno(errno)),
        };
        let synced =
            if made && self.sync_names { self.run("create", parent, |ops| ops.fsync(parent.0, false)) } else { Ok(()) };
        match self.shown("create", synced.map(|()| attr)) {
            Ok((shown, _)) => {
                // One TTL for the name and the attributes. The kernel drops the latter at the first write anyway.
                let ttl =
                    if has_set_id(attr.mode) || self.ops.changes_below(attr.ino) { Duration::ZERO } else { ENTRY_TTL };
                let (handle, opened) = self.opened(attr.ino, flags);
                self.ops.remember(attr.ino);
                reply.created(&ttl, &shown, GENERATION, handle, opened);
            }
            Err(errno) => {
                if may_write(flags) {
                    self.end_writing(&*self.ops, attr.ino);
                }
                self.release_one("create", INodeNo(attr.ino));
                reply.error(shown_errno(errno));
            }
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _seat = Seats::take(&self.seats);
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let writes = may_write(flags.0);
        let result = self.run("open", ino, |ops| {
            if writes {
                self.begin_writing(ops, ino.0)?;
            }
            let opened = ops.open(caller(request), ino.0, truncate);
            if writes && opened.is_err() {
                self.end_writing(ops, ino.0);
            }
            opened
        });
        match result {
            Ok(()) => {
                self.opens.add(ino.0);
                let (handle, opened) = self.opened(ino.0, flags.0);
                reply.opened(handle, opened);
            }
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _seat = Seats::take(&self.seats);
        match self.run("opendir", ino, |ops| ops.open(caller(request), ino.0, false)) {
            Ok(()) => {
                self.opens.add(ino.0);
                let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
                let opened = if self.ops.may_cache(ino.0) { cached } else { FopenFlags::empty() };
                reply.opened(self.listings.open(without_atime(flags)), opened);
            }
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _seat = Seats::take(&self.seats);
        if is_writer(handle) {
            self.end_writing(&*self.ops, ino.0);
        }
        self.release_one("release", ino);
        reply.ok();
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        self.listings.close(handle);
        self.release_one("releasedir", ino);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _seat = Seats::take(&self.seats);
        READ_BUFFER.with_borrow_mut(|slot| {
            let wanted = size as usize;
            if slot.as_ref().is_none_or(|b| b.len() < wanted) {
                *slot = Some(AlignedBuf::zeroed(wanted.max(TRANSFER_BYTES_MAX as usize)));
            }
            let Some(buffer) = slot.as_mut().and_then(|b| b.get_mut(..wanted)) else {
                return reply.error(FuseErrno::ENOMEM);
            };
            let result = self.run("read", ino, |ops| match without_atime(flags) {
                true => ops.read_quietly(ino.0, offset, buffer),
                false => ops.read(ino.0, offset, buffer),
            });
            match result {
                Ok(count) => reply.data(&buffer[..count.min(wanted)]),
                Err(errno) => reply.error(shown_errno(errno)),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _seat = Seats::take(&self.seats);
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        // The kernel sends no FSYNC after direct writes. The flag of the file can be changed after the open.
        let direct = is_direct(handle) || flags.0 & libc::O_DIRECT != 0;
        let sync = direct && flags.0 & libc::O_DSYNC != 0;
        let result = self.run("write", ino, |ops| {
            // Never "append": the offset is the end of the file when it has to be.
            let count = if kill_priv {
                ops.write_unprivileged(caller(request), ino.0, offset, data)?
            } else {
                ops.write(ino.0, offset, data, false, false)?
            };
            if sync {
                ops.fsync(ino.0, true)?;
            }
            Ok(count)
        });
        match result {
            Ok(count) => reply.written(count.min(data.len()) as u32),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn flush(&self, _: &Request, ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        reply_empty(self.run("flush", ino, |ops| ops.flush(ino.0)), reply);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        reply_empty(self.run("fsync", ino, |ops| ops.fsync(ino.0, data_only)), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        reply_empty(self.run("fsyncdir", ino, |ops| ops.fsync(ino.0, data_only)), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, cookie: u64, mut reply: ReplyDirectory) {
        let _seat = Seats::take(&self.seats);
        let mut added = false;
        let result = self.run("readdir", ino, |ops| {
            let mut add = |entry: &DirEntry| match convert::file_type(entry.file_type) {
                None => Listed::Skipped,
                Some(kind) => {
                    let full = reply.add(INodeNo(entry.ino), entry.cookie, kind, OsStr::from_bytes(&entry.name));
                    added |= !full;
                    Listed::fits(!full)
                }
            };
            let end = self.listings.of(handle, cookie, || ops.listing_end(ino.0))?;
            let mut page = |cookie, emit: &mut Emit<'_>| read_page(ops, (ino.0, handle), cookie..=end, false, emit);
            list(cookie, &mut page, &mut add)
        });
        match result {
            // what comes before the error is shown; the next request meets it
            Err(errno) if !added => reply.error(shown_errno(errno)),
            _ => reply.ok(),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, handle: FileHandle, cookie: u64, mut reply: ReplyDirectoryPlus) {
        let _seat = Seats::take(&self.seats);
        let now = SystemTime::now();
        let mut added = false;
        let result = self.run("readdirplus", ino, |ops| {
            let mut add = |entry: &DirEntry| {
                // The kernel takes the number and the type of these two, and counts no lookup for them.
                let dots = entry.name == b"." || entry.name == b"..";
                let attr = entry.attr.as_ref().filter(|_| !dots);
                let read = attr.and_then(|attr| Some((convert::file_attr(attr)?, self.attr_ttl(attr, now))));
                let is_read = read.is_some();
                let number = if dots { entry.ino } else { placeholder(entry.ino) };
                let bare = || Some((convert::bare_attr(number, convert::file_type(entry.file_type)?), Duration::ZERO));
                let Some((attr, ttl)) = read.or_else(bare) else { return Listed::Skipped };
                let name = OsStr::from_bytes(&entry.name);
                let full = reply.add(attr.ino, entry.cookie, name, &ttl, &attr, GENERATION);
                added |= !full;
                // a reply that something was added to is always sent
                if !full && is_read {
                    self.ops.remember(entry.ino);
                }
                Listed::fits(!full)
            };
            let end = self.listings.of(handle, cookie, || ops.listing_end(ino.0))?;
            let mut page = |cookie, emit: &mut Emit<'_>| read_page(ops, (ino.0, handle), cookie..=end, true, emit);
            list(cookie, &mut page, &mut add)
        });
        match result {
            // what comes before the error is shown; the next request meets it
            Err(errno) if !added => reply.error(shown_errno(errno)),
            _ => reply.ok(),
        }
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _seat = Seats::take(&self.seats);
        match self.run("statfs", ino, |ops| ops.statfs()) {
            // f_bsize as f_frsize: old programs multiply the blocks by the wrong one.
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.frsize, s.namelen, s.frsize),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;
        let _seat = Seats::take(&self.seats);
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            BOTH => {
                // There is none that both make and replace.
                let found = self.run("getxattr", ino, |ops| ops.getxattr(ino.0, name.as_bytes()));
                return reply.error(shown_errno(found.err().unwrap_or(Errno::EEXIST)));
            }
            _ => return reply.error(FuseErrno::EINVAL),
        };
        let name = name.as_bytes();
        reply_empty(self.run("setxattr", ino, |ops| ops.setxattr(caller(request), ino.0, name, value, mode)), reply);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _seat = Seats::take(&self.seats);
        reply_sized(self.run("getxattr", ino, |ops| ops.getxattr(ino.0, name.as_bytes())), size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _seat = Seats::take(&self.seats);
        // The kernel refuses these to others, but lists what we tell.
        let trusted = request.uid() == 0;
        let list = self.run("listxattr", ino, |ops| {
            let mut names = ops.listxattr(ino.0)?;
            names.retain(|name| trusted || !name.starts_with(b"trusted."));
            let mut list = Vec::with_capacity(names.iter().map(|n| n.len() + 1).sum());
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        });
        reply_sized(list, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        let name = name.as_bytes();
        reply_empty(self.run("removexattr", ino, |ops| ops.removexattr(caller(request), ino.0, name)), reply);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        let _seat = Seats::take(&self.seats);
        // The kernel checks permissions by itself and does not ask.
        reply.error(FuseErrno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        let _seat = Seats::take(&self.seats);
        reply.error(FuseErrno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let _seat = Seats::take(&self.seats);
        reply.error(FuseErrno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        let _seat = Seats::take(&self.seats);
        // The kernel then never asks again: files are always ready.
        reply.error(FuseErrno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _seat = Seats::take(&self.seats);
        let Some(mode) = convert::allocate_mode(mode) else {
            return reply.error(FuseErrno::EOPNOTSUPP);
        };
        let Some(end) = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()) else {
            return reply.error(FuseErrno::EFBIG);
        };
        let result = self.run("fallocate", ino, |ops| {
            kill_set_id(ops, caller(request), ino.0)?;
            ops.fallocate(caller(request), ino.0, mode, offset..end)
        });
        reply_empty(result, reply);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _seat = Seats::take(&self.seats);
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(FuseErrno::ENXIO);
        };
        let result = self.run("lseek", ino, |ops| match whence {
            libc::SEEK_DATA => ops.seek_data(ino.0, offset),
            libc::SEEK_HOLE => ops.seek_hole(ino.0, offset),
            _ => Err(Error::posix(Errno::EINVAL)),
        });
        match result.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(FuseErrno::EOVERFLOW),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let _seat = Seats::take(&self.seats);
        if !flags.is_empty() {
            return reply.error(FuseErrno::EINVAL);
        }
        let length = length.min(COPY_BYTES_MAX);
        let result = self.run("copy_file_range", ino_out, |ops| {
            kill_set_id(ops, caller(request), ino_out.0)?;
            ops.copy_range((ino_in.0, offset_in), (ino_out.0, offset_out), length)
        });
        match result {
            Ok(count) => reply.written(count.min(length) as u32),
            Err(errno) => reply.error(shown_errno(errno)),
        }
    }
}

/// A number of its own for the inode of a listed name whose attributes cannot be read. The library sends no name with a
/// listing without an inode. With its true number, the kernel would take the made-up attributes for those of the inode, which
/// may be in use, and its size for 0. No number of an inode has this bit; the name holds for no time, so that whoever uses
/// it has it looked up.
fn placeholder(ino: Ino) -> Ino {
    ino | PLACEHOLDER
}

fn is_placeholder(ino: Ino) -> bool {
    ino & PLACEHOLDER != 0
}

/// Whether whoever opened it with these flags wants access times left alone. The kernel has checked that he may.
fn without_atime(flags: OpenFlags) -> bool {
    flags.0 & libc::O_NOATIME != 0
}

/// Reads entries of an open directory: those after one cookie, up to another.
fn read_page(
    ops: &dyn Operations,
    (ino, handle): (Ino, FileHandle),
    cookies: RangeInclusive<u64>,
    plus: bool,
    emit: &mut Emit<'_>,
) -> Result<()> {
    let (cookie, end) = cookies.into_inner();
    match is_quiet(handle) {
        true => ops.readdir_quietly(ino, cookie, end, plus, emit),
        false => ops.readdir_until(ino, cookie, end, plus, emit),
    }
}

/// Clears the set-id bits of a file that somebody without privilege is about to change, for the requests that do not say
/// whether to. Root is taken for privileged, everybody else for not.
fn kill_set_id(ops: &dyn Operations, caller: Caller, ino: Ino) -> Result<()> {
    if caller.uid == 0 {
        return Ok(());
    }
    let mode = ops.getattr(ino)?.mode;
    if has_set_id(mode) {
        let mode = Some(convert::without_set_id(mode));
        ops.setattr(caller, ino, SetAttr { mode, ..SetAttr::default() })?;
    }
    Ok(())
}
