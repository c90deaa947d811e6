//! chmod, chown, set-id clearing, ACLs.

use super::*;
use crate::fs::acl::tests::blob;
use crate::fs::acl::{XATTR_ACCESS, XATTR_DEFAULT};
use crate::fs::ops::{AllocateMode, SetAttr, XattrMode};

const NONE: u32 = u32::MAX;
const CAP: &[u8] = b"security.capability";

fn chmod(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

fn owned(fs: &FileSystem<MemStore>, name: &str, mode: u32) -> Ino {
    let ino = file(fs, ROOT_INO, name);
    fs.setattr(ROOT, ino, SetAttr { uid: Some(1000), gid: Some(1000), ..SetAttr::default() }).unwrap();
    fs.setxattr(ROOT, ino, CAP, b"caps", XattrMode::Set).unwrap();
    fs.setattr(ROOT, ino, chmod(mode)).unwrap();
    ino
}

fn mode(fs: &FileSystem<MemStore>, ino: Ino) -> u32 {
    fs.getattr(ino).unwrap().mode & 0o7777
}

#[test]
fn chmod_and_groups() {
    let fs = new_fs();
    let f = owned(&fs, "f", 0o644);
    assert_eq!(fs.setattr(USER, f, chmod(0o2755)).unwrap().mode, libc::S_IFREG | 0o2755);
    fs.setattr(ROOT, f, SetAttr { gid: Some(7), ..SetAttr::default() }).unwrap();
    assert_eq!(fs.setattr(USER, f, chmod(0o6755)).unwrap().mode, libc::S_IFREG | 0o4755);
    assert_eq!(fs.setattr(ROOT, f, chmod(0o6755)).unwrap().mode, libc::S_IFREG | 0o6755);
}

#[test]
fn chown_clears_set_id_even_for_root() {
    let fs = new_fs();
    let f = owned(&fs, "f", 0o6755);
    let attr = fs.setattr(ROOT, f, SetAttr { uid: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.uid, attr.mode & 0o7777), (5, 0o755));
    fails(fs.getxattr(f, CAP), Errno::ENODATA);
    let g = owned(&fs, "g", 0o2745);
    assert_eq!(fs.setattr(ROOT, g, SetAttr { gid: Some(5), ..SetAttr::default() }).unwrap().mode & 0o7777, 0o2745);
    let d = dir(&fs, ROOT_INO, "d");
    fs.setattr(ROOT, d, chmod(0o6777)).unwrap();
    assert_eq!(fs.setattr(ROOT, d, SetAttr { gid: Some(5), ..SetAttr::default() }).unwrap().mode & 0o7777, 0o6777);
    clean(fs.store());
}

#[test]
fn changing_contents_clears_set_id() {
    let fs = new_fs();
    type Change = fn(&FileSystem<MemStore>, Caller, Ino);
    let cases: [(&str, Change); 4] = [
        ("write", |fs, caller, f| assert_eq!(fs.write(f, 0, b"x", false, caller.uid != 0).unwrap(), 1)),
        ("truncate", |fs, caller, f| {
            fs.setattr(caller, f, SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
        }),
        ("open", |fs, caller, f| fs.open(caller, f, true).unwrap()),
        ("fallocate", |fs, caller, f| fs.fallocate(caller, f, AllocateMode::PunchHole, 0..1).unwrap()),
    ];
    for (name, change) in cases {
        let f = owned(&fs, name, 0o6755);
        change(&fs, ROOT, f);
        assert_eq!(mode(&fs, f), 0o6755, "{name} by root");
        change(&fs, USER, f);
        assert_eq!(mode(&fs, f), 0o755, "{name} by a user");
        fails(fs.getxattr(f, CAP), Errno::ENODATA);
    }
    let f = owned(&fs, "plain", 0o6755);
    fs.open(USER, f, false).unwrap();
    fs.read(f, 0, &mut [0; 1]).unwrap();
    assert_eq!(mode(&fs, f), 0o6755);
    fs.getxattr(f, CAP).unwrap();
    clean(fs.store());
}

#[test]
fn every_write_takes_capabilities() {
    let fs = new_fs();
    let f = owned(&fs, "f", 0o6755);
    fs.write(f, 0, b"x", false, false).unwrap();
    fails(fs.getxattr(f, CAP), Errno::ENODATA);
    assert_eq!(mode(&fs, f), 0o6755, "who may keep set-id bits does");
    let g = owned(&fs, "g", 0o755);
    assert_eq!(fs.copy_range((f, 0), (g, 0), 1).unwrap(), 1);
    fails(fs.getxattr(g, CAP), Errno::ENODATA);
    clean(fs.store());
}

#[test]
fn a_change_by_no_member_clears_set_group_id_without_group_execute() {
    let fs = new_fs();
    type Change = fn(&FileSystem<MemStore>, Caller, Ino);
    let cases: [(&str, Change); 5] = [
        ("write", |fs, caller, f| assert_eq!(fs.write_unprivileged(caller, f, 0, b"x").unwrap(), 1)),
        ("truncate", |fs, caller, f| {
            fs.setattr(caller, f, SetAttr { size: Some(1), ..SetAttr::default() }).unwrap();
        }),
        ("open", |fs, caller, f| fs.open(caller, f, true).unwrap()),
        ("fallocate", |fs, caller, f| fs.fallocate(caller, f, AllocateMode::PunchHole, 0..1).unwrap()),
        ("chown", |fs, caller, f| {
            fs.setattr(caller, f, SetAttr { uid: Some(1000), ..SetAttr::default() }).unwrap();
        }),
    ];
    for (name, change) in cases {
        let f = owned(&fs, name, 0o6666);
        change(&fs, USER, f);
        assert_eq!(mode(&fs, f), 0o2666, "{name} by a member");
        change(&fs, Caller { gid: 7, ..USER }, f);
        assert_eq!(mode(&fs, f), 0o666, "{name} by somebody else");
    }
    clean(fs.store());
}

#[test]
fn every_change_moves_ctime() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let mut last = fs.getattr(f).unwrap();
    for change in [SetAttr::default(), chmod(0o600), SetAttr { uid: Some(3), ..SetAttr::default() }] {
        let now = fs.setattr(ROOT, f, change).unwrap();
        assert!(now.ctime_ns > last.ctime_ns && now.mtime_ns == last.mtime_ns);
        last = now;
    }
    fails(fs.setattr(ROOT, ROOT_INO, SetAttr { size: Some(0), ..SetAttr::default() }), Errno::EISDIR);
    fails(fs.setattr(ROOT, 4000, chmod(0)), Errno::ENOENT);
}

#[test]
fn access_acl_and_mode_go_together() {
    let fs = new_fs();
    let f = owned(&fs, "f", 0o2644);
    let acl = blob(&[(1, 6, NONE), (2, 7, 77), (4, 4, NONE), (0x10, 7, NONE), (0x20, 0, NONE)]);
    fs.setxattr(USER, f, XATTR_ACCESS, &acl, XattrMode::Set).unwrap();
    assert_eq!(mode(&fs, f), 0o2670);
    assert_eq!(fs.getxattr(f, XATTR_ACCESS).unwrap(), acl);
    fs.setattr(ROOT, f, SetAttr { gid: Some(9), ..SetAttr::default() }).unwrap();
    fs.setattr(ROOT, f, chmod(0o2740)).unwrap();
    let masked = blob(&[(1, 7, NONE), (2, 7, 77), (4, 4, NONE), (0x10, 4, NONE), (0x20, 0, NONE)]);
    assert_eq!(fs.getxattr(f, XATTR_ACCESS).unwrap(), masked);
    fs.setxattr(USER, f, XATTR_ACCESS, &acl, XattrMode::Set).unwrap();
    assert_eq!(mode(&fs, f), 0o670, "not a member of the group");
    clean(fs.store());
    let plain = blob(&[(1, 6, NONE), (4, 4, NONE), (0x20, 4, NONE)]);
    fs.setxattr(ROOT, f, XATTR_ACCESS, &plain, XattrMode::Set).unwrap();
    assert_eq!(mode(&fs, f), 0o644);
    fails(fs.getxattr(f, XATTR_ACCESS), Errno::ENODATA);
    fs.removexattr(ROOT, f, XATTR_ACCESS).unwrap();
    fails(fs.setxattr(ROOT, f, XATTR_ACCESS, &acl[..10], XattrMode::Set), Errno::EINVAL);
    fails(fs.setxattr(ROOT, f, XATTR_DEFAULT, &plain, XattrMode::Set), Errno::EACCES);
    let l = fs.symlink(ROOT, ROOT_INO, b"l", b"f").unwrap().ino;
    fails(fs.setxattr(ROOT, l, XATTR_ACCESS, &plain, XattrMode::Set), Errno::EOPNOTSUPP);
    clean(fs.store());
}

#[test]
fn default_acls_are_inherited() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let default = blob(&[(1, 7, NONE), (2, 6, 77), (4, 5, NONE), (0x10, 7, NONE), (0x20, 5, NONE)]);
    fs.setxattr(ROOT, d, XATTR_DEFAULT, &default, XattrMode::Set).unwrap();
    assert_eq!(mode(&fs, d), 0o755);
    let new = |name: &[u8], mode| fs.mknod(USER, d, name, NewNode { mode, umask: 0o077, rdev: 0 }).unwrap();
    let f = new(b"f", libc::S_IFREG | 0o664);
    assert_eq!(f.mode & 0o7777, 0o664, "the umask does not apply");
    let access = blob(&[(1, 6, NONE), (2, 6, 77), (4, 5, NONE), (0x10, 6, NONE), (0x20, 4, NONE)]);
    assert_eq!(fs.getxattr(f.ino, XATTR_ACCESS).unwrap(), access);
    fails(fs.getxattr(f.ino, XATTR_DEFAULT), Errno::ENODATA);
    let sub = new(b"sub", libc::S_IFDIR | 0o700);
    assert_eq!(sub.mode & 0o7777, 0o700);
    assert_eq!(fs.getxattr(sub.ino, XATTR_DEFAULT).unwrap(), default);
    fs.symlink(USER, d, b"l", b"f").unwrap();
    let (made, _) = fs.create(USER, d, b"c", NewNode { mode: 0o600, umask: 0o077, rdev: 0 }, true, false).unwrap();
    assert_eq!(made.mode & 0o7777, 0o600);
    fs.removexattr(ROOT, d, XATTR_DEFAULT).unwrap();
    assert_eq!(new(b"g", libc::S_IFREG | 0o666).mode & 0o7777, 0o600);
    clean(fs.store());
}
