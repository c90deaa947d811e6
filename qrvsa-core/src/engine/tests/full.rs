//! Full pools: what frees space works, and what it frees can be used at once.

use super::*;
use crate::error::ErrorKind;
use crate::fs::ops::{Caller, NewNode, Operations, ROOT_INO, SetAttr};
use crate::fs::{FileSystem, Options as FsOptions};
use crate::volume::{Spec, Volume};

const PIECE: u64 = 64 << 10;

fn volume(world: &World, record_bytes: u32) -> Arc<Volume> {
    let spec = Spec { size_bytes: 1 << 40, block_bytes: 512, record_bytes, reserve: false };
    world.pool().create_volume("v", &spec).unwrap();
    world.pool().open_volume("v").unwrap()
}

/// Writes until the pool refuses, again and again until nothing that is pending can help; returns the bytes written.
fn fill_up(volume: &Volume) -> u64 {
    let mut at = 0;
    loop {
        match volume.write(at, &pattern(at, PIECE as usize), false) {
            Ok(()) => at += PIECE,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                volume.flush().unwrap();
                if volume.write(at, &pattern(at, PIECE as usize), false).is_err() {
                    return at;
                }
                at += PIECE;
            }
        }
    }
}

#[test]
fn what_is_discarded_in_a_full_pool_can_be_written_again_at_once() {
    let world = World::new(geometry(2, 1), 3, 96, 21);
    let volume = volume(&world, 16 << 10);
    let end = fill_up(&volume);
    for _ in 0..4 {
        world.pool().commit().unwrap();
    }
    let half = end / 2 / PIECE * PIECE;
    for round in 1..4 {
        volume.discard(0, half).unwrap();
        for at in (0..half / 4 * 3).step_by(PIECE as usize) {
            volume
                .write(at, &pattern(at + round, PIECE as usize), false)
                .unwrap_or_else(|e| panic!("{round}, {at}: {e}"));
        }
    }
    volume.flush().unwrap();
    world.check();
}

/// The rest of each record is written anew before the old one is free: all of them at once have no room.
#[test]
fn a_hole_in_every_record_of_a_full_pool_suspends_nothing() {
    for (record, flush) in [(128 << 10, false), (16 << 10, false), (128 << 10, true), (16 << 10, true)] {
        let mut world = World::new(geometry(2, 1), 3, 96, 22);
        let volume = volume(&world, record);
        let end = fill_up(&volume);
        for _ in 0..4 {
            world.pool().commit().unwrap();
        }
        let record = u64::from(record);
        let mut holes = Vec::new();
        for at in (record..end - record).step_by(record as usize) {
            match volume.discard(at + 4096, 4096) {
                Ok(()) => holes.push(at + 4096),
                Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}"),
            }
        }
        assert!(holes.len() as u64 * 10 >= end / record * 9, "{} holes in {} records", holes.len(), end / record);
        if flush {
            volume.flush().unwrap();
            drop(volume);
            world.crash(CrashMode::LoseAll);
            world.import(|_| true).unwrap();
        } else {
            world.pool().commit().unwrap();
        }
        assert!(world.pool().suspended().is_none());
        let volume = world.pool().open_volume("v").unwrap();
        let mut expected = vec![0; PIECE as usize];
        for at in (0..end).step_by(PIECE as usize) {
            expected.copy_from_slice(&pattern(at, PIECE as usize));
            for hole in holes.iter().filter(|hole| (at..at + PIECE).contains(hole)) {
                expected[(hole - at) as usize..][..4096].fill(0);
            }
            let mut found = vec![1; PIECE as usize];
            volume.read(at, &mut found).unwrap();
            assert!(found == expected, "at {at}");
        }
        world.check();
    }
}

/// A pool that has no room left, not for a block.
fn full_world(seed: u64) -> World {
    let world = World::new(geometry(2, 1), 3, 96, seed);
    let volume = volume(&world, 16 << 10);
    let end = fill_up(&volume);
    let mut at = end;
    while volume.write(at, &pattern(at, 4096), false).is_ok() {
        at += 16 << 10;
    }
    world
}

#[test]
fn a_filesystem_for_which_there_is_no_room_is_not_made() {
    let mut world = full_world(24);
    assert_eq!(world.pool().create_dataset("x").unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(world.pool().dataset("x").is_none(), "half of it is there");
    for _ in 0..2 {
        world.pool().commit().unwrap();
        world.pool().close().unwrap();
        world.import(|_| true).unwrap();
        assert!(world.pool().dataset("x").is_none());
        let report = world.pool().check(true, &mut |_| true).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
    }
    world.pool().open_volume("v").unwrap().discard(0, 8 << 20).unwrap();
    world.pool().create_dataset("x").unwrap();
    FileSystem::open(world.pool().dataset("x").unwrap(), FsOptions::default()).unwrap();
}

/// With so much dirty data that admission commits.
#[test]
fn a_crash_while_a_filesystem_is_made_leaves_none_or_a_whole_one() {
    let mut made = [0, 0];
    for after in (0..120).step_by(3) {
        let mut world = World::new(geometry(1, 1), 2, 96, after);
        let mut at = 0;
        while world.pool().dirty_bytes() < world.options.dirty_bytes_max() {
            world.write(2000, at, &pattern(at, 1 << 20));
            at += 1 << 20;
        }
        world.power.cut_after(after);
        let done = world.pool().create_dataset("x");
        world.crash(CrashMode::Random { seed: after });
        world.import(|_| true).unwrap();
        let dataset = world.pool().dataset("x");
        assert!(done.is_err() || dataset.is_some(), "crash after {after}: it was made, and is gone");
        made[usize::from(dataset.is_some())] += 1;
        if let Some(dataset) = dataset {
            FileSystem::open(dataset, FsOptions::default()).unwrap_or_else(|e| panic!("crash after {after}: {e}"));
        }
        world.check();
        if world.pool().dataset("x").is_none() {
            world.pool().create_dataset("x").unwrap();
        }
    }
    assert!(made[0] > 0 && made[1] > 0, "{made:?}");
}

/// What a reserved volume gives back is promised to it at once, but can be used a commit later only.
#[test]
fn a_file_can_be_cut_in_a_full_pool_when_a_reserved_volume_has_just_given_space_back() {
    let world = World::new(geometry(2, 1), 3, 96, 23);
    let spec = Spec { size_bytes: 24 << 20, block_bytes: 512, record_bytes: 16 << 10, reserve: true };
    world.pool().create_volume("r", &spec).unwrap();
    let reserved = world.pool().open_volume("r").unwrap();
    for at in (0..spec.size_bytes).step_by(PIECE as usize) {
        reserved.write(at, &pattern(at, PIECE as usize), false).unwrap();
    }
    let fs = FileSystem::open(world.dataset(), FsOptions::default()).unwrap();
    let caller = Caller { uid: 0, gid: 0, pid: 0 };
    let node = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, rdev: 0 };
    let file = fs.mknod(caller, ROOT_INO, b"f", node).unwrap().ino;
    let mut size = 0;
    while fs.write(file, size, &pattern(size, PIECE as usize), false, false).is_ok() {
        size += PIECE;
    }
    for _ in 0..4 {
        world.pool().commit().unwrap();
    }
    reserved.discard(0, spec.size_bytes).unwrap();
    world.pool().commit().unwrap();
    for _ in 0..20 {
        size -= 128 << 10;
        let cut = SetAttr { size: Some(size + 5000), ..SetAttr::default() };
        fs.setattr(caller, file, cut).unwrap_or_else(|e| panic!("cut at {size}: {e}"));
    }
    world.pool().commit().unwrap();
    assert!(world.pool().suspended().is_none());
    world.check();
}
