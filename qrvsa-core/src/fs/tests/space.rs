//! Space that is short: what counts as missing, and what a commit brings back.

use super::*;
use crate::fs::ops::AllocateMode::Allocate;
use crate::fs::ops::SetAttr;

const BLOCK: u64 = 4096;

fn blocks(count: usize) -> Vec<u8> {
    vec![7; count * BLOCK as usize]
}

/// A filesystem of 100 blocks with a file.
fn small() -> (FileSystem<MemStore>, Ino) {
    let fs = new_fs();
    fs.store().set_capacity(100 * BLOCK);
    let f = file(&fs, ROOT_INO, "f");
    (fs, f)
}

fn truncate(fs: &FileSystem<MemStore>, ino: Ino, size: u64) {
    fs.setattr(ROOT, ino, SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

#[test]
fn allocating_where_data_is_needs_no_space() {
    let (fs, f) = small();
    // 81 blocks of data, and one hole
    write(&fs, f, 0, &blocks(1));
    write(&fs, f, 2 * BLOCK, &blocks(80));
    for keep_size in [true, false] {
        let allocate = |range| fs.fallocate(ROOT, f, Allocate { keep_size }, range);
        allocate(0..82 * BLOCK).unwrap();
        allocate(40 * BLOCK..82 * BLOCK).unwrap();
        allocate(0..(82 + 18) * BLOCK).unwrap();
        fails(allocate(0..(82 + 19) * BLOCK), Errno::ENOSPC);
        fails(allocate(100 * BLOCK..120 * BLOCK), Errno::ENOSPC);
    }
    assert_eq!(fs.store().commit_count(), 0, "nothing was freed");
    clean(fs.store());
}

#[test]
fn allocating_waits_for_space_that_a_commit_brings_back() {
    let (fs, f) = small();
    let g = file(&fs, ROOT_INO, "g");
    write(&fs, f, 0, &blocks(90));
    fs.store().hold_frees(true);
    truncate(&fs, f, 0);
    assert_eq!(fs.statfs().unwrap().bavail, 10);
    fs.fallocate(ROOT, g, Allocate { keep_size: false }, 0..90 * BLOCK).unwrap();
    assert_eq!((fs.store().commit_count(), fs.statfs().unwrap().bavail), (1, 100));
    fails(fs.fallocate(ROOT, g, Allocate { keep_size: false }, 0..200 * BLOCK), Errno::ENOSPC);
    assert_eq!(fs.store().commit_count(), 1);
}

#[test]
fn writing_waits_for_space_that_a_commit_brings_back() {
    let (fs, f) = small();
    let g = file(&fs, ROOT_INO, "g");
    write(&fs, g, 0, &[3; 100]);
    write(&fs, f, 0, &blocks(90));
    fs.store().hold_frees(true);
    truncate(&fs, f, BLOCK);
    write(&fs, g, 50, &blocks(50));
    assert_eq!(fs.store().commit_count(), 1);
    let mut expected = vec![3; 50];
    expected.extend(blocks(50));
    assert_eq!(contents(&fs, g), expected);
    // Nothing is held any more: no reason to wait.
    fails(fs.write(g, 60 * BLOCK, &blocks(60), false, false), Errno::ENOSPC);
    assert_eq!(fs.store().commit_count(), 1);
    // What comes back is not enough.
    truncate(&fs, g, 40 * BLOCK);
    fails(fs.write(g, 60 * BLOCK, &blocks(90), false, false), Errno::ENOSPC);
    assert_eq!(fs.store().commit_count(), 2);
    clean(fs.store());
}
