//! Records and items in memory, for the tests of this module: they check what the pool and the dataset rely on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::extents::decode_extent;
use super::layer::Shape;
use super::*;
use crate::buf::BLOCK_SIZE;

/// Called in the middle of an operation, with no lock of the caller's in the way.
pub type Hook = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct Records {
    /// Row to contents.
    live: HashMap<u32, Vec<u8>>,
    next_row: u32,
    /// Freed by the txg that is syncing.
    freed: Vec<(u64, u32)>,
    /// Freed and committed, but kept by pins taken before.
    limbo: Vec<(u64, u32)>,
    pins: BTreeSet<u64>,
    next_pin: u64,
    physical: u64,
    reserved: u64,
    capacity: u64,
}

/// Records in memory. A read of a freed and unpinned record fails, and is remembered.
pub struct MemIo {
    records: Arc<Mutex<Records>>,
    pub dirty: AtomicI64,
    pub whole: AtomicU64,
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    pub stale_reads: AtomicU64,
    /// Called at every record write.
    pub hook: Mutex<Option<Hook>>,
    /// Called at the next read.
    pub read_hook: Mutex<Option<Hook>>,
    pub fail_writes: AtomicBool,
    /// Single blocks of rows that cannot be read.
    pub broken_blocks: Mutex<BTreeSet<(u32, u16)>>,
}

/// Cost on groups 1+2, 2+2 and 4+2.
fn cost(blocks: u32) -> u64 {
    let n = u64::from(blocks);
    (3 * n).min(n.div_ceil(2) * 4).min(n.div_ceil(4) * 6)
}

fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

impl MemIo {
    pub fn new(capacity: u64) -> Arc<MemIo> {
        Arc::new(MemIo {
            records: Arc::new(Mutex::new(Records { capacity, ..Records::default() })),
            dirty: AtomicI64::new(0),
            whole: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            stale_reads: AtomicU64::new(0),
            hook: Mutex::new(None),
            read_hook: Mutex::new(None),
            fail_writes: AtomicBool::new(false),
            broken_blocks: Mutex::new(BTreeSet::new()),
        })
    }

    /// The txg is durable: what it freed can be reused, as far as no pin holds it.
    pub fn commit(&self, txg: u64) {
        let mut records = self.records.lock();
        let now = records.next_pin;
        let due: Vec<_> = records.freed.extract_if(.., |(t, _)| *t <= txg).collect();
        records.limbo.extend(due.into_iter().map(|(_, row)| (now, row)));
        records.settle();
    }

    /// A crash: what the unfinished txg allocated, freed or reserved is forgotten.
    pub fn crash(&self, referenced: &BTreeSet<u32>) {
        let mut records = self.records.lock();
        records.freed.clear();
        let all: Vec<u32> = records.live.keys().copied().collect();
        for row in all {
            if !referenced.contains(&row) {
                records.remove(row);
            }
        }
        records.reserved = 0;
        self.dirty.store(0, SeqCst);
    }

    pub fn live(&self) -> BTreeSet<u32> {
        let records = self.records.lock();
        let pending: BTreeSet<u32> = records.freed.iter().chain(&records.limbo).map(|(_, row)| *row).collect();
        records.live.keys().copied().filter(|row| !pending.contains(row)).collect()
    }

    pub fn reserved(&self) -> u64 {
        self.records.lock().reserved
    }

    fn run_hook(&self) {
        let hook = self.hook.lock().take();
        if let Some(mut hook) = hook {
            hook();
            let mut slot = self.hook.lock();
            if slot.is_none() {
                *slot = Some(hook);
            }
        }
    }
}

impl Records {
    fn remove(&mut self, row: u32) {
        let bytes = self.live.remove(&row).expect("a record was freed twice");
        self.physical -= cost((bytes.len() / BLOCK_SIZE) as u32);
    }

    fn settle(&mut self) {
        let oldest = self.pins.first().copied().unwrap_or(u64::MAX);
        let due: Vec<_> = self.limbo.extract_if(.., |(at, _)| *at <= oldest).collect();
        for (_, row) in due {
            self.remove(row);
        }
    }
}

struct MemPin {
    records: Arc<Mutex<Records>>,
    id: u64,
}

impl Drop for MemPin {
    fn drop(&mut self) {
        let mut records = self.records.lock();
        records.pins.remove(&self.id);
        records.settle();
    }
}

impl RecordIo for MemIo {
    fn read(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        self.reads.fetch_add(1, SeqCst);
        let hook = self.read_hook.lock().take();
        if let Some(mut hook) = hook {
            hook();
        }
        for request in requests.iter_mut() {
            let records = self.records.lock();
            let row = request.pointer.row;
            let corrupt = || Error::new(ErrorKind::Corrupt, "record is not what was written");
            let Some(bytes) = records.live.get(&row) else {
                self.stale_reads.fetch_add(1, SeqCst);
                return Err(corrupt());
            };
            assert_eq!(bytes.len(), request.pointer.len_bytes());
            if request.pointer.checksums[0] != hash(bytes) {
                return Err(corrupt());
            }
            let blocks = request.first_block..request.first_block + (request.out.len() / BLOCK_SIZE) as u16;
            if self.broken_blocks.lock().iter().any(|(r, b)| *r == row && blocks.contains(b)) {
                return Err(corrupt());
            }
            assert!(!request.out.is_empty() && request.out.len().is_multiple_of(BLOCK_SIZE));
            let start = usize::from(request.first_block) * BLOCK_SIZE;
            request.out.copy_from_slice(&bytes[start..start + request.out.len()]);
        }
        Ok(())
    }

    fn write(&self, txg: u64, sources: &[BufSlice]) -> Result<Vec<Pointer>> {
        self.run_hook();
        if self.fail_writes.load(SeqCst) {
            return Err(Error::new(ErrorKind::Io, "made to fail"));
        }
        self.writes.fetch_add(1, SeqCst);
        let mut records = self.records.lock();
        let price: u64 = sources.iter().map(|s| cost((s.len() / BLOCK_SIZE) as u32)).sum();
        assert!(price <= records.reserved, "wrote {price} blocks with {} reserved", records.reserved);
        let mut pointers = Vec::new();
        for source in sources {
            assert!(source.as_ptr().addr().is_multiple_of(BLOCK_SIZE), "not aligned for direct I/O");
            assert!(!source.is_empty() && source.len().is_multiple_of(BLOCK_SIZE) && source.len() <= 256 * BLOCK_SIZE);
            let row = records.next_row;
            records.next_row += 1;
            records.live.insert(row, source.to_vec());
            let blocks = (source.len() / BLOCK_SIZE) as u16;
            records.physical += cost(u32::from(blocks));
            let checksums = vec![hash(source); usize::from(blocks).div_ceil(4)].into();
            pointers.push(Pointer { group: 0, row, birth: txg, blocks, width: 1, parity: 2, checksums });
        }
        assert!(records.physical <= records.capacity, "the pool is overfull in spite of reservations");
        Ok(pointers)
    }

    fn free(&self, txg: u64, pointer: &Pointer) {
        let mut records = self.records.lock();
        assert!(records.live.contains_key(&pointer.row), "free of a record that is not there");
        assert!(records.freed.iter().all(|(_, row)| *row != pointer.row), "a record was freed twice");
        records.freed.push((txg, pointer.row));
    }

    fn cost_blocks(&self, blocks: u32) -> u64 {
        cost(blocks)
    }

    fn reserve(&self, physical_blocks: u64, _intent: Intent) -> Result<()> {
        let mut records = self.records.lock();
        assert!(physical_blocks > 0);
        if records.physical + records.reserved + physical_blocks > records.capacity {
            return Err(Error::new(ErrorKind::NoSpace, "the pool is full"));
        }
        records.reserved += physical_blocks;
        Ok(())
    }

    fn release(&self, physical_blocks: u64) {
        let mut records = self.records.lock();
        assert!(records.reserved >= physical_blocks, "released more than was reserved");
        records.reserved -= physical_blocks;
    }

    fn account_dirty(&self, delta_bytes: i64) {
        let before = self.dirty.fetch_add(delta_bytes, SeqCst);
        assert!(before + delta_bytes >= 0);
    }

    fn whole_dirty(&self, bytes: u64) {
        self.whole.fetch_add(bytes, SeqCst);
    }

    fn pin(&self) -> Pin {
        let mut records = self.records.lock();
        let id = records.next_pin;
        records.next_pin += 1;
        records.pins.insert(id);
        Pin::new(MemPin { records: self.records.clone(), id })
    }
}

/// Items in memory. A scan is not atomic: it sees changes made while it goes.
#[derive(Default)]
pub struct MemItems {
    pub map: RwLock<BTreeMap<Key, Value>>,
    /// Called in the next scan, after its first item.
    pub scan_hook: Mutex<Option<Hook>>,
}

impl Items for MemItems {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        Ok(self.map.read().get(&key).cloned())
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        let mut found = Vec::new();
        let mut next = Some(from);
        while let Some(from) = next.filter(|from| found.len() < limit && *from <= to) {
            let item = self.map.read().range(from..=to).next().map(|(k, v)| (*k, v.clone()));
            next = item.as_ref().and_then(|(k, _)| k.successor());
            found.extend(item);
            let hook = if found.len() == 1 { self.scan_hook.lock().take() } else { None };
            if let Some(mut hook) = hook {
                hook();
            }
            if found.len() % 3 == 1 {
                std::thread::yield_now();
            }
        }
        Ok(found)
    }

    fn put_syncing(&self, key: Key, value: Value) {
        self.map.write().insert(key, value);
    }

    fn delete_syncing(&self, key: Key) {
        self.map.write().remove(&key);
        std::thread::yield_now();
    }
}

impl MemItems {
    /// Extents of an object; checks that they are well-formed and that the space item tells their sum.
    pub fn extents(&self, object: ObjectRef) -> Vec<(u64, Pointer)> {
        let shape = Shape::of(object).unwrap();
        let map = self.map.read();
        let range = Key::new(object.id, KIND_EXTENT, 0)..=Key::new(object.id, KIND_EXTENT, u64::MAX);
        let mut all: Vec<(u64, Pointer)> = Vec::new();
        let mut end = 0;
        for (key, value) in map.range(range) {
            let extent = decode_extent(shape, *key, value).unwrap();
            assert!(extent.block >= end, "extents overlap");
            end = extent.end();
            all.push((extent.block, extent.pointer));
        }
        let space =
            map.get(&Key::new(object.id, KIND_SPACE, 0)).map_or(0, |v| u64::from_le_bytes(v[..].try_into().unwrap()));
        assert_eq!(space, all.iter().map(|(_, p)| u64::from(p.blocks)).sum::<u64>(), "space item");
        all
    }

    /// Rows of all records that items name.
    pub fn referenced(&self) -> BTreeSet<u32> {
        let map = self.map.read();
        let extents = map.iter().filter(|(key, _)| key.kind == KIND_EXTENT);
        let mut rows = BTreeSet::new();
        for (_, value) in extents {
            assert!(rows.insert(Pointer::decode(value).unwrap().0.row), "two extents name one record");
        }
        rows
    }
}
