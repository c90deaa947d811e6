//! A daemon in the test's own process, over an engine and a front end that only pretend. Shared by the tests of the
//! daemon and of the command line.
//!
//! [`World`] is what outlives the daemon: the "devices" with their pools, and the "kernel" with its mounts. A daemon can
//! be stopped, or crashed, and started again in the same world.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use qrvsa_api::names::FsName;
use qrvsa_api::*;
use qrvsa_core::fs::ops::*;
use qrvsa_core::vhdx::ImageFile;
use qrvsa_core::{Error, ErrorKind as Core, Result};
use qrvsad::config::Config;
use qrvsad::engine::{CheckProgress, Engine, FileFacts, ImportOutcome, ImportRequest};
use qrvsad::engine_core::CoreEngine;
use qrvsad::mounter::{ActiveMount, MountSpec, Mounter, OnExit, SessionEnd};
use qrvsad::run::{Claims, run};

/// A pool on the pretended devices.
#[derive(Clone, Debug)]
pub struct FakePool {
    pub id: String,
    pub geometry: String,
    pub devices: Vec<(PathBuf, DeviceState)>,
    pub imported: bool,
    pub clean_exports: u32,
    pub filesystems: BTreeMap<String, BTreeMap<String, String>>,
    pub syncs: u32,
    pub volumes: BTreeMap<String, CreateVolume>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

/// A mount in the pretended kernel.
pub struct FakeMount {
    pub source: String,
    pub options: Vec<String>,
    on_exit: Option<OnExit>,
    alive: Arc<AtomicBool>,
}

impl FakeMount {
    fn end(mut self, end: SessionEnd) {
        self.on_exit.take().expect("a session ends once")(end);
        self.alive.store(false, Ordering::SeqCst);
    }
}

/// A gate that holds calls back while closed.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    pub waiting: AtomicU64,
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock() = true;
    }

    pub fn open(&self) {
        *self.closed.lock() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *closed {
            self.changed.wait(&mut closed);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
pub struct World {
    pub pools: Mutex<BTreeMap<String, FakePool>>,
    /// Devices that hold something.
    pub used_devices: Mutex<BTreeSet<PathBuf>>,
    /// Devices that are gone.
    pub missing_devices: Mutex<BTreeSet<PathBuf>>,
    pub jobs: Mutex<Vec<JobInfo>>,
    pub last_job: AtomicU64,
    pub check_problems: Mutex<Vec<String>>,
    pub mounts: Mutex<BTreeMap<PathBuf, FakeMount>>,
    /// Mounts whose server died.
    pub stale: Mutex<BTreeSet<PathBuf>>,
    /// Mounts with open files.
    pub busy: Mutex<BTreeSet<PathBuf>>,
    /// Mounts that bind mounts show in other places.
    pub bound: Mutex<BTreeSet<PathBuf>>,
    /// Mounts that are not in the tree any more, but used.
    pub detached: Mutex<BTreeMap<PathBuf, FakeMount>>,
    /// Pools that have stopped writing.
    pub suspended: Mutex<BTreeSet<String>>,
    /// Pools of these names are found, besides those that are imported.
    pub namesakes: Mutex<BTreeSet<String>>,
    /// Mounts whose last data cannot be made durable.
    pub losing: Mutex<BTreeSet<PathBuf>>,
    pub lazy_unmounts: Mutex<Vec<PathBuf>>,
    pub system_stopping: AtomicBool,
    pub import_panics: AtomicBool,
    pub import_gate: Gate,
    pub sync_gate: Gate,
    pub check_gate: Gate,
    pub replace_gate: Gate,
    /// Volumes are opened behind it.
    pub open_gate: Gate,
    /// Checks do not end when they are told to.
    pub checks_are_deaf: AtomicBool,
    /// Exports and destructions fail in their last step.
    pub last_step_fails: AtomicBool,
    /// Checks that ended because they were told to.
    pub checks_stopped: AtomicU64,
    pub imports: Mutex<Vec<ImportRequest>>,
}

impl World {
    /// The mounts of the pretended kernel, as `source on mountpoint (options)`.
    pub fn mounted(&self) -> Vec<String> {
        let mounts = self.mounts.lock();
        mounts.iter().map(|(at, m)| format!("{} on {} ({})", m.source, at.display(), m.options.join(","))).collect()
    }

    /// `umount DIR` by an administrator.
    pub fn external_unmount(&self, mountpoint: &Path) {
        self.end_session(mountpoint, SessionEnd::Unmounted);
    }

    /// The session of a mount ends.
    pub fn end_session(&self, mountpoint: &Path, end: SessionEnd) {
        let mount = self.mounts.lock().remove(mountpoint);
        mount.expect("it is mounted").end(end);
    }

    /// Nothing uses what was detached from a directory any more.
    pub fn let_go(&self, mountpoint: &Path) {
        self.busy.lock().remove(mountpoint);
        self.bound.lock().remove(mountpoint);
        let mount = self.detached.lock().remove(mountpoint);
        mount.expect("it is detached").end(SessionEnd::Unmounted);
    }

    /// The server of a mount dies, the mount stays.
    pub fn kill_session(&self, mountpoint: &Path) {
        self.stale.lock().insert(mountpoint.to_owned());
        self.external_unmount(mountpoint);
    }

    fn pool<T>(&self, name: &str, f: impl FnOnce(&mut FakePool) -> Result<T>) -> Result<T> {
        match self.pools.lock().get_mut(name) {
            Some(pool) if pool.imported => f(pool),
            _ => Err(Error::new(Core::NotFound, format!("the engine has no pool {name}"))),
        }
    }

    fn summary(name: &str, pool: &FakePool) -> PoolSummary {
        let degraded = pool.devices.iter().any(|(_, state)| *state != DeviceState::Online);
        PoolSummary {
            name: name.to_owned(),
            id: pool.id.clone(),
            state: if degraded { PoolState::Degraded } else { PoolState::Online },
            geometry: pool.geometry.clone(),
            raw_bytes: 8 << 30,
            usable_bytes: 4 << 30,
            used_bytes: 1 << 30,
            free_bytes: 3 << 30,
            message: if degraded { "a device does not work".to_owned() } else { String::new() },
        }
    }

    fn new_job(&self, kind: JobKind, pool: &str) -> String {
        let id = format!("job-{}", self.last_job.fetch_add(1, Ordering::SeqCst) + 1);
        self.jobs.lock().push(JobInfo {
            id: id.clone(),
            kind,
            pool: pool.to_owned(),
            state: JobState::Running,
            done_bytes: 0,
            total_bytes: 1 << 20,
            rate_bytes_per_s: 1 << 20,
            eta_s: Some(1),
            errors_found: 0,
            repaired: 0,
            lost: 0,
            started_unix_s: 1_700_000_000,
            finished_unix_s: None,
            message: String::new(),
            report: None,
        });
        id
    }

    /// Changes the newest job.
    pub fn job(&self, change: impl FnOnce(&mut JobInfo)) {
        change(self.jobs.lock().last_mut().expect("there is a job"));
    }
}

/// The engine over a [`World`].
pub struct FakeEngine(pub Arc<World>);

impl Engine for FakeEngine {
    fn create_pool(&self, request: &CreatePool) -> Result<()> {
        let paths: Vec<PathBuf> = request.devices.iter().map(|d| d.path.clone()).collect();
        if let Some(used) = paths.iter().find(|p| self.0.used_devices.lock().contains(*p) && !request.force) {
            return Err(Error::new(Core::NeedsForce, format!("{} holds data", used.display())));
        }
        let geometry = request.geometry.map_or_else(|| "1+0".to_owned(), |g| g.to_string());
        if request.geometry.is_some_and(|g| usize::from(g.data) + usize::from(g.parity) > paths.len()) {
            return Err(Error::new(Core::Invalid, format!("geometry {geometry} needs more devices")));
        }
        self.0.used_devices.lock().extend(paths.iter().cloned());
        let pool = FakePool {
            id: format!("{:x}", request.name.len()),
            geometry,
            devices: paths.into_iter().map(|path| (path, DeviceState::Online)).collect(),
            imported: true,
            clean_exports: 0,
            filesystems: BTreeMap::from([(String::new(), BTreeMap::new())]),
            syncs: 0,
            volumes: BTreeMap::new(),
            blobs: BTreeMap::new(),
        };
        self.0.pools.lock().insert(request.name.clone(), pool);
        Ok(())
    }

    fn list(&self) -> Result<Vec<PoolSummary>> {
        let pools = self.0.pools.lock();
        Ok(pools.iter().filter(|(_, p)| p.imported).map(|(name, p)| World::summary(name, p)).collect())
    }

    fn status(&self, name: &str) -> Result<PoolStatus> {
        let jobs = self.0.jobs.lock();
        let job = |kind| jobs.iter().rev().find(|j| j.pool == name && j.kind == kind && !j.state.is_final()).cloned();
        let (scrub, rebuild) = (job(JobKind::Scrub), job(JobKind::Rebuild));
        let last_scrub =
            jobs.iter().rev().find(|j| j.pool == name && j.kind == JobKind::Scrub && j.state.is_final()).cloned();
        self.0.pool(name, |pool| {
            let devices = pool.devices.iter().zip(0..).map(|((path, state), index)| DeviceStatus {
                index,
                id: format!("d{index}"),
                path: path.clone(),
                state: *state,
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
                repaired: 0,
                size_bytes: 2 << 30,
                allocated_bytes: 1 << 30,
                kind: "file".into(),
                host_taken_bytes: None,
                host_free_bytes: None,
                message: String::new(),
            });
            let mut summary = World::summary(name, pool);
            if self.0.suspended.lock().contains(name) {
                summary.state = PoolState::Suspended;
            }
            Ok(PoolStatus {
                summary,
                txg: 42,
                more_failures_survived: 2,
                bytes_degraded: 0,
                bytes_without_redundancy: 0,
                bytes_lost: 0,
                devices: devices.collect(),
                scrub,
                rebuild,
                failed_rebuild: None,
                last_scrub,
                damaged_files: Vec::new(),
                warnings: Vec::new(),
            })
        })
    }

    fn import(&self, request: &ImportRequest) -> Result<ImportOutcome> {
        self.0.imports.lock().push(request.clone());
        self.0.import_gate.pass();
        assert!(!self.0.import_panics.load(Ordering::SeqCst), "the import fails as it should in this test");
        let missing = self.0.missing_devices.lock().clone();
        let mut outcome = ImportOutcome::default();
        for (name, pool) in self.0.pools.lock().iter_mut() {
            if request.name.as_ref().is_some_and(|n| n != name) || pool.imported {
                continue;
            }
            let reachable = pool.devices.iter().any(|(path, _)| {
                request.devices.contains(path) || request.search.iter().any(|dir| path.starts_with(dir))
            });
            if !reachable {
                continue;
            }
            if pool.devices.iter().any(|(path, _)| missing.contains(path)) {
                outcome.failed.push((name.clone(), Error::new(Core::Degraded, "too few devices are there")));
                continue;
            }
            pool.imported = true;
            outcome.imported.push(name.clone());
            if self.0.namesakes.lock().contains(name) {
                let other = Error::new(Core::Exists, format!("another pool named {name} is imported"));
                outcome.namesakes.push((name.clone(), other));
            }
        }
        match &request.name {
            Some(_) if !outcome.failed.is_empty() => Err(outcome.failed.remove(0).1),
            Some(name) if outcome.imported.is_empty() => {
                Err(Error::new(Core::NotFound, format!("pool {name} is not on any device searched")))
            }
            _ => Ok(outcome),
        }
    }

    fn export(&self, name: &str) -> Result<()> {
        let fails = self.0.last_step_fails.load(Ordering::SeqCst);
        self.0.pool(name, |pool| {
            pool.imported = false;
            pool.clean_exports += u32::from(!fails);
            if fails { Err(Error::new(Core::Io, "the last commit failed")) } else { Ok(()) }
        })
    }

    fn destroy(&self, name: &str) -> Result<()> {
        self.0.pool(name, |_| Ok(()))?;
        if self.0.last_step_fails.load(Ordering::SeqCst) {
            return self.0.pool(name, |pool| {
                pool.imported = false;
                Err(Error::new(Core::Io, "a label cannot be overwritten"))
            });
        }
        let pool = self.0.pools.lock().remove(name);
        for (path, _) in pool.into_iter().flat_map(|pool| pool.devices) {
            self.0.used_devices.lock().remove(&path);
        }
        Ok(())
    }

    fn offline(&self, name: &str, device: &str) -> Result<()> {
        self.set_device(name, device, DeviceState::Offline)
    }

    fn online(&self, name: &str, device: &str) -> Result<()> {
        self.set_device(name, device, DeviceState::Online)
    }

    fn replace(&self, name: &str, request: &ReplaceDevice) -> Result<String> {
        if self.0.used_devices.lock().contains(&request.new.path) && !request.force {
            return Err(Error::new(Core::NeedsForce, format!("{} holds data", request.new.path.display())));
        }
        self.set_device(name, &request.old, DeviceState::Offline)?;
        self.0.pool(name, |pool| {
            pool.devices.push((request.new.path.clone(), DeviceState::Rebuilding));
            Ok(())
        })?;
        self.0.replace_gate.pass();
        Ok(self.0.new_job(JobKind::Rebuild, name))
    }

    fn scrub(&self, name: &str, action: ScrubAction) -> Result<String> {
        self.0.pool(name, |_| Ok(()))?;
        let mut jobs = self.0.jobs.lock();
        let open = jobs.iter_mut().find(|j| j.pool == name && j.kind == JobKind::Scrub && !j.state.is_final());
        match (action, open) {
            (ScrubAction::Start, None) => {
                drop(jobs);
                Ok(self.0.new_job(JobKind::Scrub, name))
            }
            (ScrubAction::Start, Some(job)) if job.state == JobState::Running => {
                Err(Error::new(Core::Busy, format!("a scrub of {name} is running")))
            }
            (_, None) => Err(Error::new(Core::NotFound, format!("no scrub of {name} is running"))),
            (action, Some(job)) => {
                job.state = match action {
                    ScrubAction::Start => JobState::Running,
                    ScrubAction::Pause => JobState::Paused,
                    ScrubAction::Stop => JobState::Stopped,
                };
                Ok(job.id.clone())
            }
        }
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.0.sync_gate.pass();
        self.0.pool(name, |pool| {
            pool.syncs += 1;
            Ok(())
        })
    }

    fn fs_create(&self, name: &str, request: &CreateFs) -> Result<()> {
        self.0.pool(name, |pool| {
            if pool.filesystems.contains_key(&request.name) {
                return Err(Error::new(Core::Exists, format!("filesystem {} exists", request.name)));
            }
            let properties = request.properties.iter().map(|p| (p.key.clone(), p.value.clone()));
            pool.filesystems.insert(request.name.clone(), properties.collect());
            Ok(())
        })
    }

    fn fs_list(&self, name: &str) -> Result<Vec<FsInfo>> {
        self.0.pool(name, |pool| {
            let list = pool.filesystems.keys().map(|fs| FsInfo {
                name: FsName { pool: name.to_owned(), fs: (!fs.is_empty()).then(|| fs.clone()) },
                used_bytes: 4096,
                available_bytes: 3 << 30,
                mountpoints: Vec::new(),
            });
            Ok(list.collect())
        })
    }

    fn fs_destroy(&self, fs: &FsName) -> Result<()> {
        self.0.pool(&fs.pool, |pool| {
            pool.filesystems.remove(fs.fs.as_deref().unwrap_or_default());
            Ok(())
        })
    }

    fn fs_get(&self, fs: &FsName) -> Result<Vec<Property>> {
        self.0.pool(&fs.pool, |pool| {
            let own = pool.filesystems.get(fs.fs.as_deref().unwrap_or_default()).cloned().unwrap_or_default();
            let mut list = vec![Property { key: "created".into(), value: "today".into(), read_only: true }];
            list.extend(own.into_iter().map(|(key, value)| Property { key, value, read_only: false }));
            Ok(list)
        })
    }

    fn fs_set(&self, fs: &FsName, property: &SetProperty) -> Result<()> {
        if property.key == "created" {
            return Err(Error::new(Core::Invalid, "property created cannot be set"));
        }
        self.0.pool(&fs.pool, |pool| {
            let own = pool.filesystems.entry(fs.fs.clone().unwrap_or_default()).or_default();
            own.insert(property.key.clone(), property.value.clone());
            Ok(())
        })
    }

    fn open_fs(&self, fs: &FsName) -> Result<Arc<dyn Operations>> {
        self.0.pool(&fs.pool, |_| Ok(()))?;
        Ok(Arc::new(NoFs))
    }

    fn file_facts(&self, _: &FsName, _: u64) -> Result<FileFacts> {
        Err(Error::posix(nix::errno::Errno::ENOENT))
    }

    fn open_file(&self, _: &FsName, _: u64, _: bool, _: &str, _: &Path) -> Result<Arc<dyn ImageFile>> {
        Err(Error::posix(nix::errno::Errno::ENOENT))
    }

    fn file_user(&self, _: &str, _: Option<&FsName>) -> Option<String> {
        None
    }

    fn volume_create(&self, name: &str, request: &CreateVolume) -> Result<()> {
        self.0.pool(name, |pool| {
            if pool.volumes.contains_key(&request.name) {
                return Err(Error::new(Core::Exists, format!("volume {} exists", request.name)));
            }
            pool.volumes.insert(request.name.clone(), request.clone());
            Ok(())
        })
    }

    fn volume_list(&self, name: &str) -> Result<Vec<VolumeInfo>> {
        self.0.pool(name, |pool| {
            let list = pool.volumes.values().map(|v| VolumeInfo {
                name: FsName { pool: name.to_owned(), fs: Some(v.name.clone()) },
                size_bytes: v.size_bytes,
                block_bytes: v.block_bytes,
                record_bytes: v.record_bytes,
                reserve: v.reserve,
                allocated_bytes: 4096,
                available_bytes: 3 << 30,
                id: "0123456789abcdef0123456789abcdef".to_owned(),
                naa: "3123456789abcdef".to_owned(),
                created_unix_s: 1_700_000_000,
                in_use: false,
            });
            Ok(list.collect())
        })
    }

    fn volume_resize(&self, volume: &FsName, size_bytes: u64, force: bool) -> Result<()> {
        self.0.pool(&volume.pool, |pool| {
            let v = pool.volumes.get_mut(volume.fs.as_deref().unwrap_or_default()).unwrap();
            if size_bytes < v.size_bytes && !force {
                return Err(Error::new(Core::NeedsForce, "the volume would shrink; use --force to do it"));
            }
            v.size_bytes = size_bytes;
            Ok(())
        })
    }

    fn volume_destroy(&self, volume: &FsName) -> Result<()> {
        self.0.pool(&volume.pool, |pool| {
            pool.volumes.remove(volume.fs.as_deref().unwrap_or_default());
            Ok(())
        })
    }

    fn open_volume(&self, volume: &FsName) -> Result<Arc<qrvsa_core::volume::Volume>> {
        self.0.open_gate.pass();
        Err(Error::new(Core::NotFound, format!("volume {volume} is pretended and holds no data")))
    }

    fn put_blob(&self, name: &str, key: &str, bytes: &[u8]) -> Result<()> {
        self.0.pool(name, |pool| {
            pool.blobs.insert(key.to_owned(), bytes.to_vec());
            Ok(())
        })
    }

    fn blob(&self, name: &str, key: &str) -> Result<Option<Vec<u8>>> {
        self.0.pool(name, |pool| Ok(pool.blobs.get(key).cloned()))
    }

    fn remove_blob(&self, name: &str, key: &str) -> Result<()> {
        self.0.pool(name, |pool| {
            pool.blobs.remove(key);
            Ok(())
        })
    }

    fn check(&self, name: &str, deep: bool, progress: &mut dyn FnMut(CheckProgress) -> bool) -> Result<CheckReport> {
        self.0.pool(name, |_| Ok(()))?;
        let problems = self.0.check_problems.lock().clone();
        assert!(!problems.contains(&"panic".to_owned()), "the check fails as it should in this test");
        let stopped = || {
            self.0.checks_stopped.fetch_add(1, Ordering::SeqCst);
            Err(Error::new(Core::Busy, "the check was stopped"))
        };
        let mut go_on = |p| progress(p) || self.0.checks_are_deaf.load(Ordering::SeqCst);
        for done_bytes in [0, 512, 1024] {
            let p = CheckProgress { done_bytes, total_bytes: 1024, problems: problems.len() as u64 };
            if !go_on(p) {
                return stopped();
            }
            while *self.0.check_gate.closed.lock() {
                if !go_on(p) {
                    return stopped();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(CheckReport { problems, counts: BTreeMap::from([("nodes".to_owned(), if deep { 20 } else { 10 })]) })
    }

    fn locate(&self, fs: &FsName, ino: u64) -> Result<Vec<Fragment>> {
        self.0.pool(&fs.pool, |pool| {
            let fragments = pool.devices.iter().zip(0..).map(|((path, _), column)| Fragment {
                file_offset: 0,
                length: 8192,
                column,
                role: if column == 0 { FragmentRole::Data } else { FragmentRole::Parity },
                device: path.clone(),
                device_offset: ino,
                device_length: 4096,
            });
            Ok(fragments.collect())
        })
    }

    fn labels(&self, device: &Path) -> Result<Vec<DebugEntry>> {
        if !self.0.used_devices.lock().contains(device) {
            return Err(Error::new(Core::NotFound, format!("no device {}", device.display())));
        }
        let fields = vec![("pool id".to_owned(), "abc".to_owned())];
        let label = DebugEntry { title: "label 0".into(), offset: 4096, valid: true, problem: String::new(), fields };
        Ok(vec![label])
    }

    fn uberblocks(&self, device: &Path) -> Result<Vec<DebugEntry>> {
        let mut list = self.labels(device)?;
        for entry in &mut list {
            entry.title = "uberblock 0".into();
            entry.valid = false;
            entry.problem = "checksum".into();
        }
        Ok(list)
    }

    fn jobs(&self) -> Vec<JobInfo> {
        self.0.jobs.lock().clone()
    }
}

impl FakeEngine {
    fn set_device(&self, name: &str, device: &str, to: DeviceState) -> Result<()> {
        self.0.pool(name, |pool| {
            let found = pool.devices.iter_mut().zip(0..).find(|((path, _), index)| {
                path.as_os_str() == device || format!("{index}") == device || format!("d{index}") == device
            });
            match found {
                Some(((_, state), _)) => {
                    *state = to;
                    Ok(())
                }
                None => Err(Error::new(Core::NotFound, format!("pool {name} has no device {device}"))),
            }
        })
    }
}

/// The front end over a [`World`].
pub struct FakeMounter(pub Arc<World>);

struct FakeActive {
    world: Arc<World>,
    mountpoint: PathBuf,
    alive: Arc<AtomicBool>,
}

impl Mounter for FakeMounter {
    fn mount(&self, _ops: Arc<dyn Operations>, spec: &MountSpec<'_>, on_exit: OnExit) -> Result<Arc<dyn ActiveMount>> {
        if let Some(bad) = spec.options.iter().find(|o| o.starts_with("bad")) {
            return Err(Error::new(Core::Invalid, format!("unknown mount option {bad}")));
        }
        let source = spec.source.to_owned();
        assert!(self.0.detached.lock().values().all(|other| other.source != source), "{source} has another session");
        let alive = Arc::new(AtomicBool::new(true));
        let (options, on_exit) = (spec.options.to_vec(), Some(on_exit));
        let mount = FakeMount { source, options, on_exit, alive: Arc::clone(&alive) };
        let before = self.0.mounts.lock().insert(spec.mountpoint.to_owned(), mount);
        assert!(before.is_none(), "{} is mounted twice", spec.mountpoint.display());
        Ok(Arc::new(FakeActive { world: Arc::clone(&self.0), mountpoint: spec.mountpoint.to_owned(), alive }))
    }

    fn remount(&self, spec: &MountSpec<'_>, before: &[String]) -> Result<()> {
        let mut mounts = self.0.mounts.lock();
        let mount = mounts.get_mut(spec.mountpoint).expect("it is mounted");
        assert_eq!((mount.source.as_str(), mount.options.as_slice()), (spec.source, before));
        if let Some(bad) = spec.options.iter().find(|o| o.starts_with("threads")) {
            return Err(Error::new(
                Core::Invalid,
                format!("a remount cannot change {bad}; unmount it and mount it again"),
            ));
        }
        mount.options = spec.options.to_vec();
        Ok(())
    }

    fn is_stale(&self, mountpoint: &Path) -> bool {
        self.0.stale.lock().contains(mountpoint)
    }

    fn detach_stale(&self, mountpoint: &Path) -> Result<bool> {
        Ok(self.0.stale.lock().remove(mountpoint))
    }

    fn is_mountpoint(&self, mountpoint: &Path) -> bool {
        self.0.mounts.lock().contains_key(mountpoint) || qrvsad::host::is_mountpoint(mountpoint)
    }

    fn system_is_stopping(&self) -> bool {
        self.0.system_stopping.load(Ordering::SeqCst)
    }
}

impl ActiveMount for FakeActive {
    fn unmount(&self, lazy: bool, _: Duration) -> Result<()> {
        let busy = self.world.busy.lock().contains(&self.mountpoint);
        if busy && !lazy {
            return Err(Error::new(Core::Busy, "target is busy"));
        }
        if lazy {
            self.world.lazy_unmounts.lock().push(self.mountpoint.clone());
        }
        let Some(mount) = self.world.mounts.lock().remove(&self.mountpoint) else {
            return Err(Error::new(Core::Invalid, "not mounted"));
        };
        if busy || self.world.bound.lock().contains(&self.mountpoint) {
            self.world.detached.lock().insert(self.mountpoint.clone(), mount);
            return if lazy { Ok(()) } else { Err(Error::new(Core::Busy, "still shown elsewhere")) };
        }
        mount.end(SessionEnd::Unmounted);
        Ok(())
    }

    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::SeqCst)
    }

    fn is_detached(&self) -> bool {
        self.is_alive() && !self.world.mounts.lock().contains_key(&self.mountpoint)
    }

    fn users(&self) -> String {
        "open in process 7 (cat)".to_owned()
    }

    fn lost(&self) -> Option<String> {
        (!self.is_alive() && self.world.losing.lock().contains(&self.mountpoint)).then(|| "I/O error".to_owned())
    }
}

/// A daemon in a world, on a temporary socket.
pub struct TestDaemon {
    pub world: Arc<World>,
    pub dir: tempfile::TempDir,
    pub config: Config,
    /// In the place of the pretended one.
    engine: Option<Arc<dyn Engine>>,
    life: Option<Life>,
}

struct Life {
    runtime: tokio::runtime::Runtime,
    stop: tokio::sync::mpsc::Sender<()>,
    ended: tokio::task::JoinHandle<std::result::Result<(), String>>,
}

impl TestDaemon {
    pub fn start() -> TestDaemon {
        let mut daemon = TestDaemon::new();
        daemon.restart();
        daemon
    }

    pub fn new() -> TestDaemon {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { search_dirs: Vec::new(), ..Config::default() };
        TestDaemon { world: Arc::default(), dir, config, engine: None, life: None }
    }

    /// With the engine itself, and a pool of two small files that may lose one.
    pub fn with_engine(pool: &str) -> TestDaemon {
        let mut daemon = TestDaemon::new();
        daemon.engine = Some(Arc::new(CoreEngine::new(daemon.config.engine_options())));
        daemon.restart();
        let device = |i| format!("{}/{pool}{i}.img:256M", daemon.dir.path().display()).parse().unwrap();
        let devices = (0..2).map(device).collect();
        let geometry = Some("1+1".parse().unwrap());
        daemon.client().create_pool(&CreatePool { name: pool.into(), geometry, devices, force: false }).unwrap();
        daemon
    }

    /// Starts a daemon in the same world.
    pub fn restart(&mut self) {
        assert!(self.life.is_none());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = tokio::sync::mpsc::channel(4);
        // Threads of the life before may still be about to end, and hold what is claimed until then.
        let mut claims = Claims::take(&self.state_dir(), &self.socket());
        let start = Instant::now();
        while claims.is_err() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
            claims = Claims::take(&self.state_dir(), &self.socket());
        }
        let claims = claims.map_err(|problem| format!("{problem} after {PATIENCE:?}")).unwrap();
        let fake = || Arc::new(FakeEngine(Arc::clone(&self.world))) as Arc<dyn Engine>;
        let engine = self.engine.clone().unwrap_or_else(fake);
        let mounter = Arc::new(FakeMounter(Arc::clone(&self.world)));
        let ended = runtime.spawn(run(claims, engine, mounter, self.config.clone(), stopped));
        self.life = Some(Life { runtime, stop, ended });
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/qrvsad.sock")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket()).unwrap()
    }

    /// Makes a directory to mount on.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        let path = self.dir.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a pool of one device per column.
    pub fn pool(&self, name: &str) {
        let devices = (0..4).map(|i| format!("/disks/{name}{i}").parse().unwrap()).collect();
        let geometry = Some("2+2".parse().unwrap());
        self.client().create_pool(&CreatePool { name: name.into(), geometry, devices, force: false }).unwrap();
    }

    pub fn mount(&self, source: &str, mountpoint: &Path) -> std::result::Result<MountInfo, ApiError> {
        let source = source.parse().unwrap();
        self.client().mount(&MountRequest { source, mountpoint: mountpoint.to_owned(), options: vec!["ro".into()] })
    }

    /// What the state file names: pools, and mount points.
    pub fn remembered(&self) -> (Vec<String>, Vec<PathBuf>) {
        let text = std::fs::read(self.state_dir().join("state.json")).unwrap();
        let state: qrvsad::state::Persistent = serde_json::from_slice(&text).unwrap();
        (state.pools.into_iter().map(|p| p.name).collect(), state.mounts.into_iter().map(|m| m.mountpoint).collect())
    }

    /// Where the state file says that the devices of a pool are.
    pub fn remembered_devices(&self, pool: &str) -> Vec<PathBuf> {
        let text = std::fs::read(self.state_dir().join("state.json")).unwrap();
        let state: qrvsad::state::Persistent = serde_json::from_slice(&text).unwrap();
        state.pools.into_iter().filter(|p| p.name == pool).flat_map(|p| p.devices).collect()
    }

    /// SIGTERM.
    pub fn tell_to_stop(&self) {
        self.life.as_ref().unwrap().stop.try_send(()).unwrap();
    }

    /// Waits for the end after [`TestDaemon::tell_to_stop`].
    pub fn wait_for_end(&mut self) -> std::result::Result<(), String> {
        let Life { runtime, stop: _stop, ended } = self.life.take().unwrap();
        let result = runtime.block_on(async { tokio::time::timeout(PATIENCE, ended).await }).expect("it ends").unwrap();
        runtime.shutdown_timeout(Duration::from_secs(5));
        result
    }

    pub fn stop(&mut self) {
        self.tell_to_stop();
        self.wait_for_end().unwrap();
    }

    /// SIGKILL, or a power cut: nothing is unmounted or exported.
    pub fn crash(&mut self) {
        let life = self.life.take().unwrap();
        life.runtime.shutdown_timeout(Duration::from_secs(5));
        let mounts = std::mem::take(&mut *self.world.mounts.lock());
        self.world.stale.lock().extend(mounts.into_keys());
        self.world.detached.lock().clear();
        for pool in self.world.pools.lock().values_mut() {
            pool.imported = false;
        }
        for job in self.world.jobs.lock().iter_mut() {
            job.state = JobState::Stopped;
        }
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            life.runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Far longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A filesystem that can do nothing.
struct NoFs;

fn enosys<T>() -> Result<T> {
    Err(Error::posix(nix::errno::Errno::ENOSYS))
}

#[rustfmt::skip]
impl Operations for NoFs {
    fn lookup(&self, _: Ino, _: &[u8]) -> Result<Attr> { enosys() }
    fn getattr(&self, _: Ino) -> Result<Attr> { enosys() }
    fn setattr(&self, _: Caller, _: Ino, _: SetAttr) -> Result<Attr> { enosys() }
    fn readlink(&self, _: Ino) -> Result<Vec<u8>> { enosys() }
    fn mknod(&self, _: Caller, _: Ino, _: &[u8], _: NewNode) -> Result<Attr> { enosys() }
    fn symlink(&self, _: Caller, _: Ino, _: &[u8], _: &[u8]) -> Result<Attr> { enosys() }
    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr> { enosys() }
    fn unlink(&self, _: Ino, _: &[u8]) -> Result<()> { enosys() }
    fn rmdir(&self, _: Ino, _: &[u8]) -> Result<()> { enosys() }
    fn rename(&self, _: Caller, _: (Ino, &[u8]), _: (Ino, &[u8]), _: RenameMode) -> Result<()> { enosys() }
    fn create(&self, _: Caller, _: Ino, _: &[u8], _: NewNode, _: bool, _: bool) -> Result<(Attr, bool)> { enosys() }
    fn open(&self, _: Caller, _: Ino, _: bool) -> Result<()> { enosys() }
    fn release(&self, _: Ino) {}
    fn read(&self, _: Ino, _: u64, _: &mut [u8]) -> Result<usize> { enosys() }
    fn write(&self, _: Ino, _: u64, _: &[u8], _: bool, _: bool) -> Result<usize> { enosys() }
    fn flush(&self, _: Ino) -> Result<()> { enosys() }
    fn fsync(&self, _: Ino, _: bool) -> Result<()> { enosys() }
    fn sync_all(&self) -> Result<()> { enosys() }
    fn readdir(&self, _: Ino, _: u64, _: bool, _: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> { enosys() }
    fn statfs(&self) -> Result<StatFs> { enosys() }
    fn setxattr(&self, _: Caller, _: Ino, _: &[u8], _: &[u8], _: XattrMode) -> Result<()> { enosys() }
    fn getxattr(&self, _: Ino, _: &[u8]) -> Result<Vec<u8>> { enosys() }
    fn listxattr(&self, _: Ino) -> Result<Vec<Vec<u8>>> { enosys() }
    fn removexattr(&self, _: Caller, _: Ino, _: &[u8]) -> Result<()> { enosys() }
    fn fallocate(&self, _: Caller, _: Ino, _: AllocateMode, _: Range<u64>) -> Result<()> { enosys() }
    fn seek_data(&self, _: Ino, _: u64) -> Result<u64> { enosys() }
    fn seek_hole(&self, _: Ino, _: u64) -> Result<u64> { enosys() }
    fn copy_range(&self, _: (Ino, u64), _: (Ino, u64), _: u64) -> Result<u64> { enosys() }
}
