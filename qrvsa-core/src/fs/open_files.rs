//! Which inodes are open, and how often.
//!
//! Only inodes that are open, or that the front end knows by number (the kernel's inode cache), have an entry, so memory
//! is bounded by what the kernel holds. An inode whose last name goes
//! while it is open is marked here; whoever ends the last open then has it reaped. Marking and opening happen under the
//! inode's lock (exclusive and at least shared), so an inode is never opened after it was found closed and reaped.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::fs::ops::Ino;
use crate::fs::store::ObjectRef;

const SHARDS: usize = 64;

#[derive(Default)]
struct Shard {
    /// Opens and look-ups of an inode.
    counts: HashMap<Ino, u32>,
    /// Those of them whose last name is gone.
    deleted: HashMap<Ino, ObjectRef>,
}

/// The inodes of one filesystem that are open or known by number.
pub(crate) struct OpenFiles {
    shards: Box<[Mutex<Shard>]>,
}

impl OpenFiles {
    pub(crate) fn new() -> OpenFiles {
        OpenFiles { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    /// Counts an open.
    pub(crate) fn open(&self, ino: Ino) {
        let mut shard = self.shard(ino).lock();
        let count = shard.counts.entry(ino).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Whether the inode is open.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.shard(ino).lock().counts.contains_key(&ino)
    }

    /// Notes that the last name is gone. True when nobody has it open: it is the caller's to reap.
    pub(crate) fn delete(&self, object: ObjectRef) -> bool {
        let mut shard = self.shard(object.id).lock();
        if !shard.counts.contains_key(&object.id) {
            return true;
        }
        shard.deleted.insert(object.id, object);
        false
    }

    /// Ends opens. Returns the object when the last open of a deleted inode ended: it is the caller's to reap.
    pub(crate) fn release(&self, ino: Ino, opens: u64) -> Option<ObjectRef> {
        let mut shard = self.shard(ino).lock();
        let count = shard.counts.get_mut(&ino)?;
        *count = count.saturating_sub(u32::try_from(opens).unwrap_or(u32::MAX));
        if *count > 0 {
            return None;
        }
        shard.counts.remove(&ino);
        if shard.counts.len() * 4 < shard.counts.capacity() && shard.counts.capacity() > 1024 {
            shard.counts.shrink_to_fit();
        }
        shard.deleted.remove(&ino)
    }

    /// Ends all opens. Returns the deleted objects: they are the caller's to reap.
    pub(crate) fn release_all(&self) -> Vec<ObjectRef> {
        let mut deleted = Vec::new();
        for shard in &self.shards {
            let shard = std::mem::take(&mut *shard.lock());
            deleted.extend(shard.deleted.into_values());
        }
        deleted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_release_of_a_deleted_inode_reaps() {
        let files = OpenFiles::new();
        let object = ObjectRef { id: 70, record_size: 4096 };
        assert!(files.delete(object));
        files.open(70);
        files.open(70);
        assert!(!files.delete(object));
        assert_eq!(files.release(70, 1), None);
        assert!(files.is_open(70));
        assert_eq!(files.release(70, 1), Some(object));
        assert!(!files.is_open(70));
        assert_eq!(files.release(70, 1), None);
        files.open(70);
        assert_eq!(files.release(70, 1), None);
    }
}
