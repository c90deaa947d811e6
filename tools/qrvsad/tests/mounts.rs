//! Mounts: what is refused, what is remembered, and who may end them.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::sync::atomic::Ordering;

use qrvsa_api::*;
use qrvsad::mounter::SessionEnd;
use support::{TestDaemon, eventually};

#[test]
fn a_mount_comes_is_remembered_and_goes() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    let info = daemon.mount("tank", &at).unwrap();
    assert_eq!((info.state, &info.mountpoint), (MountState::Mounted, &at));
    assert_eq!(daemon.world.mounted(), [format!("tank on {} (ro)", at.display())]);
    assert_eq!(daemon.client().mounts().unwrap(), std::slice::from_ref(&info));
    assert_eq!(daemon.client().filesystems("tank").unwrap()[0].mountpoints, [at.as_path()]);
    assert_eq!(daemon.remembered().1, [at.as_path()]);

    daemon.client().unmount(info.id, false).unwrap();
    assert_eq!(daemon.world.mounted(), [""; 0]);
    assert_eq!(daemon.remembered().1.len(), 0);
    assert_eq!(daemon.client().unmount(info.id, false).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn bad_mount_points_each_have_their_error() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    let file = at.join("file");
    std::fs::write(&file, b"").unwrap();
    let link = daemon.mountpoint("links").join("link");
    std::os::unix::fs::symlink(&at, &link).unwrap();
    for (source, mountpoint, kind, part) in [
        ("none", &at, ErrorKind::NotFound, "no pool none"),
        ("tank/none", &at, ErrorKind::NotFound, "no filesystem tank/none"),
        ("tank", &at.join("none"), ErrorKind::NotFound, "mkdir -p"),
        ("tank", &file, ErrorKind::Invalid, "not a directory"),
        ("tank", &"relative".into(), ErrorKind::Invalid, "absolute"),
        ("tank", &"/proc".into(), ErrorKind::Busy, "in use"),
    ] {
        let error = daemon.mount(source, mountpoint).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    // A link is the directory it leads to.
    assert_eq!(daemon.mount("tank", &link).unwrap().mountpoint, at);
    let error = daemon.mount("tank", &at).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("tank is mounted there"), "{error}");
    // The kernel's caches allow one mount only.
    let error = daemon.mount("tank", &daemon.mountpoint("other")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.hint.contains("mount --bind"), "{error}");
    assert_eq!(daemon.client().mounts().unwrap().len(), 1);
}

#[test]
fn a_mount_that_fails_leaves_nothing() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    for option in ["bad", "", "a,b"] {
        let request =
            MountRequest { source: "tank".parse().unwrap(), mountpoint: at.clone(), options: vec![option.into()] };
        assert_eq!(daemon.client().mount(&request).unwrap_err().kind, ErrorKind::Invalid);
    }
    assert_eq!(daemon.client().mounts().unwrap(), []);
    assert_eq!(daemon.remembered().1.len(), 0);
    // A mount that could not be remembered would be gone after a restart: it is refused as a whole.
    let new = daemon.state_dir().join("state.json.new");
    std::fs::create_dir(&new).unwrap();
    let error = daemon.mount("tank", &at).unwrap_err();
    assert!(error.message.contains("cannot save its state"), "{error}");
    assert_eq!((daemon.client().mounts().unwrap(), daemon.world.mounted()), (vec![], vec![]));
    std::fs::remove_dir(&new).unwrap();
    daemon.mount("tank", &at).unwrap();
}

#[test]
fn a_mount_in_use_is_only_detached_on_request() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    let info = daemon.mount("tank", &at).unwrap();
    daemon.world.busy.lock().insert(at.clone());
    let error = daemon.client().unmount(info.id, false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.hint.contains("fuser"), "{error}");
    assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
    assert_eq!(daemon.remembered().1.len(), 1);
    daemon.client().unmount(info.id, true).unwrap();
    assert_eq!(daemon.world.mounted(), [""; 0]);
    let left = daemon.client().mounts().unwrap();
    assert_eq!((left[0].state, left[0].id), (MountState::Detached, info.id));
    assert!(left[0].message.contains("still used"), "{left:?}");
    assert_eq!(daemon.remembered().1.len(), 0, "it was unmounted");
    assert_eq!(daemon.client().filesystems("tank").unwrap()[0].mountpoints.len(), 0);
}

/// Two sessions on one filesystem would each cache it as if the other did not exist.
#[test]
fn what_is_detached_and_used_is_not_mounted_again() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let client = daemon.client();
    client.create_fs("tank", &CreateFs { name: "home".into(), properties: vec![] }).unwrap();
    let (at, other) = (daemon.mountpoint("mnt"), daemon.mountpoint("other"));
    let info = daemon.mount("tank/home", &at).unwrap();
    daemon.world.busy.lock().insert(at.clone());
    client.unmount(info.id, true).unwrap();
    for place in [&at, &other] {
        let error = daemon.mount("tank/home", place).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.message.contains("was unmounted from") && error.message.contains("open in process 7"), "{error}");
    }
    let home = "tank/home".parse().unwrap();
    assert_eq!(client.destroy_fs(&home, true).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(client.unmount(info.id, false).unwrap_err().kind, ErrorKind::Busy);
    client.unmount(info.id, true).unwrap();
    // the directory is free for another filesystem
    daemon.world.busy.lock().clear();
    let root = daemon.mount("tank", &at).unwrap();
    client.unmount(root.id, false).unwrap();
    daemon.world.let_go(&at);
    eventually("it is forgotten", || client.mounts().unwrap().is_empty());
    daemon.mount("tank/home", &at).unwrap();
    assert_eq!(daemon.remembered().1, [at]);
}

#[test]
fn a_mount_that_is_shown_elsewhere_ends_there() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let (client, at) = (daemon.client(), daemon.mountpoint("mnt"));
    for ends_by_itself in [true, false] {
        let info = daemon.mount("tank", &at).unwrap();
        daemon.world.bound.lock().insert(at.clone());
        let error = client.unmount(info.id, false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.message.contains("is detached, but its filesystem is still"), "{error}");
        assert_eq!(client.mounts().unwrap()[0].state, MountState::Detached);
        assert_eq!(daemon.remembered().1.len(), 0);
        if ends_by_itself {
            daemon.world.let_go(&at);
            eventually("it is forgotten", || client.mounts().unwrap().is_empty());
        } else {
            assert_eq!(client.export_pool("tank", false).unwrap_err().kind, ErrorKind::Busy);
            assert!(daemon.world.pools.lock()["tank"].imported);
            client.export_pool("tank", true).unwrap();
            assert_eq!(client.mounts().unwrap(), []);
        }
    }
    // its session lasts, but has no pool any more
    assert_eq!(daemon.world.detached.lock().len(), 1);
    daemon.world.let_go(&at);
}

/// What an export or a destruction that fails has unmounted is to come back, now or later.
#[test]
fn a_refused_export_takes_no_mount_away_for_good() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    daemon.mount("tank", &at).unwrap();
    for destroy in [false, true] {
        daemon.world.bound.lock().insert(at.clone());
        let client = daemon.client();
        let refused = if destroy { client.destroy_pool("tank", true) } else { client.export_pool("tank", false) };
        assert_eq!(refused.unwrap_err().kind, ErrorKind::Busy);
        let states: Vec<_> = client.mounts().unwrap().into_iter().map(|m| (m.mountpoint, m.state)).collect();
        assert_eq!(states, [(at.clone(), MountState::Detached), (at.clone(), MountState::Waiting)]);
        assert_eq!(daemon.remembered().1, [at.as_path()]);
        daemon.world.let_go(&at);
        eventually("the detached one is forgotten", || client.mounts().unwrap().len() == 1);
        daemon.stop();
        daemon.restart();
        assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
    }
    // unmounted, but not all of it stored
    daemon.world.losing.lock().insert(at.clone());
    let error = daemon.client().export_pool("tank", false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("mounted again"), "{error}");
    assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
    assert_eq!(daemon.remembered().1, [at]);
}

#[test]
fn an_unmount_that_could_not_store_everything_says_so() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let (client, at) = (daemon.client(), daemon.mountpoint("mnt"));
    daemon.world.losing.lock().insert(at.clone());
    let info = daemon.mount("tank", &at).unwrap();
    let error = client.unmount(info.id, false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("is unmounted, but"), "{error}");
    assert_eq!((client.mounts().unwrap(), daemon.remembered().1.len()), (vec![], 0));
    daemon.mount("tank", &at).unwrap();
    client.export_pool("tank", true).unwrap();
}

/// Once it has stopped writing, there is nothing that an export could still store; the way on is an export and an import.
#[test]
fn a_suspended_pool_is_exported_with_its_mounts() {
    let daemon = TestDaemon::start();
    let at = daemon.mountpoint("mnt");
    daemon.world.losing.lock().insert(at.clone());
    daemon.world.suspended.lock().insert("tank".into());
    for destroy in [false, true] {
        daemon.pool("tank");
        daemon.mount("tank", &at).unwrap();
        let client = daemon.client();
        // what is in use still needs force
        daemon.world.busy.lock().insert(at.clone());
        assert_eq!(client.export_pool("tank", false).unwrap_err().kind, ErrorKind::Busy);
        daemon.world.busy.lock().clear();
        if destroy { client.destroy_pool("tank", true) } else { client.export_pool("tank", false) }.unwrap();
        assert_eq!((daemon.world.mounted(), client.mounts().unwrap()), (vec![], vec![]));
        assert_eq!(client.pool("tank").unwrap_err().kind, ErrorKind::NotFound);
        daemon.world.used_devices.lock().clear();
    }
}

#[test]
fn options_of_a_mount_are_changed_and_remembered() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    let info = daemon.mount("tank", &at).unwrap();
    let options = |list: &[&str]| UpdateMount { options: list.iter().map(ToString::to_string).collect() };
    let changed = daemon.client().update_mount(info.id, &options(&["nosuid", "nodev"])).unwrap();
    assert_eq!((changed.state, changed.options.join(",").as_str()), (MountState::Mounted, "nosuid,nodev"));
    for (id, list, kind, part) in [
        (info.id, ["threads=3"], ErrorKind::Invalid, "cannot change threads"),
        (info.id, ["a,b"], ErrorKind::Invalid, "not valid"),
        (info.id + 1, ["ro"], ErrorKind::NotFound, "no mount"),
    ] {
        let error = daemon.client().update_mount(id, &options(&list)).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(daemon.client().mounts().unwrap(), [changed]);
    daemon.crash();
    daemon.restart();
    assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
    assert_eq!(daemon.world.mounted(), [format!("tank on {} (nosuid,nodev)", at.display())]);
}

#[test]
fn umount_by_an_administrator_is_noticed() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.pool("lake");
    let (a, b) = (daemon.mountpoint("a"), daemon.mountpoint("b"));
    daemon.mount("tank", &a).unwrap();
    daemon.mount("lake", &b).unwrap();
    daemon.world.external_unmount(&a);
    eventually("the mount is forgotten", || daemon.remembered().1 == [b.as_path()]);
    assert_eq!(daemon.client().mounts().unwrap().len(), 1);
    // It can be mounted again at once.
    daemon.mount("tank", &a).unwrap();
    assert_eq!(daemon.remembered().1.len(), 2);
}

#[test]
fn umount_by_the_shutdown_of_the_system_is_no_wish() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    daemon.mount("tank", &at).unwrap();
    daemon.world.system_stopping.store(true, Ordering::SeqCst);
    daemon.world.external_unmount(&at);
    daemon.stop();
    assert_eq!(daemon.remembered().1, [at.as_path()]);
    daemon.world.system_stopping.store(false, Ordering::SeqCst);
    daemon.restart();
    assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
}

#[test]
fn a_session_that_dies_is_shown_and_remembered() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    daemon.mount("tank", &at).unwrap();
    for detached_already in [false, true] {
        if detached_already {
            daemon.world.end_session(&at, SessionEnd::Failed("out of luck".into()));
        } else {
            daemon.world.kill_session(&at);
        }
        eventually("it waits", || daemon.client().mounts().unwrap()[0].state == MountState::Waiting);
        assert!(!daemon.world.stale.lock().contains(&at), "the dead mount is detached");
        let message = daemon.client().mounts().unwrap()[0].message.clone();
        assert_eq!(message.contains("out of luck"), detached_already, "{message}");
        assert_eq!(daemon.remembered().1, [at.as_path()]);
        let info = daemon.mount("tank", &at).unwrap();
        assert_eq!(daemon.client().mounts().unwrap(), [info]);
    }
}

#[test]
fn what_is_mounted_is_not_destroyed() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let client = daemon.client();
    client.create_fs("tank", &CreateFs { name: "home".into(), properties: vec![] }).unwrap();
    let at = daemon.mountpoint("mnt");
    let info = daemon.mount("tank/home", &at).unwrap();
    let error = client.destroy_fs(&"tank/home".parse().unwrap(), true).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.hint.contains("umount"), "{error}");
    daemon.world.busy.lock().insert(at.clone());
    assert_eq!(client.destroy_pool("tank", true).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(client.pool("tank").unwrap().summary.state, PoolState::Online);
    daemon.world.busy.lock().clear();
    client.unmount(info.id, false).unwrap();
    client.destroy_fs(&"tank/home".parse().unwrap(), true).unwrap();
}

#[test]
fn export_unmounts() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.pool("lake");
    let (a, b, c) = (daemon.mountpoint("a"), daemon.mountpoint("b"), daemon.mountpoint("c"));
    daemon.client().create_fs("tank", &CreateFs { name: "home".into(), properties: vec![] }).unwrap();
    daemon.mount("tank", &a).unwrap();
    daemon.mount("tank/home", &b).unwrap();
    daemon.mount("lake", &c).unwrap();
    daemon.world.busy.lock().insert(a.clone());
    assert_eq!(daemon.client().export_pool("tank", false).unwrap_err().kind, ErrorKind::Busy);
    assert!(daemon.world.pools.lock()["tank"].imported);
    daemon.client().export_pool("tank", true).unwrap();
    assert_eq!(daemon.world.lazy_unmounts.lock().as_slice(), [a]);
    assert_eq!(daemon.remembered(), (vec!["lake".to_owned()], vec![c]));
}

#[test]
fn many_at_once() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let same = daemon.mountpoint("same");
    std::thread::scope(|scope| {
        let tries: Vec<_> = (0..6).map(|_| scope.spawn(|| daemon.mount("tank", &same).is_ok())).collect();
        let own: Vec<_> = (0..6)
            .map(|i| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let (name, at) = (format!("fs{i}"), daemon.mountpoint(&format!("own{i}")));
                    daemon.client().create_fs("tank", &CreateFs { name: name.clone(), properties: vec![] }).unwrap();
                    let info = daemon.mount(&format!("tank/{name}"), &at).unwrap();
                    daemon.client().unmount(info.id, false).unwrap();
                })
            })
            .collect();
        assert_eq!(tries.into_iter().filter_map(|t| t.join().ok()).filter(|made| *made).count(), 1);
        for thread in own {
            thread.join().unwrap();
        }
    });
    assert_eq!(daemon.world.mounted().len(), 1);
    assert_eq!(daemon.remembered().1, [same]);
}
