//! Scenarios that a hostile reader of the engine came up with: each of them once lost data, hung, or stopped the pool.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::super::open::read_uberblocks;
use super::*;
use crate::device::batch::Completions;
use crate::device::sim::{Effect, Fault, Operation};
use crate::device::{DeviceInfo, IoError, Outcome, Request};
use crate::pool::format::entries::{Class, DeviceEntry};
use crate::pool::member::Member;
use crate::pool::space::Space;
use crate::record::store::RecordStore;

fn new_disk(name: &str, mib: u64) -> (Arc<dyn Device>, SimControl) {
    SimDevice::create(SimConfig { name: name.to_owned(), ..SimConfig::new(mib << 20) })
}

fn member(index: u16, size_bytes: u64, device: Option<Arc<dyn Device>>) -> Arc<Member> {
    let entry = DeviceEntry {
        index,
        device_id: u128::from(index) + 1,
        state: MemberState::Online,
        size_bytes,
        read_errors: 0,
        write_errors: 0,
        checksum_errors: 0,
        repaired: 0,
        path: String::new(),
        message: String::new(),
    };
    Arc::new(Member::new(&entry, device))
}

impl World {
    /// A world that takes a whole pool into one transaction group.
    fn with_much_memory(geometry: Geometry, count: usize, mib: u64, seed: u64) -> World {
        let mut world = World::new(geometry, count, mib, seed);
        world.pool().close().unwrap();
        world.options.memory_bytes = 2 << 30;
        world.import(|_| true).unwrap();
        world
    }

    /// Writes whole records until the pool refuses; returns how many.
    fn write_until_full(&self, first: u64) -> u64 {
        let ds = self.dataset();
        let data = pattern(first, RECORD as usize);
        for i in 0.. {
            let (id, slot) = (first + i / 64, i % 64);
            let result = ds
                .begin(Intent::Grow)
                .and_then(|tx| Store::write(&*ds, &tx, object(id), slot * u64::from(RECORD), &data));
            if let Err(e) = result {
                assert_eq!(e.errno(), nix::errno::Errno::ENOSPC, "{e}");
                return i;
            }
        }
        unreachable!("the pool never gets full")
    }
}

/// Answers flushes when it is told to.
struct SlowFlush {
    info: DeviceInfo,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Device for SlowFlush {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let (open, completions) = (self.open.clone(), completions.clone());
        std::thread::spawn(move || {
            let mut is_open = open.0.lock();
            while !*is_open {
                open.1.wait(&mut is_open);
            }
            requests.iter().for_each(|(tag, _)| completions.complete(*tag, Outcome::Done(Vec::new())));
        });
    }

    fn drive(&self, _timeout: Duration) -> bool {
        false
    }

    fn check_presence(&self) -> Result<(), IoError> {
        Ok(())
    }
}

#[test]
fn a_flush_does_not_rely_on_one_that_another_thread_has_not_finished() {
    let open = Arc::new((Mutex::new(false), Condvar::new()));
    let info = new_disk("disk", 64).0.info().clone();
    let device: Arc<dyn Device> = Arc::new(SlowFlush { info, open: open.clone() });
    let member = member(0, 64 << 20, Some(device));
    let space = Arc::new(Space::new(geometry(1, 0), 22, vec![member], Vec::new()).unwrap());
    let records = Arc::new(RecordStore::new(space, 1 << 20));
    // a rebuild flushes, and meanwhile a commit wants to write its uberblock
    let flush = |records: &Arc<RecordStore>| {
        let records = records.clone();
        std::thread::spawn(move || records.flush())
    };
    let rebuild = flush(&records);
    std::thread::sleep(Duration::from_millis(100));
    let commit = flush(&records);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!commit.is_finished(), "nothing was flushed yet, but the commit would go on");
    *open.0.lock() = true;
    open.1.notify_all();
    rebuild.join().unwrap();
    commit.join().unwrap();
}

#[test]
fn a_replacement_that_is_itself_replaced_keeps_the_old_device_as_its_source() {
    for parity in [0, 1] {
        let mut world = World::new(geometry(2, parity), 2 + parity as usize, 80, 21);
        let files = fill(&world, 2000, 20);
        world.pool().commit().unwrap();
        let first = new_disk("new0", 80);
        world.pool().begin_replace("disk0", first.0.clone()).unwrap();
        if parity == 0 {
            // the new device is not even good for the rebuild
            first.1.vanish();
            world.pool().check_devices();
        }
        let second = new_disk("new1", 80);
        world.pool().begin_replace("new0", second.0.clone()).unwrap();
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Finished, "{}", job.message());
        world.drop_caches();
        compare(&world, &files);
        assert_eq!(world.scrub(), (0, 0, 0));
        assert!(world.pool().status().devices.iter().all(|d| d.state == MemberState::Online));
        world.disks[0] = second;
        world.import(|_| true).unwrap();
        compare(&world, &files);
        world.check();
    }
}

#[test]
fn a_new_device_that_dies_during_the_replacement_does_not_stop_the_pool() {
    let mut world = World::new(geometry(2, 0), 2, 80, 22);
    let mut files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    new.1.vanish();
    files.extend(fill(&world, 2100, 10));
    world.pool().commit().unwrap();
    world.drop_caches();
    compare(&world, &files);
    world.import(|_| true).unwrap();
    compare(&world, &files);
    files.extend(fill(&world, 2200, 10));
    world.pool().commit().unwrap();
    world.check();
}

#[test]
fn a_device_that_dies_while_it_is_replaced_and_comes_back_is_neither_a_source_nor_a_member_any_more() {
    let world = World::new(geometry(2, 1), 3, 80, 23);
    let mut files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    world.disks[0].1.vanish();
    files.extend(fill(&world, 2100, 20));
    world.pool().commit().unwrap();
    world.disks[0].1.reappear();
    let candidate = Candidate::new(world.disks[0].0.clone()).unwrap();
    let error = world.pool().online("disk0", candidate).unwrap_err();
    assert!(error.to_string().contains("was replaced"), "{error}");
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    assert_eq!(world.scrub(), (0, 0, 0), "what the returned device missed was not taken from it");
    compare(&world, &files);
}

#[test]
fn a_device_that_dies_while_it_is_replaced_is_gone_afterwards() {
    let world = World::new(geometry(2, 1), 3, 80, 24);
    let files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    world.disks[0].1.vanish();
    world.pool().check_devices();
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    compare(&world, &files);
    let status = world.pool().status();
    assert!(status.devices.iter().all(|d| d.in_service), "{:?}", status.devices);
}

#[test]
fn a_pool_promises_no_space_on_devices_that_leave_or_are_gone() {
    // being replaced
    let world = World::with_much_memory(geometry(2, 1), 3, 80, 25);
    let new = new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    assert!(world.write_until_full(3000) > 100);
    world.pool().commit().unwrap();
    world.check_degraded();
    // more devices than columns, one is gone
    let world = World::with_much_memory(geometry(2, 1), 4, 80, 26);
    world.disks[3].1.vanish();
    world.pool().check_devices();
    world.pool().commit().unwrap();
    assert!(world.write_until_full(3000) > 100);
    world.pool().commit().unwrap();
    world.check_degraded();
}

#[test]
fn taking_a_device_offline_never_stops_the_pool() {
    for first in 0..4 {
        for second in (0..4).filter(|s| *s != first) {
            let world = World::new(geometry(1, 1), 4, 80, 27);
            // hardly any group holds anything yet
            world.pool().offline(&format!("disk{first}")).unwrap();
            let _ = world.pool().offline(&format!("disk{second}"));
            assert_eq!(world.pool().suspended(), None, "{first} and then {second}");
            let files = fill(&world, 2000, 3);
            world.pool().commit().unwrap();
            compare(&world, &files);
        }
    }
}

#[test]
fn a_full_pool_whose_free_rows_are_scattered_holds_what_was_promised() {
    let world = World::with_much_memory(geometry(3, 1), 4, 56, 28);
    let ds = world.dataset();
    // one row each
    let small = |id| ObjectRef { id, record_size: 16 << 10 };
    let data = pattern(1, 12 << 10);
    let mut count = 0u64;
    loop {
        let (id, slot) = (3000 + count / 1024, count % 1024);
        match ds.begin(Intent::Grow).and_then(|tx| Store::write(&*ds, &tx, small(id), slot << 14, &data)) {
            Ok(()) => count += 1,
            Err(_) => break,
        }
    }
    world.pool().commit().unwrap();
    for i in (0..count).step_by(2) {
        let tx = ds.begin(Intent::Shrink).unwrap();
        let (id, slot) = (3000 + i / 1024, i % 1024);
        Store::punch(&*ds, &tx, small(id), slot << 14..(slot + 1) << 14).unwrap();
    }
    for _ in 0..4 {
        world.pool().commit().unwrap();
    }
    assert!(world.write_until_full(9000) > 20);
    world.pool().commit().unwrap();
    assert_eq!(world.pool().suspended(), None);
    world.check();
}

#[test]
fn an_fsync_that_turns_to_a_commit_takes_nothing_from_the_log_of_others() {
    let mut world = World::new(geometry(2, 1), 3, 80, 29);
    world.write(4000, 0, &pattern(1, 5000));
    world.pool().commit().unwrap();
    // a name of 4001, and its contents
    let ds = world.dataset();
    let name = Key::new(4001, 2, 7);
    {
        let tx = ds.begin(Intent::Grow).unwrap();
        Store::put(&*ds, &tx, name, Arc::from(b"name".as_slice()), Log::Always);
    }
    world.write(4001, 0, &pattern(2, 5000));
    world.write(4000, 0, &pattern(3, 5000));
    // somebody syncs 4000, part of which was committed without having been logged, and is still waiting for a commit
    ds.log_object(object(4000), &[]).unwrap();
    // when somebody else syncs 4001
    let before = world.pool().committed_txg();
    world.fsync(4001);
    if world.pool().committed_txg() == before {
        world.crash(CrashMode::LoseAll);
    }
    drop(ds);
    world.import(|_| true).unwrap();
    let ds = world.dataset();
    assert!(world.read(4001, 0, 5000).unwrap() == pattern(2, 5000));
    assert!(Store::get(&*ds, name).unwrap().is_some(), "what was acknowledged has no name");
}

#[test]
fn a_rebuild_goes_on_past_rows_that_nobody_can_read() {
    let world = World::new(geometry(2, 1), 3, 80, 30);
    let files = fill(&world, 2000, 40);
    world.pool().commit().unwrap();
    let hit = 2005;
    let fragments = world.pool().locate(1, hit).unwrap();
    let bad = fragments.iter().find(|f| f.device_index == 0).unwrap();
    let range = bad.device_offset..bad.device_offset + 4096;
    world.disks[0].1.inject(Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Read).within(range));
    world.disks[1].1.vanish();
    let new = new_disk("new1", 80);
    world.pool().begin_replace("disk1", new.0.clone()).unwrap();
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    assert!(job.lost.load(Ordering::Relaxed) > 0);
    assert!(!world.pool().needs_rebuild());
    // everything else has its redundancy again
    world.disks[2].1.vanish();
    world.drop_caches();
    for (id, data) in files.iter().filter(|(id, _)| **id != hit) {
        assert!(world.read(*id, 0, data.len()).unwrap() == *data, "object {id}");
    }
}

#[test]
fn an_import_that_fails_in_the_replay_does_not_go_back_to_an_older_state() {
    let mut world = World::new(geometry(2, 1), 3, 80, 31);
    fill(&world, 2000, 5);
    world.pool().commit().unwrap();
    fill(&world, 2100, 5);
    world.pool().commit().unwrap();
    let ds = world.dataset();
    {
        let tx = ds.begin(Intent::Grow).unwrap();
        let value = Store::get(&*ds, Key::new(1, 1, 0)).unwrap().unwrap();
        Store::put(&*ds, &tx, Key::new(1, 1, 0), value, Log::KeepContentFields);
    }
    drop(ds);
    world.fsync(2100);
    world.crash(CrashMode::LoseAll);
    let newest = |world: &World| {
        let c = Candidate::new(world.disks[0].0.clone()).unwrap();
        read_uberblocks(&c.device, &c.label).into_iter().next().unwrap()
    };
    let before = newest(&world);
    for group in world.pool().space.groups().iter().filter(|g| g.class == Class::Meta) {
        for c in group.columns.read().iter() {
            let offset = world.pool().space.offset(c.place, 0);
            world.disks[usize::from(c.place.device)].1.overwrite(offset, &vec![0x5a; 4 << 20]);
        }
    }
    assert!(world.import(|_| true).is_err());
    let after = newest(&world);
    assert!(after.root == before.root, "went back from {} to before {}", before.txg, after.txg);
    for disk in &world.disks {
        let c = Candidate::new(disk.0.clone()).unwrap();
        let wrong = c.uberblocks.iter().find(|u| u.generation > before.generation && u.root != before.root);
        assert!(wrong.is_none(), "an older root was made the newest: {:?}", wrong.map(|u| (u.generation, u.txg)));
    }
}

#[test]
fn whatever_was_admitted_fits_at_the_commit() {
    for (k, m, n, seed) in [(4, 2, 6, 1), (4, 2, 7, 2), (3, 1, 5, 3), (2, 0, 2, 4), (5, 1, 6, 5), (1, 1, 3, 6)] {
        let world = World::with_much_memory(geometry(k, m), n, 56, seed);
        let ds = world.dataset();
        let random = SeededRandom::new(seed);
        let data = pattern(seed, 1 << 20);
        for round in 0..3u64 {
            let mut refused = 0;
            for op in 0..20_000u64 {
                let id = 3000 + random.below(40);
                let record = [4096u32, 16 << 10, 128 << 10, 1 << 20][(id % 4) as usize];
                let o = ObjectRef { id, record_size: record };
                let offset = random.below(300) * 4096 * (1 + u64::from(record) / 32_768);
                let len = match random.below(4) {
                    0 => 4096,
                    1 => 4096 * (1 + random.below(8)),
                    2 => record as u64,
                    _ => 1 + random.below(200_000),
                };
                let done = if random.chance(1, 4) {
                    ds.begin(Intent::Shrink).and_then(|tx| Store::punch(&*ds, &tx, o, offset..offset + len))
                } else {
                    ds.begin(Intent::Grow).and_then(|tx| Store::write(&*ds, &tx, o, offset, &data[..len as usize]))
                };
                if let Err(e) = done {
                    assert_eq!(e.errno(), nix::errno::Errno::ENOSPC, "{k}+{m} round {round} op {op}: {e}");
                    refused += 1;
                    if refused > 200 {
                        break;
                    }
                }
            }
            if let Err(e) = world.pool().commit() {
                panic!("{k}+{m} on {n}, round {round}, {refused} refused: {e}");
            }
        }
        assert_eq!(world.pool().space.reserved(), 0, "{k}+{m}");
        world.check_degraded();
    }
}

#[test]
fn a_crash_at_every_write_of_a_replacement_loses_nothing() {
    for after in (1..400).step_by(11) {
        let mut world = World::new(geometry(2, 1), 3, 64, after);
        let mut files = fill(&world, 2000, 12);
        world.pool().commit().unwrap();
        let mut config = SimConfig { name: "new0".to_owned(), ..SimConfig::new(64 << 20) };
        config.power = world.power.clone();
        let new = SimDevice::create(config);
        world.power.cut_after(after);
        if world.pool().begin_replace("disk0", new.0.clone()).is_ok() {
            let job = world.pool().new_rebuild();
            world.pool().run_rebuild(&job);
        }
        world.disks.push(new);
        world.crash(CrashMode::Random { seed: after });
        world.import(|_| true).unwrap();
        compare(&world, &files);
        if world.pool().needs_rebuild() {
            let job = world.rebuild();
            assert_eq!(job.state(), JobState::Finished, "crash after {after}: {}", job.message());
        }
        let (_, _, lost) = world.scrub();
        assert_eq!((lost, world.scrub()), (0, (0, 0, 0)), "crash after {after}");
        files.extend(fill(&world, 2100, 5));
        world.pool().commit().unwrap();
        world.check();
        compare(&world, &files);
    }
}

#[test]
fn a_damaged_object_that_is_deleted_is_no_longer_reported_after_a_scrub() {
    let mut world = World::new(geometry(2, 1), 3, 80, 33);
    fill(&world, 2000, 10);
    world.pool().commit().unwrap();
    for f in world.pool().locate(1, 2006).unwrap().iter().filter(|f| f.column < 2) {
        let disk = &world.disks[usize::from(f.device_index)].1;
        disk.overwrite(f.device_offset, &pattern(f.device_offset, f.len as usize));
    }
    assert!(world.scrub().2 > 0);
    assert_eq!(world.pool().status().damaged.len(), 1);
    assert!(world.scrub().2 > 0);
    assert_eq!(world.pool().status().damaged.len(), 1, "still there");
    let ds = world.dataset();
    let tx = ds.begin(Intent::Shrink).unwrap();
    Store::punch(&*ds, &tx, object(2006), 0..u64::MAX).unwrap();
    drop(tx);
    drop(ds);
    world.pool().commit().unwrap();
    assert_eq!(world.scrub().2, 0);
    assert!(world.pool().status().damaged.is_empty());
    world.pool().close().unwrap();
    world.import(|_| true).unwrap();
    assert!(world.pool().status().damaged.is_empty());
}

#[test]
fn an_import_without_enough_devices_changes_nothing() {
    let mut world = World::new(geometry(1, 1), 6, 80, 31);
    let files = fill(&world, 2000, 40);
    world.pool().commit().unwrap();
    let error = world.import(|i| i > 1).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Degraded, "{error}");
    world.import(|_| true).unwrap();
    assert!(world.pool().status().devices.iter().all(|d| d.state == MemberState::Online));
    compare(&world, &files);
    world.check();
}

#[test]
fn a_log_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    use crate::device::sim::{Effect, Fault, Operation};
    let mut world = World::new(geometry(2, 1), 3, 80, 32);
    world.pool().commit().unwrap();
    world.write(5000, 0, &pattern(1, 5000));
    world.fsync(5000);
    let group = world.pool().log.segments()[0].clone();
    let zones: Vec<_> = group.columns.read().iter().map(|c| c.place).collect();
    let size = u64::from(group.zone_rows()) * 4096;
    for place in &zones {
        let start = world.pool().space.offset(*place, 0);
        let disk = &world.disks[usize::from(place.device)].1;
        disk.inject(Fault::new(Effect::Fail { errno: 5 }).on(Operation::Read).within(start..start + size));
    }
    world.crash(CrashMode::LoseAll);
    assert_eq!(world.import(|_| true).unwrap_err().kind(), crate::ErrorKind::Io);
    world.disks.iter().for_each(|d| d.1.clear_faults());
    world.import(|_| true).unwrap();
    assert!(world.read(5000, 0, 5000).unwrap() == pattern(1, 5000), "the acknowledged write is lost");
    world.check();
}

#[test]
fn halves_that_ran_apart_are_named_at_the_import_of_both() {
    let mut world = World::new(geometry(2, 2), 4, 64, 77);
    world.write(2000, 0, &pattern(1, 200_000));
    world.pool().commit().unwrap();
    // a device that only missed changes has none of its own
    world.pool().offline("disk3").unwrap();
    world.write(2001, 0, &pattern(2, 200_000));
    world.pool().commit().unwrap();
    world.import(|_| true).unwrap();
    assert!(world.pool().warnings.lock().iter().all(|w| !w.contains("apart")), "{:?}", world.pool().warnings.lock());

    let mut world = World::new(geometry(2, 2), 4, 64, 78);
    world.write(2000, 0, &pattern(1, 200_000));
    world.pool().commit().unwrap();
    for (half, object) in [([0, 1], 3000), ([2, 3], 4000)] {
        world.import(|i| half.contains(&i)).unwrap();
        assert!(world.pool().warnings.lock().iter().all(|w| !w.contains("apart")));
        // the second half goes further: it is the one that is taken
        for round in 0..object / 1000 {
            world.write(object, 0, &pattern(round, 200_000));
            world.pool().commit().unwrap();
        }
    }
    world.import(|_| true).unwrap();
    assert_eq!(world.read(4000, 0, 200_000).unwrap(), pattern(3, 200_000));
    let warnings = world.pool().warnings.lock().clone();
    for disk in ["disk0", "disk1"] {
        let named = warnings.iter().filter(|w| w.contains("apart") && w.contains(disk)).count();
        assert_eq!(named, 1, "{warnings:?}");
    }
    assert_eq!(warnings.iter().filter(|w| w.contains("apart")).count(), 2, "{warnings:?}");
}

/// One bad sector of the ring hides the slot it lies in, and no other.
#[test]
fn an_uberblock_that_cannot_be_read_hides_no_other() {
    for parity in [0, 1] {
        let mut world = World::new(geometry(1, parity), 1 + parity as usize, 80, 50);
        let mut files = fill(&world, 2000, 10);
        (0..40).for_each(|_| world.pool().commit().unwrap());
        let txg = world.pool().committed_txg();
        world.pool().close().unwrap();
        // an old one, in the middle of the ring, by one sector
        let sector = layout::slot_offset(txg - 9) + 8192;
        let bad = Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Read).within(sector..sector + 4096);
        world.disks[0].1.inject(bad);
        world.import(|_| true).unwrap_or_else(|e| panic!("parity {parity}: {e}"));
        assert!(world.pool().committed_txg() > txg, "nothing was lost");
        assert!(world.pool().space.members().iter().all(|m| m.state() == MemberState::Online), "parity {parity}");
        let warnings = world.pool().status().warnings;
        assert!(warnings.iter().any(|w| w.contains("disk0") && w.contains("cannot be read")), "{warnings:?}");
        compare(&world, &files);
        files.extend(fill(&world, 2100, 3));
        // every slot is written anew
        (0..layout::RING_SLOTS + 2).for_each(|_| world.pool().commit().unwrap());
        world.check();
        assert_eq!(world.scrub(), (0, 0, 0));
        world.disks[0].1.clear_faults();
        world.crash(CrashMode::LoseAll);
        world.import(|_| true).unwrap();
        compare(&world, &files);
        let warnings = world.pool().status().warnings;
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn a_label_that_cannot_be_rewritten_does_not_keep_the_pool_away() {
    for disks in [1, 3] {
        let mut world = World::new(geometry(1, u32::from(disks > 1)), disks, 64, 1);
        world.write(1, 0, &pattern(1, 10_000));
        world.pool().close().unwrap();
        let disk = &world.disks[disks - 1];
        let first = layout::label_offsets(disk.0.info().size_bytes)[0];
        let sector = first..first + 4096;
        disk.1.inject(Fault::new(Effect::Fail { errno: 5 }).on(Operation::Read).within(sector.clone()));
        disk.1.inject(Fault::new(Effect::Fail { errno: 5 }).on(Operation::Write).within(sector));
        world.import(|_| true).unwrap();
        let warnings = world.pool().status().warnings;
        assert!(warnings.iter().any(|w| w.contains("could not be rewritten")), "{warnings:?}");
        assert_eq!(world.pool().space.members()[disks - 1].state(), MemberState::Online);
        assert_eq!(world.read(1, 0, 10_000).unwrap(), pattern(1, 10_000));
        world.check();
        world.disks[disks - 1].1.clear_faults();
        world.import(|_| true).unwrap();
        let warnings = world.pool().status().warnings;
        assert!(!warnings.iter().any(|w| w.contains("could not")), "{warnings:?}");
    }
}

#[test]
fn a_state_that_may_be_hidden_behind_a_bad_sector_is_not_written_over() {
    for parity in [0, 1] {
        let mut world = World::new(geometry(1, parity), 1 + parity as usize, 80, 40);
        let mut files = fill(&world, 2000, 3);
        world.pool().close().unwrap();
        let newest = Candidate::new(world.disks[0].0.clone()).unwrap().uberblocks[0].txg;
        let sector = layout::slot_offset(newest);
        world.disks[0]
            .1
            .inject(Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Read).within(sector..sector + 4096));
        match world.import(|_| true) {
            Ok(()) => assert_eq!(parity, 1, "another device has it"),
            Err(e) => assert!(parity == 0 && e.to_string().contains("newest state"), "parity {parity}: {e}"),
        }
        world.disks[0].1.clear_faults();
        if world.pool.is_none() {
            world.import(|_| true).unwrap();
        }
        world.rebuild();
        compare(&world, &files);
        files.extend(fill(&world, 2100, 3));
        compare(&world, &files);
        world.check();
    }
}
