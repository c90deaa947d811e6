//! `fallocate` and `copy_file_range`.
//!
//! A copy-on-write pool cannot set blocks aside for a file: each write takes new ones. `Allocate` therefore checks that
//! the space is there now and grows the file; it is no promise for later. Collapsing and inserting ranges would move
//! every following block and is not supported (`EOPNOTSUPP`).

use std::ops::Range;

use nix::errno::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::attr::SetId;
use crate::fs::contents::{CHUNK, Kill, WAITS_FOR_SPACE, round_up};
use crate::fs::edit::Puts;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{BLOCK, FLAG_HAS_HOLES, FLAG_INLINE, Inode, SIZE_MAX, inline_key, inode_key};
use crate::fs::ops::{AllocateMode, Caller, Ino};
use crate::fs::store::{Log, Store};

/// Most bytes of data copied by one call, so that it stays short.
const COPY_MAX: u64 = 64 << 20;

fn err<T>(errno: Errno) -> Result<T> {
    Err(Error::posix(errno))
}

impl<S: Store> FileSystem<S> {
    pub(crate) fn allocate(&self, caller: Caller, ino: Ino, mode: AllocateMode, range: Range<u64>) -> Result<()> {
        if range.start >= range.end {
            return err(Errno::EINVAL);
        }
        if range.end > SIZE_MAX {
            return err(Errno::EFBIG);
        }
        let (zero, keep_size) = match mode {
            AllocateMode::Allocate { keep_size } => (false, keep_size),
            AllocateMode::PunchHole => (true, true),
            AllocateMode::ZeroRange { keep_size } => (true, keep_size),
            AllocateMode::CollapseRange | AllocateMode::InsertRange => return err(Errno::EOPNOTSUPP),
        };
        if !zero {
            self.check_space(ino, &range)?;
        }
        self.reshape(Some(caller), ino, zero.then_some(range.clone()), if keep_size { 0 } else { range.end })
    }

    /// `ENOSPC` unless the part of the range that may have no blocks yet fits into the free space, after commits if they
    /// may make room. Called without locks.
    fn check_space(&self, ino: Ino, range: &Range<u64>) -> Result<()> {
        let mut waited = 0;
        loop {
            let needed = self.missing_bytes(ino, range)?;
            let usage = self.store.usage();
            if needed <= usage.available_bytes {
                return Ok(());
            }
            if needed > usage.total_bytes || waited >= WAITS_FOR_SPACE || !self.store.space_may_return() {
                return Err(Error::new(ErrorKind::NoSpace, "the range does not fit into the free space"));
            }
            waited += 1;
            self.store.sync_all()?;
        }
    }

    /// At most so many bytes of the range have no blocks yet.
    fn missing_bytes(&self, ino: Ino, range: &Range<u64>) -> Result<u64> {
        let inode = self.load(ino)?;
        let dense_end = if inode.has(FLAG_HAS_HOLES) { 0 } else { round_up(inode.size) };
        let missing = range.end.saturating_sub(range.start.max(dense_end));
        if missing == 0 || !inode.is_regular() || inode.has(FLAG_INLINE) {
            return Ok(missing);
        }
        // all that the file would have without holes, less what it has
        let whole = round_up(range.end).max(round_up(inode.size));
        Ok(missing.min(whole.saturating_sub(self.store.allocated_bytes(inode.object(ino))?)))
    }

    /// Makes `zero` read as zeros and grows the file to at least `min_size`.
    fn reshape(&self, caller: Option<Caller>, ino: Ino, zero: Option<Range<u64>>, min_size: u64) -> Result<()> {
        self.when_there_is_room(|| self.reshape_now(caller, ino, zero.clone(), min_size))
    }

    fn reshape_now(&self, caller: Option<Caller>, ino: Ino, zero: Option<Range<u64>>, min_size: u64) -> Result<()> {
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load(ino)?;
        match inode.file_type() {
            libc::S_IFREG => {}
            libc::S_IFDIR => return err(Errno::EISDIR),
            _ => return err(Errno::ENODEV),
        }
        if inode.nlink == 0 && !self.open_files.is_open(ino) {
            return err(Errno::ENOENT);
        }
        let mut puts = Puts::with_capacity(3);
        let set_id = caller.map_or(SetId::Keep, |caller| SetId::after_change(caller, &inode));
        let killed = self.plan_kill_privileges(ino, &mut inode, set_id, &mut puts)?;
        let tx = self.store.begin(Self::resize_intent(&inode, min_size))?;
        let now = self.store.now_ns();
        if let Some(range) = zero {
            self.plan_zero(&tx, ino, &mut inode, range, &mut puts)?;
        }
        if min_size > inode.size {
            // The contents as just planned, not as stored, when both change the inline item.
            if inode.has(FLAG_INLINE) && puts.iter().any(|p| p.0 == inline_key(ino)) {
                self.grow_planned_inline(&tx, ino, &mut inode, min_size, &mut puts)?;
            } else {
                self.plan_resize(&tx, ino, &mut inode, min_size, &mut puts)?;
            }
        }
        inode.mtime_ns = now;
        inode.ctime_ns = now;
        let log = if killed { Log::KeepContentFields } else { Log::WithObject };
        puts.push((inode_key(ino), Some(inode.encode().to_vec()), log));
        self.publish(&held, &tx, puts);
        Ok(())
    }

    /// Zeroes a range below the size.
    fn plan_zero(&self, tx: &S::Tx<'_>, ino: Ino, inode: &mut Inode, range: Range<u64>, puts: &mut Puts) -> Result<()> {
        let range = range.start..range.end.min(inode.size);
        if range.is_empty() {
            return Ok(());
        }
        if inode.has(FLAG_INLINE) {
            let mut bytes = self.inline_bytes(ino, inode)?;
            bytes[range.start as usize..range.end as usize].fill(0);
            puts.push((inline_key(ino), Some(bytes), Log::WithObject));
            return Ok(());
        }
        // Beyond the size are zeros already: the last block of the file goes whole.
        let end = if range.end == inode.size { round_up(range.end) } else { range.end };
        self.store.punch(tx, inode.object(ino), range.start..end)?;
        if round_up(range.start) + BLOCK <= end {
            inode.set_flag(FLAG_HAS_HOLES, true);
        }
        Ok(())
    }

    /// Grows a file whose inline item is among the planned changes.
    fn grow_planned_inline(
        &self,
        tx: &S::Tx<'_>,
        ino: Ino,
        inode: &mut Inode,
        size: u64,
        puts: &mut Puts,
    ) -> Result<()> {
        let Some(at) = puts.iter().position(|p| p.0 == inline_key(ino)) else { return Ok(()) };
        let mut bytes = puts.remove(at).1.unwrap_or_default();
        if size <= crate::fs::inode::INLINE_MAX {
            bytes.resize(size as usize, 0);
            puts.push((inline_key(ino), Some(bytes), Log::WithObject));
        } else {
            bytes.resize(BLOCK as usize, 0);
            self.store.write(tx, inode.object(ino), 0, &bytes)?;
            puts.push((inline_key(ino), None, Log::WithObject));
            inode.set_flag(FLAG_INLINE, false);
            if BLOCK < size {
                inode.set_flag(FLAG_HAS_HOLES, true);
            }
        }
        inode.size = size;
        Ok(())
    }

    pub(crate) fn copy_contents(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        let source = self.load_regular(from.0)?;
        self.load_regular(to.0)?;
        if from.1.checked_add(len).is_none_or(|end| end > SIZE_MAX)
            || to.1.checked_add(len).is_none_or(|end| end > SIZE_MAX)
        {
            return err(Errno::EFBIG);
        }
        let len = len.min(source.size.saturating_sub(from.1));
        if from.0 == to.0 && from.1 < to.1 + len && to.1 < from.1 + len {
            return err(Errno::EINVAL);
        }
        let mut done = 0;
        let mut copied = 0;
        let mut buf = Vec::new();
        while done < len && copied < COPY_MAX {
            match self.copy_step((from.0, from.1 + done), (to.0, to.1 + done), len - done, &mut buf) {
                Ok((0, _)) => break,
                Ok((step, data)) => {
                    done += step;
                    copied += data;
                }
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Copies one hole or one chunk of data. Returns the bytes done, and how many of them were data.
    fn copy_step(&self, from: (Ino, u64), to: (Ino, u64), len: u64, buf: &mut Vec<u8>) -> Result<(u64, u64)> {
        let data_at = match self.find_data(from.0, from.1) {
            Ok(at) => at,
            Err(e) if e.errno() == Errno::ENXIO => u64::MAX,
            Err(e) => return Err(e),
        };
        let hole = (data_at - from.1).min(len);
        if hole > 0 {
            // The source may have been cut since: beyond its end there is nothing to copy.
            let hole = hole.min(self.load(from.0)?.size.saturating_sub(from.1));
            if hole > 0 {
                self.reshape(None, to.0, Some(to.1..to.1 + hole), to.1 + hole)?;
            }
            return Ok((hole, 0));
        }
        let hole_at = self.find_hole(from.0, from.1)?;
        buf.resize(len.min(hole_at - from.1).min(CHUNK as u64) as usize, 0);
        let read = self.read_contents(from.0, from.1, buf, true)?;
        let written = self.write_contents(to.0, to.1, &buf[..read], false, Kill::Capability)?;
        Ok((written as u64, written as u64))
    }
}
