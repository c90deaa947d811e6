//! Making and removing names: mknod, mkdir, symlink, link, create, unlink, rmdir, and counting opens.
//!
//! A new inode needs no lock: nobody knows its number before its name is published. Removing needs the locks of both
//! directory and inode, so the name is looked up first and verified once both are held.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::acl;
use crate::fs::attr::in_group;
use crate::fs::dirent::{Dirent, validate_name};
use crate::fs::edit::Edit;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{FLAG_HAS_DEFAULT_ACL, Inode, S_IFMT, S_ISGID, S_ISUID, S_IXGRP, SYMLINK_MAX, inline_key};
use crate::fs::locks::Exclusive;
use crate::fs::ops::{Attr, Caller, Ino, NewNode};
use crate::fs::store::{Intent, Log, Store};

pub(crate) fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn err<T>(errno: Errno) -> Result<T> {
    Err(Error::posix(errno))
}

/// What a new inode is, besides its name.
struct Template<'t> {
    mode: u32,
    umask: u32,
    rdev: u32,
    target: &'t [u8],
    open: bool,
}

impl<S: Store> FileSystem<S> {
    pub(crate) fn make_node(&self, caller: Caller, parent: Ino, name: &[u8], node: NewNode) -> Result<Attr> {
        let kind = node.mode & S_IFMT;
        let mode = match kind {
            0 => node.mode & 0o7777 | libc::S_IFREG,
            libc::S_IFDIR => node.mode & !(S_ISUID | S_ISGID) & (S_IFMT | 0o7777),
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => {
                node.mode & (S_IFMT | 0o7777)
            }
            _ => return err(Errno::EINVAL),
        };
        let device = matches!(kind, libc::S_IFCHR | libc::S_IFBLK);
        let rdev = if device { node.rdev } else { 0 };
        self.make(caller, parent, name, Template { mode, umask: node.umask, rdev, target: b"", open: false })
    }

    pub(crate) fn make_symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        if target.is_empty() {
            return err(Errno::ENOENT);
        }
        if target.len() > SYMLINK_MAX {
            return err(Errno::ENAMETOOLONG);
        }
        self.make(
            caller,
            parent,
            name,
            Template { mode: libc::S_IFLNK | 0o777, umask: 0, rdev: 0, target, open: false },
        )
    }

    /// Makes an inode and its first name.
    fn make(&self, caller: Caller, parent: Ino, name: &[u8], template: Template<'_>) -> Result<Attr> {
        if is_dots(name) {
            return err(Errno::EEXIST);
        }
        validate_name(name)?;
        let held = self.locks.exclusive(&[parent]);
        let mut edit = Edit::new(self);
        edit.live_dir(parent)?;
        if edit.find(parent, name)?.is_some() {
            return err(Errno::EEXIST);
        }
        let now = self.store.now_ns();
        let ino = self.store.new_object_id();
        let dir = edit.live_dir(parent)?.clone();
        let mut inode = Inode::new(template.mode, now, self.record_size());
        inode.rdev = template.rdev;
        inode.uid = caller.uid;
        inode.gid = caller.gid;
        if dir.mode & S_ISGID != 0 {
            inode.gid = dir.gid;
            if inode.is_dir() {
                inode.mode |= S_ISGID;
            } else if inode.mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP && !in_group(caller, dir.gid) {
                inode.mode &= !S_ISGID;
            }
        }
        self.inherit_acl(&mut edit, parent, &dir, ino, &mut inode, template.umask)?;
        if inode.is_symlink() {
            inode.size = template.target.len() as u64;
            edit.put(inline_key(ino), Some(template.target.to_vec()), Log::Always);
        }
        inode.parent = parent;
        inode.parent_index = edit.add_entry(parent, name, ino, inode.file_type())?;
        if inode.is_dir() {
            edit.add_link(parent)?;
        }
        let dir = edit.inode(parent)?;
        dir.mtime_ns = now;
        dir.ctime_ns = now;
        let attr = inode.attr(ino, None);
        edit.insert_inode(ino, inode);
        let puts = edit.finish()?;
        let tx = self.store.begin(Intent::Grow)?;
        if template.open {
            self.open_files.open(ino);
            self.claims.opened(ino);
        }
        self.publish(&held, &tx, puts);
        Ok(attr)
    }

    /// Applies the parent's default ACL to a new inode, or else the umask.
    fn inherit_acl(
        &self,
        edit: &mut Edit<'_, S>,
        parent: Ino,
        dir: &Inode,
        ino: Ino,
        inode: &mut Inode,
        umask: u32,
    ) -> Result<()> {
        if inode.is_symlink() {
            return Ok(());
        }
        let default = if dir.has(FLAG_HAS_DEFAULT_ACL) {
            match self.read_xattr(parent, acl::XATTR_DEFAULT)? {
                Some(value) => acl::Acl::decode(&value)?,
                None => None,
            }
        } else {
            None
        };
        let Some(default) = default else {
            inode.mode &= !(umask & 0o777);
            return Ok(());
        };
        let inherited = default.inherit(inode.mode);
        inode.mode = inherited.mode;
        if let Some(access) = inherited.access {
            self.plan_first_xattr(edit, ino, inode, acl::XATTR_ACCESS, &access.encode())?;
        }
        if inode.is_dir() {
            self.plan_first_xattr(edit, ino, inode, acl::XATTR_DEFAULT, &default.encode())?;
        }
        Ok(())
    }

    pub(crate) fn make_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        if is_dots(name) {
            return err(Errno::EEXIST);
        }
        validate_name(name)?;
        let held = self.locks.exclusive(&[ino, parent]);
        let mut edit = Edit::new(self);
        edit.live_dir(parent)?;
        if edit.find(parent, name)?.is_some() {
            return err(Errno::EEXIST);
        }
        let inode = edit.inode(ino)?;
        if inode.is_dir() {
            return err(Errno::EPERM);
        }
        if inode.nlink == 0 {
            return err(Errno::ENOENT);
        }
        let file_type = inode.file_type();
        edit.add_link(ino)?;
        let index = edit.add_entry(parent, name, ino, file_type)?;
        let now = self.store.now_ns();
        let dir = edit.inode(parent)?;
        dir.mtime_ns = now;
        dir.ctime_ns = now;
        let inode = edit.inode(ino)?;
        inode.ctime_ns = now;
        if inode.parent == 0 {
            inode.parent = parent;
            inode.parent_index = index;
        }
        let inode = inode.clone();
        self.apply(&held, Intent::Grow, edit.finish()?)?;
        self.attr_of(ino, &inode)
    }

    /// Locks a name's directory and inode, and gives the entry.
    fn lock_entry(&self, parent: Ino, name: &[u8]) -> Result<(Exclusive<'_>, Edit<'_, S>, Dirent)> {
        loop {
            let guess = self.peek(parent, name)?.ok_or(Error::posix(Errno::ENOENT))?;
            let held = self.locks.exclusive(&[parent, guess.ino]);
            let mut edit = Edit::new(self);
            edit.live_dir(parent)?;
            let entry = edit.find(parent, name)?.ok_or(Error::posix(Errno::ENOENT))?;
            if entry.ino == guess.ino {
                return Ok((held, edit, entry));
            }
        }
    }

    pub(crate) fn remove_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if is_dots(name) {
            return err(Errno::EISDIR);
        }
        validate_name(name)?;
        let (held, mut edit, entry) = self.lock_entry(parent, name)?;
        if edit.inode(entry.ino)?.is_dir() {
            return err(Errno::EISDIR);
        }
        self.claims.check_name(entry.ino)?;
        self.remove(&held, edit, parent, &entry)
    }

    pub(crate) fn remove_dir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        match name {
            b"." => return err(Errno::EINVAL),
            b".." => return err(Errno::ENOTEMPTY),
            _ => validate_name(name)?,
        }
        let (held, mut edit, entry) = self.lock_entry(parent, name)?;
        let dir = edit.inode(entry.ino)?;
        if !dir.is_dir() {
            return err(Errno::ENOTDIR);
        }
        if dir.entries > 0 {
            return err(Errno::ENOTEMPTY);
        }
        let up = edit.inode(parent)?;
        up.nlink = up.nlink.saturating_sub(1).max(2);
        self.remove(&held, edit, parent, &entry)
    }

    fn remove(&self, held: &Exclusive<'_>, mut edit: Edit<'_, S>, parent: Ino, entry: &Dirent) -> Result<()> {
        let now = self.store.now_ns();
        edit.remove_entry(parent, &entry.name)?;
        let dir = edit.inode(parent)?;
        dir.mtime_ns = now;
        dir.ctime_ns = now;
        let last = edit.drop_link(parent, entry, now)?;
        let object = edit.inode(entry.ino)?.object(entry.ino);
        self.apply(held, Intent::Shrink, edit.finish()?)?;
        if last {
            self.deleted(object);
        }
        Ok(())
    }

    pub(crate) fn open_or_make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        exclusive: bool,
        truncate: bool,
    ) -> Result<(Attr, bool)> {
        if is_dots(name) {
            return err(if exclusive { Errno::EEXIST } else { Errno::EISDIR });
        }
        validate_name(name)?;
        let mode = libc::S_IFREG | (node.mode & 0o7777);
        loop {
            let Some(entry) = self.peek(parent, name)? else {
                match self.make(
                    caller,
                    parent,
                    name,
                    Template { mode, umask: node.umask, rdev: 0, target: b"", open: true },
                ) {
                    Err(e) if e.errno() == Errno::EEXIST && !exclusive => continue,
                    made => return made.map(|attr| (attr, true)),
                }
            };
            if exclusive {
                return err(Errno::EEXIST);
            }
            match entry.file_type {
                libc::S_IFREG => {}
                libc::S_IFDIR => return err(Errno::EISDIR),
                libc::S_IFLNK => return err(Errno::ELOOP),
                _ => return err(Errno::EEXIST),
            }
            match self.count_open(caller, entry.ino, truncate) {
                // Removed since it was found: it may be made now.
                Err(e) if e.errno() == Errno::ENOENT => {}
                opened => {
                    let inode = opened?;
                    return Ok((self.attr_of(entry.ino, &inode)?, false));
                }
            }
        }
    }

    /// Counts an open, after `O_TRUNC`. Returns the inode as it is then.
    pub(crate) fn count_open(&self, caller: Caller, ino: Ino, truncate: bool) -> Result<Inode> {
        let check = |inode: &Inode| {
            if inode.nlink == 0 && !self.open_files.is_open(ino) { err(Errno::ENOENT) } else { Ok(()) }
        };
        if !truncate {
            let _held = self.locks.shared(ino);
            let inode = self.load(ino)?;
            check(&inode)?;
            self.open_files.open(ino);
            self.claims.opened(ino);
            return Ok(inode);
        }
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load(ino)?;
        check(&inode)?;
        self.claims.check_contents(ino)?;
        match inode.file_type() {
            libc::S_IFREG => self.truncate_on_open(&held, caller, ino, &mut inode)?,
            libc::S_IFDIR => return err(Errno::EISDIR),
            _ => {}
        }
        self.open_files.open(ino);
        self.claims.opened(ino);
        Ok(inode)
    }
}
