//! The gate between transactions and the commit: many holders of the open transaction group, one who closes it.

use parking_lot::{RwLock, RwLockReadGuard};

/// Number of the open transaction group, behind a lock that transactions share.
pub struct Gate {
    open: RwLock<u64>,
}

/// A transaction's hold on the open transaction group.
pub struct Hold<'a> {
    guard: RwLockReadGuard<'a, u64>,
}

impl Hold<'_> {
    /// The transaction group held open.
    pub fn txg(&self) -> u64 {
        *self.guard
    }
}

impl Gate {
    /// A gate whose open group has this number.
    pub fn new(open: u64) -> Gate {
        Gate { open: RwLock::new(open) }
    }

    /// Holds the open group open. A thread must not hold it twice.
    pub fn hold(&self) -> Hold<'_> {
        Hold { guard: self.open.read() }
    }

    /// Waits until nobody holds the open group, runs `freeze` with its number, and opens the next.
    pub fn close<T>(&self, freeze: impl FnOnce(u64) -> T) -> (u64, T) {
        let mut open = self.open.write();
        let txg = *open;
        let result = freeze(txg);
        *open = txg + 1;
        (txg, result)
    }

    /// The open group now; it may be closed by the time the caller looks.
    pub fn open_txg(&self) -> u64 {
        *self.open.read()
    }
}
