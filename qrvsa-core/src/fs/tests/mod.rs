//! Tests of the filesystem on the in-memory store: by topic, against a plain model, and across crashes.

mod access_times;
mod attributes;
mod concurrent;
mod contents;
mod crash;
mod damage;
mod large;
mod model;
mod namespace;
mod random;
mod rename;
mod space;
mod xattrs;

use std::sync::Arc;

use nix::errno::Errno;

use crate::error::Result;
use crate::fs::check::{CheckCounts, check};
use crate::fs::mem_store::MemStore;
use crate::fs::ops::{Attr, Caller, DirEntry, Ino, NewNode, Operations, ROOT_INO};
use crate::fs::{FileSystem, FormatOptions, Options};

pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };
pub(super) const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };

pub(super) fn new_fs() -> FileSystem<MemStore> {
    let store = Arc::new(MemStore::new());
    FileSystem::format(&*store, FormatOptions { record_size: 16384, ..FormatOptions::default() }).unwrap();
    FileSystem::open(store, Options::default()).unwrap()
}

pub(super) fn node(mode: u32) -> NewNode {
    NewNode { mode, umask: 0o022, rdev: 0 }
}

pub(super) fn file(fs: &FileSystem<MemStore>, dir: Ino, name: &str) -> Ino {
    fs.mknod(ROOT, dir, name.as_bytes(), node(libc::S_IFREG | 0o644)).unwrap().ino
}

pub(super) fn dir(fs: &FileSystem<MemStore>, parent: Ino, name: &str) -> Ino {
    fs.mknod(ROOT, parent, name.as_bytes(), node(libc::S_IFDIR | 0o755)).unwrap().ino
}

pub(super) fn names(fs: &FileSystem<MemStore>, ino: Ino) -> Vec<String> {
    list(fs, ino).into_iter().map(|e| String::from_utf8(e.name).unwrap()).filter(|n| n != "." && n != "..").collect()
}

pub(super) fn list(fs: &FileSystem<MemStore>, ino: Ino) -> Vec<DirEntry> {
    let mut out = Vec::new();
    fs.readdir(ino, 0, true, &mut |e| {
        out.push(e.clone());
        true
    })
    .unwrap();
    out
}

pub(super) fn contents(fs: &FileSystem<MemStore>, ino: Ino) -> Vec<u8> {
    let size = fs.getattr(ino).unwrap().size as usize;
    let mut buf = vec![0xee; size + 10];
    let len = fs.read(ino, 0, &mut buf).unwrap();
    assert_eq!(len, size);
    buf.truncate(len);
    buf
}

pub(super) fn write(fs: &FileSystem<MemStore>, ino: Ino, offset: u64, data: &[u8]) {
    assert_eq!(fs.write(ino, offset, data, false, false).unwrap(), data.len());
}

pub(super) fn stat(fs: &FileSystem<MemStore>, path: &str) -> Attr {
    fs.getattr(fs.resolve(path.as_bytes()).unwrap()).unwrap()
}

#[track_caller]
pub(super) fn fails<T: std::fmt::Debug>(result: Result<T>, errno: Errno) {
    assert_eq!(result.unwrap_err().errno(), errno);
}

/// Checks the filesystem and fails on any problem.
#[track_caller]
pub(super) fn clean(store: &MemStore) -> CheckCounts {
    let mut problems = Vec::new();
    let counts = check(store, &mut |p| problems.push(p)).unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
    counts
}

#[test]
fn format_and_open() {
    let store = Arc::new(MemStore::new());
    assert!(FileSystem::open(store.clone(), Options::default()).is_err());
    assert!(FileSystem::format(&*store, FormatOptions { record_size: 5000, ..FormatOptions::default() }).is_err());
    FileSystem::format(&*store, FormatOptions { root_mode: 0o1777, uid: 4, gid: 5, ..FormatOptions::default() })
        .unwrap();
    assert!(FileSystem::format(&*store, FormatOptions::default()).is_err());
    let fs = FileSystem::open(store.clone(), Options::default()).unwrap();
    let root = fs.getattr(ROOT_INO).unwrap();
    assert_eq!((root.mode, root.nlink, root.uid, root.gid), (libc::S_IFDIR | 0o1777, 2, 4, 5));
    assert_eq!(fs.record_size(), 128 * 1024);
    fs.set_record_size(1 << 20).unwrap();
    assert!(fs.set_record_size(1 << 21).is_err());
    drop(fs);
    assert_eq!(FileSystem::open(store.clone(), Options::default()).unwrap().record_size(), 1 << 20);
    clean(&store);
}
