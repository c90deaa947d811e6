//! Replacements that meet commits, damage, and disks that do not answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::device::batch::Completions;
use crate::device::{DeviceInfo, HostSpace, IoError, Request};

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
