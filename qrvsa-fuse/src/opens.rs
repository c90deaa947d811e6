//! Opens that the kernel has not released yet.
//!
//! The filesystem counts opens, so that an unlinked file lives as long as somebody has it open. The kernel does not send
//! a RELEASE for every OPEN: an aborted connection sends none, and an unmount drops those still queued. This table knows
//! the difference, which is released at the end of the session.

use std::collections::HashMap;

use parking_lot::Mutex;
use qrvsa_core::fs::ops::Ino;

const SHARDS: usize = 16;

/// Count of opens by inode, in shards so that session threads do not meet.
#[derive(Default)]
pub(crate) struct OpenTable {
    shards: [Mutex<HashMap<Ino, u64>>; SHARDS],
}

impl OpenTable {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    /// Counts an open.
    pub fn add(&self, ino: Ino) {
        *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
    }

    /// Counts a release. False if there was no open: nothing is to be released then.
    #[must_use]
    pub fn remove(&self, ino: Ino) -> bool {
        let mut shard = self.shard(ino).lock();
        match shard.get_mut(&ino) {
            None => false,
            Some(1) => shard.remove(&ino).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
        }
    }

    /// Takes all that is left, as (inode, opens).
    pub fn drain(&self) -> Vec<(Ino, u64)> {
        self.shards.iter().flat_map(|s| std::mem::take(&mut *s.lock())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_released_is_left() {
        let table = OpenTable::default();
        for ino in [1, 17, 17, 5] {
            table.add(ino);
        }
        assert!(table.remove(17));
        assert!(table.remove(5));
        assert!(!table.remove(5));
        assert!(!table.remove(33));
        let mut left = table.drain();
        left.sort_unstable();
        assert_eq!(left, [(1, 1), (17, 1)]);
        assert!(table.drain().is_empty());
    }
}
