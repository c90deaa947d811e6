//! Where initiators come in. Every portal that the model wants listens. One that cannot be had is tried again until it can: its
//! address may come later than the daemon, and whoever has its port may leave.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::model::{Model, Target};
use super::{GROUP_TAG, Result, Targets, from_service};

impl Targets {
    /// The portals of targets without portals of their own.
    fn shared_portals(&self, model: &Model) -> Vec<SocketAddr> {
        self.defaults.iter().chain(&model.portals).copied().collect()
    }

    pub(super) fn portals_of(&self, model: &Model, target: &Target) -> Vec<SocketAddr> {
        if target.portals.is_empty() { self.shared_portals(model) } else { target.portals.clone() }
    }

    /// Lets those portals listen that the model wants, and no others. Under `changing`. With `strict`, one that cannot be had is
    /// an error, unless it could not be had before; else it is noted, shown, and tried again.
    pub(super) fn apply_portals(&self, model: &Model, strict: bool) -> Result<()> {
        let mut wanted: BTreeSet<SocketAddr> =
            model.targets.values().flat_map(|target| self.portals_of(model, target)).collect();
        // Added by name, they listen at once, as tgt's do.
        wanted.extend(&model.portals);
        let there: BTreeSet<SocketAddr> = self.service.portals().iter().map(|portal| portal.address).collect();
        for address in there.difference(&wanted) {
            self.service.remove_portal(*address).map_err(|e| from_service(&e))?;
            tracing::info!("iSCSI: no longer listening on {address}");
        }
        self.portal_errors.lock().retain(|address, _| wanted.contains(address));
        let mut added = Vec::new();
        for address in wanted.difference(&there) {
            match self.service.add_portal(*address, GROUP_TAG) {
                Ok(_) => {
                    tracing::info!("iSCSI: listening on {address}");
                    self.portal_errors.lock().remove(address);
                    added.push(*address);
                }
                // One that failed before is no reason to refuse an unrelated change.
                Err(e) if strict && !self.portal_errors.lock().contains_key(address) => {
                    for address in added {
                        let _ = self.service.remove_portal(address);
                    }
                    return Err(from_service(&e));
                }
                Err(e) => {
                    let before = self.portal_errors.lock().insert(*address, e.text.clone());
                    if before.as_ref() != Some(&e.text) {
                        tracing::error!("iSCSI: {e}");
                    }
                }
            }
        }
        self.retry_later();
        Ok(())
    }
}
