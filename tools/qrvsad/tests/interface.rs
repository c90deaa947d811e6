//! The management interface over its socket: every resource, every kind of error, and no request that holds up another.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qrvsa_api::names::FsName;
use qrvsa_api::*;
use support::{PATIENCE, TestDaemon, eventually};

/// Sends raw bytes, returns the status and the body.
fn raw(daemon: &TestDaemon, request: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    // A request that is refused by its head may be answered before it is sent.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn http(daemon: &TestDaemon, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}", body.len());
    let (status, body) = raw(daemon, &format!("{head}\r\n\r\n{body}"));
    (status, if body.is_empty() { serde_json::Value::Null } else { serde_json::from_str(&body).unwrap() })
}

#[test]
fn a_pools_life() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    assert_eq!(client.pools().unwrap(), []);
    let info = client.daemon().unwrap();
    assert_eq!(info.pid, std::process::id());

    daemon.pool("tank");
    let list = client.pools().unwrap();
    assert_eq!((list.len(), list[0].name.as_str(), list[0].state), (1, "tank", PoolState::Online));
    let status = client.pool("tank").unwrap();
    assert_eq!((status.devices.len(), status.summary.geometry.as_str()), (4, "2+2"));

    client.sync_pool("tank").unwrap();
    assert_eq!(daemon.world.pools.lock()["tank"].syncs, 1);

    assert_eq!(client.offline("tank", "1").unwrap().summary.state, PoolState::Degraded);
    assert_eq!(client.online("tank", "/disks/tank1").unwrap().summary.state, PoolState::Online);
    assert_eq!(client.online("tank", "9").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.online("tank", "").unwrap_err().kind, ErrorKind::Invalid);

    assert_eq!(client.destroy_pool("tank", false).unwrap_err().kind, ErrorKind::NeedsForce);
    client.export_pool("tank", false).unwrap();
    assert_eq!(client.pool("tank").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(daemon.remembered().0, [""; 0]);
    let import = ImportPools { search: vec!["/".into()], name: Some("tank".into()), force: false };
    let result = client.import(&import).unwrap();
    assert_eq!((result.imported.len(), result.failed.len()), (1, 0));
    assert_eq!(client.import(&import).unwrap_err().kind, ErrorKind::Exists);
    client.destroy_pool("tank", true).unwrap();
    assert_eq!(client.pools().unwrap(), []);
    assert_eq!(client.import(&import).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn creating_a_pool_checks_what_it_is_given() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    let request = |name: &str, devices: &[&str], force| CreatePool {
        name: name.into(),
        geometry: Some("1+1".parse().unwrap()),
        devices: devices.iter().map(|d| d.parse().unwrap()).collect(),
        force,
    };
    for (request, kind) in [
        (request("-x", &["/a", "/b"], false), ErrorKind::Invalid),
        (request("tank", &[], false), ErrorKind::Invalid),
        (request("tank", &["/a"], false), ErrorKind::Invalid),
        (request("tank", &["/a", "/a"], false), ErrorKind::Invalid),
        (request("tank", &["a", "b"], false), ErrorKind::Invalid),
    ] {
        assert_eq!(client.create_pool(&request).unwrap_err().kind, kind, "{request:?}");
    }
    client.create_pool(&request("tank", &["/a:1G", "/b"], false)).unwrap();
    assert_eq!(client.create_pool(&request("tank", &["/c", "/d"], false)).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(client.create_pool(&request("lake", &["/a", "/d"], false)).unwrap_err().kind, ErrorKind::NeedsForce);
    client.create_pool(&request("lake", &["/a", "/d"], true)).unwrap();
    assert_eq!(daemon.remembered().0, ["lake", "tank"]);
}

#[test]
fn volumes() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    daemon.pool("tank");
    let name: FsName = "tank/disk".parse().unwrap();
    let request = |name: &str| CreateVolume {
        name: name.into(),
        size_bytes: 1 << 46,
        block_bytes: 4096,
        record_bytes: 16 << 10,
        reserve: false,
    };
    let made = client.create_volume("tank", &request("disk")).unwrap();
    assert_eq!((&made.name, made.size_bytes, made.block_bytes), (&name, 1 << 46, 4096));
    assert_eq!(client.create_volume("tank", &request("disk")).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(client.create_volume("tank", &request("a/b")).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(client.create_volume("none", &request("disk")).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.volumes("tank").unwrap(), vec![made.clone()]);
    assert_eq!(client.volume(&name).unwrap(), made);
    let none: FsName = "tank/none".parse().unwrap();
    assert_eq!(client.volume(&none).unwrap_err().kind, ErrorKind::NotFound);
    let size = |size_bytes, force| ResizeVolume { size_bytes, force };
    assert_eq!(client.resize_volume(&name, &size(1 << 47, false)).unwrap().size_bytes, 1 << 47);
    assert_eq!(client.resize_volume(&name, &size(1 << 30, false)).unwrap_err().kind, ErrorKind::NeedsForce);
    assert_eq!(client.resize_volume(&name, &size(1 << 30, true)).unwrap().size_bytes, 1 << 30);
    assert_eq!(client.resize_volume(&none, &size(1 << 30, true)).unwrap_err().kind, ErrorKind::NotFound);
    assert!(!client.volume_fragments(&name).unwrap().is_empty());
    assert_eq!(client.destroy_volume(&name, false).unwrap_err().kind, ErrorKind::NeedsForce);
    client.destroy_volume(&name, true).unwrap();
    assert_eq!(client.destroy_volume(&name, true).unwrap_err().kind, ErrorKind::NotFound);
    let root: FsName = "tank".parse().unwrap();
    assert_eq!(client.destroy_volume(&root, true).unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn filesystems_and_their_properties() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    daemon.pool("tank");
    let root: FsName = "tank".parse().unwrap();
    let home: FsName = "tank/home".parse().unwrap();
    let create = |name: &str| {
        let properties = vec![SetProperty { key: "compression".into(), value: "off".into() }];
        client.create_fs("tank", &CreateFs { name: name.into(), properties })
    };
    assert_eq!(create("home").unwrap().name, home);
    assert_eq!(create("home").unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(create("a/b").unwrap_err().kind, ErrorKind::Invalid);
    let names: Vec<_> = client.filesystems("tank").unwrap().into_iter().map(|fs| fs.name).collect();
    assert_eq!(names, [root.clone(), home.clone()]);

    let set =
        |name: &FsName, key: &str| client.set_property(name, &SetProperty { key: key.into(), value: "a=b c".into() });
    assert!(set(&root, "note").unwrap().iter().any(|p| p.key == "note" && p.value == "a=b c"));
    assert_eq!(set(&root, "created").unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(set(&"tank/none".parse().unwrap(), "note").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.properties(&home).unwrap().len(), 2);

    assert_eq!(client.destroy_fs(&home, false).unwrap_err().kind, ErrorKind::NeedsForce);
    client.destroy_fs(&home, true).unwrap();
    assert_eq!(client.destroy_fs(&home, true).unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.destroy_fs(&root, true).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(client.fragments(&root, 77).unwrap()[3].device_offset, 77);
}

#[test]
fn scrubs_and_rebuilds_are_jobs() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    daemon.pool("tank");
    assert_eq!(client.scrub("tank", ScrubAction::Pause).unwrap_err().kind, ErrorKind::NotFound);
    let job = client.scrub("tank", ScrubAction::Start).unwrap();
    assert_eq!((job.kind, job.state), (JobKind::Scrub, JobState::Running));
    assert_eq!(client.scrub("tank", ScrubAction::Start).unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(client.scrub("tank", ScrubAction::Pause).unwrap().state, JobState::Paused);
    assert_eq!(client.pool("tank").unwrap().scrub.unwrap().id, job.id);
    assert_eq!(client.scrub("tank", ScrubAction::Start).unwrap().state, JobState::Running);
    assert_eq!(client.scrub("tank", ScrubAction::Stop).unwrap().state, JobState::Stopped);
    assert_eq!(client.job(&job.id).unwrap().state, JobState::Stopped);

    let replace = |new: &str, force| {
        let request = ReplaceDevice { old: "0".into(), new: new.parse().unwrap(), force };
        client.replace("tank", &request)
    };
    assert_eq!(replace("/disks/tank1", false).unwrap_err().kind, ErrorKind::NeedsForce);
    assert_eq!(replace("relative", false).unwrap_err().kind, ErrorKind::Invalid);
    let rebuild = replace("/disks/new", false).unwrap();
    assert_eq!(rebuild.kind, JobKind::Rebuild);
    assert_eq!(client.pool("tank").unwrap().rebuild.unwrap().id, rebuild.id);
    assert_eq!(client.jobs().unwrap().len(), 2);
    assert_eq!(client.job("job-99").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.job("../pools").unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn checks_run_in_the_daemon() {
    let daemon = TestDaemon::start();
    let client = daemon.client();
    daemon.pool("tank");
    assert_eq!(client.check("none", false).unwrap_err().kind, ErrorKind::NotFound);
    let end = |job: JobInfo| {
        eventually("the check ends", || client.job(&job.id).unwrap().state.is_final());
        client.job(&job.id).unwrap()
    };
    let job = end(client.check("tank", false).unwrap());
    assert_eq!((job.state, job.report.unwrap().counts["nodes"]), (JobState::Finished, 10));

    *daemon.world.check_problems.lock() = vec!["a block is used twice".into()];
    let job = end(client.check("tank", true).unwrap());
    assert_eq!((job.errors_found, job.report.unwrap().counts["nodes"]), (1, 20));

    *daemon.world.check_problems.lock() = vec!["panic".into()];
    let job = end(client.check("tank", false).unwrap());
    assert_eq!((job.state, job.report), (JobState::Failed, None));

    // One at a time; the same is joined, another refused; export stops it.
    *daemon.world.check_problems.lock() = vec![];
    daemon.world.check_gate.close();
    let job = client.check("tank", false).unwrap();
    assert_eq!(client.check("tank", false).unwrap().id, job.id);
    assert_eq!(client.check("tank", true).unwrap_err().kind, ErrorKind::Busy);
    client.export_pool("tank", false).unwrap();
    assert_eq!(client.job(&job.id).unwrap().state, JobState::Stopped);
}

#[test]
fn a_check_that_does_not_end_keeps_its_pool_and_its_report() {
    let mut daemon = TestDaemon::new();
    daemon.config.check_patience = Duration::from_millis(100);
    daemon.restart();
    daemon.pool("tank");
    let at = daemon.mountpoint("tank");
    daemon.mount("tank", &at).unwrap();
    daemon.world.checks_are_deaf.store(true, Ordering::SeqCst);
    *daemon.world.check_problems.lock() = vec!["a block is used twice".into()];
    daemon.world.check_gate.close();
    let client = daemon.client();
    let job = client.check("tank", true).unwrap();
    for error in [client.export_pool("tank", true).unwrap_err(), client.destroy_pool("tank", true).unwrap_err()] {
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.message.contains("check"), "{error}");
    }
    // Nothing was ended for nothing.
    assert_eq!(client.mounts().unwrap()[0].state, MountState::Mounted);
    assert_eq!(daemon.world.mounted().len(), 1);
    assert_eq!(daemon.remembered().1, [at]);
    // It went through although it was told to end: what it found is told.
    daemon.world.check_gate.open();
    eventually("the check ends", || client.job(&job.id).unwrap().state.is_final());
    let job = client.job(&job.id).unwrap();
    assert_eq!((job.state, job.errors_found), (JobState::Finished, 1));
    assert_eq!(job.report.unwrap().problems, ["a block is used twice"]);
    client.export_pool("tank", false).unwrap();
}

#[test]
fn devices_are_looked_at() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let client = daemon.client();
    assert_eq!(client.labels("/disks/tank0").unwrap()[0].title, "label 0");
    assert_eq!(client.uberblocks("/disks/tank0").unwrap()[0].problem, "checksum");
    assert_eq!(client.labels("/none").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(client.labels("tank0").unwrap_err().kind, ErrorKind::Invalid);
}

#[test]
fn every_error_has_a_status_and_the_error_body() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!("\"{}\"", "x".repeat(3 << 20));
    for (method, path, body, status, kind) in [
        ("GET", "/v1/pools/none", "", 404, "not_found"),
        ("GET", "/v1/pools/..%2f", "", 400, "invalid"),
        ("GET", "/v1/pools/%ff", "", 400, "invalid"),
        ("GET", "/v1/pools/tank/filesystems/none/properties", "", 404, "not_found"),
        ("GET", "/v1/pools/tank/filesystems/-/inodes/x/fragments", "", 400, "invalid"),
        ("GET", "/v2/pools", "", 404, "unsupported"),
        ("PUT", "/v1/pools", "", 405, "unsupported"),
        ("DELETE", "/v1/pools/tank", "", 409, "needs_force"),
        ("DELETE", "/v1/pools/tank?force=perhaps", "", 400, "invalid"),
        ("DELETE", "/v1/mounts/7", "", 404, "not_found"),
        ("DELETE", "/v1/mounts/-7", "", 400, "invalid"),
        ("POST", "/v1/pools", "", 400, "invalid"),
        ("POST", "/v1/pools", "{", 400, "invalid"),
        ("POST", "/v1/pools", r#"{"name":"x","devices":["/a"],"geometry":"0+9"}"#, 400, "invalid"),
        ("POST", "/v1/pools", r#"{"name":"x","devices":[""]}"#, 400, "invalid"),
        ("POST", "/v1/pools", &deep, 400, "invalid"),
        ("POST", "/v1/pools", &huge, 413, "invalid"),
        ("POST", "/v1/pools/tank/scrub", r#"{"action":"dance"}"#, 400, "invalid"),
        ("POST", "/v1/mounts", r#"{"source":"tank/../x","mountpoint":"/"}"#, 400, "invalid"),
        ("POST", "/v1/import", r#"{"search":["/nonexistent"]}"#, 404, "not_found"),
    ] {
        let (got, answer) = http(&daemon, method, path, body);
        assert_eq!((got, answer["kind"].as_str().unwrap()), (status, kind), "{method} {path}: {answer}");
        for part in ["message", "hint"] {
            assert!(!answer[part].as_str().unwrap().is_empty(), "{method} {path}: {answer}");
        }
    }
    assert_eq!(raw(&daemon, "this is not HTTP\r\n\r\n").0, 400);
    assert_eq!(daemon.client().pools().unwrap().len(), 1);
}

#[test]
fn answers_have_their_shape() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let (status, list) = http(&daemon, "GET", "/v1/pools", "");
    assert_eq!(status, 200);
    let expected = serde_json::json!([{
        "name": "tank", "id": "4", "state": "ONLINE", "geometry": "2+2", "raw_bytes": 8_589_934_592_u64,
        "usable_bytes": 4_294_967_296_u64, "used_bytes": 1_073_741_824, "free_bytes": 3_221_225_472_u64, "message": ""
    }]);
    assert_eq!(list, expected);
    let (_, status) = http(&daemon, "GET", "/v1/pools/tank", "");
    for key in ["name", "txg", "bytes_degraded", "bytes_without_redundancy", "devices", "damaged_files", "scrub"] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
    assert_eq!(status["devices"][3]["path"], "/disks/tank3");
    let (code, job) = http(&daemon, "POST", "/v1/pools/tank/scrub", r#"{"action":"start"}"#);
    assert_eq!((code, job["kind"].as_str(), job["state"].as_str()), (202, Some("scrub"), Some("running")));
    let (code, fs) = http(&daemon, "POST", "/v1/pools/tank/filesystems", r#"{"name":"home"}"#);
    assert_eq!((code, fs["name"].as_str()), (201, Some("tank/home")));
    assert_eq!(http(&daemon, "POST", "/v1/pools/tank/sync", "").0, 204);
}

#[test]
fn a_request_that_hangs_holds_up_nobody() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.world.sync_gate.close();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| daemon.client().sync_pool("tank").unwrap());
        }
        eventually("all of them hang", || daemon.world.sync_gate.waiting.load(Ordering::SeqCst) == 8);
        let others = scope.spawn(|| {
            daemon.client().pool("tank").unwrap();
            daemon.client().pools().unwrap();
            daemon.client().jobs().unwrap();
            daemon.client().mounts().unwrap();
        });
        let start = Instant::now();
        while !others.is_finished() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let answered = others.is_finished();
        daemon.world.sync_gate.open();
        assert!(answered, "others wait for what hangs");
    });
}

#[test]
fn a_failure_of_the_engine_is_an_answer() {
    let daemon = TestDaemon::start();
    daemon.world.import_panics.store(true, Ordering::SeqCst);
    let import = ImportPools { search: vec![], name: Some("tank".into()), force: false };
    assert_eq!(daemon.client().import(&import).unwrap_err().kind, ErrorKind::Internal);
    daemon.world.import_panics.store(false, Ordering::SeqCst);
    assert_eq!(daemon.client().import(&import).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn clients_that_come_early_wait() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.crash();
    daemon.world.import_gate.close();
    daemon.restart();
    assert!(!daemon.client().daemon().unwrap().ready);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.client().pools().unwrap());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        daemon.world.import_gate.open();
        assert_eq!(waiting.join().unwrap()[0].state, PoolState::Online);
    });
    assert!(daemon.client().daemon().unwrap().ready);
}
