//! Deleting an object: its items and its records go in the sync of the txg that deleted it or of later ones, a bounded
//! number per txg. The orphan item goes last, so that a crash in between starts it again.

use super::extents::decode_extent;
use super::layer::Shape;
use super::sync::SyncStats;
use super::{KIND_EXTENT, Objects};
use crate::error::Result;
use crate::item::{KIND_ORPHAN, ObjectRef};
use crate::record::pointer::Pointer;
use crate::tree::Key;

/// Items per scan.
const PAGE: usize = 256;

/// A deletion that is under way.
pub(super) struct Reap {
    /// Not before this txg.
    txg: u64,
    object: ObjectRef,
    /// Where to go on.
    from: Key,
}

impl Objects {
    /// Queues an object for deletion in `txg` and drops what is dirty of it under that txg. Nobody may use the object any
    /// more. An invalid record size is not noticed here: the deletion then fails as corrupt when it meets an extent.
    pub fn reap(&self, txg: u64, object: ObjectRef) {
        if let Some(found) = self.find(object.id) {
            let mut state = found.state.lock();
            // What belongs to an earlier txg is written out: that txg may become durable without the deletion.
            state.switch_to(txg);
            let open = state.open.take();
            drop(state);
            if let Some(layer) = open {
                self.discard(layer);
            }
            self.forget_if_clean(&found);
        }
        let from = Key::new(object.id, 0, 0);
        self.reaping.lock().push_back(Reap { txg, object, from });
    }

    /// Goes on with deletions queued up to `txg`, about `budget` items.
    pub(super) fn reap_some(&self, txg: u64, budget: usize, stats: &mut SyncStats) -> Result<()> {
        let mut left = budget;
        loop {
            // Queued in the order of txgs, as they were open one after the other.
            let front = {
                let mut queue = self.reaping.lock();
                if queue.front().is_none_or(|reap| reap.txg > txg) {
                    return Ok(());
                }
                if left == 0 {
                    stats.reaping = queue.len();
                    return Ok(());
                }
                queue.pop_front()
            };
            let Some(mut reap) = front else { return Ok(()) };
            if self.reap_object(txg, &mut reap, &mut left, stats)? {
                stats.objects_reaped += 1;
            } else {
                self.reaping.lock().push_front(reap);
            }
        }
    }

    /// Deletes about `budget` items of whatever objects, from the first item on, and frees what they name: a dataset that is
    /// destroyed goes piece by piece. Sync thread only, after [`Objects::sync_txg`] of the same txg.
    ///
    /// # Errors
    /// `Io`, `Corrupt`: the commit is aborted.
    pub fn reap_everything(&self, txg: u64, budget: usize) -> Result<()> {
        self.reaping.lock().clear();
        let mut from = Some(Key::MIN);
        let mut left = budget;
        while let Some(key) = from.filter(|_| left > 0) {
            let items = self.items.scan(key, Key::MAX, PAGE.min(left))?;
            for (key, value) in &items {
                if key.kind == KIND_EXTENT {
                    self.io.free(txg, &Pointer::decode(value)?.0);
                }
                self.items.delete_syncing(*key);
            }
            left -= items.len();
            from = items.last().and_then(|(key, _)| key.successor());
        }
        Ok(())
    }

    /// Deletes items of one object; returns whether that was all.
    fn reap_object(&self, txg: u64, reap: &mut Reap, left: &mut usize, stats: &mut SyncStats) -> Result<bool> {
        let id = reap.object.id;
        let shape = Shape::of(reap.object)?;
        let to = Key::new(id, u8::MAX, u64::MAX);
        let mut all = false;
        while !all && *left > 0 {
            let limit = PAGE.min(*left);
            let items = self.items.scan(reap.from, to, limit)?;
            all = items.len() < limit;
            for (key, value) in &items {
                if key.kind == KIND_EXTENT {
                    let extent = decode_extent(shape, *key, value)?;
                    self.io.free(txg, &extent.pointer);
                    stats.extents_freed += 1;
                }
                self.items.delete_syncing(*key);
                match key.successor().filter(|next| *next <= to) {
                    Some(next) => reap.from = next,
                    None => all = true,
                }
            }
            *left -= items.len();
        }
        if all {
            self.items.delete_syncing(Key::new(0, KIND_ORPHAN, id));
        }
        Ok(all)
    }
}
