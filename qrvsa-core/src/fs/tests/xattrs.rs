//! Extended attributes: sizes, namespaces, flags, limits.

use super::*;
use crate::fs::ops::XattrMode::{Create, Replace, Set};

#[test]
fn values_of_all_sizes() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let before = fs.store().item_count();
    for size in [0, 1, 1024, 1025, 4096, 4097, 65_535, 65_536, 5000, 10] {
        let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        fs.setxattr(ROOT, f, b"user.v", &value, Set).unwrap();
        assert_eq!(fs.getxattr(f, b"user.v").unwrap(), value);
        clean(fs.store());
    }
    fails(fs.setxattr(ROOT, f, b"user.v", &[0; 65_537], Set), Errno::E2BIG);
    fs.removexattr(ROOT, f, b"user.v").unwrap();
    assert_eq!(fs.store().item_count(), before);
}

#[test]
fn names_and_namespaces() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let l = fs.symlink(ROOT, ROOT_INO, b"l", b"f").unwrap().ino;
    for name in [&b"user.a"[..], b"trusted.b", b"security.c"] {
        fs.setxattr(ROOT, f, name, b"v", Set).unwrap();
    }
    fs.setxattr(ROOT, l, b"trusted.b", b"v", Set).unwrap();
    fs.setxattr(ROOT, ROOT_INO, b"user.a", b"v", Set).unwrap();
    fails(fs.setxattr(ROOT, l, b"user.a", b"v", Set), Errno::EPERM);
    fails(fs.getxattr(l, b"user.a"), Errno::ENODATA);
    fails(fs.setxattr(ROOT, f, b"other.a", b"v", Set), Errno::EOPNOTSUPP);
    fails(fs.setxattr(ROOT, f, b"system.a", b"v", Set), Errno::EOPNOTSUPP);
    fails(fs.setxattr(ROOT, f, b"user.", b"v", Set), Errno::EINVAL);
    fails(fs.setxattr(ROOT, f, &[&b"user."[..], &[b'x'; 251]].concat(), b"v", Set), Errno::ERANGE);
    fs.setxattr(ROOT, f, &[&b"user."[..], &[b'x'; 250]].concat(), b"v", Set).unwrap();
    assert_eq!(fs.listxattr(f).unwrap().len(), 4);
    fails(fs.getxattr(f, b"user.none"), Errno::ENODATA);
    fails(fs.removexattr(ROOT, f, b"user.none"), Errno::ENODATA);
    clean(fs.store());
}

#[test]
fn flags_and_times() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    fails(fs.setxattr(ROOT, f, b"user.a", b"1", Replace), Errno::ENODATA);
    fs.setxattr(ROOT, f, b"user.a", b"1", Create).unwrap();
    fails(fs.setxattr(ROOT, f, b"user.a", b"2", Create), Errno::EEXIST);
    let before = fs.getattr(f).unwrap();
    fs.setxattr(ROOT, f, b"user.a", b"2", Replace).unwrap();
    let after = fs.getattr(f).unwrap();
    assert!(after.ctime_ns > before.ctime_ns && after.mtime_ns == before.mtime_ns);
    assert_eq!(fs.getxattr(f, b"user.a").unwrap(), b"2");
}

#[test]
fn the_list_is_bounded() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let name = |i: u32| format!("user.{i:0>250}").into_bytes();
    let made = (0..1000).take_while(|&i| fs.setxattr(ROOT, f, &name(i), b"", Set).is_ok()).count();
    assert_eq!(made, 256);
    fails(fs.setxattr(ROOT, f, &name(999), b"", Set), Errno::ENOSPC);
    assert_eq!(fs.listxattr(f).unwrap().len(), 256);
    fs.removexattr(ROOT, f, &name(3)).unwrap();
    fs.setxattr(ROOT, f, &name(999), b"", Set).unwrap();
    clean(fs.store());
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(clean(fs.store()).xattrs, 0);
}
