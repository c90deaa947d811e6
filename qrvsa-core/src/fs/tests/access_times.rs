//! Access times as the mount and the open file want them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::fs::AtimeMode;
use crate::fs::ops::MountAtime;

/// What the mount of the filesystem wants, to be changed.
fn mounted(fs: &FileSystem<MemStore>) -> Arc<Mutex<MountAtime>> {
    let wants = Arc::new(Mutex::new(MountAtime::default()));
    fs.on_read({
        let wants = wants.clone();
        Arc::new(move || *wants.lock())
    });
    wants
}

/// Whether reading a file, following a link and listing a directory move access times that are due.
fn moves(fs: &FileSystem<MemStore>) -> [bool; 3] {
    let atime = |ino| fs.getattr(ino).unwrap().atime_ns;
    let inos = ["f", "l", "d"].map(|name| fs.resolve(name.as_bytes()).unwrap());
    fs.store().advance_ns(25 * 3600 * 1_000_000_000);
    let before = inos.map(atime);
    fs.read(inos[0], 0, &mut [0; 4]).unwrap();
    fs.readlink(inos[1]).unwrap();
    names(fs, inos[2]);
    let after = inos.map(atime);
    [0, 1, 2].map(|i| after[i] > before[i])
}

fn three() -> FileSystem<MemStore> {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, b"x");
    fs.symlink(ROOT, ROOT_INO, b"l", b"f").unwrap();
    dir(&fs, ROOT_INO, "d");
    fs
}

#[test]
fn the_mount_decides_when_it_says_something() {
    let fs = three();
    let wants = mounted(&fs);
    assert_eq!(moves(&fs), [true; 3]);
    *wants.lock() = MountAtime { mode: Some(AtimeMode::Never), no_dirs: false };
    assert_eq!(moves(&fs), [false; 3]);
    *wants.lock() = MountAtime { mode: None, no_dirs: true };
    assert_eq!(moves(&fs), [true, true, false]);
    // the filesystem's own setting is another matter
    fs.set_atime_mode(AtimeMode::Never);
    assert_eq!(moves(&fs), [false; 3]);
    *wants.lock() = MountAtime { mode: Some(AtimeMode::Strict), no_dirs: false };
    assert_eq!(moves(&fs), [true; 3]);
    assert_eq!(fs.atime_mode(), AtimeMode::Never);
    let f = fs.resolve(b"f").unwrap();
    let t1 = fs.getattr(f).unwrap().atime_ns;
    fs.read(f, 0, &mut [0; 4]).unwrap();
    assert!(fs.getattr(f).unwrap().atime_ns > t1, "each time");
    *wants.lock() = MountAtime::default();
    assert_eq!(moves(&fs), [false; 3]);
    clean(fs.store());
}

#[test]
fn quiet_reading_moves_none() {
    let fs = three();
    fs.set_atime_mode(AtimeMode::Strict);
    let (f, d) = (fs.resolve(b"f").unwrap(), fs.resolve(b"d").unwrap());
    let atimes = || [f, d].map(|ino| fs.getattr(ino).unwrap().atime_ns);
    let before = atimes();
    let mut buf = [0; 4];
    assert_eq!(fs.read_quietly(f, 0, &mut buf).unwrap(), 1);
    assert_eq!(buf[0], b'x');
    let mut seen = 0;
    fs.readdir_quietly(d, 0, u64::MAX, true, &mut |_| {
        seen += 1;
        true
    })
    .unwrap();
    assert_eq!((seen, atimes()), (2, before));
    fs.read(f, 0, &mut buf).unwrap();
    names(&fs, d);
    let after = atimes();
    assert!(after[0] > before[0] && after[1] > before[1]);
}
