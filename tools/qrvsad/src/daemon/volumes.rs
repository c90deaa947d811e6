//! Volumes of pools.

use std::time::{Duration, Instant};

use qrvsa_api::names::{FsName, check_name};
use qrvsa_api::{ApiError, CreateVolume, ErrorKind, Fragment, ResizeVolume, VolumeInfo};
use qrvsa_core::volume::VOLUME_OBJECT;

use super::Daemon;
use crate::error::IntoApi;

/// How long the destruction of a volume waits for those who are just letting go of it.
const LETTING_GO: Duration = Duration::from_secs(1);
const LETTING_GO_STEP: Duration = Duration::from_millis(10);

impl Daemon {
    /// Volumes of a pool.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn list_volumes(&self, pool: &str) -> Result<Vec<VolumeInfo>, ApiError> {
        self.need_imported(pool)?;
        self.engine.volume_list(pool).api()
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn volume(&self, name: &FsName) -> Result<VolumeInfo, ApiError> {
        self.list_volumes(&name.pool)?.into_iter().find(|volume| volume.name == *name).ok_or_else(|| {
            ApiError::not_found(format!("there is no volume {name}")).with_hint(format!(
                "`qrvsa volume list {}` shows what there is, `qrvsa volume create {name} SIZE` makes it",
                name.pool
            ))
        })
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// `Exists`, `Invalid`, `NoSpace`.
    pub fn create_volume(&self, pool: &str, request: &CreateVolume) -> Result<VolumeInfo, ApiError> {
        self.admit_change()?;
        check_name("volume", &request.name)?;
        let lock = self.pool_lock(pool);
        let _guard = lock.lock();
        self.need_imported(pool)?;
        self.engine.volume_create(pool, request).api()?;
        let name = FsName { pool: pool.to_owned(), fs: Some(request.name.clone()) };
        tracing::info!("volume {name} created, {} bytes", request.size_bytes);
        self.volume(&name)
    }

    /// Changes the size of a volume.
    ///
    /// # Errors
    /// `NotFound`, `NeedsForce`, `NoSpace`, `Invalid`.
    pub fn resize_volume(&self, name: &FsName, request: &ResizeVolume) -> Result<VolumeInfo, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(&name.pool);
        let _guard = lock.lock();
        self.volume(name)?;
        self.filling.need_none(|volume| volume == name)?;
        self.engine.volume_resize(name, request.size_bytes, request.force).api()?;
        self.targets.volume_resized(name);
        tracing::info!("volume {name} resized to {} bytes", request.size_bytes);
        self.volume(name)
    }

    /// Destroys a volume.
    ///
    /// # Errors
    /// `NotFound`, `NeedsForce`, `Busy` while it is in use.
    pub fn destroy_volume(&self, name: &FsName, force: bool) -> Result<(), ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(&name.pool);
        let _guard = lock.lock();
        self.volume(name)?;
        self.targets.need_unused_volume(name)?;
        self.filling.need_none(|volume| volume == name)?;
        if !force {
            return Err(ApiError::new(ErrorKind::NeedsForce, format!("all data in volume {name} would be destroyed"))
                .with_hint("repeat with --force if nothing in it is needed any more"));
        }
        // Whoever let go of it just now may hold it for a moment longer: the kernel tells of a close after it returned.
        let begin = Instant::now();
        loop {
            match self.engine.volume_destroy(name) {
                Err(e) if e.kind() == qrvsa_core::ErrorKind::Busy && begin.elapsed() < LETTING_GO => {
                    std::thread::sleep(LETTING_GO_STEP);
                }
                result => break result.api()?,
            }
        }
        tracing::info!("volume {name} destroyed");
        Ok(())
    }

    /// Where the contents of a volume lie.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn locate_volume(&self, name: &FsName) -> Result<Vec<Fragment>, ApiError> {
        self.volume(name)?;
        self.engine.locate(name, VOLUME_OBJECT).api()
    }
}
