//! The mount helper: what `mount -t fuse.qrvsa POOL[/FS] DIR` and `/etc/fstab` run, under the name `mount.fuse.qrvsa` (or
//! `mount.qrvsa`), with the arguments of mount(8): `SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
//!
//! It may run early at boot, with an empty environment. It runs no other program; it asks the daemon and returns when the
//! mount serves. Exit codes are those of mount(8): 0 mounted, 1 usage, 32 the mount failed.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qrvsa_api::names::FsName;
use qrvsa_api::{ApiError, Client, DEFAULT_SOCKET, ErrorKind, MountRequest, MountState, SOCKET_ENV, UpdateMount};

use crate::paths;

const USAGE: u8 = 1;
const FAILED: u8 = 32;

/// Whether the program was called as the mount helper.
pub fn is_helper(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name == "mount.fuse.qrvsa" || name == "mount.qrvsa"
}

/// What mount(8) asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    source: FsName,
    dir: PathBuf,
    options: Vec<String>,
    socket: Option<PathBuf>,
    /// `-f`: everything but the mount.
    fake: bool,
    /// The options as given, if they ask for a remount: that is between the kernel and the front end.
    remount: Option<String>,
}

/// The program as the mount helper: arguments without the program's name. Returns the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let request = match parse(args) {
        Ok(request) => request,
        Err(e) => {
            eprintln!("qrvsa: {e}");
            return USAGE;
        }
    };
    if request.fake {
        return 0;
    }
    if let Some(list) = &request.remount {
        return match qrvsa_fuse::remount::remount(&request.dir, list) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("qrvsa: {e}");
                FAILED
            }
        };
    }
    match mount(&request) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("qrvsa: {e}");
            FAILED
        }
    }
}

fn mount(request: &Request) -> Result<(), ApiError> {
    let socket = request
        .socket
        .clone()
        .or_else(|| std::env::var_os(SOCKET_ENV).filter(|v| !v.is_empty()).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let client = Client::new(socket)?;
    let mountpoint = paths::directory(&request.dir)?;
    let wanted = MountRequest { source: request.source.clone(), mountpoint, options: request.options.clone() };
    // A mount that went away with umount(8) stays in the daemon's table until all of it is durable.
    const ENDING: Duration = Duration::from_secs(60);
    const PATIENCE: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    loop {
        let error = match client.mount(&wanted) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind == ErrorKind::Busy => e,
            Err(e) => return Err(e),
        };
        let listed = client.mounts()?.into_iter().find(|mount| {
            mount.source == wanted.source && mount.mountpoint == wanted.mountpoint && mount.state == MountState::Mounted
        });
        let there = is_mount_point(&wanted.mountpoint);
        // At boot the daemon has restored its mounts before fstab is read. What is there is what was asked for, but for the
        // options, which are those of the last time.
        if let Some(mount) = listed.as_ref().filter(|_| there) {
            let change = UpdateMount { options: wanted.options.clone() };
            match client.update_mount(mount.id, &change) {
                // It has just ended: what comes next sees that.
                Err(e) if e.kind == ErrorKind::NotFound && begin.elapsed() <= ENDING => {}
                changed => return changed.map(drop),
            }
        } else if there || begin.elapsed() > if listed.is_some() { ENDING } else { PATIENCE } {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether something is mounted on the directory.
fn is_mount_point(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(own), Some(parent)) = (std::fs::metadata(dir), dir.parent()) else { return false };
    std::fs::metadata(parent).is_ok_and(|p| p.dev() != own.dev())
}

fn parse(args: impl Iterator<Item = OsString>) -> Result<Request, ApiError> {
    let usage =
        |what: String| ApiError::invalid(what).with_hint("usage: mount.fuse.qrvsa POOL[/FS] DIR [-sfnv] [-o OPTIONS]");
    let mut positional = Vec::new();
    let mut options = Vec::new();
    let mut socket = None;
    let mut fake = false;
    let mut remount = false;
    let mut lists: Vec<String> = Vec::new();
    let mut args = args;
    while let Some(arg) = args.next() {
        let Some(flags) = arg.to_str().and_then(|a| a.strip_prefix('-')).filter(|f| !f.is_empty()) else {
            positional.push(arg);
            continue;
        };
        if flags == "-" {
            positional.extend(args.by_ref());
            break;
        }
        for (at, flag) in flags.char_indices() {
            match flag {
                's' | 'n' | 'v' | 'r' | 'w' | 'i' => {
                    if flag == 'r' {
                        options.push("ro".to_owned());
                    }
                }
                'f' => fake = true,
                'o' | 't' | 'N' => {
                    let rest = flags.get(at + 1..).unwrap_or_default();
                    let value = if rest.is_empty() {
                        args.next().ok_or_else(|| usage(format!("-{flag} needs a value")))?
                    } else {
                        OsString::from(rest)
                    };
                    if flag == 'o' {
                        let value =
                            value.to_str().ok_or_else(|| usage("the options are not valid UTF-8".to_owned()))?;
                        remount |= add_options(value, &mut options, &mut socket)?;
                        lists.push(value.to_owned());
                    } else if flag == 't' && value != qrvsa_fuse::FS_TYPE && value != "qrvsa" {
                        return Err(usage(format!(
                            "type {}: only {} is mounted here",
                            value.display(),
                            qrvsa_fuse::FS_TYPE
                        )));
                    } else if flag == 'N' {
                        // the daemon would mount in its own
                        return Err(usage("other mount namespaces (-N) are not supported".to_owned()));
                    }
                    break;
                }
                _ => return Err(usage(format!("unknown option -{flag}"))),
            }
        }
    }
    let [source, dir] = <[OsString; 2]>::try_from(positional)
        .map_err(|given| usage(format!("a filesystem and a directory are needed, {} given", given.len())))?;
    let source = source.to_str().ok_or_else(|| usage("the filesystem's name is not valid UTF-8".to_owned()))?;
    let remount = remount.then(|| lists.join(","));
    Ok(Request { source: source.parse()?, dir: PathBuf::from(dir), options, socket, fake, remount })
}

/// Takes the options apart; leaves out those that are meant for mount(8), fstab or systemd only. (`user` and the like are
/// not: they imply `nosuid` and `nodev`.) Returns whether a remount is asked for.
fn add_options(text: &str, options: &mut Vec<String>, socket: &mut Option<PathBuf>) -> Result<bool, ApiError> {
    let mut remount = false;
    const NOT_OURS: [&str; 8] = ["", "rw", "defaults", "auto", "noauto", "nouser", "_netdev", "nofail"];
    for option in text.split(',') {
        if let Some(path) = option.strip_prefix("socket=") {
            if !path.starts_with('/') {
                return Err(ApiError::invalid(format!("option {option:?} needs an absolute path"))
                    .with_hint("write socket=/path/of/the/socket"));
            }
            *socket = Some(PathBuf::from(path));
        } else if option == "remount" {
            remount = true;
        } else if option == "bind" || option == "move" {
            return Err(ApiError::invalid(format!("option {option:?} is mount(8)'s own"))
                .with_hint("run mount without -t for it"));
        } else if !NOT_OURS.contains(&option)
            && !["x-", "X-", "comment="].iter().any(|prefix| option.starts_with(prefix))
        {
            options.push(option.to_owned());
        }
    }
    Ok(remount)
}

/// Options of `qrvsa mount -o`, taken apart in the same way.
pub fn split_options(texts: &[String]) -> Result<Vec<String>, ApiError> {
    let mut options = Vec::new();
    let mut socket = None;
    for text in texts {
        add_options(text, &mut options, &mut socket)?;
    }
    if socket.is_some() {
        return Err(ApiError::invalid("the socket is not a mount option here").with_hint("use --socket"));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Request, ApiError> {
        parse(args.iter().map(OsString::from))
    }

    #[test]
    fn is_known_by_its_name() {
        for (name, helper) in [
            ("mount.fuse.qrvsa", true),
            ("/sbin/mount.fuse.qrvsa", true),
            ("/sbin/mount.qrvsa", true),
            ("/usr/bin/qrvsa", false),
            ("qrvsa-mount.fuse", false),
            ("umount.fuse.qrvsa", false),
            ("", false),
        ] {
            assert_eq!(is_helper(OsStr::new(name)), helper, "{name}");
        }
    }

    #[test]
    fn what_mount_passes() {
        let request = parsed(&["tank/home", "/home", "-o", "rw,noatime,x-systemd.requires=a,_netdev,user,threads=8"]);
        let request = request.unwrap();
        assert_eq!(request.source.to_string(), "tank/home");
        assert_eq!(request.options, ["noatime", "user", "threads=8"]);
        assert_eq!((request.socket, request.fake), (None, false));
        let request = parsed(&["tank", "/t", "-sfnv", "-oro,socket=/run/s", "-t", "fuse.qrvsa"]).unwrap();
        assert_eq!(request.socket.as_deref(), Some(Path::new("/run/s")));
        assert!(request.fake);
        assert_eq!(request.options, ["ro"]);
        assert_eq!(parsed(&["-o", "ro", "--", "tank", "-dir"]).unwrap().dir, Path::new("-dir"));
    }

    #[test]
    fn mistakes() {
        for bad in [
            &[][..],
            &["tank"],
            &["tank", "/a", "/b"],
            &["ta//nk", "/a"],
            &["tank", "/a", "-o"],
            &["tank", "/a", "-x"],
            &["tank", "/a", "-o", "socket=relative"],
            &["tank", "/a", "-o", "move"],
            &["tank", "/a", "-t", "ext4"],
            &["tank", "/a", "-N", "1"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parsed(&["tank", "/a", "-o", "remount,ro"]).unwrap().remount.as_deref(), Some("remount,ro"));
        assert!(split_options(&["socket=/a".into()]).is_err());
        assert_eq!(split_options(&["ro,noatime".into(), "a=b".into()]).unwrap(), ["ro", "noatime", "a=b"]);
    }
}
