//! What the filesystem layer needs from the layers below it: items, object contents, transactions, durability.
//!
//! The engine implements [`Store`] for a dataset; tests implement it in memory.
//!
//! **Locks before transactions.** A transaction keeps the open transaction group from closing, and `begin` may wait for
//! memory or space. So whoever holds a transaction never waits for a lock that somebody may hold while beginning one:
//! take inode locks first, then `begin`, change, drop the transaction, release the locks.

use std::ops::Range;

use crate::error::Result;
pub use crate::item::{
    Intent, KIND_ORPHAN, Log, ObjectRef, RESERVED_KIND_MIN, SyncTicket, Usage, VALUE_BYTES_MAX, Value,
};
use crate::tree::Key;

/// Items, to be read: a dataset as it is now, or a committed state of one.
pub trait ItemSource {
    /// The value of an item.
    ///
    /// # Errors
    /// `Io` or `Corrupt`.
    fn get(&self, key: Key) -> Result<Option<Value>>;

    /// At most `limit` items with `from <= key <= to`, ascending.
    ///
    /// # Errors
    /// As [`ItemSource::get`].
    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>>;

    /// Seed of name hashes.
    fn hash_seed(&self) -> u64;

    /// As [`Store::read`].
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// As [`Store::next_data`].
    ///
    /// # Errors
    /// `Io`.
    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>>;

    /// As [`Store::next_hole`].
    ///
    /// # Errors
    /// `Io`.
    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64>;
}

impl<S: Store> ItemSource for S {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        Store::get(self, key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        Store::scan(self, from, to, limit)
    }

    fn hash_seed(&self) -> u64 {
        Store::hash_seed(self)
    }

    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        Store::read(self, object, offset, buf)
    }

    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        Store::next_data(self, object, offset)
    }

    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        Store::next_hole(self, object, offset)
    }
}

/// A dataset, as the filesystem layer sees it. All methods may be called from any thread.
pub trait Store: Send + Sync + 'static {
    /// Holds the open transaction group open until dropped. Everything done under one transaction becomes durable
    /// together.
    type Tx<'a>
    where
        Self: 'a;

    /// Begins a transaction. May wait until dirty memory is written out.
    ///
    /// # Errors
    /// `NoSpace`, `ReadOnly`, `Suspended`.
    fn begin(&self, intent: Intent) -> Result<Self::Tx<'_>>;

    /// The newest value of an item.
    ///
    /// # Errors
    /// `Io` or `Corrupt` when the tree cannot be read.
    fn get(&self, key: Key) -> Result<Option<Value>>;

    /// At most `limit` items with `from <= key <= to`, ascending.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>>;

    /// Sets an item. Kinds from [`RESERVED_KIND_MIN`] on belong to the object layer.
    fn put(&self, tx: &Self::Tx<'_>, key: Key, value: Value, log: Log);

    /// Removes an item, present or not.
    fn delete(&self, tx: &Self::Tx<'_>, key: Key, log: Log);

    /// A number never used before in this dataset, not even for an object deleted since. Above 1024.
    fn new_object_id(&self) -> u64;

    /// Fills `buf` from the object's contents at `offset`; what was never written reads as zeros. Knows no file size:
    /// the caller clamps.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes into the object's contents. All-or-nothing against `NoSpace`. Data lands in dirty memory.
    ///
    /// Blocks (4 KiB) that are written in part keep their other bytes. The caller must have zeroed (with
    /// [`Store::punch`]) whatever a previous, larger file size left behind; see `fs` on truncation.
    ///
    /// # Errors
    /// `NoSpace`, `Io` (reading the rest of a partly written block), `Suspended`.
    fn write(&self, tx: &Self::Tx<'_>, object: ObjectRef, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes a byte range read as zeros; whole blocks in it become holes and their space comes back. Bytes at the edges
    /// (parts of blocks) are zeroed in place when they hold data. `end` may be `u64::MAX` for "to the end".
    ///
    /// # Errors
    /// `Io` (reading a partly zeroed block), `NoSpace` (zeroing part of a block).
    fn punch(&self, tx: &Self::Tx<'_>, object: ObjectRef, range: Range<u64>) -> Result<()>;

    /// The first byte at or after `offset` that lies in a block with data, or `None`.
    ///
    /// # Errors
    /// `Io`.
    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>>;

    /// The first byte at or after `offset` that lies in a hole (knows no file size: the end of data is a hole).
    ///
    /// # Errors
    /// `Io`.
    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64>;

    /// Bytes of data blocks the object has, before redundancy, including blocks only in memory. For `st_blocks` of sparse
    /// files; exact after a commit, and at most too large by overwritten blocks before it.
    ///
    /// # Errors
    /// `Io`.
    fn allocated_bytes(&self, object: ObjectRef) -> Result<u64>;

    /// Deletes an object: every item whose key has this `object`, and its contents, in the background and over as many
    /// transaction groups as needed. The caller has put an item [`KIND_ORPHAN`] (object 0, offset = id) in this or an
    /// earlier transaction, which the store removes when done and picks up again after a crash. These deletions are not
    /// in the intent log: after a crash other items of the object may exist than before it.
    fn reap(&self, object: ObjectRef);

    /// First half of fsync: puts the object's contents, the items given (its inode and inline data as they are now;
    /// `None` deletes) and every namespace change so far on the way to stable storage. Called with the object's inode
    /// lock held shared, so that contents and items belong together, and without a transaction: it begins its own.
    ///
    /// # Errors
    /// `Io`, `Suspended`: nothing may be assumed durable.
    fn log_object(&self, object: ObjectRef, items: &[(Key, Option<Value>)]) -> Result<SyncTicket>;

    /// Second half of fsync: returns when everything up to the ticket is durable. Called without locks.
    ///
    /// # Errors
    /// `Io`, `Suspended`: nothing may be assumed durable.
    fn wait_durable(&self, ticket: SyncTicket) -> Result<()>;

    /// Makes everything so far durable (commits the transaction group). Called without a transaction.
    ///
    /// # Errors
    /// As [`Store::wait_durable`].
    fn sync_all(&self) -> Result<()>;

    /// Space.
    fn usage(&self) -> Usage;

    /// Whether [`Store::sync_all`] may make room: something was freed that is not available yet.
    fn space_may_return(&self) -> bool;

    /// Wall time, nanoseconds since the epoch.
    fn now_ns(&self) -> i64;

    /// A random number fixed for the life of the dataset, to key name hashes.
    fn hash_seed(&self) -> u64;

    /// Whether the dataset is read-only.
    fn read_only(&self) -> bool;
}
