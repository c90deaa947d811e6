//! The changes of one transaction group: a concurrent, ordered map from key to new value or tombstone.
//!
//! The map is cut into shards by the key's object, so that operations on different objects rarely meet at a lock, and a
//! scan within one object (a directory, the extents of a file) needs only one shard.
//!
//! Every operation is atomic by itself. A scan is not a snapshot: it holds no lock between pages of items, so a change
//! made while it runs may or may not be seen; every item that is there from the scan's beginning to its end is seen,
//! exactly once. Whoever needs more holds a lock above (the inode's). When the transaction group has closed and the sync
//! thread has added its last item, nothing changes any more, and [`Memtable::batch`] is exact.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::tree::{Key, Value};

const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;

/// Memory charged for an item besides its value, in bytes: key and value slot in map nodes that are three quarters full.
const ITEM_OVERHEAD_BYTES: usize = 64;
/// Memory charged for a value besides its bytes: reference counts and the allocator's own.
const VALUE_OVERHEAD_BYTES: usize = 32;

/// Items a scan first takes from a shard under its lock; doubled with each page.
const PAGE_ITEMS_FIRST: usize = 16;
const PAGE_ITEMS_MAX: usize = 512;

type Shard = RwLock<BTreeMap<Key, Option<Value>>>;

/// What setting an item changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Items more than before: 0 or 1.
    pub items: u64,
    /// Memory more than before, in bytes; less if negative.
    pub bytes: i64,
}

/// The changes of one transaction group. `None` as a value is a tombstone: the item is deleted.
pub struct Memtable {
    shards: Box<[Shard]>,
    items: AtomicUsize,
    bytes: AtomicUsize,
}

impl Default for Memtable {
    fn default() -> Memtable {
        Memtable::new()
    }
}

fn charge(value: Option<&Value>) -> usize {
    ITEM_OVERHEAD_BYTES + value.map_or(0, |value| VALUE_OVERHEAD_BYTES + value.len())
}

fn shard_of(object: u64) -> usize {
    // Fibonacci hashing: the upper bits of the product depend on all bits of the object.
    (object.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SHARD_BITS)) as usize
}

impl Memtable {
    /// An empty memtable.
    pub fn new() -> Memtable {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Memtable { shards, items: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// Sets an item.
    pub fn put(&self, key: Key, value: Value) -> Growth {
        self.set(key, Some(value))
    }

    /// Deletes an item, whether it exists or not.
    pub fn delete(&self, key: Key) -> Growth {
        self.set(key, None)
    }

    /// Sets an item, or deletes it with `None`.
    pub fn set(&self, key: Key, value: Option<Value>) -> Growth {
        let added = charge(value.as_ref());
        let mut shard = self.shards[shard_of(key.object)].write();
        let before = shard.insert(key, value);
        // The counters change under the lock, so that what an item was charged is always there to be taken off.
        self.bytes.fetch_add(added, Ordering::Relaxed);
        let removed = match &before {
            Some(value) => {
                let removed = charge(value.as_ref());
                self.bytes.fetch_sub(removed, Ordering::Relaxed);
                removed
            }
            None => {
                self.items.fetch_add(1, Ordering::Relaxed);
                0
            }
        };
        drop(shard);
        Growth { items: u64::from(before.is_none()), bytes: added as i64 - removed as i64 }
    }

    /// What is known here about an item: `None` nothing, `Some(None)` that it is deleted, else its value.
    pub fn get(&self, key: Key) -> Option<Option<Value>> {
        self.shards[shard_of(key.object)].read().get(&key).cloned()
    }

    /// Items, tombstones included.
    pub fn len(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory the items take, overhead included, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The items with `from <= key <= to`, ascending, tombstones included. Takes pages of items at a time; within one
    /// object it takes one lock for each page.
    pub fn scan(&self, from: Key, to: Key) -> Scan<'_> {
        let mut scan = Scan { memtable: self, to, sources: Vec::new(), heap: BinaryHeap::new() };
        if from > to || self.is_empty() {
            return scan;
        }
        if from.object == to.object {
            scan.add(shard_of(from.object), from);
        } else {
            (0..SHARDS).for_each(|shard| scan.add(shard, from));
        }
        scan
    }

    /// At most `limit` items of one object with `from <= (kind, offset) <= to`, tombstones included.
    pub fn scan_object(&self, object: u64, from: (u8, u64), to: (u8, u64), limit: usize) -> Vec<(Key, Option<Value>)> {
        self.scan(Key::new(object, from.0, from.1), Key::new(object, to.0, to.1)).take(limit).collect()
    }

    /// Everything, ascending by key: the batch for [`tree::apply()`](crate::tree::apply()).
    pub fn batch(&self) -> Scan<'_> {
        self.scan(Key::MIN, Key::MAX)
    }
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memtable({} items, {} bytes)", self.len(), self.bytes())
    }
}

/// A range of a memtable in ascending order.
pub struct Scan<'a> {
    memtable: &'a Memtable,
    to: Key,
    sources: Vec<Source>,
    /// The first key of each source that has items left, smallest on top.
    heap: BinaryHeap<Reverse<(Key, usize)>>,
}

/// A page of one shard.
struct Source {
    shard: usize,
    page: VecDeque<(Key, Option<Value>)>,
    page_items: usize,
}

impl Source {
    /// Takes the next page; `from` is where the one before ended.
    fn fetch(&mut self, memtable: &Memtable, from: Bound<Key>, to: Key) {
        let shard = memtable.shards[self.shard].read();
        let items = shard.range((from, Bound::Included(to))).take(self.page_items);
        self.page.extend(items.map(|(key, value)| (*key, value.clone())));
        self.page_items = (self.page_items * 2).min(PAGE_ITEMS_MAX);
    }
}

impl<'a> Scan<'a> {
    fn add(&mut self, shard: usize, from: Key) {
        let mut source = Source { shard, page: VecDeque::new(), page_items: PAGE_ITEMS_FIRST };
        source.fetch(self.memtable, Bound::Included(from), self.to);
        if let Some((key, _)) = source.page.front() {
            self.heap.push(Reverse((*key, self.sources.len())));
            self.sources.push(source);
        }
    }

    /// The key of the next item.
    pub fn peek_key(&self) -> Option<Key> {
        self.heap.peek().map(|Reverse((key, _))| *key)
    }
}

impl Iterator for Scan<'_> {
    type Item = (Key, Option<Value>);

    fn next(&mut self) -> Option<(Key, Option<Value>)> {
        let mut top = self.heap.peek_mut()?;
        let Reverse((key, index)) = *top;
        let source = &mut self.sources[index];
        let item = source.page.pop_front();
        if source.page.is_empty() && key < self.to {
            source.fetch(self.memtable, Bound::Excluded(key), self.to);
        }
        match source.page.front() {
            Some((key, _)) => *top = Reverse((*key, index)),
            None => {
                std::collections::binary_heap::PeekMut::pop(top);
            }
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn value(len: usize) -> Value {
        vec![7; len].into()
    }

    fn key() -> impl Strategy<Value = Key> {
        (0u64..6, 0u8..3, 0u64..40).prop_map(|(object, kind, offset)| Key::new(object << 30, kind, offset))
    }

    proptest! {
        #[test]
        fn against_a_map(
            changes in proptest::collection::vec((key(), proptest::option::of(0usize..300)), 0..800),
            from in key(),
            to in key(),
        ) {
            let memtable = Memtable::new();
            let mut model = BTreeMap::new();
            let mut grown = Growth::default();
            for (key, len) in changes {
                let growth = match len {
                    Some(len) => memtable.put(key, value(len)),
                    None => memtable.delete(key),
                };
                grown = Growth { items: grown.items + growth.items, bytes: grown.bytes + growth.bytes };
                prop_assert_eq!((grown.items, grown.bytes), (memtable.len() as u64, memtable.bytes() as i64));
                model.insert(key, len.map(value));
                prop_assert_eq!(memtable.get(key), Some(len.map(value)));
            }
            prop_assert_eq!(memtable.len(), model.len());
            prop_assert_eq!(memtable.bytes(), model.values().map(|v| charge(v.as_ref())).sum::<usize>());
            prop_assert!(memtable.batch().eq(model.clone()));
            let range: Vec<_> = model.iter().filter(|(k, _)| (from..=to).contains(k)).map(|(k, v)| (*k, v.clone())).collect();
            prop_assert!(memtable.scan(from, to).eq(range));
            let of_object = memtable.scan_object(from.object, (from.kind, from.offset), (u8::MAX, u64::MAX), 25);
            let end = Key::new(from.object, u8::MAX, u64::MAX);
            prop_assert!(of_object.into_iter().eq(model.range(from..=end).take(25).map(|(k, v)| (*k, v.clone()))));
        }
    }

    #[test]
    fn the_largest_keys_are_scanned_once() {
        let memtable = Memtable::new();
        for offset in u64::MAX - 100..=u64::MAX {
            memtable.put(Key::new(u64::MAX, u8::MAX, offset), value(1));
        }
        assert_eq!(memtable.batch().count(), 101);
        assert_eq!(memtable.scan(Key::MAX, Key::MAX).count(), 1);
        assert_eq!(memtable.scan(Key::MAX, Key::MIN).count(), 0);
    }

    #[test]
    fn scans_during_changes_see_what_stays() {
        let memtable = Arc::new(Memtable::new());
        let stays = |i: u64| Key::new(i % 3, 0, i * 2);
        for i in 0..3000 {
            memtable.put(stays(i), value(8));
        }
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                let memtable = memtable.clone();
                scope.spawn(move || {
                    for i in 0..20_000u64 {
                        let key = Key::new(i % 3, 0, (i.wrapping_mul(7919) % 6000) | 1);
                        if (i + thread) % 2 == 0 {
                            memtable.put(key, value(3))
                        } else {
                            memtable.delete(key)
                        };
                    }
                });
            }
            for _ in 0..10 {
                let keys: Vec<Key> = memtable.batch().map(|(key, _)| key).collect();
                assert!(keys.is_sorted_by(|a, b| a < b));
                assert_eq!(keys.iter().filter(|k| k.offset % 2 == 0).count(), 3000);
            }
        });
        let charged: usize = memtable.batch().map(|(_, value)| charge(value.as_ref())).sum();
        assert_eq!((memtable.len(), memtable.bytes()), (memtable.batch().count(), charged));
    }

    #[test]
    fn objects_spread_over_the_shards() {
        let mut hits = [0; SHARDS];
        (1025..1025 + 6400).for_each(|object| hits[shard_of(object)] += 1);
        assert!(hits.iter().all(|n| (50..200).contains(n)), "{hits:?}");
    }
}
