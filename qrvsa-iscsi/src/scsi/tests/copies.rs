//! EXTENDED COPY and tokens.

use super::*;
use crate::scsi::call::Blocks;

fn cdb(opcode: u8, action: u8, id: u32, length: usize) -> Vec<u8> {
    let mut cdb = vec![opcode, action, 0, 0, 0, 0];
    cdb.extend(id.to_be_bytes());
    cdb.extend(u32::try_from(length).expect("short").to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

/// World with a second disk at LUN 2.
fn two() -> (World, Arc<Nexus>, Arc<MemoryBacking>) {
    let world = World::new();
    let other = Arc::new(MemoryBacking::new(BLOCKS * BLOCK as u64));
    world.units.add_unit(2, config(), other.clone()).expect("adds");
    let nexus = world.nexus(1);
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    (world, nexus, other)
}

fn cscd(world: &World, nexus: &Arc<Nexus>, number: u64) -> Vec<u8> {
    let page = world.run_on(number, nexus, &[0x12, 1, 0x83, 1, 0, 0], &[]).data_in;
    let mut out = vec![0xe4, 0, 0, 0, 1, 3, 0, 16];
    out.extend(&page[8..24]);
    out.resize(32, 0);
    out[30] = 2;
    out
}

fn extended(world: &World, nexus: &Arc<Nexus>, segments: &[(u16, u16, u16, u64, u64)]) -> Response {
    let mut list = vec![7, 0, 0, 64, 0, 0, 0, 0];
    list.extend(u32::try_from(segments.len() * 28).expect("short").to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscd(world, nexus, 1));
    list.extend(cscd(world, nexus, 2));
    for (from, to, blocks, lba, to_lba) in segments {
        list.extend([0x02, 0, 0, 0x18]);
        list.extend(from.to_be_bytes());
        list.extend(to.to_be_bytes());
        list.extend([0, 0]);
        list.extend(blocks.to_be_bytes());
        list.extend(lba.to_be_bytes());
        list.extend(to_lba.to_be_bytes());
    }
    world.run(nexus, &cdb(0x83, 0, 0, list.len()), &list)
}

#[test]
fn segments_are_copied_within_and_between_units() {
    let (world, nexus, other) = two();
    for lba in 0..8u8 {
        world.good(&nexus, &cdb10(0x2a, 0, lba.into(), 1), &[lba + 1; BLOCK]);
    }
    let response = extended(&world, &nexus, &[(0, 1, 8, 0, 100), (0, 0, 8, 0, 2), (1, 1, 64, 1024, 96)]);
    assert_eq!(response.status, 0, "{:x?}", response.sense);
    let moved = world.good(&nexus, &cdb10(0x28, 0, 0, 10), &[]);
    let firsts: Vec<u8> = moved.chunks(BLOCK).map(|b| b[0]).collect();
    assert_eq!(firsts, [1, 2, 1, 2, 3, 4, 5, 6, 7, 8], "overlapping ranges come out whole");
    assert_eq!(other.extent(0, 1 << 20), Ok(Extent { bytes: 1 << 20, mapped: false }), "a hole was copied over it");
    let status = world.good(&nexus, &[0x84, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], &[]);
    assert_eq!(status, [0, 0, 0, 8, 1, 0, 3, 1, 0, 0, 0, 40]);
    assert_eq!(sense(&extended(&world, &nexus, &[(0, 5, 8, 0, 100)])), Some((0x0a, 0x08, 0x04)));
    assert_eq!(sense(&extended(&world, &nexus, &[(0, 1, 8, 0, BLOCKS - 1)])), Some((0x0a, 0, 0)));
    assert_eq!(sense(&world.run(&nexus, &cdb(0x83, 0, 0, 10), &[0; 10])), Some((5, 0x1a, 0)));
}

fn populate(world: &World, nexus: &Arc<Nexus>, id: u32, runs: &[(u64, u32)]) -> Vec<u8> {
    populate_on(1, world, nexus, id, runs)
}

fn populate_on(number: u64, world: &World, nexus: &Arc<Nexus>, id: u32, runs: &[(u64, u32)]) -> Vec<u8> {
    let bytes = u16::try_from(runs.len() * 16).expect("short");
    let mut list = (bytes + 14).to_be_bytes().to_vec();
    list.extend([0; 12]);
    list.extend(bytes.to_be_bytes());
    for (lba, count) in runs {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    assert_eq!(world.run_on(number, nexus, &cdb(0x83, 0x10, id, list.len()), &list).status, 0);
    let mut ask = vec![0x84, 7];
    ask.extend(id.to_be_bytes());
    ask.extend([0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
    let info = world.run_on(number, nexus, &ask, &[]).data_in;
    assert_eq!((info[4], info[5], info[32..36].to_vec()), (0x10, 1, vec![0, 0, 2, 2]));
    info[38..550].to_vec()
}

fn use_token(world: &World, nexus: &Arc<Nexus>, token: &[u8], offset: u64, runs: &[(u64, u32)]) -> Response {
    let bytes = u16::try_from(runs.len() * 16).expect("short");
    let mut list = (bytes + 534).to_be_bytes().to_vec();
    list.extend([0; 6]);
    list.extend(offset.to_be_bytes());
    list.extend(token);
    list.extend([0; 6]);
    list.extend(bytes.to_be_bytes());
    for (lba, count) in runs {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    world.run_on(2, nexus, &cdb(0x83, 0x11, 9, list.len()), &list)
}

#[test]
fn a_token_stands_for_data_until_they_change() {
    let (world, nexus, other) = two();
    world.good(&nexus, &cdb10(0x2a, 0, 8, 8), &[5; 8 * BLOCK]);
    world.good(&nexus, &cdb10(0x2a, 0, 64, 8), &[6; 8 * BLOCK]);
    let token = populate(&world, &nexus, 3, &[(8, 8), (64, 8)]);
    assert_eq!(use_token(&world, &nexus, &token, 4, &[(0, 6), (100, 6)]).status, 0);
    let mut read = vec![0; 6 * BLOCK];
    other.read(0, &mut read).expect("reads");
    assert_eq!(read.chunks(BLOCK).map(|b| b[0]).collect::<Vec<_>>(), [5, 5, 5, 5, 6, 6]);
    assert_eq!(use_token(&world, &nexus, &token, 8, &[(0, 64)]).status, 0);
    let info = world.run_on(2, &nexus, &[0x84, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]).data_in;
    assert_eq!((info[4], info[5], info[23]), (0x11, 3, 8), "the token had no more");
    // writes elsewhere do no harm
    world.good(&nexus, &cdb10(0x2a, 0, 72, 1), &[1; BLOCK]);
    assert_eq!(use_token(&world, &nexus, &token, 0, &[(0, 1)]).status, 0);
    world.good(&nexus, &cdb10(0x2a, 0, 71, 1), &[1; BLOCK]);
    assert_eq!(sense(&use_token(&world, &nexus, &token, 0, &[(0, 1)])), Some((5, 0x23, 0x06)));
    assert_eq!(sense(&use_token(&world, &nexus, &token, 0, &[(0, 1)])), Some((5, 0x23, 0x04)));
    let mut zeroes = vec![0; 512];
    zeroes[..8].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 1, 0xf8]);
    assert_eq!(use_token(&world, &nexus, &zeroes, 0, &[(0, 6)]).status, 0);
    other.read(0, &mut read).expect("reads");
    assert!(read.iter().all(|b| *b == 0));
    let mut forged = populate(&world, &nexus, 3, &[(8, 8)]);
    forged[130] ^= 1;
    assert_eq!(sense(&use_token(&world, &nexus, &forged, 0, &[(0, 1)])), Some((5, 0x23, 0x04)));
}

#[test]
fn a_token_that_is_written_over_while_it_is_used_is_not_good() {
    let (world, nexus, _) = two();
    world.units.remove_unit(2).expect("removes");
    let disk = Arc::new(Managed::new());
    world.units.add_unit(2, config(), disk.clone()).expect("adds");
    while world.run_on(2, &nexus, &[0; 6], &[]).status == 2 {}
    assert_eq!(world.run_on(2, &nexus, &cdb10(0x2a, 0, 0, 16), &[7; 16 * BLOCK]).status, 0);
    let unit = world.units.unit(2).expect("unit");
    for (to, writes, outcome) in [(64, true, Some((5, 0x23, 6))), (64, false, None), (8, false, None)] {
        let token = populate_on(2, &world, &nexus, 3, &[(0, 16)]);
        if writes {
            let unit = unit.clone();
            // another command's write, between the read and the write of the copy
            *disk.before.lock() = Some(Box::new(move || unit.watch.written(Blocks { lba: 3, count: 1 })));
        }
        assert_eq!(sense(&use_token(&world, &nexus, &token, 0, &[(to, 16)])), outcome, "to {to}");
    }
}
