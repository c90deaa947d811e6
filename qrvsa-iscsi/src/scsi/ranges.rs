//! Which commands are at work on which blocks. Plain reads and writes share their blocks; a command that must be indivisible (COMPARE AND
//! WRITE, ORWRITE, WRITE ATOMIC) has its blocks to itself. The same list tells when all commands that had begun before a reset or a
//! preemption are over.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Clone, Copy, Debug)]
struct Active {
    ticket: u64,
    start: u64,
    end: u64,
    exclusive: bool,
}

#[derive(Debug, Default)]
struct List {
    slots: Vec<Option<Active>>,
    free: Vec<usize>,
    next_ticket: u64,
    exclusives: usize,
    waiters: usize,
}

impl List {
    /// Whether somebody who came before stands in the way.
    fn blocked(&self, me: &Active) -> bool {
        if self.exclusives == 0 {
            return false;
        }
        self.slots.iter().flatten().any(|other| {
            other.ticket < me.ticket
                && (other.exclusive || me.exclusive)
                && other.start < me.end
                && me.start < other.end
        })
    }

    fn insert(&mut self, start: u64, end: u64, exclusive: bool) -> (usize, Active) {
        let active = Active { ticket: self.next_ticket, start, end, exclusive };
        self.next_ticket += 1;
        self.exclusives += usize::from(exclusive);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.slots[slot] = Some(active);
        (slot, active)
    }

    fn remove(&mut self, slot: usize) {
        if let Some(active) = self.slots[slot].take() {
            self.exclusives -= usize::from(active.exclusive);
            self.free.push(slot);
        }
    }
}

/// The blocks of one unit that are being worked on.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    list: Mutex<List>,
    changed: Condvar,
}

/// A command's hold on its blocks; ends with the value.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    ranges: &'a Ranges,
    slot: usize,
}

impl Ranges {
    /// Waits until nobody who came before is in the way.
    pub(crate) fn enter(&self, start: u64, end: u64, exclusive: bool) -> Hold<'_> {
        let mut list = self.list.lock();
        let (slot, active) = list.insert(start, end, exclusive);
        while list.blocked(&active) {
            list.waiters += 1;
            self.changed.wait(&mut list);
            list.waiters -= 1;
        }
        Hold { ranges: self, slot }
    }

    /// The same, if no wait is needed.
    pub(crate) fn try_enter(&self, start: u64, end: u64) -> Option<Hold<'_>> {
        let mut list = self.list.lock();
        let (slot, active) = list.insert(start, end, false);
        if list.blocked(&active) {
            list.remove(slot);
            return None;
        }
        Some(Hold { ranges: self, slot })
    }

    /// Waits until every hold that exists now has ended, at most so long; answers whether all have.
    pub(crate) fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut list = self.list.lock();
        let before = list.next_ticket;
        while list.slots.iter().flatten().any(|a| a.ticket < before) {
            list.waiters += 1;
            let late = self.changed.wait_until(&mut list, deadline).timed_out();
            list.waiters -= 1;
            if late {
                return !list.slots.iter().flatten().any(|a| a.ticket < before);
            }
        }
        true
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut list = self.ranges.list.lock();
        list.remove(self.slot);
        if list.waiters > 0 {
            self.ranges.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn shared_holds_overlap_and_exclusive_ones_do_not() {
        let ranges = Ranges::default();
        let a = ranges.enter(0, 8, false);
        let b = ranges.try_enter(4, 12).expect("shared");
        drop((a, b));
        let c = ranges.enter(0, 8, true);
        assert!(ranges.try_enter(7, 9).is_none());
        assert!(ranges.try_enter(8, 9).is_some());
        drop(c);
        assert!(ranges.try_enter(7, 9).is_some());
        assert!(ranges.drain(Duration::ZERO));
    }

    #[test]
    fn exclusive_sections_exclude_each_other() {
        let ranges = Arc::new(Ranges::default());
        let value = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (ranges, value) = (ranges.clone(), value.clone());
                std::thread::spawn(move || {
                    for _ in 0..500 {
                        let _shared = (n == 0).then(|| ranges.enter(20, 30, false));
                        let _hold = ranges.enter(n, 10 + n, true);
                        let seen = value.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        value.store(seen + 1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("joins");
        }
        assert_eq!(value.load(Ordering::Relaxed), 2000);
    }

    #[test]
    fn drain_waits_for_what_had_begun_only() {
        let ranges = Ranges::default();
        let hold = ranges.enter(0, 1, false);
        assert!(!ranges.drain(Duration::from_millis(1)));
        drop(hold);
        assert!(ranges.drain(Duration::from_secs(10)));
    }
}
