//! Memory for data-out, over all sessions.
//!
//! Data that was not asked for is taken up to twice the bound; asking for data stops at the bound, and goes on when memory comes
//! back. Tasks that hold a part and wait for the rest must not wait for each other: one of them may always go beyond the bound.
//! Nor must a session wait for the writes of others, which may be slow: as long as it was given nothing it may go halfway
//! beyond the bound, and who has more than a quarter of all gets no more while others wait.

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
    /// Who asked for it, and for how much of it.
    holder: Option<(Arc<Mailbox>, u64)>,
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
        Some(Reservation { budget: Arc::clone(self), bytes, beyond: false, holder: None })
    }

    /// The one that may go beyond.
    fn go_beyond(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        if self.beyond.swap(true, Ordering::SeqCst) {
            return None;
        }
        self.used.fetch_add(bytes, Ordering::SeqCst);
        Some(Reservation { budget: Arc::clone(self), bytes, beyond: true, holder: None })
    }

    /// For data that comes unasked.
    pub(crate) fn force(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.take(bytes, self.bytes_max.saturating_mul(2))
    }

    /// For data to be asked for. On `None`, the mailbox gets [`Event::MemoryFree`] when it is worth another try.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: u64, holder: &Arc<Mailbox>) -> Option<Reservation> {
        if let Some(taken) = self.try_reserve(bytes, holder) {
            return Some(taken);
        }
        let mut waiters = self.waiters.lock();
        if !waiters.iter().any(|w| Arc::ptr_eq(w, holder)) {
            waiters.push(Arc::clone(holder));
        }
        self.anybody_waits.store(true, Ordering::SeqCst);
        drop(waiters);
        // What was given back between the two must not be missed.
        self.try_reserve(bytes, holder)
    }

    fn try_reserve(self: &Arc<Self>, bytes: u64, holder: &Arc<Mailbox>) -> Option<Reservation> {
        // Only its own thread adds to it.
        let has = holder.data_out_bytes.load(Ordering::SeqCst);
        if has > 0 && has.saturating_add(bytes) > self.bytes_max / 4 && self.others_wait(holder) {
            return None;
        }
        let limit = if has == 0 { self.bytes_max.saturating_add(self.bytes_max / 2) } else { self.bytes_max };
        let mut taken = self.take(bytes, limit).or_else(|| self.go_beyond(bytes))?;
        holder.data_out_bytes.fetch_add(bytes, Ordering::SeqCst);
        taken.holder = Some((Arc::clone(holder), bytes));
        Some(taken)
    }

    fn others_wait(&self, holder: &Arc<Mailbox>) -> bool {
        self.anybody_waits.load(Ordering::SeqCst) && self.waiters.lock().iter().any(|w| !Arc::ptr_eq(w, holder))
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
    /// This, which nobody had to ask for, and another one as one.
    pub(crate) fn joined(mut self, other: Option<Reservation>) -> Reservation {
        if let Some(mut other) = other {
            self.bytes += std::mem::take(&mut other.bytes);
            self.beyond |= std::mem::take(&mut other.beyond);
            self.holder = other.holder.take();
        }
        self
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some((holder, bytes)) = self.holder.take() {
            holder.data_out_bytes.fetch_sub(bytes, Ordering::SeqCst);
        }
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
        assert_eq!(mailbox.data_out_bytes.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_has_much_does_not_keep_out_who_has_nothing() {
        let budget = Budget::new(100);
        let [greedy, modest, third] = [(); 3].map(|()| Mailbox::new().unwrap());
        // Alone it may have all, and one more.
        let mut all: Vec<_> = (0..11).map(|_| budget.reserve(10, &greedy).unwrap()).collect();
        assert!(budget.reserve(10, &greedy).is_none());
        let own = budget.reserve(10, &modest).unwrap();
        assert!(budget.reserve(10, &modest).is_none(), "one at a time");
        // What comes back is for who waits.
        for _ in 0..2 {
            all.remove(0);
            assert!(budget.reserve(10, &modest).is_none());
        }
        all.truncate(5);
        let more = budget.reserve(10, &modest).unwrap();
        assert!(budget.reserve(50, &third).is_some());
        let (full, waits) = (budget.force(100), budget.reserve(50, &third));
        assert!(full.is_some() && waits.is_some(), "beyond the bound, one of all");
        drop((waits, full));
        let joined = own.joined(None);
        drop((joined, more, all));
        assert_eq!(budget.used.load(Ordering::SeqCst), 0);
        for mailbox in [&greedy, &modest, &third] {
            assert_eq!(mailbox.data_out_bytes.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn no_more_than_a_share_while_others_wait() {
        let budget = Budget::new(100);
        let [greedy, modest] = [(); 2].map(|()| Mailbox::new().unwrap());
        let all: Vec<_> = (0..11).map(|_| budget.reserve(10, &greedy).unwrap()).collect();
        let own = budget.reserve(10, &modest).unwrap();
        assert!(budget.reserve(10, &modest).is_none());
        // There is room again, but the other one waits.
        budget.used.fetch_sub(60, Ordering::SeqCst);
        assert!(budget.reserve(10, &greedy).is_none());
        assert!(budget.reserve(10, &modest).is_some());
        budget.used.fetch_add(60, Ordering::SeqCst);
        drop((all, own));
        assert!(budget.reserve(10, &greedy).is_some());
    }
}
