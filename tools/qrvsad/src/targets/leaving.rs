//! Pools that are about to go: from the moment that is decided no unit may come to stand on them.

use std::time::Duration;

use qrvsa_api::ApiError;

use super::model::Lun;
use super::{Result, Targets, luns};

/// How long a change under way is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pool that is about to go, until this is dropped.
pub struct Leaving<'a> {
    targets: &'a Targets,
    pool: String,
}

impl Targets {
    /// Refuses what would take the storage of a unit away; from then on no unit comes to stand on the pool.
    ///
    /// # Errors
    /// `Busy`, naming the unit.
    pub fn leave_pool(&self, pool: &str) -> Result<Leaving<'_>> {
        let Some(_changing) = self.changing.try_lock_for(PATIENCE) else {
            return Err(
                ApiError::busy("a change of iSCSI targets is under way").with_hint("try again when it has ended")
            );
        };
        self.need_unused_pool(pool)?;
        self.leaving.lock().insert(pool.to_owned());
        Ok(Leaving { targets: self, pool: pool.to_owned() })
    }

    /// Refuses a unit on a pool that is about to go.
    pub(super) fn need_staying_pool(&self, lun: &Lun) -> Result<()> {
        match luns::pool_of(lun).filter(|pool| self.leaving.lock().contains(*pool)) {
            Some(pool) => Err(ApiError::busy(format!("pool {pool} is being exported or destroyed"))
                .with_hint("wait for the end of that")),
            None => Ok(()),
        }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.targets.leaving.lock().remove(&self.pool);
    }
}
