//! Threads on the same names: nothing deadlocks, nothing is half there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::fs::ops::RenameMode;

#[test]
fn a_replaced_name_is_never_missing() {
    let fs = Arc::new(new_fs());
    file(&fs, ROOT_INO, "target");
    let (stop, looked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let (fs, stop, looked) = (fs.clone(), stop.clone(), looked.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let attr = fs.lookup(ROOT_INO, b"target").unwrap();
                assert_eq!(attr.nlink, 1);
                let mut found = 0;
                fs.readdir(ROOT_INO, 0, true, &mut |e| {
                    found += u32::from(e.name == b"target");
                    true
                })
                .unwrap();
                assert_eq!(found, 1);
                looked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let mut renames = 0;
    // However late the reader begins.
    while renames < 3000 || (looked.load(Ordering::Relaxed) < 10 && !reader.is_finished()) {
        file(&fs, ROOT_INO, "new");
        fs.rename(ROOT, (ROOT_INO, b"new"), (ROOT_INO, b"target"), RenameMode::Replace).unwrap();
        renames += 1;
        if renames > 3000 {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    reader.join().unwrap();
    clean(fs.store());
}

#[test]
fn random_threads_leave_a_clean_tree() {
    let fs = Arc::new(new_fs());
    let dirs: Vec<Ino> = (0..3).map(|i| dir(&fs, ROOT_INO, &format!("d{i}"))).collect();
    let workers: Vec<_> = (0..4u64)
        .map(|seed| {
            let (fs, dirs) = (fs.clone(), dirs.clone());
            std::thread::spawn(move || {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut next = |n: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state % n
                };
                for _ in 0..3000 {
                    let mut at = |dirs: &[Ino]| (dirs[next(3) as usize], format!("n{}", next(4)));
                    let ((a, x), (b, y)) = (at(&dirs), at(&dirs));
                    let (x, y) = (x.as_bytes(), y.as_bytes());
                    // Errors are expected; contradictions are not.
                    match next(8) {
                        0 => drop(fs.mknod(ROOT, a, x, node(libc::S_IFDIR | 0o755))),
                        1 => {
                            if let Ok((attr, _)) = fs.create(ROOT, a, x, node(0o644), false, false) {
                                fs.write(attr.ino, 0, &[1; 3000], true, false).unwrap();
                                fs.release(attr.ino);
                            }
                        }
                        2 => drop(fs.unlink(a, x)),
                        3 => drop(fs.rmdir(a, x)),
                        4 | 5 => drop(fs.rename(ROOT, (a, x), (b, y), RenameMode::Replace)),
                        6 => drop(fs.rename(ROOT, (a, x), (b, y), RenameMode::Exchange)),
                        _ => {
                            if let Ok(attr) = fs.lookup(a, x) {
                                drop(fs.link(attr.ino, b, y));
                            }
                        }
                    }
                    // Directories move below each other too.
                    if let Ok(attr) = fs.lookup(a, x)
                        && attr.mode & libc::S_IFMT == libc::S_IFDIR
                    {
                        drop(fs.rename(ROOT, (b, y), (attr.ino, b"in"), RenameMode::Replace));
                        drop(fs.rename(ROOT, (attr.ino, b"in"), (b, y), RenameMode::NoReplace));
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(clean(fs.store()).orphans, 0);
}

#[test]
fn appends_do_not_overlap() {
    let fs = Arc::new(new_fs());
    let f = file(&fs, ROOT_INO, "f");
    let workers: Vec<_> = (1..=4u8)
        .map(|byte| {
            let fs = fs.clone();
            std::thread::spawn(move || {
                for _ in 0..200 {
                    fs.write(f, 0, &[byte; 100], true, false).unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let bytes = contents(&fs, f);
    assert_eq!(bytes.len(), 4 * 200 * 100);
    assert!(bytes.chunks(100).all(|c| c.iter().all(|b| *b == c[0])));
}
