//! Changing attributes: chmod, chown, utimes, truncate; and the clearing of set-id bits that goes with them.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::acl::{self, Acl};
use crate::fs::edit::{Puts, attribute_log};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{
    FLAG_HAS_ACCESS_ACL, FLAG_HAS_CAPABILITY, Inode, S_IFMT, S_ISGID, S_ISUID, S_IXGRP, SIZE_MAX, inode_key,
};
use crate::fs::ops::{Attr, Caller, Ino, SetAttr, SetTime};
use crate::fs::store::{Intent, Log, Store};
use crate::fs::xattr::XATTR_CAPABILITY;

/// Whether the caller may keep a set-group-id bit for this group: the superuser, or a member.
pub(crate) fn in_group(caller: Caller, gid: u32) -> bool {
    if caller.uid == 0 || caller.gid == gid {
        return true;
    }
    if caller.pid == 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{}/status", caller.pid)) {
        Ok(status) => groups_of(&status).any(|g| g == gid),
        Err(_) => false,
    }
}

/// The supplementary groups in the text of `/proc/<pid>/status`.
fn groups_of(status: &str) -> impl Iterator<Item = u32> + '_ {
    status
        .lines()
        .filter_map(|line| line.strip_prefix("Groups:"))
        .flat_map(|groups| groups.split_ascii_whitespace())
        .filter_map(|g| g.parse().ok())
}

/// What becomes of the set-id bits of a file that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetId {
    /// They stay.
    Keep,
    /// They go, but for a set-group-id without group execute if whoever changes the file is a `member` of its group.
    Clear { member: bool },
}

impl SetId {
    /// For a caller without the privilege to keep them.
    pub(crate) fn clear_for(caller: Caller, inode: &Inode) -> SetId {
        let asks = inode.mode & (S_ISGID | S_IXGRP) == S_ISGID;
        SetId::Clear { member: !asks || in_group(caller, inode.gid) }
    }

    /// For a change of contents: the superuser may keep them.
    pub(crate) fn after_change(caller: Caller, inode: &Inode) -> SetId {
        if caller.uid == 0 { SetId::Keep } else { SetId::clear_for(caller, inode) }
    }

    fn apply(self, mode: u32) -> u32 {
        match self {
            SetId::Keep => mode,
            SetId::Clear { member } if mode & S_IXGRP == 0 && member => mode & !S_ISUID,
            SetId::Clear { .. } => mode & !(S_ISUID | S_ISGID),
        }
    }
}

impl<S: Store> FileSystem<S> {
    /// Clears set-id bits and `security.capability` of a non-directory. Returns whether anything changed; the caller
    /// stores the inode.
    pub(crate) fn plan_kill_privileges(
        &self,
        ino: Ino,
        inode: &mut Inode,
        set_id: SetId,
        puts: &mut Puts,
    ) -> Result<bool> {
        if inode.is_dir() {
            return Ok(false);
        }
        let mode = set_id.apply(inode.mode);
        let mut changed = mode != inode.mode;
        inode.mode = mode;
        if inode.has(FLAG_HAS_CAPABILITY) {
            self.plan_remove_xattr(ino, inode, XATTR_CAPABILITY, puts)?;
            changed = true;
        }
        Ok(changed)
    }

    /// `claimed`: the caller is who has claimed the file.
    pub(crate) fn change_attributes(&self, caller: Caller, ino: Ino, change: SetAttr, claimed: bool) -> Result<Attr> {
        self.when_there_is_room(|| self.change_attributes_now(caller, ino, change, claimed))
    }

    fn change_attributes_now(&self, caller: Caller, ino: Ino, change: SetAttr, claimed: bool) -> Result<Attr> {
        let held = self.locks.exclusive(&[ino]);
        let mut inode = self.load(ino)?;
        let mut puts = Puts::with_capacity(2);
        let now = self.store.now_ns();
        let time = |t: SetTime| match t {
            SetTime::Now => now,
            SetTime::At(ns) => ns,
        };
        // of the group it has until now
        let after_chown = SetId::clear_for(caller, &inode);
        if change.uid.is_some() || change.gid.is_some() {
            inode.uid = change.uid.unwrap_or(inode.uid);
            inode.gid = change.gid.unwrap_or(inode.gid);
        }
        if let Some(mode) = change.mode {
            inode.mode = (inode.mode & S_IFMT) | (mode & 0o7777);
            if !in_group(caller, inode.gid) {
                inode.mode &= !S_ISGID;
            }
            self.plan_acl_chmod(ino, &mut inode, &mut puts)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            self.plan_kill_privileges(ino, &mut inode, after_chown, &mut puts)?;
        }
        let mut intent = Intent::Shrink;
        if let Some(size) = change.size {
            match inode.file_type() {
                libc::S_IFREG => {}
                libc::S_IFDIR => return Err(Error::posix(Errno::EISDIR)),
                _ => return Err(Error::posix(Errno::EINVAL)),
            }
            if size > SIZE_MAX {
                return Err(Error::posix(Errno::EFBIG));
            }
            if !claimed {
                self.claims.check_contents(ino)?;
            }
            let set_id = SetId::after_change(caller, &inode);
            self.plan_kill_privileges(ino, &mut inode, set_id, &mut puts)?;
            intent = Self::resize_intent(&inode, size);
        }
        let tx = self.store.begin(intent)?;
        if let Some(size) = change.size {
            self.plan_resize(&tx, ino, &mut inode, size, &mut puts)?;
            inode.mtime_ns = now;
        }
        if let Some(t) = change.atime {
            inode.atime_ns = time(t);
        }
        if let Some(t) = change.mtime {
            inode.mtime_ns = time(t);
        }
        inode.ctime_ns = change.ctime.map_or(now, time);
        let only_size =
            change == SetAttr { size: change.size, mtime: change.mtime, ctime: change.ctime, ..SetAttr::default() };
        let log = if only_size && change.size.is_some() && puts.iter().all(|p| p.2 == Log::WithObject) {
            Log::WithObject
        } else {
            attribute_log(&inode)
        };
        puts.push((inode_key(ino), Some(inode.encode().to_vec()), log));
        self.publish(&held, &tx, puts);
        drop(tx);
        self.attr_of(ino, &inode)
    }

    /// Lets the access ACL follow the permission bits of `inode`.
    fn plan_acl_chmod(&self, ino: Ino, inode: &mut Inode, puts: &mut Puts) -> Result<()> {
        if !inode.has(FLAG_HAS_ACCESS_ACL) {
            return Ok(());
        }
        let Some(value) = self.read_xattr(ino, acl::XATTR_ACCESS)? else { return Ok(()) };
        if let Some(mut acl) = Acl::decode(&value)? {
            acl.chmod(inode.mode);
            self.plan_set_xattr(ino, inode, acl::XATTR_ACCESS, &acl.encode(), puts)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_status() {
        let status = "Name:\tx\nUid:\t1\t1\t1\t1\nGroups:\t4 24 1000 \nNStgid:\t5\n";
        assert_eq!(groups_of(status).collect::<Vec<_>>(), [4, 24, 1000]);
        assert_eq!(groups_of("Groups:\t \n").count(), 0);
    }

    #[test]
    fn set_id_rules() {
        let (member, other) = (SetId::Clear { member: true }, SetId::Clear { member: false });
        assert_eq!((member.apply(0o106755), other.apply(0o106755)), (0o100755, 0o100755));
        assert_eq!((member.apply(0o106745), other.apply(0o106745)), (0o102745, 0o100745));
        assert_eq!(SetId::Keep.apply(0o106755), 0o106755);
    }

    #[test]
    fn group_membership() {
        let caller = |uid, gid, pid| Caller { uid, gid, pid };
        assert!(in_group(caller(0, 5, 0), 77));
        assert!(in_group(caller(9, 77, 0), 77));
        assert!(!in_group(caller(9, 5, 0), 77));
        assert!(!in_group(caller(9, 5, u32::MAX), 77));
    }
}
