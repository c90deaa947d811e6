//! Sound images are clean; each deliberate violation is found, under its code and no other; random damage is survived.

pub(in crate::vhdx) mod image;
pub(in crate::vhdx) mod violations;

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use image::*;
use violations::VIOLATIONS;

fn checked(image: &Image) -> Report {
    check(&image.bytes.as_slice(), &mut |_, _| {}).unwrap()
}

#[test]
fn sound_images_are_clean() {
    for (name, image) in [("dynamic", dynamic()), ("differencing", differencing())] {
        let report = checked(&image);
        assert!(report.findings.is_empty() && report.facts.complete, "{name}: {:?}", report.findings);
        assert_eq!((report.facts.disk_bytes, report.facts.block_bytes), (Some(8 << 20), Some(1 << 20)));
    }
    assert_eq!((checked(&dynamic()).facts.blocks, checked(&differencing()).facts.blocks), (2, 3));
}

#[test]
fn every_violation_is_found_under_its_codes() {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut wrong = Vec::new();
    for (name, base, breaking, codes) in VIOLATIONS {
        let mut image = base();
        breaking(&mut image);
        let report = checked(&image);
        let got: BTreeSet<&str> = report.counts.keys().copied().collect();
        if got != codes.iter().copied().collect() {
            wrong.push(format!("{name}: found {got:?}, wanted {codes:?}"));
        }
        for finding in &report.findings {
            assert!(!finding.what.is_empty() && !finding.advice.is_empty() && !finding.structure.is_empty(), "{name}");
        }
        found.extend(got);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(VIOLATIONS.len() >= 100, "{}", VIOLATIONS.len());
    // What needs files is tested below.
    let files =
        ["space-trailing-hole", "parent-missing", "parent-unreadable", "parent-guid", "parent-loop", "parent-sector"];
    let never: Vec<_> = CODES.iter().map(|i| i.code).filter(|c| !found.contains(c) && !files.contains(c)).collect();
    assert!(never.is_empty(), "no image for {never:?}");
}

#[test]
fn a_dirty_log_is_replayed_in_memory() {
    let image = dirty();
    let report = checked(&image);
    assert_eq!(report.counts.keys().copied().collect::<Vec<_>>(), ["log-dirty"], "{:?}", report.findings);
    assert_eq!((report.facts.replayed_entries, report.facts.blocks), (1, 2));
    assert!(report.is_clean());
}

#[test]
fn the_newest_sequence_rules() {
    // Two entries that follow each other round the end of the log; an older one, stale, behind them.
    let mut image = dirty();
    image.put(LOG, &[0; 8192]);
    let mut first = vec![0; 4096];
    first[..8].copy_from_slice(&(6u64 | 99 << 20).to_le_bytes());
    let mut second = vec![0; 4096];
    second[..8].copy_from_slice(&(6u64 | 4 << 20).to_le_bytes());
    second[8..16].copy_from_slice(&(6u64 | 5 << 20).to_le_bytes());
    let tail = (MIB - 4096) as u32;
    image.log_entry(
        LOG + u64::from(tail),
        &LogEntry { tail, pieces: vec![(BAT, Some(first.clone()))], ..LogEntry::new(20) },
    );
    image.log_entry(LOG + 4096, &LogEntry { tail, pieces: vec![(BAT, Some(second))], ..LogEntry::new(21) });
    image.log_entry(LOG + 12288, &LogEntry { tail: 12288, pieces: vec![(BAT, Some(first))], ..LogEntry::new(7) });
    let report = checked(&image);
    assert_eq!(report.counts.keys().copied().collect::<Vec<_>>(), ["log-dirty"], "{:?}", report.findings);
    assert_eq!(report.facts.replayed_entries, 2);
}

#[test]
fn the_second_region_table_serves() {
    let mut image = dynamic();
    image.put(REGIONS[0], &[0; 65536]);
    let report = checked(&image);
    assert_eq!(report.counts.keys().copied().collect::<Vec<_>>(), ["region-signature"]);
    assert!(report.facts.complete);
}

#[test]
fn findings_are_bounded() {
    let mut image = dynamic();
    image.u64(META + 65544, 4000 * MIB);
    for entry in 8..2000 {
        image.bat(entry, 4, 0);
    }
    let report = checked(&image);
    assert_eq!((report.counts["bat-state"], report.findings.len()), (1992, 100));
    assert_eq!(report.count(Severity::Error), 1992);
}

#[test]
fn other_files_are_no_images() {
    for bytes in [&b""[..], b"QFI\xfb", &[0; 100_000]] {
        assert_eq!(check(&bytes, &mut |_, _| {}).err().unwrap().kind(), ErrorKind::Invalid);
    }
    assert_eq!(check_file(Path::new("/nonexistent.vhdx"), &mut |_, _| {}).err().unwrap().kind(), ErrorKind::NotFound);
}

fn codes_of_file(path: &Path) -> Vec<&'static str> {
    check_file(path, &mut |_, _| {}).unwrap().counts.into_keys().collect()
}

#[test]
fn parents_are_found_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, child) = (dir.path().join("parent.vhdx"), dir.path().join("child.vhdx"));
    std::fs::write(&child, &differencing().bytes).unwrap();
    assert_eq!(codes_of_file(&child), ["parent-missing"]);
    std::fs::write(&parent, b"not an image").unwrap();
    assert_eq!(codes_of_file(&child), ["parent-unreadable"]);
    let mut image = dynamic();
    std::fs::write(&parent, &image.bytes).unwrap();
    assert_eq!(codes_of_file(&child), ["parent-guid"]);
    let guid: [u8; 16] = std::array::from_fn(|i| i as u8);
    image.headers(|image, at| {
        image.put(at + 32, &guid);
    });
    std::fs::write(&parent, &image.bytes).unwrap();
    assert_eq!(codes_of_file(&child), [""; 0]);
    // A merge in progress: the second linkage counts too.
    let mut merging = differencing();
    let other = "{ffffffff-0504-0706-0809-0a0b0c0d0e0f}";
    set_locator(
        &mut merging,
        &[("parent_linkage", other), ("parent_linkage2", PARENT_GUID), ("relative_path", "parent.vhdx")],
    );
    std::fs::write(&child, &merging.bytes).unwrap();
    assert_eq!(codes_of_file(&child), [""; 0]);
    // Windows paths: of another machine, beside the child.
    set_locator(&mut merging, &[("parent_linkage", PARENT_GUID), ("absolute_win32_path", "C:\\disks\\parent.vhdx")]);
    std::fs::write(&child, &merging.bytes).unwrap();
    assert_eq!(codes_of_file(&child), [""; 0]);
    image.u32(META + 65568, 4096);
    std::fs::write(&parent, &image.bytes).unwrap();
    assert_eq!(codes_of_file(&child), ["parent-sector"]);
    set_locator(&mut merging, &[("parent_linkage", PARENT_GUID), ("relative_path", "child.vhdx")]);
    std::fs::write(&child, &merging.bytes).unwrap();
    assert_eq!(codes_of_file(&child), ["parent-loop"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes at any place: an answer, no panic.
    #[test]
    fn damage_is_survived(
        base in 0..3usize,
        damage in prop::collection::vec((0..4u64, 0..70_000u64, any::<[u8; 8]>(), 1..9usize), 1..12),
        seal: bool,
        cut in prop::option::of(0..7u64 << 20),
    ) {
        let mut image = [dynamic, differencing, dirty][base]();
        for (place, offset, bytes, len) in damage {
            let at = [0, 64 * KIB, LOG, META][place as usize] + offset * if place == 1 { 3 } else { 1 };
            image.put(at, &bytes[..len]);
            if place == 3 {
                image.put(BAT + offset % 33_000, &bytes[..len]);
            }
        }
        if seal {
            image.headers(|_, _| {});
            image.regions(|_, _| {});
        }
        if let Some(cut) = cut {
            image.bytes.truncate(cut as usize);
        }
        match check(&image.bytes.as_slice(), &mut |_, _| {}) {
            Ok(report) => prop_assert!(report.findings.len() < 100 * CODES.len()),
            Err(e) => prop_assert_eq!(e.kind(), ErrorKind::Invalid),
        }
    }
}

#[test]
fn a_hole_behind_the_last_structure_is_a_remark() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vhdx");
    std::fs::write(&path, &dynamic().bytes).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9 << 20).unwrap();
    let report = check_file(&path, &mut |_, _| {}).unwrap();
    // A filesystem that knows no holes makes it a leak.
    assert!(report.is_consistent() && report.counts.keys().all(|code| code.starts_with("space-trailing")));
    assert_eq!(report.counts.len(), 1);
}
