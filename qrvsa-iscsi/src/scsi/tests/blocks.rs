//! Reading, writing, comparing, unmapping.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::backing::{Backing, Extent, Part, Space};

#[test]
fn what_is_written_is_read_by_every_form() {
    let world = World::new();
    let nexus = world.nexus(1);
    let data: Vec<u8> = (0..BLOCK * 2).map(|i| u8::try_from(i % 251).expect("small")).collect();
    world.good(&nexus, &[0x0a, 0, 0, 10, 2, 0], &data);
    world.good(&nexus, &cdb10(0x2a, 0x08, 20, 2), &data);
    world.good(&nexus, &[0xaa, 0, 0, 0, 0, 30, 0, 0, 0, 2, 0, 0], &data);
    world.good(&nexus, &cdb16(0x8a, 0, 40, 2), &data);
    world.good(&nexus, &cdb10(0x2e, 0x02, 50, 2), &data);
    for lba in [10, 20, 30, 40, 50] {
        assert_eq!(world.good(&nexus, &cdb10(0x28, 0, lba, 2), &[]), data);
        assert_eq!(world.good(&nexus, &cdb16(0x88, 0, lba.into(), 2), &[]), data);
        world.good(&nexus, &cdb10(0x2f, 0x02, lba, 2), &data);
    }
    assert_eq!(world.good(&nexus, &[0x08, 0, 0, 0, 0, 0], &[]).len(), 256 * BLOCK, "0 means 256 here");
    assert_eq!(world.units.stats(1).expect("unit").written_bytes, 5 * 2 * BLOCK as u64);
}

#[test]
fn the_end_is_the_end() {
    let world = World::new();
    let nexus = world.nexus(1);
    let end = u32::try_from(BLOCKS).expect("small");
    let out_of_range = (5, 0x21, 0);
    for opcode in [0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35, 0x41] {
        assert_eq!(world.refused(&nexus, &cdb10(opcode, 0, end, 1), &[0; BLOCK]), out_of_range, "{opcode:x}");
        assert_eq!(world.refused(&nexus, &cdb10(opcode, 0, end + 1, 0), &[0; BLOCK]), out_of_range, "{opcode:x}");
        assert_eq!(world.refused(&nexus, &cdb10(opcode, 0, u32::MAX, 2), &[0; BLOCK]), out_of_range, "{opcode:x}");
    }
    for opcode in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93] {
        assert_eq!(world.refused(&nexus, &cdb16(opcode, 0, u64::MAX, 2), &[0; BLOCK]), out_of_range, "{opcode:x}");
    }
    world.good(&nexus, &cdb10(0x28, 0, end - 1, 1), &[]);
}

#[test]
fn protection_and_overlong_transfers_are_refused() {
    let world = World::new();
    let nexus = world.nexus(1);
    for opcode in [0x28, 0x2a, 0x2f, 0x41] {
        assert_eq!(world.refused(&nexus, &cdb10(opcode, 0x20, 0, 1), &[0; BLOCK]), (5, 0x24, 0), "{opcode:x}");
    }
    world.disk.grow(1 << 42);
    world.good(&nexus, &cdb16(0x88, 0, 0, 0), &[]);
    assert_eq!(world.refused(&nexus, &cdb16(0x88, 0, 0, 0), &[]), (6, 0x2a, 0x09), "the disk has grown");
    for opcode in [0x88, 0x8f] {
        assert_eq!(world.refused(&nexus, &cdb16(opcode, 0, 0, u32::MAX), &[]), (5, 0x24, 0));
    }
}

#[test]
fn a_short_write_writes_whole_blocks_only() {
    let world = World::new();
    let nexus = world.nexus(1);
    let response = world.run(&nexus, &cdb10(0x2a, 0, 0, 2), &[1; BLOCK]);
    assert_eq!((response.status, response.data_out_bytes), (0, 2 * BLOCK as u64));
    assert_eq!(world.refused(&nexus, &cdb10(0x2a, 0, 0, 2), &[2; 200]), (5, 0x0e, 0x03));
    let read = world.good(&nexus, &cdb10(0x28, 0, 0, 2), &[]);
    assert!(read[..BLOCK].iter().all(|b| *b == 1) && read[BLOCK..].iter().all(|b| *b == 0));
}

#[test]
fn compare_and_write_tells_where_it_differs() {
    let world = World::new();
    let nexus = world.nexus(1);
    let mut cdb = cdb16(0x89, 0, 5, 0);
    cdb[13] = 2;
    let mut data = vec![0; 2 * BLOCK];
    data.extend([3; 2 * BLOCK]);
    world.good(&nexus, &cdb, &data);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 5, 2), &[]), [3; 2 * BLOCK]);
    let mut data = vec![3; 4 * BLOCK];
    data[700] = 4;
    let response = world.run(&nexus, &cdb, &data);
    assert_eq!(sense(&response), Some((0x0e, 0x1d, 0)));
    assert_eq!(response.sense[..7], [0xf0, 0, 0x0e, 0, 0, 2, 188], "the offset of the byte");
    assert_eq!(world.refused(&nexus, &cdb, &data[..100]), (5, 0x24, 0));
}

#[test]
fn orwrite_and_write_atomic() {
    let world = World::new();
    let nexus = world.nexus(1);
    world.good(&nexus, &cdb16(0x8b, 0, 0, 1), &[0x55; BLOCK]);
    world.good(&nexus, &cdb16(0x8b, 0, 0, 1), &[0x0f; BLOCK]);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 0, 1), &[]), [0x5f; BLOCK]);
    let mut cdb = cdb16(0x9c, 0, 8, 0);
    cdb[13] = 8;
    world.good(&nexus, &cdb, &[6; 8 * BLOCK]);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 8, 8), &[]), [6; 8 * BLOCK]);
    cdb[11] = 1;
    assert_eq!(world.refused(&nexus, &cdb, &[6; 8 * BLOCK]), (5, 0x24, 0), "no boundaries");
}

#[test]
fn verify_compares_as_told() {
    let world = World::new();
    let nexus = world.nexus(1);
    world.good(&nexus, &cdb10(0x2a, 0, 0, 4), &[9; 4 * BLOCK]);
    world.good(&nexus, &cdb10(0x2f, 0x06, 0, 4), &[9; BLOCK]);
    assert_eq!(world.refused(&nexus, &cdb10(0x2f, 0x06, 0, 5), &[9; BLOCK]), (0x0e, 0x1d, 0));
    let mut data = [9; 4 * BLOCK];
    data[3 * BLOCK] = 0;
    assert_eq!(world.refused(&nexus, &cdb10(0x2f, 0x02, 0, 4), &data), (0x0e, 0x1d, 0));
    world.good(&nexus, &cdb10(0x2f, 0x00, 0, 4), &[]);
    assert_eq!(world.refused(&nexus, &cdb10(0x2f, 0x04, 0, 4), &[]), (5, 0x24, 0));
}

/// An UNMAP list.
fn unmap_list(runs: &[(u64, u32)]) -> Vec<u8> {
    let bytes = u16::try_from(runs.len() * 16).expect("short");
    let mut list = (bytes + 6).to_be_bytes().to_vec();
    list.extend(bytes.to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in runs {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

#[test]
fn unmapped_blocks_read_zero_and_show_in_the_status() {
    let world = World::new();
    let nexus = world.nexus(1);
    world.good(&nexus, &cdb10(0x41, 0, 0, 64), &[7; BLOCK]);
    let status = |lba| {
        let mut cdb = cdb16(0x9e, 0x12, lba, 1024);
        cdb[1] = 0x12;
        let out = world.good(&nexus, &cdb, &[]);
        out[8..]
            .chunks(16)
            .map(|d| (u64::from_be_bytes(d[..8].try_into().expect("8")), d[11], d[12]))
            .collect::<Vec<_>>()
    };
    assert_eq!(status(0), [(0, 64, 0), (64, 192, 1)].map(|(lba, n, kind): (u64, u8, u8)| (lba, n, kind)));
    let list = unmap_list(&[(8, 16), (40, 0), (32, 8)]);
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, u8::try_from(list.len()).expect("short"), 0];
    world.good(&nexus, &cdb, &list);
    assert_eq!(status(0)[..4], [(0, 8, 0), (8, 16, 1), (24, 8, 0), (32, 8, 1)]);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 8, 16), &[]), [0; 16 * BLOCK]);
    let list = unmap_list(&[(0, 8), (BLOCKS, 1)]);
    let cdb = [0x42, 0, 0, 0, 0, 0, 0, 0, u8::try_from(list.len()).expect("short"), 0];
    assert_eq!(world.refused(&nexus, &cdb, &list), (5, 0x21, 0));
    assert_eq!(status(0)[0], (0, 8, 0), "nothing of it has happened");
    assert_eq!(world.refused(&nexus, &cdb16(0x9e, 0x12, BLOCKS, 64), &[]), (5, 0x21, 0));
}

#[test]
fn write_same_fills_zeroes_and_unmaps() {
    let world = World::new();
    let nexus = world.nexus(1);
    world.good(&nexus, &cdb16(0x93, 0, 0, 0), &[1; BLOCK]);
    assert_eq!(world.good(&nexus, &cdb16(0x88, 0, BLOCKS - 1, 1), &[]), [1; BLOCK], "0 goes to the end");
    world.good(&nexus, &cdb16(0x93, 0x01, 0, 8), &[]);
    assert_eq!(world.disk.extent(0, 4096), Ok(Extent { bytes: 4096, mapped: true }));
    world.good(&nexus, &cdb16(0x93, 0x08, 0, 8), &[0; BLOCK]);
    assert_eq!(world.disk.extent(0, 4096), Ok(Extent { bytes: 4096, mapped: false }));
    world.good(&nexus, &cdb16(0x93, 0, 0, 8), &[2; BLOCK]);
    world.good(&nexus, &cdb16(0x93, 0x08, 0, 8), &[3; BLOCK]);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 0, 8), &[]), [3; 8 * BLOCK], "data that unmapped blocks do not have");
    world.good(&nexus, &cdb10(0x41, 0x08, 0, 8), &[3; BLOCK]);
    assert_eq!(world.good(&nexus, &cdb10(0x28, 0, 0, 8), &[]), [0; 8 * BLOCK], "the short one unmaps all the same");
    assert_eq!(world.refused(&nexus, &cdb16(0x93, 0, 0, 8), &[2; 2 * BLOCK]), (5, 0x0e, 3), "one block it has to be");
    assert_eq!(world.refused(&nexus, &cdb16(0x93, 0x18, 0, 8), &[0; BLOCK]), (5, 0x24, 0), "no anchors");
    let thick = World::with(Arc::default(), UnitConfig { thin: Some(false), ..config() });
    let nexus = thick.nexus(1);
    assert_eq!(thick.refused(&nexus, &cdb16(0x93, 0x08, 0, 8), &[0; BLOCK]), (5, 0x24, 0));
    assert_eq!(thick.refused(&nexus, &[0x42; 10], &[]), (5, 0x20, 0));
}

#[test]
fn a_full_pool_is_told_and_forgotten() {
    let units = TargetUnits::new("iqn.2026-01.test:full", None);
    let disk = Arc::new(MemoryBacking::with_limit(64 << 20, 40 << 20));
    units.add_unit(1, config(), disk.clone()).expect("adds");
    let world = World { units, kept: Arc::default(), disk };
    let nexus = world.nexus(1);
    let page = world.good(&nexus, &[0x1a, 8, 0x1c, 2, 255, 0], &[]);
    assert_eq!(page[4..8], [0x5c, 2, 0, 20]);
    assert_eq!(page[20..28], [0x81, 2, 0, 0, 0, 0, 0, 32], "80 % of 40 MiB");
    let write = |lba| world.run(&nexus, &cdb10(0x2a, 0, lba, 8192), &vec![1; 8192 * BLOCK]);
    let mut told = false;
    let mut lba = 0;
    loop {
        match sense(&write(lba)) {
            None => lba += 8192,
            Some((6, 0x38, 0x07)) => told = true,
            Some(other) => break assert_eq!(other, (7, 0x27, 0x07)),
        }
    }
    assert!(told, "the threshold comes before the end");
    world.disk.unmap(0, 4096 * 2048).expect("unmaps");
    while sense(&write(lba)) == Some((6, 0x38, 0x07)) {}
    assert_eq!(write(lba).status, 0, "it goes on when there is space");
}

#[test]
fn compare_and_write_is_indivisible() {
    let world = World::new();
    let mut cdb = cdb16(0x89, 0, 3, 0);
    cdb[13] = 1;
    let nexuses: Vec<_> = (1..=4).map(|n| world.nexus(n)).collect();
    let wins: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = nexuses
            .iter()
            .map(|nexus| {
                scope.spawn(|| {
                    let mut wins = 0;
                    for _ in 0..300 {
                        let old = world.good(nexus, &cdb10(0x28, 0, 3, 1), &[]);
                        let count = u32::from_be_bytes(old[..4].try_into().expect("4")) + 1;
                        // all of the block is of one write
                        assert!(old.chunks(4).all(|c| *c == old[..4]));
                        let new = count.to_be_bytes().repeat(BLOCK / 4);
                        wins += u32::from(world.run(nexus, &cdb, &[old, new].concat()).status == 0);
                    }
                    wins
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("joins")).sum()
    });
    let end = world.good(&nexuses[0], &cdb10(0x28, 0, 3, 1), &[]);
    assert_eq!(end[..4], wins.to_be_bytes(), "every success has counted once");
    assert!(wins >= 300);
}

#[test]
fn a_preemption_waits_for_what_it_aborts() {
    let world = World::new();
    let (a, b) = (world.nexus(1), world.nexus(2));
    let out = |nexus: &Arc<Nexus>, action: u8, kind: u8, key: u64, service: u64| {
        let mut list = key.to_be_bytes().to_vec();
        list.extend(service.to_be_bytes());
        list.extend([0; 8]);
        world.run(nexus, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).status
    };
    assert_eq!((out(&a, 0, 0, 0, 0xa), out(&b, 0, 0, 0, 0xb), out(&a, 1, 5, 0xa, 0)), (0, 0, 0));
    let unit = world.units.unit(1).expect("unit");
    std::thread::scope(|scope| {
        // a write of the other one that is under way
        let hold = unit.ranges.enter(0, 8, false);
        let preemption = scope.spawn(|| out(&b, 5, 5, 0xb, 0xa));
        while unit.reservations.state().registrations.len() > 1 {
            std::thread::yield_now();
        }
        assert!(!preemption.is_finished());
        drop(hold);
        assert_eq!(preemption.join().expect("joins"), 0);
    });
    assert_eq!(world.refused(&a, &cdb10(0x2a, 0, 0, 1), &[1; BLOCK]), (6, 0x2a, 5));
    assert_eq!(world.run(&a, &cdb10(0x2a, 0, 0, 1), &[1; BLOCK]).status, 0x18);
}

/// Lends what it has, cut into three, or too little of it.
struct Lender {
    memory: MemoryBacking,
    short: AtomicBool,
    lent: AtomicU64,
}

impl Backing for Lender {
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn thin(&self) -> bool {
        true
    }
    fn lend(&self, offset: u64, bytes: usize) -> Option<Vec<Part>> {
        if offset == 0 {
            return None;
        }
        let mut all = vec![0; bytes + 7];
        self.memory.read(offset, all.get_mut(3..bytes + 3)?).ok()?;
        self.lent.fetch_add(bytes as u64, Ordering::SeqCst);
        let end = if self.short.load(Ordering::SeqCst) { bytes + 2 } else { bytes + 3 };
        let all = Arc::new(all);
        Some([3..100, 100..101, 101..end].map(|range| Part::new(all.clone(), range)).to_vec())
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> crate::backing::Result<()> {
        self.memory.read(offset, buf)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> crate::backing::Result<()> {
        self.memory.write(offset, data, durable)
    }
    fn flush(&self) -> crate::backing::Result<()> {
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> crate::backing::Result<()> {
        self.memory.unmap(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> crate::backing::Result<()> {
        self.memory.write_zeroes(offset, bytes)
    }
    fn extent(&self, offset: u64, bytes_max: u64) -> crate::backing::Result<Extent> {
        self.memory.extent(offset, bytes_max)
    }
    fn space(&self) -> Space {
        self.memory.space()
    }
}

#[test]
fn what_storage_lends_is_sent_and_nothing_less() {
    let world = World::new();
    let memory = MemoryBacking::new(BLOCKS * BLOCK as u64);
    let disk = Arc::new(Lender { memory, short: AtomicBool::new(false), lent: AtomicU64::new(0) });
    world.units.add_unit(2, config(), disk.clone()).expect("adds");
    let nexus = world.fresh(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    let data: Vec<u8> = (0..BLOCK * 4).map(|i| u8::try_from(i % 251).expect("small")).collect();
    assert_eq!(world.run_on(2, &nexus, &cdb10(0x2a, 0, 0, 4), &data).status, 0);
    let mut lent = 0;
    for (lba, short) in [(0, false), (1, false), (2, false), (1, true)] {
        disk.short.store(short, Ordering::SeqCst);
        let response = world.run_on(2, &nexus, &cdb10(0x28, 0, lba, 2), &[]);
        assert_eq!(response.status, 0);
        let parts: Vec<u8> = response.lent.iter().flat_map(|part| part.bytes().to_vec()).collect();
        let all = [response.data_in, parts.clone()].concat();
        assert_eq!(all, data[lba as usize * BLOCK..(lba as usize + 2) * BLOCK]);
        assert_eq!(parts.is_empty(), lba == 0 || short);
        lent += if lba == 0 { 0 } else { 2 * BLOCK as u64 };
        assert_eq!(disk.lent.load(Ordering::SeqCst), lent);
    }
    // nothing is read beyond the end, and nothing for nothing
    let end = u32::try_from(BLOCKS).expect("small");
    assert_eq!(world.run_on(2, &nexus, &cdb10(0x28, 0, end - 1, 2), &[]).status, 2);
    let nothing = world.run_on(2, &nexus, &cdb10(0x28, 0, 5, 0), &[]);
    assert!(nothing.status == 0 && nothing.lent.is_empty() && nothing.data_in.is_empty());
    assert_eq!(disk.lent.load(Ordering::SeqCst), lent);
    assert_eq!(world.units.stats(2).expect("unit").read_bytes, 4 * 2 * BLOCK as u64);
}

#[test]
fn the_threshold_is_told_in_time() {
    const MIB: usize = 1 << 20;
    let world = World::new();
    let disk = Arc::new(MemoryBacking::with_limit(256 << 20, 160 << 20));
    let config = UnitConfig { soft_threshold_percent: 50, ..config() };
    world.units.add_unit(2, config, disk).expect("adds");
    let nexus = world.fresh(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    let data = vec![7; MIB];
    let mut told = None;
    for n in 0..120u32 {
        let lba = n * u32::try_from(MIB / BLOCK).expect("small");
        let cdb = cdb10(0x2a, 0, lba, u16::try_from(MIB / BLOCK).expect("small"));
        let mut response = world.run_on(2, &nexus, &cdb, &data);
        if response.status == 2 {
            assert_eq!(sense(&response), Some((6, 0x38, 0x07)));
            assert!(told.replace(n).is_none(), "told twice");
            response = world.run_on(2, &nexus, &cdb, &data);
        }
        assert_eq!(response.status, 0);
    }
    let told = told.expect("the threshold at 80 MiB was passed");
    assert!((80..=100).contains(&told), "told after {told} MiB");
}
