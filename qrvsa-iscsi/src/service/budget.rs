//! Memory for data-out, over all sessions.
//!
//! Data that was not asked for is taken up to twice the bound; asking for data stops at the bound, and goes on when memory comes
//! back. Tasks that hold a part and wait for the rest must not wait for each other: one of them may always go beyond the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::session::mailbox::{Event, Mailbox};

pub(crate) struct Budget {
    bytes_max: u64,
    used: AtomicU64,
    beyond: AtomicBool,
    anybody_waits: AtomicBool,
    waiters: Mutex<Vec<Arc<Mailbox>>>,
}

/// Bytes held; they go back when it is dropped.
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
    beyond: bool,
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Arc<Budget> {
        Arc::new(Budget {
            bytes_max,
            used: AtomicU64::new(0),
            beyond: AtomicBool::new(false),
            anybody_waits: AtomicBool::new(false),
            waiters: Mutex::default(),
        })
    }

    fn take(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Reservation> {
        let add = |used: u64| {
            let sum = used.checked_add(bytes)?;
            // One reservation is always possible, however long.
            (sum <= limit || used == 0).then_some(sum)
        };
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).ok()?;
        Some(Reservation { budget: Arc::clone(self), bytes, beyond: false })
    }

    /// The one that may go beyond.
    fn go_beyond(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        if self.beyond.swap(true, Ordering::SeqCst) {
            return None;
        }
        self.used.fetch_add(bytes, Ordering::SeqCst);
        Some(Reservation { budget: Arc::clone(self), bytes, beyond: true })
    }

    /// For data that comes unasked.
    pub(crate) fn force(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.take(bytes, self.bytes_max.saturating_mul(2))
    }

    /// For data to be asked for. On `None`, the mailbox gets [`Event::MemoryFree`] when it is worth another try.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64, waiter: &Arc<Mailbox>) -> Option<Reservation> {
        if let Some(taken) = self.take(bytes, self.bytes_max).or_else(|| self.go_beyond(bytes)) {
            return Some(taken);
        }
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|w| Arc::ptr_eq(w, waiter)) {
            waiters.push(Arc::clone(waiter));
        }
        self.anybody_waits.store(true, Ordering::SeqCst);
        drop(waiters);
        // What was given back between the two must not be missed.
        self.take(bytes, self.bytes_max).or_else(|| self.go_beyond(bytes))
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.anybody_waits.load(Ordering::SeqCst) {
            let waiters = {
                let mut waiters = self.waiters.lock();
                self.anybody_waits.store(false, Ordering::SeqCst);
                std::mem::take(&mut *waiters)
            };
            for waiter in waiters {
                waiter.post(Event::MemoryFree);
            }
        }
    }
}

impl Reservation {
    /// This and another one as one.
    pub(crate) fn joined(mut self, other: Option<Reservation>) -> Reservation {
        if let Some(mut other) = other {
            self.bytes += std::mem::take(&mut other.bytes);
            self.beyond |= std::mem::take(&mut other.beyond);
        }
        self
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.beyond {
            self.budget.beyond.store(false, Ordering::SeqCst);
        }
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_wakes() {
        let budget = Budget::new(100);
        let mailbox = Mailbox::new().unwrap();
        let first = budget.reserve(80, &mailbox).unwrap();
        let beyond = budget.reserve(30, &mailbox).unwrap();
        assert!(budget.reserve(30, &mailbox).is_none());
        let forced = budget.force(80).unwrap();
        assert!(budget.force(20).is_none());
        assert!(mailbox.take().is_empty());
        drop(first);
        assert_eq!(mailbox.take().len(), 1);
        assert!(budget.reserve(30, &mailbox).is_none());
        drop(beyond);
        assert_eq!(mailbox.take().len(), 1);
        assert!(budget.reserve(30, &mailbox).is_some(), "one is always possible");
        drop(forced);
        assert_eq!(budget.used.load(Ordering::SeqCst), 0);
    }
}
