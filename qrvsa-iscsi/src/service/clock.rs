//! The time that timers run by: the machine's, which a simulation can move ahead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The clock of a service.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    ahead_ns: AtomicU64,
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self.ahead_ns.load(Ordering::Relaxed) {
            0 => Instant::now(),
            ahead => Instant::now() + Duration::from_nanos(ahead),
        }
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.ahead_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
}
