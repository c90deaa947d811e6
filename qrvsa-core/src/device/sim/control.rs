//! The experimenter's hand on a simulated disk.

use std::sync::Arc;

use super::cache::{DiscardMode, Unflushed};
use super::trace::{Counters, TraceEntry};
use super::{Fault, PowerSwitch, Shared, SimImage};
use crate::env::SeededRandom;

/// What becomes of the unflushed changes in a crash. Changes are numbered as in [`SimControl::unflushed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashMode {
    /// All are lost.
    LoseAll,
    /// All reached the medium.
    KeepAll,
    /// Change `i` reached the medium if bit `i` is set; from the 64th on, all are lost.
    Mask(u64),
    /// As `Mask`, but of change `torn` only the first `sectors` sectors of 512 bytes, whatever its bit.
    Torn {
        /// Bit `i`: change `i` is kept.
        mask: u64,
        /// The change that is torn.
        torn: usize,
        /// How many of its sectors are kept.
        sectors: usize,
    },
    /// Drawn from a seed: each change is kept, lost, or torn into any of its sectors.
    Random {
        /// The seed.
        seed: u64,
    },
}

/// Controls one simulated disk. Clones control the same disk.
#[derive(Clone)]
pub struct SimControl {
    shared: Arc<Shared>,
}

impl SimControl {
    pub(super) fn new(shared: Arc<Shared>) -> SimControl {
        SimControl { shared }
    }

    /// The disk's power supply.
    pub fn power(&self) -> &PowerSwitch {
        &self.shared.power
    }

    /// Adds a rule of misbehaviour.
    pub fn inject(&self, fault: Fault) {
        self.shared.state.lock().faults.add(fault);
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// The changes a crash would decide about, oldest first.
    pub fn unflushed(&self) -> Vec<Unflushed> {
        self.shared.state.lock().cache.unflushed()
    }

    /// The disk loses power: the fate of its unflushed changes is decided now, hung writes are gone, and every request
    /// fails with `EIO` until [`SimControl::restart`].
    pub fn crash(&self, mode: CrashMode) {
        let kept = |mask: u64, change: usize| change < 64 && mask & (1 << change) != 0;
        match mode {
            CrashMode::LoseAll => self.crash_with(|_, _| false),
            CrashMode::KeepAll => self.crash_with(|_, _| true),
            CrashMode::Mask(mask) => self.crash_with(|change, _| kept(mask, change)),
            CrashMode::Torn { mask, torn, sectors } => {
                self.crash_with(|change, sector| if change == torn { sector < sectors } else { kept(mask, change) });
            }
            CrashMode::Random { seed } => {
                let random = SeededRandom::new(seed);
                let mut current = None;
                self.crash_with(|change, _| {
                    let fate = match current {
                        Some((number, fate)) if number == change => fate,
                        _ => random.below(4),
                    };
                    current = Some((change, fate));
                    match fate {
                        0 => false,
                        1 => random.chance(1, 2),
                        _ => true,
                    }
                });
            }
        }
    }

    /// As [`SimControl::crash`], deciding for each sector (number of the change, number of the sector in it) whether it
    /// reached the medium.
    pub fn crash_with(&self, survives: impl FnMut(usize, usize) -> bool) {
        let mut state = self.shared.state.lock();
        state.cache.crash(survives);
        state.hung.clear();
        state.down = true;
    }

    /// Power comes back, for the supply too. If the supply failed and nobody called [`SimControl::crash`] on this disk, what
    /// was unflushed is lost now.
    pub fn restart(&self) {
        {
            let mut state = self.shared.state.lock();
            if !state.down && self.shared.power.is_off() {
                state.cache.crash(|_, _| false);
                state.hung.clear();
            }
            state.down = false;
        }
        self.shared.power.restore();
    }

    /// The disk is pulled out: every request fails with `ENODEV`.
    pub fn vanish(&self) {
        self.shared.state.lock().vanished = true;
    }

    /// The disk is back, as it was.
    pub fn reappear(&self) {
        self.shared.state.lock().vanished = false;
    }

    /// The disk is back with another content, for instance an old one.
    pub fn reappear_with(&self, image: SimImage) {
        let mut state = self.shared.state.lock();
        state.cache.replace(image);
        state.hung.clear();
        state.vanished = false;
    }

    /// The medium as a crash that loses everything unflushed would leave it.
    pub fn medium(&self) -> SimImage {
        self.shared.state.lock().cache.medium().clone()
    }

    /// The content as reads see it.
    pub fn seen(&self) -> SimImage {
        self.shared.state.lock().cache.seen()
    }

    /// Puts another medium into the disk; what was unflushed is gone.
    pub fn replace(&self, image: SimImage) {
        self.shared.state.lock().cache.replace(image);
    }

    /// Flips bits of one byte behind the disk's back.
    pub fn flip(&self, offset: u64, mask: u8) {
        self.shared.state.lock().cache.tamper(offset, 1, |bytes| bytes.iter_mut().for_each(|b| *b ^= mask));
    }

    /// Overwrites bytes behind the disk's back, at any offset.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        self.shared.state.lock().cache.tamper(offset, bytes.len(), |old| old.copy_from_slice(bytes));
    }

    /// Hung writes that have not landed: offset and length.
    pub fn hung(&self) -> Vec<(u64, u64)> {
        self.shared.state.lock().hung.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect()
    }

    /// Lets the hung writes land now, long after their issuer gave up, in order and unflushed.
    pub fn release_hung(&self) {
        let mut state = self.shared.state.lock();
        for (offset, data) in std::mem::take(&mut state.hung) {
            state.cache.write(offset, &data, false, usize::MAX);
        }
    }

    /// What discarded blocks read as from now on. Zeros at first.
    pub fn set_discard_mode(&self, mode: DiscardMode) {
        self.shared.state.lock().cache.discard_mode = mode;
    }

    /// Requests answered with success so far.
    pub fn counters(&self) -> Counters {
        self.shared.state.lock().trace.counters
    }

    /// Starts recording requests, or starts over.
    pub fn start_trace(&self) {
        self.shared.state.lock().trace.entries = Some(Vec::new());
    }

    /// Stops recording and returns what was recorded, in the order of execution.
    pub fn take_trace(&self) -> Vec<TraceEntry> {
        self.shared.state.lock().trace.entries.take().unwrap_or_default()
    }
}
