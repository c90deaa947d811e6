//! The clock of a simulated world. It moves when it is told to; a sleep is where another task of the world may run.
//!
//! The engine's background work (scrub, rebuild) sleeps between its pieces without holding anything, to keep to its rate.
//! So a world with a rate limit has a scheduler: what the simulator puts into [`WorldClock::set_yield`] runs there, on the
//! same thread, at a place that depends on the seed alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use qrvsa_core::env::Clock;

type Task = Box<dyn FnMut() + Send>;

/// The clock.
#[derive(Default)]
pub struct WorldClock {
    ns: AtomicU64,
    task: Mutex<Option<Task>>,
}

impl WorldClock {
    /// Moves the time forward.
    pub fn advance(&self, duration: Duration) {
        self.ns.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4), Ordering::Relaxed);
    }

    /// What runs during sleeps, or nothing.
    pub fn set_yield(&self, task: Option<Task>) {
        *self.task.lock() = task;
    }
}

impl Clock for WorldClock {
    fn wall_ns(&self) -> i64 {
        1_000_000_000_000_000_000_i64.saturating_add_unsigned(self.monotonic_ns())
    }

    fn monotonic_ns(&self) -> u64 {
        self.ns.load(Ordering::Relaxed)
    }

    fn sleep(&self, duration: Duration) {
        self.advance(duration);
        // taken out while it runs: a sleep inside it only moves the time
        let Some(mut task) = self.task.lock().take() else { return };
        task();
        let mut slot = self.task.lock();
        if slot.is_none() {
            *slot = Some(task);
        }
    }
}
