//! Where initiators come in. Every portal that the model wants listens. One that cannot be had is tried again until it can: its
//! address may come later than the daemon, and whoever has its port may leave.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::model::{Model, Target};
use super::{GROUP_TAG, Result, Targets, from_service};

/// How often portals that cannot be had are tried again.
const RETRY: Duration = Duration::from_secs(2);

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
        self.retry_portals();
        Ok(())
    }

    /// Has a thread try portals again that could not be had, if there are any. It ends when there are none any more.
    fn retry_portals(&self) {
        let mut retry = self.portal_retry.lock();
        if retry.is_some() || self.portal_errors.lock().is_empty() {
            return;
        }
        let (sender, ended) = mpsc::channel();
        let targets = Weak::clone(&self.me);
        let rounds = move || {
            while ended.recv_timeout(RETRY) == Err(RecvTimeoutError::Timeout)
                && targets.upgrade().is_some_and(|targets| targets.try_portals_again())
            {}
        };
        match std::thread::Builder::new().name("qrvsa-portals".to_owned()).spawn(rounds) {
            Ok(_) => *retry = Some(sender),
            Err(e) => tracing::error!("iSCSI: no thread to try portals again: {e}; the next change of targets does"),
        }
    }

    /// One round. Returns whether there is to be another.
    fn try_portals_again(&self) -> bool {
        let Some(_changing) = self.changing.try_lock_for(RETRY) else { return true };
        if self.stopped.load(Ordering::Acquire) {
            return false;
        }
        if let Err(e) = self.apply_portals(&self.model(), false) {
            tracing::error!("iSCSI: {e}");
        }
        let again = !self.portal_errors.lock().is_empty();
        if !again {
            self.portal_retry.lock().take();
        }
        again
    }
}
