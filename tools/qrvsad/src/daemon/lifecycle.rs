//! Beginning and end of the daemon's life: everything that should exist comes back, and everything is left clean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qrvsa_api::{ApiError, ErrorKind};

use super::{Daemon, KnownPool};
use crate::engine::ImportRequest;
use crate::error::from_core;
use crate::mounter::DETACH_PATIENCE;
use crate::state::PersistentPool;

const UNMOUNT_RETRY: Duration = Duration::from_millis(200);
/// How long each mount that is shown elsewhere is waited for at least, before its pool is exported all the same.
const DETACH_PATIENCE_LEAST: Duration = Duration::from_millis(200);
/// How long a request that is under way may keep its pool from being exported.
const EXPORT_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_STOP_TIMEOUT: Duration = Duration::from_secs(5);

impl Daemon {
    /// Imports the pools and restores the mounts of the last run, until the daemon is told to stop. What fails is logged and listed with its reason, never
    /// an error; `progress` hears what is being done.
    ///
    /// # Errors
    /// Only when the state file cannot be read at all.
    pub fn restore(self: &Arc<Self>, progress: &dyn Fn(&str)) -> Result<(), String> {
        let state = self.state.load()?;
        self.targets.load()?;
        // Dead mounts of the last run hide the directories; nothing works on them until they are gone.
        for mount in &state.mounts {
            match self.mounter.detach_stale(&mount.mountpoint) {
                Ok(true) => tracing::info!("dead mount on {} detached", mount.mountpoint.display()),
                Ok(false) => {}
                Err(e) => tracing::error!("{e}"),
            }
        }
        let pending = ApiError::new(ErrorKind::Unavailable, "its import is under way");
        {
            let mut pools = self.pools.lock();
            for pool in &state.pools {
                let known =
                    KnownPool { id: pool.id.clone(), devices: pool.devices.clone(), failure: Some(pending.clone()) };
                pools.insert(pool.name.clone(), known);
            }
        }
        {
            let mut mounts = self.mounts.lock();
            for mount in state.mounts {
                mounts.add_waiting(mount, "its pool is not imported");
            }
        }
        self.loaded.store(true, Ordering::Release);
        for pool in &state.pools {
            if self.stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            progress(&format!("importing pool {}", pool.name));
            self.restore_pool(pool);
        }
        self.save_or_log();
        progress("starting iSCSI targets");
        self.targets.restore()?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn restore_pool(self: &Arc<Self>, pool: &PersistentPool) {
        let lock = self.pool_lock(&pool.name);
        let _guard = lock.lock();
        let request = ImportRequest {
            devices: pool.devices.clone(),
            search: self.config.search_dirs.clone(),
            name: Some(pool.name.clone()),
            id: Some(pool.id.clone()).filter(|id| !id.is_empty()),
            known: BTreeMap::new(),
        };
        // A pool whose import brings the engine down must not keep the other pools from being served.
        let imported = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.engine.import(&request)));
        let failure = match imported {
            Ok(Ok(outcome)) if outcome.imported.contains(&pool.name) => {
                tracing::info!("pool {} imported", pool.name);
                self.note_imported(&pool.name);
                self.targets.hold_files(&pool.name);
                self.activate_waiting(&pool.name);
                return;
            }
            Ok(Ok(_)) => ApiError::not_found("it was not found on its devices"),
            Ok(Err(e)) => from_core(&e),
            Err(_) => ApiError::new(ErrorKind::Internal, "the engine failed; the log of the daemon has the details"),
        };
        tracing::error!("pool {} cannot be imported: {failure}", pool.name);
        if let Some(known) = self.pools.lock().get_mut(&pool.name) {
            known.failure = Some(failure);
        }
    }

    /// From now on changes are refused, and the end of a mount's session is not somebody's wish.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.targets.begin_stop();
    }

    /// Unmounts everything and exports all pools; the state file keeps them for the next run. `urgent`, which may be set
    /// at any time, ends the patience with busy mounts.
    pub fn stop(&self, urgent: &AtomicBool) {
        self.begin_stop();
        self.targets.stop();
        self.unmount_all(urgent);
        let timeout = if urgent.load(Ordering::Relaxed) { Duration::ZERO } else { CHECK_STOP_TIMEOUT };
        if !self.checks.stop(None, timeout) {
            tracing::warn!("a check does not end; going on without it");
        }
        let imported: Vec<String> = {
            let pools = self.pools.lock();
            pools.iter().filter(|(_, pool)| pool.failure.is_none()).map(|(name, _)| name.clone()).collect()
        };
        for pool in &imported {
            self.note_imported(pool);
        }
        self.save_or_log();
        for pool in &imported {
            let lock = self.pool_lock(pool);
            let guard = lock.try_lock_for(EXPORT_LOCK_TIMEOUT);
            if guard.is_none() {
                tracing::warn!("pool {pool}: a request does not end; exporting it anyway");
            }
            match self.engine.export(pool) {
                Ok(()) => tracing::info!("pool {pool} exported"),
                Err(e) => tracing::error!("pool {pool} could not be exported cleanly: {e}"),
            }
        }
    }

    fn unmount_all(&self, urgent: &AtomicBool) {
        let start = Instant::now();
        let deadline = start + self.config.unmount_patience;
        let mut left = self.mounts.lock().active();
        while !left.is_empty() {
            let mut asked_nicely = false;
            left.retain(|(_, mountpoint, mount)| {
                // Each may take a while.
                let lazy = urgent.load(Ordering::Relaxed) || Instant::now() >= deadline;
                let patience = DETACH_PATIENCE.saturating_sub(start.elapsed()).max(DETACH_PATIENCE_LEAST);
                match mount.unmount(lazy, patience) {
                    Ok(()) => {
                        tracing::info!("{} {}", mountpoint.display(), if lazy { "detached" } else { "unmounted" });
                        false
                    }
                    Err(_) if !mount.is_alive() => false,
                    Err(e) if mount.is_detached() => {
                        tracing::warn!("{e}; exporting its pool all the same");
                        false
                    }
                    Err(e) if lazy => {
                        tracing::error!("cannot detach {}: {e}", mountpoint.display());
                        false
                    }
                    Err(_) => {
                        asked_nicely = true;
                        true
                    }
                }
            });
            if asked_nicely {
                std::thread::sleep(UNMOUNT_RETRY);
            }
        }
    }
}
