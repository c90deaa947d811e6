//! File contents: read, write, change of size, and the two places contents can be.
//!
//! A regular file of at most [`INLINE_MAX`] bytes keeps them in its INLINE item; a larger one in its object. A file moves
//! from inline to object when it grows, and back only when it is cut to nothing. Invariants:
//!
//! - Bytes of the object beyond the size read as zeros, so that growing needs no zeroing. Whatever cuts a file punches
//!   the rest away; moving to the object writes its first block whole.
//! - A file without `HAS_HOLES` has no hole below its size (the converse may not hold).
//! - All that can fail in a transaction comes before its first item change. A failed move to the object leaves the file
//!   inline and the object empty or of no effect.

use nix::errno::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::attr::SetId;
use crate::fs::edit::Puts;
use crate::fs::filesystem::{AtimeMode, FileSystem};
use crate::fs::inode::{
    BLOCK, FLAG_HAS_HOLES, FLAG_INLINE, INLINE_MAX, Inode, SIZE_MAX, corrupt, inline_key, inode_key,
};
use crate::fs::locks::Exclusive;
use crate::fs::ops::{Caller, Ino};
use crate::fs::store::{Intent, Log, Store};

/// Most bytes written in one transaction.
pub(crate) const CHUNK: usize = 1 << 20;
/// Relative access times are updated after this many nanoseconds at the latest.
const ATIME_AGE_NS: i64 = 24 * 3600 * 1_000_000_000;

/// Commits that are waited for when there is no space and some may return.
pub(crate) const WAITS_FOR_SPACE: u32 = 3;

/// What a write takes away besides what it overwrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kill {
    /// `security.capability`, as every write does.
    Capability,
    /// Set-id bits too; a set-group-id without group execute stays.
    Privileges,
    /// The same; that stays only if this caller is in the group.
    PrivilegesFor(Caller),
}

pub(crate) fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn round_down(bytes: u64) -> u64 {
    bytes / BLOCK * BLOCK
}

impl<S: Store> FileSystem<S> {
    /// The inline bytes of a file or link: exactly its size.
    pub(crate) fn inline_bytes(&self, ino: Ino, inode: &Inode) -> Result<Vec<u8>> {
        if inode.size == 0 {
            return Ok(Vec::new());
        }
        match self.store.get(inline_key(ino))? {
            Some(value) if value.len() as u64 == inode.size => Ok(value.to_vec()),
            other => Err(corrupt(format!(
                "inode {ino}: {} inline bytes of {}",
                other.map_or(0, |value| value.len()),
                inode.size
            ))),
        }
    }

    /// Reads. `touch`: updates the access time if it is due.
    pub(crate) fn read_contents(&self, ino: Ino, offset: u64, buf: &mut [u8], touch: bool) -> Result<usize> {
        let held = self.locks.shared(ino);
        let inode = self.load_regular(ino)?;
        let len = inode.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        if len > 0 {
            let buf = &mut buf[..len];
            if inode.has(FLAG_INLINE) {
                let at = offset as usize;
                buf.copy_from_slice(&self.inline_bytes(ino, &inode)?[at..at + len]);
            } else {
                self.store.read(inode.object(ino), offset, buf)?;
            }
        }
        drop(held);
        if touch && !buf.is_empty() {
            self.touch(ino, &inode);
        }
        Ok(len)
    }

    pub(crate) fn symlink_target(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.load(ino)?;
        if !inode.is_symlink() {
            return Err(Error::posix(Errno::EINVAL));
        }
        let target = self.inline_bytes(ino, &inode)?;
        self.touch(ino, &inode);
        Ok(target)
    }

    /// Updates the access time after reading if it is due. Best effort: reading works on a full filesystem.
    pub(crate) fn touch(&self, ino: Ino, inode: &Inode) {
        if self.store.read_only() {
            return;
        }
        let mode = self.atime_mode_of(inode);
        if mode == AtimeMode::Never {
            return;
        }
        let due = |inode: &Inode, now: i64| match mode {
            AtimeMode::Never => false,
            AtimeMode::Strict => inode.atime_ns != now,
            AtimeMode::Relative => {
                inode.atime_ns <= inode.mtime_ns
                    || inode.atime_ns <= inode.ctime_ns
                    || now.saturating_sub(inode.atime_ns) >= ATIME_AGE_NS
            }
        };
        let now = self.store.now_ns();
        if !due(inode, now) {
            return;
        }
        let held = self.locks.exclusive(&[ino]);
        let Ok(mut inode) = self.load(ino) else { return };
        if !due(&inode, now) {
            return;
        }
        inode.atime_ns = now;
        // Only the access time changes, so losing this in a crash loses nothing.
        let put = (inode_key(ino), Some(inode.encode().to_vec()), Log::WithObject);
        let _ = self.apply(&held, Intent::Grow, vec![put]);
    }

    pub(crate) fn write_contents(&self, ino: Ino, offset: u64, data: &[u8], append: bool, kill: Kill) -> Result<usize> {
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load_regular(ino)?;
        if data.is_empty() {
            return Ok(0);
        }
        let offset = if append { inode.size } else { offset };
        if offset >= SIZE_MAX {
            return Err(Error::posix(Errno::EFBIG));
        }
        let data = &data[..data.len().min(usize::try_from(SIZE_MAX - offset).unwrap_or(usize::MAX))];
        let mut done = 0;
        for chunk in data.chunks(CHUNK) {
            let kill = if done == 0 { kill } else { Kill::Capability };
            match self.write_chunk(&held, ino, &inode, offset + done as u64, chunk, kill) {
                Ok(changed) => inode = changed,
                Err(_) if done > 0 => return Ok(done),
                Err(e) => return Err(e),
            }
            done += chunk.len();
        }
        Ok(done)
    }

    /// One transaction of a write. Waits for commits that may make room. Returns the changed inode.
    fn write_chunk(
        &self,
        held: &Exclusive<'_>,
        ino: Ino,
        inode: &Inode,
        offset: u64,
        data: &[u8],
        kill: Kill,
    ) -> Result<Inode> {
        let set_id = match kill {
            Kill::Capability => SetId::Keep,
            Kill::Privileges => SetId::Clear { member: true },
            Kill::PrivilegesFor(caller) => SetId::clear_for(caller, inode),
        };
        self.when_there_is_room(|| {
            let mut changed = inode.clone();
            let mut puts = Puts::with_capacity(2);
            let killed = self.plan_kill_privileges(ino, &mut changed, set_id, &mut puts)?;
            let log = if killed { Log::KeepContentFields } else { Log::WithObject };
            let tx = self.store.begin(Intent::Grow)?;
            self.plan_write(&tx, ino, &mut changed, offset, data, &mut puts)?;
            let now = self.store.now_ns();
            changed.mtime_ns = now;
            changed.ctime_ns = now;
            puts.push((inode_key(ino), Some(changed.encode().to_vec()), log));
            self.publish(held, &tx, puts);
            Ok(changed)
        })
    }

    /// Makes a change in one transaction; while it finds no room and a commit may make some, again, a few times. The
    /// transaction has ended when `change` returns: a commit waits for all of them.
    pub(crate) fn when_there_is_room<T>(&self, change: impl Fn() -> Result<T>) -> Result<T> {
        let mut waited = 0;
        loop {
            match change() {
                Err(e)
                    if e.kind() == ErrorKind::NoSpace && waited < WAITS_FOR_SPACE && self.store.space_may_return() =>
                {
                    waited += 1;
                    self.store.sync_all()?;
                }
                done => return done,
            }
        }
    }

    /// Writes contents, and changes size and flags of `inode` (not stored yet).
    fn plan_write(
        &self,
        tx: &S::Tx<'_>,
        ino: Ino,
        inode: &mut Inode,
        offset: u64,
        data: &[u8],
        puts: &mut Puts,
    ) -> Result<()> {
        let end = offset + data.len() as u64;
        let object = inode.object(ino);
        if inode.has(FLAG_INLINE) {
            let mut old = self.inline_bytes(ino, inode)?;
            if end <= INLINE_MAX {
                let (from, to) = (offset as usize, end as usize);
                old.resize(old.len().max(to), 0);
                old[from..to].copy_from_slice(data);
                inode.size = old.len() as u64;
                puts.push((inline_key(ino), Some(old), Log::WithObject));
                return Ok(());
            }
            if old.is_empty() {
                self.store.write(tx, object, offset, data)?;
            } else if offset < BLOCK {
                let (from, to) = (offset as usize, end as usize);
                old.resize(to.max(BLOCK as usize), 0);
                old[from..to].copy_from_slice(data);
                self.store.write(tx, object, 0, &old)?;
            } else {
                old.resize(BLOCK as usize, 0);
                self.store.write(tx, object, offset, data)?;
                if let Err(e) = self.store.write(tx, object, 0, &old) {
                    self.store.punch(tx, object, 0..u64::MAX)?;
                    return Err(e);
                }
            }
            inode.set_flag(FLAG_INLINE, false);
            if inode.size > 0 {
                puts.push((inline_key(ino), None, Log::WithObject));
            }
        } else {
            self.store.write(tx, object, offset, data)?;
        }
        if round_up(inode.size) < round_down(offset) {
            inode.set_flag(FLAG_HAS_HOLES, true);
        }
        inode.size = inode.size.max(end);
        Ok(())
    }

    /// What changing the size will do to free space.
    pub(crate) fn resize_intent(inode: &Inode, size: u64) -> Intent {
        if size > inode.size { Intent::Grow } else { Intent::Shrink }
    }

    /// Cuts or extends contents, and changes size and flags of `inode` (not stored yet).
    pub(crate) fn plan_resize(
        &self,
        tx: &S::Tx<'_>,
        ino: Ino,
        inode: &mut Inode,
        size: u64,
        puts: &mut Puts,
    ) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Error::posix(Errno::EFBIG));
        }
        if size == inode.size {
            return Ok(());
        }
        let object = inode.object(ino);
        if inode.has(FLAG_INLINE) {
            let mut old = self.inline_bytes(ino, inode)?;
            if size <= INLINE_MAX {
                old.resize(size as usize, 0);
                puts.push((inline_key(ino), (!old.is_empty()).then_some(old), Log::WithObject));
                inode.size = size;
                return Ok(());
            }
            if !old.is_empty() {
                old.resize(BLOCK as usize, 0);
                self.store.write(tx, object, 0, &old)?;
                puts.push((inline_key(ino), None, Log::WithObject));
            }
            inode.set_flag(FLAG_INLINE, false);
        } else if size < inode.size {
            self.store.punch(tx, object, size..u64::MAX)?;
            if size == 0 {
                inode.set_flag(FLAG_INLINE, true);
                inode.set_flag(FLAG_HAS_HOLES, false);
            }
        }
        if round_up(inode.size) < size {
            inode.set_flag(FLAG_HAS_HOLES, true);
        }
        inode.size = size;
        Ok(())
    }

    /// `O_TRUNC`: sets the size to 0 and updates `inode`.
    pub(crate) fn truncate_on_open(
        &self,
        held: &Exclusive<'_>,
        caller: Caller,
        ino: Ino,
        inode: &mut Inode,
    ) -> Result<()> {
        let mut changed = inode.clone();
        let mut puts = Puts::new();
        let set_id = SetId::after_change(caller, &changed);
        let killed = self.plan_kill_privileges(ino, &mut changed, set_id, &mut puts)?;
        let tx = self.store.begin(Intent::Shrink)?;
        self.plan_resize(&tx, ino, &mut changed, 0, &mut puts)?;
        let now = self.store.now_ns();
        changed.mtime_ns = now;
        changed.ctime_ns = now;
        let log = if killed { Log::KeepContentFields } else { Log::WithObject };
        puts.push((inode_key(ino), Some(changed.encode().to_vec()), log));
        self.publish(held, &tx, puts);
        *inode = changed;
        Ok(())
    }
}
