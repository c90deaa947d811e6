//! Who uses a block: many at once for reading and writing it, one alone for taking its place away.
//!
//! Blocks share gates by number. A pass can be held by a request in flight and let go from any thread.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

const GATES: u64 = 1024;

#[derive(Default)]
struct State {
    users: u32,
    closed: bool,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// The gates of one image.
pub struct Gates {
    gates: Vec<Gate>,
}

/// Permission to use a block's place in the file.
pub struct Pass {
    gates: Arc<Gates>,
    index: usize,
}

/// Permission to change a block's place; nobody uses it meanwhile.
pub struct Closed {
    gates: Arc<Gates>,
    index: usize,
}

impl Gates {
    /// All open.
    pub fn new() -> Arc<Gates> {
        Arc::new(Gates { gates: (0..GATES).map(|_| Gate::default()).collect() })
    }

    /// Waits until nobody changes the block's place.
    pub fn enter(self: &Arc<Gates>, block: u64) -> Pass {
        let index = (block % GATES) as usize;
        let gate = &self.gates[index];
        let mut state = gate.state.lock();
        while state.closed {
            gate.changed.wait(&mut state);
        }
        state.users += 1;
        Pass { gates: self.clone(), index }
    }

    /// Waits until nobody uses the block. The caller holds no pass.
    pub fn close(self: &Arc<Gates>, block: u64) -> Closed {
        let index = (block % GATES) as usize;
        let gate = &self.gates[index];
        let mut state = gate.state.lock();
        // Users may go on entering: one that has requests queued but not handed over must not wait for us.
        while state.closed || state.users > 0 {
            gate.changed.wait(&mut state);
        }
        state.closed = true;
        Closed { gates: self.clone(), index }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = &self.gates.gates[self.index];
        let mut state = gate.state.lock();
        state.users -= 1;
        if state.users == 0 {
            gate.changed.notify_all();
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let gate = &self.gates.gates[self.index];
        gate.state.lock().closed = false;
        gate.changed.notify_all();
    }
}
