//! Readers and reuse: rows freed while somebody may still read them are not handed out.
//!
//! A reader enters the current epoch before it looks a pointer up and leaves after the last byte was read. Rows freed in
//! epoch `e` are safe once the epoch has advanced twice: every reader that could have seen the pointer has left. Nobody
//! ever waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 4;

struct Inner {
    current: AtomicU64,
    readers: [AtomicU64; SLOTS],
}

/// The epochs of a pool.
#[derive(Clone)]
pub struct Epochs {
    inner: Arc<Inner>,
}

/// A reader's presence in an epoch.
pub struct Pin {
    inner: Arc<Inner>,
    slot: usize,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.inner.readers[self.slot].fetch_sub(1, Ordering::Release);
    }
}

impl Default for Epochs {
    fn default() -> Self {
        Self::new()
    }
}

impl Epochs {
    /// Starts at epoch 2.
    pub fn new() -> Epochs {
        let readers = std::array::from_fn(|_| AtomicU64::new(0));
        Epochs { inner: Arc::new(Inner { current: AtomicU64::new(2), readers }) }
    }

    /// Enters the current epoch.
    pub fn pin(&self) -> Pin {
        loop {
            let epoch = self.inner.current.load(Ordering::SeqCst);
            let slot = epoch as usize % SLOTS;
            self.inner.readers[slot].fetch_add(1, Ordering::SeqCst);
            if self.inner.current.load(Ordering::SeqCst) == epoch {
                return Pin { inner: self.inner.clone(), slot };
            }
            self.inner.readers[slot].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The current epoch.
    pub fn current(&self) -> u64 {
        self.inner.current.load(Ordering::SeqCst)
    }

    /// Advances as far as readers allow: past epoch `e` once nobody is left in `e - 1`. One thread at a time.
    pub fn try_advance(&self) {
        for _ in 0..2 {
            let epoch = self.current();
            if self.inner.readers[(epoch - 1) as usize % SLOTS].load(Ordering::SeqCst) != 0 {
                return;
            }
            self.inner.current.store(epoch + 1, Ordering::SeqCst);
        }
    }

    /// Whether everybody who could have seen something freed in `epoch` has left.
    pub fn passed(&self, epoch: u64) -> bool {
        self.current() >= epoch + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_reader_holds_reuse_back() {
        let epochs = Epochs::new();
        let freed = epochs.current();
        let pin = epochs.pin();
        for _ in 0..5 {
            epochs.try_advance();
        }
        assert!(!epochs.passed(freed), "the reader entered in the epoch of the free");
        drop(pin);
        epochs.try_advance();
        assert!(epochs.passed(freed));
    }
}
