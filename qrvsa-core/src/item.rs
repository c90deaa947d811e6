//! The words that the layers from the object layer up share: items, objects, and what a transaction is for.

use std::sync::Arc;

/// The bytes of an item, at most [`VALUE_BYTES_MAX`].
pub type Value = Arc<[u8]>;

/// Largest value of an item.
pub const VALUE_BYTES_MAX: usize = 6 * 1024;

/// What a transaction will do to free space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// May need new space: fails with `NoSpace` when only the reserve is left.
    Grow,
    /// Needs new space that was set aside before (a reserved volume): admitted however full the pool is for others.
    Claimed,
    /// Gives space back or is needed to do so (unlink, truncate down, release): always admitted.
    Shrink,
}

/// How an item change is kept in the intent log between two transaction groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    /// Namespace change: logged, in order, before any later fsync of whatever object is acknowledged.
    Always,
    /// As `Always`, but for an inode whose contents may not be in the log yet: on replay, the fields that describe
    /// contents (size, allocation, mtime by writes, inline flag) are kept as they are on disk. Uses the dataset's merge
    /// function.
    KeepContentFields,
    /// Part of an object's contents: logged only by `Store::log_object` of that object.
    WithObject,
}

/// An object whose contents are addressed by byte offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRef {
    /// Object number, the `object` of its keys.
    pub id: u64,
    /// Largest record of this object in bytes, a power of two from 4 KiB to 1 MiB. Fixed for the object's life.
    pub record_size: u32,
}

/// Space as `statfs` shows it, in bytes a user can store (redundancy already taken off).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Usable size of the pool for this dataset.
    pub total_bytes: u64,
    /// Of that, free: the same as `available_bytes`, as what only the reserve may use counts as used.
    pub free_bytes: u64,
    /// Of that, available to writers.
    pub available_bytes: u64,
}

/// A point in the intent log, from `Store::log_object` to `Store::wait_durable`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SyncTicket(pub u64);

/// First kind that belongs to the object layer.
pub const RESERVED_KIND_MIN: u8 = 200;
/// Kind of the items that list deleted objects: key (0, KIND_ORPHAN, object id), value: record size as u32 LE.
pub const KIND_ORPHAN: u8 = 199;
