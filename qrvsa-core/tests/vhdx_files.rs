//! Images in files of this machine: sizes, locks, parents by path, and as a device.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qrvsa_core::ErrorKind;
use qrvsa_core::buf::{AlignedBuf, BufSlice};
use qrvsa_core::device::{Device, IoBatch, OpenOptions, Outcome, Request};
use qrvsa_core::vhdx::{CreateOptions, Image, create, create_differencing, open_any, open_device};

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
