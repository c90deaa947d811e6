//! Files that serve as disks below the mount: who may write them, and what the kernel remembers of them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qrvsa_core::fs::ops::Operations;
use qrvsa_fuse::Unmount;

use crate::support::{Mounted, can_mount, errno};

/// The kernel tells of a close a moment later.
fn wait_for_writers(m: &Mounted, wanted: u64) {
    let start = Instant::now();
    while m.fs.writers.load(Ordering::SeqCst) != wanted {
        assert!(start.elapsed() < Duration::from_secs(60), "{} writers", m.fs.writers.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn opens_that_may_write_are_counted() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    let made = File::create(m.path("a")).unwrap();
    assert_eq!(m.fs.writers.load(Ordering::SeqCst), 1);
    let both = OpenOptions::new().read(true).write(true).open(m.path("a")).unwrap();
    let reader = File::open(m.path("a")).unwrap();
    assert_eq!(m.fs.writers.load(Ordering::SeqCst), 2, "a reader is none");
    drop((made, both));
    wait_for_writers(&m, 0);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(m.path("a"))), libc::EEXIST);
    fs::write(m.path("b"), "x").unwrap();
    wait_for_writers(&m, 0);
    // what nobody closes any more ends with the mount
    let left = OpenOptions::new().append(true).open(m.path("a")).unwrap();
    assert_eq!(m.fs.writers.load(Ordering::SeqCst), 1);
    drop(reader);
    if m.mount.unmount(Unmount::Force).is_ok() {
        assert_eq!(m.fs.writers.load(Ordering::SeqCst), 0);
    }
    drop(left);
}

#[test]
fn a_file_that_serves_as_a_disk_is_read_as_it_is() {
    if !can_mount() {
        return;
    }
    let m = Mounted::new();
    fs::write(m.path("disk"), [1; 8192]).unwrap();
    assert_eq!(fs::read(m.path("disk")).unwrap(), [1; 8192], "now in the cache of the kernel");
    let ino = fs::metadata(m.path("disk")).unwrap().ino();
    wait_for_writers(&m, 0);
    m.fs.disk.store(ino, Ordering::SeqCst);
    m.fs.last_disk.store(ino, Ordering::SeqCst);
    let tell = m.fs.tell.lock().unwrap().clone().unwrap();
    tell(ino);
    for n in 2..20_u8 {
        m.fs.write(ino, 0, &vec![n; 4096 * usize::from(n)], false, false).unwrap();
        assert_eq!(fs::metadata(m.path("disk")).unwrap().len(), 4096 * u64::from(n), "attributes are those of now");
        let seen = fs::read(m.path("disk")).unwrap();
        assert_eq!(seen, vec![n; 4096 * usize::from(n)]);
    }
    let reader = File::open(m.path("disk")).unwrap();
    m.fs.write(ino, 0, b"new", false, false).unwrap();
    let mut word = [0; 3];
    reader.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(&word, b"new", "an open reader");
    for options in [OpenOptions::new().write(true), OpenOptions::new().append(true).create(true)] {
        assert_eq!(errno(options.open(m.path("disk"))), libc::ETXTBSY);
    }
    assert_eq!(errno(File::create(m.path("disk"))), libc::ETXTBSY);
    assert_eq!(m.fs.writers.load(Ordering::SeqCst), 0);
    assert_eq!(fs::read(m.path("disk")).unwrap().len(), 4096 * 19, "nothing was cut off");

    // what was cached before is not believed afterwards
    m.fs.disk.store(0, Ordering::SeqCst);
    m.fs.write(ino, 0, b"end", false, false).unwrap();
    assert_eq!(&fs::read(m.path("disk")).unwrap()[..3], b"end");
    drop(OpenOptions::new().write(true).open(m.path("disk")).unwrap());
    wait_for_writers(&m, 0);
}
