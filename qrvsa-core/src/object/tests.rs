//! The module against a plain model, over records and items in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use proptest::prelude::*;

use super::testing::{MemIo, MemItems};
use super::*;
use crate::buf::BLOCK_SIZE;
use crate::item::KIND_ORPHAN;

const B: u64 = BLOCK_SIZE as u64;

/// A plain object: bytes, and which blocks are data.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    bytes: Vec<u8>,
    data: Vec<bool>,
}

impl Model {
    fn new(blocks: u64) -> Model {
        Model { bytes: vec![0; (blocks * B) as usize], data: vec![false; blocks as usize] }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        for block in offset / B..(offset + data.len() as u64).div_ceil(B) {
            self.data[block as usize] = true;
        }
    }

    fn punch(&mut self, range: Range<u64>) {
        let end = range.end.min(self.bytes.len() as u64);
        if range.start >= end {
            return;
        }
        self.bytes[range.start as usize..end as usize].fill(0);
        for block in range.start.div_ceil(B)..end / B {
            self.data[block as usize] = false;
        }
    }

    fn next(&self, offset: u64, data: bool) -> Option<u64> {
        (offset / B..self.data.len() as u64).find(|&b| self.data[b as usize] == data).map(|b| offset.max(b * B))
    }
}

/// A world with one pool, one dataset and some objects.
struct World {
    io: Arc<MemIo>,
    items: Arc<MemItems>,
    objects: Arc<Objects>,
    /// The open txg; one less may be unsynced.
    txg: u64,
}

impl World {
    fn new(capacity: u64) -> World {
        let (io, items) = (MemIo::new(capacity), Arc::new(MemItems::default()));
        let objects = World::open(&io, &items);
        World { io, items, objects, txg: 10 }
    }

    fn open(io: &Arc<MemIo>, items: &Arc<MemItems>) -> Arc<Objects> {
        let mut objects = Objects::new(io.clone(), items.clone());
        // Small, so that there are several batches.
        objects.batch_bytes = 16 << 10;
        Arc::new(objects)
    }

    /// Syncs the txg before the open one.
    fn sync_closed(&self) -> SyncStats {
        let stats = self.objects.sync_txg(self.txg - 1, 10).unwrap();
        assert_eq!(stats.blocks_unreserved, 0);
        self.io.commit(self.txg - 1);
        stats
    }

    /// Closes the open txg and syncs it.
    fn sync(&mut self) -> SyncStats {
        self.txg += 1;
        self.sync_closed()
    }

    fn read(&self, object: ObjectRef, offset: u64, len: usize) -> Vec<u8> {
        // Dirt shows what was not filled.
        let mut buf = vec![0xee; len];
        self.objects.read(object, offset, &mut buf).unwrap();
        buf
    }

    fn write(&self, object: ObjectRef, offset: u64, data: &[u8]) {
        self.objects.write(self.txg, object, offset, data).unwrap();
    }

    fn punch(&self, object: ObjectRef, range: Range<u64>) {
        self.objects.punch(self.txg, object, range).unwrap();
    }

    /// Checks what must hold when nothing is dirty.
    fn assert_clean(&self) {
        assert_eq!(self.io.reserved(), 0, "reservations are left");
        assert_eq!(self.objects.dirty_bytes(), 0);
        assert_eq!(self.io.dirty.load(SeqCst), 0);
        assert_eq!(self.io.live(), self.items.referenced(), "records are leaked or missing");
        assert_eq!(self.io.stale_reads.load(SeqCst), 0);
        assert!(self.objects.shards.iter().all(|s| s.objects.read().is_empty()), "entries of clean objects are left");
    }
}

fn object(id: u64, record_size: u32) -> ObjectRef {
    ObjectRef { id, record_size }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (seed.wrapping_mul(0x9e37_79b9).wrapping_add(i * 7 + i / 4096) >> 3) as u8 | 1).collect()
}

#[test]
fn write_read_sync_read() {
    for record_size in [4 << 10, 16 << 10, 128 << 10, 1 << 20] {
        let mut w = World::new(u64::MAX / 2);
        let o = object(2000, record_size);
        let data = pattern(1, 3 << 20);
        w.write(o, 0, &data);
        assert_eq!(w.read(o, 0, data.len()), data);
        assert_eq!(w.objects.allocated_bytes(o).unwrap(), 3 << 20);
        let stats = w.sync();
        assert_eq!(stats.blocks_read, 0);
        assert_eq!(stats.records_written, (3 << 20) / u64::from(record_size));
        w.assert_clean();
        let reads = w.io.reads.load(SeqCst);
        assert_eq!(w.read(o, 0, data.len()), data);
        assert_eq!(w.io.reads.load(SeqCst), reads + 1, "one batch");
        assert_eq!(w.read(o, 12345, 700_001), data[12345..712_346]);
        assert_eq!(w.objects.allocated_bytes(o).unwrap(), 3 << 20);
        assert_eq!(w.items.extents(o).len(), (3 << 20) / record_size as usize);
    }
}

#[test]
fn sequential_write_reserves_its_real_cost() {
    let w = World::new(u64::MAX / 2);
    let o = object(2000, 128 << 10);
    for i in 0..64u64 {
        w.write(o, i << 20, &pattern(i, 1 << 20));
    }
    assert_eq!(w.io.reserved(), 64 * 256 * 6 / 4);
    // Small appends end with the same.
    let o = object(2001, 128 << 10);
    for i in 0..64u64 {
        w.write(o, i * 5000, &pattern(i, 5000));
    }
    let blocks = (64u64 * 5000).div_ceil(B);
    assert!(w.io.reserved() - 64 * 256 * 6 / 4 <= (blocks + 6) * 6 / 4);
}

#[test]
fn large_slots_that_get_whole_are_counted_once() {
    let mut w = World::new(u64::MAX / 2);
    let count = |w: &World| w.io.whole.load(SeqCst) >> 10;
    let o = object(2000, 128 << 10);
    w.write(o, 0, &pattern(1, 124 << 10));
    assert_eq!(count(&w), 0);
    w.write(o, 124 << 10, &pattern(1, 4 << 10));
    assert_eq!(count(&w), 128, "filled by two writes");
    w.write(o, 0, &pattern(2, 300 << 10));
    assert_eq!(count(&w), 256, "only the second is new, the third is begun");
    w.sync();
    w.write(o, 0, &pattern(3, 384 << 10));
    assert_eq!(count(&w), 640, "written anew, they are dirty anew");
    let small = object(2001, 32 << 10);
    (0..12).for_each(|slot| w.write(small, slot << 15, &pattern(3, 32 << 10)));
    assert_eq!(count(&w), 640, "small slots do not count by themselves");
    w.write(small, 384 << 10, &pattern(3, 100 << 10));
    assert_eq!(count(&w), 736, "three of a long write do");
}

#[test]
fn layers_over_each_other() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 64 << 10);
    let mut m = Model::new(64);
    let step = |w: &World, m: &mut Model, seed: u64, at: u64, len: usize| {
        w.write(o, at, &pattern(seed, len));
        m.write(at, &pattern(seed, len));
    };
    step(&w, &mut m, 1, 0, 64 * BLOCK_SIZE);
    w.sync();
    // In N: overwrite and punch; in N + 1: punch a part of both and write a part again.
    step(&w, &mut m, 2, 5 * B + 77, 20 * BLOCK_SIZE);
    w.punch(o, 30 * B..50 * B + 9);
    m.punch(30 * B..50 * B + 9);
    w.txg += 1;
    let closed = m.clone();
    w.punch(o, 10 * B + 1..32 * B);
    m.punch(10 * B + 1..32 * B);
    step(&w, &mut m, 3, 12 * B + 5, 3 * BLOCK_SIZE);
    step(&w, &mut m, 4, 49 * B, 100);
    assert_eq!(w.read(o, 0, m.bytes.len()), m.bytes);
    w.sync_closed();
    assert_eq!(w.read(o, 0, m.bytes.len()), m.bytes);
    // What is on disk is txg N.
    let disk = World { io: w.io.clone(), items: w.items.clone(), objects: World::open(&w.io, &w.items), txg: 0 };
    assert_eq!(disk.read(o, 0, m.bytes.len()), closed.bytes);
    w.sync();
    assert_eq!(w.read(o, 0, m.bytes.len()), m.bytes);
    w.assert_clean();
}

#[test]
fn truncating_a_big_object_only_frees() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 16 << 10);
    w.write(o, 0, &pattern(1, 8 << 20));
    w.sync();
    let writes = w.io.writes.load(SeqCst);
    w.punch(o, 0..u64::MAX);
    assert_eq!(w.objects.allocated_bytes(o).unwrap(), 0);
    assert_eq!(w.objects.next_data(o, 0).unwrap(), None);
    assert_eq!(w.io.reserved(), 0);
    let stats = w.sync();
    assert_eq!((stats.extents_freed, stats.slots), (512, 0));
    assert_eq!(w.io.writes.load(SeqCst), writes);
    assert!(w.items.extents(o).is_empty());
    w.assert_clean();
    // Truncating what is empty leaves nothing to do.
    w.punch(o, 100..u64::MAX);
    w.assert_clean();
}

#[test]
fn no_space_leaves_everything_as_it_was() {
    let mut w = World::new(600);
    let o = object(2000, 128 << 10);
    let data = pattern(1, 1 << 20);
    w.write(o, 0, &data);
    w.sync();
    // 384 are used; 256 blocks cost 384 more.
    let (reserved, dirty) = (w.io.reserved(), w.objects.dirty_bytes());
    let error = w.objects.write(w.txg, o, 4096 * 3 + 5, &pattern(2, 1 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!((w.io.reserved(), w.objects.dirty_bytes()), (reserved, dirty));
    assert_eq!(w.read(o, 0, data.len()), data);
    w.assert_clean();
    // Freeing is always possible, and makes room.
    w.punch(o, 4096..u64::MAX);
    w.sync();
    w.write(o, 0, &pattern(2, 1 << 20));
    w.sync();
    assert_eq!(w.read(o, 0, data.len()), pattern(2, 1 << 20));
    w.assert_clean();
}

#[test]
fn reap_deletes_everything_over_several_txgs() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 4 << 10);
    let other = object(2001, 4 << 10);
    w.write(other, 0, &pattern(9, 8192));
    w.write(o, 0, &pattern(1, 25 * BLOCK_SIZE));
    w.items.put_syncing(Key::new(2000, 1, 0), Arc::from(*b"inode"));
    w.items.put_syncing(Key::new(2000, 255, u64::MAX), Arc::from(*b"last"));
    w.items.put_syncing(Key::new(0, KIND_ORPHAN, 2000), Arc::from(*b"\0\x10\0\0"));
    w.sync();
    w.write(o, 0, &pattern(2, 3 * BLOCK_SIZE));
    w.txg += 1;
    w.write(o, 0, &pattern(3, 7 * BLOCK_SIZE));
    w.objects.reap(w.txg, o);
    // The txg before does not contain the deletion.
    let stats = w.sync_closed();
    assert_eq!((stats.objects_reaped, stats.reaping), (0, 0));
    assert_eq!(w.items.extents(o).len(), 25);
    // 25 extents, inode, last and space item, ten at a time.
    for _ in 0..2 {
        let stats = w.sync();
        assert_eq!((stats.objects_reaped, stats.reaping), (0, 1));
        assert!(w.items.map.read().contains_key(&Key::new(0, KIND_ORPHAN, 2000)));
    }
    assert_eq!(w.sync().objects_reaped, 1);
    assert!(w.items.map.read().keys().all(|k| k.object == 2001));
    assert_eq!(w.read(other, 0, 8192), pattern(9, 8192));
    w.assert_clean();
}

#[test]
fn failed_sync_keeps_data_readable_and_refuses_changes() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 16 << 10);
    w.write(o, 0, &pattern(1, 100_000));
    w.io.fail_writes.store(true, SeqCst);
    w.txg += 1;
    w.write(o, 50_000, &pattern(2, 100_000));
    assert_eq!(w.objects.sync_txg(w.txg - 1, 10).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(w.read(o, 50_000, 100_000), pattern(2, 100_000));
    assert_eq!(w.read(o, 0, 50_000), pattern(1, 100_000)[..50_000]);
    let refused = [
        w.objects.write(w.txg, o, 0, &[1]).unwrap_err(),
        w.objects.punch(w.txg, o, 0..10).unwrap_err(),
        w.objects.sync_txg(w.txg, 10).unwrap_err(),
    ];
    assert!(refused.iter().all(|e| e.kind() == ErrorKind::Suspended));
}

#[test]
fn unreadable_neighbours_do_not_stop_a_sync_and_stay_unreadable() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 64 << 10);
    w.write(o, 0, &pattern(1, 64 << 10));
    w.sync();
    let row = w.items.extents(o)[0].1.row;
    w.io.broken_blocks.lock().extend([(row, 3), (row, 4), (row, 15)]);
    w.write(o, 8 * B, &pattern(2, 4096));
    let stats = w.sync();
    assert_eq!(stats.blocks_unreadable, 3);
    let mut expected = pattern(1, 64 << 10);
    expected[8 * BLOCK_SIZE..9 * BLOCK_SIZE].copy_from_slice(&pattern(2, 4096));
    for block in 0..16 {
        let mut buf = vec![0; BLOCK_SIZE];
        let result = w.objects.read(o, block * B, &mut buf);
        match block {
            3 | 4 | 15 => assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt),
            _ => {
                result.unwrap();
                assert_eq!(buf, expected[block as usize * BLOCK_SIZE..][..BLOCK_SIZE]);
            }
        }
    }
    assert_eq!(w.objects.write(w.txg, o, 3 * B + 1, &[1]).unwrap_err().kind(), ErrorKind::Corrupt);
    // A whole overwrite heals.
    w.write(o, 0, &expected);
    w.sync();
    assert_eq!(w.read(o, 0, 64 << 10), expected);
    w.assert_clean();
}

#[test]
fn bad_arguments() {
    let w = World::new(1000);
    let kind = |e: Error| e.kind();
    let mut buf = [0; 10];
    for size in [0, 1, 4095, 12288, 2 << 20] {
        assert_eq!(kind(w.objects.read(object(1, size), 0, &mut buf).unwrap_err()), ErrorKind::Invalid);
    }
    let o = object(1, 4096);
    assert_eq!(kind(w.objects.read(o, u64::MAX - 3, &mut buf).unwrap_err()), ErrorKind::Invalid);
    assert_eq!(kind(w.objects.write(w.txg, o, (1 << 63) - 5, &buf).unwrap_err()), ErrorKind::Invalid);
    assert_eq!(kind(w.objects.write(w.txg, o, u64::MAX, &buf).unwrap_err()), ErrorKind::Invalid);
    w.objects.write(w.txg, o, (1 << 63) - 10, &[7; 10]).unwrap();
    w.objects.read(o, (1 << 63) - 10, &mut buf).unwrap();
    assert_eq!(buf, [7; 10]);
    assert_eq!(w.objects.next_data(o, 0).unwrap(), Some((1 << 63) - 4096));
    assert_eq!(w.objects.next_hole(o, (1 << 63) - 10).unwrap(), 1 << 63);
    assert_eq!(w.objects.next_hole(o, u64::MAX).unwrap(), u64::MAX);
    assert_eq!(w.objects.next_data(o, u64::MAX).unwrap(), None);
    w.objects.write(w.txg, o, 0, &[]).unwrap();
    w.objects.read(o, 0, &mut []).unwrap();
    w.objects.punch(w.txg, o, 10..10).unwrap();
    assert_eq!(kind(w.objects.write(w.txg, object(1, 8192), 0, &buf).unwrap_err()), ErrorKind::Invalid);
}

#[test]
fn log_takes_every_change_once() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 16 << 10);
    w.write(o, 0, &pattern(1, 10_000));
    assert!(w.objects.take_unlogged(o, 0..u64::MAX, 3 * B - 1).too_much);
    let first = w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX);
    assert_eq!((first.ops.len(), first.committing), (1, None));
    assert!(w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX).ops.is_empty());
    w.punch(o, 4096..8192);
    w.write(o, 40_960, &[5; 4096]);
    let txg = w.txg;
    w.txg += 1;
    w.write(o, 0, &[6; 10]);
    // Both layers, the older first.
    let ops = w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX).ops;
    assert!(matches!(&ops[0], LogOp::Punch { txg: t, range } if *t == txg && *range == (4096..8192)));
    assert!(matches!(&ops[1], LogOp::Write { txg: t, offset: 40_960, .. } if *t == txg));
    assert!(matches!(&ops[2], LogOp::Write { txg: t, offset: 0, data } if *t == txg + 1 && data.len() == 4096));
    assert_eq!(ops.len(), 3);
    // Written out without having been logged: the commit has to be waited for.
    w.write(o, 0, &[7; 10]);
    w.sync_closed();
    let txg = w.txg;
    w.sync();
    let after = w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX);
    assert_eq!((after.ops.len(), after.committing), (0, Some(txg)));
    w.sync();
    assert_eq!(w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX).committing, None);
    w.assert_clean();
}

/// Taking a part leaves the rest for later, and needs no commit when the open txg holds all of that part.
#[test]
fn log_takes_a_range() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 16 << 10);
    w.write(o, 0, &pattern(1, 40_960));
    w.punch(o, 8192..16_384);
    let part = w.objects.take_unlogged(o, 12_288..20_480, u64::MAX);
    assert!(matches!(&part.ops[0], LogOp::Punch { range, .. } if *range == (12_288..16_384)));
    assert!(matches!(&part.ops[1], LogOp::Write { offset: 16_384, data, .. } if data.len() == 4096));
    assert_eq!(part.ops.len(), 2);
    let rest = w.objects.take_unlogged(o, 0..u64::MAX, u64::MAX).ops;
    assert!(matches!(&rest[0], LogOp::Punch { range, .. } if *range == (8192..12_288)));
    assert!(matches!(&rest[1], LogOp::Write { offset: 0, data, .. } if data.len() == 8192));
    assert!(matches!(&rest[2], LogOp::Write { offset: 20_480, data, .. } if data.len() == 12_288));
    assert!(matches!(&rest[3], LogOp::Write { offset: 32_768, data, .. } if data.len() == 8192));
    assert_eq!(rest.len(), 4);
    w.write(o, 0, &[7; 8192]);
    w.sync_closed();
    w.sync();
    w.write(o, 0, &[8; 4096]);
    let part = w.objects.take_unlogged(o, 0..4096, u64::MAX);
    assert_eq!((part.ops.len(), part.committing), (1, None));
    assert!(w.objects.take_unlogged(o, 0..8192, u64::MAX).committing.is_some());
    w.sync();
    w.assert_clean();
}

/// A scan that meets a sync half-way sees the extents before or after it, not half of each.
#[test]
fn scan_over_a_sync() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 64 << 10);
    w.write(o, 0, &pattern(1, 4 * BLOCK_SIZE));
    w.write(o, 5 * B, &pattern(2, 11 * BLOCK_SIZE));
    w.sync();
    assert_eq!(w.items.extents(o).len(), 2);
    let mut expected = w.read(o, 0, 64 << 10);
    // Joins both extents to one: the second item goes.
    w.write(o, 4 * B, &pattern(3, BLOCK_SIZE));
    expected[4 * BLOCK_SIZE..5 * BLOCK_SIZE].copy_from_slice(&pattern(3, BLOCK_SIZE));
    let (objects, closed) = (w.objects.clone(), w.txg);
    w.txg += 1;
    *w.items.scan_hook.lock() = Some(Box::new(move || assert_eq!(objects.sync_txg(closed, 0).unwrap().slots, 1)));
    assert!(w.read(o, 0, 64 << 10) == expected);
    w.io.commit(closed);
    assert_eq!(w.items.extents(o).len(), 1);
    w.assert_clean();

    // The same for the reservation of a write: its slot is rewritten by a sync during its look-up.
    w.write(o, 0, &[7; 10]);
    w.punch(o, 6 * B..7 * B);
    let (objects, closed) = (w.objects.clone(), w.txg);
    w.txg += 1;
    *w.items.scan_hook.lock() = Some(Box::new(move || assert_eq!(objects.sync_txg(closed, 0).unwrap().slots, 1)));
    w.write(o, 8 * B, &pattern(4, BLOCK_SIZE));
    w.io.commit(closed);
    w.sync();
    w.assert_clean();
}

/// What was looked up about a slot before a sync rewrote it does not count afterwards.
#[test]
fn lookup_before_a_sync_is_stale() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 64 << 10);
    let shape = Shape::of(o).unwrap();
    w.write(o, 0, &[1; 10]);
    let closed = w.txg;
    w.txg += 1;
    let mut known = write::Known::default();
    w.objects.learn(o, shape, &mut known, &[], &[0]).unwrap();
    let knows = |w: &World| {
        let found = w.objects.find_or_insert(o, shape).unwrap();
        let mut state = found.state.lock();
        state.switch_to(w.txg);
        let knows = w.objects.knows(&found, &state, &known, &[], &[0]);
        drop(state);
        w.objects.forget_if_clean(&found);
        knows
    };
    assert!(knows(&w));
    w.sync_closed();
    assert_eq!(closed + 1, w.txg);
    assert!(!knows(&w));
    w.assert_clean();
}

/// Records that are freed, and committed as free, between look-up and read are still there.
#[test]
fn read_over_a_commit() {
    let mut w = World::new(u64::MAX / 2);
    let o = object(2000, 64 << 10);
    let data = pattern(1, 64 << 10);
    w.write(o, 0, &data);
    w.sync();
    let (objects, io, txg) = (w.objects.clone(), w.io.clone(), w.txg);
    *w.io.read_hook.lock() = Some(Box::new(move || {
        objects.punch(txg, o, 0..u64::MAX).unwrap();
        objects.sync_txg(txg, 0).unwrap();
        io.commit(txg);
    }));
    w.txg += 1;
    assert_eq!(w.read(o, 0, 64 << 10), data);
    assert_eq!(w.read(o, 0, 64 << 10), vec![0; 64 << 10]);
    w.assert_clean();
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        object: usize,
        offset: u64,
        len: usize,
        seed: u64,
    },
    Punch {
        object: usize,
        offset: u64,
        len: u64,
        to_end: bool,
    },
    Read {
        object: usize,
        offset: u64,
        len: usize,
    },
    Switch,
    Sync,
    /// Syncs, with other operations and checks in the middle of record writes.
    SyncAmid(Vec<Op>),
    Log {
        object: usize,
    },
    Crash,
}

const BLOCKS: u64 = 96;

fn change() -> impl Strategy<Value = Op> {
    let end = BLOCKS * B;
    let place = prop_oneof![
        (0..BLOCKS, 1..6u64).prop_map(move |(b, n)| (b * B, (n * B).min(end - b * B))),
        (0..BLOCKS, 1..80u64).prop_map(move |(b, n)| (b * B, (n * B).min(end - b * B))),
        (0..end - 1, 1..9000u64).prop_map(move |(o, n)| (o, n.min(end - o))),
        (0..end - 1, 1..200_000u64).prop_map(move |(o, n)| (o, n.min(end - o))),
    ];
    (0..3usize, 0..10u8, place, any::<u64>(), 0..12u8).prop_map(
        |(object, kind, (offset, len), seed, to_end)| match kind {
            0..=4 => Op::Write { object, offset, len: len as usize, seed },
            5..=7 => Op::Punch { object, offset, len, to_end: to_end == 0 },
            _ => Op::Read { object, offset, len: len as usize },
        },
    )
}

fn operation() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => change(),
        2 => Just(Op::Switch),
        3 => Just(Op::Sync),
        3 => prop::collection::vec(change(), 1..8).prop_map(Op::SyncAmid),
        1 => (0..3usize).prop_map(|object| Op::Log { object }),
        1 => Just(Op::Crash),
    ]
}

/// The world next to its models.
struct Run {
    world: World,
    refs: [ObjectRef; 3],
    /// What reads must show.
    now: [Model; 3],
    /// As of the close of the txg before the open one, while that is not synced.
    closed: Option<[Model; 3]>,
    /// What a crash leaves.
    durable: [Model; 3],
    /// What replaying the log over `durable` gives, per object, if the log was taken.
    exact_holes: [bool; 3],
}

impl Run {
    fn new(sizes: [u32; 3]) -> Run {
        let blank = || std::array::from_fn(|_| Model::new(BLOCKS));
        Run {
            world: World::new(6000),
            refs: std::array::from_fn(|i| object(2000 + i as u64, sizes[i])),
            now: blank(),
            closed: None,
            durable: blank(),
            // With more than 16 blocks in a slot, joining runs may turn holes into data.
            exact_holes: sizes.map(|s| s <= 64 << 10),
        }
    }

    fn apply(objects: &Objects, txg: u64, refs: &[ObjectRef; 3], now: &mut [Model; 3], op: &Op) {
        match op {
            Op::Write { object, offset, len, seed } => {
                let data = pattern(*seed, *len);
                match objects.write(txg, refs[*object], *offset, &data) {
                    Ok(()) => now[*object].write(*offset, &data),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace),
                }
            }
            Op::Punch { object, offset, len, to_end } => {
                let range = *offset..if *to_end { u64::MAX } else { offset + len };
                match objects.punch(txg, refs[*object], range.clone()) {
                    Ok(()) => now[*object].punch(range),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace),
                }
            }
            Op::Read { object, offset, len } => {
                let mut buf = vec![0xee; *len];
                objects.read(refs[*object], *offset, &mut buf).unwrap();
                assert!(buf == now[*object].bytes[*offset as usize..*offset as usize + len], "read {op:?}");
            }
            _ => unreachable!("not a change"),
        }
    }

    fn close(&mut self) {
        if self.closed.is_some() {
            self.sync_closed(Vec::new());
        }
        self.world.txg += 1;
        self.closed = Some(self.now.clone());
    }

    fn sync_closed(&mut self, amid: Vec<Op>) {
        if !amid.is_empty() {
            let (objects, txg, refs) = (self.world.objects.clone(), self.world.txg, self.refs);
            let state = Arc::new(Mutex::new((self.now.clone(), amid)));
            let shared = state.clone();
            *self.world.io.hook.lock() = Some(Box::new(move || {
                // One operation per batch.
                let (now, amid) = &mut *shared.lock();
                if let Some(op) = amid.pop() {
                    Run::apply(&objects, txg, &refs, now, &op);
                }
                for object in 0..3 {
                    let len = now[object].bytes.len();
                    Run::apply(&objects, txg, &refs, now, &Op::Read { object, offset: 0, len });
                }
            }));
            self.world.sync_closed();
            *self.world.io.hook.lock() = None;
            self.now = state.lock().0.clone();
        } else {
            self.world.sync_closed();
        }
        self.durable = self.closed.take().expect("a txg is closed");
        for (o, model) in self.refs.iter().zip(&self.durable) {
            let extents = self.world.items.extents(*o);
            let mut data = vec![false; BLOCKS as usize];
            for (block, pointer) in &extents {
                data[*block as usize..*block as usize + usize::from(pointer.blocks)].fill(true);
            }
            if o.record_size <= 64 << 10 {
                assert_eq!(data, model.data);
            }
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Switch => self.close(),
            Op::Sync => {
                self.close();
                self.sync_closed(Vec::new());
            }
            Op::SyncAmid(ops) => {
                self.close();
                self.sync_closed(ops);
            }
            Op::Log { object } => {
                let unlogged = self.world.objects.take_unlogged(self.refs[object], 0..u64::MAX, u64::MAX);
                for op in unlogged.ops {
                    // What the log gets of the open txg is what reads show.
                    if let LogOp::Write { txg, offset, data } = op
                        && txg == self.world.txg
                    {
                        assert!(*data == self.now[object].bytes[offset as usize..offset as usize + data.len()]);
                    }
                }
            }
            Op::Crash => {
                self.world.io.crash(&self.world.items.referenced());
                self.world.objects = World::open(&self.world.io, &self.world.items);
                self.world.txg += 5;
                self.closed = None;
                self.now = self.durable.clone();
                self.world.assert_clean();
            }
            change => Run::apply(&self.world.objects, self.world.txg, &self.refs, &mut self.now, &change),
        }
    }

    fn check(&self) {
        for (i, (o, model)) in self.refs.iter().zip(&self.now).enumerate() {
            let objects = &self.world.objects;
            assert!(self.world.read(*o, 0, model.bytes.len()) == model.bytes, "contents of {o:?}");
            let data = model.data.iter().filter(|d| **d).count() as u64;
            assert!(objects.allocated_bytes(*o).unwrap() >= data * B);
            if !self.exact_holes[i] {
                continue;
            }
            for offset in (0..BLOCKS * B).step_by(5 * 1024) {
                assert_eq!(objects.next_data(*o, offset).unwrap(), model.next(offset, true), "data from {offset}");
                let hole = model.next(offset, false).unwrap_or(BLOCKS * B);
                assert_eq!(objects.next_hole(*o, offset).unwrap(), hole, "hole from {offset}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn like_the_model(
        sizes in prop::array::uniform3(prop::sample::select(vec![4u32 << 10, 16 << 10, 64 << 10, 128 << 10, 1 << 20])),
        ops in prop::collection::vec(operation(), 1..50),
    ) {
        let mut run = Run::new(sizes);
        for op in ops {
            run.run(op);
            run.check();
        }
        if run.closed.is_some() {
            run.sync_closed(Vec::new());
        }
        run.run(Op::Sync);
        run.check();
        run.world.assert_clean();
        for (o, model) in run.refs.iter().zip(&run.now) {
            let blocks: u64 = run.world.items.extents(*o).iter().map(|(_, p)| u64::from(p.blocks)).sum();
            prop_assert_eq!(run.world.objects.allocated_bytes(*o).unwrap(), blocks * B);
            prop_assert!(blocks >= model.data.iter().filter(|d| **d).count() as u64);
        }
    }

    /// What the log took, replayed over what is durable, gives what reads showed when it was taken.
    #[test]
    fn log_replay_restores(ops in prop::collection::vec(change(), 1..40), logs in prop::collection::btree_set(0usize..40, 1..6)) {
        let refs: [ObjectRef; 3] = std::array::from_fn(|i| object(2000 + i as u64, 16 << (10 + i)));
        let world = World::new(u64::MAX / 2);
        let mut now: [Model; 3] = std::array::from_fn(|_| Model::new(BLOCKS));
        let mut replayed = now.clone();
        for (i, op) in ops.iter().enumerate() {
            Run::apply(&world.objects, world.txg, &refs, &mut now, op);
            if !logs.contains(&i) { continue; }
            for (object, replayed) in refs.iter().zip(&mut replayed) {
                for op in world.objects.take_unlogged(*object, 0..u64::MAX, u64::MAX).ops {
                    match op {
                        LogOp::Write { offset, data, .. } => replayed.write(offset, &data),
                        LogOp::Punch { range, .. } => replayed.punch(range),
                    }
                }
            }
            prop_assert!(replayed == now);
        }
    }
}

/// Stops the other threads, also when this one fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Readers, writers and a sync thread at once. Every block holds one number throughout, and what a block shows never goes
/// back before what was there when the read began.
#[test]
fn concurrent_readers_see_whole_blocks() {
    const WRITERS: u64 = 2;
    let w = World::new(u64::MAX / 2);
    let objects = &w.objects;
    let refs = [object(2000, 64 << 10), object(2001, 16 << 10)];
    let blocks = 64u64;
    // One number per block, only growing; a block that is punched shows 0 and counts on afterwards.
    let done: Vec<AtomicU64> = (0..2 * blocks).map(|_| AtomicU64::new(0)).collect();
    let txg = RwLock::new(w.txg);
    let stop = AtomicBool::new(false);
    let number = |block: &[u8]| {
        let first = &block[..8];
        assert!(block.chunks(8).all(|c| c == first), "a block is torn");
        u64::from_le_bytes(first.try_into().unwrap())
    };
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (done, txg, stop) = (&done, &txg, &stop);
            scope.spawn(move || {
                let mut random = writer + 1;
                let mut count = 0u64;
                while !stop.load(SeqCst) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let which = (random >> 33) % 2;
                    // Writers own alternate quarters of the blocks, so that numbers grow.
                    let start = (random >> 40) % (blocks / 8) * 8 + writer * 4;
                    let len = 1 + (random >> 50) % 4;
                    let open = txg.read();
                    count += 1;
                    if (random >> 55).is_multiple_of(5) {
                        objects.punch(*open, refs[which as usize], (start + 1) * B..(start + len) * B).unwrap();
                        continue;
                    }
                    let data: Vec<u8> = count.to_le_bytes().repeat(BLOCK_SIZE / 8 * len as usize);
                    objects.write(*open, refs[which as usize], start * B, &data).unwrap();
                    drop(open);
                    for block in start..start + len {
                        done[(which * blocks + block) as usize].store(count, SeqCst);
                    }
                }
            });
        }
        for reader in 0..2u64 {
            let (stop, number) = (&stop, &number);
            let done = &done;
            scope.spawn(move || {
                let mut random = reader + 77;
                let mut newest = vec![0u64; 2 * blocks as usize];
                while !stop.load(SeqCst) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let which = (random >> 33) % 2;
                    let start = (random >> 40) % blocks;
                    let len = 1 + (random >> 50) % (blocks - start);
                    let before: Vec<u64> =
                        (start..start + len).map(|b| done[(which * blocks + b) as usize].load(SeqCst)).collect();
                    let mut buf = vec![0xee; (len * B) as usize];
                    objects.read(refs[which as usize], start * B, &mut buf).unwrap();
                    for (i, block) in buf.chunks(BLOCK_SIZE).enumerate() {
                        let shown = number(block);
                        let newest = &mut newest[(which * blocks + start) as usize + i];
                        // Every fourth block is never punched; elsewhere, 0 is a hole of any age.
                        let hole = shown == 0 && !(start + i as u64).is_multiple_of(4);
                        assert!(hole || (shown >= before[i] && shown >= *newest), "a block went back in time");
                        *newest = (*newest).max(shown);
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        let started = std::time::Instant::now();
        while started.elapsed() < std::time::Duration::from_millis(1500) {
            let closed = {
                let mut open = txg.write();
                *open += 1;
                *open - 1
            };
            let stats = objects.sync_txg(closed, 0).unwrap();
            assert_eq!(stats.blocks_unreserved, 0);
            w.io.commit(closed);
        }
    });
    for _ in 0..2 {
        let closed = *txg.write();
        *txg.write() += 1;
        objects.sync_txg(closed, 0).unwrap();
        w.io.commit(closed);
    }
    for o in refs {
        w.items.extents(o);
    }
    w.assert_clean();
}

/// Two writers of different halves of the same blocks never lose each other's bytes, across syncs.
#[test]
fn concurrent_partial_writes_of_one_block() {
    let w = World::new(u64::MAX / 2);
    let objects = &w.objects;
    let o = object(2000, 16 << 10);
    let txg = RwLock::new(w.txg);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for half in 0..2u64 {
            let (txg, stop) = (&txg, &stop);
            scope.spawn(move || {
                let mut count = 0u8;
                while !stop.load(SeqCst) {
                    count = count.wrapping_add(1);
                    let at = u64::from(count % 8) * B + half * 2048;
                    objects.write(*txg.read(), o, at, &[count | 1; 2048]).unwrap();
                    let mut back = [0; 2048];
                    objects.read(o, at, &mut back).unwrap();
                    assert!(back == [count | 1; 2048], "bytes of a finished write are lost");
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        for _ in 0..300 {
            let closed = {
                let mut open = txg.write();
                *open += 1;
                *open - 1
            };
            objects.sync_txg(closed, 0).unwrap();
            w.io.commit(closed);
        }
    });
    let last = *txg.read();
    objects.sync_txg(last, 0).unwrap();
    w.io.commit(last);
    let rows: BTreeSet<u32> = w.items.extents(o).iter().map(|(_, p)| p.row).collect();
    assert_eq!(rows, w.io.live());
    w.assert_clean();
}
