//! Set-user-id and set-group-id bits go when somebody without privilege changes the file, in the kernel's cache too.

use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::{Mounted, as_user, can_mount, fallocate, is_root, once_nobody_writes_it, set_xattr};

const USER: u32 = 1000;

/// A world-writable file of root's with both bits.
fn armed(m: &Mounted) {
    let path = m.path("a");
    fs::write(&path, "some contents").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
    assert_eq!(mode(&path), 0o6777);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn every_change_by_an_ordinary_user_clears_them() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    type Change<'a> = (&'a str, Box<dyn Fn() + Sync + 'a>);
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
    let changes: Vec<Change> = vec![
        ("write", Box::new(|| open(0).write_all_at(b"x", 0).unwrap())),
        ("append", Box::new(|| open(libc::O_APPEND).write_all_at(b"x", 0).unwrap())),
        (
            "direct write",
            Box::new(|| {
                let block = qrvsa_core::buf::AlignedBuf::zeroed(4096);
                open(libc::O_DIRECT).write_all_at(&block, 0).unwrap()
            }),
        ),
        ("ftruncate", Box::new(|| open(0).set_len(3).unwrap())),
        ("O_TRUNC", Box::new(|| drop(open(libc::O_TRUNC)))),
        ("fallocate", Box::new(|| fallocate(&open(0), 0, 0, 100).unwrap())),
        ("zero range", Box::new(|| fallocate(&open(0), libc::FALLOC_FL_ZERO_RANGE, 0, 10).unwrap())),
        (
            "copy_file_range",
            Box::new(|| {
                let f = open(0);
                let (mut from, mut to) = (0i64, 100i64);
                // SAFETY: an open descriptor and two live integers.
                let n =
                    unsafe { libc::copy_file_range(f.as_raw_fd(), &raw mut from, f.as_raw_fd(), &raw mut to, 10, 0) };
                assert_eq!(n, 10);
            }),
        ),
    ];
    for (what, change) in &changes {
        armed(&m);
        as_user(USER, USER, change);
        assert_eq!(mode(&path), 0o777, "{what}");
    }
}

#[test]
fn others_cannot_take_them_away() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    armed(&m);
    fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
    as_user(USER, USER, || {
        let _ = chown(&path, None, None);
        let _ = OpenOptions::new().write(true).open(&path);
        let _ = fs::read(&path);
    });
    assert_eq!(mode(&path), 0o6755);
}

#[test]
fn root_keeps_them_but_chown_always_clears() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    armed(&m);
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"x", 0).unwrap();
    assert_eq!(mode(&path), 0o6777, "write");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
    assert_eq!(mode(&path), 0o6777, "truncate");
    chown(&path, Some(USER), None).unwrap();
    assert_eq!(mode(&path), 0o777, "chown");
}

#[test]
fn what_a_user_wrote_is_not_executed_with_the_bits_of_before() {
    if !can_mount() || !is_root() || !Path::new("/usr/bin/id").exists() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    let program = fs::read("/usr/bin/id").unwrap();
    let run = || {
        let output = once_nobody_writes_it(|| Command::new(&path).arg("-u").uid(USER).gid(USER).output());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for flags in [0, libc::O_DIRECT] {
        fs::write(&path, &program).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o4777)).unwrap();
        assert_eq!(run(), "0", "the mount honours set-user-id");
        as_user(USER, USER, || {
            let f = OpenOptions::new().write(true).custom_flags(flags).open(&path).unwrap();
            let block = qrvsa_core::buf::AlignedBuf::from_slice(&program[..4096]);
            f.write_all_at(&block, 0).unwrap();
        });
        // No stat in between: the kernel decides by the mode it has cached.
        assert_eq!(run(), USER.to_string(), "flags {flags:#o}");
    }
}

#[test]
fn truncated_and_rewritten_is_not_executed_with_the_bits_of_before() {
    if !can_mount() || !is_root() || !Path::new("/usr/bin/id").exists() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    let program = fs::read("/usr/bin/id").unwrap();
    fs::write(&path, &program).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4777)).unwrap();
    as_user(USER, USER, || fs::write(&path, &program).unwrap());
    let output = once_nobody_writes_it(|| Command::new(&path).arg("-u").uid(USER).gid(USER).output());
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), USER.to_string());
}

#[test]
fn capabilities_go_with_a_write() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    // cap_net_raw+ep, version 2.
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend((1u32 << 13).to_le_bytes());
    capability.extend([0; 12]);
    set_xattr(&path, "security.capability", &capability, 0).unwrap();
    as_user(USER, USER, || fs::OpenOptions::new().write(true).open(&path).unwrap().write_at(b"y", 0).unwrap());
    assert!(crate::support::get_xattr(&path, "security.capability").is_err());
}

#[test]
fn writes_do_not_ask_for_capabilities_each_time() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let f = fs::File::create(m.path("a")).unwrap();
    f.write_at(b"x", 0).unwrap();
    let before = m.fs.count("getxattr");
    for i in 0..1000 {
        f.write_at(b"x", i).unwrap();
    }
    assert!(m.fs.count("getxattr") - before < 10, "{} questions for 1000 writes", m.fs.count("getxattr") - before);
}
