//! Replacements that meet commits, damage, and disks that do not answer.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::device::batch::Completions;
use crate::device::{DeviceInfo, HostSpace, IoError, Request};
use crate::pool::format::entries::Class;

type Hooks = Arc<Mutex<VecDeque<Box<dyn FnOnce() + Send>>>>;

/// A disk that grows on a filesystem. Something happens before each of its uberblocks is written.
struct Growing {
    disk: Arc<dyn Device>,
    before_uberblocks: Hooks,
}

impl Device for Growing {
    fn info(&self) -> &DeviceInfo {
        self.disk.info()
    }

    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let ring = layout::RING_OFFSET..layout::RING_OFFSET + layout::RING_SLOTS * layout::SLOT_BYTES as u64;
        let is_uberblock = |r: &Request| matches!(r, Request::Write { offset, .. } if ring.contains(offset));
        if requests.iter().any(|(_, r)| is_uberblock(r)) {
            let hook = self.before_uberblocks.lock().pop_front();
            hook.into_iter().for_each(|hook| hook());
        }
        self.disk.submit(requests, completions);
    }

    fn drive(&self, timeout: Duration) -> bool {
        self.disk.drive(timeout)
    }

    fn check_presence(&self) -> Result<(), IoError> {
        self.disk.check_presence()
    }

    fn host_space(&self) -> Option<HostSpace> {
        Some(HostSpace { taken_bytes: 0, free_bytes: 1 << 40 })
    }
}

impl World {
    fn new_disk(&self, name: &str, mib: u64) -> (Arc<dyn Device>, SimControl) {
        let (power, clock) = (self.power.clone(), Arc::default());
        SimDevice::create(SimConfig { name: name.to_owned(), power, clock, ..SimConfig::new(mib << 20) })
    }

    fn has_stale_columns(pool: &Pool) -> bool {
        pool.space.groups().iter().any(|g| g.columns.read().iter().any(|c| c.stale))
    }
}

/// The commit has stored the groups as they were when the rebuild is done with them: the root on the devices still takes
/// the columns from the old device.
#[test]
fn a_rebuild_that_ends_during_a_commit_leaves_the_old_device_as_it_was() {
    for parity in [0, 1] {
        let mut world = World::new(geometry(1, parity), 1 + parity as usize, 80, 40);
        let mut files = fill(&world, 2000, 20);
        world.pool().close().unwrap();
        let hooks = Hooks::default();
        let disk = world.disks[0].0.clone();
        world.disks[0].0 = Arc::new(Growing { disk, before_uberblocks: hooks.clone() });
        world.import(|_| true).unwrap();
        let new = world.new_disk("new0", 80);
        world.pool().begin_replace("disk0", new.0.clone()).unwrap();
        world.disks.push(new);

        let rebuild = Arc::new(Mutex::new(None));
        let (pool, handle, power) = (world.pool().clone(), rebuild.clone(), world.power.clone());
        hooks.lock().push_back(Box::new(move || {
            let at_work = pool.clone();
            *handle.lock() = Some(std::thread::spawn(move || at_work.run_rebuild(&at_work.new_rebuild())));
            let deadline = Instant::now() + Duration::from_secs(120);
            while World::has_stale_columns(&pool) && Instant::now() < deadline {
                std::thread::yield_now();
            }
            assert!(!World::has_stale_columns(&pool), "the rebuild is done before the uberblock is written");
        }));
        hooks.lock().push_back(Box::new(move || power.cut()));
        files.extend(fill(&world, 2100, 5));
        world.pool().commit().unwrap();
        let rebuild = rebuild.lock().take().unwrap();
        rebuild.join().unwrap();
        assert!(world.power.is_off(), "the next commit never came that far");

        world.crash(CrashMode::LoseAll);
        world.import(|_| true).unwrap();
        assert!(World::has_stale_columns(world.pool()), "the unmarking was lost");
        compare(&world, &files);
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Finished, "{}", job.message());
        world.drop_caches();
        compare(&world, &files);
        assert_eq!(world.scrub(), (0, 0, 0), "parity {parity}");
        world.check();
    }
}

/// Objects of one block with gaps between: the rows in use are many short runs.
fn scattered(world: &World, count: u64) -> BTreeMap<u64, Vec<u8>> {
    let files: BTreeMap<u64, Vec<u8>> = (0..count).map(|id| (3000 + 2 * id, pattern(id, 4096))).collect();
    for (id, data) in &files {
        world.write(*id, 0, data);
        world.write(*id + 1, 0, data);
    }
    world.pool().commit().unwrap();
    let ds = world.dataset();
    for id in files.keys() {
        let tx = ds.begin(Intent::Shrink).unwrap();
        Store::punch(&*ds, &tx, object(*id + 1), 0..u64::MAX).unwrap();
    }
    drop(ds);
    (0..3).for_each(|_| world.pool().commit().unwrap());
    files
}

#[test]
fn a_disk_that_hangs_is_asked_by_a_rebuild_once_if_others_are_enough() {
    let mut world = World::new(geometry(2, 2), 4, 80, 41);
    let files = scattered(&world, 200);
    let new = world.new_disk("new3", 80);
    world.disks[3].1.vanish();
    world.pool().begin_replace("disk3", new.0.clone()).unwrap();
    compare(&world, &files);
    world.disks[0].1.inject(Fault::new(Effect::Hang).on(Operation::Read));
    world.disks[0].1.start_trace();
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    let asked = world.disks[0].1.take_trace().iter().filter(|e| e.operation == Operation::Read).count();
    // the trees are read, too
    assert!(asked <= 4, "asked {asked} times");
    world.disks[0].1.clear_faults();
    world.disks[3] = new;
    world.drop_caches();
    compare(&world, &files);
    assert_eq!(world.scrub(), (0, 0, 0));
}

#[test]
fn what_is_only_late_is_not_given_up_by_a_rebuild() {
    for parity in [0, 1] {
        let mut world = World::new(geometry(2, parity), 2 + parity as usize, 80, 42);
        let files = fill(&world, 2000, 20);
        world.pool().commit().unwrap();
        let new = world.new_disk("new0", 80);
        world.pool().begin_replace("disk0", new.0.clone()).unwrap();
        // with parity, one of the two others is needed if the old device does not answer
        for disk in 0..=parity as usize {
            world.disks[disk].1.inject(Fault::new(Effect::Hang).on(Operation::Read));
        }
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Failed, "{}", job.message());
        assert!(job.message().contains("answered"), "{}", job.message());
        assert_eq!(job.lost.load(Ordering::Relaxed), 0);
        assert!(world.pool().needs_rebuild());
        world.disks.iter().for_each(|d| d.1.clear_faults());
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Finished, "{}", job.message());
        world.disks[0] = new;
        world.drop_caches();
        compare(&world, &files);
        assert_eq!(world.scrub(), (0, 0, 0));
        world.import(|_| true).unwrap();
        compare(&world, &files);
    }
}

#[test]
fn a_slow_rebuild_lets_others_have_the_group_between_its_runs() {
    let world = World::new(geometry(1, 1), 2, 80, 43);
    let files = scattered(&world, 200);
    let new = world.new_disk("new1", 80);
    world.disks[1].1.vanish();
    world.pool().begin_replace("disk1", new.0.clone()).unwrap();
    let groups = world.pool().space.groups();
    let group = groups.iter().max_by_key(|g| if g.class == Class::Data { g.used_rows() } else { 0 }).unwrap();
    let stale: Vec<usize> = (0..2).filter(|i| group.columns.read()[*i].stale).collect();
    let job = world.pool().new_rebuild();
    let piece = |row| world.pool().rebuild_piece(&job, group, &stale, row, &mut BTreeSet::new()).unwrap();
    let whole = piece(0);
    world.disks[0].1.inject(Fault::new(Effect::Slow { duration: Duration::from_secs(3) }).on(Operation::Read));
    let (mut row, mut pieces) = (0, 0);
    while row < whole {
        let next = piece(row);
        assert!(next > row, "it goes on");
        (row, pieces) = (next, pieces + 1);
    }
    assert!(row == whole && pieces > 10, "{pieces} pieces");
    world.disks[0].1.clear_faults();
    assert_eq!(world.rebuild().state(), JobState::Finished);
    compare(&world, &files);
    assert_eq!(world.scrub(), (0, 0, 0));
}

#[test]
fn what_was_repaired_during_a_replacement_is_not_overwritten_by_the_rot_it_was_repaired_from() {
    let world = World::new(geometry(2, 1), 3, 80, 44);
    let files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = world.new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    let fragments = world.pool().locate(1, 2006).unwrap();
    for f in fragments.iter().filter(|f| f.device_index == 3) {
        let group = world.pool().space.group(f.group).unwrap();
        let previous = group.columns.read()[f.column as usize].previous.unwrap();
        let offset = world.pool().space.offset(previous, f.row);
        world.disks[0].1.overwrite(offset, &pattern(offset, f.len as usize));
    }
    world.drop_caches();
    assert!(world.scrub().1 > 0, "the rot was found and repaired");
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    assert_eq!(world.scrub(), (0, 0, 0));
    compare(&world, &files);
}

/// Between the change of columns and the commit of it, an import reads the log on the old ones.
#[test]
fn the_log_acknowledges_nothing_while_its_columns_change() {
    let world = World::new(geometry(1, 1), 2, 80, 45);
    world.pool().commit().unwrap();
    world.write(1, 0, &pattern(1, 4096));
    world.fsync(1);
    let committed = world.pool().committed_txg();
    world.write(1, 4096, &pattern(2, 4096));
    world.fsync(1);
    assert_eq!(world.pool().committed_txg(), committed, "by the log");
    world.pool().log.pause_until_commit();
    world.write(1, 8192, &pattern(3, 4096));
    world.fsync(1);
    assert!(world.pool().committed_txg() > committed, "by a commit");
    let committed = world.pool().committed_txg();
    world.write(1, 0, &pattern(4, 4096));
    world.fsync(1);
    assert_eq!(world.pool().committed_txg(), committed, "by the log again");
    // also when the commit had nothing new
    world.pool().log.pause_until_commit();
    world.pool().commit().unwrap();
    let committed = world.pool().committed_txg();
    for seed in 5..8 {
        world.write(1, 0, &pattern(seed, 4096));
        world.fsync(1);
    }
    assert!(world.pool().committed_txg() <= committed + 1, "one commit more at most");
}

fn state_of(world: &World, path: &str) -> MemberState {
    let members = world.pool().space.members();
    members.iter().find(|m| m.path() == path).unwrap_or_else(|| panic!("no {path}")).state()
}

fn broken_write() -> Fault {
    Fault::new(Effect::Fail { errno: libc::EIO }).on(Operation::Write).once()
}

#[test]
fn a_disk_that_fails_while_it_is_replaced_does_not_come_back() {
    for restart in [true, false] {
        let mut world = World::new(geometry(1, 1), 2, 80, 46);
        let mut files = fill(&world, 2000, 20);
        world.pool().commit().unwrap();
        let new = world.new_disk("new0", 80);
        world.pool().begin_replace("disk0", new.0.clone()).unwrap();
        world.disks.push(new);
        world.disks[0].1.inject(broken_write());
        files.extend(fill(&world, 2100, 5));
        world.pool().commit().unwrap();
        assert_eq!(state_of(&world, "disk0"), MemberState::Removed);
        let status = world.pool().status();
        assert_eq!(status.more_failures_survived, 0, "the other one has yet to get everything");
        if restart {
            world.crash(CrashMode::LoseAll);
            world.import(|_| true).unwrap();
            assert_eq!(state_of(&world, "disk0"), MemberState::Removed);
        }
        let error = world.pool().online("disk0", Candidate::new(world.disks[0].0.clone()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("was replaced"), "{error}");
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Finished, "{}", job.message());
        assert_eq!([state_of(&world, "disk0"), state_of(&world, "new0")], [MemberState::Removed, MemberState::Online]);
        files.extend(fill(&world, 2200, 5));
        world.pool().commit().unwrap();
        assert_eq!(world.scrub(), (0, 0, 0));
        // it is not needed, and not counted
        world.import(|i| i == 2).unwrap();
        compare(&world, &files);
    }
}

/// As versions before this one left it: faulted, with columns that still name it as where they come from.
#[test]
fn a_disk_that_gave_way_and_is_listed_as_faulted_is_removed_when_it_returns() {
    let mut world = World::new(geometry(1, 1), 2, 80, 47);
    let files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = world.new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    world.disks.push(new);
    let old = world.pool().find_member("disk0").unwrap();
    old.set_state(MemberState::Faulted, "a test");
    world.pool().commit().unwrap();
    let error = world.pool().online("disk0", Candidate::new(world.disks[0].0.clone()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("was replaced"), "{error}");
    world.import(|_| true).unwrap();
    assert_eq!(state_of(&world, "disk0"), MemberState::Removed);
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    assert_eq!([state_of(&world, "disk0"), state_of(&world, "new0")], [MemberState::Removed, MemberState::Online]);
    assert_eq!(world.scrub(), (0, 0, 0));
    compare(&world, &files);
}

#[test]
fn a_disk_that_goes_while_it_is_replaced_is_not_missed_by_imports() {
    for offline in [false, true] {
        let mut world = World::new(geometry(2, 1), 3, 80, 48);
        let mut files = fill(&world, 2000, 20);
        world.pool().commit().unwrap();
        let new = world.new_disk("new0", 80);
        world.pool().begin_replace("disk0", new.0.clone()).unwrap();
        world.disks.push(new);
        if offline {
            world.pool().offline("disk0").unwrap();
        } else {
            // not there at an import that still lists it
            world.import(|i| i != 0).unwrap();
        }
        assert_eq!(state_of(&world, "disk0"), MemberState::Removed);
        files.extend(fill(&world, 2100, 5));
        let job = world.rebuild();
        assert_eq!(job.state(), JobState::Finished, "{}", job.message());
        world.pool().close().unwrap();
        // and of the three that are left, another one
        world.import(|i| i >= 2).unwrap_or_else(|e| panic!("offline: {offline}: {e}"));
        compare(&world, &files);
    }
}

/// Without redundancy, what the new disk has yet to get is on the old one alone.
#[test]
fn what_only_a_failing_disk_has_is_not_given_up_by_its_replacement() {
    let mut world = World::new(geometry(1, 0), 1, 80, 49);
    let files = fill(&world, 2000, 20);
    world.pool().commit().unwrap();
    let new = world.new_disk("new0", 80);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    world.disks.push(new);
    world.disks[0].1.inject(broken_write());
    fill(&world, 2100, 5);
    world.pool().commit().unwrap_err();
    world.crash(CrashMode::LoseAll);
    world.import(|i| i == 1).expect_err("the new one alone is not enough");
    world.import(|_| true).unwrap();
    assert_eq!(state_of(&world, "disk0"), MemberState::Leaving);
    compare(&world, &files);
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    world.import(|i| i == 1).unwrap();
    compare(&world, &files);
    assert_eq!(world.scrub(), (0, 0, 0));
}

#[test]
fn a_replacement_that_a_commit_made_impossible_changes_nothing() {
    let mut world = World::new(geometry(1, 1), 2, 160, 50);
    let record = pattern(1, RECORD as usize);
    let fill_zones = |world: &World, first: u64, zones: u64| {
        for id in first.. {
            if world.pool().space.used_zones(0) >= zones {
                return;
            }
            (0..32).for_each(|slot| world.write(id, slot * u64::from(RECORD), &record));
            world.pool().commit().unwrap();
        }
    };
    fill_zones(&world, 3000, 14);
    let needed = world.pool().space.used_zones(0);
    let zones_bytes = |zones: u64| layout::DATA_START + layout::TAIL_BYTES + (zones << world.pool().space.zone_shift);
    let small = world.new_disk("small", zones_bytes(needed).div_ceil(1 << 20));
    let hooks = Hooks::default();
    let small: Arc<dyn Device> = Arc::new(Growing { disk: small.0, before_uberblocks: hooks.clone() });
    // when it is wiped, it has been found large enough
    let pool = world.pool().clone();
    let ds = world.dataset();
    let data = record.clone();
    hooks.lock().push_back(Box::new(move || {
        for id in 4000.. {
            if pool.space.used_zones(0) > needed {
                return;
            }
            for slot in 0..32 {
                let tx = ds.begin(Intent::Grow).unwrap();
                Store::write(&*ds, &tx, object(id), slot * u64::from(RECORD), &data).unwrap();
            }
            pool.commit().unwrap();
        }
    }));
    let error = world.pool().begin_replace("disk0", small.clone()).unwrap_err();
    assert!(error.to_string().contains("too small"), "{error}");
    assert!(hooks.lock().is_empty());
    assert!(Candidate::new(small).is_err(), "it has no label");
    assert_eq!(state_of(&world, "disk0"), MemberState::Online);
    assert!(!World::has_stale_columns(world.pool()));
    assert_eq!(world.pool().space.members().len(), 2);
    world.pool().commit().unwrap();
    let new = world.new_disk("new0", 160);
    world.pool().begin_replace("disk0", new.0.clone()).unwrap();
    world.disks[0] = new;
    let job = world.rebuild();
    assert_eq!(job.state(), JobState::Finished, "{}", job.message());
    assert_eq!(world.scrub(), (0, 0, 0));
    world.import(|_| true).unwrap();
    assert_eq!(world.read(3000, 0, RECORD as usize).unwrap(), record);
}
