//! Images that are damaged, cut off or forged: an error that says why, or the truth.

use proptest::prelude::*;

use super::format::{BAT_REGION, PayloadState, REGION_TABLE_OFFSETS};
use super::*;

/// An image with three blocks, closed.
fn sample() -> Arc<SimFile> {
    let (file, image) = fresh(&options(8 * MIB));
    for block in 0..3 {
        image.write(block * MIB, &[block as u8 + 1; 4096]).unwrap();
    }
    image.close().unwrap();
    file
}

fn table_of(file: &Arc<SimFile>) -> u64 {
    load(file, false).unwrap().regions().bat.offset
}

fn put_entry(file: &Arc<SimFile>, index: u64, entry: BatEntry) {
    file.tamper(table_of(file) + index * 8, &entry.0.to_le_bytes());
}

#[test]
fn one_of_two_is_enough() {
    for damaged in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        let file = sample();
        file.tamper(damaged, &[0xff; 4096]);
        let image = load(&file, true).unwrap();
        assert_eq!(read(&image, MIB, 4096), [2; 4096]);
        image.write(5 * MIB, &[9; 512]).unwrap();
        image.close().unwrap();
        drop(image);
        assert_eq!(read(&load(&file, false).unwrap(), 5 * MIB, 512), [9; 512]);
    }
    for pair in [[64 << 10, 128 << 10], [192 << 10, 256 << 10]] {
        let file = sample();
        pair.iter().for_each(|at| file.tamper(*at, &[0xff; 4096]));
        assert_eq!(load(&file, true).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn the_second_region_table_overrules_no_intact_one() {
    let file = sample();
    let bytes = file.bytes(REGION_TABLE_OFFSETS[0], format::REGION_TABLE_BYTES);
    let mut table = format::RawRegionTable::decode(&bytes).validate().unwrap();
    let length = file.contents().length;
    file.set_length(length + MIB).unwrap();
    let region = format::Region { offset: length, length: MIB as u32 };
    table.others.push(format::RawRegion { guid: Guid::random(4711), region, flags: 1 });
    file.tamper(REGION_TABLE_OFFSETS[0], &table.encode());
    let before = file.bytes(0, length as usize);
    for write in [false, true] {
        let error = load(&file, write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert!(file.bytes(0, length as usize) == before);
    // One that makes no sense is no reason either: it was written so.
    table.others[0].region.offset = 512;
    file.tamper(REGION_TABLE_OFFSETS[0], &table.encode());
    load(&file, true).unwrap_err();
    // Torn, it is.
    file.tamper(REGION_TABLE_OFFSETS[0] + 100, &[1]);
    assert_eq!(read(&load(&file, true).unwrap(), MIB, 4096), [2; 4096]);
}

#[test]
fn cut_off_files() {
    let whole = sample().contents().length;
    for length in [0, 100, 64 << 10, 1 << 20, 2 << 20, 3 << 20, 4 << 20, whole - MIB, whole - 1] {
        let file = sample();
        file.set_length(length).unwrap();
        match load(&file, true) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}"),
            Ok(image) => {
                assert!(length >= 4 << 20);
                assert_eq!(image.read(2 * MIB, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
                let before = file.bytes(0, 1 << 20);
                assert_eq!(image.write(0, &[1; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
                assert!(file.bytes(0, 1 << 20) == before, "nothing was changed");
            }
        }
    }
}

#[test]
fn nothing_is_written_into_an_image_whose_blocks_overlap() {
    let file = sample();
    let first = load(&file, false).unwrap().block_entry(0).unwrap().offset();
    let bad = [
        BatEntry::payload(PayloadState::FullyPresent, first),
        BatEntry::payload(PayloadState::FullyPresent, MIB),
        BatEntry::payload(PayloadState::FullyPresent, 2 * MIB),
        BatEntry::payload(PayloadState::FullyPresent, 0),
        BatEntry::payload(PayloadState::FullyPresent, 1 << 50),
    ];
    for entry in bad {
        let file = sample();
        put_entry(&file, 5, entry);
        let before = file.bytes(0, 8 << 20);
        let image = load(&file, true).unwrap();
        assert_eq!(read(&image, MIB, 512), [2; 512], "what is good can be read");
        for error in [image.write(0, &[5; 512]), image.trim(0, MIB), image.resize(16 * MIB, false)] {
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt, "{entry:?}");
        }
        drop(image);
        assert!(file.bytes(0, 8 << 20) == before, "{entry:?}");
    }
    let reserved = sample();
    put_entry(&reserved, 5, BatEntry(4));
    let image = load(&reserved, false).unwrap();
    assert_eq!(image.read(5 * MIB, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
    // Partially present, and no bitmap.
    put_entry(&reserved, 0, BatEntry::payload(PayloadState::PartiallyPresent, first));
    let image = load(&reserved, false).unwrap();
    assert_eq!(image.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn discarded_blocks_that_keep_their_place_keep_it() {
    let file = sample();
    let last = load(&file, false).unwrap().block_entry(2).unwrap().offset();
    put_entry(&file, 2, BatEntry(last | 3));
    let image = load(&file, true).unwrap();
    assert_eq!(read(&image, 2 * MIB, 4096), [0; 4096]);
    image.write(6 * MIB, &[1; 512]).unwrap();
    assert_ne!(image.block_entry(6).unwrap().offset(), last);
}

#[test]
fn parents_that_do_not_fit() {
    let parent_file = sample();
    let parent = load(&parent_file, true).unwrap();
    let child = child_of(&parent, 1 << 20);
    let files = [parent_file.clone(), child.clone()];
    assert_eq!(read(&load_chain(&files, false).unwrap(), MIB, 4096), [2; 4096]);
    parent.write(0, &[9; 512]).unwrap();
    parent.close().unwrap();
    let error = load_chain(&files, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("was changed since"), "{error}");
    let other = CreateOptions { logical_sector: 4096, ..options(8 * MIB) };
    let (_, other) = fresh(&other);
    let child = child_of(&other, 1 << 20);
    let locator = format::ParentLocator::new(parent.data_write_guid(), [("relative_path", "x")]);
    let disk = format::DiskParameters { has_parent: true, ..other.disk() };
    let bytes = Metadata { disk, locator: Some(locator) }.encode();
    child.tamper(2 * MIB, &bytes);
    let error = Image::load(child, false, &env(), |_| load(&parent_file, false)).unwrap_err();
    assert!(error.to_string().contains("sectors"), "{error}");
}

#[test]
fn forged_sizes_take_no_memory() {
    // 64 TiB in blocks of 1 MiB: the table of half a gibibyte is a hole.
    let (file, image) = fresh(&options(64 << 40));
    assert_eq!(read(&image, (64 << 40) - 512, 512), [0; 512]);
    image.write((64 << 40) - 512, &[1; 512]).unwrap();
    image.close().unwrap();
    assert!(file.contents().length < 600 * MIB);
    // A table too short for its disk.
    let small = sample();
    let metadata = load(&small, false).unwrap().regions().metadata.offset;
    let size = small.bytes(metadata + (64 << 10) + 8, 8);
    assert_eq!(size, (8 * MIB).to_le_bytes());
    small.tamper(metadata + (64 << 10) + 8, &(64u64 << 40).to_le_bytes());
    assert!(load(&small, false).unwrap_err().to_string().contains("table needs"));
    // A region that claims to lie behind the end.
    let mut table = small.bytes(REGION_TABLE_OFFSETS[0], 64 << 10);
    assert_eq!(table[16..32], BAT_REGION.bytes());
    table[40..44].copy_from_slice(&0xfff0_0000u32.to_le_bytes());
    let sum = format::checksum_with_hole(&table, 4);
    table[4..8].copy_from_slice(&sum.to_le_bytes());
    small.tamper(REGION_TABLE_OFFSETS[0], &table);
    assert!(load(&small, false).unwrap_err().to_string().contains("cut off"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damage_anywhere_never_panics_nor_makes_it_worse(
        place in prop_oneof![0u64..1 << 20, 2u64 << 20..(2 << 20) + 70_000, (3u64 << 20)..(3 << 20) + 100],
        bytes in proptest::collection::vec(any::<u8>(), 1..16),
    ) {
        let file = sample();
        file.tamper(place, &bytes);
        if let Ok(image) = load(&file, true) {
            let size = image.size().min(16 * MIB);
            for block in 0..size / MIB {
                let _ = image.read(block * MIB, &mut [0; 512]);
            }
            let _ = (image.write(4 * MIB, &[1; 512]), image.trim(0, MIB), image.flush());
        }
    }
}
