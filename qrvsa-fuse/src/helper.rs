//! What mount(8) asks of `/sbin/mount.fuse.qrvsa`: the arguments, and remounting.
//!
//! mount(8) calls `mount.fuse.qrvsa SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`. Mounting itself is a
//! request to the daemon and not made here; a remount is, because the kernel does all of it. No program is started and
//! `PATH` is not looked at.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use qrvsa_core::{Error, ErrorKind, Result, fail};

use crate::mountinfo;
use crate::options::MountOptions;

/// A parsed call of the mount helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperRequest {
    /// Name of the pool.
    pub pool: String,
    /// Name of the filesystem within the pool; `None` for the pool's own.
    pub dataset: Option<String>,
    /// Where to mount, or what to remount.
    pub directory: PathBuf,
    /// What to do there.
    pub action: Action,
    /// `-f`: check everything, do nothing.
    pub fake: bool,
    /// `-v`.
    pub verbose: bool,
}

/// What the helper is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mount with these options; their `fs_name` is the source.
    Mount(MountOptions),
    /// Change the flags of a mount: hand this list to [`remount`].
    Remount(String),
}

/// Parses the arguments after the program's name.
///
/// # Errors
/// `Invalid`: what is missing, unknown or malformed.
pub fn parse_helper_args(args: impl IntoIterator<Item = OsString>) -> Result<HelperRequest> {
    let (mut fake, mut verbose, mut sloppy) = (false, false, false);
    let mut positional: Vec<OsString> = Vec::new();
    let mut lists: Vec<String> = Vec::new();
    let mut args = args.into_iter();
    let mut only_positional = false;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if only_positional || bytes.len() < 2 || bytes.first() != Some(&b'-') {
            positional.push(arg);
            continue;
        }
        if bytes == b"--" {
            only_positional = true;
            continue;
        }
        let Some(word) = arg.to_str() else {
            fail!(Invalid, "option {arg:?} is not valid UTF-8");
        };
        for (at, letter) in word.char_indices().skip(1) {
            match letter {
                's' => sloppy = true,
                'f' => fake = true,
                'v' => verbose = true,
                'n' => {}
                'o' | 't' | 'N' => {
                    let rest = word.get(at + 1..).unwrap_or_default();
                    let value = if rest.is_empty() {
                        match args.next().map(OsString::into_string) {
                            Some(Ok(value)) => value,
                            Some(Err(value)) => fail!(Invalid, "the value {value:?} of -{letter} is not valid UTF-8"),
                            None => fail!(Invalid, "-{letter} needs a value"),
                        }
                    } else {
                        rest.to_owned()
                    };
                    match letter {
                        'o' => lists.push(value),
                        't' if value != crate::FS_TYPE && value != "qrvsa" => {
                            fail!(Invalid, "type {value}: only {} is mounted here", crate::FS_TYPE)
                        }
                        't' => {}
                        _ => fail!(Invalid, "-N {value}: other mount namespaces are not supported"),
                    }
                    break;
                }
                _ => fail!(Invalid, "unknown option -{letter}"),
            }
        }
    }
    let Ok([source, directory]) = <[OsString; 2]>::try_from(positional) else {
        fail!(Invalid, "usage: mount.fuse.qrvsa POOL[/FILESYSTEM] DIRECTORY [-sfnv] [-o OPTIONS]");
    };
    let Some(source) = source.to_str() else {
        fail!(Invalid, "source {source:?} is not valid UTF-8");
    };
    let (pool, dataset) = parse_source(source)?;
    let list = lists.join(",");
    let action = if words(&list).any(|w| w == "remount") {
        remount_flags(MsFlags::empty(), &list)?;
        Action::Remount(list)
    } else if sloppy {
        Action::Mount(parse_sloppily(source, &list)?)
    } else {
        Action::Mount(MountOptions::parse(source, &list)?)
    };
    Ok(HelperRequest { pool, dataset, directory: directory.into(), action, fake, verbose })
}

/// `POOL` or `POOL/FILESYSTEM`, where the latter may have several components.
fn parse_source(source: &str) -> Result<(String, Option<String>)> {
    if source.split('/').any(|part| part.is_empty() || part == "." || part == "..") || source.contains(['\0', '\n']) {
        fail!(Invalid, "source \"{source}\": must be POOL or POOL/FILESYSTEM");
    }
    Ok(match source.split_once('/') {
        Some((pool, dataset)) => (pool.to_owned(), Some(dataset.to_owned())),
        None => (source.to_owned(), None),
    })
}

/// `-s`: unknown words are left out instead of refused.
fn parse_sloppily(source: &str, list: &str) -> Result<MountOptions> {
    let known: Vec<&str> = words(list).filter(|word| MountOptions::parse(source, word).is_ok()).collect();
    MountOptions::parse(source, &known.join(","))
}

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
fn current_flags(mount_options: &str, super_options: &str) -> MsFlags {
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
    use proptest::prelude::*;

    fn parse(args: &[&str]) -> Result<HelperRequest> {
        parse_helper_args(args.iter().map(OsString::from))
    }

    #[test]
    fn as_mount_calls_it() {
        let request =
            parse(&["tank/home/anna", "/mnt", "-sfnv", "-o", "rw,noatime,x-a=b", "-t", "fuse.qrvsa"]).unwrap();
        assert_eq!((request.pool.as_str(), request.dataset.as_deref()), ("tank", Some("home/anna")));
        assert_eq!(request.directory, Path::new("/mnt"));
        assert!(request.fake && request.verbose);
        let Action::Mount(options) = request.action else { panic!("not a mount") };
        assert_eq!(options, MountOptions::parse("tank/home/anna", "noatime").unwrap());
    }

    #[test]
    fn in_any_order_and_joined() {
        let request = parse(&["-oro,nosuid", "tank", "-o", "nodev", "--", "-odd"]).unwrap();
        assert_eq!((request.pool.as_str(), request.dataset), ("tank", None));
        assert_eq!(request.directory, Path::new("-odd"));
        let Action::Mount(options) = request.action else { panic!("not a mount") };
        assert!(options.read_only && options.nosuid && options.nodev);
    }

    #[test]
    fn remounting() {
        let list = "remount,ro,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        let request = parse(&["tank", "/mnt", "-o", list]).unwrap();
        assert_eq!(request.action, Action::Remount(list.into()));
        let flags = current_flags("rw,nosuid,relatime", "rw,user_id=0");
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_RELATIME);
        let flags = remount_flags(flags, "remount,ro,noatime").unwrap();
        assert_eq!(flags, MsFlags::MS_NOSUID | MsFlags::MS_NOATIME | MsFlags::MS_RDONLY);
        assert_eq!(remount_flags(flags, "rw,suid,strictatime").unwrap(), MsFlags::MS_STRICTATIME);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for args in [
            &["tank"][..],
            &["tank", "/mnt", "/more"],
            &["/dev/sda", "/mnt"],
            &["tank//a", "/mnt"],
            &["tank/../a", "/mnt"],
            &["", "/mnt"],
            &["tank", "/mnt", "-o"],
            &["tank", "/mnt", "-x"],
            &["tank", "/mnt", "-o", "frobnicate"],
            &["tank", "/mnt", "-o", "remount,frobnicate"],
            &["tank", "/mnt", "-t", "ext4"],
        ] {
            assert_eq!(parse(args).unwrap_err().kind(), ErrorKind::Invalid, "{args:?}");
        }
        assert!(parse(&["tank", "/mnt", "-s", "-o", "frobnicate,ro"]).is_ok());
        assert_eq!(remount(Path::new("/proc"), "ro").unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(remount(Path::new("/proc/self"), "ro").unwrap_err().kind(), ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_arguments_are_parsed_or_refused(args in prop::collection::vec("[-a-z/,=é]{0,8}", 0..6)) {
            let _ = parse_helper_args(args.into_iter().map(OsString::from));
        }
    }
}
