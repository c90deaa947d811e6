//! Create, link, rename, symlink, unlink; and that `stat` is right after each, though attributes are cached for long.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;

use crate::support::{Mounted, c_path, can_mount, check, errno};

fn rename2(from: &Path, to: &Path, flags: u32) -> std::io::Result<i64> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: live, terminated strings.
    check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) } as i64)
}

#[test]
fn create_and_exclusive_create() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "one").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"one");
    let again = OpenOptions::new().write(true).create_new(true).open(m.path("a"));
    assert_eq!(errno(again), libc::EEXIST);
    // Without O_EXCL an existing file is opened, and O_TRUNC empties it.
    let mut f = OpenOptions::new().write(true).create(true).truncate(false).open(m.path("a")).unwrap();
    f.write_all(b"O").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"One");
    drop(File::create(m.path("a")).unwrap());
    assert_eq!(fs::metadata(m.path("a")).unwrap().len(), 0);
    assert_eq!(fs::read(m.path("a")).unwrap(), b"");
}

#[test]
fn names_that_do_not_exist_are_remembered_until_they_do() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for _ in 0..10 {
        assert_eq!(errno(fs::metadata(m.path("absent"))), libc::ENOENT);
    }
    assert_eq!(m.fs.count("lookup"), 1, "one question is enough");
    fs::write(m.path("absent"), "now").unwrap();
    assert_eq!(fs::read(m.path("absent")).unwrap(), b"now");
    // By rename, link, mkdir and symlink as well.
    for name in ["r", "l", "d", "s"] {
        assert_eq!(errno(fs::metadata(m.path(name))), libc::ENOENT);
    }
    fs::hard_link(m.path("absent"), m.path("l")).unwrap();
    fs::rename(m.path("absent"), m.path("r")).unwrap();
    fs::create_dir(m.path("d")).unwrap();
    symlink("r", m.path("s")).unwrap();
    for name in ["r", "l", "d", "s"] {
        fs::metadata(m.path(name)).unwrap();
    }
    assert_eq!(errno(fs::metadata(m.path("absent"))), libc::ENOENT);
}

#[test]
fn links_and_their_counts() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    assert_eq!(fs::metadata(m.path("a")).unwrap().nlink(), 1);
    fs::hard_link(m.path("a"), m.path("b")).unwrap();
    let (a, b) = (fs::metadata(m.path("a")).unwrap(), fs::metadata(m.path("b")).unwrap());
    assert_eq!((a.nlink(), b.nlink(), a.ino()), (2, 2, b.ino()));
    fs::remove_file(m.path("a")).unwrap();
    assert_eq!(fs::metadata(m.path("b")).unwrap().nlink(), 1);
    let before = fs::metadata(m.root()).unwrap();
    fs::create_dir(m.path("d")).unwrap();
    let after = fs::metadata(m.root()).unwrap();
    assert_eq!(after.nlink(), before.nlink() + 1);
    assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
    assert_eq!(errno(fs::hard_link(m.path("d"), m.path("e"))), libc::EPERM);
    fs::remove_dir(m.path("d")).unwrap();
    assert_eq!(fs::metadata(m.root()).unwrap().nlink(), before.nlink());
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "a").unwrap();
    fs::write(m.path("b"), "b").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/in"), "in").unwrap();

    assert_eq!(errno(rename2(&m.path("a"), &m.path("b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename2(&m.path("a"), &m.path("b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"b");
    assert_eq!(fs::read(m.path("b")).unwrap(), b"a");
    // A file against a directory, and the directory's `..` and counts follow.
    fs::create_dir(m.path("e")).unwrap();
    fs::write(m.path("e/f"), "f").unwrap();
    rename2(&m.path("d"), &m.path("e/f"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(m.path("d")).unwrap(), b"f");
    assert_eq!(fs::read(m.path("e/f/in")).unwrap(), b"in");
    assert_eq!(fs::metadata(m.path("e/f/..")).unwrap().ino(), fs::metadata(m.path("e")).unwrap().ino());
    assert_eq!(fs::metadata(m.path("e")).unwrap().nlink(), 3);

    assert_eq!(errno(rename2(&m.path("a"), &m.path("b"), libc::RENAME_WHITEOUT)), libc::EINVAL);
    assert_eq!(errno(rename2(&m.path("no"), &m.path("b"), libc::RENAME_EXCHANGE)), libc::ENOENT);

    // Replacing drops the target's link, which an open file shows.
    let open = File::open(m.path("b")).unwrap();
    let before = fs::metadata(m.path("a")).unwrap();
    fs::rename(m.path("a"), m.path("b")).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    let after = fs::metadata(m.path("b")).unwrap();
    assert_eq!(after.ino(), before.ino());
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!(errno(fs::rename(m.path("b"), m.path("e"))), libc::EISDIR);
    assert_eq!(errno(fs::rename(m.path("e/f"), m.path("b"))), libc::ENOTDIR);
}

#[test]
fn symbolic_links_up_to_the_longest() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("t"), "t").unwrap();
    symlink("t", m.path("s")).unwrap();
    assert_eq!(fs::read(m.path("s")).unwrap(), b"t");
    let long = "x/".repeat(2047) + "x";
    assert_eq!(long.len(), 4095);
    symlink(&long, m.path("long")).unwrap();
    for _ in 0..3 {
        assert_eq!(fs::read_link(m.path("long")).unwrap(), Path::new(&long));
    }
    assert_eq!(fs::symlink_metadata(m.path("long")).unwrap().len(), 4095);
    assert_eq!(m.fs.count("readlink"), 2, "targets are cached");
    symlink("loop", m.path("loop")).unwrap();
    assert_eq!(errno(fs::read(m.path("loop"))), libc::ELOOP);
}

#[test]
fn names_up_to_the_longest_and_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let longest = "n".repeat(255);
    fs::write(m.path(&longest), "x").unwrap();
    assert_eq!(fs::read_dir(m.root()).unwrap().next().unwrap().unwrap().file_name(), OsStr::new(&longest));
    assert_eq!(errno(fs::write(m.path(&"n".repeat(256)), "x")), libc::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(m.path(&"n".repeat(256)))), libc::ENAMETOOLONG);
    let odd = m.root().join(OsStr::from_bytes(b"\xff\x01 \n\\"));
    fs::write(&odd, "y").unwrap();
    assert_eq!(fs::read(&odd).unwrap(), b"y");
    assert_eq!(fs::read_dir(m.root()).unwrap().count(), 2);
}

#[test]
fn an_unlinked_open_file_lives_until_closed() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let mut f = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("a")).unwrap();
    let second = File::open(m.path("a")).unwrap();
    fs::remove_file(m.path("a")).unwrap();
    f.write_all(b"still here").unwrap();
    assert_eq!(f.metadata().unwrap().nlink(), 0);
    drop(f);
    let mut text = String::new();
    (&second).read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(m.fs.inode_count(), 2);
    drop(second);
    m.fs.open_count_becomes(0);
    assert_eq!(m.fs.inode_count(), 1);
}

#[test]
fn device_nodes_fifos_and_sockets() {
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    let m = Mounted::new();
    for (name, mode, dev) in [
        ("c", libc::S_IFCHR, libc::makedev(1, 3)),
        ("b", libc::S_IFBLK, libc::makedev(4095, 0xfffff)),
        ("c2", libc::S_IFCHR, libc::makedev(250, 70_000)),
        ("p", libc::S_IFIFO, 0),
        ("s", libc::S_IFSOCK, 0),
        ("f", libc::S_IFREG, 0),
    ] {
        let path = c_path(&m.path(name));
        // SAFETY: a live, terminated string and integers.
        check(unsafe { libc::mknod(path.as_ptr(), mode | 0o600, dev) } as i64).unwrap();
        let metadata = fs::metadata(m.path(name)).unwrap();
        assert_eq!(metadata.mode() & libc::S_IFMT, mode, "{name}");
        assert_eq!(metadata.rdev(), dev, "{name}");
    }
    // The character device works: the mount is not nodev.
    fs::write(m.path("c"), "into the void").unwrap();
}

#[test]
fn unnamed_temporary_files_are_refused_as_unsupported() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for _ in 0..2 {
        let f = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(m.root());
        assert_eq!(errno(f), libc::EOPNOTSUPP);
    }
}

#[test]
fn file_handles_find_the_file_again() {
    if !can_mount() || !crate::support::is_root() {
        return;
    }
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; 128],
    }
    let mut m = Mounted::new();
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/a"), "by handle").unwrap();
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let mut mount_id = 0i32;
    let path = c_path(&m.path("d/a"));
    // SAFETY: the handle has room for the bytes it says.
    check(unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &raw mut handle, &raw mut mount_id, 0)
    })
    .unwrap();
    // The kernel knows nothing of the inode then, and has to ask by number.
    m.mount_again();
    let root = File::open(m.root()).unwrap();
    let open = |h: &mut Handle| {
        use std::os::fd::{AsRawFd, FromRawFd};
        // SAFETY: as above; the new descriptor is owned by nobody else.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), h as *mut Handle, libc::O_RDONLY)
        })?;
        // SAFETY: as above.
        Ok(unsafe { File::from_raw_fd(fd as i32) })
    };
    let mut text = String::new();
    open(&mut handle).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "by handle");
    fs::remove_file(m.path("d/a")).unwrap();
    m.fs.open_count_becomes(1); // `root`
    assert_eq!(errno(open(&mut handle)), libc::ESTALE);
}
