//! What could not be had is tried again until it can: portals, whose address may come later than the daemon, and units whose
//! storage somebody else used when they were to serve.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::{Result, Targets};

/// How often something is tried again.
const RETRY: Duration = Duration::from_secs(2);

impl Targets {
    /// Has a thread try portals and units again that could not be had, if there are any. It ends when there are none any more. Under
    /// `changing`.
    pub(super) fn retry_later(&self) {
        let mut retry = self.retry.lock();
        if retry.is_some() || !self.has_to_retry() || self.stopped.load(Ordering::Acquire) {
            return;
        }
        let (sender, ended) = mpsc::channel();
        let targets = Weak::clone(&self.me);
        let rounds = move || {
            while ended.recv_timeout(RETRY) == Err(RecvTimeoutError::Timeout)
                && targets.upgrade().is_some_and(|targets| targets.try_again())
            {}
        };
        match std::thread::Builder::new().name("qrvsa-retry".to_owned()).spawn(rounds) {
            Ok(_) => *retry = Some(sender),
            Err(e) => tracing::error!("iSCSI: no thread to try again what could not be had: {e}"),
        }
    }

    fn has_to_retry(&self) -> bool {
        !self.portal_errors.lock().is_empty() || !self.busy_units.lock().is_empty()
    }

    /// One round. Returns whether there is to be another.
    fn try_again(&self) -> bool {
        let Some(_changing) = self.changing.try_lock_for(RETRY) else { return true };
        if self.stopped.load(Ordering::Acquire) {
            return false;
        }
        if !self.portal_errors.lock().is_empty() {
            let tried: Result<()> = self.apply_portals(&self.model(), false);
            if let Err(e) = tried {
                tracing::error!("iSCSI: {e}");
            }
        }
        self.try_busy_unit();
        let again = self.has_to_retry();
        if !again {
            self.retry.lock().take();
        }
        again
    }

    /// Tries one of the units, another one each time: looking whether its storage is free takes half a second if it is not.
    fn try_busy_unit(&self) {
        let Some((tid, number)) = self.busy_units.lock().pop_front() else { return };
        let waits = self.running.read().get(&tid).is_some_and(|running| running.unavailable.contains_key(&number));
        if waits && !self.opening.lock().contains_key(&(tid, number)) {
            // put back at the end if it is busy still
            self.start_lun(&self.model(), tid, number, &mut self.storage_patience.min(RETRY));
        }
    }
}
