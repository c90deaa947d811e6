//! What the record cache keeps of volumes and of files, and that it never keeps what is not so any more.

use super::*;
use crate::volume::{Spec, Volume};

const MIB: usize = 1 << 20;

/// A pool of four disks with two parities whose record cache has 16 MiB, and a volume in it.
fn pool_with_volume(size: usize, seed: u64) -> (World, Arc<Volume>) {
    let world = World::new(geometry(2, 2), 4, 160, seed);
    let spec = Spec { size_bytes: size as u64, block_bytes: 512, record_bytes: 16 << 10, reserve: false };
    world.pool().create_volume("v", &spec).unwrap();
    let volume = world.pool().open_volume("v").unwrap();
    (world, volume)
}

impl World {
    fn bytes_read(&self) -> u64 {
        self.disks.iter().map(|d| d.1.counters().read_bytes).sum()
    }

    fn cache_bytes(&self) -> u64 {
        self.pool().records.cache_bytes()
    }
}

/// Reads all of a volume in pieces of 1 MiB, and returns how many bytes came from the disks for it.
fn read_all(world: &World, volume: &Volume, is: &[u8]) -> u64 {
    let before = world.bytes_read();
    for (n, is) in is.chunks(MIB).enumerate() {
        let mut buf = vec![0xee; is.len()];
        volume.read((n * MIB) as u64, &mut buf).unwrap();
        assert!(buf == is, "MiB {n} differs");
    }
    world.bytes_read() - before
}

#[test]
fn long_reads_of_volumes_stay_in_memory_and_those_of_files_do_not() {
    let (world, volume) = pool_with_volume(8 * MIB, 1);
    let data = pattern(1, 8 * MIB);
    volume.write(0, &data, false).unwrap();
    world.write(1000, 0, &data[..MIB]);
    world.pool().commit().unwrap();
    world.drop_caches();
    assert!(read_all(&world, &volume, &data) >= 8 * MIB as u64);
    assert_eq!(read_all(&world, &volume, &data), 0);

    assert!(world.read(1000, 0, MIB).unwrap() == data[..MIB]);
    let before = world.bytes_read();
    assert!(world.read(1000, 0, MIB).unwrap() == data[..MIB]);
    assert!(world.bytes_read() - before >= MIB as u64);
    // short ones are kept
    for _ in 0..2 {
        world.read(1000, 0, 4096).unwrap();
    }
    let before = world.bytes_read();
    assert!(world.read(1000, 0, 4096).unwrap() == data[..4096]);
    assert_eq!(world.bytes_read(), before);
}

#[test]
fn what_was_written_to_a_volume_is_read_from_memory_as_it_is_now() {
    let (world, volume) = pool_with_volume(8 * MIB, 2);
    let mut data = pattern(2, 8 * MIB);
    volume.write(0, &data, false).unwrap();
    world.pool().commit().unwrap();
    assert_eq!(read_all(&world, &volume, &data), 0);
    // the rest of records that are written in part comes from memory, too
    let before = world.bytes_read();
    for round in 0..4 {
        for n in 0..100 {
            let (at, len) = (n * 61_440 + round * 4096, 1024 << (n % 4));
            let new = pattern((round * 100 + n) as u64, len);
            volume.write(at as u64, &new, n % 7 == 0).unwrap();
            data[at..at + len].copy_from_slice(&new);
        }
        let hole = round * 2_000_000 / 512 * 512;
        volume.discard(hole as u64, 50_176).unwrap();
        data[hole..hole + 50_176].fill(0);
        assert_eq!(read_all(&world, &volume, &data), 0);
        world.pool().commit().unwrap();
        assert_eq!(read_all(&world, &volume, &data), 0);
    }
    assert!(world.bytes_read() - before < MIB as u64);
    // and what memory says is what the disks say
    world.drop_caches();
    assert!(read_all(&world, &volume, &data) > 7 * MIB as u64);
    world.check();
}

#[test]
fn replaced_records_keep_nobody_out_of_the_cache() {
    let (world, volume) = pool_with_volume(10 * MIB, 3);
    for round in 0..5 {
        let data = pattern(round, 10 * MIB);
        volume.write(0, &data, false).unwrap();
        world.pool().commit().unwrap();
        assert_eq!(read_all(&world, &volume, &data), 0, "round {round}");
        // read from the disks, it is kept in other pieces
        world.drop_caches();
        read_all(&world, &volume, &data);
        assert_eq!(read_all(&world, &volume, &data), 0, "round {round}");
        let cached = world.cache_bytes();
        assert!((10 * MIB as u64..11 * MIB as u64).contains(&cached), "{cached} bytes are kept of 10 MiB");
    }
    volume.discard(0, 10 * MIB as u64).unwrap();
    world.pool().commit().unwrap();
    assert_eq!(world.cache_bytes(), 0);
}

#[test]
fn the_cache_does_not_grow_beyond_its_bound() {
    let (world, volume) = pool_with_volume(48 * MIB, 4);
    let data = pattern(4, 48 * MIB);
    for (n, piece) in data.chunks(4 * MIB).enumerate() {
        volume.write((n * 4 * MIB) as u64, piece, false).unwrap();
        world.pool().commit().unwrap();
        assert!(world.cache_bytes() <= 16 * MIB as u64);
    }
    read_all(&world, &volume, &data);
    let cached = world.cache_bytes();
    assert!((12 * MIB as u64..=16 * MIB as u64).contains(&cached), "{cached}");
}

#[test]
fn what_could_not_be_read_is_not_kept_as_zeros() {
    let (world, volume) = pool_with_volume(4 * MIB, 5);
    let data = pattern(5, 4 * MIB);
    volume.write(0, &data, false).unwrap();
    world.pool().commit().unwrap();
    let dataset = world.pool().dataset("v").unwrap().id;
    let fragments = world.pool().locate(dataset, crate::volume::VOLUME_OBJECT).unwrap();
    for f in fragments.iter().filter(|f| f.file_offset == 0 && f.column < 3) {
        let garbage = pattern(f.device_offset, f.len as usize);
        world.disks[usize::from(f.device_index)].1.overwrite(f.device_offset, &garbage);
    }
    world.drop_caches();
    volume.write(0, &data[4096..8192], false).unwrap();
    for _ in 0..3 {
        world.pool().commit().unwrap();
        let mut buf = [0; 4096];
        volume.read(0, &mut buf).unwrap();
        assert!(buf == data[4096..8192]);
        assert_eq!(volume.read(4096, &mut buf).unwrap_err().errno(), nix::errno::Errno::EIO);
    }
}

#[test]
fn memory_and_disks_agree_after_devices_went_and_were_replaced() {
    let (mut world, volume) = pool_with_volume(4 * MIB, 6);
    let mut data = pattern(6, 4 * MIB);
    volume.write(0, &data, false).unwrap();
    world.pool().commit().unwrap();
    world.disks[1].1.vanish();
    world.disks[3].1.vanish();
    for n in 0..40 {
        let new = pattern(n, 5000);
        let at = n as usize * 99_840;
        volume.write(at as u64, &new, false).unwrap();
        data[at..at + 5000].copy_from_slice(&new);
    }
    world.pool().commit().unwrap();
    read_all(&world, &volume, &data);
    world.drop_caches();
    read_all(&world, &volume, &data);
    drop(volume);
    world.crash(CrashMode::LoseAll);
    world.import(|n| n != 1 && n != 3).unwrap();
    read_all(&world, &world.pool().open_volume("v").unwrap(), &data);
}

fn lent(volume: &Volume, offset: usize, len: usize) -> Option<Vec<u8>> {
    let parts = volume.lend(offset as u64, len).unwrap()?;
    Some(parts.iter().flat_map(|part| part.to_vec()).collect())
}

#[test]
fn what_is_in_the_cache_is_lent_and_stays_as_it_was() {
    let (world, volume) = pool_with_volume(2 * MIB, 7);
    let mut data = pattern(7, MIB);
    volume.write(0, &data, false).unwrap();
    assert_eq!(lent(&volume, 0, MIB), None, "dirty data is not lent");
    world.pool().commit().unwrap();
    // whole records, as they were written, and then parts of them, as they are read
    for from_disks in [false, true] {
        if from_disks {
            world.drop_caches();
            assert_eq!(lent(&volume, 0, MIB), None);
            assert_eq!(lent(&volume, 8192, 512), None);
            // one of two columns of the first record
            volume.read(512, &mut [0; 512]).unwrap();
            assert!(lent(&volume, 0, 8192).unwrap() == data[..8192]);
            assert_eq!(lent(&volume, 0, 8193), None);
            assert_eq!(lent(&volume, 8192, 8192), None);
            read_all(&world, &volume, &[data.clone(), vec![0; MIB]].concat());
        }
        for (at, len) in [(0, MIB), (512, 512), (4096, 4096), (7680, 1024), (16_000, 20_000), (MIB - 512, 512), (77, 0)]
        {
            assert!(lent(&volume, at, len).unwrap() == data[at..at + len], "{at} {len}");
        }
    }
    assert_eq!(lent(&volume, MIB - 512, 1024), None, "nothing was written behind it");
    volume.lend(2 * MIB as u64, 1).unwrap_err();

    let held = volume.lend(0, 65_536).unwrap().unwrap();
    let old = data.clone();
    volume.write(4096, &[9; 4096], false).unwrap();
    data[4096..8192].fill(9);
    assert_eq!(lent(&volume, 0, 65_536), None);
    assert!(lent(&volume, 16_384, 65_536).unwrap() == data[16_384..81_920]);
    for _ in 0..3 {
        world.pool().commit().unwrap();
        assert!(lent(&volume, 0, 65_536).unwrap() == data[..65_536]);
    }
    volume.discard(0, 32_768).unwrap();
    assert_eq!(lent(&volume, 0, 65_536), None);
    world.pool().commit().unwrap();
    assert_eq!(lent(&volume, 0, 512), None);
    assert!(held.iter().flat_map(|part| part.iter()).eq(&old[..65_536]));
}
