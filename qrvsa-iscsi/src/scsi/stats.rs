//! Counters of one unit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency histogram's buckets, microseconds; one more bucket takes what is slower.
pub const LATENCY_BOUNDS_US: [u64; 12] =
    [50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// What a unit has done since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitStats {
    /// Commands, of any kind.
    pub commands: u64,
    /// Read commands that succeeded.
    pub reads: u64,
    /// Bytes they returned.
    pub read_bytes: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Bytes they wrote.
    pub written_bytes: u64,
    /// UNMAP commands and WRITE SAME with unmapping that succeeded.
    pub unmaps: u64,
    /// Commands that ended with CHECK CONDITION, other than unit attentions.
    pub errors: u64,
    /// Commands refused for a reservation.
    pub conflicts: u64,
    /// Commands by time of service; see [`LATENCY_BOUNDS_US`]. Commands that were answered without waiting are not timed: they count
    /// in the first bucket.
    pub latency: [u64; 13],
    /// Sum of the timed commands' service time, microseconds.
    pub latency_sum_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub commands: AtomicU64,
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub unmaps: AtomicU64,
    pub errors: AtomicU64,
    pub conflicts: AtomicU64,
    latency: [AtomicU64; 13],
    latency_sum_us: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn time(&self, took: Option<Duration>) {
        let us = took.map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX));
        let bucket = LATENCY_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(LATENCY_BOUNDS_US.len());
        add(&self.latency[bucket], 1);
        if us > 0 {
            add(&self.latency_sum_us, us);
        }
    }

    pub(crate) fn snapshot(&self) -> UnitStats {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        UnitStats {
            commands: get(&self.commands),
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            unmaps: get(&self.unmaps),
            errors: get(&self.errors),
            conflicts: get(&self.conflicts),
            latency: std::array::from_fn(|i| get(&self.latency[i])),
            latency_sum_us: get(&self.latency_sum_us),
        }
    }
}
