//! Buffers for data-out that a connection keeps for its next commands.
//!
//! A few small ones are its own. For more it borrows from a store of the whole service, in large steps, so that a command costs no
//! more than a comparison; a connection without commands gives all of it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Buffers that are kept, and their length in bytes at most.
const COUNT_MAX: usize = 32;
const LENGTH_MAX: usize = 1 << 20;
/// Bytes that a connection keeps without asking.
const OWN_BYTES: usize = 256 << 10;
/// Bytes that are borrowed at once.
const STEP_BYTES: usize = 4 << 20;

/// Bytes that all connections may keep beyond their own.
#[derive(Debug)]
pub(crate) struct Store {
    left: AtomicUsize,
}

impl Store {
    pub(crate) fn new(bytes_max: usize) -> Arc<Store> {
        Arc::new(Store { left: AtomicUsize::new(bytes_max) })
    }

    fn borrow(&self, bytes: usize) -> bool {
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::SeqCst);
    }
}

/// The buffers of one connection.
pub(crate) struct Buffers {
    kept: Vec<Vec<u8>>,
    /// Memory of those.
    bytes: usize,
    borrowed: usize,
    store: Arc<Store>,
}

impl Buffers {
    pub(crate) fn new(store: Arc<Store>) -> Buffers {
        Buffers { kept: Vec::new(), bytes: 0, borrowed: 0, store }
    }

    fn take_if(&mut self, fits: impl Fn(&Vec<u8>) -> bool) -> Option<Vec<u8>> {
        let at = self.kept.iter().position(fits)?;
        let buffer = self.kept.swap_remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    /// A buffer of that length; its content is what an earlier command of this session brought, or zero.
    pub(crate) fn get(&mut self, bytes: usize) -> Vec<u8> {
        match self.take_if(|b| b.len() >= bytes && b.len() / 4 <= bytes) {
            Some(mut buffer) => {
                buffer.truncate(bytes);
                buffer
            }
            None => vec![0; bytes],
        }
    }

    /// Lengthens a buffer that has no more than `held` bytes of its command.
    pub(crate) fn lengthen(&mut self, buffer: &mut Vec<u8>, bytes: usize, held: usize) {
        if let Some(mut larger) = self.take_if(|b| b.len() >= bytes) {
            larger.truncate(bytes);
            if let (Some(to), Some(from)) = (larger.get_mut(..held), buffer.get(..held)) {
                to.copy_from_slice(from);
            }
            *buffer = larger;
        } else {
            buffer.resize(bytes, 0);
        }
    }

    /// Keeps a buffer that is not needed any more, if there is room.
    pub(crate) fn keep(&mut self, buffer: Vec<u8>) {
        let memory = buffer.capacity();
        if self.kept.len() >= COUNT_MAX || !(1..=LENGTH_MAX).contains(&buffer.len()) {
            return;
        }
        if self.bytes + memory > OWN_BYTES + self.borrowed {
            if memory > STEP_BYTES || !self.store.borrow(STEP_BYTES) {
                return;
            }
            self.borrowed += STEP_BYTES;
        }
        self.bytes += memory;
        self.kept.push(buffer);
    }

    /// Gives everything back.
    pub(crate) fn clear(&mut self) {
        self.kept = Vec::new();
        self.bytes = 0;
        self.store.give_back(std::mem::take(&mut self.borrowed));
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.store.give_back(self.borrowed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(store: &Store) -> usize {
        store.left.load(Ordering::SeqCst)
    }

    #[test]
    fn small_ones_are_free_and_large_ones_are_bounded_over_all() {
        let store = Store::new(10 << 20);
        let (mut small, mut first, mut second) =
            (Buffers::new(store.clone()), Buffers::new(store.clone()), Buffers::new(store.clone()));
        for _ in 0..100 {
            small.keep(vec![0; 8 << 10]);
        }
        assert_eq!((small.kept.len(), left(&store)), (COUNT_MAX, 10 << 20));
        for _ in 0..100 {
            first.keep(vec![0; 1 << 20]);
            second.keep(vec![0; 1 << 20]);
            first.keep(vec![0; 2 << 20]);
        }
        assert_eq!((first.kept.len(), second.kept.len(), left(&store)), (4, 4, 2 << 20));
        // What is taken out and comes back costs nothing more.
        for _ in 0..100 {
            let buffer = first.get(1 << 20);
            assert_eq!(buffer.len(), 1 << 20);
            first.keep(buffer);
        }
        assert_eq!((first.kept.len(), left(&store)), (4, 2 << 20));
        let mut buffer = vec![7; 100];
        first.lengthen(&mut buffer, 1 << 20, 50);
        assert_eq!((buffer.len(), buffer[..50] == [7; 50], first.kept.len()), (1 << 20, true, 3));
        first.clear();
        drop(second);
        assert_eq!(left(&store), 10 << 20);
        assert_eq!((small.get(4 << 10).len(), small.get(1 << 10).len(), small.kept.len()), (4 << 10, 1 << 10, 31));
    }
}
