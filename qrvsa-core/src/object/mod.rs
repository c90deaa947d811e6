//! Contents of files and volumes: dirty data, holes, extents, and the read path.
//!
//! # What it holds
//! Contents are addressed in blocks of 4 KiB, gathered in **slots** of the object's record size. What is on disk are
//! **extents**: items (object, [`KIND_EXTENT`], byte offset of the first block) whose value is the pointer of a record.
//! Extents do not overlap and each lies in one slot. A block without an extent reads as zeros.
//!
//! What is only in memory are **layers**: the changes of the open txg and, while it is written out, those of the syncing
//! txg ([`layer`]). Only objects with changes have an entry; memory is bounded by the bound on dirty data.
//!
//! # Who does what
//! - [`Objects::read`] takes dirty blocks from the layers, the rest from the extents in one batch ([`read`]).
//! - [`Objects::write`] and [`Objects::punch`] change the open layer ([`write`], [`punch`]) and reserve what writing it
//!   out will cost; so `NoSpace` is an answer to the call, never a lost write.
//! - [`Objects::sync_txg`], on the one sync thread, writes a txg's layers to new records and publishes extents
//!   ([`sync`]); nothing else changes extents.
//! - [`Objects::take_unlogged`] hands changes to the intent log ([`log`]).
//!
//! # Invariants
//! - A layer's slot leaves memory only after its extents can be found through the items.
//! - Publishing the extents of a slot is one step for every scan ([`extents`]).
//! - The reservation of a slot is at least the cost of its plan ([`plan`]) at every moment.
//! - Order of locks: publication lock of a shard, then an object's mutex, then the map of a shard. No device is read and
//!   no item looked up under an object's mutex.

mod bits;
mod extents;
mod layer;
mod log;
mod plan;
mod punch;
mod ranges;
mod read;
mod reap;
mod seek;
mod slot;
mod sync;
mod write;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use parking_lot::{Mutex, RwLock};

use crate::buf::BufSlice;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{Intent, ObjectRef, Value};
use crate::record::pointer::Pointer;
use crate::tree::Key;

use layer::{Layer, Object, Shape, State};
pub use log::{LogOp, Unlogged};
pub use sync::SyncStats;

/// Kind of an extent item: key (object, 200, byte offset of the first block), value: an encoded [`Pointer`].
pub const KIND_EXTENT: u8 = 200;
/// Kind of the item (object, 201, 0): blocks in all extents of the object, u64 LE. Absent means 0.
pub const KIND_SPACE: u8 = 201;

pub use crate::record::reader::ReadRequest;

/// Keeps rows that are freed meanwhile from being reused, until dropped.
pub struct Pin {
    _guard: Box<dyn Any + Send>,
}

impl Pin {
    /// A pin that lasts as long as `guard`.
    pub fn new(guard: impl Any + Send) -> Pin {
        Pin { _guard: Box::new(guard) }
    }
}

/// Below: records in the pool.
///
/// `cost_blocks`, `reserve`, `release`, `account_dirty` and `whole_dirty` are called under an object's mutex: they must not
/// block on I/O, and not call back.
pub trait RecordIo: Send + Sync {
    /// Reads parts of several records, merged per device. Fills every `out` or fails.
    ///
    /// # Errors
    /// `Corrupt`: some of it is damaged for good. `Io`: it could not be read now.
    fn read(&self, requests: &mut [ReadRequest<'_>]) -> Result<()>;

    /// Appends bytes `range` of a record to `parts` if all of them are in memory, as they lie there; else answers `false`,
    /// and what was appended is to be thrown away.
    fn lend(&self, pointer: &Pointer, range: Range<usize>, parts: &mut Vec<BufSlice>) -> bool {
        let _ = (pointer, range, parts);
        false
    }

    /// As [`RecordIo::read`], of records that are about to be replaced: no cache is to keep what is read.
    ///
    /// # Errors
    /// As for `read`.
    fn read_once(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        self.read(requests)
    }

    /// `record` is what was written at `pointer`, and will be found there from now on: a cache may keep it. Sync thread only.
    fn keep(&self, pointer: &Pointer, record: &BufSlice) {
        let _ = (pointer, record);
    }

    /// Allocates, encodes and writes records of 1 to 256 whole blocks; pointers in the same order. Sync thread only. When
    /// free rows are too scattered for a record, fewer pointers come back, for the records before it.
    ///
    /// # Errors
    /// `NoSpace` when there is no run of free rows for the first record: shorter ones may fit. `Io`, `Suspended`: the
    /// commit is aborted.
    fn write(&self, txg: u64, records: &[BufSlice]) -> Result<Vec<Pointer>>;

    /// Frees a record when `txg` commits. Sync thread only.
    fn free(&self, txg: u64, pointer: &Pointer);

    /// Most physical blocks that a record of `blocks` blocks takes.
    fn cost_blocks(&self, blocks: u32) -> u64;

    /// Sets physical blocks aside for dirty data. `Intent::Shrink` may use the pool's reserve: it is asked for when a
    /// part of a record is punched and the rest has to be written anew.
    ///
    /// # Errors
    /// `NoSpace`.
    fn reserve(&self, physical_blocks: u64, intent: Intent) -> Result<()>;

    /// Gives back what `reserve` set aside.
    fn release(&self, physical_blocks: u64);

    /// Accounts dirty memory, in bytes.
    fn account_dirty(&self, delta_bytes: i64);

    /// So many bytes more are dirty in large slots that have become dirty from end to end: written out now or later, they
    /// cost the same.
    fn whole_dirty(&self, bytes: u64);

    /// Held from the look-up of pointers to the end of reading through them.
    fn pin(&self) -> Pin;
}

/// Beside: the items of the dataset.
pub trait Items: Send + Sync {
    /// The newest value of an item.
    ///
    /// # Errors
    /// `Io` or `Corrupt` when the tree cannot be read.
    fn get(&self, key: Key) -> Result<Option<Value>>;

    /// At most `limit` items with `from <= key <= to`, ascending. Fewer than `limit` means that there are no more.
    ///
    /// # Errors
    /// As for `get`.
    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>>;

    /// Sets an item in the syncing txg. Sync thread only.
    fn put_syncing(&self, key: Key, value: Value);

    /// Removes an item in the syncing txg, present or not. Sync thread only.
    fn delete_syncing(&self, key: Key);
}

/// Objects are spread over this many maps.
const SHARDS: usize = 64;
/// A sync writes in batches of about this many bytes.
const BATCH_BYTES: usize = 8 << 20;

#[derive(Default)]
struct Shard {
    /// Objects with dirty state.
    objects: RwLock<HashMap<u64, Arc<Object>>>,
    /// Held during a publication of extents.
    publishing: Mutex<()>,
    /// Odd during a publication.
    sequence: AtomicU64,
}

/// The contents of all objects of one dataset.
pub struct Objects {
    io: Arc<dyn RecordIo>,
    items: Arc<dyn Items>,
    shards: Box<[Shard]>,
    dirty_bytes: AtomicU64,
    /// A sync failed: no change is taken any more, reads go on.
    failed: AtomicBool,
    /// Objects with changes that were written out in the last synced txg without having been logged.
    committing: Mutex<HashMap<u64, u64>>,
    reaping: Mutex<VecDeque<reap::Reap>>,
    /// Held during a sync.
    syncing: Mutex<()>,
    batch_bytes: usize,
}

impl Objects {
    /// The contents of a dataset's objects, over records and items.
    pub fn new(io: Arc<dyn RecordIo>, items: Arc<dyn Items>) -> Self {
        Objects {
            io,
            items,
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            dirty_bytes: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            committing: Mutex::new(HashMap::new()),
            reaping: Mutex::new(VecDeque::new()),
            syncing: Mutex::new(()),
            batch_bytes: BATCH_BYTES,
        }
    }

    /// Memory that changes take which are not written out yet, in bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes.load(Relaxed)
    }

    /// Whether a sync would find anything to do.
    pub fn has_work(&self) -> bool {
        !self.reaping.lock().is_empty() || self.shards.iter().any(|shard| !shard.objects.read().is_empty())
    }

    fn shard(&self, object: u64) -> &Shard {
        let hash = object.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// The entry of an object with dirty state.
    fn find(&self, object: u64) -> Option<Arc<Object>> {
        self.shard(object).objects.read().get(&object).cloned()
    }

    /// The entry of an object, new if need be.
    fn find_or_insert(&self, object: ObjectRef, shape: Shape) -> Result<Arc<Object>> {
        let found = self.find(object.id).unwrap_or_else(|| {
            let mut objects = self.shard(object.id).objects.write();
            let new = || {
                let state = Mutex::new(State::default());
                Arc::new(Object { id: object.id, shape, record_size: object.record_size, state })
            };
            objects.entry(object.id).or_insert_with(new).clone()
        });
        if found.shape != shape {
            return Err(Error::new(ErrorKind::Invalid, "the record size of an object changed"));
        }
        Ok(found)
    }

    /// Takes an object without dirty state out of the map.
    fn forget_if_clean(&self, object: &Object) {
        let mut state = object.state.lock();
        if state.is_clean() && !state.dead {
            state.dead = true;
            self.shard(object.id).objects.write().remove(&object.id);
        }
    }

    fn check_running(&self) -> Result<()> {
        if self.failed.load(SeqCst) {
            return Err(Error::new(ErrorKind::Suspended, "writing out an earlier transaction group failed"));
        }
        Ok(())
    }

    /// Accounts dirty memory.
    fn account(&self, before: u64, after: u64) {
        if before != after {
            let delta = after.wrapping_sub(before);
            self.dirty_bytes.fetch_add(delta, Relaxed);
            self.io.account_dirty(delta as i64);
        }
    }

    /// Drops a layer that nobody needs: gives back its reservations and its memory.
    fn discard(&self, layer: Layer) {
        let reserved = layer.slots.values().map(|s| s.reserved).sum();
        let memory = layer.slots.values().map(|s| s.memory()).sum::<u64>() + layer.holes_memory();
        if reserved > 0 {
            self.io.release(reserved);
        }
        self.account(memory, 0);
    }
}

/// The blocks that bytes `offset .. offset + len` touch.
fn blocks_of(offset: u64, len: usize) -> Result<Range<u64>> {
    let end = offset.checked_add(len as u64).filter(|&end| end <= layer::BLOCKS_END * layer::BLOCK);
    let Some(end) = end else {
        return Err(Error::new(ErrorKind::Invalid, "contents of an object end at 2^63 bytes"));
    };
    Ok(offset / layer::BLOCK..end.div_ceil(layer::BLOCK))
}
