//! A filesystem in memory behind [`Operations`]: simple, one lock, complete. The reference the mount is tested with.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use qrvsa_core::fs::claims::Tell;
use qrvsa_core::fs::ops::*;
use qrvsa_core::{Error, ErrorKind, Result};

use super::{PATIENCE, acl};

const BLOCK: u64 = 4096;
const NAME_BYTES_MAX: usize = 255;
/// A file with this name panics at lookup, one that starts with it at every access to its contents.
pub const PANIC_NAME: &[u8] = b"panic";

#[derive(Default)]
struct Contents {
    size: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Contents {
    fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let count = self.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
            let n = (BLOCK as usize - within).min(count - done);
            match self.blocks.get(&block) {
                Some(b) => buf[done..done + n].copy_from_slice(&b[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        count
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (block, within) = (at / BLOCK, (at % BLOCK) as usize);
            let n = (BLOCK as usize - within).min(data.len() - done);
            let b = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize].into());
            b[within..within + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
        self.size = self.size.max(offset + data.len() as u64);
    }

    /// Makes a range read as zeros: whole blocks become holes.
    fn clear(&mut self, range: Range<u64>) {
        let first_whole = range.start.div_ceil(BLOCK);
        let last_whole = range.end / BLOCK;
        let zero = |blocks: &mut BTreeMap<u64, Box<[u8]>>, from: u64, to: u64| {
            if from < to
                && let Some(b) = blocks.get_mut(&(from / BLOCK))
            {
                b[(from % BLOCK) as usize..=((to - 1) % BLOCK) as usize].fill(0);
            }
        };
        if first_whole > last_whole {
            zero(&mut self.blocks, range.start, range.end);
            return;
        }
        zero(&mut self.blocks, range.start, first_whole * BLOCK);
        zero(&mut self.blocks, last_whole * BLOCK, range.end);
        let whole: Vec<u64> = self.blocks.range(first_whole..last_whole).map(|(k, _)| *k).collect();
        for block in whole {
            self.blocks.remove(&block);
        }
    }

    fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.clear(size..self.size.next_multiple_of(BLOCK));
        }
        self.size = size;
    }
}

struct Inode {
    attr: Attr,
    contents: Contents,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    by_cookie: BTreeMap<u64, (Vec<u8>, Ino)>,
    by_name: HashMap<Vec<u8>, u64>,
    next_cookie: u64,
    parent: Ino,
    opens: u64,
}

impl Inode {
    fn kind(&self) -> u32 {
        self.attr.mode & libc::S_IFMT
    }

    fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    fn settle(&mut self) {
        self.attr.size = match self.kind() {
            libc::S_IFREG => self.contents.size,
            libc::S_IFLNK => self.target.len() as u64,
            _ => self.attr.size,
        };
        self.attr.blocks = self.contents.blocks.len() as u64 * (BLOCK / 512);
    }

    fn find(&self, name: &[u8]) -> Option<Ino> {
        self.by_name.get(name).and_then(|c| self.by_cookie.get(c)).map(|(_, ino)| *ino)
    }

    fn add(&mut self, name: &[u8], ino: Ino) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.by_cookie.insert(cookie, (name.to_vec(), ino));
        self.by_name.insert(name.to_vec(), cookie);
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some(cookie) = self.by_name.remove(name) {
            self.by_cookie.remove(&cookie);
        }
    }

    fn modified(&mut self, now: i64) {
        self.attr.mtime_ns = now;
        self.attr.ctime_ns = now;
    }

    fn kill_set_id(&mut self) {
        self.attr.mode &= !libc::S_ISUID;
        if self.attr.mode & libc::S_IXGRP != 0 {
            self.attr.mode &= !libc::S_ISGID;
        }
        self.xattrs.remove(b"security.capability".as_slice());
    }
}

struct State {
    inodes: HashMap<Ino, Inode>,
    next_ino: Ino,
}

/// The filesystem, and what tests may see and set of it.
pub struct MemFs {
    state: Mutex<State>,
    counts: Mutex<HashMap<&'static str, u64>>,
    /// Bytes that may be written before `ENOSPC`.
    pub space: AtomicU64,
    /// Where writes wait for each other.
    pub meeting: Meeting,
    /// Whether the thread that last ran `statfs` is marked as an I/O flusher (`PR_GET_IO_FLUSHER`).
    pub io_flusher: AtomicU64,
    /// Error number that the next flushes report, 0 for none.
    pub flush_errno: AtomicU64,
    /// Error number that making everything durable reports, 0 for none.
    pub sync_errno: AtomicU64,
    /// Making everything durable waits for it.
    pub sync_gate: Mutex<()>,
    /// Names whose inodes cannot be read.
    pub unreadable: Mutex<HashSet<Vec<u8>>>,
    /// A listing fails when it comes to this name.
    pub listed_up_to: Mutex<Option<Vec<u8>>>,
    /// Opens that may write.
    pub writers: AtomicU64,
    /// The file that serves as a disk now, 0 for none.
    pub disk: AtomicU64,
    /// The file that was the last one to.
    pub last_disk: AtomicU64,
    /// How the mount is told of changes.
    pub tell: Mutex<Option<Tell>>,
    pub ask: Mutex<Option<AskMount>>,
}

/// The time, later than ever before, whatever becomes of the machine's.
fn now_ns() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let last = LAST.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(now.max(last + 1)));
    last.map_or(now, |last| now.max(last + 1))
}

/// Operations that have to be under way at once: none ends before so many have begun.
#[derive(Default)]
pub struct Meeting {
    state: Mutex<Called>,
    changed: Condvar,
}

#[derive(Default)]
struct Called {
    /// How many are wanted, 0 when nobody waits.
    wanted: usize,
    there: usize,
    failed: bool,
}

impl Meeting {
    /// From now on, until they have met.
    pub fn call(&self, count: usize) {
        *self.state.lock().unwrap() = Called { wanted: count, ..Called::default() };
    }

    /// Whether they have met.
    pub fn took_place(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.wanted == 0 && !state.failed
    }

    fn join(&self) {
        let mut state = self.state.lock().unwrap();
        if state.wanted == 0 {
            return;
        }
        state.there += 1;
        if state.there < state.wanted {
            let (waited, result) = self.changed.wait_timeout_while(state, PATIENCE, |s| s.wanted > 0).unwrap();
            if !result.timed_out() {
                return;
            }
            state = waited;
            state.failed = true;
        }
        state.wanted = 0;
        self.changed.notify_all();
    }
}

fn error(errno: Errno) -> Error {
    Error::posix(errno)
}

impl State {
    fn get(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(error(Errno::ENOENT))
    }

    fn attr(&mut self, ino: Ino) -> Result<Attr> {
        let inode = self.get(ino)?;
        inode.settle();
        Ok(inode.attr)
    }

    fn dir(&mut self, ino: Ino) -> Result<&mut Inode> {
        let inode = self.get(ino)?;
        if inode.is_dir() { Ok(inode) } else { Err(error(Errno::ENOTDIR)) }
    }

    fn child(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        if name.len() > NAME_BYTES_MAX {
            return Err(error(Errno::ENAMETOOLONG));
        }
        self.dir(parent)?.find(name).ok_or(error(Errno::ENOENT))
    }

    fn vacant(&mut self, parent: Ino, name: &[u8]) -> Result<()> {
        match self.child(parent, name) {
            Ok(_) => Err(error(Errno::EEXIST)),
            Err(e) if e.errno() == Errno::ENOENT => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn make(&mut self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Ino> {
        self.vacant(parent, name)?;
        let now = now_ns();
        let ino = self.next_ino;
        self.next_ino += 1;
        let is_dir = node.mode & libc::S_IFMT == libc::S_IFDIR;
        let dir = self.dir(parent)?;
        if dir.attr.nlink == 0 {
            return Err(error(Errno::ENOENT));
        }
        let mut mode = node.mode;
        let mut xattrs = BTreeMap::new();
        match dir.xattrs.get(acl::DEFAULT).filter(|_| mode & libc::S_IFMT != libc::S_IFLNK) {
            Some(default) => {
                let mut access = acl::decode(default).expect("stored ACLs were checked");
                acl::apply_mode(&mut access, mode, true);
                mode = (mode & !0o777) | acl::mode_of(&access);
                if !acl::is_minimal(&access) {
                    xattrs.insert(acl::ACCESS.to_vec(), acl::encode(&access));
                }
                if is_dir {
                    xattrs.insert(acl::DEFAULT.to_vec(), default.clone());
                }
            }
            None => mode &= !(node.umask & 0o777),
        }
        let mut gid = caller.gid;
        if dir.attr.mode & libc::S_ISGID != 0 {
            gid = dir.attr.gid;
            if is_dir {
                mode |= libc::S_ISGID;
            }
        }
        dir.add(name, ino);
        dir.modified(now);
        if is_dir {
            dir.attr.nlink += 1;
        }
        let attr = Attr {
            ino,
            mode,
            nlink: if is_dir { 2 } else { 1 },
            uid: caller.uid,
            gid,
            rdev: node.rdev,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
        };
        self.inodes.insert(ino, new_inode(attr, parent, xattrs));
        Ok(ino)
    }

    fn drop_link(&mut self, ino: Ino, by: u32, now: i64) -> Result<()> {
        let inode = self.get(ino)?;
        inode.attr.nlink -= by.min(inode.attr.nlink);
        inode.attr.ctime_ns = now;
        self.collect(ino);
        Ok(())
    }

    fn collect(&mut self, ino: Ino) {
        if self.inodes.get(&ino).is_some_and(|i| i.attr.nlink == 0 && i.opens == 0) {
            self.inodes.remove(&ino);
        }
    }
}

fn new_inode(attr: Attr, parent: Ino, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Inode {
    Inode {
        attr,
        contents: Contents::default(),
        target: Vec::new(),
        xattrs,
        by_cookie: BTreeMap::new(),
        by_name: HashMap::new(),
        next_cookie: 3,
        parent,
        opens: 0,
    }
}

impl MemFs {
    pub fn new() -> MemFs {
        let now = now_ns();
        let attr = Attr {
            ino: ROOT_INO,
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
        };
        let inodes = HashMap::from([(ROOT_INO, new_inode(attr, ROOT_INO, BTreeMap::new()))]);
        MemFs {
            state: Mutex::new(State { inodes, next_ino: 2 }),
            counts: Mutex::default(),
            space: AtomicU64::new(u64::MAX),
            meeting: Meeting::default(),
            flush_errno: AtomicU64::new(0),
            sync_errno: AtomicU64::new(0),
            sync_gate: Mutex::default(),
            unreadable: Mutex::default(),
            listed_up_to: Mutex::default(),
            writers: AtomicU64::new(0),
            disk: AtomicU64::new(0),
            last_disk: AtomicU64::new(0),
            tell: Mutex::new(None),
            ask: Mutex::new(None),
            io_flusher: AtomicU64::new(0),
        }
    }

    /// How often an operation was called.
    pub fn count(&self, operation: &'static str) -> u64 {
        self.counts.lock().unwrap().get(operation).copied().unwrap_or(0)
    }

    /// Inodes that exist, opened and unlinked ones included.
    pub fn inode_count(&self) -> usize {
        self.state.lock().unwrap().inodes.len()
    }

    /// Opens not released yet.
    pub fn open_count(&self) -> u64 {
        self.state.lock().unwrap().inodes.values().map(|i| i.opens).sum()
    }

    /// Waits until that many opens are left: the kernel releases in the background.
    pub fn open_count_becomes(&self, count: u64) {
        let start = Instant::now();
        while self.open_count() != count {
            assert!(start.elapsed() < PATIENCE, "{} opens are left, not {count}", self.open_count());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn lock(&self, operation: &'static str) -> std::sync::MutexGuard<'_, State> {
        *self.counts.lock().unwrap().entry(operation).or_insert(0) += 1;
        self.state.lock().unwrap()
    }
}

impl Operations for MemFs {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name == PANIC_NAME {
            panic!("asked for by name");
        }
        if self.unreadable.lock().unwrap().contains(name) {
            return Err(error(Errno::EIO));
        }
        let mut state = self.lock("lookup");
        let ino = match name {
            b"." => parent,
            b".." => state.dir(parent)?.parent,
            name => state.child(parent, name)?,
        };
        state.attr(ino)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.lock("getattr").attr(ino)
    }

    fn setattr(&self, caller: Caller, ino: Ino, change: SetAttr) -> Result<Attr> {
        let mut state = self.lock("setattr");
        let now = now_ns();
        let inode = state.get(ino)?;
        if (change.uid.is_some() || change.gid.is_some()) && !inode.is_dir() {
            inode.kill_set_id();
        }
        if let Some(size) = change.size {
            if inode.kind() != libc::S_IFREG {
                return Err(error(Errno::EINVAL));
            }
            inode.contents.set_size(size);
            inode.attr.mtime_ns = now;
            if caller.uid != 0 {
                inode.kill_set_id();
            }
        }
        if let Some(mode) = change.mode {
            inode.attr.mode = inode.kind() | mode;
            if let Some(bytes) = inode.xattrs.get(acl::ACCESS) {
                let mut entries = acl::decode(bytes).expect("stored ACLs were checked");
                acl::apply_mode(&mut entries, mode, false);
                inode.xattrs.insert(acl::ACCESS.to_vec(), acl::encode(&entries));
            }
        }
        inode.attr.uid = change.uid.unwrap_or(inode.attr.uid);
        inode.attr.gid = change.gid.unwrap_or(inode.attr.gid);
        let time = |t| match t {
            SetTime::Now => now,
            SetTime::At(ns) => ns,
        };
        inode.attr.atime_ns = change.atime.map_or(inode.attr.atime_ns, time);
        inode.attr.mtime_ns = change.mtime.map_or(inode.attr.mtime_ns, time);
        inode.attr.ctime_ns = now;
        state.attr(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.lock("readlink").get(ino)?.target.clone())
    }

    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Attr> {
        let mut state = self.lock("mknod");
        let ino = state.make(caller, parent, name, node)?;
        state.attr(ino)
    }

    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        let mut state = self.lock("symlink");
        let ino = state.make(caller, parent, name, NewNode { mode: libc::S_IFLNK | 0o777, umask: 0, rdev: 0 })?;
        state.get(ino)?.target = target.to_vec();
        state.attr(ino)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let mut state = self.lock("link");
        state.vacant(parent, name)?;
        let now = now_ns();
        let inode = state.get(ino)?;
        if inode.is_dir() {
            return Err(error(Errno::EPERM));
        }
        inode.attr.nlink += 1;
        inode.attr.ctime_ns = now;
        let dir = state.dir(parent)?;
        dir.add(name, ino);
        dir.modified(now);
        state.attr(ino)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.lock("unlink");
        let ino = state.child(parent, name)?;
        if state.get(ino)?.is_dir() {
            return Err(error(Errno::EISDIR));
        }
        let now = now_ns();
        let dir = state.dir(parent)?;
        dir.remove(name);
        dir.modified(now);
        state.drop_link(ino, 1, now)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.lock("rmdir");
        let ino = state.child(parent, name)?;
        if !state.dir(ino)?.by_name.is_empty() {
            return Err(error(Errno::ENOTEMPTY));
        }
        let now = now_ns();
        let dir = state.dir(parent)?;
        dir.remove(name);
        dir.modified(now);
        dir.attr.nlink -= 1;
        state.drop_link(ino, 2, now)
    }

    fn rename(&self, _: Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        let mut state = self.lock("rename");
        let now = now_ns();
        let ino = state.child(from.0, from.1)?;
        let target = match state.child(to.0, to.1) {
            Ok(target) => Some(target),
            Err(e) if e.errno() == Errno::ENOENT => None,
            Err(e) => return Err(e),
        };
        let is_dir = state.get(ino)?.is_dir();
        let set = |state: &mut State, dir: Ino, name: &[u8], ino: Ino| -> Result<()> {
            let d = state.dir(dir)?;
            d.remove(name);
            d.add(name, ino);
            d.modified(now);
            let inode = state.get(ino)?;
            inode.attr.ctime_ns = now;
            if inode.is_dir() {
                let old = std::mem::replace(&mut inode.parent, dir);
                state.get(old)?.attr.nlink -= 1;
                state.get(dir)?.attr.nlink += 1;
            }
            Ok(())
        };
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(error(Errno::EEXIST)),
            (RenameMode::Exchange, None) => Err(error(Errno::ENOENT)),
            (RenameMode::Exchange, Some(target)) => {
                set(&mut state, to.0, to.1, ino)?;
                set(&mut state, from.0, from.1, target)
            }
            (_, Some(target)) if target == ino => Ok(()),
            (_, target) => {
                if let Some(target) = target {
                    let t = state.get(target)?;
                    match (is_dir, t.is_dir()) {
                        (true, false) => return Err(error(Errno::ENOTDIR)),
                        (false, true) => return Err(error(Errno::EISDIR)),
                        (true, true) if !t.by_name.is_empty() => return Err(error(Errno::ENOTEMPTY)),
                        (true, true) => {
                            state.dir(to.0)?.attr.nlink -= 1;
                            state.drop_link(target, 2, now)?;
                        }
                        (false, false) => state.drop_link(target, 1, now)?,
                    }
                }
                let dir = state.dir(from.0)?;
                dir.remove(from.1);
                dir.modified(now);
                set(&mut state, to.0, to.1, ino)
            }
        }
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        exclusive: bool,
        truncate: bool,
    ) -> Result<(Attr, bool)> {
        let mut state = self.lock("create");
        let (ino, made) = match state.child(parent, name) {
            Ok(_) if exclusive => return Err(error(Errno::EEXIST)),
            Ok(ino) => {
                if truncate {
                    state.get(ino)?.contents.set_size(0);
                }
                (ino, false)
            }
            Err(e) if e.errno() == Errno::ENOENT => (state.make(caller, parent, name, node)?, true),
            Err(e) => return Err(e),
        };
        state.get(ino)?.opens += 1;
        Ok((state.attr(ino)?, made))
    }

    fn open(&self, caller: Caller, ino: Ino, truncate: bool) -> Result<()> {
        let mut state = self.lock("open");
        let inode = state.get(ino)?;
        if truncate {
            inode.contents.set_size(0);
            inode.modified(now_ns());
            if caller.uid != 0 {
                inode.kill_set_id();
            }
        }
        inode.opens += 1;
        Ok(())
    }

    fn begin_writing(&self, ino: Ino) -> Result<()> {
        if self.changes_below(ino) {
            return Err(error(Errno::ETXTBSY));
        }
        self.writers.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn end_writing(&self, _: Ino) {
        self.writers.fetch_sub(1, Ordering::SeqCst);
    }

    fn may_cache(&self, ino: Ino) -> bool {
        !self.changes_below(ino)
    }

    fn changes_below(&self, ino: Ino) -> bool {
        self.disk.load(Ordering::SeqCst) == ino
    }

    fn may_keep(&self, ino: Ino) -> bool {
        self.last_disk.load(Ordering::SeqCst) != ino
    }

    fn on_change(&self, tell: Tell) {
        *self.tell.lock().unwrap() = Some(tell);
    }

    fn on_read(&self, ask: AskMount) {
        *self.ask.lock().unwrap() = Some(ask);
    }

    fn read_quietly(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        drop(self.lock("read_quietly"));
        self.read(ino, offset, buf)
    }

    fn readdir_quietly(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        drop(self.lock("readdir_quietly"));
        self.readdir_until(ino, cookie, end, plus, emit)
    }

    fn release(&self, ino: Ino) {
        let mut state = self.lock("release");
        if let Ok(inode) = state.get(ino) {
            inode.opens = inode.opens.checked_sub(1).expect("never more releases than opens");
        }
        state.collect(ino);
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut state = self.lock("read");
        let inode = state.get(ino)?;
        if inode.xattrs.contains_key(b"user.panic".as_slice()) {
            drop(state);
            panic!("asked for by xattr");
        }
        if inode.xattrs.contains_key(b"user.eio".as_slice()) {
            return Err(Error::new(ErrorKind::Corrupt, "asked for by xattr"));
        }
        let count = inode.contents.read(offset, buf);
        inode.attr.atime_ns = now_ns();
        Ok(count)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], append: bool, kill_priv: bool) -> Result<usize> {
        self.meeting.join();
        let mut state = self.lock("write");
        let space = self.space.load(Ordering::Relaxed);
        if space < data.len() as u64 {
            return Err(Error::new(ErrorKind::NoSpace, "full"));
        }
        if space != u64::MAX {
            self.space.store(space - data.len() as u64, Ordering::Relaxed);
        }
        let inode = state.get(ino)?;
        let offset = if append { inode.contents.size } else { offset };
        inode.contents.write(offset, data);
        inode.modified(now_ns());
        if kill_priv {
            inode.kill_set_id();
        }
        Ok(data.len())
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        self.lock("flush").get(ino)?;
        match self.flush_errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(error(Errno::from_raw(errno as i32))),
        }
    }

    fn fsync(&self, ino: Ino, _: bool) -> Result<()> {
        self.lock("fsync").get(ino).map(|_| ())
    }

    fn sync_all(&self) -> Result<()> {
        drop(self.lock("sync_all"));
        drop(self.sync_gate.lock());
        match self.sync_errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(error(Errno::from_raw(errno as i32))),
        }
    }

    fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let mut state = self.lock(if plus { "readdirplus" } else { "readdir" });
        let dir = state.dir(ino)?;
        dir.attr.atime_ns = now_ns();
        let mut list = vec![(1, b".".to_vec(), ino), (2, b"..".to_vec(), dir.parent)];
        list.retain(|(c, _, _)| *c > cookie);
        let named = dir.by_cookie.range(cookie.max(2) + 1..).take(2000);
        list.extend(named.map(|(c, (name, ino))| (*c, name.clone(), *ino)));
        for (cookie, name, ino) in list {
            let attr = state.attr(ino)?;
            if self.listed_up_to.lock().unwrap().as_ref() == Some(&name) {
                return Err(error(Errno::EIO));
            }
            let dots = name == b"." || name == b"..";
            let readable = !self.unreadable.lock().unwrap().contains(&name);
            let file_type = attr.mode & libc::S_IFMT;
            if !emit(&DirEntry { ino, cookie, file_type, name, attr: (plus && !dots && readable).then_some(attr) }) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> Result<StatFs> {
        self.io_flusher.store(super::io_flusher().map_or(0, u64::from), Ordering::Relaxed);
        let state = self.lock("statfs");
        Ok(StatFs {
            frsize: 4096,
            blocks: 1 << 20,
            bfree: 1 << 19,
            bavail: (1 << 19) - 100,
            files: 1 << 30,
            ffree: (1 << 30) - state.inodes.len() as u64,
            namelen: 255,
        })
    }

    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let mut state = self.lock("setxattr");
        let inode = state.get(ino)?;
        let exists = inode.xattrs.contains_key(name);
        match mode {
            XattrMode::Create if exists => return Err(error(Errno::EEXIST)),
            XattrMode::Replace if !exists => return Err(error(Errno::ENODATA)),
            _ => {}
        }
        inode.attr.ctime_ns = now_ns();
        if name == acl::ACCESS || name == acl::DEFAULT {
            let entries = acl::decode(value).ok_or(error(Errno::EINVAL))?;
            if name == acl::ACCESS {
                inode.attr.mode = (inode.attr.mode & !0o777) | acl::mode_of(&entries);
                if caller.uid != 0 && caller.gid != inode.attr.gid {
                    inode.attr.mode &= !libc::S_ISGID;
                }
                if acl::is_minimal(&entries) {
                    inode.xattrs.remove(name);
                    return Ok(());
                }
            }
        }
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.lock("getxattr").get(ino)?.xattrs.get(name).cloned().ok_or(error(Errno::ENODATA))
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        Ok(self.lock("listxattr").get(ino)?.xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, _: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        let mut state = self.lock("removexattr");
        let inode = state.get(ino)?;
        inode.xattrs.remove(name).ok_or(error(Errno::ENODATA))?;
        inode.attr.ctime_ns = now_ns();
        Ok(())
    }

    fn fallocate(&self, _: Caller, ino: Ino, mode: AllocateMode, range: Range<u64>) -> Result<()> {
        let mut state = self.lock("fallocate");
        let inode = state.get(ino)?;
        let grow = match mode {
            AllocateMode::Allocate { keep_size } => !keep_size,
            AllocateMode::PunchHole => {
                inode.contents.clear(range.clone());
                false
            }
            AllocateMode::ZeroRange { keep_size } => {
                inode.contents.clear(range.clone());
                !keep_size
            }
            AllocateMode::CollapseRange | AllocateMode::InsertRange => return Err(error(Errno::EOPNOTSUPP)),
        };
        if grow {
            inode.contents.size = inode.contents.size.max(range.end);
        }
        inode.modified(now_ns());
        Ok(())
    }

    fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        let mut state = self.lock("seek");
        let contents = &state.get(ino)?.contents;
        match contents.blocks.range(offset / BLOCK..).next() {
            Some((block, _)) if offset < contents.size => Ok(offset.max(block * BLOCK)),
            _ => Err(error(Errno::ENXIO)),
        }
    }

    fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        let mut state = self.lock("seek");
        let contents = &state.get(ino)?.contents;
        if offset >= contents.size {
            return Err(error(Errno::ENXIO));
        }
        let mut block = offset / BLOCK;
        while contents.blocks.contains_key(&block) {
            block += 1;
        }
        Ok((block * BLOCK).max(offset).min(contents.size))
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let mut state = self.lock("copy_range");
        let mut buf = vec![0; len.min(16 << 20) as usize];
        let count = state.get(from.0)?.contents.read(from.1, &mut buf);
        let target = state.get(to.0)?;
        target.contents.write(to.1, &buf[..count]);
        target.modified(now_ns());
        Ok(count as u64)
    }
}
