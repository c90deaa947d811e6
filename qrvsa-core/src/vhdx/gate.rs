//! Who uses a block: many at once for reading and writing it, one alone for taking its place away.
//!
//! Blocks share gates by number. Users are counted per gate and stripe of threads, and look at the gate's flags only after
//! they are counted; who closes a gate sets the flag first and counts users after that. So one of the two sees the other. A pass
//! can be held by a request in flight and let go from any thread: it is taken from the count it was added to.
//!
//! A gate is shut for good only when nobody uses it. Until then who closes waits with an open gate, so that a thread which has
//! requests queued but not handed over never waits for somebody who waits for it ([`Gates::enter_among`]). Users that hold
//! nothing else wait for him, so that he has his turn however many they are ([`Gates::enter`]).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use parking_lot::{Condvar, Mutex};

use super::stripes::{Apart, STRIPES, own};

const GATES: usize = 512;
/// Nobody enters.
const CLOSED: u8 = 1;
/// Somebody waits until nobody uses the gate: who leaves wakes him.
const AWAITED: u8 = 2;

#[derive(Default)]
struct State {
    closed: bool,
    /// How many wait until nobody uses the gate.
    waiting: u32,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

/// The gates of one image.
pub struct Gates {
    /// Users by stripe and gate.
    users: Vec<Apart<[AtomicU32; GATES]>>,
    /// What a user looks at; changed under the lock of the gate.
    flags: Vec<AtomicU8>,
    gates: Vec<Gate>,
}

/// Permission to use a block's place in the file.
pub struct Pass<G: Deref<Target = Gates>> {
    gates: G,
    stripe: usize,
    gate: usize,
}

/// A pass that a request in flight can hold.
pub type OwnedPass = Pass<Arc<Gates>>;

/// Permission to change a block's place; nobody uses it meanwhile.
pub struct Closed<'a> {
    gates: &'a Gates,
    gate: usize,
}

impl Gates {
    /// All open.
    pub fn new() -> Arc<Gates> {
        let counts = || Apart(std::array::from_fn(|_| AtomicU32::new(0)));
        Arc::new(Gates {
            users: (0..STRIPES).map(|_| counts()).collect(),
            flags: (0..GATES).map(|_| AtomicU8::new(0)).collect(),
            gates: (0..GATES).map(|_| Gate::default()).collect(),
        })
    }

    /// Waits until nobody changes the block's place, or wants to. The caller holds no other pass.
    pub fn enter(&self, block: u64) -> Pass<&Gates> {
        let gate = gate_of(block);
        Pass { stripe: self.come(gate, CLOSED | AWAITED), gates: self, gate }
    }

    /// Waits until nobody changes the block's place. The caller may hold other passes.
    pub fn enter_among(self: &Arc<Gates>, block: u64) -> OwnedPass {
        let gate = gate_of(block);
        Pass { stripe: self.come(gate, CLOSED), gates: self.clone(), gate }
    }

    /// Waits until nobody uses the block. The caller holds no pass.
    pub fn close(&self, block: u64) -> Closed<'_> {
        let number = gate_of(block);
        let gate = &self.gates[number];
        let mut state = gate.state.lock();
        let mut waits = false;
        loop {
            while state.closed {
                gate.changed.wait(&mut state);
            }
            state.closed = true;
            self.show(number, &state);
            if !self.is_used(number) {
                state.waiting -= u32::from(waits);
                self.show(number, &state);
                return Closed { gates: self, gate: number };
            }
            state.closed = false;
            state.waiting += u32::from(!waits);
            waits = true;
            self.show(number, &state);
            // Those who met the closed gate meanwhile; they look again when the lock is free.
            gate.changed.notify_all();
            // Who left before the flag was there has woken nobody.
            if self.is_used(number) {
                gate.changed.wait(&mut state);
            }
        }
    }

    /// Counts the caller as a user when none of the flags `stops` is set; the stripe.
    fn come(&self, gate: usize, stops: u8) -> usize {
        let stripe = own();
        loop {
            self.users[stripe].0[gate].fetch_add(1, Ordering::SeqCst);
            if self.flags[gate].load(Ordering::SeqCst) & stops == 0 {
                return stripe;
            }
            self.leave(stripe, gate);
            self.stand(gate, stops);
        }
    }

    /// Waits until none of the flags is set.
    #[cold]
    fn stand(&self, gate: usize, stops: u8) {
        let Gate { state, changed } = &self.gates[gate];
        let mut state = state.lock();
        while self.flags[gate].load(Ordering::SeqCst) & stops != 0 {
            changed.wait(&mut state);
        }
    }

    fn leave(&self, stripe: usize, gate: usize) {
        self.users[stripe].0[gate].fetch_sub(1, Ordering::SeqCst);
        if self.flags[gate].load(Ordering::SeqCst) & AWAITED != 0 {
            self.wake(gate);
        }
    }

    #[cold]
    fn wake(&self, gate: usize) {
        let Gate { state, changed } = &self.gates[gate];
        // Whoever has counted the caller waits by now, or counts again.
        drop(state.lock());
        changed.notify_all();
    }

    fn is_used(&self, gate: usize) -> bool {
        self.users.iter().any(|stripe| stripe.0[gate].load(Ordering::SeqCst) > 0)
    }

    /// Sets the flags. The caller holds the gate's lock.
    fn show(&self, gate: usize, state: &State) {
        let flags = if state.closed { CLOSED } else { 0 } | if state.waiting > 0 { AWAITED } else { 0 };
        self.flags[gate].store(flags, Ordering::SeqCst);
    }
}

fn gate_of(block: u64) -> usize {
    (block % GATES as u64) as usize
}

impl<G: Deref<Target = Gates>> Drop for Pass<G> {
    fn drop(&mut self) {
        self.gates.leave(self.stripe, self.gate);
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let gate = &self.gates.gates[self.gate];
        let mut state = gate.state.lock();
        state.closed = false;
        self.gates.show(self.gate, &state);
        drop(state);
        gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI32};

    use super::*;

    /// Waits until somebody waits for the users of the gate.
    fn await_waiting(gates: &Gates, block: u64) {
        while gates.flags[gate_of(block)].load(Ordering::SeqCst) & AWAITED == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn nobody_is_inside_while_a_gate_is_closed() {
        const CLOSERS: u32 = 2;
        let gates = Gates::new();
        let inside: Vec<AtomicI32> = (0..2).map(|_| AtomicI32::new(0)).collect();
        let done = AtomicU32::new(0);
        let visit = |block: usize| {
            assert!(inside[block].fetch_add(1, Ordering::SeqCst) >= 0);
            std::hint::spin_loop();
            inside[block].fetch_sub(1, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for first in 0..CLOSERS as usize {
                let (gates, inside, done) = (&gates, &inside, &done);
                scope.spawn(move || {
                    for round in 0..100 {
                        let block = (first + round) % 2;
                        let closed = gates.close(block as u64);
                        assert_eq!(inside[block].fetch_sub(1000, Ordering::SeqCst), 0);
                        std::hint::spin_loop();
                        assert_eq!(inside[block].fetch_add(1000, Ordering::SeqCst), -1000);
                        drop(closed);
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
            for first in 0..4 {
                let (gates, done) = (&gates, &done);
                scope.spawn(move || {
                    let mut block = first % 2;
                    while done.load(Ordering::SeqCst) < CLOSERS {
                        block = 1 - block;
                        if first == 0 {
                            let passes = (gates.enter_among(0), gates.enter_among(1));
                            (0..2).for_each(visit);
                            drop(passes);
                        } else {
                            let _pass = gates.enter(block as u64);
                            visit(block);
                        }
                    }
                });
            }
        });
        assert!((0..2).all(|gate| !gates.is_used(gate) && gates.flags[gate].load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn users_wait_for_who_waits_for_them() {
        let gates = Gates::new();
        let changed = AtomicBool::new(false);
        let pass = gates.enter(7);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _closed = gates.close(7);
                changed.store(true, Ordering::SeqCst);
            });
            await_waiting(&gates, 7);
            let later = scope.spawn(|| {
                let _pass = gates.enter(7);
                changed.load(Ordering::SeqCst)
            });
            // Who may hold others does not wait, and another thread may let go.
            let among = gates.enter_among(7);
            assert!(!changed.load(Ordering::SeqCst));
            drop(pass);
            assert!(!changed.load(Ordering::SeqCst));
            std::thread::spawn(move || drop(among)).join().expect("a thread ends");
            assert!(later.join().expect("a thread ends"), "it came in before the one who waited");
        });
        assert!(changed.load(Ordering::SeqCst));
    }

    #[test]
    fn other_gates_stay_open() {
        let gates = Gates::new();
        let closed = gates.close(1);
        let _other = (gates.enter(2), gates.close(3));
        drop(closed);
        let _again = gates.enter(1 + GATES as u64);
    }
}
