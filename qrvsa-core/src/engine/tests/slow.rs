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
