//! iSCSI targets as the daemon keeps them: whole before anybody gets in, told as they are, and as they were when a change fails.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use qrvsa_api::*;
use qrvsa_core::device;
use qrvsa_core::vhdx::{ConvertSource, ConvertTarget, convert};
use qrvsa_tgt::wire::{Code, Mode, Op, REPLY_BYTES, Request, decode_reply};
use support::{PATIENCE, TestDaemon, eventually};

const IQN: &str = "iqn.2026-01.test:t";

/// Makes a target on a free port of its own, which it answers.
fn target(daemon: &TestDaemon) -> u16 {
    let mut port = 0;
    // A port that is free may be somebody else's a moment later.
    eventually("a target on a free port", || {
        port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let portals = vec![format!("127.0.0.1:{port}")];
        let request = CreateTarget { iqn: IQN.into(), tid: Some(1), portals, advertise: vec![] };
        match daemon.client().create_target(&request) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Busy, "{error}");
                false
            }
        }
    });
    port
}

fn add(daemon: &TestDaemon, lun: u64, source: LunSource) -> std::result::Result<LunInfo, ApiError> {
    daemon.client().add_lun(IQN, &AddLun { lun: Some(lun), source, options: LunOptions::default() })
}

fn volume(name: &str) -> LunSource {
    LunSource::Volume(name.parse().unwrap())
}

/// Adds a LUN to what a daemon that does not run remembers.
fn remember(daemon: &TestDaemon, lun: u64, source: &LunSource) {
    let file = daemon.state_dir().join("targets.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    text["state"]["targets"]["1"]["luns"][lun.to_string()] = serde_json::json!({ "source": source });
    std::fs::write(&file, text.to_string()).unwrap();
}

fn lun(daemon: &TestDaemon, number: u64) -> LunInfo {
    daemon.client().target(IQN).unwrap().luns.into_iter().find(|lun| lun.lun == number).unwrap()
}

/// A request of tgt's programs about LUN 1 of target 1, sent.
fn begin_tgt(daemon: &TestDaemon, mode: Mode, op: Op, payload: &str) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.state_dir().join("tgt.0")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = Request { lld: "iscsi".into(), tid: 1, lun: 1, ..Request::new(mode, op) };
    stream.write_all(&request.encode(payload)).unwrap();
    stream
}

/// The same with its answer.
fn tgt(daemon: &TestDaemon, mode: Mode, op: Op, payload: &str) -> (u32, String) {
    let mut stream = begin_tgt(daemon, mode, op, payload);
    let mut head = [0; REPLY_BYTES];
    stream.read_exact(&mut head).unwrap();
    let (code, length) = decode_reply(&head);
    let mut text = vec![0; length];
    stream.read_exact(&mut text).unwrap();
    (code, String::from_utf8(text).unwrap())
}

fn file(daemon: &TestDaemon, name: &str, bytes: u64) -> PathBuf {
    let path = daemon.dir.path().join(name);
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// Takes a file as a pool does, if nobody has it.
fn take(path: &Path) -> Option<Arc<dyn device::Device>> {
    match device::open(path, device::OpenOptions { create_size: None, exclusive: true, read_only: false }) {
        Ok(device) => Some(device),
        Err(e) => {
            assert_eq!(e.kind(), qrvsa_core::ErrorKind::Busy, "{e}");
            None
        }
    }
}

/// Lets the daemon fail, or succeed, in saving its targets.
fn may_save(daemon: &TestDaemon, may: bool) {
    let in_the_way = daemon.state_dir().join("targets.json.new");
    if may { std::fs::remove_dir(in_the_way).unwrap() } else { std::fs::create_dir(in_the_way).unwrap() }
}

#[test]
fn nobody_gets_in_before_all_luns_are_there() {
    let mut daemon = TestDaemon::start();
    let port = target(&daemon);
    add(&daemon, 1, LunSource::Null(1 << 30)).unwrap();
    daemon.stop();
    remember(&daemon, 2, &volume("tank/v"));
    daemon.config.storage_patience = PATIENCE;
    daemon.world.open_gate.close();
    daemon.restart();
    eventually("LUN 2 is opened", || daemon.world.open_gate.waiting.load(Ordering::SeqCst) == 1);
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    daemon.world.open_gate.open();
    eventually("the portal is open", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(lun(&daemon, 1).state, LunState::Online);
    assert_eq!(lun(&daemon, 2).state, LunState::Unavailable);
}

#[test]
fn storage_that_hangs_holds_up_no_other() {
    let mut daemon = TestDaemon::start();
    let port = target(&daemon);
    add(&daemon, 3, LunSource::Null(1 << 30)).unwrap();
    daemon.pool("tank");
    daemon.stop();
    daemon.world.missing_devices.lock().insert("/disks/tank0".into());
    for number in [1, 2] {
        remember(&daemon, number, &volume(&format!("tank/v{number}")));
    }
    daemon.config.storage_patience = Duration::from_millis(100);
    daemon.world.open_gate.close();
    daemon.restart();
    eventually("the portal is open", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    eventually("LUN 3 serves", || lun(&daemon, 3).state == LunState::Online);
    for number in [1, 2] {
        let info = lun(&daemon, number);
        assert_eq!(info.state, LunState::Unavailable);
        assert!(info.message.contains("does not answer"), "{info:?}");
    }
    // No further threads are lost to it.
    eventually("both wait", || daemon.world.open_gate.waiting.load(Ordering::SeqCst) == 2);
    daemon.world.missing_devices.lock().clear();
    assert_eq!(daemon.client().import(&ImportPools::default()).unwrap().imported.len(), 1);
    assert_eq!(daemon.world.open_gate.waiting.load(Ordering::SeqCst), 2);
    // What it answers at last is heard, also by a unit that shows itself otherwise by now.
    assert_eq!(tgt(&daemon, Mode::LogicalUnit, Op::Update, "targetOps vendor_id=ACME").0, Code::Success.number());
    daemon.world.open_gate.open();
    eventually("the answers", || (1..3).all(|number| lun(&daemon, number).message.contains("holds no data")));
}

#[test]
fn the_end_does_not_wait_for_storage_that_hangs_at_the_start() {
    let mut daemon = TestDaemon::start();
    target(&daemon);
    daemon.stop();
    for number in [1, 2] {
        remember(&daemon, number, &volume(&format!("tank/v{number}")));
    }
    daemon.config.storage_patience = Duration::from_secs(3600);
    daemon.world.open_gate.close();
    daemon.restart();
    eventually("LUN 1 is opened", || daemon.world.open_gate.waiting.load(Ordering::SeqCst) == 1);
    daemon.stop();
    assert_eq!(daemon.world.open_gate.waiting.load(Ordering::SeqCst), 1, "LUN 2 was not begun");
    daemon.world.open_gate.open();
}

#[test]
fn a_change_that_cannot_be_saved_is_not_done() {
    let mut daemon = TestDaemon::start();
    let port = target(&daemon);
    let (small, large) = (file(&daemon, "small", 1 << 20), file(&daemon, "large", 2 << 20));
    add(&daemon, 1, LunSource::Empty).unwrap();
    let set = |payload: &str| tgt(&daemon, Mode::LogicalUnit, Op::Update, &format!("targetOps {payload}")).0;
    assert_eq!(set("removable=1"), Code::Success.number());
    assert_eq!(set(&format!("path={}", small.display())), Code::Success.number());
    assert_eq!((lun(&daemon, 1).state, lun(&daemon, 1).size_bytes), (LunState::Online, 1 << 20));

    may_save(&daemon, false);
    let client = daemon.client();
    assert_eq!(client.destroy_target(IQN, true).unwrap_err().kind, ErrorKind::Internal);
    let portals = vec![format!("127.0.0.1:{port}")];
    let other = CreateTarget { iqn: "iqn.2026-01.test:other".into(), tid: None, portals, advertise: vec![] };
    assert_eq!(client.create_target(&other).unwrap_err().kind, ErrorKind::Internal);
    assert_eq!(client.targets().unwrap().len(), 1);
    assert_ne!(set(&format!("path={}", large.display())), Code::Success.number());
    let info = lun(&daemon, 1);
    assert_eq!((info.state, info.size_bytes, &info.source), (LunState::Online, 1 << 20, &LunSource::File(small)));
    TcpStream::connect(("127.0.0.1", port)).unwrap();

    may_save(&daemon, true);
    assert_eq!(set(&format!("path={}", large.display())), Code::Success.number());
    assert_eq!(lun(&daemon, 1).size_bytes, 2 << 20);
    daemon.stop();
    daemon.restart();
    assert_eq!(lun(&daemon, 1).size_bytes, 2 << 20);
    daemon.client().destroy_target(IQN, true).unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap_err();
}

#[test]
fn a_target_that_cannot_be_made_is_not_online() {
    let mut daemon = TestDaemon::start();
    target(&daemon);
    add(&daemon, 1, LunSource::Null(1 << 30)).unwrap();
    add(&daemon, 0, LunSource::Null(1 << 30)).unwrap();
    daemon.stop();
    let path = daemon.state_dir().join("targets.json");
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    text["state"]["targets"]["1"]["incoming"] = serde_json::json!(["nobody"]);
    std::fs::write(&path, text.to_string()).unwrap();
    daemon.restart();
    for number in [0, 1] {
        let info = lun(&daemon, number);
        assert_eq!((info.state, info.size_bytes), (LunState::Unavailable, 0));
        assert!(info.message.contains("log"), "{info:?}");
    }
    daemon.client().destroy_target(IQN, true).unwrap();
    assert_eq!(daemon.client().targets().unwrap(), []);
}

#[test]
fn a_new_lun_has_nothing_of_an_earlier_one() {
    let daemon = TestDaemon::start();
    target(&daemon);
    // What a LUN leaves that is removed while its storage is away, or a daemon that is killed in between.
    let stored = |kind: &str| daemon.state_dir().join(format!("lun-{kind}%2F{}%2F5", IQN.replace(':', "%3A")));
    for kind in ["reservations", "modes", "sanitize"] {
        std::fs::write(stored(kind), "of another disk").unwrap();
    }
    add(&daemon, 5, LunSource::Null(1 << 30)).unwrap();
    for kind in ["reservations", "modes", "sanitize"] {
        assert_eq!(std::fs::read(stored(kind)).unwrap(), b"", "{kind}");
    }
    // What cannot be forgotten is an error, and no LUN.
    daemon.client().remove_lun(IQN, 5).unwrap();
    std::fs::write(stored("modes"), "of another disk").unwrap();
    std::fs::create_dir(format!("{}.new", stored("modes").display())).unwrap();
    assert_eq!(add(&daemon, 5, LunSource::Null(1 << 30)).unwrap_err().kind, ErrorKind::Internal);
    assert_eq!(daemon.client().target(IQN).unwrap().luns, []);
}

#[test]
fn a_medium_that_is_away_is_replaced() {
    let mut daemon = TestDaemon::start();
    target(&daemon);
    let (first, second) = (file(&daemon, "first", 1 << 20), file(&daemon, "second", 1 << 20));
    add(&daemon, 1, LunSource::Empty).unwrap();
    let set = |daemon: &TestDaemon, payload: &str| {
        tgt(daemon, Mode::LogicalUnit, Op::Update, &format!("targetOps {payload}")).0
    };
    let success = Code::Success.number();
    assert_ne!(set(&daemon, "online=1"), success, "there is nothing to load");
    assert_eq!(lun(&daemon, 1).state, LunState::Offline);
    assert_eq!(set(&daemon, "removable=1"), success);
    assert_eq!(set(&daemon, &format!("path={}", first.display())), success);
    daemon.stop();
    std::fs::remove_file(&first).unwrap();
    daemon.restart();
    assert_eq!(lun(&daemon, 1).state, LunState::Unavailable);
    assert_ne!(set(&daemon, "path=/nonexistent"), success);
    assert_eq!(lun(&daemon, 1).source, LunSource::File(first));
    assert_eq!(set(&daemon, &format!("path={}", second.display())), success);
    assert_eq!((lun(&daemon, 1).state, lun(&daemon, 1).source), (LunState::Online, LunSource::File(second.clone())));
    // one that is not removable keeps its storage
    assert_eq!(set(&daemon, "removable=0"), success);
    assert_ne!(set(&daemon, "path=/dev/zero"), success);
    assert_eq!(lun(&daemon, 1).source, LunSource::File(second));
}

#[test]
fn a_file_is_the_disk_of_one_user() {
    let daemon = TestDaemon::with_engine("tank");
    target(&daemon);
    let member = daemon.dir.path().join("tank0.img");
    for read_only in [false, true] {
        let options = LunOptions { read_only, ..LunOptions::default() };
        let request = AddLun { lun: None, source: LunSource::File(member.clone()), options };
        let error = daemon.client().add_lun(IQN, &request).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    }
    let new = format!("path={}", member.display());
    assert_eq!(tgt(&daemon, Mode::LogicalUnit, Op::New, &new).0, Code::InvalidRequest.number());
    assert_eq!(daemon.client().target(IQN).unwrap().luns, []);

    let disk = file(&daemon, "disk", 256 << 20);
    let link = daemon.dir.path().join("link");
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    add(&daemon, 1, LunSource::File(disk.clone())).unwrap();
    add(&daemon, 2, LunSource::File(link)).unwrap();
    let pool = || {
        let devices = vec![DeviceSpec { path: disk.clone(), size_bytes: None, vhdx: false }];
        daemon.client().create_pool(&CreatePool { name: "lake".into(), devices, geometry: None, force: true })
    };
    for number in [1, 2] {
        assert_eq!(pool().unwrap_err().kind, ErrorKind::Busy);
        let source = ConvertSource::open(&file(&daemon, "raw", 1 << 20), true).unwrap();
        let converted = convert(&source, &disk, &ConvertTarget::Raw, true, false, &mut |_, _| Ok(()));
        assert_eq!(converted.unwrap_err().kind(), qrvsa_core::ErrorKind::Busy);
        assert_eq!(disk.metadata().unwrap().len(), 256 << 20);
        daemon.client().remove_lun(IQN, number).unwrap();
    }
    pool().unwrap();
    assert_eq!(add(&daemon, 1, LunSource::File(disk.clone())).unwrap_err().kind, ErrorKind::Busy);
}

#[test]
fn a_medium_is_claimed_until_the_next() {
    let mut daemon = TestDaemon::start();
    target(&daemon);
    let (first, second) = (file(&daemon, "first", 1 << 20), file(&daemon, "second", 1 << 20));
    add(&daemon, 1, LunSource::Empty).unwrap();
    let set = |daemon: &TestDaemon, payload: &str| {
        tgt(daemon, Mode::LogicalUnit, Op::Update, &format!("targetOps {payload}")).0 == Code::Success.number()
    };
    assert!(set(&daemon, "removable=1"));
    assert!(set(&daemon, &format!("path={}", first.display())));
    let busy = take(&second).unwrap();
    assert!(!set(&daemon, &format!("path={}", second.display())));
    assert_eq!(lun(&daemon, 1).source, LunSource::File(first.clone()));
    assert!(take(&first).is_none());
    drop(busy);
    assert!(set(&daemon, &format!("path={}", second.display())));
    eventually("the first is let go of", || take(&first).is_some());
    assert!(take(&second).is_none());

    // What somebody has taken meanwhile is waited for, not shared.
    daemon.pool("tank");
    daemon.stop();
    daemon.world.missing_devices.lock().insert("/disks/tank0".into());
    let busy = take(&second).unwrap();
    daemon.restart();
    let info = lun(&daemon, 1);
    assert_eq!(info.state, LunState::Unavailable);
    assert!(info.message.contains("in use"), "{info:?}");
    drop(busy);
    daemon.world.missing_devices.lock().clear();
    assert_eq!(daemon.client().import(&ImportPools::default()).unwrap().imported.len(), 1);
    assert_eq!(lun(&daemon, 1).state, LunState::Online);
    assert!(take(&second).is_none());
    // Nor has anything to happen here for it to serve again.
    daemon.stop();
    let busy = take(&second).unwrap();
    daemon.restart();
    assert_eq!(lun(&daemon, 1).state, LunState::Unavailable);
    drop(busy);
    eventually("it serves", || lun(&daemon, 1).state == LunState::Online);
    daemon.client().destroy_target(IQN, true).unwrap();
    eventually("the second is let go of", || take(&second).is_some());
}

#[test]
fn a_portal_that_comes_later_is_served_then() {
    let mut daemon = TestDaemon::start();
    let port = target(&daemon);
    daemon.stop();
    let mut taken = None;
    eventually("its port is somebody else's", || {
        taken = TcpListener::bind(("127.0.0.1", port)).ok();
        taken.is_some()
    });
    let error = |daemon: &TestDaemon| {
        daemon.client().target(IQN).map_or_else(|e| e.to_string(), |target| target.portals[0].error.clone())
    };
    // The end does not wait for it either.
    for _ in 0..2 {
        daemon.restart();
        eventually("that is told", || error(&daemon).contains("cannot listen"));
        daemon.stop();
    }
    daemon.restart();
    eventually("that is told", || error(&daemon).contains("cannot listen"));
    drop(taken);
    eventually("it listens", || error(&daemon).is_empty());
    TcpStream::connect(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_lun_is_not_added_to_a_pool_that_goes() {
    let mut daemon = TestDaemon::new();
    daemon.config.check_patience = PATIENCE;
    daemon.restart();
    target(&daemon);
    daemon.pool("tank");
    daemon.world.checks_are_deaf.store(true, Ordering::SeqCst);
    daemon.world.check_gate.close();
    let check = daemon.client().check("tank", false).unwrap();
    std::thread::scope(|scope| {
        let export = scope.spawn(|| daemon.client().export_pool("tank", false));
        eventually("LUNs in it are refused", || {
            let error = add(&daemon, 1, volume("tank/v")).unwrap_err();
            // before that, as there is no such volume
            assert!(matches!(error.kind, ErrorKind::Busy | ErrorKind::NotFound), "{error}");
            error.kind == ErrorKind::Busy && error.message.contains("exported")
        });
        assert_eq!(add(&daemon, 1, volume("lake/v")).unwrap_err().kind, ErrorKind::NotFound);
        daemon.world.check_gate.open();
        export.join().unwrap().unwrap();
    });
    assert_eq!(daemon.client().job(&check.id).unwrap().state, JobState::Finished);
    // It is over with the export.
    assert_eq!(add(&daemon, 1, volume("tank/v")).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn tgts_offline_system_takes_nobody_in() {
    let mut daemon = TestDaemon::start();
    let port = target(&daemon);
    let gets_in = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // a login that names nobody: whoever is taken in gets an answer
        let mut login = [0; 48];
        (login[0], login[1], login[8]) = (0x43, 0x81, 0x80);
        let _ = stream.write_all(&login);
        match stream.read(&mut [0]) {
            Ok(got) => got > 0,
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}");
                false
            }
        }
    };
    let shown = |daemon: &TestDaemon| tgt(daemon, Mode::System, Op::Show, "").1;
    assert!(gets_in());
    let set = |daemon: &TestDaemon, value: &str| tgt(daemon, Mode::System, Op::Update, &format!("State={value}")).0;
    assert_ne!(set(&daemon, "asleep"), Code::Success.number());
    assert_eq!(set(&daemon, "offline"), Code::Success.number());
    assert!(shown(&daemon).contains("State: offline"));
    assert!(!daemon.client().target(IQN).unwrap().portals[0].error.is_empty());
    assert!(!gets_in());
    assert_eq!(set(&daemon, "ready"), Code::Success.number());
    assert!(gets_in());
    assert_eq!(set(&daemon, "offline"), Code::Success.number());
    daemon.stop();
    daemon.restart();
    // after this answer its socket for tgt is there
    daemon.client().target(IQN).unwrap();
    assert!(shown(&daemon).contains("State: ready"));
    assert!(gets_in());
    assert_eq!(daemon.client().target(IQN).unwrap().portals[0].error, "");
}

#[test]
fn the_end_does_not_wait_for_a_request_that_hangs() {
    let mut daemon = TestDaemon::new();
    daemon.config.request_patience = Duration::from_millis(100);
    daemon.restart();
    target(&daemon);
    daemon.pool("tank");
    daemon.world.open_gate.close();
    let client = daemon.client();
    let lun = AddLun { lun: Some(7), source: volume("tank/v"), options: LunOptions::default() };
    let hanging = std::thread::spawn(move || client.add_lun(IQN, &lun));
    eventually("it hangs", || daemon.world.open_gate.waiting.load(Ordering::SeqCst) == 1);
    // A tgt request comes behind it.
    let _waits = begin_tgt(&daemon, Mode::LogicalUnit, Op::Update, "targetOps online=0");
    daemon.tell_to_stop();
    eventually("the pool is exported", || daemon.world.pools.lock().values().all(|pool| pool.clean_exports == 1));
    daemon.wait_for_end().unwrap();
    daemon.world.open_gate.open();
    let _ = hanging.join().unwrap();
}
