//! Space: given back, used again, and none left.

use super::*;

#[test]
fn trimmed_space_is_used_again_and_reads_as_zeros() {
    let (file, image) = fresh(&options(64 * MIB));
    image.write(0, &vec![0xaa; 4 << 20]).unwrap();
    image.flush().unwrap();
    image.trim(0, 4 * MIB).unwrap();
    image.flush().unwrap();
    let before = image.regions().bat.end();
    for block in 10..14 {
        image.write(block * MIB + 4096, &[1; 512]).unwrap();
    }
    image.flush().unwrap();
    for block in 10..14 {
        assert!(image.block_entry(block).unwrap().offset() < before + 4 * MIB);
        let seen = read(&image, block * MIB, 1 << 20);
        assert_eq!(seen.iter().filter(|b| **b != 0).count(), 512, "nothing of the old contents shows");
    }
    image.close().unwrap();
    assert_eq!(file.contents().length, before + 4 * MIB);
}

#[test]
fn a_fixed_image_keeps_its_blocks() {
    let (_, image) = fresh(&CreateOptions { fixed: true, ..options(4 * MIB) });
    image.write(0, &[1; 4096]).unwrap();
    let entry = image.block_entry(0).unwrap();
    image.trim(0, 4 * MIB).unwrap();
    assert_eq!(image.block_entry(0).unwrap(), entry);
    assert_eq!(read(&image, 0, 4096), [0; 4096]);
    image.resize(6 * MIB, false).unwrap();
    assert!((0..6).all(|b| image.block_entry(b).unwrap().payload_state().has_space()));
    assert_clean(&image);
}

#[test]
fn a_smaller_fixed_image_gives_up_what_lies_behind_its_end() {
    let (file, image) = fresh(&CreateOptions { fixed: true, ..options(8 * MIB) });
    image.write(0, &vec![7; 8 << 20]).unwrap();
    let size = 2 * MIB + 8192;
    image.resize(size, true).unwrap();
    image.close().unwrap();
    drop(image);
    super::tools::assert_checked(&file, "smaller");
    assert_eq!(file.contents().length, (4 + 3) * MIB);
    let image = load(&file, true).unwrap();
    assert_eq!(read(&image, 0, size as usize), vec![7; size as usize]);
    image.resize(8 * MIB, false).unwrap();
    assert!((0..8).all(|b| image.block_entry(b).unwrap().payload_state().has_space()));
    assert!(read(&image, size, (8 * MIB - size) as usize).iter().all(|b| *b == 0));
    image.close().unwrap();
    drop(image);
    super::tools::assert_checked(&file, "larger again");
}

#[test]
fn a_fixed_image_without_room_keeps_its_size() {
    let (file, image) = fresh(&CreateOptions { fixed: true, ..options(4 * MIB) });
    image.write(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    file.set_full(true);
    assert_eq!(image.resize(8 * MIB, false).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(image.size(), 4 * MIB);
    image.write(0, &[3; 4096]).unwrap();
    image.flush().unwrap();
    kill(image);
    file.set_full(false);
    let image = load(&file, true).unwrap();
    assert_eq!((image.size(), read(&image, 0, 4096)), (4 * MIB, vec![3; 4096]));
    image.close().unwrap();
    super::tools::assert_checked(&file, "as before");
    image.resize(8 * MIB, false).unwrap();
    assert!((0..8).all(|b| image.block_entry(b).unwrap().payload_state().has_space()));
    image.close().unwrap();
    super::tools::assert_checked(&file, "larger");
}

#[test]
fn a_full_filesystem_is_an_error_and_no_harm() {
    let (file, image) = fresh(&options(64 * MIB));
    image.write(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    file.set_full(true);
    let error = image.write(5 * MIB, &[2; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("filesystem that holds it is full"), "{error}");
    image.write(0, &[3; 4096]).unwrap();
    image.flush().unwrap();
    file.set_full(false);
    image.write(6 * MIB, &[4; 4096]).unwrap();
    image.close().unwrap();
    drop(image);
    let image = load(&file, true).unwrap();
    assert_clean(&image);
    assert_eq!(read(&image, 0, 4096), [3; 4096]);
    assert_eq!(read(&image, 6 * MIB, 4096), [4; 4096]);
    assert_eq!(read(&image, 5 * MIB, 4096), [0; 4096]);
}

#[test]
fn a_full_filesystem_at_the_first_change() {
    let (file, image) = fresh(&options(64 * MIB));
    file.set_full(true);
    assert_eq!(image.write(0, &[1; 4096]).unwrap_err().kind(), ErrorKind::NoSpace);
    file.set_full(false);
    image.write(0, &[2; 4096]).unwrap();
    image.close().unwrap();
    assert_clean(&image);
}

#[test]
fn the_file_learns_what_is_new() {
    let (file, image) = fresh(&options(16 * MIB));
    image.write(2 * MIB - 4096, &[1; 8192]).unwrap();
    let place = |block: u64| image.block_entry(block).unwrap().offset();
    // Two blocks, each fresh with its first bytes, however few.
    assert_eq!(file.take_hints(), [(place(1) + MIB - 4096, 4096, true), (place(2), 4096, true)]);
    // Short writes to blocks that are there are nobody's business; long ones may go on in new space.
    image.write(MIB, &[2; 4096]).unwrap();
    assert!(file.take_hints().is_empty());
    image.write(2 * MIB, &[3; 1 << 20]).unwrap();
    assert_eq!(file.take_hints(), [(place(2), MIB, false)]);
    image.write(5 * MIB, &[4; 2 << 20]).unwrap();
    assert_eq!(file.take_hints(), [(place(5), MIB, true), (place(6), MIB, true)]);
    image.trim(5 * MIB, MIB).unwrap();
    image.flush().unwrap();
    image.write(5 * MIB, &[5; 4096]).unwrap();
    assert_eq!(file.take_hints(), [(place(5), 4096, true)], "space again");
}

#[test]
fn far_more_allocations_than_an_entry_of_the_log_holds() {
    // Every block in another page of the table.
    let (file, image) = fresh(&options(1 << 40));
    let place = |i: u64| i * 1500 * MIB;
    for i in 0..300 {
        image.write(place(i), &[i as u8 | 1; 512]).unwrap();
    }
    image.flush().unwrap();
    kill(image);
    let image = load(&SimFile::with(file.contents()), true).unwrap();
    assert_clean(&image);
    assert!((0..300).all(|i| read(&image, place(i), 512) == [i as u8 | 1; 512]));
}

#[test]
fn many_threads_at_once() {
    let (file, image) = fresh(&options(64 * MIB));
    std::thread::scope(|scope| {
        for thread in 0u8..6 {
            let image = &image;
            scope.spawn(move || {
                for i in 0..120u64 {
                    let unit = (i * 6 + u64::from(thread)) * 83_968 / 4096;
                    image.write(unit * 4096 % (64 * MIB), &[thread + 1; 4096]).unwrap();
                    match i % 30 {
                        7 => image.flush().unwrap(),
                        13 => image.trim(60 * MIB, 4 * MIB).unwrap(),
                        _ => drop(read(image, i * 4096, 4096)),
                    }
                }
            });
        }
    });
    image.close().unwrap();
    drop(image);
    let image = load(&file, true).unwrap();
    assert_clean(&image);
    assert_eq!(read(&image, 0, 4096), [1; 4096]);
}
