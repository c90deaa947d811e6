//! Making and removing names, opens, listings.

use super::*;
use crate::fs::store::Store;

#[test]
fn errors_of_make() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let reg = node(libc::S_IFREG | 0o644);
    fails(fs.mknod(ROOT, ROOT_INO, b"f", reg), Errno::EEXIST);
    fails(fs.mknod(ROOT, ROOT_INO, b".", reg), Errno::EEXIST);
    fails(fs.mknod(ROOT, ROOT_INO, b"", reg), Errno::ENOENT);
    fails(fs.mknod(ROOT, ROOT_INO, &[b'a'; 256], reg), Errno::ENAMETOOLONG);
    fails(fs.mknod(ROOT, f, b"x", reg), Errno::ENOTDIR);
    fails(fs.mknod(ROOT, 999, b"x", reg), Errno::ENOENT);
    fails(fs.mknod(ROOT, ROOT_INO, b"x", node(libc::S_IFLNK | 0o777)), Errno::EINVAL);
    fails(fs.symlink(ROOT, ROOT_INO, b"x", b""), Errno::ENOENT);
    fails(fs.symlink(ROOT, ROOT_INO, b"x", &[b'a'; 4096]), Errno::ENAMETOOLONG);
    fails(fs.lookup(ROOT_INO, b"x"), Errno::ENOENT);
    fails(fs.lookup(f, b"x"), Errno::ENOTDIR);
    fails(fs.lookup(f, b"."), Errno::ENOTDIR);
    fails(fs.readlink(f), Errno::EINVAL);
    fs.mknod(ROOT, ROOT_INO, &[b'a'; 255], reg).unwrap();
    clean(fs.store());
}

#[test]
fn kinds_modes_and_owners() {
    let fs = new_fs();
    let dev = NewNode { mode: libc::S_IFBLK | 0o660, umask: 0o027, rdev: 0x801 };
    let attr = fs.mknod(USER, ROOT_INO, b"dev", dev).unwrap();
    assert_eq!((attr.mode, attr.rdev, attr.uid, attr.gid), (libc::S_IFBLK | 0o640, 0x801, 1000, 1000));
    let target = vec![b't'; 4095];
    let link = fs.symlink(USER, ROOT_INO, b"link", &target).unwrap();
    assert_eq!((link.mode, link.size, link.nlink), (libc::S_IFLNK | 0o777, 4095, 1));
    assert_eq!(fs.readlink(link.ino).unwrap(), target);
    let d = fs.mknod(USER, ROOT_INO, b"dir", node(libc::S_IFDIR | 0o7777)).unwrap();
    assert_eq!((d.mode, d.nlink), (libc::S_IFDIR | 0o1755, 2));
    assert_eq!(fs.getattr(ROOT_INO).unwrap().nlink, 3);
    clean(fs.store());
}

#[test]
fn setgid_directories_pass_their_group_on() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let change = crate::fs::ops::SetAttr { gid: Some(50), mode: Some(0o2777), ..Default::default() };
    fs.setattr(ROOT, d, change).unwrap();
    let f = fs.mknod(USER, d, b"f", NewNode { mode: libc::S_IFREG | 0o2775, umask: 0, rdev: 0 }).unwrap();
    assert_eq!((f.gid, f.mode & 0o7777), (50, 0o775));
    let f = fs.mknod(USER, d, b"g", NewNode { mode: libc::S_IFREG | 0o2765, umask: 0, rdev: 0 }).unwrap();
    assert_eq!((f.gid, f.mode & 0o7777), (50, 0o2765));
    let sub = fs.mknod(USER, d, b"sub", node(libc::S_IFDIR | 0o755)).unwrap();
    assert_eq!((sub.gid, sub.mode & 0o7777), (50, 0o2755));
}

#[test]
fn create_opens_or_makes() {
    let fs = new_fs();
    let (attr, made) = fs.create(ROOT, ROOT_INO, b"f", node(0o666), false, false).unwrap();
    assert!(made);
    assert_eq!(attr.mode, libc::S_IFREG | 0o644);
    write(&fs, attr.ino, 0, b"abc");
    let (again, made) = fs.create(ROOT, ROOT_INO, b"f", node(0o666), false, false).unwrap();
    assert!(!made && again.ino == attr.ino && again.size == 3);
    let (again, _) = fs.create(ROOT, ROOT_INO, b"f", node(0o666), false, true).unwrap();
    assert_eq!(again.size, 0);
    fails(fs.create(ROOT, ROOT_INO, b"f", node(0o666), true, false), Errno::EEXIST);
    dir(&fs, ROOT_INO, "d");
    fails(fs.create(ROOT, ROOT_INO, b"d", node(0o666), false, false), Errno::EISDIR);
    fs.unlink(ROOT_INO, b"f").unwrap();
    for left in [true, true, false] {
        fs.release(attr.ino);
        assert_eq!(fs.getattr(attr.ino).is_ok(), left);
    }
    clean(fs.store());
}

#[test]
fn unlinked_files_live_while_open() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[7; 100_000]);
    fs.open(ROOT, f, false).unwrap();
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(clean(fs.store()).orphans, 1);
    fails(fs.link(f, ROOT_INO, b"back"), Errno::ENOENT);
    fs.open(ROOT, f, false).unwrap();
    write(&fs, f, 50, b"x");
    fs.fsync(f, false).unwrap();
    assert_eq!(contents(&fs, f)[50], b'x');
    fs.release(f);
    assert_eq!(fs.getattr(f).unwrap().nlink, 0);
    fs.release(f);
    fails(fs.open(ROOT, f, false), Errno::ENOENT);
    assert_eq!(fs.store().block_count(), 0);
    assert_eq!(clean(fs.store()), CheckCounts { inodes: 1, directories: 1, ..CheckCounts::default() });
}

#[test]
fn hard_links() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let d = dir(&fs, ROOT_INO, "d");
    let before = fs.getattr(f).unwrap();
    let attr = fs.link(f, d, b"g").unwrap();
    assert_eq!((attr.ino, attr.nlink), (f, 2));
    assert!(attr.ctime_ns > before.ctime_ns && attr.mtime_ns == before.mtime_ns);
    fails(fs.link(d, ROOT_INO, b"x"), Errno::EPERM);
    fails(fs.link(f, ROOT_INO, b"d"), Errno::EEXIST);
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(fs.path_of(f), None);
    fs.link(f, ROOT_INO, b"h").unwrap();
    assert_eq!(fs.path_of(f).unwrap(), b"/h");
    fs.unlink(d, b"g").unwrap();
    assert_eq!(fs.getattr(f).unwrap().nlink, 1);
    clean(fs.store());
}

#[test]
fn removing() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    let e = dir(&fs, d, "e");
    fails(fs.unlink(ROOT_INO, b"d"), Errno::EISDIR);
    fails(fs.rmdir(ROOT_INO, b"d"), Errno::ENOTEMPTY);
    fails(fs.rmdir(ROOT_INO, b"."), Errno::EINVAL);
    fails(fs.rmdir(d, b".."), Errno::ENOTEMPTY);
    fails(fs.rmdir(ROOT_INO, b"x"), Errno::ENOENT);
    file(&fs, ROOT_INO, "f");
    fails(fs.rmdir(ROOT_INO, b"f"), Errno::ENOTDIR);
    fs.open(ROOT, e, false).unwrap();
    fs.rmdir(d, b"e").unwrap();
    assert_eq!((fs.getattr(d).unwrap().nlink, fs.getattr(e).unwrap().nlink), (2, 0));
    fails(fs.mknod(ROOT, e, b"x", node(libc::S_IFREG)), Errno::ENOENT);
    fails(fs.rename(ROOT, (ROOT_INO, b"f"), (e, b"f"), crate::fs::ops::RenameMode::Replace), Errno::ENOENT);
    assert_eq!(list(&fs, e), []);
    fs.release(e);
    fails(fs.getattr(e), Errno::ENOENT);
    clean(fs.store());
}

#[test]
fn listings_resume_exactly() {
    let fs = new_fs();
    let d = dir(&fs, ROOT_INO, "d");
    for i in 0..600 {
        file(&fs, d, &format!("n{i}"));
    }
    let mut seen = Vec::new();
    let mut cookie = 0;
    let mut calls = 0;
    loop {
        let mut room = 7;
        let before = seen.len();
        fs.readdir(d, cookie, calls % 2 == 0, &mut |e| {
            assert_eq!(e.attr.is_some(), calls % 2 == 0);
            if room == 0 {
                return false;
            }
            room -= 1;
            cookie = e.cookie;
            seen.push(String::from_utf8(e.name.clone()).unwrap());
            true
        })
        .unwrap();
        if seen.len() == before {
            break;
        }
        // What is removed behind or ahead, or added, moves nothing.
        fs.unlink(d, format!("n{}", calls * 3).as_bytes()).ok();
        if calls < 5 {
            file(&fs, d, &format!("later{calls}"));
        }
        calls += 1;
    }
    assert_eq!(&seen[..3], [".", "..", "n0"]);
    assert_eq!(seen.iter().filter(|n| n.starts_with("later")).count(), 5);
    let unique: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len());
    let numbers: Vec<u32> = seen.iter().filter_map(|n| n.strip_prefix('n')?.parse().ok()).collect();
    assert!(numbers.is_sorted());
    fails(fs.readdir(file(&fs, ROOT_INO, "f"), 0, false, &mut |_| true), Errno::ENOTDIR);
    fs.readdir(d, u64::MAX, false, &mut |_| panic!("nothing is there")).unwrap();
    clean(fs.store());
}

#[test]
fn link_counts_end_at_emlink() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let mut inode =
        crate::fs::inode::Inode::decode(&fs.store.get(crate::fs::inode::inode_key(f)).unwrap().unwrap()).unwrap();
    inode.nlink = crate::fs::inode::LINK_MAX;
    fs.store().set_item(crate::fs::inode::inode_key(f), Some(inode.encode().to_vec()));
    fails(fs.link(f, ROOT_INO, b"g"), Errno::EMLINK);
}

#[test]
fn colliding_names_end_at_enospc() {
    let fs = new_fs().with_hash_mask(0);
    let d = dir(&fs, ROOT_INO, "d");
    let made = (0..100).take_while(|i| {
        let name = format!("{i:0>255}");
        match fs.mknod(ROOT, d, name.as_bytes(), node(libc::S_IFREG)) {
            Ok(_) => true,
            Err(e) => {
                assert_eq!(e.errno(), Errno::ENOSPC);
                false
            }
        }
    });
    assert_eq!(made.count(), 22);
    assert_eq!(names(&fs, d).len(), 22);
}

#[test]
fn read_only_refuses_changes_and_still_reads() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, b"abc");
    fs.store().set_read_only(true);
    fails(fs.mknod(ROOT, ROOT_INO, b"g", node(libc::S_IFREG)), Errno::EROFS);
    fails(fs.unlink(ROOT_INO, b"f"), Errno::EROFS);
    fails(fs.write(f, 0, b"x", false, false), Errno::EROFS);
    assert_eq!(contents(&fs, f), b"abc");
    fs.fsync(f, false).unwrap();
    fs.sync_all().unwrap();
}

#[test]
fn a_handle_finds_only_what_is_there() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let g = file(&fs, ROOT_INO, "g");
    let d = dir(&fs, ROOT_INO, "d");
    // known by number: it outlives its name, and goes when that is forgotten
    assert_eq!(fs.find_and_remember(f).unwrap().ino, f);
    fs.unlink(ROOT_INO, b"f").unwrap();
    fails(fs.find_and_remember(f), Errno::ENOENT);
    assert!(fs.getattr(f).is_ok());
    fs.forget(f, 1);
    // removed, but not yet given back: nobody can have it again
    fs.store().keep_reaped(true);
    fs.unlink(ROOT_INO, b"g").unwrap();
    fs.rmdir(ROOT_INO, b"d").unwrap();
    for ino in [f, g, d, 4000] {
        fails(fs.find_and_remember(ino), Errno::ENOENT);
        fails(fs.open(ROOT, ino, false), Errno::ENOENT);
    }
}
