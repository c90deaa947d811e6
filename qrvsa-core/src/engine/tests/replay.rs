//! Replays that commit before they are at their end, and crash.

use super::slow::{inject_at, log_on};
use super::*;
use crate::item::Value;

/// A pool whose log ends with a block on the first disk alone, as if the power had failed before the other wrote it: object
/// 1 is deleted there, and object 2 made, in one.
fn half_written_log(disks_with_it: usize) -> World {
    let mut world = World::new(geometry(1, 1), 2, 64, 60);
    world.write(3, 0, &pattern(3, 5000));
    world.pool().commit().unwrap();
    world.write(1, 0, &pattern(1, 100));
    world.fsync(1);
    let committed = world.pool().committed_txg();
    for disk in disks_with_it..2 {
        inject_at(&world, disk, &log_on(&world, disk), &Fault::new(Effect::Lose).on(Operation::Write));
    }
    {
        let ds = world.dataset();
        let tx = ds.begin(Intent::Grow).unwrap();
        Store::delete(&*ds, &tx, Key::new(1, 1, 0), Log::Always);
        let item: Value = Arc::from(2u64.to_le_bytes().as_slice());
        Store::put(&*ds, &tx, Key::new(2, 1, 0), item, Log::Always);
        Store::write(&*ds, &tx, object(2), 0, &pattern(2, 400_000)).unwrap();
    }
    world.fsync(2);
    assert_eq!(world.pool().committed_txg(), committed, "it is in the log alone");
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.crash(CrashMode::LoseAll);
    // so that the replay of that block commits
    world.options.memory_bytes = 1 << 19;
    world
}

/// What the block did: as a whole, or not at all.
fn assert_whole(world: &World, what: &str) -> bool {
    let is_there = |id| Store::get(&*world.dataset(), Key::new(id, 1, 0)).unwrap().is_some();
    let contents = world.read(2, 0, 400_000).unwrap() == pattern(2, 400_000);
    let state = [is_there(1), is_there(2), contents];
    assert!(state == [true, false, false] || state == [false, true, true], "{what}: {state:?}");
    assert_eq!(world.read(3, 0, 5000).unwrap(), pattern(3, 5000), "{what}");
    contents
}

#[test]
fn a_block_that_one_disk_has_is_not_half_undone_when_the_disk_dies_in_a_crash_of_the_import() {
    let (mut with, mut without) = (0, 0);
    for after in 0.. {
        let mut world = half_written_log(1);
        world.power.cut_after(after);
        let through = world.import(|_| true).is_ok() && !world.power.is_off();
        world.pool.take().inspect(|p| p.abandon());
        world.crash(CrashMode::LoseAll);
        world.import(|i| i == 1).unwrap_or_else(|e| panic!("crash after {after}: {e}"));
        if assert_whole(&world, &format!("crash after {after}")) {
            with += 1
        } else {
            without += 1
        }
        if through {
            break;
        }
    }
    assert!(with > 1 && without > 1, "both came out: {with} {without}");
}

/// A disk that cannot take the block leaves, as it would when a block is logged.
#[test]
fn a_disk_that_does_not_take_the_end_of_the_log_is_out_before_the_replay_commits() {
    let mut world = half_written_log(1);
    let broken = Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Write);
    inject_at(&world, 1, &log_on(&world, 1), &broken);
    world.import(|_| true).unwrap();
    assert!(assert_whole(&world, "the first disk has it"));
    // it is back, to be rebuilt
    assert_eq!(world.pool().space.members()[1].state(), MemberState::Rebuilding);
    world.disks[1].1.clear_faults();
    assert_eq!(world.rebuild().state(), JobState::Finished);
    assert_eq!(world.scrub(), (0, 0, 0));
}

/// Where all have it, a replay writes nothing to the log.
#[test]
fn a_log_that_all_disks_have_is_not_written_by_its_replay() {
    let mut world = half_written_log(2);
    let logs = [log_on(&world, 0), log_on(&world, 1)];
    world.disks.iter().for_each(|d| d.1.start_trace());
    world.import(|_| true).unwrap();
    assert!(assert_whole(&world, "all have it"));
    for (disk, log) in logs.iter().enumerate() {
        let trace = world.disks[disk].1.take_trace();
        let is_log = |offset: u64| log.iter().any(|range| range.contains(&offset));
        assert!(!trace.iter().any(|e| e.operation == Operation::Write && is_log(e.offset)), "disk {disk}");
    }
}
