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
    set_flags(&path, remount_flags(current, list)?)
}

fn set_flags(path: &Path, flags: MsFlags) -> Result<()> {
    match nix::mount::mount(None::<&Path>, path, None::<&Path>, flags | MsFlags::MS_REMOUNT, None::<&Path>) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EBUSY) => {
            fail!(Busy, "{}: files are open for writing", path.display())
        }
        Err(errno) => Err(Error::new(ErrorKind::Posix(errno), format!("remounting {}", path.display()))),
    }
}

/// Gives the mount of ours at `directory`, which has the options `before`, those of `wanted`: all flags, those that somebody
/// has changed since too.
///
/// # Errors
/// `NotFound`: no such mount. `Invalid`: they differ in what only a new mount can have. `Busy`: read-only was asked for while
/// files are open for writing. `Posix`: what mount(2) says.
pub fn change(directory: &Path, before: &MountOptions, wanted: &MountOptions) -> Result<()> {
    only_flags(before, wanted)?;
    let Some(entry) = mountinfo::topmost_at(directory)?.filter(|entry| entry.is_ours(&wanted.fs_name)) else {
        fail!(NotFound, "{}: {} is not mounted there", directory.display(), wanted.fs_name);
    };
    if current_flags(&entry.mount_options, &entry.super_options) == wanted.flags() {
        return Ok(());
    }
    match set_flags(directory, wanted.flags()) {
        // Of a mount that the set-user-id helper made, which adds flags of its own; nothing else was asked for.
        Err(e) if e.errno() == nix::errno::Errno::EPERM && before.flags() == wanted.flags() => Ok(()),
        changed => changed,
    }
}

/// Refuses what the kernel cannot change, or what the session is told at its beginning only.
fn only_flags(before: &MountOptions, wanted: &MountOptions) -> Result<()> {
    let moves_flag = (before.flags() ^ wanted.flags()).intersects(MsFlags::MS_NOATIME | MsFlags::MS_STRICTATIME);
    let differs = [
        ("allow_other", before.allow_other != wanted.allow_other),
        ("sync", before.sync != wanted.sync),
        ("dirsync", before.dirsync != wanted.dirsync),
        ("threads", before.threads != wanted.threads),
        ("readahead", before.readahead_kib != wanted.readahead_kib),
        ("max_background", before.max_background != wanted.max_background),
        // the kernel has no flag for "as the filesystem is set"
        ("atime", before.atime != wanted.atime && (wanted.atime.is_none() || !moves_flag)),
    ];
    let names: Vec<&str> = differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    if !names.is_empty() {
        fail!(Invalid, "a remount cannot change {}; unmount it and mount it again", names.join(", "));
    }
    Ok(())
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
    fn what_only_a_new_mount_can_have_is_named() {
        let check = |before: &str, wanted: &str| {
            let parse = |list: &str| MountOptions::parse("tank", list).unwrap();
            only_flags(&parse(before), &parse(wanted)).map_err(|e| e.to_string())
        };
        for (before, wanted) in
            [("", "ro,nosuid,nodev,noexec,nodiratime"), ("user", ""), ("", "noatime"), ("threads=3,ro", "threads=3")]
        {
            assert_eq!(check(before, wanted), Ok(()), "{before} to {wanted}");
        }
        for (before, wanted, part) in [
            ("", "threads=3,readahead=0,ro", "threads, readahead;"),
            ("noallow_other", "", "allow_other"),
            ("sync", "dirsync", "sync, dirsync"),
            ("noatime", "", "atime"),
            ("", "relatime", "atime"),
            ("max_background=3", "", "max_background"),
        ] {
            let error = check(before, wanted).unwrap_err();
            assert!(error.contains(part) && error.contains("mount it again"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert_eq!(remount_flags(MsFlags::empty(), "remount,frobnicate").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(remount(Path::new("/proc"), "ro").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(remount(Path::new("/proc/self"), "ro").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
