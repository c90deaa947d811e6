//! Compacting, merging and repairing on simulated files: at every step at which the power can fail the image opens, reads as
//! it did, and is consistent for the check, which shares no code with the engine.

use super::super::check::{ImageSource, Severity, check};
use super::super::repair::repair;
use super::*;

const UNIT: usize = 4096;

pub(super) fn assert_checked(file: &Arc<SimFile>, what: &str) {
    let report = check(&ImageSource(&**file), &mut |_, _| {}).unwrap();
    let errors: Vec<_> = report.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{what}: {errors:?}");
}

/// Everything the disk holds.
fn contents(image: &Image) -> Vec<u8> {
    read(image, 0, usize::try_from(image.size()).unwrap())
}

fn survivals(cut: u64) -> [Survives; 4] {
    [Survives::Nothing, Survives::Everything, Survives::Some(cut), Survives::Some(cut + 1000)]
}

/// An image with gaps, blocks of zeros, and blocks with holes.
fn scattered() -> Arc<SimFile> {
    let (file, image) = fresh(&options(12 * MIB));
    for block in 0..12 {
        image.write(block * MIB, &[block as u8 + 1; UNIT]).unwrap();
        image.write((block + 1) * MIB - UNIT as u64, &[block as u8 + 100; UNIT]).unwrap();
    }
    image.flush().unwrap();
    for block in [0, 3, 4, 8] {
        image.trim(block * MIB, MIB).unwrap();
    }
    image.write(5 * MIB, &[0; UNIT]).unwrap();
    image.write(6 * MIB - UNIT as u64, &[0; UNIT]).unwrap();
    image.close().unwrap();
    file
}

#[test]
fn compacting_survives_every_crash() {
    let start = scattered();
    let wanted = contents(&load(&start, false).unwrap());
    let mut cut = 0;
    loop {
        let file = SimFile::with(start.contents());
        let image = load(&file, true).unwrap();
        file.cut_after(cut);
        let done = image.compact(&mut |_, _| {});
        let finished = match done {
            Ok(done) => {
                assert_eq!((done.released_blocks, done.length_after), (1, (4 + 7) * MIB));
                assert!(done.moved_blocks > 0 && done.length_after < done.length_before);
                true
            }
            Err(_) => false,
        };
        kill(image);
        for survives in survivals(cut) {
            let what = format!("cut after {cut}, {survives:?}");
            let crashed = SimFile::with(file.crashed(survives));
            assert_checked(&crashed, &what);
            let image = load(&crashed, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(contents(&image) == wanted, "{what}: other contents");
            // It can be done again.
            let done = image.compact(&mut |_, _| {}).unwrap();
            assert_eq!(done.length_after, (4 + 7) * MIB, "{what}");
            assert!(contents(&image) == wanted, "{what}: other contents after compacting again");
            drop(image);
            assert!(check(&ImageSource(&*crashed), &mut |_, _| {}).unwrap().is_clean(), "{what}");
        }
        if finished {
            break;
        }
        cut += 1;
    }
    assert!(cut > 20, "{cut} steps");
}

/// Bytes of the disks below that hold something.
const WRITTEN: u64 = 12 * MIB;

/// An image whose disk grew so far that the table went to its end; then the blocks before the table were discarded. And the
/// same, small again.
fn grown(small_again: bool) -> Arc<SimFile> {
    let (file, image) = fresh(&options(WRITTEN));
    for block in 0..12 {
        image.write(block * MIB, &[block as u8 + 1; UNIT]).unwrap();
    }
    image.resize(200 << 30, false).unwrap();
    for block in 3..11 {
        image.trim(block * MIB, MIB).unwrap();
    }
    if small_again {
        image.resize(WRITTEN, false).unwrap();
    }
    image.close().unwrap();
    file
}

#[test]
fn a_table_moves_down_and_survives_every_crash() {
    for (small_again, mebibytes) in [(false, 3 + 2 + 4), (true, 3 + 1 + 4)] {
        let start = grown(small_again);
        let image = load(&start, true).unwrap();
        let wanted = read(&image, 0, WRITTEN as usize);
        assert!(image.file_length() > 14 * MIB, "the table does not lie behind the blocks");
        assert_eq!(image.plan_compact(&mut |_, _| {}).unwrap().length_after, mebibytes * MIB);
        kill(image);
        let mut cut = 0;
        loop {
            let file = SimFile::with(start.contents());
            let image = load(&file, true).unwrap();
            file.cut_after(cut);
            let finished = image.compact(&mut |_, _| {}).is_ok_and(|done| {
                assert_eq!(done.length_after, mebibytes * MIB);
                true
            });
            kill(image);
            for survives in survivals(cut) {
                let what = format!("cut after {cut}, {survives:?}");
                let crashed = SimFile::with(file.crashed(survives));
                assert_checked(&crashed, &what);
                let image = load(&crashed, true).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(read(&image, 0, WRITTEN as usize) == wanted, "{what}: other contents");
                assert_eq!(image.compact(&mut |_, _| {}).unwrap().length_after, mebibytes * MIB, "{what}");
                // It is as good as before: it takes writes, and grows again.
                image.resize(300 << 30, false).unwrap();
                image.write(299 << 30, &[5; UNIT]).unwrap();
                assert!(read(&image, 0, WRITTEN as usize) == wanted, "{what}: other contents after compacting again");
                image.close().unwrap();
                drop(image);
                assert!(check(&ImageSource(&*crashed), &mut |_, _| {}).unwrap().is_clean(), "{what}");
            }
            if finished {
                break;
            }
            cut += 1;
        }
        assert!(cut > 10, "{cut} steps");
    }
}

#[test]
fn a_plan_tells_what_compacting_does() {
    let file = scattered();
    let image = load(&file, true).unwrap();
    let plan = image.plan_compact(&mut |_, _| {}).unwrap();
    let done = image.compact(&mut |_, _| {}).unwrap();
    assert_eq!((plan.released_blocks, plan.length_after), (done.released_blocks, done.length_after));
    let again = image.compact(&mut |_, _| {}).unwrap();
    assert_eq!((again.released_blocks, again.moved_blocks), (0, 0));
    assert_eq!(header_of(&file).log_guid, Guid::NIL);
}

#[test]
fn compacting_moves_bitmaps() {
    let parent = scattered();
    let base = load(&parent, false).unwrap();
    let file = child_of(&base, 1 << 20);
    let files = [parent, file.clone()];
    let image = load_chain(&files, true).unwrap();
    // Blocks come first in the file, then the bitmap, then blocks again.
    image.write(0, &vec![9; 1 << 20]).unwrap();
    image.write(MIB, &[8; UNIT]).unwrap();
    image.write(2 * MIB, &[7; UNIT]).unwrap();
    image.flush().unwrap();
    image.trim(0, MIB).unwrap();
    image.trim(MIB, MIB).unwrap();
    image.flush().unwrap();
    let wanted = contents(&image);
    let before = image.file_length();
    image.compact(&mut |_, _| {}).unwrap();
    assert!(image.file_length() < before);
    assert!(contents(&image) == wanted);
    image.write(3 * MIB, &[6; UNIT]).unwrap();
    let wanted = contents(&image);
    image.close().unwrap();
    drop(image);
    assert!(contents(&load_chain(&files, true).unwrap()) == wanted);
    assert!(check(&ImageSource(&*file), &mut |_, _| {}).unwrap().is_clean());
}

/// Parent and child, and what the child reads as.
fn family() -> (Arc<SimFile>, Arc<SimFile>, Vec<u8>) {
    let parent = scattered();
    let base = load(&parent, false).unwrap();
    let file = child_of(&base, 1 << 20);
    drop(base);
    let files = [parent.clone(), file.clone()];
    let image = load_chain(&files, true).unwrap();
    image.write(MIB + 512, &[51; 1536]).unwrap();
    image.write(3 * MIB, &vec![52; 1 << 20]).unwrap();
    image.trim(6 * MIB, MIB).unwrap();
    image.trim(7 * MIB, 8192).unwrap();
    let wanted = contents(&image);
    image.close().unwrap();
    (parent, file, wanted)
}

/// Opens the child with its parent open for writing.
fn open_for_merge(parent: &Arc<SimFile>, child: &Arc<SimFile>) -> Result<Arc<Image>> {
    Image::load(child.clone(), true, &env(), |_| load(parent, true))
}

#[test]
fn merging_survives_every_crash() {
    let (parent_start, child_start, wanted) = family();
    let mut steps = 0;
    // The power of both fails after so many steps of the one, or of the other.
    for of_parent in [true, false] {
        let mut cut = 0;
        loop {
            let (parent, child) = (SimFile::with(parent_start.contents()), SimFile::with(child_start.contents()));
            let image = open_for_merge(&parent, &child).unwrap();
            if of_parent {
                parent.cut_after(cut)
            } else {
                child.cut_after(cut)
            }
            let done = merge_image(&image, false, &mut |_, _| {});
            if let Some(base) = image.parent() {
                base.broken.store(true, Ordering::Release);
            }
            kill(image);
            for survives in survivals(cut) {
                let what = format!("cut after {cut} of the parent: {of_parent}, {survives:?}");
                // What one file lost says nothing about the other: each had its own flushes.
                let (parent, child) = (SimFile::with(parent.crashed(survives)), SimFile::with(child.crashed(survives)));
                assert_checked(&parent, &what);
                assert_checked(&child, &what);
                let files = [parent.clone(), child.clone()];
                let image = load_chain(&files, false).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(contents(&image) == wanted, "{what}: the child reads otherwise");
                drop(image);
                let image = open_for_merge(&parent, &child).unwrap();
                merge_image(&image, false, &mut |_, _| {}).unwrap();
                drop(image);
                assert!(contents(&load(&parent, false).unwrap()) == wanted, "{what}: merged again");
                assert!(contents(&load_chain(&files, false).unwrap()) == wanted, "{what}: the child after merging");
            }
            if done.is_ok() {
                assert!(contents(&load(&parent, false).unwrap()) == wanted);
                break;
            }
            cut += 1;
        }
        steps += cut;
    }
    assert!(steps > 20, "{steps} steps");
}

#[test]
fn merging_changes_the_size_of_the_parent() {
    for size in [5 * MIB + 8192, 20 * MIB] {
        let (parent, child, _) = family();
        let files = [parent.clone(), child.clone()];
        let image = load_chain(&files, true).unwrap();
        image.resize(size, true).unwrap();
        let wanted = contents(&image);
        image.close().unwrap();
        drop(image);
        let image = open_for_merge(&parent, &child).unwrap();
        let merged = merge_image(&image, false, &mut |_, _| {}).unwrap();
        drop(image);
        assert_eq!((merged.size_before, merged.size_after), (12 * MIB, size));
        assert!(contents(&load(&parent, false).unwrap()) == wanted);
        assert!(contents(&load_chain(&files, false).unwrap()) == wanted);
        assert_checked(&parent, "merged");
    }
}

#[test]
fn a_repair_replays_the_log_of_the_engine() {
    let (file, image) = fresh(&options(8 * MIB));
    image.write(MIB, &[3; UNIT]).unwrap();
    image.write(5 * MIB, &[4; UNIT]).unwrap();
    image.flush().unwrap();
    image.trim(MIB, MIB).unwrap();
    image.flush().unwrap();
    let wanted = contents(&image);
    kill(image);
    for survives in survivals(7) {
        let crashed = SimFile::with(file.crashed(survives));
        let report = check(&ImageSource(&*crashed), &mut |_, _| {}).unwrap();
        assert!(report.has("log-dirty") && report.is_consistent(), "{:?}", report.findings);
        let done = repair(&*crashed, &env(), false, &mut |_, _| {}).unwrap();
        assert!(done.after.is_clean() && !done.after.has("log-dirty"), "{:?}", done.after.findings);
        assert_eq!(header_of(&crashed).log_guid, Guid::NIL);
        assert!(contents(&load(&crashed, false).unwrap()) == wanted);
    }
}

mod damage {
    use proptest::prelude::*;

    use super::super::super::check::testing::{VIOLATIONS, differencing, dirty, dynamic};
    use super::*;

    /// Opens and reads what can be; any answer will do.
    fn use_image(bytes: &[u8], write: bool) {
        let file = SimFile::new();
        file.write_at(bytes, 0).unwrap();
        let parent = |_: &format::ParentLocator| {
            // The parent that the child was made for.
            let guid: [u8; 16] = std::array::from_fn(|i| i as u8);
            let mut image = dynamic();
            image.headers(|image, at| {
                image.put(at + 32, &guid);
            });
            let file = SimFile::new();
            file.write_at(&image.bytes, 0).unwrap();
            load(&file, false)
        };
        let Ok(image) = Image::load(file.clone(), write, &env(), parent) else { return };
        let mut at = 0;
        for _ in 0..64 {
            let Ok(extent) = image.extent(at) else { break };
            let mut buf = [0; 4096];
            let len = extent.length.min(4096) as usize;
            let _ = image.read(at, &mut buf[..len]);
            at += extent.length.max(512);
            if at >= image.size() {
                break;
            }
        }
        let _ = image.count_blocks();
        if write {
            let _ = image.write(0, &[1; 512]);
            let _ = image.compact(&mut |_, _| {});
            let _ = image.resize(MIB, true);
            let _ = image.close();
        }
    }

    #[test]
    fn sound_images_are_opened() {
        for image in [dynamic(), dirty()] {
            let file = SimFile::new();
            file.write_at(&image.bytes, 0).unwrap();
            assert_eq!(load(&file, true).unwrap().size(), 8 * MIB);
        }
    }

    #[test]
    fn every_violation_is_survived() {
        for (_, base, breaking, _) in VIOLATIONS {
            let mut image = base();
            breaking(&mut image);
            use_image(&image.bytes, false);
            use_image(&image.bytes, true);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn random_damage_is_survived(
            base in 0..3usize,
            damage in prop::collection::vec((0..4u64, 0..70_000u64, any::<[u8; 8]>(), 1..9usize), 1..8),
            write: bool,
        ) {
            let mut image = [dynamic, differencing, dirty][base]();
            for (place, offset, bytes, len) in damage {
                let at = [0, MIB, 2 * MIB, 3 * MIB][place as usize] + offset % if place == 3 { 33_000 } else { 70_000 };
                image.put(at, &bytes[..len]);
            }
            image.headers(|_, _| {});
            image.regions(|_, _| {});
            use_image(&image.bytes, write);
        }
    }
}
