//! Remounting: a change of flags, which the kernel makes by itself. So whoever is asked for it, the mount helper, does it.
//! The daemon only looks at the flags, for access times (see `atimes`).

use std::path::Path;

use nix::mount::MsFlags;
use qrvsa_core::{Error, ErrorKind, Result, fail};

use crate::mountinfo;
use crate::options::MountOptions;

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|w| !w.is_empty())
}

/// Changes the flags of the mount of ours at `directory` by the words of `list` (`ro`, `rw`, `nosuid`, `noatime`, ...);
/// flags not named stay as they are. Words that are no flags (what mount(8) repeats from `/proc/mounts`) mean nothing here.
///
/// # Errors
/// `NotFound`: no such mount. `Invalid`: the mount is not ours, or an unknown word. `Busy`: read-only was asked for while
/// files are open for writing. `Posix`: what mount(2) says.
pub fn remount(directory: &Path, list: &str) -> Result<()> {
    let path = match directory.canonicalize() {
        Ok(path) => path,
        Err(error) => fail!(NotFound, "{}: {error}", directory.display()),
    };
    let Some(entry) = mountinfo::topmost_at(&path)? else {
        fail!(NotFound, "{}: not a mount point", path.display());
    };
    if entry.fs_type != crate::FS_TYPE {
        fail!(Invalid, "{}: a mount of type {}, not {}", path.display(), entry.fs_type, crate::FS_TYPE);
    }
    let current = current_flags(&entry.mount_options, &entry.super_options);
    let flags = remount_flags(current, list)? | MsFlags::MS_REMOUNT;
    match nix::mount::mount(None::<&Path>, &path, None::<&Path>, flags, None::<&Path>) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EBUSY) => {
            fail!(Busy, "{}: files are open for writing", path.display())
        }
        Err(errno) => Err(Error::new(ErrorKind::Posix(errno), format!("remounting {}", path.display()))),
    }
}

/// The flags a mount has, from its line in mountinfo.
pub(crate) fn current_flags(mount_options: &str, super_options: &str) -> MsFlags {
    let mut flags = MsFlags::empty();
    let mut atime = MsFlags::MS_STRICTATIME;
    for word in words(mount_options).chain(words(super_options)) {
        match word {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "noatime" => atime = MsFlags::MS_NOATIME,
            "relatime" => atime = MsFlags::MS_RELATIME,
            _ => {}
        }
    }
    flags | atime
}

/// `flags` changed by a list of words.
fn remount_flags(mut flags: MsFlags, list: &str) -> Result<MsFlags> {
    let atimes = MsFlags::MS_NOATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
    // What mount(8) repeats from the table of mounts.
    let repeated = ["user_id=", "group_id=", "rootmode=", "fd=", "max_read=", "blksize=", "fsname=", "subtype="];
    for word in words(list) {
        match word {
            "remount" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags -= MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "suid" => flags -= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "dev" => flags -= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "exec" => flags -= MsFlags::MS_NOEXEC,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "diratime" => flags -= MsFlags::MS_NODIRATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "async" => flags -= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => flags |= MsFlags::MS_DIRSYNC,
            "noatime" => flags = (flags - atimes) | MsFlags::MS_NOATIME,
            "atime" | "relatime" | "nostrictatime" => flags = (flags - atimes) | MsFlags::MS_RELATIME,
            "strictatime" | "norelatime" => flags = (flags - atimes) | MsFlags::MS_STRICTATIME,
            word if repeated.iter().any(|prefix| word.starts_with(prefix)) => {}
            // Known, but nothing the kernel could change now.
            word => drop(MountOptions::parse("remount", word)?),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_are_not_named_stay() {
        let list = "remount,ro,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        assert_eq!(remount_flags(MsFlags::empty(), list).unwrap(), MsFlags::MS_RDONLY | MsFlags::MS_RELATIME);
        let flags = current_flags("rw,nosuid,relatime", "rw,user_id=0");
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_RELATIME);
        let flags = remount_flags(flags, "remount,ro,noatime").unwrap();
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_NOATIME | MsFlags::MS_RDONLY);
        assert_eq!(remount_flags(flags, "rw,suid,strictatime").unwrap(), MsFlags::MS_STRICTATIME);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert_eq!(remount_flags(MsFlags::empty(), "remount,frobnicate").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(remount(Path::new("/proc"), "ro").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(remount(Path::new("/proc/self"), "ro").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
