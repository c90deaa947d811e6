//! Who may touch which bytes of a volume at once.
//!
//! Reads and writes share; what must not see a half of anything, and must not be seen by halves (compare and write, atomic
//! writes, the first write to a record of a reserved volume), excludes. The volume is striped over 64 locks by mebibytes.
//! A range takes its stripes in the order of their numbers, so that two ranges never wait for each other.

use std::ops::Range;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const STRIPES: u64 = 64;
const STRIPE_SHIFT: u32 = 20;

/// The locks of one volume.
pub(super) struct Locks(Box<[RwLock<()>]>);

/// A held range: its first stripe, and the others.
pub(super) struct Held<G> {
    _first: Option<G>,
    _rest: Vec<G>,
}

impl Locks {
    pub fn new() -> Locks {
        Locks((0..STRIPES).map(|_| RwLock::default()).collect())
    }

    pub fn shared(&self, range: Range<u64>) -> Held<RwLockReadGuard<'_, ()>> {
        self.hold(range, |lock| lock.read())
    }

    pub fn exclusive(&self, range: Range<u64>) -> Held<RwLockWriteGuard<'_, ()>> {
        self.hold(range, |lock| lock.write())
    }

    fn hold<'a, G>(&'a self, range: Range<u64>, lock: impl Fn(&'a RwLock<()>) -> G) -> Held<G> {
        let first = range.start >> STRIPE_SHIFT;
        let last = range.end.saturating_sub(1).max(range.start) >> STRIPE_SHIFT;
        if first == last {
            return Held { _first: Some(lock(&self.0[(first % STRIPES) as usize])), _rest: Vec::new() };
        }
        let mut stripes: Vec<u64> = (first..=last.min(first + STRIPES - 1)).map(|s| s % STRIPES).collect();
        stripes.sort_unstable();
        Held { _first: None, _rest: stripes.into_iter().map(|s| lock(&self.0[s as usize])).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_exclude_where_they_meet() {
        let locks = Locks::new();
        let mib = 1 << 20;
        let held = locks.exclusive(3 * mib..5 * mib);
        let free: Vec<bool> = locks.0.iter().map(|lock| lock.try_read().is_some()).collect();
        assert!((0..64).all(|i| free[i] != (3..5).contains(&i)));
        drop(held);
        let held = locks.shared(62 * mib + 1..66 * mib + 1);
        let free: Vec<bool> = locks.0.iter().map(|lock| lock.try_write().is_some()).collect();
        assert!((0..64).all(|i| free[i] != [62, 63, 0, 1, 2].contains(&i)));
        drop(held);
        let _all = locks.exclusive(0..u64::MAX);
        assert!(locks.0.iter().all(|lock| lock.try_read().is_none()));
    }
}
