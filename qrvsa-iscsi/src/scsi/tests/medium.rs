//! Removable media, sanitizing.

use super::*;

#[test]
fn a_medium_goes_and_comes() {
    let world = World::new();
    let (nexus, other) = (world.nexus(1), world.nexus(2));
    world.good(&other, &[0x1e, 0, 0, 0, 1, 0], &[]);
    assert_eq!(world.refused(&nexus, &[0x1b, 0, 0, 0, 2, 0], &[]), (5, 0x53, 2));
    world.units.nexus_lost(&other);
    world.good(&nexus, &[0x1b, 0, 0, 0, 2, 0], &[]);
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (2, 0x3a, 0));
    assert_eq!(world.refused(&nexus, &cdb10(0x28, 0, 0, 1), &[]), (2, 0x3a, 0));
    let other = world.fresh(3);
    assert_eq!(world.refused(&other, &[0; 6], &[]), (6, 0x29, 0));
    world.good(&nexus, &[0x1b, 0, 0, 0, 3, 0], &[]);
    world.good(&nexus, &[0; 6], &[]);
    assert_eq!(world.refused(&other, &[0; 6], &[]), (6, 0x28, 0));
    world.units.eject_medium(1, false).expect("ejects");
    world.units.load_medium(1, Arc::new(MemoryBacking::new(1 << 20))).expect("loads");
    assert_eq!(world.refused(&nexus, &[0; 6], &[]), (6, 0x28, 0));
    world.good(&nexus, &[0x1b, 0, 0, 0, 0, 0], &[]);
    world.good(&nexus, &[0; 6], &[]);
}

#[derive(Default)]
struct Ends(Mutex<Vec<Option<[u8; 8]>>>);

impl crate::scsi::TaskEnd for Ends {
    fn end_tasks(
        &self,
        nexuses: Option<&[Arc<Nexus>]>,
        lun: Option<[u8; 8]>,
        spare: Option<&Arc<Nexus>>,
    ) -> Vec<Arc<Nexus>> {
        assert!(nexuses.is_none() && spare.is_none());
        self.0.lock().push(lun);
        Vec::new()
    }
}

#[test]
fn commands_for_one_medium_do_not_run_on_the_next() {
    let world = World::new();
    let ends = Arc::new(Ends::default());
    world.units.set_task_end(ends.clone());
    world.units.load_medium(1, Arc::new(MemoryBacking::new(1 << 20))).expect("loads");
    assert_eq!(*ends.0.lock(), [Some(lun::encode(1))]);
}

#[test]
fn sanitizing_goes_on_when_its_command_is_aborted() {
    let world = World::new();
    // so large that it is far from its end
    world.units.add_unit(2, config(), Arc::new(crate::backing::NullBacking::new(1 << 40))).expect("adds");
    let nexus = world.fresh(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    std::thread::scope(|scope| {
        let command = scope.spawn(|| world.run_on(2, &nexus, &[0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 9]));
        while sense(&world.run_on(2, &nexus, &[0; 6], &[])) != Some((2, 4, 0x1b)) {
            std::thread::yield_now();
        }
        while !command.is_finished() {
            world.units.manage(&nexus, lun::encode(2), crate::scsi::Management::AbortTask(1));
            std::thread::yield_now();
        }
        assert_eq!(command.join().expect("joins").status, 8);
    });
    let progress = world.run_on(2, &nexus, &[0x03, 0, 0, 0, 18, 0], &[]).data_in;
    assert_eq!((progress[2], progress[12], progress[13], progress[15]), (2, 4, 0x1b, 0x80));
}

#[test]
fn sanitizing_overwrites_and_erases() {
    let world = World::new();
    world.units.unit(1).expect("unit").sanitize.hasty.store(true, std::sync::atomic::Ordering::Relaxed);
    let nexus = world.nexus(1);
    world.good(&nexus, &[0x48, 1, 0, 0, 0, 0, 0, 0, 7, 0], &[1, 0, 0, 3, 0xaa, 0xbb, 0xcc]);
    let data = world.good(&nexus, &cdb16(0x88, 0, BLOCKS - 1, 1), &[]);
    assert_eq!(data[..4], [0xaa, 0xbb, 0xcc, 0xaa]);
    for list in [vec![0, 0, 0, 1, 1], vec![1, 0, 0, 2, 1], vec![1, 0, 0, 0, 1]] {
        assert_eq!(world.refused(&nexus, &[0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0], &list), (5, 0x26, 0), "{list:?}");
    }
    world.good(&nexus, &[0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    // it runs by itself; until it is over nothing else does
    loop {
        let response = world.run(&nexus, &cdb10(0x28, 0, 0, 1), &[]);
        match sense(&response) {
            None => break assert_eq!(response.data_in, [0; BLOCK]),
            Some(sense) => assert_eq!(sense, (2, 4, 0x1b)),
        }
        std::thread::yield_now();
    }
    world.good(&nexus, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    world.good(&nexus, &[0x04, 0, 0, 0, 0, 0], &[]);
}

#[test]
fn a_unit_without_storage_is_there_and_not_ready() {
    let kept: Arc<Kept> = Arc::default();
    let named = UnitConfig { scsi_id: "disk7".into(), ..config() };
    let world = World::with(kept.clone(), named.clone());
    let nexus = world.nexus(1);
    let names = world.good(&nexus, &[0x12, 1, 0x83, 1, 0, 0], &[]);
    let mut key = vec![0; 24];
    key[15] = 7;
    key[20] = 1;
    world.good(&nexus, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &key);

    // the same target after a restart, without the storage
    let units = TargetUnits::new("iqn.2026-01.test:disks", Some(kept.clone()));
    units.add_unavailable(1, named.clone()).expect("adds");
    let world = World { units, kept, disk: Arc::new(MemoryBacking::new(1 << 20)) };
    let nexus = world.nexus_of_absent(1);
    assert_eq!(world.good(&nexus, &[0x12, 1, 0x83, 1, 0, 0], &[]), names);
    assert_eq!(world.good(&nexus, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[])[..4], [0, 0, 0, 16]);
    assert_eq!(world.good(&nexus, &[0x03, 0, 0, 0, 18, 0], &[])[12..14], [4, 3]);
    world.good(&nexus, &[0x1a, 0, 0x3f, 0, 255, 0], &[]);
    for cdb in [vec![0; 6], cdb10(0x25, 0, 0, 0), cdb10(0x28, 0, 0, 1), cdb10(0x35, 0, 0, 0), vec![0x1b, 0, 0, 0, 1, 0]]
    {
        assert_eq!(world.refused(&nexus, &cdb, &[]), (2, 4, 3), "{cdb:x?}");
    }
    assert_eq!(world.refused(&nexus, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], &[]), (2, 4, 3), "nobody knows the keys now");
    assert_eq!(world.refused(&nexus, &[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &key), (2, 4, 3));

    // the storage comes, and what was stored of the unit with it
    world.units.add_unit(1, named.clone(), Arc::new(MemoryBacking::new(1 << 20))).expect("takes its place");
    assert_eq!(world.refused(&nexus, &[0; 6], &[]).0, 6);
    while world.run(&nexus, &[0; 6], &[]).status == 2 {}
    assert_eq!(world.good(&nexus, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], &[])[15], 7);
    assert!(world.units.add_unavailable(1, named).is_err(), "a unit that serves stays");
}

#[test]
fn nothing_is_left_of_another_unit() {
    let kept: Arc<Kept> = Arc::default();
    let world = World::with(kept.clone(), config());
    let keys = world.units.stored_keys(1);
    for key in &keys {
        kept.put(key, b"of another unit").expect("keeps");
    }
    kept.put("reservations/iqn.2026-01.test:disks/2", b"of LUN 2").expect("keeps");
    world.units.forget_stored(1).expect("forgets");
    for key in &keys {
        assert_eq!(kept.get(key).expect("reads").unwrap_or_default(), b"", "{key}");
    }
    assert!(!kept.get("reservations/iqn.2026-01.test:disks/2").expect("reads").unwrap_or_default().is_empty());
}

#[test]
fn what_initiators_make_of_a_medium_is_told() {
    let world = World::new();
    let nexus = world.nexus(1);
    let other = world.nexus(2);
    let state = || world.units.medium(1).expect("a unit");
    assert_eq!(state(), MediumState::default());
    world.good(&nexus, &[0x1e, 0, 0, 0, 1, 0], &[]);
    assert_eq!(state(), MediumState { removal_prevented: true, ..MediumState::default() });
    world.good(&nexus, &[0x1e, 0, 0, 0, 0, 0], &[]);
    // SWP, byte 4 of the control mode page
    world.good(&nexus, &[0x15, 0x10, 0, 0, 16, 0], &[0, 0, 0, 0, 0x0a, 10, 0, 0x10, 8, 0, 0, 0, 0xff, 0xff, 0, 0]);
    assert!(state().write_protected);
    world.good(&nexus, &[0x1b, 0, 0, 0, 2, 0], &[]);
    assert!(state().ejected);
    while world.refused(&other, &[0; 6], &[]).0 == 6 {}
    assert_eq!(world.refused(&other, &[0; 6], &[]), (2, 0x3a, 0));
    world.units.reload_medium(1).expect("loads");
    assert_eq!(world.refused(&other, &[0; 6], &[]), (6, 0x28, 0));
    assert!(!state().ejected);
    world.good(&other, &[0; 6], &[]);
    world.units.reload_medium(1).expect("is loaded");
    world.good(&other, &[0; 6], &[]);
    assert!(world.units.medium(9).is_none() && world.units.reload_medium(9).is_err());
}

/// A world whose LUN 2 takes hours to overwrite, and its storage.
fn large() -> (World, Arc<Nexus>, Arc<crate::backing::NullBacking>) {
    let world = World::new();
    let disk = Arc::new(crate::backing::NullBacking::new(1 << 40));
    world.units.add_unit(2, config(), disk.clone()).expect("adds");
    let nexus = world.fresh(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    (world, nexus, disk)
}

const OVERWRITE: [u8; 10] = [0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0];

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !happened() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_sanitizing_that_has_to_wait_lets_its_command_go() {
    let (world, nexus, _disk) = large();
    let unit = world.units.unit(2).expect("unit");
    std::thread::scope(|scope| {
        let hold = unit.ranges.enter(0, 8, false);
        let command = scope.spawn(|| world.run_on(2, &nexus, &OVERWRITE, &[1, 0, 0, 1, 9]));
        until("it never began", || sense(&world.run_on(2, &nexus, &[0; 6], &[])) == Some((2, 4, 0x1b)));
        world.units.tasks_ended(&world.fresh(7));
        assert!(!command.is_finished(), "the tasks of somebody else");
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            until("its session waits for it", || {
                world.units.tasks_ended(&nexus);
                command.is_finished()
            });
        }));
        drop(hold);
        assert!(ended.is_ok());
        assert_eq!(command.join().expect("joins").status, 8);
    });
    assert_eq!(sense(&world.run_on(2, &nexus, &[0; 6], &[])), Some((2, 4, 0x1b)), "the work goes on");
}

#[test]
fn sanitizing_stops_where_its_unit_goes() {
    let (world, nexus, disk) = large();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| world.run_on(2, &nexus, &OVERWRITE, &[1, 0, 0, 1, 9]));
        until("it never began", || sense(&world.run_on(2, &nexus, &[0; 6], &[])) == Some((2, 4, 0x1b)));
        world.units.remove_unit(2).expect("removes");
        assert_eq!(command.join().expect("joins").status, 8);
    });
    until("the storage is held", || Arc::strong_count(&disk) == 1);
    world.units.add_unit(2, config(), disk.clone()).expect("adds");
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    assert_eq!(world.run_on(2, &nexus, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 9]).status, 0);
    drop(world);
    until("the storage is held", || Arc::strong_count(&disk) == 1);
}

/// A world whose LUN 2 fails.
fn failing(kept: Arc<Kept>) -> (World, Arc<Nexus>, Arc<Managed>) {
    let world = World::with(kept, config());
    let disk = Arc::new(Managed::new());
    disk.fails.store(true, std::sync::atomic::Ordering::SeqCst);
    world.units.add_unit(2, config(), disk.clone()).expect("adds");
    world.units.unit(2).expect("unit").sanitize.hasty.store(true, std::sync::atomic::Ordering::Relaxed);
    let nexus = world.fresh(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    (world, nexus, disk)
}

const FORMAT: [u8; 6] = [0x04, 0, 0, 0, 0, 0];
/// OVERWRITE with AUSE.
const OVERWRITE_AUSE: [u8; 10] = [0x48, 0x21, 0, 0, 0, 0, 0, 0, 5, 0];
const EXIT_FAILURE: [u8; 10] = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
const NINES: [u8; 5] = [1, 0, 0, 1, 9];

#[test]
fn a_format_that_failed_can_be_repeated() {
    let (world, nexus, disk) = failing(Arc::default());
    let run = |cdb: &[u8], data: &[u8]| sense(&world.run_on(2, &nexus, cdb, data));
    assert_eq!(run(&FORMAT, &[]), Some((3, 0x31, 1)));
    assert_eq!(run(&[0; 6], &[]), Some((3, 0x31, 1)));
    assert_eq!(run(&EXIT_FAILURE, &[]), Some((3, 0x31, 1)), "that is for sanitizing");
    assert_eq!(run(&FORMAT, &[]), Some((3, 0x31, 1)));
    disk.fails.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!((run(&FORMAT, &[]), run(&[0; 6], &[])), (None, None));
    disk.fails.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(run(&FORMAT, &[]), Some((3, 0x31, 1)));
    disk.fails.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!((run(&OVERWRITE, &NINES), run(&[0; 6], &[])), (None, None), "a SANITIZE does as well");
}

#[test]
fn restricted_completion_is_not_escaped() {
    let (world, nexus, disk) = failing(Arc::default());
    let run = |cdb: &[u8], data: &[u8]| sense(&world.run_on(2, &nexus, cdb, data));
    assert_eq!(run(&OVERWRITE_AUSE, &NINES), Some((3, 0x31, 3)));
    assert_eq!(run(&FORMAT, &[]), Some((3, 0x31, 3)), "a format does not do for a sanitizing");
    assert_eq!((run(&EXIT_FAILURE, &[]), run(&[0; 6], &[])), (None, None));
    assert_eq!(run(&OVERWRITE, &NINES), Some((3, 0x31, 3)));
    let refused = world.run_on(2, &nexus, &OVERWRITE_AUSE, &NINES);
    assert_eq!((sense(&refused), &refused.sense[15..18]), (Some((5, 0x24, 0)), &[0xcd, 0, 1][..]));
    assert_eq!(run(&EXIT_FAILURE, &[]), Some((5, 0x24, 0)));
    assert_eq!(run(&[0; 6], &[]), Some((3, 0x31, 3)));
    disk.fails.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!((run(&OVERWRITE, &NINES), run(&[0; 6], &[])), (None, None));
}

/// The target after a restart, with this storage at LUN 2.
fn restarted(kept: &Arc<Kept>, disk: Arc<dyn Backing>) -> (World, Arc<Nexus>) {
    let world = World::with(kept.clone(), config());
    world.units.add_unit(2, config(), disk).expect("adds");
    let nexus = world.fresh(1);
    while sense(&world.run_on(2, &nexus, &[0; 6], &[])).is_some_and(|sense| sense.0 == 6) {}
    (world, nexus)
}

#[test]
fn an_interrupted_sanitizing_goes_on_after_a_restart() {
    let (world, nexus, disk) = failing(Arc::default());
    disk.fails.store(false, Ordering::SeqCst);
    // what was stored when the first block was erased
    let (crash, store): (Arc<Kept>, _) = (Arc::default(), world.kept.clone());
    let into = crash.clone();
    *disk.before.lock() = Some(Box::new(move || into.0.lock().clone_from(&store.0.lock())));
    assert_eq!(world.run_on(2, &nexus, &[0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0], &[]).status, 0);
    assert_eq!(world.units.sanitize_keeper(2).get(), Ok(None), "it is over");

    let old = Arc::new(Managed::new());
    old.memory.write(0, &[7; BLOCK], false).expect("writes");
    let (world, nexus) = restarted(&crash, old.clone());
    until("it never ended", || match sense(&world.run_on(2, &nexus, &[0; 6], &[])) {
        None => true,
        other => other != Some((2, 4, 0x1b)) && panic!("{other:x?}"),
    });
    assert_eq!(world.run_on(2, &nexus, &cdb10(0x28, 0, 0, 1), &[]).data_in, [0; BLOCK]);
    assert_eq!(world.units.sanitize_keeper(2).get(), Ok(None));
}

#[test]
fn stopping_interrupts_and_removing_forgets() {
    let (world, nexus, disk) = large();
    assert_eq!(world.run_on(2, &nexus, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &NINES).status, 0);
    let kept = world.kept.clone();
    drop(world);
    let (world, nexus) = restarted(&kept, disk.clone());
    assert_eq!(sense(&world.run_on(2, &nexus, &[0; 6], &[])), Some((2, 4, 0x1b)));
    // other storage at its place is not overwritten, and not offered as if it had been
    drop(world);
    let other = Arc::new(MemoryBacking::new(BLOCKS * BLOCK as u64));
    other.write(0, &[7; BLOCK], false).expect("writes");
    let (world, nexus) = restarted(&kept, other.clone());
    assert_eq!(sense(&world.run_on(2, &nexus, &[0; 6], &[])), Some((3, 0x31, 3)));
    world.units.remove_unit(2).expect("removes");
    drop(world);
    let (world, nexus) = restarted(&kept, other);
    assert_eq!(world.run_on(2, &nexus, &cdb10(0x28, 0, 0, 1), &[]).data_in, [7; BLOCK]);
    drop(world);
    kept.put("sanitize/iqn.2026-01.test:disks/2", b"qrvsa-sanitize 1\nof").expect("puts");
    let world = World::with(kept, config());
    assert!(world.units.add_unit(2, config(), Arc::new(MemoryBacking::new(1 << 20))).is_err());
}

#[test]
fn failures_outlive_the_process() {
    let kept: Arc<Kept> = Arc::default();
    for (cdb, data, code) in
        [(&FORMAT[..], &[][..], 1), (&OVERWRITE_AUSE[..], &NINES[..], 3), (&OVERWRITE[..], &NINES[..], 3)]
    {
        let (world, nexus, disk) = failing(kept.clone());
        assert_eq!(sense(&world.run_on(2, &nexus, cdb, data)), Some((3, 0x31, code)));
        drop(world);
        disk.fails.store(false, Ordering::SeqCst);
        let (world, nexus) = restarted(&kept, disk.clone());
        world.units.unit(2).expect("unit").sanitize.hasty.store(true, Ordering::Relaxed);
        let run = |cdb: &[u8], data: &[u8]| sense(&world.run_on(2, &nexus, cdb, data));
        assert_eq!(run(&[0; 6], &[]), Some((3, 0x31, code)));
        assert_eq!(run(&cdb10(0x28, 0, 0, 1), &[]), Some((3, 0x31, code)));
        if cdb == OVERWRITE_AUSE {
            assert_eq!(run(&EXIT_FAILURE, &[]), None);
        } else {
            assert!(cdb != OVERWRITE || run(&OVERWRITE_AUSE, &NINES) == Some((5, 0x24, 0)));
            assert_eq!(run(cdb, data), None);
        }
        drop(world);
        let (world, nexus) = restarted(&kept, disk);
        assert_eq!(sense(&world.run_on(2, &nexus, &[0; 6], &[])), None);
    }
}
