//! Reading, writing, sizes, holes, space.

use super::*;
use crate::fs::AtimeMode;
use crate::fs::inode::{INLINE_MAX, SIZE_MAX};
use crate::fs::ops::{AllocateMode, SetAttr, SetTime};

fn truncate(fs: &FileSystem<MemStore>, ino: Ino, size: u64) -> Attr {
    fs.setattr(ROOT, ino, SetAttr { size: Some(size), ..SetAttr::default() }).unwrap()
}

#[test]
fn small_files_are_inline_until_they_grow() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; INLINE_MAX as usize]);
    assert_eq!((fs.store().block_count(), fs.getattr(f).unwrap().blocks), (0, 4));
    write(&fs, f, INLINE_MAX, &[2]);
    assert_eq!((fs.store().block_count(), fs.getattr(f).unwrap().blocks), (1, 8));
    let mut expected = vec![1; INLINE_MAX as usize];
    expected.push(2);
    assert_eq!(contents(&fs, f), expected);
    truncate(&fs, f, 1);
    assert_eq!(fs.store().block_count(), 1);
    truncate(&fs, f, 0);
    assert_eq!(fs.store().block_count(), 0);
    write(&fs, f, 3, b"x");
    assert_eq!(contents(&fs, f), b"\0\0\0x");
    assert_eq!(fs.store().block_count(), 0);
    clean(fs.store());
}

#[test]
fn moving_inline_contents_to_an_object() {
    for (offset, len) in [(0, 5000), (2000, 100), (3000, 10), (4095, 2), (4096, 10), (9000, 1), (1, 1 << 20)] {
        for old in [0usize, 1, 2048] {
            let fs = new_fs();
            let f = file(&fs, ROOT_INO, "f");
            write(&fs, f, 0, &vec![1; old]);
            write(&fs, f, offset as u64, &vec![2; len]);
            let mut expected = vec![1; old];
            expected.resize(old.max(offset + len), 0);
            expected[offset..offset + len].fill(2);
            assert_eq!(contents(&fs, f), expected, "{old} {offset} {len}");
            clean(fs.store());
        }
    }
}

#[test]
fn cut_bytes_come_back_as_zeros() {
    for (size, cut) in [(2000u64, 100u64), (10_000, 100), (10_000, 4096), (100_000, 5000)] {
        let fs = new_fs();
        let f = file(&fs, ROOT_INO, "f");
        write(&fs, f, 0, &vec![9; size as usize]);
        truncate(&fs, f, cut);
        truncate(&fs, f, size);
        let mut expected = vec![9; cut as usize];
        expected.resize(size as usize, 0);
        assert_eq!(contents(&fs, f), expected);
        clean(fs.store());
    }
}

#[test]
fn sparse_files() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let far = 1 << 40;
    write(&fs, f, far, b"far");
    let attr = fs.getattr(f).unwrap();
    assert_eq!((attr.size, attr.blocks), (far + 3, 8));
    assert_eq!(fs.seek_data(f, 0).unwrap(), far);
    assert_eq!(fs.seek_hole(f, 0).unwrap(), 0);
    assert_eq!(fs.seek_hole(f, far).unwrap(), far + 3);
    assert_eq!(fs.seek_data(f, far + 1).unwrap(), far + 1);
    fails(fs.seek_data(f, far + 3), Errno::ENXIO);
    fails(fs.seek_hole(f, far + 3), Errno::ENXIO);
    truncate(&fs, f, far);
    fails(fs.seek_data(f, 0), Errno::ENXIO);
    assert_eq!(fs.getattr(f).unwrap().blocks, 0);
    truncate(&fs, f, SIZE_MAX);
    fails(fs.setattr(ROOT, f, SetAttr { size: Some(SIZE_MAX + 1), ..SetAttr::default() }), Errno::EFBIG);
    clean(fs.store());
}

#[test]
fn dense_files_have_no_hole() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; 5000]);
    write(&fs, f, 6000, &[1; 5000]);
    let attr = fs.getattr(f).unwrap();
    assert_eq!((attr.size, attr.blocks), (11_000, 24));
    assert_eq!(fs.seek_hole(f, 0).unwrap(), 11_000);
    write(&fs, f, 11_000 + 8192, b"x");
    assert_eq!(fs.seek_hole(f, 0).unwrap(), 12_288);
    assert_eq!(fs.seek_data(f, 12_288).unwrap(), 16_384);
    clean(fs.store());
}

#[test]
fn limits_of_writes() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let d = dir(&fs, ROOT_INO, "d");
    fails(fs.write(d, 0, b"x", false, false), Errno::EISDIR);
    fails(fs.read(d, 0, &mut [0; 4]), Errno::EISDIR);
    fails(fs.write(f, SIZE_MAX, b"x", false, false), Errno::EFBIG);
    fails(fs.write(f, u64::MAX, b"x", false, false), Errno::EFBIG);
    assert_eq!(fs.write(f, SIZE_MAX - 1, b"xy", false, false).unwrap(), 1);
    assert_eq!(fs.getattr(f).unwrap().size, SIZE_MAX);
    assert_eq!(fs.read(f, SIZE_MAX - 1, &mut [0; 9]).unwrap(), 1);
    assert_eq!(fs.read(f, u64::MAX, &mut [0; 9]).unwrap(), 0);
    let before = fs.getattr(f).unwrap();
    assert_eq!(fs.write(f, 5, b"", false, false).unwrap(), 0);
    assert_eq!(fs.getattr(f).unwrap(), before);
    let g = file(&fs, ROOT_INO, "g");
    assert_eq!(fs.write(g, 0, &vec![3; 5 << 20], true, false).unwrap(), 5 << 20);
    assert_eq!(fs.write(g, 0, b"end", true, false).unwrap(), 3);
    assert_eq!(&contents(&fs, g)[(5 << 20)..], b"end");
    clean(fs.store());
}

#[test]
fn times_of_contents() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    let t0 = fs.getattr(f).unwrap();
    write(&fs, f, 0, b"x");
    let t1 = fs.getattr(f).unwrap();
    assert!(t1.mtime_ns > t0.mtime_ns && t1.ctime_ns == t1.mtime_ns && t1.atime_ns == t0.atime_ns);
    let t2 = truncate(&fs, f, 1);
    assert!(t2.mtime_ns > t1.mtime_ns && t2.ctime_ns > t1.ctime_ns);
    let change = SetAttr { mtime: Some(SetTime::At(-5)), atime: Some(SetTime::Now), ..SetAttr::default() };
    let t3 = fs.setattr(ROOT, f, change).unwrap();
    assert!(t3.mtime_ns == -5 && t3.atime_ns > t2.ctime_ns && t3.ctime_ns >= t3.atime_ns);
    let change = SetAttr { ctime: Some(SetTime::At(77)), ..change };
    assert_eq!(fs.setattr(ROOT, f, change).unwrap().ctime_ns, 77);
    fs.open(ROOT, f, true).unwrap();
    assert!(fs.getattr(f).unwrap().mtime_ns > t3.ctime_ns);
}

#[test]
fn access_times() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, b"x");
    let atime = |ino| fs.getattr(ino).unwrap().atime_ns;
    let (t0, mut buf) = (atime(f), [0; 4]);
    fs.read(f, 0, &mut buf).unwrap();
    let t1 = atime(f);
    assert!(t1 > t0);
    fs.read(f, 0, &mut buf).unwrap();
    assert_eq!(atime(f), t1);
    fs.store().advance_ns(25 * 3600 * 1_000_000_000);
    fs.set_atime_mode(AtimeMode::Never);
    fs.read(f, 0, &mut buf).unwrap();
    assert_eq!(atime(f), t1);
    fs.set_atime_mode(AtimeMode::Relative);
    fs.read(f, 0, &mut buf).unwrap();
    let t2 = atime(f);
    assert!(t2 > t1);
    fs.set_atime_mode(AtimeMode::Strict);
    fs.read(f, 0, &mut buf).unwrap();
    assert!(atime(f) > t2);
    fs.set_atime_mode(AtimeMode::Relative);
    let d0 = atime(ROOT_INO);
    names(&fs, ROOT_INO);
    let d1 = atime(ROOT_INO);
    assert!(d1 > d0);
    names(&fs, ROOT_INO);
    assert_eq!(atime(ROOT_INO), d1);
}

#[test]
fn punching_zeroing_allocating() {
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[5; 20_000]);
    fs.fallocate(ROOT, f, AllocateMode::PunchHole, 4000..13_000).unwrap();
    let mut expected = vec![5; 20_000];
    expected[4000..13_000].fill(0);
    assert_eq!(contents(&fs, f), expected);
    assert_eq!(fs.seek_hole(f, 0).unwrap(), 4096);
    assert_eq!(fs.seek_data(f, 4096).unwrap(), 12_288);
    assert_eq!(fs.getattr(f).unwrap().blocks, 24);
    fs.fallocate(ROOT, f, AllocateMode::ZeroRange { keep_size: false }, 19_000..30_000).unwrap();
    expected[19_000..].fill(0);
    expected.resize(30_000, 0);
    assert_eq!(contents(&fs, f), expected);
    fs.fallocate(ROOT, f, AllocateMode::Allocate { keep_size: true }, 0..60_000).unwrap();
    assert_eq!(fs.getattr(f).unwrap().size, 30_000);
    fs.fallocate(ROOT, f, AllocateMode::Allocate { keep_size: false }, 0..60_000).unwrap();
    assert_eq!(fs.getattr(f).unwrap().size, 60_000);
    fails(fs.fallocate(ROOT, f, AllocateMode::CollapseRange, 0..4096), Errno::EOPNOTSUPP);
    fails(fs.fallocate(ROOT, f, AllocateMode::InsertRange, 0..4096), Errno::EOPNOTSUPP);
    fails(fs.fallocate(ROOT, f, AllocateMode::PunchHole, 5..5), Errno::EINVAL);
    fails(fs.fallocate(ROOT, f, AllocateMode::PunchHole, 5..u64::MAX), Errno::EFBIG);
    fails(fs.fallocate(ROOT, ROOT_INO, AllocateMode::PunchHole, 0..5), Errno::EISDIR);
    fails(fs.fallocate(ROOT, f, AllocateMode::Allocate { keep_size: false }, 0..1 << 50), Errno::ENOSPC);
    clean(fs.store());
}

#[test]
fn copying_keeps_holes() {
    let fs = new_fs();
    let (f, g) = (file(&fs, ROOT_INO, "f"), file(&fs, ROOT_INO, "g"));
    write(&fs, f, 0, &[1; 5000]);
    write(&fs, f, 3 << 20, &[2; 5000]);
    truncate(&fs, f, 4 << 20);
    write(&fs, g, 0, &[9; 100_000]);
    assert_eq!(fs.copy_range((f, 0), (g, 0), u64::MAX >> 2).unwrap(), 4 << 20);
    assert_eq!(contents(&fs, g), contents(&fs, f));
    assert_eq!(fs.getattr(g).unwrap().blocks, fs.getattr(f).unwrap().blocks);
    fails(fs.copy_range((f, 0), (f, 100), 200), Errno::EINVAL);
    assert_eq!(fs.copy_range((f, 0), (f, 8 << 20), 200).unwrap(), 200);
    assert_eq!(fs.copy_range((f, 1 << 40), (g, 0), 200).unwrap(), 0);
    fails(fs.copy_range((f, 0), (ROOT_INO, 0), 200), Errno::EISDIR);
    clean(fs.store());
}

#[test]
fn a_full_store_refuses_writes_and_lets_go() {
    let fs = new_fs();
    fs.store().set_capacity(100 * 4096);
    let f = file(&fs, ROOT_INO, "f");
    let g = file(&fs, ROOT_INO, "g");
    write(&fs, g, 0, &[4; 2000]);
    write(&fs, f, 0, &[1; 90 * 4096]);
    let before = (fs.getattr(f).unwrap(), fs.getattr(g).unwrap());
    fails(fs.write(f, 90 * 4096, &[2; 20 * 4096], false, false), Errno::ENOSPC);
    fails(fs.write(g, 5000, &[2; 20 * 4096], false, false), Errno::ENOSPC);
    fails(fs.write(g, 1000, &[2; 20 * 4096], false, false), Errno::ENOSPC);
    assert_eq!((fs.getattr(f).unwrap(), fs.getattr(g).unwrap()), before);
    clean(fs.store());
    write(&fs, f, 90 * 4096, &[1; 10 * 4096]);
    fails(fs.mknod(ROOT, ROOT_INO, b"h", node(libc::S_IFREG)), Errno::ENOSPC);
    fs.setattr(ROOT, f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    fs.rename(ROOT, (ROOT_INO, b"g"), (ROOT_INO, b"gg"), crate::fs::ops::RenameMode::Replace).unwrap();
    assert_eq!(contents(&fs, f).len(), 100 * 4096);
    assert_eq!(fs.statfs().unwrap().bavail, 0);
    truncate(&fs, f, 4096);
    assert_eq!(fs.statfs().unwrap().bavail, 99);
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(fs.statfs().unwrap().bavail, 100);
    clean(fs.store());
}

#[test]
fn a_failed_move_out_of_the_inode_leaves_no_trace() {
    for fail_after in 0..2 {
        let fs = new_fs();
        let f = file(&fs, ROOT_INO, "f");
        write(&fs, f, 0, &[1; 2000]);
        fs.store().fail_write_after(fail_after);
        fails(fs.write(f, 10_000, b"x", false, false), Errno::EIO);
        assert_eq!(contents(&fs, f), [1; 2000]);
        assert_eq!(fs.store().block_count(), 0);
        truncate(&fs, f, 10);
        truncate(&fs, f, 20_000);
        let mut expected = vec![1; 10];
        expected.resize(20_000, 0);
        assert_eq!(contents(&fs, f), expected);
        clean(fs.store());
    }
}

#[test]
fn a_long_write_that_runs_out_is_short() {
    let fs = new_fs();
    fs.store().set_capacity(2 << 20);
    let f = file(&fs, ROOT_INO, "f");
    assert_eq!(fs.write(f, 0, &vec![1; 4 << 20], false, false).unwrap(), 2 << 20);
    assert_eq!(fs.getattr(f).unwrap().size, 2 << 20);
    clean(fs.store());
}

#[test]
fn every_fallocate_moves_mtime() {
    use crate::fs::ops::AllocateMode::{Allocate, PunchHole, ZeroRange};
    let fs = new_fs();
    let f = file(&fs, ROOT_INO, "f");
    write(&fs, f, 0, &[1; 10_000]);
    let modes = [
        Allocate { keep_size: true },
        Allocate { keep_size: false },
        PunchHole,
        ZeroRange { keep_size: true },
        ZeroRange { keep_size: false },
    ];
    for mode in modes {
        for range in [0..5000, 50_000..60_000] {
            let before = fs.getattr(f).unwrap();
            fs.fallocate(ROOT, f, mode, range).unwrap();
            let after = fs.getattr(f).unwrap();
            assert!(after.mtime_ns > before.mtime_ns && after.ctime_ns > before.ctime_ns, "{mode:?}");
        }
    }
}
