//! What a request does, and the rules between pools, mounts and jobs.
//!
//! **Locks.** Administration of one pool (create, import, export, destroy, mount of its filesystems, ...) is serialised by
//! that pool's lock, so that a pool with a hung device holds up no other pool. The tables (`mounts`, `pools`) have locks
//! of their own that are never held across a call into the engine, the front end or the disk; so lists answer at once.
//! The state file is written under a third lock, from a snapshot taken under it, so the newest snapshot is the last
//! written. Order: pool lock, file lock, table lock.
//!
//! **Invariants.** What the state file names is what should exist: a pool enters it when it is imported and leaves it by
//! export or destroy only; a mount enters it before the request that makes it is answered, and leaves it by an unmount of
//! anybody's wish. A pool or mount that cannot be restored stays in it and is listed with the reason.

mod lifecycle;
mod mounts;
pub mod transfer;
mod volumes;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use qrvsa_api::names::{FsName, check_name};
use qrvsa_api::*;

use crate::config::Config;
use crate::engine::{Engine, ImportRequest};
use crate::error::{IntoApi, from_core};
use crate::jobs::{Checks, unix_now_s};
use crate::mounter::Mounter;
use crate::state::{Persistent, PersistentMount, PersistentPool, StateDir};
use crate::targets::Targets;
use mounts::MountTable;
use transfer::Filling;

/// The daemon, apart from its socket.
pub struct Daemon {
    engine: Arc<dyn Engine>,
    mounter: Arc<dyn Mounter>,
    config: Config,
    state: Arc<StateDir>,
    targets: Arc<Targets>,
    state_file: Mutex<()>,
    pools: Mutex<BTreeMap<String, KnownPool>>,
    pool_locks: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    mounts: Arc<Mutex<MountTable>>,
    checks: Checks,
    filling: Filling,
    stopping: AtomicBool,
    ready: AtomicBool,
    /// The state file is read; before, nothing may be written over it.
    loaded: AtomicBool,
    started_unix_s: i64,
}

/// A pool that is imported or should be.
#[derive(Clone, Debug)]
struct KnownPool {
    id: String,
    devices: Vec<PathBuf>,
    /// Why it is not imported; `None` when it is.
    failure: Option<ApiError>,
}

impl Daemon {
    /// A daemon with nothing imported yet; see [`Daemon::restore`].
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, mounter: Arc<dyn Mounter>, config: Config, state: StateDir) -> Arc<Daemon> {
        let state = Arc::new(state);
        let mounts = Arc::<Mutex<MountTable>>::default();
        let table = Arc::clone(&mounts);
        let roots = Box::new(move || table.lock().roots());
        let targets = Targets::new(Arc::clone(&engine), Arc::clone(&state), &config, roots);
        Arc::new(Daemon {
            targets,
            engine,
            mounter,
            config,
            state,
            state_file: Mutex::new(()),
            pools: Mutex::default(),
            pool_locks: Mutex::default(),
            mounts,
            checks: Checks::default(),
            filling: Filling::default(),
            stopping: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            started_unix_s: unix_now_s(),
        })
    }

    /// Facts.
    #[must_use]
    pub fn info(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_s: self.started_unix_s,
            ready: self.is_ready(),
            state_dir: self.state.path().to_owned(),
            memory_limit_bytes: self.config.memory_limit_bytes,
        }
    }

    /// The iSCSI targets. Changes to them are for [`Daemon::targets_to_change`].
    #[must_use]
    pub fn targets(&self) -> &Arc<Targets> {
        &self.targets
    }

    /// The iSCSI targets, to change them.
    ///
    /// # Errors
    /// `Unavailable` while the daemon starts or stops.
    pub fn targets_to_change(&self) -> Result<&Targets, ApiError> {
        self.admit_change()?;
        Ok(&self.targets)
    }

    /// Whether [`Daemon::restore`] is through.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Refuses changes while the daemon starts or stops.
    fn admit_change(&self) -> Result<(), ApiError> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(ApiError::new(ErrorKind::Unavailable, "the daemon is stopping"));
        }
        if !self.is_ready() {
            return Err(ApiError::new(ErrorKind::Unavailable, "the daemon is still importing its pools"));
        }
        Ok(())
    }

    fn pool_lock(&self, pool: &str) -> Arc<Mutex<()>> {
        Arc::clone(self.pool_locks.lock().entry(pool.to_owned()).or_default())
    }

    /// Writes the state file.
    fn save(&self) -> Result<(), ApiError> {
        if !self.loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let _writer = self.state_file.lock();
        let state = Persistent {
            pools: self
                .pools
                .lock()
                .iter()
                .map(|(name, pool)| PersistentPool {
                    name: name.clone(),
                    id: pool.id.clone(),
                    devices: pool.devices.clone(),
                })
                .collect(),
            mounts: self.mounts.lock().persistent(),
        };
        self.state.save(&state).map_err(|e| {
            ApiError::new(
                ErrorKind::Internal,
                format!("the daemon cannot save its state in {}: {e}", self.state.path().display()),
            )
            .with_hint("free space there or make it writable, and repeat the command")
        })
    }

    /// As [`Daemon::save`], where nobody can be told.
    fn save_or_log(&self) {
        if let Err(e) = self.save() {
            tracing::error!("{e}");
        }
    }

    /// Notes an imported pool and where its devices are.
    fn note_imported(&self, pool: &str) {
        let status = self.engine.status(pool);
        let mut pools = self.pools.lock();
        let known = pools.entry(pool.to_owned()).or_insert_with(|| KnownPool {
            id: String::new(),
            devices: Vec::new(),
            failure: None,
        });
        known.failure = None;
        match status {
            Ok(status) => {
                known.id = status.summary.id;
                known.devices = status.devices.into_iter().map(|device| device.path).collect();
            }
            Err(e) => tracing::warn!("pool {pool}: its devices cannot be listed: {e}"),
        }
    }

    /// Whether a pool is imported. `NotFound`, or why it is not.
    fn need_imported(&self, pool: &str) -> Result<(), ApiError> {
        check_name("pool", pool)?;
        match self.pools.lock().get(pool) {
            Some(KnownPool { failure: None, .. }) => Ok(()),
            Some(KnownPool { failure: Some(e), .. }) => {
                Err(ApiError::new(e.kind, format!("pool {pool} is not imported: {}", e.message)).with_hint(format!(
                    "bring its devices back and run `qrvsa pool import {pool}`, or forget it with `qrvsa pool export {pool}`"
                )))
            }
            None => Err(unknown_pool(pool)),
        }
    }

    /// All pools, those that could not be imported included.
    ///
    /// # Errors
    /// As the engine's.
    pub fn list_pools(&self) -> Result<Vec<PoolSummary>, ApiError> {
        let mut list = self.engine.list().api()?;
        for (name, pool) in self.pools.lock().iter() {
            if let Some(failure) = &pool.failure
                && !list.iter().any(|summary| summary.name == *name)
            {
                list.push(faulted(name, pool, failure));
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// One pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn pool_status(&self, pool: &str) -> Result<PoolStatus, ApiError> {
        check_name("pool", pool)?;
        let known = self.pools.lock().get(pool).cloned();
        match known {
            None => Err(unknown_pool(pool)),
            Some(KnownPool { failure: None, .. }) => self.engine.status(pool).api(),
            Some(known) => {
                let failure = known.failure.clone().unwrap_or_else(|| unknown_pool(pool));
                Ok(PoolStatus {
                    summary: faulted(pool, &known, &failure),
                    txg: 0,
                    more_failures_survived: 0,
                    bytes_degraded: 0,
                    bytes_without_redundancy: 0,
                    bytes_lost: 0,
                    devices: Vec::new(),
                    scrub: None,
                    rebuild: None,
                    failed_rebuild: None,
                    last_scrub: None,
                    damaged_files: Vec::new(),
                    warnings: std::iter::once(format!("not imported: {failure}"))
                        .chain(known.devices.iter().map(|d| format!("device last seen at {}", d.display())))
                        .collect(),
                })
            }
        }
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// `Invalid`, `Exists`, `NeedsForce`.
    pub fn create_pool(&self, request: &CreatePool) -> Result<PoolStatus, ApiError> {
        self.admit_change()?;
        check_name("pool", &request.name)?;
        if request.devices.is_empty() {
            return Err(ApiError::invalid("a pool needs at least one device"));
        }
        for (i, device) in request.devices.iter().enumerate() {
            need_absolute(&device.path)?;
            if request.devices.iter().take(i).any(|other| other.path == device.path) {
                return Err(ApiError::invalid(format!("device {} is named twice", device.path.display()))
                    .with_hint("name each device once"));
            }
        }
        let lock = self.pool_lock(&request.name);
        let _guard = lock.lock();
        if let Some(known) = self.pools.lock().get(&request.name) {
            let error = ApiError::new(ErrorKind::Exists, format!("pool {} exists already", request.name));
            return Err(match known.failure {
                Some(_) => error.with_hint(format!(
                    "it is not imported; choose another name, or forget it with `qrvsa pool export {}`",
                    request.name
                )),
                None => error.with_hint("choose another name"),
            });
        }
        self.engine.create_pool(request).api()?;
        self.note_imported(&request.name);
        tracing::info!("pool {} created", request.name);
        self.save()?;
        self.engine.status(&request.name).api()
    }

    /// Imports one pool, or all that are found, and restores their mounts.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `Busy`, `Degraded`.
    pub fn import(self: &Arc<Self>, request: &ImportPools) -> Result<ImportResult, ApiError> {
        self.admit_change()?;
        for path in &request.search {
            need_absolute(path)?;
            if let Err(e) = std::fs::metadata(path) {
                return Err(ApiError::not_found(format!("cannot search {}: {e}", path.display()))
                    .with_hint("name an existing directory or device"));
            }
        }
        let outcome = match &request.name {
            Some(name) => {
                check_name("pool", name)?;
                let lock = self.pool_lock(name);
                let _guard = lock.lock();
                if self.pools.lock().get(name).is_some_and(|known| known.failure.is_none()) {
                    return Err(ApiError::new(ErrorKind::Exists, format!("pool {name} is imported already"))
                        .with_hint(format!("see `qrvsa pool status {name}`")));
                }
                let result = self.engine.import(&self.import_request(request, Some(name)));
                if let Err(e) = &result
                    && let Some(known) = self.pools.lock().get_mut(name)
                {
                    known.failure = Some(from_core(e));
                }
                let mut error = result.api();
                if let Err(e) = &mut error
                    && e.kind == ErrorKind::NotFound
                    && e.hint == e.kind.default_hint()
                {
                    *e = e.clone().with_hint("name the directory its devices are in with --search DIR");
                }
                error?
            }
            None => self.engine.import(&self.import_request(request, None)).api()?,
        };
        let mut answer = ImportResult::default();
        for (name, error) in outcome.failed {
            let error = from_core(&error);
            if let Some(known) = self.pools.lock().get_mut(&name)
                && known.failure.is_some()
                && !outcome.imported.contains(&name)
            {
                known.failure = Some(error.clone());
            }
            answer.failed.push(Failure { name, error });
        }
        // Of the pool that is known by the name they say nothing.
        let namesakes = outcome.namesakes.into_iter();
        answer.failed.extend(namesakes.map(|(name, error)| Failure { name, error: from_core(&error) }));
        for name in outcome.imported {
            let lock = self.pool_lock(&name);
            let _guard = lock.lock();
            // Somebody may have exported it since.
            let Ok(status) = self.engine.status(&name) else { continue };
            tracing::info!("pool {name} imported, {}", status.summary.state);
            self.note_imported(&name);
            answer.imported.push(status.summary);
            // Units first: nobody has their files open yet. Again with the mounts, which other files may need to be found.
            self.targets.pool_imported(&name);
            answer.failed.extend(self.activate_waiting(&name));
            self.targets.pool_imported(&name);
        }
        self.save()?;
        Ok(answer)
    }

    fn import_request(&self, request: &ImportPools, name: Option<&String>) -> ImportRequest {
        let pools = self.pools.lock();
        let missing: Vec<_> = pools
            .iter()
            .filter(|(known, pool)| pool.failure.is_some() && name.is_none_or(|name| name == *known))
            .collect();
        let known = missing.iter().filter(|(_, pool)| !pool.id.is_empty());
        ImportRequest {
            devices: missing.iter().flat_map(|(_, pool)| pool.devices.iter().cloned()).collect(),
            search: request.search.iter().chain(&self.config.search_dirs).cloned().collect(),
            name: name.cloned(),
            id: None,
            // Its mounts and LUNs wait for the pool that is remembered, not for another of its name.
            known: known.map(|(name, pool)| ((*name).clone(), pool.id.clone())).collect(),
        }
    }

    /// Unmounts everything of a pool and exports it; a pool that could not be imported is forgotten. With `force`, mounts
    /// in use are detached.
    ///
    /// # Errors
    /// `NotFound`, `Busy`.
    pub fn export(self: &Arc<Self>, pool: &str, force: bool) -> Result<(), ApiError> {
        self.admit_change()?;
        check_name("pool", pool)?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        let failed = self.pools.lock().get(pool).ok_or_else(|| unknown_pool(pool))?.failure.is_some();
        let _leaving = self.targets.leave_pool(pool)?;
        self.filling.need_none(|volume| volume.pool == pool)?;
        if !failed {
            self.take_away(pool, force, "export", &|| self.engine.export(pool).api())?;
        }
        tracing::info!("pool {pool} {}", if failed { "forgotten" } else { "exported" });
        self.forget(pool)
    }

    /// Destroys a pool.
    ///
    /// # Errors
    /// `NotFound`, `NeedsForce`, `Busy` while a filesystem of it is in use.
    pub fn destroy_pool(self: &Arc<Self>, pool: &str, force: bool) -> Result<(), ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        if !force {
            return Err(ApiError::new(ErrorKind::NeedsForce, format!("all data in pool {pool} would be destroyed"))
                .with_hint("repeat with --force if nothing in it is needed any more"));
        }
        let _leaving = self.targets.leave_pool(pool)?;
        self.filling.need_none(|volume| volume.pool == pool)?;
        self.take_away(pool, false, "destruction", &|| self.engine.destroy(pool).api())?;
        tracing::info!("pool {pool} destroyed");
        self.forget(pool)
    }

    /// Ends what the daemon itself does with a pool, checks and mounts, and then takes it away. If that fails, the mounts come
    /// back; a pool that is gone all the same waits, with the reason, and they with it.
    fn take_away(
        self: &Arc<Self>,
        pool: &str,
        lazy: bool,
        what: &str,
        take: &dyn Fn() -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        // First, as it may fail and undoes nothing.
        if !self.checks.stop(Some(pool), self.config.check_patience) {
            return Err(ApiError::busy(format!("a check of pool {pool} does not end"))
                .with_hint("it was told to; try again later, nothing was changed"));
        }
        let mut ended = Vec::new();
        // Parents of VHDX files may have come into use since that was asked.
        let taken = self.end_mounts(pool, lazy, &mut ended);
        let taken = taken.and_then(|()| self.targets.need_unused_pool(pool)).and_then(|()| take());
        let Err(mut error) = taken else { return Ok(()) };
        let gone = matches!(self.engine.status(pool), Err(e) if e.kind() == qrvsa_core::ErrorKind::NotFound);
        {
            let mut mounts = self.mounts.lock();
            if gone {
                mounts.forget_detached(pool);
            }
            for mount in ended.into_iter().rev() {
                mounts.add_waiting(mount, "its pool is not imported");
            }
        }
        if gone {
            let why = format!("its {what} failed in the last step: {}", error.message);
            if let Some(known) = self.pools.lock().get_mut(pool) {
                known.failure = Some(ApiError::new(error.kind, why).with_hint(error.hint.clone()));
            }
            error = error.with_hint(format!(
                "pool {pool} is not in service any more: `qrvsa pool import {pool}` brings it back"
            ));
        } else if self.activate_waiting(pool).is_empty() && error.kind == ErrorKind::Io {
            let text = format!("{}; so its {what} was refused, and all is mounted again", error.message);
            error = ApiError::new(error.kind, text).with_hint(error.hint);
        }
        tracing::error!("the {what} of pool {pool} failed: {error}");
        self.save_or_log();
        Err(error)
    }

    /// Ends the mounts of a pool, the newest first: later ones may lie in earlier ones. `ended`: those that were, or that an
    /// error left without their place in the tree.
    fn end_mounts(&self, pool: &str, lazy: bool, ended: &mut Vec<PersistentMount>) -> Result<(), ApiError> {
        let mounts = self.mounts.lock().of_pool(pool);
        // What such a pool could not store is lost already, and its status says so: it keeps nobody from exporting it.
        let suspended = self.engine.status(pool).is_ok_and(|status| status.summary.state == PoolState::Suspended);
        for (id, mount) in mounts.into_iter().rev() {
            let result = match self.end_mount(id, false) {
                Err(e) if e.kind == ErrorKind::NotFound => continue,
                Err(e) if e.kind == ErrorKind::Busy && lazy => match self.end_mount(id, true) {
                    // Detached by the first try, it ended before the second.
                    Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
                    other => other,
                },
                // It is gone all the same.
                Err(e) if e.kind == ErrorKind::Io && (lazy || suspended && !self.mounts.lock().has_place(id)) => {
                    tracing::error!("{e}");
                    Ok(())
                }
                other => other,
            };
            if result.is_ok() || !self.mounts.lock().has_place(id) {
                ended.extend(mount);
            }
            result?;
        }
        Ok(())
    }

    fn forget(&self, pool: &str) -> Result<(), ApiError> {
        self.pools.lock().remove(pool);
        self.mounts.lock().remove_waiting(|source| source.pool == pool);
        self.save()
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Suspended`.
    pub fn sync(&self, pool: &str) -> Result<(), ApiError> {
        self.need_imported(pool)?;
        self.engine.sync(pool).api()
    }

    /// Takes a device out of service, or brings it back.
    ///
    /// # Errors
    /// `NotFound`, `Degraded`.
    pub fn set_device(&self, pool: &str, device: &str, online: bool) -> Result<PoolStatus, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        need_device(device)?;
        if online {
            self.engine.online(pool, device).api()?;
        } else {
            self.engine.offline(pool, device).api()?;
        }
        tracing::info!("pool {pool}: device {device} {}", if online { "online" } else { "offline" });
        self.note_imported(pool);
        self.save()?;
        self.engine.status(pool).api()
    }

    /// Replaces a device.
    ///
    /// # Errors
    /// `NotFound`, `NeedsForce`, `Invalid`.
    pub fn replace(&self, pool: &str, request: &ReplaceDevice) -> Result<JobInfo, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        need_device(&request.old)?;
        need_absolute(&request.new.path)?;
        // Where the new device is comes first: a daemon that is killed once the pool knows it must find it at its next start.
        if let Some(known) = self.pools.lock().get_mut(pool)
            && !known.devices.contains(&request.new.path)
        {
            known.devices.push(request.new.path.clone());
        }
        let replaced = self.save().and_then(|()| self.engine.replace(pool, request).api());
        self.note_imported(pool);
        let job = match replaced {
            Ok(job) => job,
            Err(e) => {
                self.save_or_log();
                return Err(e);
            }
        };
        tracing::info!("pool {pool}: replacing {} by {}", request.old, request.new.path.display());
        self.save()?;
        self.job(&job)
    }

    /// Starts, pauses or stops a scrub.
    ///
    /// # Errors
    /// `NotFound`, `Busy`.
    pub fn scrub(&self, pool: &str, action: ScrubAction) -> Result<JobInfo, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        let job = self.engine.scrub(pool, action).api()?;
        self.job(&job)
    }

    /// Starts a check, or joins the one that runs.
    ///
    /// # Errors
    /// `NotFound`, `Busy`.
    pub fn check(&self, pool: &str, deep: bool) -> Result<JobInfo, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        self.checks.start(Arc::clone(&self.engine), pool, deep)
    }

    /// All jobs.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobInfo> {
        let mut jobs = self.engine.jobs();
        jobs.extend(self.checks.list());
        jobs.sort_by(|a, b| (a.started_unix_s, &a.id).cmp(&(b.started_unix_s, &b.id)));
        jobs
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn job(&self, id: &str) -> Result<JobInfo, ApiError> {
        self.jobs().into_iter().find(|job| job.id == id).ok_or_else(|| {
            ApiError::not_found(format!("there is no job {id:?}")).with_hint(
                "jobs are known until the daemon restarts; `qrvsa job list` and `qrvsa pool status` show them",
            )
        })
    }

    /// Filesystems of a pool, with their mount points.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn list_fs(&self, pool: &str) -> Result<Vec<FsInfo>, ApiError> {
        self.need_imported(pool)?;
        let mut list = self.engine.fs_list(pool).api()?;
        let mounts = self.mounts.lock();
        for fs in &mut list {
            fs.mountpoints = mounts.mountpoints_of(&fs.name);
        }
        Ok(list)
    }

    /// Makes a filesystem.
    ///
    /// # Errors
    /// `Exists`, `Invalid`.
    pub fn create_fs(&self, pool: &str, request: &CreateFs) -> Result<FsInfo, ApiError> {
        self.admit_change()?;
        check_name("filesystem", &request.name)?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        self.engine.fs_create(pool, request).api()?;
        let name = FsName { pool: pool.to_owned(), fs: Some(request.name.clone()) };
        tracing::info!("filesystem {name} created");
        self.list_fs(pool)?
            .into_iter()
            .find(|fs| fs.name == name)
            .ok_or_else(|| ApiError::new(ErrorKind::Internal, format!("filesystem {name} was made but is not listed")))
    }

    /// Destroys a filesystem.
    ///
    /// # Errors
    /// `NotFound`, `NeedsForce`, `Busy` while mounted, `Invalid` for the root filesystem.
    pub fn destroy_fs(&self, name: &FsName, force: bool) -> Result<(), ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(&name.pool);
        let _guard = lock.lock();
        self.need_imported(&name.pool)?;
        if name.fs.is_none() {
            return Err(ApiError::invalid(format!("the root filesystem of pool {} cannot be destroyed", name.pool))
                .with_hint("`qrvsa pool destroy` destroys the whole pool"));
        }
        self.need_fs(name)?;
        self.need_unmounted(name)?;
        self.targets.need_unused_fs(name)?;
        if !force {
            return Err(ApiError::new(
                ErrorKind::NeedsForce,
                format!("all data in filesystem {name} would be destroyed"),
            )
            .with_hint("repeat with --force if nothing in it is needed any more"));
        }
        self.engine.fs_destroy(name).api()?;
        tracing::info!("filesystem {name} destroyed");
        self.mounts.lock().remove_waiting(|source| source == name);
        self.save()
    }

    /// Whether a filesystem exists.
    fn need_fs(&self, name: &FsName) -> Result<(), ApiError> {
        if self.engine.fs_list(&name.pool).api()?.iter().any(|fs| fs.name == *name) || name.fs.is_none() {
            return Ok(());
        }
        if self.engine.volume_list(&name.pool).api()?.iter().any(|volume| volume.name == *name) {
            return Err(ApiError::invalid(format!("{name} is a volume, not a filesystem")).with_hint(format!(
                "`qrvsa volume show {name}` shows it, `qrvsa volume --help` what can be done with it"
            )));
        }
        Err(ApiError::not_found(format!("there is no filesystem {name}"))
            .with_hint(format!("`qrvsa fs list {}` shows what there is, `qrvsa fs create {name}` makes it", name.pool)))
    }

    /// Properties of a filesystem.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get_properties(&self, name: &FsName) -> Result<Vec<Property>, ApiError> {
        self.need_imported(&name.pool)?;
        self.need_fs(name)?;
        self.engine.fs_get(name).api()
    }

    /// Sets a property and returns all.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn set_property(&self, name: &FsName, property: &SetProperty) -> Result<Vec<Property>, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(&name.pool);
        let _guard = lock.lock();
        self.need_imported(&name.pool)?;
        self.need_fs(name)?;
        self.engine.fs_set(name, property).api()?;
        tracing::info!("filesystem {name}: {}={}", property.key, property.value);
        self.engine.fs_get(name).api()
    }

    /// Where a file lies.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn locate(&self, name: &FsName, ino: u64) -> Result<Vec<Fragment>, ApiError> {
        self.need_imported(&name.pool)?;
        self.engine.locate(name, ino).api()
    }

    /// The labels of a device.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn labels(&self, device: &str) -> Result<Vec<DebugEntry>, ApiError> {
        need_absolute(Path::new(device))?;
        self.engine.labels(Path::new(device)).api()
    }

    /// The uberblocks of a device.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn uberblocks(&self, device: &str) -> Result<Vec<DebugEntry>, ApiError> {
        need_absolute(Path::new(device))?;
        self.engine.uberblocks(Path::new(device)).api()
    }
}

fn unknown_pool(pool: &str) -> ApiError {
    ApiError::not_found(format!("there is no pool {pool}"))
        .with_hint("`qrvsa pool list` shows what there is, `qrvsa pool import` looks for more")
}

fn faulted(name: &str, pool: &KnownPool, failure: &ApiError) -> PoolSummary {
    PoolSummary {
        name: name.to_owned(),
        id: pool.id.clone(),
        state: PoolState::Faulted,
        geometry: String::new(),
        raw_bytes: 0,
        usable_bytes: 0,
        used_bytes: 0,
        free_bytes: 0,
        message: failure.message.clone(),
    }
}

/// The daemon's working directory means nothing to a client.
fn need_absolute(path: &Path) -> Result<(), ApiError> {
    if path.is_absolute() {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{path:?} is not an absolute path")).with_hint("name it from the root: /..."))
}

fn need_device(device: &str) -> Result<(), ApiError> {
    if device.is_empty() || device.contains('\0') {
        return Err(ApiError::invalid("no device is named").with_hint("name its path, index or id"));
    }
    Ok(())
}
