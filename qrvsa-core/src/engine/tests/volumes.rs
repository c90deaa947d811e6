//! Volumes on a pool of simulated disks: against a model with crashes, in a full pool, resized, reserved, destroyed.

use proptest::prelude::*;

use super::*;
use crate::env::Random;
use crate::error::ErrorKind;
use crate::item::VALUE_BYTES_MAX;
use crate::volume::{ATOMIC_BYTES_MAX, Spec, Volume};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

fn thin(size_bytes: u64) -> Spec {
    Spec { size_bytes, block_bytes: 512, record_bytes: 16 << 10, reserve: false }
}

impl World {
    fn volume(&self, name: &str) -> Arc<Volume> {
        self.pool().open_volume(name).unwrap()
    }

    fn crash_and_import(&mut self, mode: CrashMode) {
        self.crash(mode);
        self.import(|_| true).unwrap();
    }

    fn assert_checks(&self) {
        let report = self.pool().check(true, &mut |_| true).unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
    }

    /// Commits until nothing is freed any more.
    fn settle(&self) {
        for _ in 0..3 {
            self.pool().commit().unwrap();
        }
        while self.pool().is_destroying() {
            self.pool().commit().unwrap();
        }
        for _ in 0..3 {
            self.pool().commit().unwrap();
        }
    }
}

fn read(volume: &Volume, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    volume.read(offset, &mut buf).unwrap();
    // where it can be had without copying, it is the same
    if let Some(parts) = volume.lend(offset, len).unwrap() {
        assert!(parts.iter().flat_map(|part| part.iter()).eq(&buf), "what is lent of {offset}+{len} differs");
    }
    buf
}

/// What a volume must hold: its bytes now, and for each block what a crash may leave.
struct Model {
    now: Vec<u8>,
    /// By block: its contents at the last flush of it and all since.
    possible: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Model {
    fn change(&mut self, offset: usize, data: &[u8]) {
        let blocks = offset / BLOCK..(offset + data.len()).div_ceil(BLOCK);
        for block in blocks.clone() {
            let old = self.block(block);
            self.possible.entry(block).or_insert_with(|| vec![old]);
        }
        self.now[offset..offset + data.len()].copy_from_slice(data);
        for block in blocks {
            let new = self.block(block);
            self.possible.get_mut(&block).unwrap().push(new);
        }
    }

    fn block(&self, block: usize) -> Vec<u8> {
        self.now[block * BLOCK..(block + 1) * BLOCK].to_vec()
    }

    fn durable(&mut self, offset: usize, len: usize) {
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            self.possible.remove(&block);
        }
    }

    /// After a crash: what is there becomes the truth, if it may.
    fn accept(&mut self, found: &[u8]) {
        for block in 0..self.now.len() / BLOCK {
            let is = &found[block * BLOCK..(block + 1) * BLOCK];
            match self.possible.get(&block) {
                Some(list) => assert!(list.iter().any(|one| one == is), "block {block} is none of what it may be"),
                None => assert!(is == self.block(block), "block {block} lost what was durable"),
            }
        }
        self.now = found.to_vec();
        self.possible.clear();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: u64, fua: bool },
    Atomic { at: u64, len: u64, fua: bool },
    CompareAndWrite { at: u64, same: bool },
    Discard { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Flush,
    Commit,
    Crash(u64),
    Reopen,
}

const SECTORS: u64 = 4096;

fn operation() -> impl Strategy<Value = Op> {
    let place = (0..SECTORS, prop_oneof![1u64..9, 1u64..40, 30u64..300, 200u64..1500]);
    let place = place.prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    prop_oneof![
        6 => (place.clone(), any::<bool>()).prop_map(|((at, len), fua)| Op::Write { at, len, fua }),
        2 => (place.clone(), any::<bool>()).prop_map(|((at, len), fua)| Op::Atomic { at, len: len.min(512), fua }),
        1 => (0..SECTORS - 8, any::<bool>()).prop_map(|(at, same)| Op::CompareAndWrite { at, same }),
        3 => place.clone().prop_map(|(at, len)| Op::Discard { at, len }),
        2 => place.prop_map(|(at, len)| Op::Read { at, len }),
        2 => Just(Op::Flush),
        2 => Just(Op::Commit),
        1 => (0u64..1000).prop_map(Op::Crash),
        1 => Just(Op::Reopen),
    ]
}

fn run(ops: &[Op], record_bytes: u32, reserve: bool, seed: u64) {
    let mut world = World::new(geometry(2, 1), 3, 96, seed);
    let size = SECTORS * 512;
    let spec = Spec { size_bytes: size, block_bytes: 512, record_bytes, reserve };
    world.pool().create_volume("v", &spec).unwrap();
    let id = world.volume("v").id();
    let mut volume = world.volume("v");
    let mut model = Model { now: vec![0; size as usize], possible: BTreeMap::new() };
    for (i, op) in ops.iter().enumerate() {
        let data = |len: u64| pattern(i as u64 + 1, (len * 512) as usize);
        match *op {
            Op::Write { at, len, fua } | Op::Atomic { at, len, fua } => {
                let (offset, data) = (at * 512, data(len));
                match op {
                    Op::Write { .. } => volume.write(offset, &data, fua).unwrap(),
                    _ => volume.write_atomic(offset, &data, fua).unwrap(),
                }
                model.change(offset as usize, &data);
                if fua {
                    model.durable(offset as usize, data.len());
                }
            }
            Op::CompareAndWrite { at, same } => {
                let offset = (at * 512) as usize;
                let mut compare = model.now[offset..offset + 4096].to_vec();
                let data = data(8);
                if !same {
                    compare[777] ^= 1;
                }
                let result = volume.compare_and_write(at * 512, &compare, &data, true).unwrap();
                assert_eq!(result, (!same).then_some(777));
                if same {
                    model.change(offset, &data);
                    model.durable(offset, 4096);
                }
            }
            Op::Discard { at, len } => {
                volume.discard(at * 512, len * 512).unwrap();
                model.change((at * 512) as usize, &vec![0; (len * 512) as usize]);
            }
            Op::Read { at, len } => {
                let offset = (at * 512) as usize;
                let got = read(&volume, at * 512, (len * 512) as usize);
                assert!(got == model.now[offset..offset + got.len()], "operation {i}: read differs");
            }
            Op::Flush => {
                volume.flush().unwrap();
                model.possible.clear();
            }
            Op::Commit => {
                world.pool().commit().unwrap();
                model.possible.clear();
            }
            Op::Crash(seed) => {
                drop(volume);
                world.crash_and_import(CrashMode::Random { seed });
                volume = world.volume("v");
                assert_eq!(volume.id(), id);
                model.accept(&read(&volume, 0, size as usize));
                world.assert_checks();
            }
            Op::Reopen => {
                world.pool().close().unwrap();
                model.possible.clear();
                assert_eq!(volume.write(0, &[1; 512], false).unwrap_err().kind(), ErrorKind::Suspended);
                assert_eq!(volume.read(0, &mut [0]).unwrap_err().kind(), ErrorKind::Suspended);
                drop(volume);
                world.import(|_| true).unwrap();
                volume = world.volume("v");
            }
        }
    }
    assert!(read(&volume, 0, size as usize) == model.now);
    // where it says that there is no data, there are zeros
    let mut at = 0;
    while let Some(data) = volume.next_data(at).unwrap() {
        assert!(model.now[at as usize..data as usize].iter().all(|b| *b == 0));
        at = volume.next_hole(data).unwrap();
        assert!(at > data && at <= size);
    }
    assert!(model.now[at as usize..].iter().all(|b| *b == 0));
    world.assert_checks();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_volume_is_a_disk_also_after_crashes(
        ops in prop::collection::vec(operation(), 1..60),
        record in 12u32..18,
        reserve in any::<bool>(),
        seed in 0u64..1000,
    ) {
        run(&ops, 1 << record, reserve, seed);
    }
}

#[test]
fn power_fails_at_any_change_and_atomic_writes_are_there_or_not() {
    for after in (1..120).step_by(3) {
        let mut world = World::new(geometry(2, 1), 3, 96, after);
        world.pool().create_volume("v", &thin(8 * MIB)).unwrap();
        let len = ATOMIC_BYTES_MAX as usize;
        let volume = world.volume("v");
        volume.write_atomic(MIB - 5 * 512, &vec![1; len], true).unwrap();
        world.power.cut_after(after);
        let (mut acknowledged, mut begun) = (1, 1);
        for round in 2..8u8 {
            begun = round;
            let fua = volume.write_atomic(MIB - 5 * 512, &vec![round; len], round % 2 == 0);
            if fua.is_err() || volume.flush().is_err() {
                break;
            }
            acknowledged = round;
            if round % 3 == 0 && world.pool().commit().is_err() {
                break;
            }
        }
        drop(volume);
        world.crash_and_import(CrashMode::Random { seed: after });
        let found = read(&world.volume("v"), MIB - 5 * 512, len);
        assert!(found.iter().all(|b| *b == found[0]), "cut after {after}: a part of an atomic write");
        assert!((acknowledged..=begun).contains(&found[0]), "cut after {after}: {} of {begun}", found[0]);
        world.assert_checks();
    }
}

#[test]
fn what_makes_a_part_of_an_atomic_write_durable_takes_all_of_it() {
    let specs = [thin(MIB), Spec { reserve: true, ..thin(MIB) }];
    // over a part of it, and beside it in a record that a reserved volume makes durable as a whole
    for (spec, offset) in specs.into_iter().flat_map(|spec| [(spec, 41_000), (spec, 30_000)]) {
        let mut world = World::new(geometry(2, 1), 3, 96, 7);
        world.pool().create_volume("v", &spec).unwrap();
        let volume = world.volume("v");
        volume.write(0, &[1; 128 << 10], true).unwrap();
        volume.write_atomic(40_000, &[2; 50_000], false).unwrap();
        volume.write(offset, &[3; 100], true).unwrap();
        drop(volume);
        world.crash_and_import(CrashMode::LoseAll);
        let volume = world.volume("v");
        let found = read(&volume, 40_000, 50_000);
        let (old, new) = (found.contains(&1), found.contains(&2));
        assert!(old != new, "{spec:?}: a part of an atomic write was left by a durable one at {offset}");
        assert_eq!(read(&volume, offset, 100), [3; 100]);
        drop(volume);
        world.assert_checks();
    }
}

/// A hole makes two entries of the log of an atomic write; in a block of the log with many others they may lie at its end.
#[test]
fn an_atomic_write_with_a_hole_is_not_torn_by_a_crash() {
    let specs = [thin(4 * MIB), Spec { reserve: true, ..thin(4 * MIB) }];
    for (spec, crowded) in specs.into_iter().flat_map(|spec| [(spec, true), (spec, false)]) {
        let mut torn = 0;
        for after in 0..7 {
            let mut world = World::new(geometry(2, 1), 3, 96, after);
            for name in ["v", "a", "b"] {
                world.pool().create_volume(name, &spec).unwrap();
            }
            let volume = world.volume("v");
            volume.write(0, &[1; 256 << 10], true).unwrap();
            for name in ["a", "b"] {
                // others that are about to wait for the log
                let other = world.volume(name);
                let len = if crowded { 480 << 10 } else { 4096 };
                other.write(0, &vec![9; len], false).unwrap();
                let object = ObjectRef { id: crate::volume::VOLUME_OBJECT, record_size: spec.record_bytes };
                Store::log_object(&*world.pool().dataset(name).unwrap(), object, &[]).unwrap();
            }
            volume.write_atomic(0, &[2; 192 << 10], false).unwrap();
            volume.discard(32 << 10, 48 << 10).unwrap();
            world.power.cut_after(after);
            let done = volume.flush();
            drop(volume);
            world.crash_and_import(CrashMode::LoseAll);
            let found = read(&world.volume("v"), 0, 192 << 10);
            let ends = [&found[..32 << 10], &found[80 << 10..]];
            let old = ends.iter().any(|part| part.contains(&1));
            let new = ends.iter().any(|part| part.contains(&2));
            assert!(old != new, "cut after {after}, crowded {crowded}: a part of an atomic write");
            assert!(new || done.is_err(), "cut after {after}: a flush was acknowledged");
            torn += u32::from(old);
            world.assert_checks();
        }
        assert!(torn > 0, "no crash came before the write was durable");
    }
}

#[test]
fn a_durable_write_does_not_wait_for_others() {
    let mut world = World::new(geometry(2, 2), 4, 96, 3);
    world.pool().create_volume("v", &thin(64 * MIB)).unwrap();
    let volume = world.volume("v");
    let committed = world.pool().committed_txg();
    // more than a flush would log
    volume.write(0, &pattern(1, 2 << 20), false).unwrap();
    for i in 0..20u64 {
        volume.write(32 * MIB + i * 4096, &pattern(i, 512), true).unwrap();
    }
    assert_eq!(world.pool().committed_txg(), committed, "small durable writes go to the log alone");
    drop(volume);
    world.crash_and_import(CrashMode::LoseAll);
    let volume = world.volume("v");
    for i in 0..20u64 {
        assert!(read(&volume, 32 * MIB + i * 4096, 512) == pattern(i, 512));
    }
    // while a commit writes out what nobody logged, too
    volume.write(0, &pattern(7, 1 << 20), false).unwrap();
    world.pool().commit().unwrap();
    volume.write(4096, &pattern(8, 4096), true).unwrap();
    drop(volume);
    world.crash_and_import(CrashMode::LoseAll);
    assert!(read(&world.volume("v"), 4096, 4096) == pattern(8, 4096));
    world.assert_checks();
}

#[test]
fn neighbours_in_one_block_do_not_disturb_each_other() {
    let world = World::new(geometry(2, 2), 4, 96, 4);
    world.pool().create_volume("v", &thin(MIB)).unwrap();
    world.pool().create_volume("r", &Spec { reserve: true, ..thin(MIB) }).unwrap();
    for name in ["v", "r"] {
        let volume = world.volume(name);
        std::thread::scope(|scope| {
            for sector in 0..8u64 {
                let volume = volume.clone();
                scope.spawn(move || {
                    for round in 1..=40u8 {
                        for block in 0..5 {
                            let offset = block * 4096 + sector * 512;
                            volume.write(offset, &[round; 512], round % 16 == 0).unwrap();
                            assert_eq!(read(&volume, offset, 512), vec![round; 512]);
                        }
                    }
                });
            }
            let pool = world.pool().clone();
            scope.spawn(move || (0..10).for_each(|_| pool.commit().unwrap()));
        });
        assert!(read(&volume, 0, 5 * 4096).iter().all(|b| *b == 40));
    }
    // compare and write counts exactly
    let volume = world.volume("v");
    volume.write(0, &[0; 512], false).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut done = 0;
                while done < 50 {
                    let now = read(&volume, 0, 512);
                    let mut next = now.clone();
                    next[0] += 1;
                    done += u32::from(volume.compare_and_write(0, &now, &next, false).unwrap().is_none());
                }
            });
        }
    });
    assert_eq!(read(&volume, 0, 1), vec![200]);
    world.assert_checks();
}

#[test]
fn a_petabyte_is_thin() {
    let world = World::new(geometry(2, 2), 4, 96, 5);
    let size = 1 << 50;
    world.pool().create_volume("v", &thin(size)).unwrap();
    let volume = world.volume("v");
    assert_eq!((volume.size_bytes(), volume.next_data(0).unwrap()), (size, None));
    volume.write(size - 512, &[9; 512], true).unwrap();
    assert_eq!(volume.write(size - 512, &[9; 513], false).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(volume.write(u64::MAX - 5, &[9; 10], false).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(volume.discard(0, size + 1).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(volume.next_data(512).unwrap(), Some(size - 4096));
    assert_eq!(volume.next_hole(size - 4096).unwrap(), size);
    assert_eq!(read(&volume, size - 512, 512), vec![9; 512]);
    volume.discard(0, size).unwrap();
    assert_eq!((volume.next_data(0).unwrap(), volume.usage().unwrap().allocated_bytes), (None, 0));
    assert_eq!(read(&volume, size - 512, 512), vec![0; 512]);
    world.assert_checks();
}

/// Writes pieces of 64 KiB until the pool refuses; returns the bytes written.
fn write_until_full(volume: &Volume) -> u64 {
    let mut at = 0;
    loop {
        match volume.write(at, &pattern(at, 64 << 10), false) {
            Ok(()) => at += 64 << 10,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NoSpace, "{e}");
                return at;
            }
        }
    }
}

#[test]
fn a_full_pool_refuses_writes_loses_nothing_and_recovers() {
    let mut world = World::new(geometry(2, 1), 3, 96, 6);
    world.pool().create_volume("v", &thin(1 << 40)).unwrap();
    let volume = world.volume("v");
    let end = write_until_full(&volume);
    assert!(end > 60 * MIB, "{end}");
    volume.flush().unwrap();
    assert!(volume.usage().unwrap().available_bytes < 16 * MIB);
    drop(volume);
    world.crash_and_import(CrashMode::LoseAll);
    let volume = world.volume("v");
    for at in (0..end).step_by(64 << 10) {
        assert!(read(&volume, at, 64 << 10) == pattern(at, 64 << 10));
    }
    // space comes back: by a discard at once, and writes go on
    let before = world.pool().space.capacity().free;
    volume.discard(0, end / 2).unwrap();
    world.settle();
    let freed = world.pool().space.capacity().free - before;
    assert!(freed * BLOCK as u64 >= end / 2, "{freed} blocks came back of {end} bytes");
    for at in (0..end / 4).step_by(64 << 10) {
        volume.write(at, &pattern(at + 1, 64 << 10), false).unwrap();
    }
    volume.flush().unwrap();
    world.assert_checks();
    // and overwriting a full pool never loses what was there
    let _ = write_until_full(&volume);
    volume.flush().unwrap();
    world.assert_checks();
    drop(volume);
    world.pool().destroy_dataset("v").unwrap();
    world.settle();
    world.assert_checks();
}

#[test]
fn a_reserved_volume_never_lacks_space() {
    for (k, m, n, record) in [(2, 1, 3, 16 << 10), (4, 2, 6, 64 << 10), (1, 1, 2, 4 << 10)] {
        let mut world = World::new(geometry(k, m), n, 80, 7);
        let usable = world.pool().status().free_bytes;
        let size = 8 * MIB;
        let reserved = Spec { size_bytes: size, block_bytes: 4096, record_bytes: record, reserve: true };
        let huge = Spec { size_bytes: usable, ..reserved };
        let refused = world.pool().create_volume("huge", &huge).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
        world.pool().create_volume("r", &reserved).unwrap();
        let left = world.pool().status().free_bytes;
        assert!(left + size <= usable, "{left} of {usable} are left");
        world.pool().create_volume("v", &thin(1 << 40)).unwrap();
        write_until_full(&world.volume("v"));
        world.volume("v").flush().unwrap();
        world.crash_and_import(CrashMode::LoseAll);
        assert_eq!(world.volume("v").write(1 << 39, &[1; 65536], false).unwrap_err().kind(), ErrorKind::NoSpace);
        let volume = world.volume("r");
        // scattered blocks first: every record is touched in part before any is whole
        let random = SeededRandom::new(8);
        let mut expected = vec![0u8; size as usize];
        for i in 0..600u64 {
            let at = (random.next_u64() % (size / 4096)) as usize * 4096;
            let data = pattern(i, 4096);
            volume.write(at as u64, &data, i % 97 == 0).unwrap();
            expected[at..at + 4096].copy_from_slice(&data);
            if i % 150 == 149 {
                volume.discard(at as u64 / 2, 1_000_000).unwrap();
                expected[at / 2..at / 2 + 1_000_000].fill(0);
            }
        }
        assert!(read(&volume, 0, size as usize) == expected);
        for pass in 0..2u64 {
            for at in (0..size).step_by(1 << 20) {
                volume.write(at, &pattern(pass + at, 1 << 20), false).unwrap();
            }
        }
        volume.flush().unwrap();
        for at in (0..size).step_by(1 << 20) {
            assert!(read(&volume, at, 1 << 20) == pattern(1 + at, 1 << 20));
        }
        world.assert_checks();
        // giving all of it back gives nothing to others
        volume.discard(0, size).unwrap();
        world.settle();
        assert_eq!(world.volume("v").write(1 << 39, &[1; 65536], false).unwrap_err().kind(), ErrorKind::NoSpace);
        drop(volume);
        world.pool().destroy_dataset("r").unwrap();
        world.settle();
        world.volume("v").write(1 << 39, &[1; 65536], false).unwrap();
        world.assert_checks();
    }
}

#[test]
fn resizing() {
    let mut world = World::new(geometry(2, 1), 3, 160, 9);
    world.pool().create_volume("v", &thin(10 * MIB)).unwrap();
    let volume = world.volume("v");
    volume.write(0, &pattern(1, 10 << 20), false).unwrap();
    let pool = world.pool().clone();
    assert_eq!(pool.resize_volume("v", 10 * MIB + 100, false).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pool.resize_volume("v", 0, true).unwrap_err().kind(), ErrorKind::Invalid);
    pool.resize_volume("v", 20 * MIB, false).unwrap();
    assert_eq!(volume.size_bytes(), 20 * MIB);
    assert_eq!(read(&volume, 10 * MIB, 4096), vec![0; 4096]);
    volume.write(20 * MIB - 512, &[7; 512], false).unwrap();
    assert_eq!(pool.resize_volume("v", 5 * MIB + 512, false).unwrap_err().kind(), ErrorKind::NeedsForce);
    pool.resize_volume("v", 5 * MIB + 512, true).unwrap();
    assert_eq!(volume.read(5 * MIB + 512, &mut [0]).unwrap_err().kind(), ErrorKind::Invalid);
    pool.resize_volume("v", 20 * MIB, false).unwrap();
    drop((volume, pool));
    world.crash_and_import(CrashMode::LoseAll);
    let volume = world.volume("v");
    let mut expected = pattern(1, 10 << 20);
    expected.truncate((5 << 20) + 512);
    expected.resize(20 << 20, 0);
    assert!(read(&volume, 0, 20 << 20) == expected, "what was cut off stays gone");
    // a reserved volume grows only as far as there is room
    let pool = world.pool().clone();
    pool.create_volume("r", &Spec { reserve: true, ..thin(10 * MIB) }).unwrap();
    let free = pool.status().free_bytes;
    assert_eq!(pool.resize_volume("r", free + 11 * MIB, false).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(world.volume("r").size_bytes(), 10 * MIB);
    assert!(pool.status().free_bytes.abs_diff(free) < MIB);
    pool.resize_volume("r", 30 * MIB, false).unwrap();
    assert!(pool.status().free_bytes + 20 * MIB <= free);
    pool.resize_volume("r", 10 * MIB, true).unwrap();
    assert!(pool.status().free_bytes.abs_diff(free) < MIB);
    world.assert_checks();
}

#[test]
fn a_destroyed_volume_goes_piece_by_piece_and_goes_on_after_a_crash() {
    let mut world = World::new(geometry(2, 1), 3, 160, 10);
    world.settle();
    let before: u64 = world.pool().space.allocated_bytes().iter().sum();
    world.pool().create_volume("v", &Spec { record_bytes: 4096, ..thin(1 << 40) }).unwrap();
    let volume = world.volume("v");
    for i in 0..40u64 {
        volume.write(i * 100 * MIB, &pattern(i, 512 << 10), false).unwrap();
    }
    let refused = world.pool().destroy_dataset("v").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    drop(volume);
    world.pool().destroy_dataset("v").unwrap();
    assert!(world.pool().is_destroying(), "5120 records take more than two groups");
    assert_eq!(world.pool().open_volume("v").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(world.pool().list_volumes().unwrap().is_empty());
    world.assert_checks();
    // the name is free at once
    world.pool().create_volume("v", &thin(MIB)).unwrap();
    world.volume("v").write(0, &[3; 512], true).unwrap();
    world.crash_and_import(CrashMode::LoseAll);
    assert!(world.pool().is_destroying());
    world.settle();
    assert_eq!(read(&world.volume("v"), 0, 512), vec![3; 512]);
    world.pool().destroy_dataset("v").unwrap();
    world.settle();
    assert_eq!(world.pool().every_dataset().len(), 1);
    let after: u64 = world.pool().space.allocated_bytes().iter().sum();
    assert!(after <= before + 8 * 16384 * 3, "{after} bytes are in use, {before} were before");
    assert_eq!(world.pool().space.reserved(), 0);
    world.assert_checks();
}

#[test]
fn names_kinds_and_identities() {
    let mut world = World::new(geometry(2, 1), 3, 96, 11);
    let pool = world.pool().clone();
    pool.create_dataset("fs").unwrap();
    pool.create_volume("v", &Spec { block_bytes: 4096, ..thin(MIB) }).unwrap();
    pool.create_volume("w", &thin(MIB)).unwrap();
    assert_eq!(pool.create_volume("v", &thin(MIB)).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(pool.create_volume("fs", &thin(MIB)).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(pool.create_dataset("v").unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(pool.create_volume("a/b", &thin(MIB)).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pool.open_volume("fs").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pool.open_volume("x").unwrap_err().kind(), ErrorKind::NotFound);
    let names = |world: &World| -> Vec<(String, u128)> {
        world.pool().list_volumes().unwrap().into_iter().map(|v| (v.name, v.settings.id)).collect()
    };
    let before = names(&world);
    assert_eq!(before.iter().map(|v| v.0.as_str()).collect::<Vec<_>>(), ["v", "w"]);
    let naa = world.volume("v").naa();
    assert!(naa >> 60 == 3 && naa != world.volume("w").naa());
    drop(pool);
    world.crash_and_import(CrashMode::LoseAll);
    assert_eq!(names(&world), before);
    assert_eq!((world.volume("v").naa(), world.volume("v").block_bytes()), (naa, 4096));
    assert!(Arc::ptr_eq(&world.volume("v"), &world.volume("v")));
    world.assert_checks();
}

#[test]
fn a_check_finds_what_does_not_belong_to_a_volume() {
    let world = World::new(geometry(2, 1), 3, 96, 12);
    world.pool().create_volume("v", &thin(MIB)).unwrap();
    world.volume("v").write(0, &[1; 8192], false).unwrap();
    world.pool().commit().unwrap();
    world.assert_checks();
    let ds = world.pool().dataset("v").unwrap();
    let put = |key, value: &[u8]| {
        let tx = ds.begin(Intent::Grow).unwrap();
        Store::put(&*ds, &tx, key, Arc::from(value), Log::WithObject);
    };
    put(Key::new(1, crate::object::KIND_SPACE, 0), &7u64.to_le_bytes());
    put(Key::new(2000, 2, 0), b"?");
    let report = world.pool().check(false, &mut |_| true).unwrap();
    let text = report.problems.join("\n");
    assert!(text.contains("counts 7 blocks, its records have 2"), "{text}");
    assert!(text.contains("item of kind 2 of object 2000"), "{text}");
    put(crate::volume::settings_key(), &[0; 32]);
    let report = world.pool().check(false, &mut |_| true).unwrap();
    assert!(report.problems.iter().any(|p| p.contains("newer version")), "{:?}", report.problems);
}

#[test]
fn damage_in_a_volume_is_named_and_scrubbed() {
    let world = World::new(geometry(2, 1), 3, 96, 13);
    world.pool().create_volume("v", &thin(4 * MIB)).unwrap();
    let volume = world.volume("v");
    volume.write(0, &pattern(1, 4 << 20), false).unwrap();
    world.pool().commit().unwrap();
    let dataset = world.pool().dataset("v").unwrap().id;
    let fragments = world.pool().locate(dataset, crate::volume::VOLUME_OBJECT).unwrap();
    assert!(fragments.iter().map(|f| f.record_bytes).filter(|b| *b == 16384).count() >= 256 * 3);
    let one = &fragments[0];
    world.disks[usize::from(one.device_index)].1.flip(one.device_offset + 5, 0xff);
    let (errors, repaired, lost) = world.scrub();
    assert!(errors > 0 && repaired == errors && lost == 0);
    let record: Vec<_> = fragments.iter().filter(|f| f.file_offset == one.file_offset).collect();
    for f in record.iter().take(2) {
        world.disks[usize::from(f.device_index)].1.flip(f.device_offset + 5, 0xff);
    }
    world.drop_caches();
    let error = volume.read(one.file_offset, &mut [0; 16384]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt), "{error}");
    assert_eq!(world.pool().status().damaged, ["volume tank/v"]);
}

#[test]
fn small_values_of_front_ends_are_durable() {
    let mut world = World::new(geometry(2, 1), 3, 96, 14);
    let pool = world.pool().clone();
    pool.put_blob("iscsi/pr/1", b"one").unwrap();
    pool.put_blob("iscsi/pr/2", &vec![7; crate::engine::blobs::BLOB_BYTES_MAX]).unwrap();
    pool.put_blob("other", b"").unwrap();
    pool.put_blob("iscsi/pr/1", b"newer").unwrap();
    assert_eq!(pool.put_blob("big", &[0; VALUE_BYTES_MAX]).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pool.put_blob("", b"x").unwrap_err().kind(), ErrorKind::Invalid);
    drop(pool);
    world.crash_and_import(CrashMode::LoseAll);
    let pool = world.pool().clone();
    assert_eq!(pool.blob("iscsi/pr/1").as_deref(), Some(b"newer".as_slice()));
    assert_eq!(pool.blob_names("iscsi/pr/"), ["iscsi/pr/1", "iscsi/pr/2"]);
    pool.remove_blob("iscsi/pr/1").unwrap();
    pool.remove_blob("iscsi/pr/1").unwrap();
    pool.put_blob("iscsi/pr/3", b"three").unwrap();
    drop(pool);
    world.crash_and_import(CrashMode::LoseAll);
    assert_eq!(world.pool().blob_names(""), ["iscsi/pr/2", "iscsi/pr/3", "other"]);
    assert_eq!(world.pool().blob("iscsi/pr/3").as_deref(), Some(b"three".as_slice()));
    assert_eq!(world.pool().blob("iscsi/pr/1"), None);
    world.assert_checks();
}
