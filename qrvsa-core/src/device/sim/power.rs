//! The power supply, shared by any number of simulated disks: it fails by hand, or after the N-th change on any of them.

use std::sync::Arc;

use parking_lot::Mutex;

/// A power supply. Clones are the same supply.
#[derive(Clone, Default)]
pub struct PowerSwitch {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    off: bool,
    /// Changes (writes, flushes, discards) left until the supply fails.
    left: Option<u64>,
    changes: u64,
}

/// Whether a request is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Admission {
    Run,
    /// The supply fails with this request on its way.
    CutNow,
    Off,
}

impl PowerSwitch {
    /// A supply that is on.
    pub fn new() -> PowerSwitch {
        PowerSwitch::default()
    }

    /// Off: every request on every disk fails with `EIO`.
    pub fn cut(&self) {
        self.state.lock().off = true;
    }

    /// Lets `changes` more writes, flushes and discards succeed, counted over all disks, then fails: the next one gets
    /// `EIO` and may have reached the medium in any part.
    pub fn cut_after(&self, changes: u64) {
        self.state.lock().left = Some(changes);
    }

    /// On again, and no failure planned. A disk that was crashed stays down until it is restarted.
    pub fn restore(&self) {
        let mut state = self.state.lock();
        state.off = false;
        state.left = None;
    }

    /// Whether it is off.
    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// Writes, flushes and discards executed so far, over all disks.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    pub(super) fn admit(&self, change: bool) -> Admission {
        let mut state = self.state.lock();
        if state.off {
            return Admission::Off;
        }
        if !change {
            return Admission::Run;
        }
        match &mut state.left {
            Some(0) => {
                state.off = true;
                return Admission::CutNow;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        state.changes += 1;
        Admission::Run
    }
}
