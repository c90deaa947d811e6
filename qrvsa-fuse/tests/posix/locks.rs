//! Locks are the kernel's own: whole-file, by process and by open file.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::time::Instant;

use crate::support::{Mounted, PATIENCE, can_mount, check, errno};

fn open(m: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).open(m.path("a")).unwrap()
}

fn flock(f: &File, how: i32) -> i32 {
    // SAFETY: an open descriptor and an integer.
    errno(check(unsafe { libc::flock(f.as_raw_fd(), how | libc::LOCK_NB) } as i64))
}

fn record_lock(f: &File, command: i32, kind: i32, start: i64, len: i64) -> i32 {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: an open descriptor and a live structure.
    errno(check(unsafe { libc::fcntl(f.as_raw_fd(), command, &raw mut lock) } as i64))
}

/// Takes a lock that was given back. A program that another test was just starting may have inherited it until it runs.
fn until_free(mut lock: impl FnMut() -> i32) {
    let start = Instant::now();
    loop {
        match lock() {
            libc::EWOULDBLOCK if start.elapsed() < PATIENCE => std::thread::yield_now(),
            other => return assert_eq!(other, 0),
        }
    }
}

#[test]
fn whole_file_locks() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    let (a, b) = (open(&m), open(&m));
    assert_eq!(flock(&a, libc::LOCK_EX), 0);
    assert_eq!(flock(&b, libc::LOCK_SH), libc::EWOULDBLOCK);
    assert_eq!(flock(&a, libc::LOCK_SH), 0);
    assert_eq!(flock(&b, libc::LOCK_SH), 0);
    assert_eq!(flock(&b, libc::LOCK_EX), libc::EWOULDBLOCK);
    drop(a);
    until_free(|| flock(&b, libc::LOCK_EX));
}

#[test]
fn locks_of_open_files_by_range() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "0123456789").unwrap();
    let (a, b) = (open(&m), open(&m));
    assert_eq!(record_lock(&a, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 5), 0);
    assert_eq!(record_lock(&b, libc::F_OFD_SETLK, libc::F_RDLCK, 4, 2), libc::EAGAIN);
    assert_eq!(record_lock(&b, libc::F_OFD_SETLK, libc::F_WRLCK, 5, 5), 0);
    assert_eq!(record_lock(&a, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0), 0);
    assert_eq!(record_lock(&b, libc::F_OFD_SETLK, libc::F_RDLCK, 4, 2), 0);
}

#[test]
fn locks_of_processes_end_with_any_close() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("a"), "x").unwrap();
    let (a, b, other) = (open(&m), open(&m), open(&m));
    assert_eq!(record_lock(&a, libc::F_SETLK, libc::F_WRLCK, 0, 0), 0);
    assert_eq!(record_lock(&b, libc::F_SETLK, libc::F_WRLCK, 0, 0), 0, "the same process");
    assert_eq!(record_lock(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0), libc::EAGAIN);
    drop(b);
    assert_eq!(record_lock(&other, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0), 0);
}
