//! Listing directories, small and large, while they change.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

use crate::support::{Mounted, can_mount, errno};

fn list(path: &Path) -> HashSet<String> {
    let mut seen = HashSet::new();
    for entry in fs::read_dir(path).unwrap() {
        assert!(seen.insert(entry.unwrap().file_name().into_string().unwrap()), "listed twice");
    }
    seen
}

#[test]
fn a_listing_follows_every_change() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let expect = |names: &[&str], what: &str| {
        for _ in 0..3 {
            assert_eq!(list(m.root()), names.iter().map(|n| n.to_string()).collect(), "{what}");
        }
    };
    expect(&[], "empty");
    fs::write(m.path("a"), "").unwrap();
    expect(&["a"], "create");
    fs::create_dir(m.path("d")).unwrap();
    expect(&["a", "d"], "mkdir");
    std::os::unix::fs::symlink("a", m.path("s")).unwrap();
    expect(&["a", "d", "s"], "symlink");
    fs::hard_link(m.path("a"), m.path("l")).unwrap();
    expect(&["a", "d", "s", "l"], "link");
    fs::rename(m.path("a"), m.path("b")).unwrap();
    expect(&["b", "d", "s", "l"], "rename");
    fs::rename(m.path("b"), m.path("d/b")).unwrap();
    expect(&["d", "s", "l"], "rename away");
    assert_eq!(list(&m.path("d")).len(), 1);
    fs::remove_file(m.path("s")).unwrap();
    expect(&["d", "l"], "unlink");
    fs::remove_file(m.path("d/b")).unwrap();
    assert!(list(&m.path("d")).is_empty());
    fs::remove_dir(m.path("d")).unwrap();
    expect(&["l"], "rmdir");
}

#[test]
fn an_unchanged_directory_is_listed_from_the_cache() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for i in 0..50 {
        fs::write(m.path(&format!("f{i}")), "").unwrap();
    }
    assert_eq!(list(m.root()).len(), 50);
    let asked = m.fs.count("readdir") + m.fs.count("readdirplus");
    for _ in 0..5 {
        assert_eq!(list(m.root()).len(), 50);
    }
    assert_eq!(m.fs.count("readdir") + m.fs.count("readdirplus"), asked);
}

#[test]
fn attributes_come_with_the_listing() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::new();
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..500 {
        fs::write(m.path(&format!("d/f{i}")), vec![0; i]).unwrap();
    }
    m.mount_again();
    let (lookups, getattrs) = (m.fs.count("lookup"), m.fs.count("getattr"));
    for entry in fs::read_dir(m.path("d")).unwrap() {
        let entry = entry.unwrap();
        let size: u64 = entry.file_name().to_str().unwrap()[1..].parse().unwrap();
        let metadata = entry.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.ino()), (size, entry.ino()));
        assert!(entry.file_type().unwrap().is_file());
    }
    assert!(m.fs.count("readdirplus") > 0);
    let asked = m.fs.count("lookup") - lookups + m.fs.count("getattr") - getattrs;
    assert!(asked < 250, "{asked} questions about 500 files");
}

#[test]
fn ten_thousand_entries_while_others_delete_and_create() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    const COUNT: usize = 10_000;
    for i in 0..COUNT {
        fs::write(m.path(&format!("f{i:05}")), "").unwrap();
    }
    assert_eq!(list(m.root()).len(), COUNT);
    std::thread::scope(|scope| {
        let deleter = scope.spawn(|| {
            for i in (1..COUNT).step_by(2) {
                fs::remove_file(m.path(&format!("f{i:05}"))).unwrap();
                if i % 10 == 1 {
                    fs::write(m.path(&format!("g{i:05}")), "").unwrap();
                }
            }
        });
        while !deleter.is_finished() {
            let seen = list(m.root());
            for i in (0..COUNT).step_by(2) {
                assert!(seen.contains(&format!("f{i:05}")), "f{i:05} was there all the time");
            }
        }
    });
    let seen = list(m.root());
    assert_eq!(seen.len(), COUNT / 2 + COUNT / 10);
    // And away with all of it, the way rm -r does: reading and deleting in turn.
    for entry in fs::read_dir(m.root()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert!(list(m.root()).is_empty());
    // files are released behind the caller's back
    m.fs.open_count_becomes(0);
    assert_eq!(m.fs.inode_count(), 1);
}

#[test]
fn a_stream_can_go_back_to_where_it_was() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    for i in 0..2000 {
        fs::write(m.path(&format!("f{i}")), "").unwrap();
    }
    let path = crate::support::c_path(m.root());
    // SAFETY: one directory stream, used by this thread only and closed at the end; names are copied at once.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let mut names = Vec::new();
        let mut positions = Vec::new();
        loop {
            positions.push(libc::telldir(stream));
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            names.push(std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned());
        }
        assert_eq!(names.len(), 2002);
        assert!(names.contains(&c".".into()) && names.contains(&c"..".into()));
        for at in [1500, 3, 1999, 0] {
            libc::seekdir(stream, positions[at]);
            let entry = libc::readdir(stream);
            assert_eq!(std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()), names[at].as_c_str());
        }
        fs::write(m.path("late"), "").unwrap();
        libc::rewinddir(stream);
        let mut count = 0;
        while !libc::readdir(stream).is_null() {
            count += 1;
        }
        assert_eq!(count, 2003);
        libc::closedir(stream);
    }
}

#[test]
fn an_inode_that_cannot_be_read_hides_no_other_name() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::new();
    let names: HashSet<String> = (0..300).map(|i| format!("f{i}")).collect();
    for name in &names {
        fs::write(m.path(name), "contents").unwrap();
    }
    fs::create_dir(m.path("dir")).unwrap();
    fs::hard_link(m.path("f7"), m.path("other")).unwrap();
    let all: HashSet<String> = names.into_iter().chain(["dir".to_owned(), "other".to_owned()]).collect();
    m.mount_again();
    // in use by its other name, with what the kernel knows of it
    let used = fs::File::open(m.path("other")).unwrap();
    m.fs.unreadable.lock().unwrap().extend([b"f7".to_vec(), b"f130".to_vec(), b"dir".to_vec()]);
    for _ in 0..2 {
        assert_eq!(list(m.root()), all);
        assert_eq!(used.metadata().unwrap().len(), 8, "its attributes are not made up");
    }
    assert!(m.fs.count("readdirplus") > 0);
    for entry in fs::read_dir(m.root()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        assert_eq!(entry.file_type().unwrap().is_dir(), name == "dir");
        let unreadable = ["f7", "f130", "dir"].contains(&&*name);
        assert_eq!(errno(entry.metadata()), if unreadable { libc::EIO } else { 0 }, "{name}");
    }
    // once it can be read again
    m.fs.unreadable.lock().unwrap().clear();
    assert_eq!(fs::metadata(m.path("f7")).unwrap().ino(), used.metadata().unwrap().ino());
    assert_eq!(fs::read(m.path("f130")).unwrap(), b"contents");
    assert!(list(&m.path("dir")).is_empty());
    m.forget("f7");
    assert_eq!(list(m.root()), all);
}

#[test]
fn names_before_an_error_are_listed() {
    if !can_mount() {
        return;
    }
    let mut m = Mounted::new();
    for name in ["a", "b", "c"] {
        fs::write(m.path(name), "").unwrap();
    }
    m.mount_again();
    *m.fs.listed_up_to.lock().unwrap() = Some(b"c".to_vec());
    let mut listed = fs::read_dir(m.root()).unwrap();
    let mut next = || listed.next().unwrap().map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!((next().unwrap(), next().unwrap()), ("a".to_owned(), "b".to_owned()));
    assert_eq!(errno(next()), libc::EIO);
    *m.fs.listed_up_to.lock().unwrap() = None;
    assert_eq!(list(m.root()).len(), 3);
}
