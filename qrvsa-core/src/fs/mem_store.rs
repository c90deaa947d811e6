//! A [`Store`] in memory, for tests: of this layer, and of front ends.
//!
//! It keeps items in a map and contents in blocks of 4 KiB, limits space if told so, and models durability the way the
//! engine does: [`MemStore::commit`] is a transaction group, the changes since then are logged by transaction in order,
//! and [`MemStore::crash`] gives the state after replaying any number of logged transactions on the last commit.
//! Everything is behind one mutex; a transaction holds none, so it does not detect a lock taken while one is open.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::fs::inode::merge_content_fields;
use crate::fs::store::{
    Intent, KIND_ORPHAN, Log, ObjectRef, RESERVED_KIND_MIN, Store, SyncTicket, Usage, VALUE_BYTES_MAX, Value,
};
use crate::tree::Key;

const BLOCK: u64 = 4096;

type Blocks = BTreeMap<u64, Box<[u8]>>;

#[derive(Clone, Default)]
struct State {
    items: BTreeMap<Key, Value>,
    objects: BTreeMap<u64, Blocks>,
}

enum Change {
    Put(Key, Option<Value>, Log),
    Contents(u64, Blocks),
}

#[derive(Default)]
struct Inner {
    now: State,
    committed: State,
    /// Changes since the commit, each with the number of its transaction.
    log: Vec<(u64, Change)>,
    blocks_used: u64,
    /// Of them, freed but held back until the commit.
    blocks_held: u64,
}

impl Inner {
    fn commit(&mut self) {
        self.committed = self.now.clone();
        self.log.clear();
        self.blocks_used -= std::mem::take(&mut self.blocks_held);
    }
}

/// How often changes were put, by how they are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutCounts {
    /// [`Log::Always`].
    pub always: u64,
    /// [`Log::KeepContentFields`].
    pub keep_content_fields: u64,
    /// [`Log::WithObject`].
    pub with_object: u64,
    /// Calls of [`Store::log_object`].
    pub logged_objects: u64,
}

/// The store.
pub struct MemStore {
    inner: Mutex<Inner>,
    counts: Mutex<PutCounts>,
    next_id: AtomicU64,
    next_tx: AtomicU64,
    clock_ns: AtomicI64,
    tick_ns: AtomicI64,
    blocks_max: AtomicU64,
    writes_until_failure: AtomicU64,
    read_only: AtomicBool,
    keep_reaped: AtomicBool,
    hold_frees: AtomicBool,
    commits: AtomicU64,
    seed: u64,
}

/// A transaction of a [`MemStore`].
pub struct MemTx {
    number: u64,
}

impl Default for MemStore {
    fn default() -> MemStore {
        MemStore::new()
    }
}

impl MemStore {
    /// An empty store of 1 TiB, whose clock starts at 1,000,000 s and advances 1 µs at each look.
    pub fn new() -> MemStore {
        MemStore {
            inner: Mutex::default(),
            counts: Mutex::default(),
            next_id: AtomicU64::new(1025),
            next_tx: AtomicU64::new(1),
            clock_ns: AtomicI64::new(1_000_000_000_000_000),
            tick_ns: AtomicI64::new(1000),
            blocks_max: AtomicU64::new(1 << 28),
            writes_until_failure: AtomicU64::new(u64::MAX),
            read_only: AtomicBool::new(false),
            keep_reaped: AtomicBool::new(false),
            hold_frees: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            seed: 0x5eed,
        }
    }

    /// Sets how many bytes contents can have, in whole blocks; items are free of charge.
    pub fn set_capacity(&self, bytes: u64) {
        self.blocks_max.store(bytes / BLOCK, Ordering::SeqCst);
    }

    /// Lets this many writes of contents succeed, then one fail with `Io`.
    pub fn fail_write_after(&self, writes: u64) {
        self.writes_until_failure.store(writes, Ordering::SeqCst);
    }

    /// Makes it refuse transactions, or take them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::SeqCst);
    }

    /// Leaves what is reaped from now on where it is, as a store does that gives space back later.
    pub fn keep_reaped(&self, keep: bool) {
        self.keep_reaped.store(keep, Ordering::SeqCst);
    }

    /// Lets freed space come back with the next commit only, as in a store that never overwrites.
    pub fn hold_frees(&self, hold: bool) {
        self.hold_frees.store(hold, Ordering::SeqCst);
    }

    /// How often it was told to commit.
    pub fn commit_count(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    fn freed(&self, inner: &mut Inner, blocks: u64) {
        if self.hold_frees.load(Ordering::SeqCst) {
            inner.blocks_held += blocks;
        } else {
            inner.blocks_used -= blocks;
        }
    }

    /// Moves the clock.
    pub fn advance_ns(&self, ns: i64) {
        self.clock_ns.fetch_add(ns, Ordering::SeqCst);
    }

    /// Sets by how much the clock advances at each look.
    pub fn set_tick_ns(&self, ns: i64) {
        self.tick_ns.store(ns, Ordering::SeqCst);
    }

    /// What was put so far.
    pub fn put_counts(&self) -> PutCounts {
        *self.counts.lock()
    }

    /// Number of items, of any kind.
    pub fn item_count(&self) -> usize {
        self.inner.lock().now.items.len()
    }

    /// Number of blocks of contents.
    pub fn block_count(&self) -> u64 {
        self.inner.lock().blocks_used
    }

    /// Changes an item directly, to damage a filesystem.
    pub fn set_item(&self, key: Key, value: Option<Vec<u8>>) {
        let mut inner = self.inner.lock();
        match value {
            Some(value) => inner.now.items.insert(key, Arc::from(value)),
            None => inner.now.items.remove(&key),
        };
    }

    /// Makes everything so far durable, as a transaction group does.
    pub fn commit(&self) {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.inner.lock().commit();
    }

    /// How many transactions since the last commit logged something.
    pub fn logged_transactions(&self) -> usize {
        self.inner.lock().log.iter().map(|(tx, _)| *tx).collect::<BTreeSet<_>>().len()
    }

    /// What is there after a crash in which the first `transactions` logged ones had reached the log.
    pub fn crash(&self, transactions: usize) -> MemStore {
        let inner = self.inner.lock();
        let mut state = inner.committed.clone();
        let numbers: BTreeSet<u64> = inner.log.iter().map(|(tx, _)| *tx).collect();
        let survivors: BTreeSet<u64> = numbers.into_iter().take(transactions).collect();
        for (_, change) in inner.log.iter().filter(|(tx, _)| survivors.contains(tx)) {
            match change {
                Change::Contents(id, blocks) => {
                    state.objects.insert(*id, blocks.clone());
                }
                Change::Put(key, None, _) => {
                    state.items.remove(key);
                }
                Change::Put(key, Some(value), Log::KeepContentFields) => {
                    let merged = merge_content_fields(state.items.get(key).map(|v| &v[..]), value);
                    state.items.insert(*key, Arc::from(merged));
                }
                Change::Put(key, Some(value), _) => {
                    state.items.insert(*key, value.clone());
                }
            }
        }
        let after = MemStore::new();
        after.next_id.store(self.next_id.load(Ordering::SeqCst), Ordering::SeqCst);
        after.clock_ns.store(self.clock_ns.load(Ordering::SeqCst), Ordering::SeqCst);
        let orphans: Vec<u64> = state.items.keys().filter(|k| k.kind == KIND_ORPHAN).map(|k| k.offset).collect();
        {
            let mut new = after.inner.lock();
            new.blocks_used = state.objects.values().map(|b| b.len() as u64).sum();
            new.committed = state.clone();
            new.now = state;
        }
        for id in orphans {
            after.reap(ObjectRef { id, record_size: 4096 });
        }
        after.commit();
        after
    }

    fn write_blocks(&self, id: u64, offset: u64, data: &[u8]) -> Result<()> {
        if self.writes_until_failure.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Io, "a write was told to fail"));
        }
        if data.is_empty() {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        let (first, last) = (offset / BLOCK, (offset + data.len() as u64 - 1) / BLOCK);
        let present = inner.now.objects.get(&id).map_or(0, |b| b.range(first..=last).count() as u64);
        let added = last - first + 1 - present;
        if inner.blocks_used + added > self.blocks_max.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::NoSpace, "the store is full"));
        }
        inner.blocks_used += added;
        let blocks = inner.now.objects.entry(id).or_default();
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let within = (at % BLOCK) as usize;
            let len = rest.len().min(BLOCK as usize - within);
            let block = blocks.entry(at / BLOCK).or_insert_with(|| vec![0; BLOCK as usize].into());
            block[within..within + len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            at += len as u64;
        }
        Ok(())
    }

    fn record(&self, tx: &MemTx, key: Key, value: Option<Value>, log: Log) {
        assert!(key.kind < RESERVED_KIND_MIN, "kind {} belongs to the object layer", key.kind);
        assert!(value.as_ref().is_none_or(|v| v.len() <= VALUE_BYTES_MAX), "value too large at {key:?}");
        {
            let mut counts = self.counts.lock();
            match log {
                Log::Always => counts.always += 1,
                Log::KeepContentFields => counts.keep_content_fields += 1,
                Log::WithObject => counts.with_object += 1,
            }
        }
        let mut inner = self.inner.lock();
        match &value {
            Some(value) => inner.now.items.insert(key, value.clone()),
            None => inner.now.items.remove(&key),
        };
        if log != Log::WithObject {
            inner.log.push((tx.number, Change::Put(key, value, log)));
        }
    }
}

impl Store for MemStore {
    type Tx<'a> = MemTx;

    fn begin(&self, intent: Intent) -> Result<MemTx> {
        if self.read_only() {
            return Err(Error::new(ErrorKind::ReadOnly, "read-only"));
        }
        if intent == Intent::Grow && self.inner.lock().blocks_used >= self.blocks_max.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::NoSpace, "the store is full"));
        }
        Ok(MemTx { number: self.next_tx.fetch_add(1, Ordering::SeqCst) })
    }

    fn get(&self, key: Key) -> Result<Option<Value>> {
        Ok(self.inner.lock().now.items.get(&key).cloned())
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        if from > to {
            return Ok(Vec::new());
        }
        let inner = self.inner.lock();
        Ok(inner.now.items.range(from..=to).take(limit).map(|(k, v)| (*k, v.clone())).collect())
    }

    fn put(&self, tx: &MemTx, key: Key, value: Value, log: Log) {
        self.record(tx, key, Some(value), log);
    }

    fn delete(&self, tx: &MemTx, key: Key, log: Log) {
        self.record(tx, key, None, log);
    }

    fn new_object_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::SeqCst)
    }

    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let inner = self.inner.lock();
        let Some(blocks) = inner.now.objects.get(&object.id) else { return Ok(()) };
        let end = offset + buf.len() as u64;
        for (&number, block) in blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let from = (number * BLOCK).max(offset);
            let to = ((number + 1) * BLOCK).min(end);
            let within = (from - number * BLOCK) as usize;
            let len = (to - from) as usize;
            let at = (from - offset) as usize;
            buf[at..at + len].copy_from_slice(&block[within..within + len]);
        }
        Ok(())
    }

    fn write(&self, _tx: &MemTx, object: ObjectRef, offset: u64, data: &[u8]) -> Result<()> {
        self.write_blocks(object.id, offset, data)
    }

    fn punch(&self, _tx: &MemTx, object: ObjectRef, range: Range<u64>) -> Result<()> {
        let mut inner = self.inner.lock();
        let Some(blocks) = inner.now.objects.get_mut(&object.id) else { return Ok(()) };
        let mut freed = 0;
        let touched: Vec<u64> = blocks.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).map(|(n, _)| *n).collect();
        for number in touched {
            let from = range.start.saturating_sub(number * BLOCK).min(BLOCK) as usize;
            let to = range.end.saturating_sub(number * BLOCK).min(BLOCK) as usize;
            if (from, to) == (0, BLOCK as usize) {
                blocks.remove(&number);
                freed += 1;
            } else if let Some(block) = blocks.get_mut(&number) {
                block[from..to].fill(0);
            }
        }
        self.freed(&mut inner, freed);
        Ok(())
    }

    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        let inner = self.inner.lock();
        let next = inner.now.objects.get(&object.id).and_then(|b| b.range(offset / BLOCK..).next().map(|(n, _)| *n));
        Ok(next.map(|n| offset.max(n * BLOCK)))
    }

    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        let inner = self.inner.lock();
        let mut number = offset / BLOCK;
        while inner.now.objects.get(&object.id).is_some_and(|b| b.contains_key(&number)) {
            number += 1;
        }
        Ok(offset.max(number * BLOCK))
    }

    fn allocated_bytes(&self, object: ObjectRef) -> Result<u64> {
        Ok(self.inner.lock().now.objects.get(&object.id).map_or(0, |b| b.len() as u64 * BLOCK))
    }

    fn reap(&self, object: ObjectRef) {
        if self.keep_reaped.load(Ordering::SeqCst) {
            return;
        }
        // Not logged: what is to be deleted after a crash is decided on the state then.
        let mut inner = self.inner.lock();
        let mut keys: Vec<Key> = inner
            .now
            .items
            .range(Key::new(object.id, 0, 0)..=Key::new(object.id, u8::MAX, u64::MAX))
            .map(|(k, _)| *k)
            .collect();
        keys.push(Key::new(0, KIND_ORPHAN, object.id));
        for key in keys {
            inner.now.items.remove(&key);
        }
        if let Some(blocks) = inner.now.objects.remove(&object.id) {
            self.freed(&mut inner, blocks.len() as u64);
        }
    }

    fn log_object(&self, object: ObjectRef, items: &[(Key, Option<Value>)]) -> Result<SyncTicket> {
        let tx = self.begin(Intent::Shrink)?;
        self.counts.lock().logged_objects += 1;
        let mut inner = self.inner.lock();
        let blocks = inner.now.objects.get(&object.id).cloned().unwrap_or_default();
        inner.log.push((tx.number, Change::Contents(object.id, blocks)));
        for (key, value) in items {
            if value.as_ref().is_some_and(|v| v.len() > VALUE_BYTES_MAX) {
                return Err(Error::posix(Errno::EINVAL));
            }
            inner.log.push((tx.number, Change::Put(*key, value.clone(), Log::Always)));
        }
        Ok(SyncTicket(tx.number))
    }

    fn wait_durable(&self, _ticket: SyncTicket) -> Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        self.commit();
        Ok(())
    }

    fn usage(&self) -> Usage {
        let max = self.blocks_max.load(Ordering::SeqCst);
        let free = max.saturating_sub(self.inner.lock().blocks_used) * BLOCK;
        Usage { total_bytes: max * BLOCK, free_bytes: free, available_bytes: free }
    }

    fn space_may_return(&self) -> bool {
        self.inner.lock().blocks_held > 0
    }

    fn now_ns(&self) -> i64 {
        let tick = self.tick_ns.load(Ordering::Relaxed);
        self.clock_ns.fetch_add(tick, Ordering::SeqCst)
    }

    fn hash_seed(&self) -> u64 {
        self.seed
    }

    fn read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }
}
