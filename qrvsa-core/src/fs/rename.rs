//! Rename, in its three kinds.
//!
//! All inodes in it are locked at once: both directories, what moves, and what is at the target. A directory that gets
//! another parent also holds the filesystem's `topology` mutex, so that the walk upwards that keeps a directory from
//! moving under itself sees a tree that stands still. An entry that is replaced, or gets another name in its directory, keeps
//! its place there: a listing never misses a name that existed all the time, nor shows a renamed file twice.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::dirent::{Dirent, validate_name};
use crate::fs::edit::Edit;
use crate::fs::filesystem::FileSystem;
use crate::fs::namei::is_dots;
use crate::fs::ops::{Ino, RenameMode};
use crate::fs::store::{Intent, ObjectRef, Store};

fn err<T>(errno: Errno) -> Result<T> {
    Err(Error::posix(errno))
}

fn is_dir(entry: &Dirent) -> bool {
    entry.file_type == libc::S_IFDIR
}

impl<S: Store> FileSystem<S> {
    pub(crate) fn rename_entry(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode) -> Result<()> {
        if is_dots(from.1) {
            return err(Errno::EBUSY);
        }
        if is_dots(to.1) {
            return err(if mode == RenameMode::NoReplace { Errno::EEXIST } else { Errno::EBUSY });
        }
        validate_name(from.1)?;
        validate_name(to.1)?;
        loop {
            let source = self.peek(from.0, from.1)?.ok_or(Error::posix(Errno::ENOENT))?;
            let target = self.peek(to.0, to.1)?;
            let exchanged_dir = mode == RenameMode::Exchange && target.as_ref().is_some_and(is_dir);
            let moves_dir = from.0 != to.0 && (is_dir(&source) || exchanged_dir);
            let _topology = moves_dir.then(|| self.topology.lock());
            let mut inos = vec![from.0, to.0, source.ino];
            inos.extend(target.as_ref().map(|t| t.ino));
            let held = self.locks.exclusive(&inos);
            let mut edit = Edit::new(self);
            edit.live_dir(from.0)?;
            edit.live_dir(to.0)?;
            // The target's bucket first: its change is then published first.
            let target_now = edit.find(to.0, to.1)?;
            let source_now = edit.find(from.0, from.1)?.ok_or(Error::posix(Errno::ENOENT))?;
            if source_now.ino != source.ino || target_now.as_ref().map(|t| t.ino) != target.as_ref().map(|t| t.ino) {
                continue;
            }
            self.check_rename(&mut edit, (from.0, &source_now), (to.0, target_now.as_ref()), mode)?;
            if target_now.as_ref().is_some_and(|target| target.ino == source_now.ino) {
                return Ok(());
            }
            self.claims.check_name(source_now.ino)?;
            if let Some(target) = &target_now {
                self.claims.check_name(target.ino)?;
            }
            let deleted = match target_now {
                Some(target) if mode == RenameMode::Exchange => {
                    self.plan_exchange(&mut edit, (from.0, &source_now), (to.0, &target))?;
                    None
                }
                target => self.plan_move(&mut edit, (from.0, &source_now), to, target.as_ref())?,
            };
            let now = self.store.now_ns();
            for dir in [from.0, to.0] {
                let dir = edit.inode(dir)?;
                dir.mtime_ns = now;
                dir.ctime_ns = now;
            }
            edit.inode(source_now.ino)?.ctime_ns = now;
            // Shrink: a rename makes about as much as it takes away, and must work on a full filesystem.
            self.apply(&held, Intent::Shrink, edit.finish()?)?;
            if let Some(object) = deleted {
                self.deleted(object);
            }
            return Ok(());
        }
    }

    /// The errors of rename, in the order Linux finds them.
    fn check_rename(
        &self,
        edit: &mut Edit<'_, S>,
        (from, source): (Ino, &Dirent),
        (to, target): (Ino, Option<&Dirent>),
        mode: RenameMode,
    ) -> Result<()> {
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return err(Errno::ENOENT),
            _ => {}
        }
        if is_dir(source) && from != to && self.is_ancestor(source.ino, to)? {
            return err(Errno::EINVAL);
        }
        let Some(target) = target else { return Ok(()) };
        if mode == RenameMode::Exchange {
            if is_dir(target) && from != to && self.is_ancestor(target.ino, from)? {
                return err(Errno::EINVAL);
            }
            return Ok(());
        }
        if target.ino == from {
            return err(Errno::ENOTEMPTY);
        }
        match (is_dir(source), is_dir(target)) {
            (true, false) => err(Errno::ENOTDIR),
            (false, true) => err(Errno::EISDIR),
            (true, true) if edit.inode(target.ino)?.entries > 0 && target.ino != source.ino => err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Moves the source to a name that is free or is replaced. Returns the replaced inode if that was its last name.
    fn plan_move(
        &self,
        edit: &mut Edit<'_, S>,
        (from, source): (Ino, &Dirent),
        (to, to_name): (Ino, &[u8]),
        target: Option<&Dirent>,
    ) -> Result<Option<ObjectRef>> {
        let mut deleted = None;
        let index = match target {
            Some(target) => {
                if edit.drop_link(to, target, self.store.now_ns())? {
                    deleted = Some(edit.inode(target.ino)?.object(target.ino));
                }
                if is_dir(target) {
                    let dir = edit.inode(to)?;
                    dir.nlink = dir.nlink.saturating_sub(1).max(2);
                }
                let index = edit.replace_entry(to, to_name, source.ino, source.file_type)?;
                edit.remove_entry(from, &source.name)?;
                index
            }
            None if from == to => edit.rename_entry(to, &source.name, to_name)?,
            None => {
                let index = edit.add_entry(to, to_name, source.ino, source.file_type)?;
                edit.remove_entry(from, &source.name)?;
                index
            }
        };
        if is_dir(source) && from != to {
            edit.add_link(to)?;
            let dir = edit.inode(from)?;
            dir.nlink = dir.nlink.saturating_sub(1).max(2);
        }
        renamed(edit, (from, source), (to, index))?;
        Ok(deleted)
    }

    fn plan_exchange(
        &self,
        edit: &mut Edit<'_, S>,
        (from, source): (Ino, &Dirent),
        (to, target): (Ino, &Dirent),
    ) -> Result<()> {
        edit.replace_entry(to, &target.name, source.ino, source.file_type)?;
        edit.replace_entry(from, &source.name, target.ino, target.file_type)?;
        if from != to && is_dir(source) != is_dir(target) {
            let (gains, loses) = if is_dir(source) { (to, from) } else { (from, to) };
            edit.add_link(gains)?;
            let dir = edit.inode(loses)?;
            dir.nlink = dir.nlink.saturating_sub(1).max(2);
        }
        edit.inode(target.ino)?.ctime_ns = self.store.now_ns();
        renamed(edit, (from, source), (to, target.index))?;
        renamed(edit, (to, target), (from, source.index))
    }
}

/// Updates where an inode remembers to be named.
fn renamed<S: Store>(edit: &mut Edit<'_, S>, (from, entry): (Ino, &Dirent), (to, index): (Ino, u64)) -> Result<()> {
    let inode = edit.inode(entry.ino)?;
    let was_primary = inode.parent == from && inode.parent_index == entry.index;
    if inode.is_dir() || was_primary || inode.parent == 0 {
        inode.parent = to;
        inode.parent_index = index;
    }
    Ok(())
}
