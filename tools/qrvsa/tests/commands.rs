//! The command line as a person or a script uses it: the built program against a daemon with a pretended engine.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "../../qrvsad/tests/support/mod.rs"]
mod support;

use std::fs::File;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, Stdio};

use qrvsa_api::*;
use serde_json::Value;
use support::{TestDaemon, eventually};

/// What a run of the program gave.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// It failed with this code and one line that has these parts.
    fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("qrvsa: ") && self.err.lines().count() == 1, "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in {self:?}");
        }
    }

    fn works(self) -> Ran {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

fn command(daemon: &TestDaemon) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrvsa"));
    command.env("QRVSA_SOCKET", daemon.socket()).stdin(Stdio::null()).current_dir(daemon.dir.path());
    command
}

fn finish(command: &mut Command) -> Ran {
    let output = loop {
        match command.output() {
            // A copy of the program, whose descriptor a program that another test was starting had inherited.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            output => break output.unwrap(),
        }
    };
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn qrvsa(daemon: &TestDaemon, args: &[&str]) -> Ran {
    finish(command(daemon).args(args))
}

/// Runs the program, which waits for a job, until it tells for the first time how that goes on; what it tells later follows.
fn until_it_tells(command: &mut Command) -> (Child, String, Lines<BufReader<ChildStderr>>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = told.next().expect("it tells something").unwrap();
    (child, first, told)
}

/// Runs the program on a terminal on which `typed` was typed; returns the exit code and what the terminal showed.
fn on_terminal(daemon: &TestDaemon, args: &[&str], typed: &str) -> (i32, String) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let terminal = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command(daemon).args(args).stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
    drop(pty.slave);
    let mut keyboard = File::from(pty.master);
    keyboard.write_all(typed.as_bytes()).unwrap();
    let mut screen = keyboard.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // Ends with EIO when the last user of the terminal is gone.
        let _ = screen.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    let code = child.wait().unwrap().code().unwrap();
    (code, reader.join().unwrap())
}

#[test]
fn pools() {
    let daemon = TestDaemon::start();
    let run = |args: &[&str]| qrvsa(&daemon, args);
    assert!(run(&["pool", "list"]).works().out.contains("no pools"));
    assert!(run(&["pool", "status"]).works().out.contains("no pools"));
    let created = run(&["pool", "create", "tank", "--geometry", "2+1", "/d/a", "/d/b:1G", "c.img"]).works();
    assert_eq!(created.out, "pool tank created: 2+1, 4.00 GiB usable\n");
    let devices = daemon.client().pool("tank").unwrap().devices;
    assert_eq!(devices[2].path, daemon.dir.path().join("c.img"), "relative to the program's directory");

    let list = run(&["pool", "list"]).works().out;
    assert!(list.lines().nth(1).unwrap().starts_with("tank  ONLINE  2+1"), "{list}");
    assert_eq!(run(&["pool", "list", "--json"]).works().json()[0]["name"], "tank");
    let status = run(&["pool", "status", "tank"]).works().out;
    for part in ["pool: tank", "survives the failure of 2 more devices", "/d/b", "scrub: never", "No damaged files"] {
        assert!(status.contains(part), "{part} is not in\n{status}");
    }
    assert_eq!(run(&["--json", "pool", "status", "tank"]).works().json()["devices"][1]["path"], "/d/b");
    assert_eq!(run(&["--json", "pool", "status"]).works().json()[0]["txg"], 42);

    assert!(run(&["pool", "offline", "tank", "0"]).works().out.contains("OFFLINE"));
    assert!(run(&["pool", "online", "tank", "/d/a"]).works().out.contains("ONLINE"));
    run(&["pool", "online", "tank", "7"]).fails(6, &["no device 7"]);
    run(&["pool", "sync", "tank"]).works();
    assert_eq!(run(&["pool", "sync", "tank", "--json"]).works().json(), serde_json::json!({}));
    assert_eq!(daemon.world.pools.lock()["tank"].syncs, 2);

    assert_eq!(run(&["pool", "export", "tank"]).works().out, "pool tank exported\n");
    run(&["pool", "import", "tank"]).fails(6, &["not on any device", "--search"]);
    assert_eq!(run(&["pool", "import", "--search", "/", "tank"]).works().out, "pool tank imported: ONLINE\n");
    run(&["pool", "import", "tank"]).fails(7, &["imported already"]);
    assert!(run(&["pool", "import"]).works().out.contains("no pools found"));
    run(&["pool", "import", "--search", "/nonexistent"]).fails(6, &["cannot search"]);
    run(&["pool", "destroy", "tank", "--force"]).works();
    run(&["pool", "status", "tank"]).fails(6, &["there is no pool tank", "pool list"]);
}

#[test]
fn importing_says_what_failed() {
    let daemon = TestDaemon::start();
    daemon.pool("lake");
    daemon.pool("tank");
    for pool in ["lake", "tank"] {
        qrvsa(&daemon, &["pool", "export", pool]).works();
    }
    daemon.world.missing_devices.lock().insert("/disks/lake0".into());
    let ran = qrvsa(&daemon, &["pool", "import", "--search", "/disks/../disks", "--search", "/"]);
    ran.fails(6, &["cannot search"]);
    let ran = qrvsa(&daemon, &["pool", "import", "--search", "/"]);
    ran.fails(8, &["lake", "too few devices"]);
    assert_eq!(ran.out, "pool tank imported: ONLINE\n");
    // what was asked for is here: another pool of its name is told of, and no failure
    qrvsa(&daemon, &["pool", "export", "tank"]).works();
    daemon.world.namesakes.lock().insert("tank".into());
    let ran = qrvsa(&daemon, &["pool", "import", "--search", "/", "tank"]);
    ran.fails(0, &["tank: another pool named tank"]);
    assert_eq!(ran.out, "pool tank imported: ONLINE\n");
}

#[test]
fn filesystems() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    run(&["fs", "create", "tank/home", "-o", "a=1"]).works();
    run(&["fs", "create", "tank/home"]).fails(7, &["exists"]);
    run(&["fs", "create", "tank"]).fails(2, &["root filesystem"]);
    run(&["fs", "create", "none/home"]).fails(6, &["no pool none"]);
    let list = run(&["fs", "list"]).works().out;
    assert!(list.contains("tank/home") && list.lines().count() == 3, "{list}");
    assert_eq!(run(&["fs", "list", "tank", "--json"]).works().json()[1]["name"], "tank/home");
    assert_eq!(run(&["fs", "get", "tank/home", "a"]).works().out, "1\n");
    run(&["fs", "get", "tank/home", "b"]).fails(6, &["no property"]);
    run(&["fs", "set", "tank/home", "a=x=y"]).works();
    assert_eq!(run(&["fs", "get", "tank/home", "a"]).works().out, "x=y\n");
    run(&["fs", "set", "tank/home", "created=now"]).fails(2, &["cannot be set"]);
    assert!(run(&["fs", "get", "tank"]).works().out.contains("created"));
    run(&["fs", "destroy", "tank/home"]).fails(5, &["--force"]);
    run(&["fs", "destroy", "tank/home", "--force"]).works();
    run(&["fs", "destroy", "tank/home", "--force"]).fails(6, &["no filesystem"]);
}

#[test]
fn mounts() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    let at = daemon.mountpoint("mnt");
    let at_text = at.to_str().unwrap();
    assert_eq!(run(&["mount"]).works().out, "nothing is mounted\n");
    run(&["mount", "tank", "none"]).fails(6, &["does not exist", "mkdir -p"]);
    run(&["mount", "tank", "mnt", "-o", "bad"]).fails(2, &["bad"]);
    let mounted = run(&["mount", "tank", "mnt", "-o", "ro,noatime,x-note"]).works();
    assert_eq!(mounted.out, format!("tank mounted on {at_text}\n"));
    assert_eq!(daemon.world.mounted(), [format!("tank on {at_text} (ro,noatime)")]);
    assert!(run(&["mount"]).works().out.contains(at_text));
    assert_eq!(run(&["mount", "--json"]).works().json()[0]["state"], "mounted");
    run(&["mount", "tank", at_text]).fails(7, &["in use"]);
    std::fs::write(at.join("file"), b"x").unwrap();
    let located = run(&["debug", "locate", "mnt/file"]).works();
    assert!(located.out.contains("/disks/tank3") && located.out.contains("parity"), "{located:?}");
    assert_eq!(run(&["debug", "locate", "mnt/file", "--json"]).works().json()[0]["role"], "data");
    run(&["debug", "locate", "mnt/none"]).fails(6, &["cannot look at"]);
    run(&["debug", "locate", "/proc/version"]).fails(6, &["not in a mounted"]);

    daemon.world.busy.lock().insert(at.clone());
    run(&["umount", "mnt"]).fails(7, &["--lazy"]);
    let detached = run(&["umount", "mnt/", "--lazy"]).works();
    assert!(detached.out.contains("detached"), "{detached:?}");
    let listed = run(&["mount"]).works();
    assert!(listed.out.contains("detached") && listed.out.contains("still used"), "{listed:?}");
    run(&["umount", "mnt"]).fails(7, &["is detached", "process 7"]);
    run(&["mount", "tank", "mnt"]).fails(7, &["was unmounted", "process 7"]);
    daemon.world.let_go(&at);
    support::eventually("it is forgotten", || run(&["mount"]).works().out.contains("nothing is mounted"));
    run(&["umount", "mnt"]).fails(6, &["nothing of QRVSA is mounted"]);
}

#[test]
fn debugging() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    assert!(qrvsa(&daemon, &["debug", "labels", "/disks/tank0"]).works().out.contains("label 0 at 0x1000: valid"));
    let uberblocks = qrvsa(&daemon, &["debug", "uberblocks", "/disks/tank0"]).works().out;
    assert!(uberblocks.contains("NOT VALID: checksum"), "{uberblocks}");
    qrvsa(&daemon, &["debug", "labels", "/none"]).fails(6, &["no device"]);
}

#[test]
fn checks() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let ran = qrvsa(&daemon, &["check", "tank"]).works();
    assert_eq!(ran.out, "checked: 10 nodes\npool tank is consistent\n");
    assert!(ran.err.lines().all(|line| line.starts_with("check tank ")), "{ran:?}");
    assert!(ran.err.contains("finished: 100%"), "{ran:?}");
    *daemon.world.check_problems.lock() = vec!["row 7 is used twice".into(), "b".into()];
    let ran = qrvsa(&daemon, &["check", "tank", "--deep"]);
    assert_eq!(ran.code, 4);
    assert!(ran.out.contains("row 7 is used twice\n") && ran.out.ends_with("pool tank has 2 problems\n"), "{ran:?}");
    let ran = qrvsa(&daemon, &["check", "tank", "--json"]);
    assert_eq!((ran.code, ran.json()["report"]["problems"][1].as_str()), (4, Some("b")));
    *daemon.world.check_problems.lock() = vec!["panic".into()];
    let ran = qrvsa(&daemon, &["check", "tank"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("failed"), "{ran:?}");
    qrvsa(&daemon, &["check", "none"]).fails(6, &["no pool none"]);
}

#[test]
fn a_check_outlives_the_program() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    daemon.world.check_gate.close();
    let mut first = command(&daemon).args(["check", "tank"]).stderr(Stdio::null()).spawn().unwrap();
    eventually("the check runs", || daemon.client().jobs().unwrap().len() == 1);
    first.kill().unwrap();
    first.wait().unwrap();
    // it tells how the check goes on: it has joined it
    let (second, line, _rest) = until_it_tells(command(&daemon).args(["check", "tank", "--json"]));
    assert!(line.contains("check"), "{line}");
    let listed = qrvsa(&daemon, &["job", "list"]).works().out;
    assert!(listed.contains("check-1") && listed.contains("running"), "{listed}");
    daemon.world.check_gate.open();
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let job: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(job["id"], "check-1");
    qrvsa(&daemon, &["job", "wait", "check-1"]).works();
    qrvsa(&daemon, &["job", "wait", "check-2"]).fails(6, &["no job"]);
}

#[test]
fn scrubs() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    run(&["pool", "scrub", "tank", "--stop"]).fails(6, &["no scrub"]);
    assert!(run(&["pool", "scrub", "tank"]).works().out.starts_with("scrub of tank running (job job-1"));
    run(&["pool", "scrub", "tank"]).fails(7, &["is running"]);
    run(&["pool", "scrub", "tank", "--pause"]).works();
    assert!(run(&["pool", "status", "tank"]).works().out.contains("scrub: paused, 0%"));
    assert_eq!(run(&["pool", "scrub", "tank", "--json"]).works().json()["state"], "running");
    // Joins the one that runs.
    let (waiting, first, rest) = until_it_tells(command(&daemon).args(["pool", "scrub", "tank", "--wait"]));
    assert!(first.starts_with("scrub tank running: 0% (0 B of 1.00 MiB), 1.00 MiB/s, 1s left"), "{first}");
    daemon.world.job(|job| {
        job.state = JobState::Finished;
        job.done_bytes = job.total_bytes;
        job.errors_found = 2;
        job.repaired = 2;
        job.finished_unix_s = Some(job.started_unix_s + 90);
    });
    let rest: Vec<String> = rest.map(|line| line.unwrap()).collect();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "scrub of tank finished in 1m30s: 1.00 MiB, 2 errors found, 2 repaired\n");
    assert!(rest.last().unwrap().starts_with("scrub tank finished: 100%"), "{rest:?}");
    daemon.world.job(|job| job.repaired = 1);
    assert_eq!(run(&["job", "wait", "job-1"]).code, 4);
    assert!(run(&["pool", "status", "tank"]).works().out.contains("scrub: finished 2023-11-14 22:14:50 UTC, 2 errors"));
}

#[test]
fn volumes() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    assert!(run(&["volume", "list"]).works().out.contains("no volumes"));
    let made =
        run(&["volume", "create", "tank/v", "64TB", "--block-size", "4096", "--record-size", "64K", "--reserve"]);
    assert_eq!(made.works().out, "volume tank/v created: 58.2 TiB, reserved\n");
    run(&["volume", "create", "tank/v", "1G"]).fails(7, &["exists"]);
    let json = run(&["volume", "show", "tank/v", "--json"]).works().json();
    assert_eq!((&json["size_bytes"], &json["block_bytes"]), (&64_000_000_000_000u64.into(), &4096.into()));
    assert_eq!((&json["record_bytes"], &json["reserve"]), (&65536.into(), &true.into()));
    assert_eq!(
        run(&["volume", "create", "tank/w", "64TiB", "--thin"]).works().out,
        "volume tank/w created: 64.0 TiB, thin\n"
    );
    let list = run(&["volume", "list"]).works().out;
    assert!(list.lines().count() == 3 && list.contains("tank/w") && list.contains("reserved"), "{list}");
    assert!(run(&["volume", "show", "tank/v"]).works().out.contains("3123456789abcdef"));
    run(&["volume", "show", "tank/x"]).fails(6, &["no volume tank/x", "volume create tank/x SIZE"]);
    assert_eq!(run(&["volume", "resize", "tank/w", "65TiB"]).works().out, "volume tank/w resized: 65.0 TiB\n");
    run(&["volume", "resize", "tank/w", "1G"]).fails(5, &["--force"]);
    run(&["volume", "resize", "tank/w", "1G", "--force"]).works();
    run(&["debug", "locate", "--volume", "tank/w"]).works();
    run(&["volume", "destroy", "tank/w"]).fails(5, &["all data in volume tank/w", "--force"]);
    run(&["volume", "destroy", "tank/w", "--force"]).works();
    run(&["volume", "destroy", "tank/w", "--force"]).fails(6, &["no volume"]);
    run(&["volume", "create", "tank", "1G"]).fails(2, &["POOL/VOL"]);
}

/// Bytes that no run of which repeats.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn volumes_are_converted() {
    let daemon = TestDaemon::with_engine("tank");
    let run = |args: &[&str]| qrvsa(&daemon, &[&["vhdx", "convert"], args].concat());
    let path = |name: &str| daemon.dir.path().join(name);
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    // 9 MiB and something, no whole sectors; data, zeros, a hole.
    let size = 9 * 1024 * 1024 + 777;
    let mut disk = vec![0; size];
    disk[..300_000].copy_from_slice(&noise(1, 300_000));
    disk[5_000_001..5_100_000].copy_from_slice(&noise(2, 99_999));
    disk[size - 100..].copy_from_slice(&noise(3, 100));
    std::fs::write(path("a.raw"), &disk).unwrap();

    let dry = run(&["a.raw", "volume:tank/v", "-n", "--json"]).works().json();
    assert_eq!((&dry["created"], &dry["disk_bytes"]), (&true.into(), &size.into()));
    assert!(daemon.client().volumes("tank").unwrap().is_empty());
    let done = run(&["a.raw", "volume:tank/v", "--json"]).works().json();
    assert_eq!((&done["target"], &done["created"]), (&"volume:tank/v".into(), &true.into()));
    assert!(done["written_bytes"].as_u64().unwrap() < 600_000, "{done}");
    let volume = daemon.client().volume(&"tank/v".parse().unwrap()).unwrap();
    assert_eq!((volume.size_bytes, volume.block_bytes, volume.in_use), (9 * 1024 * 1024 + 1024, 512, false));
    assert!(volume.allocated_bytes < 700_000, "{volume:?}");
    disk.resize(disk.len().next_multiple_of(512), 0);

    assert!(run(&["volume:tank/v", "b.vhdx"]).works().out.contains("b.vhdx: a disk of"));
    run(&["b.vhdx", "volume:tank/w", "--logical-sector", "4096"]).works();
    let volume = daemon.client().volume(&"tank/w".parse().unwrap()).unwrap();
    assert_eq!((volume.size_bytes % 4096, volume.block_bytes), (0, 4096));
    run(&["volume:tank/w", "c.vhdx", "--to", "fixed"]).works();
    run(&["c.vhdx", "c.raw"]).works();
    run(&["volume:tank/w", "volume:tank/x"]).works();
    run(&["volume:tank/x", "x.raw"]).works();
    assert_eq!(read("c.raw"), read("x.raw"));
    disk.resize(disk.len().next_multiple_of(4096), 0);
    assert!(read("x.raw") == disk, "the contents changed on the way");

    // One that exists: not over data, not too small; what is behind the disk becomes zeros.
    run(&["a.raw", "volume:tank/v"]).fails(5, &["tank/v holds data", "--force"]);
    std::fs::write(path("small.raw"), noise(4, 5000)).unwrap();
    run(&["small.raw", "volume:tank/v", "-f"]).works();
    run(&["volume:tank/v", "v.raw"]).works();
    let got = read("v.raw");
    assert!(
        got[..5000] == noise(4, 5000) && got[5000..].iter().all(|b| *b == 0) && got.len() == 9 * 1024 * 1024 + 1024
    );
    run(&["volume:tank/w", "volume:tank/v", "-f"]).fails(1, &["has 9438208 bytes", "qrvsa volume resize tank/v"]);
    run(&["small.raw", "volume:tank/w", "-f", "--logical-sector", "512"]).fails(2, &["blocks of 4096 bytes, not 512"]);

    // What makes no sense.
    run(&["a.raw", "tank/v"]).fails(2, &["no file tank/v", "write volume:tank/v"]);
    run(&["tank/v", "z.raw"]).fails(2, &["no file tank/v", "write volume:tank/v"]);
    run(&["./tank/v", "z.raw"]).fails(6, &["does not exist"]);
    run(&["tank/none", "z.raw"]).fails(6, &["does not exist"]);
    run(&["volume:tank/none", "z.raw"]).fails(6, &["no volume tank/none"]);
    run(&["a.raw", "volume:none/v"]).fails(6, &["no pool none"]);
    run(&["a.raw", "volume:tank"]).fails(2, &["write volume:POOL/VOL"]);
    run(&["volume:tank/v", "volume:tank/v", "-f"]).fails(2, &["onto itself"]);
    run(&["a.raw", "volume:tank/n", "--to", "raw"]).fails(2, &["leave --to"]);
    run(&["volume:tank/v", "z.raw", "--raw-source"]).fails(2, &["always raw"]);
    assert!(!path("z.raw").exists());

    // A pool that becomes full in the middle: a new volume goes again, an old one holds a part, and both say so.
    std::fs::write(path("big.raw"), noise(5, 4 << 20).repeat(75)).unwrap();
    run(&["big.raw", "volume:tank/big"]).fails(1, &["full", "new volume tank/big was removed again"]);
    assert!(daemon.client().volume(&"tank/big".parse().unwrap()).is_err());
    qrvsa(&daemon, &["volume", "create", "tank/big", "300M"]).works();
    run(&["big.raw", "volume:tank/big"]).fails(1, &["full", "tank/big holds a part of the disk only"]);
    // What is in it makes room for what replaces it.
    run(&["a.raw", "volume:tank/big", "--force"]).works();
    qrvsa(&daemon, &["volume", "destroy", "tank/big", "--force"]).works();

    // The daemon is not needed for files, but for volumes; not even to answer, where a name could be one.
    let mute = std::os::unix::net::UnixListener::bind(path("mute")).unwrap();
    std::fs::create_dir(path("tank")).unwrap();
    let mut stuck = command(&daemon);
    stuck.env("QRVSA_SOCKET", path("mute")).args(["vhdx", "convert", "a.raw", "tank/a.vhdx"]);
    finish(&mut stuck).works();
    drop(mute);
    let mut without = command(&daemon);
    without.env("QRVSA_SOCKET", path("nobody")).args(["vhdx", "convert", "a.raw", "tank.vhdx"]);
    finish(&mut without).works();
    let mut without = command(&daemon);
    without.env("QRVSA_SOCKET", path("nobody")).args(["vhdx", "convert", "volume:tank/v", "z.raw"]);
    finish(&mut without).fails(3, &["not running"]);
}

/// Runs a conversion of `slow.raw`, and ends it with SIGINT as soon as it listens; its exit code and what it said.
fn interrupted(daemon: &TestDaemon, target: &str) -> (Option<i32>, String) {
    let mut command = command(daemon);
    let mut child = command.args(["vhdx", "convert", "slow.raw", target]).stderr(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    // Until it listens, a signal ends it as it always does.
    let listens = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        u64::from_str_radix(caught.trim(), 16).is_ok_and(|signals| signals & (1 << (libc_sigint() - 1)) != 0)
    };
    eventually("it listens", || listens() || child.try_wait().unwrap().is_some());
    // One that is waited for has no number of its own any more.
    if child.try_wait().unwrap().is_none() {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn libc_sigint() -> i32 {
    nix::sys::signal::Signal::SIGINT as i32
}

#[test]
fn a_conversion_can_be_interrupted() {
    let daemon = TestDaemon::with_engine("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    std::fs::write(daemon.dir.path().join("slow.raw"), noise(6, 4 << 20).repeat(32)).unwrap();
    for (target, state) in [
        ("volume:tank/new", "new volume tank/new was removed again"),
        ("volume:tank/old", "tank/old holds a part of the disk only"),
        ("file.vhdx", "file.vhdx: it was not made"),
    ] {
        // Where it was too fast, once more.
        let told = (0..20).find_map(|_| {
            if target.ends_with("old") {
                run(&["volume", "create", "tank/old", "128M"]).works();
            }
            let (code, err) = interrupted(&daemon, target);
            if code == Some(0) {
                let name = target.trim_start_matches("volume:");
                let _ = run(&["volume", "destroy", name, "--force"]);
                let _ = std::fs::remove_file(daemon.dir.path().join(name));
                return None;
            }
            Some((code, err))
        });
        let (code, err) = told.expect("it can be interrupted");
        assert_eq!(code, Some(1), "{target}: {err}");
        assert!(err.contains(state) && err.lines().count() == 1, "{target}: {err}");
    }
    assert_eq!(daemon.client().volumes("tank").unwrap().len(), 1);
    let left = std::fs::read_dir(daemon.dir.path()).unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    assert_eq!(left.filter(|name| name.contains("file.vhdx")).count(), 0);
}

#[test]
fn replacing() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    run(&["pool", "replace", "tank", "0", "/disks/tank1"]).fails(5, &["holds data", "--force"]);
    run(&["pool", "replace", "tank", "9", "/disks/new"]).fails(6, &["no device 9"]);
    assert!(run(&["pool", "replace", "tank", "0", "/disks/new"]).works().out.starts_with("rebuild of tank running"));
    assert!(run(&["pool", "status", "tank"]).works().out.contains("rebuild: running"));
    daemon.world.job(|job| job.state = JobState::Failed);
    assert_eq!(run(&["job", "wait", "job-1"]).code, 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&["pool", "replace", "tank", "1", "new.img:1G", "--wait", "--json"]));
        eventually("it is replaced", || daemon.world.jobs.lock().len() == 2);
        daemon.world.job(|job| job.state = JobState::Finished);
        assert_eq!(waiting.join().unwrap().works().json()["kind"], "rebuild");
    });
}

#[test]
fn a_second_replacement_takes_over_the_rebuild_that_is_waited_for() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let run = |args: &[&str]| qrvsa(&daemon, args);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| run(&["pool", "replace", "tank", "0", "one.img:1G", "--wait", "--json"]));
        eventually("one is replaced", || daemon.world.jobs.lock().len() == 1);
        run(&["pool", "replace", "tank", "1", "two.img:1G"]).works();
        // The engine knows one rebuild of a pool: the newer one, which is for both.
        daemon.world.jobs.lock().remove(0);
        daemon.world.job(|job| job.done_bytes = 7);
        eventually("the newer one is watched", || {
            daemon.world.job(|job| job.done_bytes += 1);
            daemon.world.job(|job| job.state = JobState::Finished);
            first.is_finished()
        });
        let first = first.join().unwrap().works().json();
        assert_eq!((&first["id"], &first["state"]), (&"job-2".into(), &"finished".into()));
    });
    // What is no rebuild, or of another pool, is no successor.
    daemon.pool("lake");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&["pool", "replace", "lake", "0", "three.img:1G", "--wait"]));
        eventually("it is replaced", || daemon.world.jobs.lock().len() == 2);
        // One change of a pool after the other: the answer to the replacement is made.
        run(&["pool", "offline", "lake", "1"]).works();
        daemon.world.jobs.lock().remove(1);
        let lost = waiting.join().unwrap();
        assert!(lost.code == 6 && lost.err.contains("lost sight of the rebuild of lake"), "{lost:?}");
    });
}

#[test]
fn what_destroys_is_confirmed() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    qrvsa(&daemon, &["pool", "destroy", "tank"]).fails(5, &["all data in pool tank", "--force"]);
    let again = ["pool", "create", "lake", "/disks/tank0"];
    qrvsa(&daemon, &again).fails(5, &["holds data", "--force"]);
    let ran = qrvsa(&daemon, &["pool", "destroy", "tank", "--json"]);
    assert_eq!((ran.code, ran.json()["kind"].as_str()), (5, Some("needs_force")));

    for (typed, code) in [("no\n", 5), ("\n", 5), ("\x04", 5), ("what\nno\n", 5)] {
        let (got, shown) = on_terminal(&daemon, &["pool", "destroy", "tank"], typed);
        assert_eq!(got, code, "{typed:?}: {shown}");
        assert!(shown.contains("all data in pool tank would be destroyed. Go on? [yes/no]"), "{shown}");
        assert!(shown.contains("nothing was changed"), "{shown}");
    }
    assert_eq!(daemon.client().pools().unwrap().len(), 1);
    let (code, shown) = on_terminal(&daemon, &again, "yes\n");
    assert_eq!(code, 0, "{shown}");
    let (code, shown) = on_terminal(&daemon, &["pool", "destroy", "tank"], "what\ny\n");
    assert_eq!(code, 0, "{shown}");
    assert_eq!(daemon.client().pools().unwrap().len(), 1);
}

#[test]
fn a_terminal_gets_a_bar() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let (code, shown) = on_terminal(&daemon, &["check", "tank"], "");
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("check tank [") && shown.contains("pool tank is consistent"), "{shown:?}");
}

#[test]
fn usage_errors_are_one_line_and_never_reach_the_daemon() {
    let daemon = TestDaemon::new();
    for (args, part) in [
        (&[][..], "Usage"),
        (&["pool"], "Usage"),
        (&["pool", "create", "tank"], "<DEVICE>"),
        (&["pool", "create", "../x", "/a"], "does not begin with"),
        (&["pool", "create", "x", "--geometry", "2x2", "/a"], "2x2"),
        (&["pool", "create", "x", "/a:0G"], "size of 0"),
        (&["fs", "create", "tank/a/b"], "characters other than"),
        (&["fs", "set", "tank", "nothing"], "KEY=VALUE"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let ran = qrvsa(&daemon, args);
        ran.fails(2, &[]);
        assert!(ran.err.to_lowercase().contains(&part.to_lowercase()), "{part:?} is not in {ran:?}");
    }
    for args in [&["--help"][..], &["help"], &["pool", "create", "--help"], &["--version"]] {
        assert!(!qrvsa(&daemon, args).works().out.is_empty());
    }
    assert!(qrvsa(&daemon, &["--help"]).out.contains("Exit codes:\n  0  done"));
}

#[test]
fn without_a_daemon() {
    let daemon = TestDaemon::new();
    qrvsa(&daemon, &["pool", "list"]).fails(3, &["not running", "start it with"]);
    let ran = finish(command(&daemon).env_remove("QRVSA_SOCKET").args(["pool", "list", "--socket", "/nonexistent/s"]));
    ran.fails(3, &["/nonexistent/s", "qrvsad --socket /nonexistent/s"]);
    let ran = finish(command(&daemon).args(["pool", "list", "--json"]));
    assert_eq!((ran.code, ran.json()["kind"].as_str()), (3, Some("unreachable")));
}

#[test]
fn losing_the_daemon_while_waiting() {
    let mut daemon = TestDaemon::start();
    daemon.pool("tank");
    let (waiting, first, rest) = until_it_tells(command(&daemon).args(["pool", "scrub", "tank", "--wait"]));
    assert!(first.starts_with("scrub tank running"), "{first}");
    daemon.stop();
    let last = rest.last().unwrap().unwrap();
    assert!(last.contains("lost sight of the scrub of tank"), "{last}");
    assert_eq!(waiting.wait_with_output().unwrap().status.code(), Some(3));
}

#[test]
fn other_users_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let daemon = TestDaemon::start();
    // Where another user can get at it.
    let program = daemon.dir.path().join("qrvsa");
    std::fs::copy(env!("CARGO_BIN_EXE_qrvsa"), &program).unwrap();
    for path in [daemon.dir.path(), &daemon.dir.path().join("run"), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let as_nobody = || {
        finish(
            Command::new(&program)
                .args(["pool", "list"])
                .env("QRVSA_SOCKET", daemon.socket())
                .stdin(Stdio::null())
                .uid(65534)
                .gid(65534)
                .current_dir("/"),
        )
    };
    as_nobody().fails(3, &["no permission", "as root"]);
    // Even when somebody opened the socket for all.
    std::fs::set_permissions(daemon.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    as_nobody().fails(3, &["user 65534 may not use the daemon"]);
}

#[test]
fn the_mount_helper() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let at = daemon.mountpoint("mnt");
    let at = at.to_str().unwrap();
    let link = daemon.dir.path().join("mount.fuse.qrvsa");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_qrvsa"), &link).unwrap();
    // As mount(8) does it early at boot: no environment at all.
    let helper =
        |args: &[&str]| finish(Command::new(&link).args(args).env_clear().env("PATH", "").stdin(Stdio::null()));
    let socket = format!("rw,socket={}", daemon.socket().display());

    let ran = helper(&["tank", at, "-o", "rw,socket=/nonexistent/s"]);
    ran.fails(32, &["not running", "start it with"]);
    helper(&["tank"]).fails(1, &["usage"]);
    helper(&["tank/none", at, "-o", &socket]).fails(32, &["no filesystem"]);
    helper(&["tank", at, "-f", "-o", &socket]).works();
    assert_eq!(daemon.world.mounted(), [""; 0]);

    helper(&["tank", at, "-s", "-o", &format!("{socket},noatime,nofail,_netdev,x-systemd.automount")]).works();
    assert_eq!(daemon.world.mounted(), [format!("tank on {at} (noatime)")]);
    assert_eq!(daemon.remembered().1.len(), 1);
    daemon.pool("lake");
    helper(&["lake", at, "-o", &socket]).fails(32, &["in use"]);
    assert_eq!(daemon.world.mounted().len(), 1);
    // Without an option, the environment names the socket.
    let other = daemon.mountpoint("other");
    let mut command = Command::new(&link);
    finish(command.arg("lake").arg(&other).env_clear().env("QRVSA_SOCKET", daemon.socket())).works();
    assert_eq!(daemon.world.mounted().len(), 2);
}

#[test]
fn files_for_packages() {
    let daemon = TestDaemon::new();
    let dir = daemon.dir.path().join("man/deep");
    qrvsa(&daemon, &["generate", "man", dir.to_str().unwrap()]).works();
    for page in ["qrvsa.1", "qrvsa-pool.1", "qrvsa-pool-create.1", "qrvsa-check.1"] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    assert!(std::fs::read_to_string(dir.join("qrvsa.1")).unwrap().contains("Exit codes"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(qrvsa(&daemon, &["generate", "completions", shell]).works().out.contains("qrvsa"), "{shell}");
    }
    assert!(!qrvsa(&daemon, &["--help"]).works().out.contains("generate"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = TestDaemon::start();
    daemon.pool("tank");
    let unread = || std::io::pipe().unwrap().1;
    let run = |args: &[&str]| finish(command(&daemon).args(args).stdout(unread()));
    for args in [&["help", "pool"][..], &["pool", "list"], &["pool", "list", "--json"], &["pool", "sync", "tank"]] {
        let ran = run(args);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
    }
    // What fails fails as ever, and says so.
    run(&["--json", "pool", "destroy", "none"]).fails(6, &["no pool none"]);
    run(&["--json", "pool", "destroy", "tank"]).fails(5, &["--force"]);
    *daemon.world.check_problems.lock() = vec!["row 7 is used twice".into()];
    for args in [&["check", "tank", "--deep"][..], &["check", "tank", "--json"]] {
        let ran = run(args);
        assert!(ran.code == 4 && ran.err.contains("finished"), "{ran:?}");
    }
    // Nor does it matter who reads the errors.
    let deaf = |args: &[&str]| finish(command(&daemon).args(args).stdout(unread()).stderr(unread())).code;
    for (args, code) in [
        (&["--json", "pool", "destroy", "none"][..], 6),
        (&["check", "tank", "--deep"], 4),
        (&["pool", "list"], 0),
        (&["pool"], 2),
    ] {
        assert_eq!(deaf(args), code, "{args:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let daemon = TestDaemon::start();
    let full = |args: &[&str]| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        finish(command(&daemon).args(args).stdout(full))
    };
    full(&["pool", "list"]).fails(1, &["cannot write to standard output", "No space"]);
    full(&["help"]).fails(1, &["cannot write to standard output"]);
    let ran = full(&["--json", "pool", "destroy", "none"]);
    assert!(ran.code == 6 && ran.err.starts_with("qrvsa: there is no pool none"), "{ran:?}");
}

/// Runs the program on a terminal until it asks for a secret, and gives the terminal's two sides.
fn until_it_asks(daemon: &TestDaemon, args: &[&str]) -> (Child, File, OwnedFd) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let terminal = || Stdio::from(pty.slave.try_clone().unwrap());
    let child = command(daemon).args(args).stdin(terminal()).stdout(Stdio::null()).stderr(terminal()).spawn().unwrap();
    let mut screen = File::from(pty.master);
    let mut shown = Vec::new();
    while !shown.ends_with(b"shown): ") {
        let mut byte = [0];
        screen.read_exact(&mut byte).unwrap();
        shown.extend(byte);
    }
    (child, screen, pty.slave)
}

/// What else a terminal showed, once nobody uses it any more.
fn rest(mut screen: File, terminal: OwnedFd) -> String {
    drop(terminal);
    let mut shown = Vec::new();
    let _ = screen.read_to_end(&mut shown);
    String::from_utf8_lossy(&shown).into_owned()
}

fn shows_what_is_typed(terminal: &OwnedFd) -> bool {
    nix::sys::termios::tcgetattr(terminal).unwrap().local_flags.contains(nix::sys::termios::LocalFlags::ECHO)
}

#[test]
fn a_typed_secret_is_not_shown() {
    const IQN: &str = "iqn.2026-01.test:t";
    let daemon = TestDaemon::start();
    eventually("a target on a free port", || {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        qrvsa(&daemon, &["target", "create", IQN, "--portal", &format!("127.0.0.1:{port}")]).code == 0
    });
    let add = ["target", "user", IQN, "add", "alice"];
    let (mut child, mut keyboard, terminal) = until_it_asks(&daemon, &add);
    assert!(!shows_what_is_typed(&terminal));
    keyboard.write_all(b"wrong\x15not for all eyes\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(shows_what_is_typed(&terminal));
    let shown = rest(keyboard, terminal);
    assert_eq!(shown.trim(), "");
    let kept = || std::fs::read_to_string(daemon.state_dir().join("targets.json")).unwrap();
    assert!(kept().contains("\"not for all eyes\""), "{}", kept());

    // It ends by a signal as other programs do, and the terminal is as it was.
    let (mut child, keyboard, terminal) = until_it_asks(&daemon, &add);
    assert!(!shows_what_is_typed(&terminal));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    assert!(shows_what_is_typed(&terminal));
    assert_eq!(rest(keyboard, terminal).trim(), "");

    // The end of the input, and a secret from a pipe.
    let (mut child, mut keyboard, terminal) = until_it_asks(&daemon, &add);
    keyboard.write_all(b"\x04").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert!(rest(keyboard, terminal).contains("the secret is empty"));
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"through a pipe\n").unwrap();
    drop(writer);
    let ran = finish(command(&daemon).args(["target", "user", IQN, "add", "bob"]).stdin(reader)).works();
    assert_eq!(ran.err, "");
    assert!(kept().contains("\"through a pipe\""), "{}", kept());
}
