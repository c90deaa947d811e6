//! fsync.
//!
//! The inode's lock is held (shared) only while its state is handed to the intent log, not while the log is written, so
//! that writers of the same file go on meanwhile and many fsyncs share one log write.

use crate::error::Result;
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{FLAG_INLINE, inline_key, inode_key};
use crate::fs::ops::Ino;
use crate::fs::store::Store;

impl<S: Store> FileSystem<S> {
    pub(crate) fn sync_inode(&self, ino: Ino) -> Result<()> {
        if self.store.read_only() {
            return Ok(());
        }
        let held = self.locks.shared(ino);
        let inode = self.load(ino)?;
        let mut items = vec![(inode_key(ino), Some(inode.encode().as_slice().into()))];
        if inode.is_regular() {
            let inline = if inode.has(FLAG_INLINE) { self.store.get(inline_key(ino))? } else { None };
            items.push((inline_key(ino), inline));
        }
        let ticket = self.store.log_object(inode.object(ino), &items)?;
        drop(held);
        self.store.wait_durable(ticket)
    }
}
