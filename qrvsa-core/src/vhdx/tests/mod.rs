//! The engine on simulated files.

mod crash;
mod logs;
mod model;
mod opening;
mod sim_file;
mod space;
mod tools;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{BatEntry, BatSlot, Guid, Metadata};
use super::image::Image;
use super::*;
use crate::env::{Environment, SimClock};
use crate::error::{Error, ErrorKind, Result};
use sim_file::{SimFile, Survives};

const MIB: u64 = 1 << 20;

/// A world whose random numbers come again in the next run of the test, but not in its next world: the identity of a log
/// must never be that of an earlier one.
fn env() -> Environment {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Environment::simulated(Arc::new(SimClock::default()), NEXT.fetch_add(1 << 32, Ordering::Relaxed))
}

fn options(size: u64) -> CreateOptions {
    CreateOptions { size, fixed: false, block_size: 1 << 20, logical_sector: 512, physical_sector: 4096 }
}

fn no_parent(_: &format::ParentLocator) -> Result<Arc<Image>> {
    Err(Error::new(ErrorKind::NotFound, "there should be no parent"))
}

fn load(file: &Arc<SimFile>, write: bool) -> Result<Arc<Image>> {
    Image::load(file.clone(), write, &env(), no_parent)
}

/// A new image, open for writing.
fn fresh(options: &CreateOptions) -> (Arc<SimFile>, Arc<Image>) {
    let file = SimFile::new();
    let image = create_in(file.clone(), options, &env()).unwrap();
    (file, image)
}

/// Puts an empty child over an image into a new file.
fn child_of(parent: &Image, block_size: u32) -> Arc<SimFile> {
    let file = SimFile::new();
    let disk = format::DiskParameters { has_parent: true, leave_allocated: false, block_size, ..parent.disk() };
    let locator = format::ParentLocator::new(parent.data_write_guid(), [("relative_path", ".\\parent.vhdx")]);
    create::format(&*file, &Metadata { disk, locator: Some(locator) }, &env()).unwrap();
    file
}

/// Opens a chain, the newest file last; all but it for reading.
fn load_chain(files: &[Arc<SimFile>], write: bool) -> Result<Arc<Image>> {
    let (last, parents) = files.split_last().expect("a chain has a file");
    Image::load(last.clone(), write, &env(), |_| load_chain(parents, false))
}

fn read(image: &Image, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    image.read(offset, &mut buf).unwrap();
    buf
}

/// Forgets an image as a killed process does: nothing more is written.
fn kill(image: Arc<Image>) {
    image.broken.store(true, std::sync::atomic::Ordering::Release);
    drop(image);
}

/// Everything the format demands of a table, on an image that is not dirty.
fn assert_clean(image: &Image) {
    let shape = image.shape.read();
    image.map_of_file(&shape, &image.journal.lock()).unwrap();
    let check = |slot: BatSlot, entry: BatEntry| {
        let problems = entry.problems(slot, &shape.layout);
        assert!(problems.is_empty(), "{slot:?} {entry:?}: {problems:?}");
        if let BatSlot::Payload(block) = slot
            && entry.payload_state() == format::PayloadState::PartiallyPresent
        {
            image.bitmap_run(&shape, block, 0, 512.max(shape.layout.sector as usize)).unwrap();
        }
        Ok(())
    };
    image.for_each_entry(&shape, check).unwrap();
}

/// The header that counts.
fn header_of(file: &SimFile) -> format::Header {
    let raw = format::HEADER_OFFSETS.map(|at| format::RawHeader::decode(&file.bytes(at, format::HEADER_BYTES)));
    raw[format::choose_header(&raw).unwrap()].validate().unwrap()
}

#[test]
fn what_is_written_is_read_after_all_ways_to_end() {
    let (file, image) = fresh(&options(8 * MIB));
    let before = header_of(&file);
    assert_eq!(read(&image, 0, 4096), [0; 4096]);
    assert_eq!(header_of(&file), before, "reading changes nothing");
    image.write(3 * MIB - 512, &[7; 1024]).unwrap();
    let first = header_of(&file);
    assert_ne!((first.file_write_guid, first.data_write_guid), (before.file_write_guid, before.data_write_guid));
    image.flush().unwrap();
    // Killed: the log is there.
    let killed = SimFile::with(file.contents());
    assert_ne!(header_of(&killed).log_guid, Guid::NIL);
    let again = load(&killed, false).unwrap();
    assert_eq!(read(&again, 3 * MIB - 512, 1024), [7; 1024]);
    assert_ne!(header_of(&killed).log_guid, Guid::NIL, "reading replays in memory");
    drop(again);
    let again = load(&killed, true).unwrap();
    assert_eq!(read(&again, 3 * MIB - 512, 1024), [7; 1024]);
    assert_eq!(header_of(&killed).log_guid, Guid::NIL);
    assert_clean(&again);
    // Closed: no log, and nothing behind the last block.
    drop(image);
    assert_eq!(header_of(&file).log_guid, Guid::NIL);
    assert_eq!(file.contents().length, 6 * MIB);
    let again = load(&file, true).unwrap();
    assert_eq!(read(&again, 2 * MIB, 2 << 20).iter().filter(|b| **b == 7).count(), 1024);
    assert_clean(&again);
}

#[test]
fn changes_are_refused_where_they_must_be() {
    let (file, image) = fresh(&options(4 * MIB));
    for (offset, len) in [(0, 100), (100, 512), (4 * MIB, 512), (u64::MAX - 511, 512)] {
        assert_eq!(image.write(offset, &vec![0; len]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(image.read(offset, &mut vec![0; len]).unwrap_err().kind(), ErrorKind::Invalid);
    }
    drop(image);
    let image = load(&file, false).unwrap();
    assert_eq!(image.write(0, &[0; 512]).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(image.trim(0, 512).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(image.resize(MIB, true).unwrap_err().kind(), ErrorKind::ReadOnly);
    image.flush().unwrap();
    image.close().unwrap();
}

#[test]
fn status_tells_runs_apart() {
    let (_, image) = fresh(&options(1 << 40));
    image.write(5 * MIB, &[1; 4096]).unwrap();
    image.write(6 * MIB, &[1; 8192]).unwrap();
    image.write((1 << 40) - 4096, &[1; 4096]).unwrap();
    let mut runs = Vec::new();
    let mut at = 0;
    while at < image.size() {
        let extent = image.status(at).unwrap();
        assert!(extent.length > 0);
        runs.push((extent.offset, extent.length, matches!(extent.kind, ExtentKind::Data { .. })));
        at += extent.length;
    }
    let data: Vec<_> = runs.iter().filter(|r| r.2).map(|r| (r.0, r.1)).collect();
    assert_eq!(data, [(5 * MIB, 4096), (6 * MIB, 8192), ((1 << 40) - 4096, 4096)]);
    assert!(runs.len() < 12, "{} runs", runs.len());
}
