//! The daemon as a process: signals, the service manager's socket, the lock of a process that was killed.
//!
//! This program runs itself as the daemon (with a pretended engine), so it has its own `main`.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qrvsa_api::*;
use qrvsad::config::Config;
use qrvsad::run::{Claims, run, signals};
use support::{FakeEngine, FakeMounter, FakePool, PATIENCE, World, eventually};

const CHILD: &str = "QRVSAD_TEST_CHILD";
/// A mount point in it is always busy.
const BUSY: &str = "busy";

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir));
    }
    // As much of the arguments as `cargo test` and `cargo nextest` need: the latter lists tests, then runs each by its name.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| args.iter().any(|arg| arg == option);
    let valued = |at: usize| at > 0 && ["--format", "--test-threads", "--color"].contains(&args[at - 1].as_str());
    let filter = args.iter().enumerate().find(|(at, arg)| !arg.starts_with('-') && !valued(*at)).map(|(_, arg)| arg);
    let chosen = |name: &str| filter.is_none_or(|f| if has("--exact") { name == f } else { name.contains(f.as_str()) });
    let tests: BTreeMap<&str, fn()> = BTreeMap::from([
        ("reports_its_life_to_the_manager", reports_its_life_to_the_manager as fn()),
        ("sigterm_is_a_clean_end", sigterm_is_a_clean_end),
        ("a_second_sigterm_is_faster", a_second_sigterm_is_faster),
        ("sighup_is_ignored", sighup_is_ignored),
        ("sigkill_leaves_nothing_in_the_way", sigkill_leaves_nothing_in_the_way),
        ("a_second_daemon_is_refused", a_second_daemon_is_refused),
    ]);
    // None is ignored.
    for (name, test) in tests.iter().filter(|(name, _)| chosen(name) && !has("--ignored")) {
        if has("--list") {
            println!("{name}: test");
            continue;
        }
        test();
        println!("{name}: ok");
    }
    ExitCode::SUCCESS
}

/// The daemon: what `main` of qrvsad does, in a world that has one pool on "devices".
fn child(dir: &Path) -> ExitCode {
    let world = Arc::new(World::default());
    let pool = FakePool {
        id: "abc".into(),
        geometry: "1+0".into(),
        devices: vec![("/disks/a".into(), DeviceState::Online)],
        imported: false,
        clean_exports: 0,
        filesystems: BTreeMap::from([(String::new(), BTreeMap::new()), ("home".into(), BTreeMap::new())]),
        syncs: 0,
        volumes: BTreeMap::new(),
        blobs: BTreeMap::new(),
    };
    world.pools.lock().insert("tank".into(), pool);
    world.busy.lock().insert(dir.join(BUSY));
    let claims = match Claims::take(&dir.join("state"), &dir.join("run/s")) {
        Ok(claims) => claims,
        Err(problem) => {
            eprintln!("qrvsad: {problem}");
            return ExitCode::from(1);
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // No test waits until busy mounts are detached.
    let patience = Duration::from_secs(3600);
    let config =
        Config { search_dirs: Vec::new(), unmount_patience: patience, urgent_patience: patience, ..Config::default() };
    let (engine, mounter) = (Arc::new(FakeEngine(Arc::clone(&world))), Arc::new(FakeMounter(Arc::clone(&world))));
    runtime.block_on(async { run(claims, engine, mounter, config, signals().unwrap()).await }).unwrap();
    // Everything is unmounted and exported, or this is not the clean end it says it is.
    assert_eq!(world.mounted(), [""; 0]);
    assert!(world.pools.lock().values().all(|pool| !pool.imported));
    ExitCode::SUCCESS
}

struct Daemon {
    dir: tempfile::TempDir,
    manager: UnixDatagram,
    child: Option<Child>,
}

impl Daemon {
    fn new() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        Daemon { dir, manager, child: None }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(CHILD, self.path("")).env("NOTIFY_SOCKET", self.path("notify")).stderr(Stdio::inherit());
        command
    }

    fn start(&mut self) {
        self.child = Some(self.command().spawn().unwrap());
        self.told("READY=1");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn client(&self) -> Client {
        Client::new(self.path("run/s")).unwrap()
    }

    /// Waits until the manager is told something.
    fn told(&self, what: &str) {
        let mut message = [0; 4096];
        loop {
            let length =
                self.manager.recv(&mut message).unwrap_or_else(|e| panic!("the manager is not told {what}: {e}"));
            if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == what) {
                return;
            }
        }
    }

    fn mount(&self, source: &str, at: &str) {
        std::fs::create_dir_all(self.path(at)).unwrap();
        let source = source.parse().unwrap();
        self.client().mount(&MountRequest { source, mountpoint: self.path(at), options: vec![] }).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        let child = self.child.as_mut().unwrap();
        eventually("it ends", || child.try_wait().unwrap().is_some());
        self.child.take().unwrap().wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn with_pool() -> Daemon {
    let mut daemon = Daemon::new();
    daemon.start();
    let import = ImportPools { search: vec!["/".into()], name: Some("tank".into()), force: false };
    daemon.client().import(&import).unwrap();
    daemon
}

fn reports_its_life_to_the_manager() {
    let mut daemon = Daemon::new();
    daemon.start();
    daemon.client().pools().unwrap();
    daemon.signal(Signal::SIGINT);
    daemon.told("STOPPING=1");
    assert_eq!(daemon.wait(), Some(0));
}

fn sigterm_is_a_clean_end() {
    let mut daemon = with_pool();
    daemon.mount("tank", "mnt");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
    assert!(!daemon.path("run/s").exists());
    daemon.start();
    assert_eq!(daemon.client().mounts().unwrap()[0].state, MountState::Mounted);
}

fn a_second_sigterm_is_faster() {
    let mut daemon = with_pool();
    daemon.mount("tank", BUSY);
    daemon.signal(Signal::SIGTERM);
    daemon.told("STOPPING=1");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}

fn sighup_is_ignored() {
    let mut daemon = Daemon::new();
    daemon.start();
    for _ in 0..4 {
        daemon.signal(Signal::SIGHUP);
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.client().pools().unwrap();
}

fn sigkill_leaves_nothing_in_the_way() {
    let mut daemon = with_pool();
    daemon.mount("tank", "a");
    daemon.mount("tank/home", "b");
    for _ in 0..3 {
        daemon.signal(Signal::SIGKILL);
        assert_eq!(daemon.wait(), None);
        assert!(daemon.path("run/s").exists());
        daemon.start();
        let mounts = daemon.client().mounts().unwrap();
        assert!(mounts.len() == 2 && mounts.iter().all(|m| m.state == MountState::Mounted), "{mounts:?}");
    }
}

fn a_second_daemon_is_refused() {
    let mut daemon = Daemon::new();
    daemon.start();
    let output = daemon.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another qrvsad"));
    eventually("the first goes on", || daemon.client().pools().is_ok());
}
