//! Images in files of this machine: sizes, locks, parents by path, and as a device.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_core::ErrorKind;
use qrvsa_core::buf::{AlignedBuf, BufSlice};
use qrvsa_core::device::{Device, IoBatch, OpenOptions, Outcome, Request};
use qrvsa_core::env::Environment;
use qrvsa_core::vhdx::check::check_file;
use qrvsa_core::vhdx::repair::repair_file;
use qrvsa_core::vhdx::{
    ConvertSource, ConvertTarget, Converted, CreateOptions, HostFile, Image, convert, create, create_differencing,
    merge, open_any, open_device,
};

const MIB: u64 = 1 << 20;

fn options(size: u64, block_size: u32) -> CreateOptions {
    CreateOptions { block_size, ..CreateOptions::dynamic(size) }
}

#[test]
fn sixty_four_terabytes_in_five_mebibytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.vhdx");
    create(&path, &options(64_000_000_000_000, 256 << 20)).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 5 * MIB);
    assert!(metadata.blocks() * 512 <= 300 << 10, "{} bytes taken", metadata.blocks() * 512);
    assert_eq!(create(&path, &options(MIB, 1 << 20)).unwrap_err().kind(), ErrorKind::Exists);
    let image = Image::open(&path, true).unwrap();
    image.write(63_999_999_999_488, &[1; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 261 * MIB);
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhdx");
    create(&path, &options(8 * MIB, 1 << 20)).unwrap();
    let writer = Image::open(&path, true).unwrap();
    assert_eq!(Image::open(&path, true).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(Image::open(&path, false).unwrap_err().kind(), ErrorKind::Busy);
    drop(writer);
    let readers = [Image::open(&path, false).unwrap(), Image::open(&path, false).unwrap()];
    assert_eq!(Image::open(&path, true).unwrap_err().kind(), ErrorKind::Busy);
    drop(readers);
    Image::open(&path, true).unwrap();
}

#[test]
fn parents_are_found_by_their_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vhdx"), dir.path().join("sub/child.vhdx"));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    create(&base, &options(8 * MIB, 1 << 20)).unwrap();
    let image = Image::open(&base, true).unwrap();
    image.write(MIB, &[7; 4096]).unwrap();
    drop(image);
    create_differencing(&child, &base, 2 << 20).unwrap();
    let seen = |path: &Path| {
        let mut buf = [0; 4096];
        Image::open(path, false).and_then(|image| image.read(MIB, &mut buf)).map(|()| buf[0])
    };
    assert_eq!(seen(&child).unwrap(), 7);
    // Both moved together, so that only the relative path leads there.
    let other = dir.path().join("other");
    std::fs::create_dir_all(other.join("sub")).unwrap();
    std::fs::rename(&base, other.join("base.vhdx")).unwrap();
    std::fs::rename(&child, other.join("sub/child.vhdx")).unwrap();
    assert_eq!(seen(&other.join("sub/child.vhdx")).unwrap(), 7);
    // The child in its parent's place.
    std::fs::copy(other.join("sub/child.vhdx"), other.join("base.vhdx")).unwrap();
    assert_eq!(seen(&other.join("sub/child.vhdx")).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::remove_file(other.join("base.vhdx")).unwrap();
    std::os::unix::fs::symlink("sub/child.vhdx", other.join("base.vhdx")).unwrap();
    let error = seen(&other.join("sub/child.vhdx")).unwrap_err();
    assert!(error.to_string().contains("among its own parents"), "{error}");
    std::fs::remove_file(other.join("base.vhdx")).unwrap();
    assert_eq!(seen(&other.join("sub/child.vhdx")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn all_look_for_the_parent_in_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let sub = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let base = dir.path().join("base.vhdx");
    create(&base, &options(8 * MIB, 1 << 20)).unwrap();
    let child = sub("a").join("child.vhdx");
    create_differencing(&child, &base, 1 << 20).unwrap();
    let image = Image::open(&child, true).unwrap();
    image.write(MIB, &[7; 4096]).unwrap();
    image.close().unwrap();
    drop(image);
    // Moved, so that its relative path leads to another image; the absolute one is still right.
    let moved = sub("b/c").join("child.vhdx");
    std::fs::rename(&child, &moved).unwrap();
    create(&dir.path().join("b/base.vhdx"), &options(8 * MIB, 1 << 20)).unwrap();
    let mut buf = [0; 4096];
    Image::open(&moved, false).unwrap().read(MIB, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
    let report = check_file(&moved, &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let merged = merge(&moved, false, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::canonicalize(merged.parent).unwrap(), std::fs::canonicalize(&base).unwrap());
    Image::open(&base, false).unwrap().read(MIB, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
    // Without it, the other one is no parent for any of them, and is not touched.
    std::fs::remove_file(&base).unwrap();
    let other = std::fs::read(dir.path().join("b/base.vhdx")).unwrap();
    assert_eq!(Image::open(&moved, false).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(merge(&moved, false, &mut |_, _| {}).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(check_file(&moved, &mut |_, _| {}).unwrap().has("parent-guid"));
    let repaired = |path: &Path| {
        let file = HostFile::open(path, true).unwrap();
        repair_file(&file, &Environment::system(), false, &mut |_, _| {}).unwrap().after
    };
    assert!(repaired(&moved).has("parent-guid"));
    assert!(std::fs::read(dir.path().join("b/base.vhdx")).unwrap() == other);
    std::fs::remove_file(dir.path().join("b/base.vhdx")).unwrap();
    assert!(repaired(&moved).has("parent-missing"));
}

#[test]
fn names_that_no_image_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("x\\y.vhdx"), dir.path().join("child.vhdx"));
    create(&base, &options(8 * MIB, 1 << 20)).unwrap();
    let error = create_differencing(&child, &base, 2 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("backslash"), "{error}");
    assert!(!child.exists());
    // Above both, it does not matter.
    let above = dir.path().join("d\\e");
    std::fs::create_dir(&above).unwrap();
    create(&above.join("base.vhdx"), &options(8 * MIB, 1 << 20)).unwrap();
    create_differencing(&above.join("child.vhdx"), &above.join("base.vhdx"), 2 << 20).unwrap();
    Image::open(&above.join("child.vhdx"), false).unwrap();
}

fn converted(
    from: &Path,
    to: &Path,
    kind: &ConvertTarget,
    force: bool,
    dry_run: bool,
) -> qrvsa_core::Result<Converted> {
    convert(&ConvertSource::open(from, false)?, to, kind, force, dry_run, &mut |_, _| Ok(()))
}

#[test]
fn conversions_take_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (source, target) = (at("source.raw"), at("target.raw"));
    std::fs::write(&source, vec![5; 1 << 20]).unwrap();
    std::fs::write(&target, b"precious").unwrap();
    let raw = ConvertTarget::Raw;
    let user = std::fs::File::open(&target).unwrap();
    user.lock_shared().unwrap();
    for dry_run in [false, true] {
        let error = converted(&source, &target, &raw, true, dry_run).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    drop(user);
    // What appears while it runs.
    let late = at("late.raw");
    let open = ConvertSource::open(&source, false).unwrap();
    let appears = &mut |_, _| {
        std::fs::write(&late, b"precious").unwrap();
        Ok(())
    };
    assert_eq!(convert(&open, &late, &raw, false, false, appears).unwrap_err().kind(), ErrorKind::NeedsForce);
    assert_eq!(std::fs::read(&late).unwrap(), b"precious");
    // Links.
    let (link, nowhere) = (at("link"), at("nowhere"));
    std::os::unix::fs::symlink("target.raw", &link).unwrap();
    std::os::unix::fs::symlink("void", &nowhere).unwrap();
    assert_eq!(converted(&source, &nowhere, &raw, false, false).unwrap_err().kind(), ErrorKind::NeedsForce);
    assert!(nowhere.is_symlink());
    converted(&source, &link, &raw, true, false).unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::read(&target).unwrap(), vec![5; 1 << 20]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("unfinished")), "{left:?}");
}

#[test]
fn a_dry_conversion_fails_where_the_real_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("empty.raw"), b"").unwrap();
    std::fs::write(at("full.raw"), vec![5; 1 << 20]).unwrap();
    std::fs::write(at("other.qcow2"), b"QFI\xfb and so on").unwrap();
    let vhdx = |size: u64| ConvertTarget::Vhdx(options(size, 1 << 20));
    for dry_run in [true, false] {
        for (from, to, kind, wanted) in [
            ("empty.raw", "new.vhdx", vhdx(0), ErrorKind::Invalid),
            ("full.raw", "no/new.vhdx", vhdx(MIB), ErrorKind::NotFound),
            ("full.raw", "no/new.raw", ConvertTarget::Raw, ErrorKind::NotFound),
            ("other.qcow2", "new.vhdx", vhdx(MIB), ErrorKind::Unsupported),
        ] {
            let error = converted(&at(from), &at(to), &kind, false, dry_run).unwrap_err();
            assert_eq!(error.kind(), wanted, "{error}");
            assert!(!error.to_string().contains("unfinished"), "{error}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    assert_eq!(ConvertSource::open(&at("other.qcow2"), true).unwrap().size(), 14);
}

fn run(device: &Arc<dyn Device>, requests: Vec<Request>) -> Vec<Vec<u8>> {
    let mut batch = IoBatch::new();
    for request in requests {
        batch.push(device, request);
    }
    let outcomes = batch.wait(Duration::from_secs(60));
    let bytes = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Done(bufs) => bufs.iter().flat_map(|b| b.iter().copied()).collect(),
        other => panic!("{other:?}"),
    });
    bytes.collect()
}

fn put(offset: u64, len: usize, fill: u8, durable: bool) -> Request {
    let slices = (0..len / 4096).map(|_| BufSlice::whole(Arc::new(AlignedBuf::from_slice(&[fill; 4096])))).collect();
    Request::Write { offset, slices, durable }
}

fn get(offset: u64, len: usize) -> Request {
    Request::Read { offset, bufs: (0..len / 4096).map(|_| AlignedBuf::zeroed(4096)).collect() }
}

#[test]
fn as_a_device() {
    const BLOCK: u64 = 32 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("member.vhdx");
    let new = OpenOptions { create_size: Some(1 << 40), exclusive: true, read_only: false };
    let device = open_device(&path, new).unwrap();
    assert_eq!((device.info().size_bytes, device.info().kind), (1 << 40, "vhdx"));
    assert_eq!(open_device(&path, new).err().unwrap().kind(), ErrorKind::Busy);
    // Later blocks first, so that neighbours do not follow each other in the file; then across their border.
    run(&device, vec![put(3 * BLOCK, 8192, 3, false), put(0, 4096, 1, true), Request::Flush]);
    run(&device, vec![put(2 * BLOCK, 4096, 2, false)]);
    run(&device, vec![put(3 * BLOCK - 8192, 16384, 9, false), put(5 * BLOCK - 4096, 8192, 5, true)]);
    let check = |device: &Arc<dyn Device>| {
        let requests =
            vec![get(3 * BLOCK - 12288, 24576), get(0, 4096), get(2 * BLOCK, 8192), get(5 * BLOCK - 8192, 16384)];
        let seen = run(device, requests);
        let fills: Vec<Vec<u8>> = seen.iter().map(|b| b.chunks(4096).map(|c| c[0]).collect()).collect();
        assert_eq!(fills, [vec![0, 9, 9, 9, 9, 0], vec![1], vec![2, 0], vec![0, 5, 5, 0]]);
    };
    check(&device);
    let taken = device.host_space().unwrap().taken_bytes;
    assert!(taken < 2 * MIB, "{taken}");
    // Another look while it is open, and after it was closed.
    drop(device);
    let look = OpenOptions { read_only: true, ..OpenOptions::default() };
    check(&open_any(&path, look).unwrap());
    let device = open_any(&path, OpenOptions { create_size: None, ..new }).unwrap();
    check(&open_any(&path, look).unwrap());
    run(&device, vec![Request::Discard { offset: 2 * BLOCK, len: BLOCK }, Request::Discard { offset: 0, len: 8192 }]);
    let seen = run(&device, vec![get(3 * BLOCK - 8192, 16384), get(0, 4096)]);
    assert_eq!(seen.iter().map(|b| b[0]).collect::<Vec<_>>(), [0, 0]);
    assert!(device.check_presence().is_ok());
    std::fs::remove_file(&path).unwrap();
    assert!(device.check_presence().unwrap_err().what.contains("unlinked"));
}
