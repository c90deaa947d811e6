//! The directory `.volumes` in the root of a filesystem: every operation that is not about it goes to the filesystem.
//!
//! Whether it is there, and whether its files can be written, says the property `volumes` of the filesystem (`off`, `ro`,
//! `rw`), at each use. As long as nobody has set it, it is `ro` once the pool has a volume, unless the filesystem has something of that
//! name itself. It belongs to the owner of the root directory, and nobody else may look into it: a volume is the disk of
//! somebody's machine. A volume of more than 64 TiB has no file, as the format has no such disks.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::face::{Face, SIZE_BYTES_MAX};
use crate::dataset::Dataset;
use crate::engine::Pool;
use crate::engine::volumes::VolumeInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::claims::Tell;
use crate::fs::ops::{
    AllocateMode, AskMount, Attr, Caller, DirEntry, Ino, NewNode, Operations, ROOT_INO, RenameMode, SetAttr, StatFs,
    XattrMode,
};
use crate::volume::Sharing;

/// Name of the directory.
pub const NAME: &[u8] = b".volumes";
/// The property that says whether it is there.
const PROPERTY: &str = "volumes";
const SUFFIX: &str = ".vhdx";
/// Inode numbers from here on are ours; those of filesystems only grow, from 1.
const OURS: u64 = 1 << 63;
const DIRECTORY: Ino = OURS;
/// The last cookie of the root directory is that of `.volumes`; those of filesystems are indices of entries.
const COOKIE: u64 = i64::MAX as u64;

/// What may be done with the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The directory is not there.
    Off,
    /// Reading.
    ReadOnly,
    /// Writing too.
    ReadWrite,
}

impl Access {
    /// From the property's value.
    pub fn parse(value: &str) -> Option<Access> {
        match value {
            "off" => Some(Access::Off),
            "ro" => Some(Access::ReadOnly),
            "rw" => Some(Access::ReadWrite),
            _ => None,
        }
    }
}

/// Takes an entry of a listing; false if it has no room for it.
type Emit<'a> = dyn FnMut(&DirEntry) -> bool + 'a;

/// A file that somebody has open.
struct Opened {
    face: Arc<Face>,
    count: u64,
    /// Since it was opened while it could be written.
    sharing: Option<Sharing>,
}

/// A filesystem with the volumes of its pool.
pub struct WithVolumes {
    inner: Arc<dyn Operations>,
    dataset: Arc<Dataset>,
    pool: Arc<Pool>,
    /// Files that somebody has open. Only these hold their volume.
    open: Mutex<HashMap<Ino, Opened>>,
    /// Whether `.volumes` was there when somebody was last told that the root's listing may be remembered.
    was_there: AtomicBool,
}

fn refused<T>(errno: Errno) -> Result<T> {
    Err(Error::posix(errno))
}

impl WithVolumes {
    /// The filesystem `inner` of a dataset, with the volumes of the pool that it is in.
    pub fn new(inner: Arc<dyn Operations>, dataset: Arc<Dataset>, pool: Arc<Pool>) -> WithVolumes {
        WithVolumes { inner, dataset, pool, open: Mutex::default(), was_there: AtomicBool::new(false) }
    }

    fn access(&self) -> Access {
        match self.dataset.property(PROPERTY) {
            Some(value) => Access::parse(&value).unwrap_or(Access::Off),
            None if self.pool.has_volumes() && self.inner.lookup(ROOT_INO, NAME).is_err() => Access::ReadOnly,
            None => Access::Off,
        }
    }

    /// Whether the name is the directory's.
    fn is_directory(&self, parent: Ino, name: &[u8]) -> bool {
        parent == ROOT_INO && name == NAME && self.access() != Access::Off
    }

    /// The volumes that have a file.
    fn shown(&self) -> Result<Vec<VolumeInfo>> {
        let mut list = self.pool.list_volumes()?;
        list.retain(|volume| volume.settings.size_bytes <= SIZE_BYTES_MAX);
        Ok(list)
    }

    fn with_number(&self, ino: Ino) -> Result<VolumeInfo> {
        match self.shown()?.into_iter().find(|volume| number(volume) == ino) {
            Some(volume) if self.access() != Access::Off => Ok(volume),
            _ => refused(Errno::ENOENT),
        }
    }

    /// The face of a file, opened for a moment if nobody has it open.
    fn face(&self, ino: Ino) -> Result<Arc<Face>> {
        if ino == DIRECTORY {
            return refused(Errno::EISDIR);
        }
        if let Some(opened) = self.open.lock().get(&ino) {
            return Ok(opened.face.clone());
        }
        Ok(Arc::new(Face::new(self.pool.open_volume(&self.with_number(ino)?.name)?)))
    }

    /// The face of a file to write through, and, of a file that nobody has open, the permission to.
    fn writable(&self, ino: Ino) -> Result<(Arc<Face>, Option<Sharing>)> {
        if self.access() != Access::ReadWrite {
            return refused(Errno::EROFS);
        }
        if let Some(opened) = self.open.lock().get_mut(&ino) {
            if opened.sharing.is_none() {
                opened.sharing = Some(opened.face.volume().share()?);
            }
            return Ok((opened.face.clone(), None));
        }
        let face = self.face(ino)?;
        let sharing = face.volume().share()?;
        Ok((face, Some(sharing)))
    }

    /// Attributes of the directory, or of a file.
    fn attr(&self, ino: Ino) -> Result<Attr> {
        let root = self.inner.getattr(ROOT_INO)?;
        let write = self.access() == Access::ReadWrite;
        let now_ns = self.pool.env.clock.wall_ns();
        if ino == DIRECTORY {
            if self.access() == Access::Off {
                return refused(Errno::ENOENT);
            }
            return Ok(Attr { ino, mode: libc::S_IFDIR | 0o500, nlink: 2, rdev: 0, size: 0, blocks: 0, ..root });
        }
        let volume = self.with_number(ino)?;
        let face = self.face(ino)?;
        Ok(Attr {
            ino,
            mode: libc::S_IFREG | if write { 0o600 } else { 0o400 },
            nlink: 1,
            rdev: 0,
            size: face.length()?,
            blocks: face.allocated_bytes()? / 512,
            blksize: volume.settings.record_bytes,
            // others may be writing to the volume at any time
            atime_ns: now_ns,
            mtime_ns: now_ns,
            ctime_ns: now_ns,
            btime_ns: volume.created_ns,
            ..root
        })
    }

    /// Lists a directory from a cookie, one of the filesystem by `inner`.
    fn list_with(
        &self,
        (ino, cookie): (Ino, u64),
        plus: bool,
        emit: &mut Emit<'_>,
        inner: &mut dyn FnMut(&mut Emit<'_>) -> Result<()>,
    ) -> Result<()> {
        if ino == DIRECTORY {
            return self.list(cookie, plus, emit);
        }
        if ino > OURS {
            return refused(Errno::ENOTDIR);
        }
        if ino != ROOT_INO || self.access() == Access::Off {
            return inner(emit);
        }
        if cookie >= COOKIE {
            return Ok(());
        }
        let (mut room, mut seen) = (true, false);
        inner(&mut |entry| {
            // a file of this name is hidden
            if entry.name == NAME {
                return true;
            }
            seen = true;
            room = emit(entry);
            room
        })?;
        // when the filesystem has no more: it may give less than there is room for
        if room && !seen {
            let attr = if plus { self.attr(DIRECTORY).ok() } else { None };
            emit(&DirEntry { ino: DIRECTORY, cookie: COOKIE, file_type: libc::S_IFDIR, name: NAME.to_vec(), attr });
        }
        Ok(())
    }

    fn list(&self, cookie: u64, plus: bool, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        let mut entries = vec![(DIRECTORY, b".".to_vec()), (ROOT_INO, b"..".to_vec())];
        let mut volumes = self.shown()?;
        // by the number of the dataset: a place that stays while others come and go
        entries.extend(volumes.drain(..).map(|v| (number(&v), file_name(&v.name))));
        for (position, (ino, name)) in (1u64..).zip(entries) {
            if position <= cookie {
                continue;
            }
            let file_type = if ino >= OURS && ino != DIRECTORY { libc::S_IFREG } else { libc::S_IFDIR };
            let attr = if plus && file_type == libc::S_IFREG { self.attr(ino).ok() } else { None };
            if !emit(&DirEntry { ino, cookie: position, file_type, name, attr }) {
                break;
            }
        }
        Ok(())
    }
}

/// The inode number of a volume's file: made from its id, so that no other file ever has it.
fn number(volume: &VolumeInfo) -> Ino {
    // the lower half, its first bit set, and never the directory's number
    let low = u64::try_from(volume.settings.id & u128::from(u64::MAX)).unwrap_or(0);
    (low | OURS).max(OURS + 1)
}

fn file_name(volume: &str) -> Vec<u8> {
    format!("{volume}{SUFFIX}").into_bytes()
}

impl Operations for WithVolumes {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if self.is_directory(parent, name) {
            return self.attr(DIRECTORY);
        }
        if parent != DIRECTORY {
            return if parent > OURS { refused(Errno::ENOTDIR) } else { self.inner.lookup(parent, name) };
        }
        match name {
            b"." => self.attr(DIRECTORY),
            b".." => self.inner.getattr(ROOT_INO),
            name => match self.shown()?.iter().find(|volume| file_name(&volume.name) == name) {
                Some(volume) => self.attr(number(volume)),
                None => refused(Errno::ENOENT),
            },
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        if ino >= OURS { self.attr(ino) } else { self.inner.getattr(ino) }
    }

    fn setattr(&self, caller: Caller, ino: Ino, change: SetAttr) -> Result<Attr> {
        if ino < OURS {
            return self.inner.setattr(caller, ino, change);
        }
        let now = self.attr(ino)?;
        // times are what they are; a size that stays is no change
        let same_size = change.size.is_none_or(|size| size == now.size);
        if !same_size || change.mode.is_some() || change.uid.is_some() || change.gid.is_some() {
            return refused(Errno::EPERM);
        }
        Ok(now)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        if ino >= OURS { refused(Errno::EINVAL) } else { self.inner.readlink(ino) }
    }

    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Attr> {
        self.may_make(parent, name)?;
        self.inner.mknod(caller, parent, name, node)
    }

    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.may_make(parent, name)?;
        self.inner.symlink(caller, parent, name, target)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.may_make(parent, name)?;
        if ino >= OURS { refused(Errno::EPERM) } else { self.inner.link(ino, parent, name) }
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.may_remove(parent, name)?;
        self.inner.unlink(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.may_remove(parent, name)?;
        self.inner.rmdir(parent, name)
    }

    fn rename(&self, caller: Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        self.may_remove(from.0, from.1)?;
        self.may_remove(to.0, to.1)?;
        self.inner.rename(caller, from, to, mode)
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
        if parent >= OURS && !exclusive {
            // an open of what may be there
            let attr = self.lookup(parent, name).map_err(|e| match e.kind() {
                ErrorKind::Posix(Errno::ENOENT) => Error::posix(Errno::EPERM),
                _ => e,
            })?;
            self.open(caller, attr.ino, truncate)?;
            return Ok((attr, false));
        }
        self.may_make(parent, name)?;
        self.inner.create(caller, parent, name, node, exclusive, truncate)
    }

    fn open(&self, caller: Caller, ino: Ino, truncate: bool) -> Result<()> {
        if ino < OURS {
            return self.inner.open(caller, ino, truncate);
        }
        if truncate {
            return refused(Errno::EPERM);
        }
        if ino == DIRECTORY {
            return Ok(());
        }
        let face = self.face(ino)?;
        let mut open = self.open.lock();
        let opened = open.entry(ino).or_insert_with(|| Opened { face, count: 0, sharing: None });
        opened.count += 1;
        if opened.sharing.is_none() && self.access() == Access::ReadWrite {
            // whoever fills the volume meanwhile keeps the file from being written, not from being read
            opened.sharing = opened.face.volume().share().ok();
        }
        Ok(())
    }

    fn release(&self, ino: Ino) {
        if ino < OURS {
            return self.inner.release(ino);
        }
        let mut open = self.open.lock();
        if let Some(opened) = open.get_mut(&ino) {
            opened.count -= 1;
            if opened.count == 0 {
                open.remove(&ino);
            }
        }
    }

    fn begin_writing(&self, ino: Ino) -> Result<()> {
        if ino < OURS { self.inner.begin_writing(ino) } else { Ok(()) }
    }

    fn end_writing(&self, ino: Ino) {
        if ino < OURS {
            self.inner.end_writing(ino);
        }
    }

    fn remember(&self, ino: Ino) {
        if ino < OURS {
            self.inner.remember(ino);
        }
    }

    fn find_and_remember(&self, ino: Ino) -> Result<Attr> {
        if ino >= OURS { self.attr(ino) } else { self.inner.find_and_remember(ino) }
    }

    fn forget(&self, ino: Ino, count: u64) {
        if ino < OURS {
            self.inner.forget(ino, count);
        }
    }

    fn forget_all(&self) {
        self.open.lock().clear();
        self.inner.forget_all();
    }

    fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if ino < OURS { self.inner.read(ino, offset, buf) } else { self.face(ino)?.read(offset, buf) }
    }

    fn read_quietly(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if ino < OURS { self.inner.read_quietly(ino, offset, buf) } else { self.face(ino)?.read(offset, buf) }
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], append: bool, kill_priv: bool) -> Result<usize> {
        if ino < OURS {
            return self.inner.write(ino, offset, data, append, kill_priv);
        }
        let (face, _sharing) = self.writable(ino)?;
        if append {
            return refused(Errno::EPERM);
        }
        face.write(offset, data)?;
        Ok(data.len())
    }

    fn write_unprivileged(&self, caller: Caller, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        if ino >= OURS {
            return self.write(ino, offset, data, false, true);
        }
        self.inner.write_unprivileged(caller, ino, offset, data)
    }

    fn has_late_errors(&self) -> bool {
        // a volume's writes fail at once or not at all
        self.inner.has_late_errors()
    }

    fn flush(&self, ino: Ino) -> Result<()> {
        if ino < OURS { self.inner.flush(ino) } else { Ok(()) }
    }

    fn fsync(&self, ino: Ino, data_only: bool) -> Result<()> {
        match ino {
            DIRECTORY => Ok(()),
            ino if ino < OURS => self.inner.fsync(ino, data_only),
            ino => self.face(ino)?.flush(),
        }
    }

    fn sync_all(&self) -> Result<()> {
        self.inner.sync_all()
    }

    fn readdir(&self, ino: Ino, cookie: u64, plus: bool, emit: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        self.readdir_until(ino, cookie, u64::MAX, plus, emit)
    }

    fn listing_end(&self, ino: Ino) -> Result<u64> {
        if ino >= OURS { Ok(u64::MAX) } else { self.inner.listing_end(ino) }
    }

    fn readdir_until(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.list_with((ino, cookie), plus, emit, &mut |emit| self.inner.readdir_until(ino, cookie, end, plus, emit))
    }

    fn readdir_quietly(
        &self,
        ino: Ino,
        cookie: u64,
        end: u64,
        plus: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        self.list_with((ino, cookie), plus, emit, &mut |emit| self.inner.readdir_quietly(ino, cookie, end, plus, emit))
    }

    fn on_read(&self, ask: AskMount) {
        self.inner.on_read(ask);
    }

    fn statfs(&self) -> Result<StatFs> {
        self.inner.statfs()
    }

    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if ino >= OURS { refused(Errno::EOPNOTSUPP) } else { self.inner.setxattr(caller, ino, name, value, mode) }
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino >= OURS { refused(Errno::ENODATA) } else { self.inner.getxattr(ino, name) }
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if ino >= OURS { Ok(Vec::new()) } else { self.inner.listxattr(ino) }
    }

    fn removexattr(&self, caller: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        if ino >= OURS { refused(Errno::ENODATA) } else { self.inner.removexattr(caller, ino, name) }
    }

    fn fallocate(&self, caller: Caller, ino: Ino, mode: AllocateMode, range: Range<u64>) -> Result<()> {
        if ino < OURS {
            return self.inner.fallocate(caller, ino, mode, range);
        }
        let (face, _sharing) = self.writable(ino)?;
        let inside = range.end <= face.length()?;
        match mode {
            AllocateMode::PunchHole | AllocateMode::ZeroRange { .. } if inside => face.discard(range),
            // space is the volume's own affair
            AllocateMode::Allocate { .. } if inside => Ok(()),
            AllocateMode::CollapseRange | AllocateMode::InsertRange => refused(Errno::EOPNOTSUPP),
            _ => refused(Errno::EPERM),
        }
    }

    fn seek_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        if ino < OURS {
            return self.inner.seek_data(ino, offset);
        }
        let face = self.face(ino)?;
        match face.next_data(offset)? {
            Some(at) if offset < face.length()? => Ok(at),
            _ => refused(Errno::ENXIO),
        }
    }

    fn seek_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        if ino < OURS {
            return self.inner.seek_hole(ino, offset);
        }
        let face = self.face(ino)?;
        if offset >= face.length()? { refused(Errno::ENXIO) } else { face.next_hole(offset) }
    }

    fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        // the caller copies by itself
        if from.0 >= OURS || to.0 >= OURS { refused(Errno::EXDEV) } else { self.inner.copy_range(from, to, len) }
    }

    fn may_cache(&self, ino: Ino) -> bool {
        if ino == ROOT_INO {
            // once after each change of the property, the listing is read anew
            let there = self.access() != Access::Off;
            return self.was_there.swap(there, Ordering::AcqRel) == there && self.inner.may_cache(ino);
        }
        ino < OURS && self.inner.may_cache(ino)
    }

    fn changes_below(&self, ino: Ino) -> bool {
        ino < OURS && self.inner.changes_below(ino)
    }

    fn may_keep(&self, ino: Ino) -> bool {
        ino < OURS && self.inner.may_keep(ino)
    }

    fn on_change(&self, tell: Tell) {
        self.inner.on_change(tell);
    }

    fn may_cache_name(&self, parent: Ino, name: &[u8]) -> bool {
        parent < OURS && !(parent == ROOT_INO && name == NAME) && self.inner.may_cache_name(parent, name)
    }
}

impl WithVolumes {
    /// Names are made in the filesystem only, and `.volumes` is taken.
    fn may_make(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if parent >= OURS {
            return refused(Errno::EPERM);
        }
        if self.is_directory(parent, name) { refused(Errno::EEXIST) } else { Ok(()) }
    }

    fn may_remove(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if parent >= OURS || self.is_directory(parent, name) { refused(Errno::EPERM) } else { Ok(()) }
    }
}
