//! Ends and beginnings: what was there comes back, whatever ended the daemon, and one bad pool keeps no other from it.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qrvsa_api::*;
use qrvsad::run::Claims;
use support::{PATIENCE, TestDaemon, eventually};

fn two_pools_mounted() -> (TestDaemon, Vec<std::path::PathBuf>) {
    let mut daemon = TestDaemon::new();
    let points = mount_two_pools(&mut daemon);
    (daemon, points)
}

/// Starts the daemon, and makes and mounts two pools.
fn mount_two_pools(daemon: &mut TestDaemon) -> Vec<std::path::PathBuf> {
    daemon.restart();
    daemon.pool("lake");
    daemon.pool("tank");
    let points = vec![daemon.mountpoint("lake"), daemon.mountpoint("tank")];
    daemon.mount("lake", &points[0]).unwrap();
    daemon.mount("tank", &points[1]).unwrap();
    points
}

#[test]
fn a_clean_stop_unmounts_and_exports_and_all_comes_back() {
    let (mut daemon, points) = two_pools_mounted();
    daemon.stop();
    assert_eq!(daemon.world.mounted(), [""; 0]);
    assert!(daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1 && !pool.imported));
    assert!(!daemon.socket().exists());
    assert_eq!(daemon.remembered().1, points);
    for _ in 0..2 {
        daemon.restart();
        assert_eq!(daemon.client().pools().unwrap().len(), 2);
        let mounts = daemon.client().mounts().unwrap();
        assert!(mounts.iter().all(|m| m.state == MountState::Mounted && m.options == ["ro"]), "{mounts:?}");
        assert_eq!(daemon.world.mounted().len(), 2);
        daemon.stop();
    }
}

#[test]
fn all_comes_back_after_a_crash() {
    let (mut daemon, points) = two_pools_mounted();
    for _ in 0..3 {
        daemon.crash();
        assert_eq!(daemon.world.stale.lock().len(), 2);
        daemon.restart();
        let mounts = daemon.client().mounts().unwrap();
        assert!(mounts.iter().all(|m| m.state == MountState::Mounted), "{mounts:?}");
        assert_eq!(daemon.world.stale.lock().len(), 0);
        assert_eq!(daemon.remembered().1, points);
    }
    // It looked where the devices were last seen, for the same pool.
    let import = daemon.world.imports.lock().last().unwrap().clone();
    assert_eq!((import.name.as_deref(), import.id.as_deref(), import.devices.len()), (Some("tank"), Some("4"), 4));
}

#[test]
fn a_new_device_is_remembered_before_the_pool_has_it() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.world.replace_gate.close();
    let replace = |client: Client, new: &str| {
        client.replace("tank", &ReplaceDevice { old: "0".into(), new: new.parse().unwrap(), force: false })
    };
    std::thread::scope(|scope| {
        let client = daemon.client();
        let asked = scope.spawn(move || replace(client, "/disks/new"));
        let waiting = &daemon.world.replace_gate.waiting;
        eventually("the pool has it", || waiting.load(std::sync::atomic::Ordering::SeqCst) == 1);
        // killed now, it would find it again
        let remembered = daemon.remembered_devices("tank");
        daemon.world.replace_gate.open();
        asked.join().unwrap().unwrap();
        assert!(remembered.contains(&"/disks/new".into()), "{remembered:?}");
    });
    daemon.world.used_devices.lock().insert("/disks/used".into());
    replace(daemon.client(), "/disks/used").unwrap_err();
    let remembered = daemon.remembered_devices("tank");
    assert!(!remembered.contains(&"/disks/used".into()), "{remembered:?}");
}

#[test]
fn what_was_ended_stays_ended() {
    let (mut daemon, points) = two_pools_mounted();
    let mounts = daemon.client().mounts().unwrap();
    daemon.client().unmount(mounts[0].id, false).unwrap();
    daemon.client().export_pool("tank", false).unwrap();
    daemon.crash();
    daemon.restart();
    assert_eq!(daemon.client().mounts().unwrap(), []);
    assert_eq!(daemon.client().pools().unwrap().len(), 1);
    assert!(daemon.remembered().1.is_empty(), "{points:?}");
}

#[test]
fn a_pool_that_cannot_be_imported_waits() {
    let (mut daemon, points) = two_pools_mounted();
    daemon.crash();
    daemon.world.missing_devices.lock().insert("/disks/lake0".into());
    daemon.restart();
    let client = daemon.client();
    let pools = client.pools().unwrap();
    assert_eq!((pools[0].name.as_str(), pools[0].state), ("lake", PoolState::Faulted));
    assert!(pools[0].message.contains("too few devices"));
    assert_eq!(pools[1].state, PoolState::Online);
    let status = client.pool("lake").unwrap();
    assert_eq!(status.summary.state, PoolState::Faulted);
    assert!(status.warnings.iter().any(|w| w.contains("/disks/lake0")));
    let states: Vec<_> = client.mounts().unwrap().iter().map(|m| m.state).collect();
    assert_eq!(states, [MountState::Waiting, MountState::Mounted]);

    // Everything that needs the pool says why not; its name is taken.
    for error in [
        client.sync_pool("lake").unwrap_err(),
        client.check("lake", false).unwrap_err(),
        client.filesystems("lake").unwrap_err(),
        client.destroy_pool("lake", true).unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Degraded, "{error}");
        assert!(error.hint.contains("qrvsa pool import lake"), "{error}");
    }
    let create = CreatePool { name: "lake".into(), geometry: None, devices: vec!["/x".parse().unwrap()], force: true };
    assert_eq!(client.create_pool(&create).unwrap_err().kind, ErrorKind::Exists);

    // It is remembered over further restarts, and comes back, with its mount, when its devices do.
    daemon.stop();
    daemon.restart();
    let client = daemon.client();
    assert_eq!(daemon.remembered(), (vec!["lake".to_owned(), "tank".to_owned()], points));
    let import = ImportPools { search: vec![], name: Some("lake".into()), force: false };
    assert_eq!(client.import(&import).unwrap_err().kind, ErrorKind::Degraded);
    daemon.world.missing_devices.lock().clear();
    assert_eq!(client.import(&import).unwrap().imported[0].name, "lake");
    assert!(client.mounts().unwrap().iter().all(|m| m.state == MountState::Mounted));
}

/// Mounts and units wait for the pool that is remembered, and for no other one of its name.
#[test]
fn a_waiting_pool_is_looked_for_by_its_id() {
    let (mut daemon, _) = two_pools_mounted();
    daemon.crash();
    daemon.world.missing_devices.lock().insert("/disks/lake0".into());
    daemon.restart();
    for name in [None, Some("lake".to_owned())] {
        let import = ImportPools { search: vec![], name, force: false };
        let _ = daemon.client().import(&import);
        let asked = daemon.world.imports.lock().last().unwrap().clone();
        assert_eq!(asked.known, [("lake".to_owned(), "4".to_owned())].into());
    }
    // a device of another pool of the name neither keeps it away nor counts as its failure
    daemon.world.missing_devices.lock().clear();
    daemon.world.namesakes.lock().insert("lake".into());
    let import = ImportPools { search: vec![], name: Some("lake".into()), force: false };
    let result = daemon.client().import(&import).unwrap();
    assert_eq!((result.imported[0].name.as_str(), result.failed[0].error.kind), ("lake", ErrorKind::Exists));
    assert_eq!(daemon.client().pool("lake").unwrap().summary.state, PoolState::Online);
    assert!(daemon.client().mounts().unwrap().iter().all(|m| m.state == MountState::Mounted));
}

#[test]
fn importing_without_a_name_tries_the_waiting_pools_too() {
    let (mut daemon, _) = two_pools_mounted();
    daemon.crash();
    daemon.world.missing_devices.lock().extend(["/disks/lake0".into(), "/disks/tank0".into()]);
    daemon.restart();
    assert!(daemon.client().pools().unwrap().iter().all(|pool| pool.state == PoolState::Faulted));
    daemon.world.missing_devices.lock().remove(std::path::Path::new("/disks/tank0"));
    let result = daemon.client().import(&ImportPools::default()).unwrap();
    assert_eq!((result.imported[0].name.as_str(), result.failed[0].name.as_str()), ("tank", "lake"));
    assert_eq!(daemon.world.mounted().len(), 1);
}

#[test]
fn a_pool_that_cannot_be_taken_away_comes_back() {
    let (mut daemon, points) = two_pools_mounted();
    let client = daemon.client();
    let import = ImportPools { search: vec![], name: Some("lake".into()), force: false };
    daemon.world.last_step_fails.store(true, Ordering::SeqCst);
    for take in [|c: &Client| c.export_pool("lake", false), |c: &Client| c.destroy_pool("lake", true)] {
        let error = take(&client).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{error}");
        assert!(error.hint.contains("qrvsa pool import lake"), "{error}");
        let pools = client.pools().unwrap();
        assert_eq!((pools[0].name.as_str(), pools[0].state), ("lake", PoolState::Faulted));
        assert!(pools[0].message.contains("last step"), "{pools:?}");
        assert_eq!(client.pool("lake").unwrap().summary.state, PoolState::Faulted);
        assert_eq!(client.sync_pool("lake").unwrap_err().kind, ErrorKind::Io);
        let (names, mut at) = daemon.remembered();
        at.sort();
        assert_eq!((names, at), (vec!["lake".to_owned(), "tank".to_owned()], points.clone()));
        // Its mount waits with it.
        assert_eq!(client.import(&import).unwrap().imported[0].name, "lake");
        assert!(client.mounts().unwrap().iter().all(|mount| mount.state == MountState::Mounted));
        assert_eq!(daemon.world.mounted().len(), 2);
    }
    daemon.world.last_step_fails.store(false, Ordering::SeqCst);
    // It can be forgotten as well; and what does not get that far undoes what was done.
    let home = daemon.mountpoint("home");
    client.create_fs("lake", &CreateFs { name: "home".into(), properties: vec![] }).unwrap();
    daemon.mount("lake/home", &home).unwrap();
    daemon.world.busy.lock().insert(points[0].clone());
    assert_eq!(client.export_pool("lake", false).unwrap_err().kind, ErrorKind::Busy);
    assert!(client.mounts().unwrap().iter().all(|mount| mount.state == MountState::Mounted));
    assert_eq!((daemon.world.mounted().len(), client.pools().unwrap()[0].state), (3, PoolState::Online));
    daemon.crash();
    daemon.restart();
    assert_eq!(daemon.client().mounts().unwrap().len(), 3);
    assert_eq!(daemon.world.mounted().len(), 3);
}

#[test]
fn a_waiting_pool_can_be_forgotten() {
    let (mut daemon, points) = two_pools_mounted();
    daemon.crash();
    daemon.world.pools.lock().remove("lake");
    daemon.restart();
    assert_eq!(daemon.client().pool("lake").unwrap().summary.state, PoolState::Faulted);
    daemon.client().export_pool("lake", false).unwrap();
    assert_eq!(daemon.client().pool("lake").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(daemon.remembered(), (vec!["tank".to_owned()], vec![points[1].clone()]));
}

#[test]
fn an_import_that_brings_the_engine_down_is_a_faulted_pool() {
    let (mut daemon, _) = two_pools_mounted();
    daemon.crash();
    daemon.world.import_panics.store(true, Ordering::SeqCst);
    daemon.restart();
    assert!(daemon.client().pools().unwrap().iter().all(|pool| pool.state == PoolState::Faulted));
    daemon.world.import_panics.store(false, Ordering::SeqCst);
    let result = daemon.client().import(&ImportPools::default()).unwrap();
    assert_eq!(result.imported.len(), 2);
    assert_eq!(daemon.world.mounted().len(), 2);
}

#[test]
fn a_mount_point_that_is_gone_waits() {
    let (mut daemon, points) = two_pools_mounted();
    daemon.crash();
    std::fs::remove_dir(&points[0]).unwrap();
    daemon.restart();
    let mounts = daemon.client().mounts().unwrap();
    let waiting = mounts.iter().find(|m| m.state == MountState::Waiting).unwrap();
    assert!(waiting.message.contains("does not exist"), "{waiting:?}");
    assert_eq!(daemon.remembered().1.len(), 2);
    // Restored elsewhere by hand, it goes on waiting: a filesystem has one mount.
    let elsewhere = daemon.mount("lake", &daemon.mountpoint("elsewhere")).unwrap();
    std::fs::create_dir(&points[0]).unwrap();
    daemon.crash();
    daemon.restart();
    let states: Vec<_> = daemon.client().mounts().unwrap().into_iter().map(|m| (m.source.pool, m.state)).collect();
    assert_eq!(states.iter().filter(|(pool, state)| pool == "lake" && *state == MountState::Mounted).count(), 1);
    assert_eq!(daemon.world.mounted().len(), 2);
    for mount in daemon.client().mounts().unwrap().into_iter().filter(|m| m.source == elsewhere.source) {
        daemon.client().unmount(mount.id, false).unwrap();
    }
    // It can be made again, or given up.
    daemon.mount("lake", &points[0]).unwrap();
    assert_eq!(daemon.client().mounts().unwrap().len(), 2);
    daemon.crash();
    std::fs::remove_dir(&points[0]).unwrap();
    daemon.restart();
    let mounts = daemon.client().mounts().unwrap();
    let waiting = mounts.iter().find(|m| m.state == MountState::Waiting).unwrap();
    daemon.client().unmount(waiting.id, false).unwrap();
    assert_eq!(daemon.remembered().1, [points[1].clone()]);
}

#[test]
fn mounts_in_use_are_detached_after_a_while() {
    let mut daemon = TestDaemon::new();
    daemon.config.unmount_patience = Duration::from_secs(2);
    let points = mount_two_pools(&mut daemon);
    daemon.world.busy.lock().insert(points[0].clone());
    let start = Instant::now();
    daemon.stop();
    assert!(start.elapsed() >= Duration::from_secs(2));
    // the other one too, if its turn came late
    assert!(daemon.world.lazy_unmounts.lock().contains(&points[0]));
    assert!(daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1));
    assert_eq!(daemon.remembered().1, points);
}

#[test]
fn mounts_that_are_shown_elsewhere_do_not_hold_up_the_end() {
    let mut daemon = TestDaemon::new();
    daemon.config.unmount_patience = Duration::from_secs(3600);
    let points = mount_two_pools(&mut daemon);
    daemon.world.bound.lock().insert(points[0].clone());
    daemon.stop();
    assert!(daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1));
    assert_eq!(daemon.remembered().1, points);
}

#[test]
fn a_second_signal_does_not_wait() {
    let mut daemon = TestDaemon::new();
    (daemon.config.unmount_patience, daemon.config.urgent_patience) = (Duration::from_secs(3600), PATIENCE);
    let points = mount_two_pools(&mut daemon);
    daemon.world.busy.lock().insert(points[0].clone());
    daemon.tell_to_stop();
    daemon.tell_to_stop();
    daemon.wait_for_end().unwrap();
    // the other one too, if the second signal was seen before its turn came
    assert!(daemon.world.lazy_unmounts.lock().contains(&points[0]));
    assert_eq!(daemon.world.mounted(), [""; 0]);
    assert!(daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1));
}

#[test]
fn stopping_does_not_wait_for_requests_that_hang() {
    let (mut daemon, _) = two_pools_mounted();
    daemon.world.sync_gate.close();
    let client = daemon.client();
    let hanging = std::thread::spawn(move || client.sync_pool("tank"));
    eventually("it hangs", || daemon.world.sync_gate.waiting.load(Ordering::SeqCst) == 1);
    daemon.tell_to_stop();
    eventually("pools are exported", || daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1));
    daemon.world.sync_gate.open();
    daemon.wait_for_end().unwrap();
    let _ = hanging.join().unwrap();
}

#[test]
fn a_check_under_way_is_stopped() {
    let (mut daemon, _) = two_pools_mounted();
    daemon.world.check_gate.close();
    daemon.client().check("tank", true).unwrap();
    daemon.stop();
    // It would go on for ever, and the daemon end without it.
    eventually("it is told to end", || daemon.world.checks_stopped.load(Ordering::SeqCst) == 1);
}

#[test]
fn stopping_while_starting_forgets_nothing() {
    let (mut daemon, points) = two_pools_mounted();
    daemon.crash();
    daemon.world.import_gate.close();
    daemon.restart();
    eventually("it imports", || daemon.world.import_gate.waiting.load(Ordering::SeqCst) == 1);
    daemon.tell_to_stop();
    // Time to hear of it; what follows holds whether it has or not.
    std::thread::sleep(Duration::from_millis(50));
    daemon.world.import_gate.open();
    daemon.wait_for_end().unwrap();
    assert_eq!(daemon.world.mounted(), [""; 0]);
    assert!(daemon.world.pools.lock().values().all(|pool| !pool.imported));
    assert_eq!(daemon.remembered(), (vec!["lake".to_owned(), "tank".to_owned()], points));
    daemon.restart();
    assert_eq!(daemon.client().pools().unwrap().len(), 2);
    assert_eq!(daemon.world.mounted().len(), 2);
}

#[test]
fn two_daemons_share_nothing() {
    let daemon = TestDaemon::start();
    let dir = tempfile::tempdir().unwrap();
    let error = Claims::take(&daemon.state_dir(), &dir.path().join("s")).err().unwrap();
    assert!(error.contains("state directory"), "{error}");
    let error = Claims::take(dir.path(), &daemon.socket()).err().unwrap();
    assert!(error.contains("serves"), "{error}");
    assert_eq!(daemon.client().pools().unwrap(), []);
}

#[test]
fn a_state_file_that_is_not_understood_is_not_overwritten() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.stop();
    let file = daemon.state_dir().join("state.json");
    std::fs::write(&file, b"{\"version\":99}").unwrap();
    daemon.restart();
    assert!(daemon.wait_for_end().unwrap_err().contains("newer"));
    assert_eq!(std::fs::read(&file).unwrap(), b"{\"version\":99}");
    std::fs::write(&file, b"garbage").unwrap();
    daemon.restart();
    assert_eq!(daemon.client().pools().unwrap(), []);
    assert_eq!(std::fs::read(daemon.state_dir().join("state.json.damaged")).unwrap(), b"garbage");
}
