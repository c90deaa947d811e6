//! Counts per session and LUN. Only a session's own connection adds to them, so that no processor waits for another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::info::{LATENCY_BUCKETS, LunMetrics, Metrics, OTHER_LUNS, Transfers};

/// LUNs that a session's counts tell apart.
const LUNS_MAX: usize = 256;

#[derive(Default)]
struct Pair {
    commands: AtomicU64,
    bytes: AtomicU64,
}

impl Pair {
    fn add(&self, bytes: u64) {
        self.commands.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Transfers {
        Transfers { commands: self.commands.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Counts of one LUN in one session.
#[derive(Default)]
pub(crate) struct Counters {
    reads_begun: Pair,
    reads_done: Pair,
    writes_begun: Pair,
    writes_done: Pair,
    others_done: AtomicU64,
    errors: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
    latency_ns: AtomicU64,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    None,
    Read,
    Write,
}

fn bucket(time: Duration) -> usize {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    usize::try_from(u64::BITS - us.leading_zeros()).unwrap_or(0).min(LATENCY_BUCKETS - 1)
}

impl Counters {
    pub(crate) fn begun(&self, direction: Direction, bytes: u64) {
        match direction {
            Direction::None => {}
            Direction::Read => self.reads_begun.add(bytes),
            Direction::Write => self.writes_begun.add(bytes),
        }
    }

    pub(crate) fn done(&self, direction: Direction, bytes: u64, failed: bool, time: Duration) {
        match direction {
            Direction::None => {
                self.others_done.fetch_add(1, Ordering::Relaxed);
            }
            Direction::Read => self.reads_done.add(bytes),
            Direction::Write => self.writes_done.add(bytes),
        }
        if failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(count) = self.latency.get(bucket(time)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.latency_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn read(&self) -> Metrics {
        let mut latency = [0; LATENCY_BUCKETS];
        for (to, from) in latency.iter_mut().zip(&self.latency) {
            *to = from.load(Ordering::Relaxed);
        }
        Metrics {
            reads_begun: self.reads_begun.read(),
            reads_done: self.reads_done.read(),
            writes_begun: self.writes_begun.read(),
            writes_done: self.writes_done.read(),
            others_done: self.others_done.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            latency,
            latency_ns: self.latency_ns.load(Ordering::Relaxed),
        }
    }
}

/// The number in a LUN field (SAM-5 4.6): peripheral, flat space and extended flat space addressing.
pub(crate) fn lun_number(lun: [u8; 8]) -> u64 {
    match lun[0] >> 6 {
        0 | 1 => u64::from(u16::from_be_bytes([lun[0] & 0x3f, lun[1]])),
        3 if lun[0] == 0xd2 => u64::from(u32::from_be_bytes([0, lun[1], lun[2], lun[3]])),
        _ => u64::from_be_bytes(lun),
    }
}

/// Counts of all LUNs of a session.
#[derive(Default)]
pub(crate) struct CounterTable(Mutex<BTreeMap<u64, Arc<Counters>>>);

impl CounterTable {
    pub(crate) fn of(&self, lun: [u8; 8]) -> Arc<Counters> {
        let mut table = self.0.lock();
        let number = lun_number(lun);
        let number = if table.contains_key(&number) || table.len() < LUNS_MAX { number } else { OTHER_LUNS };
        Arc::clone(table.entry(number).or_default())
    }

    pub(crate) fn read(&self) -> Vec<LunMetrics> {
        self.0.lock().iter().map(|(lun, counters)| LunMetrics { lun: *lun, metrics: counters.read() }).collect()
    }
}

/// Adds counts to sums by LUN.
pub(crate) fn sum_up(sums: &mut BTreeMap<u64, Metrics>, more: &[LunMetrics]) {
    for LunMetrics { lun, metrics } in more {
        sums.entry(*lun).or_default().add(metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let at = |us| bucket(Duration::from_micros(us));
        assert_eq!([at(0), at(1), at(2), at(3), at(4), at(1023), at(1024)], [0, 1, 2, 2, 3, 10, 11]);
        assert_eq!(bucket(Duration::MAX), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn luns_are_bounded() {
        let table = CounterTable::default();
        for n in 0..1000u16 {
            let [high, low] = n.to_be_bytes();
            table.of([high, low, 0, 0, 0, 0, 0, 0]).done(Direction::Read, 512, n == 3, Duration::from_micros(5));
        }
        let all = table.read();
        assert_eq!(all.len(), LUNS_MAX + 1);
        assert_eq!(all.last().map(|m| (m.lun, m.metrics.reads_done.commands)), Some((OTHER_LUNS, 744)));
        assert_eq!(all[3].metrics.errors, 1);
        assert_eq!(lun_number([0x40, 5, 0, 0, 0, 0, 0, 0]), 5);
    }
}
