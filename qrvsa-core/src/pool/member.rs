//! A member of the pool: a device with its state and its error counters.
//!
//! A member is in service while the pool writes to it. One failed write or flush takes it out for good (until the
//! administrator brings it back and it has been rebuilt): what it holds since then is never trusted without a checksum. One
//! that fails while it is being replaced does not come back at all: nothing new would go there, and as a source it is as good
//! as gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::format::entries::{DeviceEntry, MemberState};
use crate::device::Device;

/// A member.
pub struct Member {
    /// Its number in the pool.
    pub index: u16,
    /// Its identity.
    pub device_id: u128,
    /// Bytes the pool uses.
    pub size_bytes: u64,
    state: AtomicU8,
    device: RwLock<Option<Arc<dyn Device>>>,
    words: Mutex<Words>,
    /// Failed reads.
    pub read_errors: AtomicU64,
    /// Failed writes and flushes.
    pub write_errors: AtomicU64,
    /// Blocks with a wrong checksum.
    pub checksum_errors: AtomicU64,
    /// Units rewritten.
    pub repaired: AtomicU64,
    /// How often it was given a device: who saw it leave and come back knows that it missed something.
    pub(crate) attachments: AtomicU64,
    /// Something of this entry changed since it was last stored.
    pub(crate) changed: AtomicBool,
    /// It was given much time for a read, and has answered none since.
    silent: AtomicBool,
    /// An uberblock that an import may find lists it as in service.
    listed: AtomicBool,
}

struct Words {
    path: String,
    message: String,
}

impl Member {
    /// A member from its stored entry, with its device if it is present.
    pub fn new(entry: &DeviceEntry, device: Option<Arc<dyn Device>>) -> Member {
        let path = device.as_ref().map_or_else(|| entry.path.clone(), |d| d.info().path.display().to_string());
        Member {
            index: entry.index,
            device_id: entry.device_id,
            size_bytes: entry.size_bytes,
            state: AtomicU8::new(entry.state.code()),
            device: RwLock::new(device),
            words: Mutex::new(Words { path, message: entry.message.clone() }),
            read_errors: AtomicU64::new(entry.read_errors),
            write_errors: AtomicU64::new(entry.write_errors),
            checksum_errors: AtomicU64::new(entry.checksum_errors),
            repaired: AtomicU64::new(entry.repaired),
            attachments: AtomicU64::new(0),
            changed: AtomicBool::new(true),
            silent: AtomicBool::new(false),
            listed: AtomicBool::new(false),
        }
    }

    /// The entry to store.
    pub fn entry(&self) -> DeviceEntry {
        let words = self.words.lock();
        DeviceEntry {
            index: self.index,
            device_id: self.device_id,
            state: self.state(),
            size_bytes: self.size_bytes,
            read_errors: self.read_errors.load(Ordering::Relaxed),
            write_errors: self.write_errors.load(Ordering::Relaxed),
            checksum_errors: self.checksum_errors.load(Ordering::Relaxed),
            repaired: self.repaired.load(Ordering::Relaxed),
            path: words.path.clone(),
            message: words.message.clone(),
        }
    }

    /// Its state.
    pub fn state(&self) -> MemberState {
        MemberState::from_code(self.state.load(Ordering::Acquire)).unwrap_or(MemberState::Faulted)
    }

    /// Sets the state and says why.
    pub fn set_state(&self, state: MemberState, message: impl Into<String>) {
        let mut words = self.words.lock();
        words.message = message.into();
        self.state.store(state.code(), Ordering::Release);
        self.changed.store(true, Ordering::Release);
    }

    /// Sets the state and says why, if it is still `from`: not if the member has failed meanwhile. Returns whether it did.
    pub(crate) fn change_state(&self, from: MemberState, to: MemberState, message: &str) -> bool {
        let mut words = self.words.lock();
        if self.state() != from {
            return false;
        }
        message.clone_into(&mut words.message);
        self.state.store(to.code(), Ordering::Release);
        self.changed.store(true, Ordering::Release);
        true
    }

    /// Its state, for an uberblock that is about to be written: from now on an import may find it listed so.
    pub(crate) fn list(&self) -> MemberState {
        // a fault comes before or after, and who sees the fault sees the list
        let _words = self.words.lock();
        let state = self.state();
        if state.in_service() {
            self.listed.store(true, Ordering::Release);
        }
        state
    }

    /// An uberblock with this state is durable: none before it is found any more.
    pub(crate) fn listed_as(&self, state: MemberState) {
        self.listed.store(state.in_service(), Ordering::Release);
    }

    /// Whether an import may find it listed as in service, although it may have failed since.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Acquire)
    }

    /// Where it is or was.
    pub fn path(&self) -> String {
        self.words.lock().path.clone()
    }

    /// Why it is in its state.
    pub fn message(&self) -> String {
        self.words.lock().message.clone()
    }

    /// Whether the pool reads and writes it.
    pub fn in_service(&self) -> bool {
        self.state().in_service() && self.device.read().is_some()
    }

    /// The device, while the member is in service.
    pub fn device(&self) -> Option<Arc<dyn Device>> {
        if self.state().in_service() { self.device.read().clone() } else { None }
    }

    /// Attaches a device or takes it away.
    pub fn set_device(&self, device: Option<Arc<dyn Device>>) {
        if let Some(device) = &device {
            self.words.lock().path = device.info().path.display().to_string();
        }
        *self.device.write() = device;
        self.attachments.fetch_add(1, Ordering::AcqRel);
        self.changed.store(true, Ordering::Release);
    }

    /// Takes the member out of service after an error, for good if it was being replaced. Returns whether it was in service before.
    pub fn fail(&self, reason: &str) -> bool {
        let mut words = self.words.lock();
        let state = self.state();
        if !state.in_service() {
            return false;
        }
        if state == MemberState::Leaving {
            self.state.store(MemberState::Removed.code(), Ordering::Release);
            words.message = format!("failed while it was being replaced: {reason}");
        } else {
            self.state.store(MemberState::Faulted.code(), Ordering::Release);
            words.message = reason.to_owned();
        }
        self.changed.store(true, Ordering::Release);
        tracing::error!(device = %words.path, index = self.index, "device taken out of service: {reason}");
        true
    }

    /// It answered a read.
    pub(crate) fn answered(&self) {
        if self.is_silent() {
            self.silent.store(false, Ordering::Relaxed);
        }
    }

    /// It has not answered a read for which it had much time.
    pub(crate) fn did_not_answer(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Whether waiting for it much longer than for others was in vain the last time.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Counts an error and marks the entry for storing.
    pub fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.changed.store(true, Ordering::Release);
    }
}
