//! Which inodes are open, and how often.
//!
//! Only open inodes have an entry, so memory is bounded by what the kernel holds open. An inode whose last name goes
//! while it is open is marked here; whoever ends the last open then has it reaped. Marking and opening happen under the
//! inode's lock (exclusive and at least shared), so an inode is never opened after it was found closed and reaped.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::fs::ops::Ino;
use crate::fs::store::ObjectRef;

const SHARDS: usize = 64;

struct Entry {
    count: u64,
    deleted: Option<ObjectRef>,
}

/// The open inodes of one filesystem.
pub(crate) struct OpenFiles {
    shards: Box<[Mutex<HashMap<Ino, Entry>>]>,
}

impl OpenFiles {
    pub(crate) fn new() -> OpenFiles {
        OpenFiles { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, Entry>> {
        &self.shards[(ino % SHARDS as u64) as usize]
    }

    /// Counts an open.
    pub(crate) fn open(&self, ino: Ino) {
        self.shard(ino).lock().entry(ino).or_insert(Entry { count: 0, deleted: None }).count += 1;
    }

    /// Whether the inode is open.
    pub(crate) fn is_open(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    /// Notes that the last name is gone. True when nobody has it open: it is the caller's to reap.
    pub(crate) fn delete(&self, object: ObjectRef) -> bool {
        match self.shard(object.id).lock().get_mut(&object.id) {
            Some(entry) => {
                entry.deleted = Some(object);
                false
            }
            None => true,
        }
    }

    /// Ends one open. Returns the object when this was the last open of a deleted inode: it is the caller's to reap.
    pub(crate) fn release(&self, ino: Ino) -> Option<ObjectRef> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.get_mut(&ino)?;
        entry.count = entry.count.saturating_sub(1);
        if entry.count > 0 {
            return None;
        }
        shard.remove(&ino).and_then(|entry| entry.deleted)
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
        assert_eq!(files.release(70), None);
        assert!(files.is_open(70));
        assert_eq!(files.release(70), Some(object));
        assert!(!files.is_open(70));
        assert_eq!(files.release(70), None);
        files.open(70);
        assert_eq!(files.release(70), None);
    }
}
