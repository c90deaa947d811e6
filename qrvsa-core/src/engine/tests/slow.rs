//! Disks that answer late: asleep, they take longer than a read waits before it turns to the other columns.

use super::*;

fn asleep(world: &World, disk: usize) {
    world.disks[disk].1.inject(Fault::new(Effect::Hang).on(Operation::Read).once());
}

fn errors_and_repairs(world: &World) -> (u64, u64) {
    let members = world.pool().space.members();
    assert!(members.iter().all(|m| m.state() == MemberState::Online));
    let sum = |of: &dyn Fn(&crate::pool::member::Member) -> u64| members.iter().map(|m| of(m)).sum();
    (sum(&|m| m.checksum_errors.load(Ordering::Relaxed)), sum(&|m| m.repaired.load(Ordering::Relaxed)))
}

fn pool_with_an_object(bytes: usize) -> (World, Vec<u8>) {
    let world = World::new(geometry(2, 2), 4, 64, 1);
    let data = pattern(1, bytes);
    world.write(1, 0, &data);
    world.pool().commit().unwrap();
    (world, data)
}

#[test]
fn disks_that_were_all_asleep_are_asked_again() {
    let (world, data) = pool_with_an_object(300_000);
    for nodes_too in [false, true] {
        world.drop_caches();
        if !nodes_too {
            // the pointers are in memory, the records are not
            world.read(1, 0, 1).unwrap();
            world.pool().records.drop_cache();
        }
        (0..4).for_each(|disk| asleep(&world, disk));
        assert!(world.read(1, 0, data.len()).unwrap() == data, "nodes too: {nodes_too}");
        world.disks.iter().for_each(|d| d.1.clear_faults());
    }
    assert_eq!(errors_and_repairs(&world).0, 0);
    (0..4).for_each(|disk| asleep(&world, disk));
    assert_eq!(world.scrub(), (0, 0, 0), "who wakes up is neither wrong nor to be repaired");
    world.check();
}

#[test]
fn what_comes_late_is_verified_like_anything_else() {
    let (world, data) = pool_with_an_object(100_000);
    world.read(1, 0, 1).unwrap();
    world.pool().records.drop_cache();
    (0..4).for_each(|disk| asleep(&world, disk));
    for disk in [0, 1] {
        world.disks[disk].1.inject(Fault::new(Effect::Flip { byte: 77, mask: 1 }).on(Operation::Read).after(1).once());
    }
    assert!(world.read(1, 0, data.len()).unwrap() == data);
    let (errors, repairs) = errors_and_repairs(&world);
    assert!(errors >= 1 && repairs >= 1, "{errors} {repairs}");

    // beyond the promise: an error, and an end
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.pool().records.drop_cache();
    for disk in [0, 2, 3] {
        world.disks[disk].1.inject(Fault::new(Effect::Hang).on(Operation::Read));
    }
    world.read(1, 0, data.len()).unwrap_err();
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.pool().records.drop_cache();
    assert!(world.read(1, 0, data.len()).unwrap() == data, "and once they answer it is all there");
}

#[test]
fn what_is_not_answered_for_is_not_given_up_by_a_commit() {
    let (mut world, mut data) = pool_with_an_object(100_000);
    world.read(1, 0, 1).unwrap();
    world.pool().records.drop_cache();
    // the rest of the record is needed, and only one of two columns can be had; writes go on
    for disk in [0, 2, 3] {
        world.disks[disk].1.inject(Fault::new(Effect::Hang).on(Operation::Read));
    }
    world.write(1, 8192, &[7; 4096]);
    world.fsync(1);
    data[8192..12_288].fill(7);
    world.pool().commit().unwrap_err();
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.crash(CrashMode::LoseAll);
    world.import(|_| true).unwrap();
    assert!(world.read(1, 0, data.len()).unwrap() == data);
    world.check();
}

/// Where the intent log lies on a disk.
pub(super) fn log_on(world: &World, disk: usize) -> Vec<std::ops::Range<u64>> {
    let pool = world.pool();
    let mut ranges = Vec::new();
    for group in pool.log.segments() {
        let len = u64::from(group.zone_rows()) * 4096;
        let columns = group.columns.read();
        for place in columns.iter().map(|c| c.place).filter(|p| usize::from(p.device) == disk) {
            let start = pool.space.offset(place, 0);
            ranges.push(start..start + len);
        }
    }
    ranges
}

pub(super) fn inject_at(world: &World, disk: usize, ranges: &[std::ops::Range<u64>], fault: &Fault) {
    ranges.iter().for_each(|range| world.disks[disk].1.inject(fault.clone().within(range.clone())));
}

#[test]
fn a_device_that_left_the_log_does_not_say_where_it_ends() {
    let broken = Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Write).once();
    for way in ["log", "uberblock", "else"] {
        let mut world = World::new(geometry(1, 1), 2, 64, 1);
        world.write(1, 0, &pattern(0, 4096));
        world.fsync(1);
        world.pool().commit().unwrap();
        let logs = [log_on(&world, 0), log_on(&world, 1)];
        match way {
            "log" => inject_at(&world, 0, &logs[0], &broken),
            "uberblock" => {
                let ring = layout::RING_OFFSET..layout::RING_OFFSET + (1 << 20);
                inject_at(&world, 0, &[ring], &broken);
                world.pool().commit().unwrap();
            }
            _ => assert!(world.pool().space.members()[0].fail("a test")),
        }
        let committed = world.pool().committed_txg();
        for i in 0..5u64 {
            world.write(1, i * 4096, &pattern(i + 10, 4096));
            world.fsync(1);
            assert_eq!(world.pool().space.members()[0].state(), MemberState::Faulted, "{way}");
            assert_eq!(world.pool().committed_txg(), committed + 1, "{way}: the fault is committed, once, fsync {i}");
        }
        world.crash(CrashMode::LoseAll);
        inject_at(&world, 1, &logs[1], &Fault::new(Effect::Hang).on(Operation::Read));
        let error = world.import(|_| true).map(|()| world.read(1, 16_384, 4096).unwrap() == pattern(14, 4096));
        let error = error.expect_err("nothing tells that the log ends");
        assert_eq!(error.kind(), crate::ErrorKind::Io, "{way}: {error}");
        assert!(error.to_string().contains("disk1"), "{way}: {error}");
        world.disks.iter().for_each(|d| d.1.clear_faults());
        world.import(|_| true).unwrap();
        for i in 0..5u64 {
            assert!(world.read(1, i * 4096, 4096).unwrap() == pattern(i + 10, 4096), "{way}: fsync {i} is lost");
        }
        world.check();
    }
}

#[test]
fn a_log_on_disks_asleep_is_replayed_and_one_that_stays_silent_does_not_keep_the_others_waiting() {
    let mut world = World::new(geometry(2, 1), 3, 64, 2);
    world.pool().commit().unwrap();
    let logs: Vec<_> = (0..3).map(|disk| log_on(&world, disk)).collect();
    let mut expect = Vec::new();
    for (round, hang) in [Fault::new(Effect::Hang).once(), Fault::new(Effect::Hang)].into_iter().enumerate() {
        for silent in 0..3 {
            for i in 0..40u64 {
                let seed = (round * 3 + silent) as u64 * 100 + i;
                world.write(1, i * 8192, &pattern(seed, 8192));
                world.fsync(1);
                expect.extend_from_slice(&pattern(seed, 8192));
            }
            world.crash(CrashMode::LoseAll);
            let hung: Vec<usize> = if round == 0 { (0..3).collect() } else { vec![silent] };
            for disk in hung {
                inject_at(&world, disk, &logs[disk], &hang.clone().on(Operation::Read));
                world.disks[disk].1.start_trace();
            }
            world.import(|_| true).unwrap();
            assert!(world.read(1, 0, expect.len()).unwrap() == expect, "{round} {silent}");
            expect.clear();
            let trace = world.disks[silent].1.take_trace();
            let of_log = |offset: u64| logs[silent].iter().any(|r| r.contains(&offset));
            let reads = trace.iter().filter(|e| e.operation == Operation::Read && of_log(e.offset)).count();
            assert!(reads <= 40, "{round} {silent}: {reads} reads of the log");
            world.disks.iter().for_each(|d| d.1.clear_faults());
            world.check();
        }
    }
}

#[test]
fn members_asleep_at_an_import_are_asked_again() {
    let (mut world, data) = pool_with_an_object(100_000);
    world.pool().close().unwrap();
    for skip in 0..12 {
        (0..4).for_each(|disk| {
            let hang = Fault::new(Effect::Hang).on(Operation::Read).after(skip).once();
            world.disks[disk].1.inject(hang);
        });
        world.import(|_| true).unwrap();
        world.disks.iter().for_each(|d| d.1.clear_faults());
        assert!(world.pool().warnings.lock().is_empty(), "{:?}", world.pool().warnings.lock());
        errors_and_repairs(&world);
        assert!(world.read(1, 0, data.len()).unwrap() == data);
        world.pool().close().unwrap();
    }
}

#[test]
fn a_read_does_not_write_to_who_has_not_answered() {
    let (world, data) = pool_with_an_object(300_000);
    let read = || {
        world.read(1, 0, 1).unwrap();
        world.pool().records.drop_cache();
        assert!(world.read(1, 0, data.len()).unwrap() == data);
    };
    let writes = || world.disks.iter().map(|d| d.1.counters().writes).collect::<Vec<_>>();
    let before = writes();
    for disk in 0..4 {
        world.disks[disk].1.inject(Fault::new(Effect::Hang).on(Operation::Read));
        read();
        world.disks[disk].1.clear_faults();
        assert_eq!(writes(), before, "disk {disk}");
    }
    assert_eq!(errors_and_repairs(&world), (0, 0));
    // an error is answered for
    (0..2).for_each(|disk| {
        world.disks[disk].1.inject(Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Read));
    });
    read();
    assert!(errors_and_repairs(&world).1 > 0);
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.check();
}

#[test]
fn a_scrub_goes_on_past_what_is_not_answered_for_and_says_so() {
    let (world, data) = pool_with_an_object(1_000_000);
    let fragments = world.pool().locate(1, 1).unwrap();
    let record = fragments.iter().map(|f| f.file_offset).min().unwrap();
    for f in fragments.iter().filter(|f| f.file_offset == record && f.device_index != 0) {
        let range = f.device_offset..f.device_offset + f.len;
        world.disks[usize::from(f.device_index)].1.inject(Fault::new(Effect::Hang).on(Operation::Read).within(range));
    }
    // what is wrong behind it is found all the same
    let last = fragments.iter().max_by_key(|f| f.file_offset).unwrap();
    world.disks[usize::from(last.device_index)].1.flip(last.device_offset, 1);
    let (job, _) = world.pool().begin_scrub();
    world.pool().run_scrub(&job);
    assert_eq!(job.state(), JobState::Failed, "it has not verified everything");
    assert!(job.message().contains("answered"), "{}", job.message());
    assert!(job.unanswered.load(Ordering::Relaxed) > 0);
    assert_eq!((job.repaired.load(Ordering::Relaxed), job.lost.load(Ordering::Relaxed)), (1, 0));
    assert!(world.pool().status().damaged.is_empty(), "nothing is known to be lost");
    world.disks.iter().for_each(|d| d.1.clear_faults());
    assert_eq!(world.scrub(), (0, 0, 0));
    world.drop_caches();
    assert!(world.read(1, 0, data.len()).unwrap() == data);
}
