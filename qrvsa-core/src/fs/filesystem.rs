//! The filesystem itself: what all operations share, opening and formatting, and the dispatch of [`Operations`].
//!
//! # On disk: SETTINGS, key (0, 1, 0), 16 bytes
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version, 1 |
//! | 1 | u8 | log2 of the record size of new files, 12 to 20 |
//! | 2 | 14 bytes | zero |
//!
//! The root directory is inode 1. Numbers 2 to 1024 are kept free.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::fs::claims::{Claims, Tell, XATTR_IN_USE};
use crate::fs::contents::Kill;
use crate::fs::dirent::{KIND_DIRENT, name_hash};
use crate::fs::edit::Puts;
use crate::fs::inode::{Inode, corrupt, inode_key, record_size_is_valid};
use crate::fs::locks::{Exclusive, Locks};
use crate::fs::open_files::OpenFiles;
use crate::fs::ops::{
    AllocateMode, AskMount, Attr, Caller, DirEntry, Ino, NewNode, Operations, ROOT_INO, RenameMode, SetAttr, StatFs,
    XattrMode,
};
use crate::fs::store::{Intent, Log, ObjectRef, Store, Value};
use crate::tree::Key;

const SETTINGS_KEY: Key = Key::new(0, 1, 0);
const SETTINGS_BYTES: usize = 16;
const SETTINGS_VERSION: u8 = 1;

/// When reading updates the access time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum AtimeMode {
    /// When it is not newer than the last change, or older than a day.
    #[default]
    Relative = 0,
    /// Never.
    Never = 1,
    /// Always.
    Strict = 2,
}

/// How a dataset is made a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Record size of new files in bytes: a power of two from 4 KiB to 1 MiB.
    pub record_size: u32,
    /// Permission bits of the root directory.
    pub root_mode: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
}

impl Default for FormatOptions {
    fn default() -> FormatOptions {
        FormatOptions { record_size: 128 * 1024, root_mode: 0o755, uid: 0, gid: 0 }
    }
}

/// How a filesystem is used while it is open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Access times.
    pub atime: AtimeMode,
}

/// A POSIX filesystem on a dataset.
pub struct FileSystem<S: Store> {
    pub(crate) store: Arc<S>,
    pub(crate) locks: Locks,
    /// Held while a directory gets another parent, so that ancestors stay what they are.
    pub(crate) topology: Mutex<()>,
    pub(crate) open_files: OpenFiles,
    pub(crate) claims: Claims,
    hash_seed: u64,
    hash_mask: u64,
    atime: AtomicU8,
    /// What the mount that shows it wants about access times.
    mount: RwLock<Option<AskMount>>,
    record_size: AtomicU32,
}

impl<S: Store> FileSystem<S> {
    /// Makes an empty filesystem. It is durable with the store's next commit.
    ///
    /// # Errors
    /// `Exists` when there is one, `Invalid` for bad options, and those of the store.
    pub fn format(store: &S, options: FormatOptions) -> Result<()> {
        let tx = store.begin(Intent::Grow)?;
        Self::format_in(store, &tx, options)
    }

    /// The same in a transaction of the caller's.
    ///
    /// # Errors
    /// As [`FileSystem::format`].
    pub(crate) fn format_in(store: &S, tx: &S::Tx<'_>, options: FormatOptions) -> Result<()> {
        if !record_size_is_valid(options.record_size) {
            crate::fail!(Invalid, "record size {} is not a power of two from 4 KiB to 1 MiB", options.record_size);
        }
        if store.get(inode_key(ROOT_INO))?.is_some() {
            crate::fail!(Exists, "the dataset holds a filesystem already");
        }
        let mode = libc::S_IFDIR | (options.root_mode & 0o7777);
        let mut root = Inode::new(mode, store.now_ns(), options.record_size);
        root.uid = options.uid;
        root.gid = options.gid;
        root.parent = ROOT_INO;
        store.put(tx, SETTINGS_KEY, encode_settings(options.record_size), Log::Always);
        store.put(tx, inode_key(ROOT_INO), Arc::from(root.encode().as_slice()), Log::Always);
        Ok(())
    }

    /// Opens the filesystem of a dataset.
    ///
    /// # Errors
    /// `NotFound` when the dataset was never formatted, `Corrupt`, `Unsupported`, and those of the store.
    pub fn open(store: Arc<S>, options: Options) -> Result<FileSystem<S>> {
        let Some(settings) = store.get(SETTINGS_KEY)? else {
            crate::fail!(NotFound, "the dataset holds no filesystem");
        };
        let record_size = decode_settings(&settings)?;
        let hash_seed = store.hash_seed();
        let fs = FileSystem {
            store,
            locks: Locks::new(),
            topology: Mutex::new(()),
            open_files: OpenFiles::new(),
            claims: Claims::new(),
            hash_seed,
            hash_mask: u64::MAX,
            atime: AtomicU8::new(options.atime as u8),
            mount: RwLock::new(None),
            record_size: AtomicU32::new(record_size),
        };
        if !fs.load(ROOT_INO)?.is_dir() {
            return Err(corrupt("the root inode is not a directory".to_string()));
        }
        Ok(fs)
    }

    /// Lets names collide, for tests.
    #[cfg(test)]
    pub(crate) fn with_hash_mask(mut self, mask: u64) -> FileSystem<S> {
        self.hash_mask = mask;
        self
    }

    /// The store below.
    pub fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// When reading updates access times, unless the mount wants something else.
    pub fn atime_mode(&self) -> AtimeMode {
        match self.atime.load(Ordering::Relaxed) {
            1 => AtimeMode::Never,
            2 => AtimeMode::Strict,
            _ => AtimeMode::Relative,
        }
    }

    /// When reading this inode updates its access time.
    pub(crate) fn atime_mode_of(&self, inode: &Inode) -> AtimeMode {
        let asked = self.mount.read().as_ref().map(|ask| ask()).unwrap_or_default();
        if asked.no_dirs && inode.is_dir() {
            return AtimeMode::Never;
        }
        asked.mode.unwrap_or_else(|| self.atime_mode())
    }

    /// Changes when reading updates access times.
    pub fn set_atime_mode(&self, mode: AtimeMode) {
        self.atime.store(mode as u8, Ordering::Relaxed);
    }

    /// Record size of new files in bytes.
    pub fn record_size(&self) -> u32 {
        self.record_size.load(Ordering::Relaxed)
    }

    /// Changes the record size of new files, now and in future.
    ///
    /// # Errors
    /// `Invalid` unless a power of two from 4 KiB to 1 MiB, and those of the store.
    pub fn set_record_size(&self, bytes: u32) -> Result<()> {
        if !record_size_is_valid(bytes) {
            crate::fail!(Invalid, "record size {bytes} is not a power of two from 4 KiB to 1 MiB");
        }
        let tx = self.store.begin(Intent::Shrink)?;
        self.store.put(&tx, SETTINGS_KEY, encode_settings(bytes), Log::Always);
        self.record_size.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Reads an inode; `ENOENT` when there is none.
    pub(crate) fn load(&self, ino: Ino) -> Result<Inode> {
        match self.store.get(inode_key(ino))? {
            Some(value) if ino != 0 => {
                Inode::decode(&value).map_err(|e| Error::new(ErrorKind::Corrupt, format!("inode {ino}")).with_source(e))
            }
            _ => Err(Error::posix(Errno::ENOENT)),
        }
    }

    /// Reads a regular file's inode; `EISDIR` for a directory, `EINVAL` for the rest.
    pub(crate) fn load_regular(&self, ino: Ino) -> Result<Inode> {
        let inode = self.load(ino)?;
        match inode.file_type() {
            libc::S_IFREG => Ok(inode),
            libc::S_IFDIR => Err(Error::posix(Errno::EISDIR)),
            _ => Err(Error::posix(Errno::EINVAL)),
        }
    }

    /// What `stat` shows of an inode that was just read or changed.
    pub(crate) fn attr_of(&self, ino: Ino, inode: &Inode) -> Result<Attr> {
        use crate::fs::inode::{FLAG_HAS_HOLES, FLAG_INLINE};
        let allocated = if inode.is_regular() && inode.has(FLAG_HAS_HOLES) && !inode.has(FLAG_INLINE) {
            Some(self.store.allocated_bytes(inode.object(ino))?)
        } else {
            None
        };
        Ok(inode.attr(ino, allocated))
    }

    pub(crate) fn hash_mask(&self) -> u64 {
        self.hash_mask
    }

    /// The key of a name in a directory.
    pub(crate) fn dirent_key(&self, dir: Ino, name: &[u8]) -> Key {
        Key::new(dir, KIND_DIRENT, name_hash(self.hash_seed, name) & self.hash_mask)
    }

    /// Applies changes in a transaction of their own.
    pub(crate) fn apply(&self, held: &Exclusive<'_>, intent: Intent, puts: Puts) -> Result<()> {
        let tx = self.store.begin(intent)?;
        self.publish(held, &tx, puts);
        Ok(())
    }

    /// Applies changes in a transaction.
    pub(crate) fn publish(&self, held: &Exclusive<'_>, tx: &S::Tx<'_>, puts: Puts) {
        let _publishing = held.publish();
        for (key, value, log) in puts {
            match value {
                Some(bytes) => self.store.put(tx, key, Arc::from(bytes), log),
                None => self.store.delete(tx, key, log),
            }
        }
    }

    /// Gives a deleted inode's space back, now or when it is closed. Called under its exclusive lock after the
    /// transaction that deleted it.
    pub(crate) fn deleted(&self, object: ObjectRef) {
        if self.open_files.delete(object) {
            self.store.reap(object);
        }
    }
}

fn encode_settings(record_size: u32) -> Value {
    let mut bytes = [0; SETTINGS_BYTES];
    bytes[0] = SETTINGS_VERSION;
    bytes[1] = record_size.trailing_zeros() as u8;
    Arc::from(bytes.as_slice())
}

fn decode_settings(bytes: &[u8]) -> Result<u32> {
    let b: &[u8; SETTINGS_BYTES] =
        bytes.try_into().map_err(|_| corrupt(format!("settings item of {} bytes", bytes.len())))?;
    if b[0] != SETTINGS_VERSION {
        return Err(Error::new(ErrorKind::Unsupported, format!("filesystem settings version {}", b[0])));
    }
    match 1u32.checked_shl(u32::from(b[1])) {
        Some(size) if record_size_is_valid(size) && b[2..].iter().all(|&x| x == 0) => Ok(size),
        _ => Err(corrupt("settings item with values out of range".to_string())),
    }
}

impl<S: Store> Operations for FileSystem<S> {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.lookup_attr(parent, name)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr_of(ino, &self.load(ino)?)
    }

    fn setattr(&self, caller: Caller, ino: Ino, change: SetAttr) -> Result<Attr> {
        self.change_attributes(caller, ino, change, false)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.symlink_target(ino)
    }

    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Attr> {
        self.make_node(caller, parent, name, node)
    }

    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.make_symlink(caller, parent, name, target)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.make_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove_name(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove_dir(parent, name)
    }

    fn rename(&self, _caller: Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        self.rename_entry(from, to, mode)
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
        self.open_or_make(caller, parent, name, node, exclusive, truncate)
    }

    fn open(&self, caller: Caller, ino: Ino, truncate: bool) -> Result<()> {
        self.count_open(caller, ino, truncate).map(|_| ())
    }

    fn release(&self, ino: Ino) {
        self.claims.released(ino);
        self.forget(ino, 1);
    }

    fn begin_writing(&self, ino: Ino) -> Result<()> {
        self.claims.begin_writing(ino)
    }

    fn end_writing(&self, ino: Ino) {
        self.claims.end_writing(ino);
    }

    fn remember(&self, ino: Ino) {
        self.open_files.open(ino);
    }

    fn find_and_remember(&self, ino: Ino) -> Result<Attr> {
        let inode = {
            let _held = self.locks.shared(ino);
            let inode = self.load(ino)?;
            if inode.nlink == 0 {
                return Err(Error::posix(Errno::ENOENT));
            }
            self.open_files.open(ino);
            inode
        };
        self.attr_of(ino, &inode).inspect_err(|_| self.forget(ino, 1))
    }

    fn forget(&self, ino: Ino, count: u64) {
        if let Some(object) = self.open_files.release(ino, count) {
            self.store.reap(object);
        }
    }

    fn forget_all(&self) {
        self.claims.released_all();
        for object in self.open_files.release_all() {
            self.store.reap(object);
        }
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_contents(ino, offset, buf, true)
    }

    fn read_quietly(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_contents(ino, offset, buf, false)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], append: bool, kill_priv: bool) -> Result<usize> {
        self.claims.check_contents(ino)?;
        let kill = if kill_priv { Kill::Privileges } else { Kill::Capability };
        self.write_contents(ino, offset, data, append, kill)
    }

    fn write_unprivileged(&self, caller: Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        self.claims.check_contents(ino)?;
        self.write_contents(ino, offset, data, false, Kill::PrivilegesFor(caller))
    }

    fn has_late_errors(&self) -> bool {
        false
    }

    fn flush(&self, _ino: Ino) -> Result<()> {
        // Writes are accepted into dirty memory under a space reservation, so none fails after it was accepted, short of
        // the pool being suspended, which fsync reports.
        Ok(())
    }

    fn fsync(&self, ino: Ino, _data_only: bool) -> Result<()> {
        self.sync_inode(ino)
    }

    fn sync_all(&self) -> Result<()> {
        if self.store.read_only() { Ok(()) } else { self.store.sync_all() }
    }

    fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        self.list_dir(ino, cookie..=u64::MAX, plus, true, emit)
    }

    fn listing_end(&self, ino: Ino) -> Result<u64> {
        let dir = self.load(ino)?;
        if dir.is_dir() { Ok(dir.next_index.saturating_sub(1)) } else { Err(Error::posix(Errno::ENOTDIR)) }
    }

    fn readdir_until(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.list_dir(ino, cookie..=end, plus, true, emit)
    }

    fn readdir_quietly(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.list_dir(ino, cookie..=end, plus, false, emit)
    }

    fn on_read(&self, ask: AskMount) {
        *self.mount.write() = Some(ask);
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(self.space())
    }

    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.set_xattr(caller, ino, name, value, mode)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        match self.claims.in_use_value(ino).filter(|_| name == XATTR_IN_USE) {
            Some(user) => Ok(user),
            None => self.get_xattr(ino, name),
        }
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.list_xattrs(ino)
    }

    fn removexattr(&self, _caller: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.remove_xattr(ino, name)
    }

    fn fallocate(&self, caller: Caller, ino: Ino, mode: AllocateMode, range: Range<u64>) -> Result<()> {
        self.claims.check_contents(ino)?;
        self.allocate(caller, ino, mode, range)
    }

    fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.find_data(ino, offset)
    }

    fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        self.find_hole(ino, offset)
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        self.claims.check_contents(to.0)?;
        self.copy_contents(from, to, len)
    }

    fn may_cache(&self, ino: Ino) -> bool {
        !self.claims.changes_below(ino)
    }

    fn changes_below(&self, ino: Ino) -> bool {
        self.claims.changes_below(ino)
    }

    fn may_keep(&self, ino: Ino) -> bool {
        self.claims.may_keep(ino)
    }

    fn on_change(&self, tell: Tell) {
        self.claims.set_tell(tell);
    }
}
