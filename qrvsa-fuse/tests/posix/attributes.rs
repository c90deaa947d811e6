//! Modes, times, extended attributes and ACLs, and that what is shown is fresh.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use crate::support::acl::{self, Entry};
use crate::support::{
    Mounted, as_user, c_path, can_mount, check, errno, get_xattr, is_root, list_xattr, remove_xattr, set_xattr,
};

fn utimens(path: &Path, times: [(i64, i64); 2]) -> std::io::Result<i64> {
    let path = c_path(path);
    let times = times.map(|(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec });
    // SAFETY: a live, terminated string and two live times.
    check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) } as i64)
}

#[test]
fn times_to_the_nanosecond_and_before_1970() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "").unwrap();
    for times in [
        [(1, 2), (3, 4)],
        [(-1, 500_000_000), (-2, 1)],
        [(-1_000_000_000, 0), (-1, 999_999_999)],
        [(0, 0), (4_000_000_000, 123_456_789)],
    ] {
        utimens(&m.path("a"), times).unwrap();
        // From the reply, and asked again after the second it may be cached.
        for wait in [0, 1100] {
            std::thread::sleep(std::time::Duration::from_millis(wait));
            let md = fs::metadata(m.path("a")).unwrap();
            assert_eq!([(md.atime(), md.atime_nsec()), (md.mtime(), md.mtime_nsec())], times);
        }
    }
    let before = std::time::SystemTime::now();
    utimens(&m.path("a"), [(7, 0), (0, libc::UTIME_NOW)]).unwrap();
    let md = fs::metadata(m.path("a")).unwrap();
    assert_eq!(md.atime(), 7);
    assert!(md.modified().unwrap() >= before);
    utimens(&m.path("a"), [(0, libc::UTIME_OMIT), (9, 0)]).unwrap();
    let md = fs::metadata(m.path("a")).unwrap();
    assert_eq!((md.atime(), md.mtime()), (7, 9));
}

#[test]
fn times_out_of_range_are_the_nearest_in_range() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "").unwrap();
    for times in [[(i64::MIN, 0), (i64::MAX, 999_999_999)], [(i64::MIN + 1, 999_999_999), (i64::MAX - 1, 0)]] {
        utimens(&m.path("a"), times).unwrap();
        let md = fs::metadata(m.path("a")).unwrap();
        assert_eq!((md.atime(), md.mtime()), (-9_223_372_037, 9_223_372_036));
    }
}

#[test]
fn stat_is_fresh_after_every_change() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    fs::write(&path, "12345").unwrap();
    let mut last = fs::metadata(&path).unwrap();
    let mut changed = |what: &str, content_too: bool| {
        let now = fs::metadata(&path).unwrap();
        assert!((now.ctime(), now.ctime_nsec()) > (last.ctime(), last.ctime_nsec()), "{what}: ctime");
        if content_too {
            assert!((now.mtime(), now.mtime_nsec()) > (last.mtime(), last.mtime_nsec()), "{what}: mtime");
        }
        last = now.clone();
        now
    };
    let f = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    f.write_at(b"abc", 1).unwrap();
    assert_eq!(changed("overwrite", true).len(), 5);
    f.write_at(b"abc", 10_000).unwrap();
    let md = changed("extend", true);
    assert_eq!((md.len(), md.blocks()), (10_003, 16));
    f.set_len(7).unwrap();
    assert_eq!(changed("truncate", true).len(), 7);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(changed("chmod", false).mode() & 0o7777, 0o640);
    chown(&path, Some(12), Some(34)).unwrap();
    let md = changed("chown", false);
    assert_eq!((md.uid(), md.gid()), (12, 34));
    fs::hard_link(&path, m.path("b")).unwrap();
    assert_eq!(changed("link", false).nlink(), 2);
    fs::remove_file(m.path("b")).unwrap();
    assert_eq!(changed("unlink", false).nlink(), 1);
    set_xattr(&path, "user.a", b"1", 0).unwrap();
    changed("setxattr", false);
    remove_xattr(&path, "user.a").unwrap();
    changed("removexattr", false);
    fs::rename(&path, m.path("c")).unwrap();
    fs::rename(m.path("c"), &path).unwrap();
    changed("rename", false);
    crate::support::fallocate(&f, 0, 0, 50_000).unwrap();
    assert_eq!(changed("fallocate", true).len(), 50_000);
    drop(File::create(&path).unwrap());
    assert_eq!(changed("open with O_TRUNC", true).len(), 0);
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    direct.write_all_at(&qrvsa_core::buf::AlignedBuf::zeroed(4096), 0).unwrap();
    assert_eq!(changed("direct write", true).len(), 4096);
    // Reading moves the access time only.
    m.forget("a");
    let before = fs::metadata(&path).unwrap();
    File::open(&path).unwrap().read_exact(&mut [0; 10]).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!((after.atime(), after.atime_nsec()) > (before.atime(), before.atime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

#[test]
fn extended_attributes() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    fs::write(&path, "").unwrap();
    assert_eq!(errno(get_xattr(&path, "user.a")), libc::ENODATA);
    set_xattr(&path, "user.a", b"1", libc::XATTR_CREATE).unwrap();
    assert_eq!(errno(set_xattr(&path, "user.a", b"2", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(set_xattr(&path, "user.b", b"2", libc::XATTR_REPLACE)), libc::ENODATA);
    set_xattr(&path, "user.a", b"two", libc::XATTR_REPLACE).unwrap();
    assert_eq!(get_xattr(&path, "user.a").unwrap(), b"two");
    set_xattr(&path, "user.empty", b"", 0).unwrap();
    assert_eq!(get_xattr(&path, "user.empty").unwrap(), b"");
    let large = vec![7; 65536];
    set_xattr(&path, "user.large", &large, 0).unwrap();
    assert!(get_xattr(&path, "user.large").unwrap() == large);
    assert_eq!(list_xattr(&path), ["user.a", "user.empty", "user.large"]);
    let (p, n) = (c_path(&path), c"user.large");
    let mut small = [0u8; 10];
    // SAFETY: live, terminated strings and a buffer of the length given.
    let result = unsafe { libc::lgetxattr(p.as_ptr(), n.as_ptr(), small.as_mut_ptr().cast(), 10) };
    assert_eq!(errno(check(result as i64)), libc::ERANGE);
    // SAFETY: as above; length 0 asks for the size.
    let result = unsafe { libc::lgetxattr(p.as_ptr(), n.as_ptr(), std::ptr::null_mut(), 0) };
    assert_eq!(result, 65536);
    remove_xattr(&path, "user.a").unwrap();
    assert_eq!(errno(remove_xattr(&path, "user.a")), libc::ENODATA);
}

fn entry(tag: u16, perm: u16, id: u32) -> Entry {
    Entry { tag, perm, id }
}

const NO_ID: u32 = u32::MAX;

#[test]
fn access_lists_decide_and_follow_the_mode() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let path = m.path("a");
    fs::write(&path, "secret").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let read = |uid| as_user(uid, uid, || errno(fs::read(&path)));
    assert_eq!((read(1000), read(1001)), (libc::EACCES, libc::EACCES));
    let list = [
        entry(acl::USER_OBJ, 6, NO_ID),
        entry(acl::USER, 4, 1000),
        entry(acl::GROUP_OBJ, 0, NO_ID),
        entry(acl::MASK, 4, NO_ID),
        entry(acl::OTHER, 0, NO_ID),
    ];
    set_xattr(&path, "system.posix_acl_access", &acl::encode(&list), 0).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640, "the group bits show the mask");
    assert_eq!((read(1000), read(1001)), (0, libc::EACCES));
    // chmod changes the mask, at once.
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_eq!((read(1000), read(1001)), (libc::EACCES, libc::EACCES));
    let now = acl::decode(&get_xattr(&path, "system.posix_acl_access").unwrap()).unwrap();
    assert_eq!(now.iter().find(|e| e.tag == acl::MASK).unwrap().perm, 0);
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert_eq!((read(1000), read(1001)), (0, 0));
    remove_xattr(&path, "system.posix_acl_access").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read(1000), libc::EACCES);
    // A list that says no more than the mode becomes the mode.
    let plain = [entry(acl::USER_OBJ, 6, NO_ID), entry(acl::GROUP_OBJ, 4, NO_ID), entry(acl::OTHER, 4, NO_ID)];
    set_xattr(&path, "system.posix_acl_access", &acl::encode(&plain), 0).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    assert_eq!(read(1000), 0);
}

#[test]
fn default_access_lists_are_inherited_instead_of_the_umask() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    let make = |name: &str, mode: u32| {
        OpenOptions::new().write(true).create_new(true).mode(mode).open(m.path(name)).unwrap();
        fs::metadata(m.path(name)).unwrap().mode() & 0o777
    };
    let default = [
        entry(acl::USER_OBJ, 7, NO_ID),
        entry(acl::USER, 7, 1000),
        entry(acl::GROUP_OBJ, 5, NO_ID),
        entry(acl::MASK, 7, NO_ID),
        entry(acl::OTHER, 5, NO_ID),
    ];
    let (plain, inherited) = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            // SAFETY: gives this thread a umask of its own, then sets it; the thread ends here.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_FS), 0);
                libc::umask(0o027);
            }
            let plain = make("plain", 0o666);
            fs::create_dir(m.path("d")).unwrap();
            fs::set_permissions(m.path("d"), Permissions::from_mode(0o755)).unwrap();
            set_xattr(&m.path("d"), "system.posix_acl_default", &acl::encode(&default), 0).unwrap();
            let inherited = make("d/file", 0o666);
            fs::create_dir(m.path("d/sub")).unwrap();
            (plain, inherited)
        });
        work.join().unwrap()
    });
    assert_eq!(plain, 0o640, "the umask applies");
    assert_eq!(inherited, 0o664, "the default list applies and the umask does not");
    let list = acl::decode(&get_xattr(&m.path("d/file"), "system.posix_acl_access").unwrap()).unwrap();
    assert!(list.contains(&entry(acl::USER, 7, 1000)) && list.contains(&entry(acl::MASK, 6, NO_ID)));
    assert_eq!(as_user(1000, 1000, || errno(OpenOptions::new().append(true).open(m.path("d/file")))), 0);
    assert_eq!(
        get_xattr(&m.path("d/sub"), "system.posix_acl_default").unwrap(),
        acl::encode(&default),
        "directories hand it on"
    );
}

#[test]
fn the_kernel_checks_permissions() {
    if !can_mount() || !is_root() {
        return;
    }
    let m = Mounted::new();
    fs::create_dir(m.path("tmp")).unwrap();
    fs::set_permissions(m.path("tmp"), Permissions::from_mode(0o1777)).unwrap();
    fs::create_dir(m.path("shared")).unwrap();
    chown(m.path("shared"), None, Some(500)).unwrap();
    fs::set_permissions(m.path("shared"), Permissions::from_mode(0o2777)).unwrap();
    as_user(1000, 1000, || {
        fs::write(m.path("tmp/mine"), "x").unwrap();
        assert_eq!(errno(fs::write(m.path("not here"), "x")), libc::EACCES);
        fs::write(m.path("shared/f"), "x").unwrap();
        fs::create_dir(m.path("shared/d")).unwrap();
    });
    as_user(1001, 1001, || {
        assert_eq!(errno(fs::remove_file(m.path("tmp/mine"))), libc::EPERM, "sticky");
        assert_eq!(errno(fs::set_permissions(m.path("tmp/mine"), Permissions::from_mode(0o777))), libc::EPERM);
        assert_eq!(errno(OpenOptions::new().append(true).open(m.path("tmp/mine"))), libc::EACCES);
    });
    let mine = fs::metadata(m.path("tmp/mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (1000, 1000));
    assert_eq!(fs::metadata(m.path("shared/f")).unwrap().gid(), 500);
    let sub = fs::metadata(m.path("shared/d")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & libc::S_ISGID), (500, libc::S_ISGID));
}

#[test]
fn statfs_tells_what_the_filesystem_says() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let s = nix::sys::statvfs::statvfs(m.root()).unwrap();
    assert_eq!((s.fragment_size(), s.block_size()), (4096, 4096));
    assert_eq!((s.blocks(), s.blocks_free(), s.blocks_available()), (1 << 20, 1 << 19, (1 << 19) - 100));
    assert_eq!((s.files(), s.name_max()), (1 << 30, 255));
}

#[test]
fn unknown_ioctls_are_no_error_of_the_mount() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let mut f = File::create(m.path("a")).unwrap();
    let mut value = 0u32;
    // SAFETY: FS_IOC_GETFLAGS writes one integer, TCGETS fails before it writes.
    let results = unsafe {
        [
            libc::ioctl(f.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut value),
            libc::ioctl(f.as_raw_fd(), libc::TCGETS, &raw mut value),
        ]
        .map(|r| errno(check(r as i64)))
    };
    assert!(results.iter().all(|e| [libc::ENOTTY, libc::EOPNOTSUPP].contains(e)), "{results:?}");
    f.write_all(b"x").unwrap();
}
