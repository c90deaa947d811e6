//! Checks of a pool that goes on working.

use super::*;
use crate::error::ErrorKind;
use crate::object::{Items, KIND_EXTENT};
use crate::record::pointer::Pointer;
use crate::volume::Spec;

const MIB: u64 = 1 << 20;

/// Where the contents of an object lie, as of the last commit.
fn pointers(world: &World, id: u64) -> Vec<Pointer> {
    let (from, to) = (Key::new(id, KIND_EXTENT, 0), Key::new(id, KIND_EXTENT, u64::MAX));
    let items = world.dataset().items.scan(from, to, 1000).unwrap();
    items.iter().map(|(_, value)| Pointer::decode(value).unwrap().0).collect()
}

/// Nothing is wrong with a pool; all was looked at, or the report says that it was not.
fn assert_sound(report: &super::super::check::CheckReport, pool: &Pool) {
    let problems: Vec<_> = report.problems.iter().filter(|p| !p.starts_with("tank: ")).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(report.unfinished.as_ref().is_none_or(|why| why.contains("too full")), "{:?}", report.unfinished);
    assert_eq!(pool.suspended(), None);
}

#[test]
fn a_check_takes_no_space_from_those_who_write_meanwhile() {
    let world = World::new(geometry(1, 1), 2, 96, 31);
    let capacity = world.pool().space.capacity();
    let files = capacity.total * 4096 * 6 / 10 / MIB;
    for id in 0..files {
        world.write(2000 + id, 0, &pattern(id, MIB as usize));
    }
    world.pool().commit().unwrap();
    let (mut round, mut written) = (0, 0);
    let report = world.pool().check(true, &mut |_| {
        // more than there is room for, if nothing came back
        if written < 2 * capacity.total * 4096 {
            round += 1;
            world.write(2000 + round % files, 0, &pattern(round, MIB as usize));
            world.pool().commit().unwrap();
            written += MIB;
        }
        true
    });
    assert!(written > capacity.total * 4096 / 2, "{written} bytes in {round} rounds");
    let report = report.unwrap();
    assert_sound(&report, world.pool());
    assert!(report.bytes_verified >= 2 * files * MIB, "the contents are verified in any case");
    world.check();
}

#[test]
fn a_reserved_volume_in_a_full_pool_does_not_lack_room_because_of_a_check() {
    let world = World::new(geometry(2, 1), 3, 96, 32);
    let spec = Spec { size_bytes: 16 * MIB, block_bytes: 512, record_bytes: 16 << 10, reserve: true };
    world.pool().create_volume("r", &spec).unwrap();
    let volume = world.pool().open_volume("r").unwrap();
    for at in (0..spec.size_bytes).step_by(256 << 10) {
        volume.write(at, &pattern(at, 256 << 10), false).unwrap();
    }
    volume.flush().unwrap();
    let mut id = 2000;
    loop {
        let ds = world.dataset();
        let written =
            ds.begin(Intent::Grow).and_then(|tx| Store::write(&*ds, &tx, object(id), 0, &pattern(id, 128 << 10)));
        match written {
            Ok(()) => id += 1,
            Err(e) if e.kind() == ErrorKind::NoSpace => break,
            Err(e) => panic!("{e}"),
        }
    }
    for _ in 0..4 {
        world.pool().commit().unwrap();
    }
    let mut round = 0;
    let report = world.pool().check(true, &mut |_| {
        if round < 200 {
            volume.write(round % 64 * (256 << 10), &pattern(round, 256 << 10), false).unwrap();
            volume.flush().unwrap();
        }
        round += 1;
        true
    });
    assert!(round > 40, "{round}");
    assert_sound(&report.unwrap(), world.pool());
    world.check();
}

#[test]
fn a_check_ends_when_it_is_told_to() {
    let world = World::new(geometry(1, 1), 2, 96, 33);
    fill(&world, 2000, 40);
    for (deep, most) in [(false, 0), (true, 0), (true, 2), (true, 5), (true, 6)] {
        let mut told = 0;
        let report = world.pool().check(deep, &mut |_| {
            told += 1;
            told <= most
        });
        let report = report.unwrap();
        assert_eq!(told, most + 1, "deep {deep}");
        assert_eq!(report.unfinished.as_deref(), Some("it was stopped"));
        assert!(report.problems.iter().all(|p| p.starts_with("tank: ")), "{:?}", report.problems);
    }
    assert!(!world.pool().space.has_pending_frees() || world.pool().space.has_coming_frees(), "something is held");
    world.check();
}

/// Readers, and a check, may still be at what was freed a moment ago.
#[test]
fn a_rebuild_copies_what_was_freed_and_may_still_be_read() {
    let mut world = World::new(geometry(2, 1), 3, 96, 34);
    world.pool().commit().unwrap();
    world.import(|i| i != 0).unwrap();
    world.write(2000, 0, &pattern(1, 3 << 20));
    world.pool().commit().unwrap();
    world.pool().close().unwrap();
    world.import(|_| true).unwrap();
    assert!(world.pool().needs_rebuild());
    let old = pointers(&world, 2000);
    assert!(!old.is_empty());
    let _pin = world.pool().space.epoch.pin();
    world.write(2000, 0, &pattern(2, 3 << 20));
    world.pool().commit().unwrap();
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    for pointer in old {
        let verdict = world.pool().records.verify(&pointer, false).unwrap();
        assert_eq!((verdict.errors, verdict.lost), (0, 0), "what a reader may see is wrong on the rebuilt disk");
    }
    world.check();
}
