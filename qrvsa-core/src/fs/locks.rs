//! Inode locks, and reading without them.
//!
//! Locks are striped by inode number: a fixed table of reader-writer locks, so that no inode needs a lock object of its
//! own. An operation that changes several inodes locks all their stripes at once in ascending order ([`Locks::exclusive`]),
//! never one after the other, so it cannot deadlock with another. Whoever holds stripes may begin a transaction; whoever
//! holds a transaction may not lock (see `store`).
//!
//! A lookup needs two items (entry and inode) that belong together, but must not wait while a writer of the same directory
//! waits for memory or space in `begin`. Each stripe therefore has a version that is odd only while a writer publishes
//! its item changes ([`Exclusive::publish`]), which takes no waiting. [`Locks::consistent`] reads optimistically between
//! two equal, even versions, and falls back to the shared lock.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::fs::ops::Ino;

const STRIPES: usize = 1024;
const OPTIMISTIC_TRIES: usize = 3;

#[derive(Default)]
struct Stripe {
    lock: RwLock<()>,
    version: AtomicU64,
}

/// The lock table of one filesystem.
pub(crate) struct Locks {
    stripes: Box<[Stripe]>,
}

/// Shared hold of one inode.
pub(crate) struct Shared<'a> {
    _guard: RwLockReadGuard<'a, ()>,
}

/// Exclusive hold of one or more inodes.
pub(crate) struct Exclusive<'a> {
    held: Vec<(RwLockWriteGuard<'a, ()>, &'a AtomicU64)>,
}

/// Marks the held stripes as changing until dropped.
pub(crate) struct Publishing<'a> {
    held: &'a [(RwLockWriteGuard<'a, ()>, &'a AtomicU64)],
}

impl Locks {
    pub(crate) fn new() -> Locks {
        Locks { stripes: (0..STRIPES).map(|_| Stripe::default()).collect() }
    }

    fn index(ino: Ino) -> usize {
        (ino % STRIPES as u64) as usize
    }

    /// Locks one inode shared.
    pub(crate) fn shared(&self, ino: Ino) -> Shared<'_> {
        Shared { _guard: self.stripes[Self::index(ino)].lock.read() }
    }

    /// Locks inodes exclusively. The caller holds no other inode lock.
    pub(crate) fn exclusive(&self, inos: &[Ino]) -> Exclusive<'_> {
        let mut indexes: Vec<usize> = inos.iter().map(|&ino| Self::index(ino)).collect();
        indexes.sort_unstable();
        indexes.dedup();
        let held = indexes
            .into_iter()
            .map(|i| {
                let stripe = &self.stripes[i];
                (stripe.lock.write(), &stripe.version)
            })
            .collect();
        Exclusive { held }
    }

    /// Runs `read` so that no change published under this inode's exclusive lock falls in its middle. `read` may run
    /// several times.
    pub(crate) fn consistent<T>(&self, ino: Ino, mut read: impl FnMut() -> T) -> T {
        let stripe = &self.stripes[Self::index(ino)];
        for _ in 0..OPTIMISTIC_TRIES {
            let before = stripe.version.load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            let result = read();
            fence(Ordering::Acquire);
            if stripe.version.load(Ordering::Relaxed) == before {
                return result;
            }
        }
        let _shared = stripe.lock.read();
        read()
    }
}

impl Exclusive<'_> {
    /// Opens the window in which items of the held inodes change. Nothing in it may wait or fail.
    pub(crate) fn publish(&self) -> Publishing<'_> {
        for (_, version) in &self.held {
            version.fetch_add(1, Ordering::AcqRel);
        }
        fence(Ordering::Release);
        Publishing { held: &self.held }
    }
}

impl Drop for Publishing<'_> {
    fn drop(&mut self) {
        for (_, version) in self.held {
            version.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn same_stripe_is_locked_once() {
        let locks = Locks::new();
        let held = locks.exclusive(&[7, 7, 7 + STRIPES as u64, 3]);
        assert_eq!(held.held.len(), 2);
        drop(held);
        drop(locks.shared(7));
    }

    #[test]
    fn consistent_reads_never_see_half_a_change() {
        let locks = Arc::new(Locks::new());
        let pair = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let writer = {
            let (locks, pair) = (locks.clone(), pair.clone());
            std::thread::spawn(move || {
                for _ in 0..20_000 {
                    let held = locks.exclusive(&[5]);
                    let _publishing = held.publish();
                    pair.0.fetch_add(1, Ordering::SeqCst);
                    pair.1.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        while !writer.is_finished() {
            let (a, b) = locks.consistent(5, || (pair.0.load(Ordering::SeqCst), pair.1.load(Ordering::SeqCst)));
            assert_eq!(a, b);
        }
        writer.join().unwrap();
    }
}
