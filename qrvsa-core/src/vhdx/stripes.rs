//! What every request touches, kept once per group of threads: two processors that count or lock in one place take its cache
//! line from each other each time, and wait for it longer than they work.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Copies of everything. More threads share them.
pub const STRIPES: usize = 16;

/// A value that shares no cache line with another; processors fetch lines of 64 bytes in pairs.
#[derive(Default)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// The stripe of the calling thread.
pub fn own() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        own.get()
    })
}

/// A lock that is taken shared all the time and exclusively once in a while. Who takes it shared locks one stripe, who takes it
/// exclusively locks all, in order.
pub struct StripedLock<T> {
    stripes: Vec<Apart<RwLock<Arc<T>>>>,
}

/// The value, locked exclusively. It can be looked at and replaced.
pub struct Exclusive<'a, T> {
    stripes: Vec<RwLockWriteGuard<'a, Arc<T>>>,
}

impl<T> StripedLock<T> {
    /// An open lock.
    pub fn new(value: T) -> StripedLock<T> {
        let value = Arc::new(value);
        StripedLock { stripes: (0..STRIPES).map(|_| Apart(RwLock::new(value.clone()))).collect() }
    }

    /// Waits until nobody has or wants it exclusively.
    pub fn read(&self) -> MappedRwLockReadGuard<'_, T> {
        RwLockReadGuard::map(self.stripes[own()].0.read(), |value| &**value)
    }

    /// Waits until nobody has it.
    pub fn write(&self) -> Exclusive<'_, T> {
        Exclusive { stripes: self.stripes.iter().map(|stripe| stripe.0.write()).collect() }
    }
}

impl<T> Exclusive<'_, T> {
    /// Puts another value in the place of this one.
    pub fn replace(&mut self, value: T) {
        let value = Arc::new(value);
        self.stripes.iter_mut().for_each(|stripe| **stripe = value.clone());
    }
}

impl<T> Deref for Exclusive<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.stripes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_sees_one_value_and_the_newest() {
        let lock = StripedLock::new(0u64);
        let written = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    let mut seen = 0;
                    while seen < 100 {
                        let least = written.load(Ordering::SeqCst) as u64;
                        let value = lock.read();
                        assert!(*value >= least.max(seen), "{} after {least}", *value);
                        std::hint::spin_loop();
                        assert!(written.load(Ordering::SeqCst) as u64 <= *value, "it changed under a reader");
                        seen = *value;
                    }
                });
            }
            for number in 1..=100 {
                let mut value = lock.write();
                assert_eq!(*value, number - 1);
                value.replace(number);
                drop(value);
                written.store(number as usize, Ordering::SeqCst);
            }
        });
        assert_eq!(*lock.read(), 100);
    }

    #[test]
    fn threads_spread_over_the_stripes() {
        let mine = own();
        assert_eq!(own(), mine);
        let others: Vec<usize> = (0..STRIPES).map(|_| std::thread::spawn(own).join().expect("a thread ends")).collect();
        assert!(others.iter().all(|stripe| *stripe < STRIPES));
        assert!(others.iter().any(|stripe| *stripe != mine));
    }
}
