//! Whole VHDX images: an input is a list of edits to a small sound image, with the checksums made right again or not. The
//! image is checked, read, written and repaired.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use qrvsa_core::env::{Environment, SimClock};
use qrvsa_core::vhdx::check::{ImageSource, check};
use qrvsa_core::vhdx::format::log::{Entry, EntryHeader, entry_checksum};
use qrvsa_core::vhdx::format::{
    Guid, HEADER_BYTES, HEADER_OFFSETS, Header, MIB, Metadata, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, RawHeader,
    RawRegionTable, checksum_with_hole,
};
use qrvsa_core::vhdx::repair::repair;
use qrvsa_core::vhdx::{CreateOptions, Image, ImageFile, create_in};
use qrvsa_core::{Error, ErrorKind, Result};

use super::{Input, vhdx};
use crate::Target;

/// Images.
pub const IMAGE: Target = Target {
    name: "vhdx-image",
    covers: "whole VHDX images, edited: check, open, replay, read, write, repair",
    run: image,
    seeds: || {
        let base = |flags: u8| vec![flags];
        let edit = |flags: u8, place: u8, at: u16, bytes: &[u8]| {
            [&[flags, place][..], &at.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
        };
        vec![
            base(0x70),
            base(0x71),
            base(0x72),
            edit(0x70, 0, 8, &[9]),
            edit(0x70, 2, 8, &[3]),
            edit(0x70, 4, 10, &[4]),
            edit(0x71, 7, 24, &[2]),
            edit(0x70, 6, 8, &[6, 0, 0x50]),
            edit(0x72, 5, 4, &[0]),
            edit(0x70, 10, 70, &[]),
        ]
    },
    words: &[b"loge", b"desc", b"zero", b"head", b"regi", b"metadata"],
    bytes_max: 1024,
    memory_max: 1 << 30,
};

const PAGE: u64 = 4096;

/// A sparse file in memory.
#[derive(Clone, Default)]
struct Contents {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    length: u64,
}

impl Contents {
    fn read(&self, mut offset: u64, buf: &mut [u8]) {
        buf.fill(0);
        let mut rest = buf;
        while !rest.is_empty() {
            let within = (offset % PAGE) as usize;
            let count = rest.len().min(PAGE as usize - within);
            let (now, later) = rest.split_at_mut(count);
            if let Some(page) = self.pages.get(&(offset / PAGE)) {
                now.copy_from_slice(&page[within..within + count]);
            }
            rest = later;
            let Some(next) = offset.checked_add(count as u64) else { return };
            offset = next;
        }
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.length = self.length.max(end);
        while !bytes.is_empty() {
            let within = (offset % PAGE) as usize;
            let count = bytes.len().min(PAGE as usize - within);
            let (now, later) = bytes.split_at(count);
            let page = self.pages.entry(offset / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + count].copy_from_slice(now);
            bytes = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length);
        let touched: Vec<u64> = self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(at, _)| *at).collect();
        for at in touched {
            let (from, to) = (offset.max(at * PAGE) - at * PAGE, end.min((at + 1) * PAGE) - at * PAGE);
            if to - from == PAGE {
                self.pages.remove(&at);
            } else if let Some(page) = self.pages.get_mut(&at) {
                page[from as usize..to as usize].fill(0);
            }
        }
    }

    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.read(offset, &mut buf);
        buf
    }
}

struct MemoryFile(RwLock<Contents>);

impl ImageFile for MemoryFile {
    fn path(&self) -> &Path {
        Path::new("/images/fuzzed.vhdx")
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.read().length)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let contents = self.0.read();
        contents.read(offset, buf);
        let there = contents.length.saturating_sub(offset).min(buf.len() as u64);
        buf[there as usize..].fill(0);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write().write(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        if length > i64::MAX as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut contents = self.0.write();
        let old = contents.length;
        if length < old {
            contents.zero(length, old - length);
        }
        contents.length = length;
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        self.0.write().zero(offset, length);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let contents = self.0.read();
        let page = contents.pages.range(offset / PAGE..).next().map(|(at, _)| (at * PAGE).max(offset));
        Ok(page.filter(|at| *at < contents.length))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let contents = self.0.read();
        let mut at = offset / PAGE;
        while contents.pages.contains_key(&at) {
            at += 1;
        }
        Ok((at * PAGE).max(offset).min(contents.length))
    }

    fn identity(&self) -> (u64, u64) {
        (0, 1)
    }
}

fn environment() -> Environment {
    Environment::simulated(Arc::new(SimClock::default()), 7)
}

fn file(contents: Contents) -> Arc<MemoryFile> {
    Arc::new(MemoryFile(RwLock::new(contents)))
}

/// Where the parts of the sound image lie.
struct Places {
    log: u64,
    bat: u64,
    metadata: u64,
    payload: u64,
}

struct Bases {
    /// Closed in order; with a log to replay; with a parent (the first).
    images: [Contents; 3],
    places: Places,
}

fn bases() -> &'static Bases {
    static BASES: OnceLock<Bases> = OnceLock::new();
    BASES.get_or_init(|| make_bases().expect("a sound image"))
}

fn make_bases() -> Result<Bases> {
    let plain = file(Contents::default());
    let options = CreateOptions { block_size: 1 << 20, ..CreateOptions::dynamic(16 << 20) };
    let image = create_in(plain.clone(), &options, &environment())?;
    image.write(0, &[1; 8192])?;
    image.write(5 << 20, &[2; 4096])?;
    image.flush()?;
    image.close()?;
    let plain = plain.0.read().clone();
    let header = current(&plain)?;
    let regions = RawRegionTable::decode(&plain.bytes(REGION_TABLE_OFFSETS[0], REGION_TABLE_BYTES)).validate()?;
    let first_entry = u64::from_le_bytes(plain.bytes(regions.bat.offset, 8).try_into().unwrap_or_default());
    let places = Places {
        log: header.log_offset,
        bat: regions.bat.offset,
        metadata: regions.metadata.offset,
        payload: first_entry & !0xf_ffff,
    };
    let io = |e: io::Error| Error::new(ErrorKind::Io, e.to_string());

    let mut dirty = plain.clone();
    let log_guid = Guid::random(5);
    let mut changes = vhdx::log_entries().swap_remove(1).changes;
    changes.truncate(1);
    let template = vhdx::log_entries().swap_remove(1).header;
    let entry = Entry { header: EntryHeader { log_guid, last_file_offset: dirty.length, ..template }, changes };
    dirty.write(places.log, &entry.encode()).map_err(io)?;
    let open = Header { log_guid, sequence: header.sequence + 1, ..header.clone() };
    dirty.write(HEADER_OFFSETS[0], &open.encode()).map_err(io)?;

    let mut child = plain.clone();
    let metadata = Metadata { disk: vhdx::disk(true), locator: Some(vhdx::locator(header.data_write_guid)) };
    child.write(places.metadata, &metadata.encode()).map_err(io)?;
    Ok(Bases { images: [plain, dirty, child], places })
}

fn current(contents: &Contents) -> Result<Header> {
    let read = |at| RawHeader::decode(&contents.bytes(at, HEADER_BYTES));
    let raw = HEADER_OFFSETS.map(read);
    let current = qrvsa_core::vhdx::format::choose_header(&raw)?;
    raw[current].validate()
}

/// The image that an input describes: the base and which checksums are made right, then edits.
fn build(input: &mut Input<'_>) -> Contents {
    let Bases { images, places } = bases();
    let flags = input.u8();
    let mut contents = images[usize::from(flags & 0xf) % images.len()].clone();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (place, at) = (input.u8() % 12, u64::from(input.u16()));
        let len = usize::from(input.u8());
        let bytes = input.bytes(len);
        let base = match place {
            0 | 1 => HEADER_OFFSETS[usize::from(place)],
            2 | 3 => REGION_TABLE_OFFSETS[usize::from(place - 2)],
            4 => places.metadata,
            5 => places.metadata + (64 << 10),
            6 => places.bat,
            7 => places.log,
            8 => 0,
            9 => places.payload,
            10 => {
                // cut off, or longer
                let length = at * (64 << 10);
                if length < contents.length {
                    contents.zero(length, contents.length - length);
                }
                contents.length = length;
                continue;
            }
            _ => places.log + at * 16,
        };
        let _ = contents.write(base + at, bytes);
    }
    let mut seal = |at: u64, len: usize| {
        let bytes = contents.bytes(at, len);
        if at + len as u64 <= contents.length {
            let _ = contents.write(at + 4, &checksum_with_hole(&bytes, 4).to_le_bytes());
        }
    };
    if flags & 0x10 != 0 {
        HEADER_OFFSETS.iter().for_each(|at| seal(*at, HEADER_BYTES));
    }
    if flags & 0x20 != 0 {
        REGION_TABLE_OFFSETS.iter().for_each(|at| seal(*at, REGION_TABLE_BYTES));
    }
    if flags & 0x40 != 0
        && let Some(entry) = EntryHeader::decode(&contents.bytes(places.log, 4096), MIB as u32)
        && places.log + u64::from(entry.length) <= contents.length
    {
        let sum = entry_checksum(&contents.bytes(places.log, entry.length as usize));
        let _ = contents.write(places.log + 4, &sum.to_le_bytes());
    }
    contents
}

fn load(contents: &Contents, write: bool) -> (Arc<MemoryFile>, Result<Arc<Image>>) {
    let file = file(contents.clone());
    let image = Image::load(file.clone(), write, &environment(), |_| {
        let parent = MemoryFile(RwLock::new(bases().images[0].clone()));
        Image::load(Arc::new(parent), false, &environment(), |_| {
            Err(Error::new(ErrorKind::NotFound, "no more parents"))
        })
    });
    (file, image)
}

/// The first and the last of a disk, and some of its middle.
fn sample(image: &Image) -> Vec<(u64, Result<Vec<u8>>)> {
    let size = image.size();
    let places = [0, 4096, 5 << 20, size / 2 / 4096 * 4096, size.saturating_sub(4096) / 4096 * 4096];
    let inside = places.into_iter().filter(|at| at + 4096 <= size);
    inside
        .map(|at| {
            let mut buf = vec![0; 4096];
            (at, image.read(at, &mut buf).map(|()| buf))
        })
        .collect()
}

fn image(input: &[u8]) -> bool {
    let contents = build(&mut Input(input));
    let report = check(&ImageSource(&*file(contents.clone())), &mut |_, _| {});
    let (_, opened) = load(&contents, false);
    if let (Ok(report), Err(e)) = (&report, &opened) {
        assert!(!report.is_clean() || e.kind() == ErrorKind::Unsupported, "a clean image cannot be opened: {e}");
    }
    let Ok(image) = opened else {
        let _ = mended(&contents);
        return false;
    };
    let before = sample(&image);
    let mut extents = 0u64;
    let _ = image.for_each_extent(&mut |_| {
        extents += 1;
        Ok(())
    });
    drop(image);

    // written to, it reads as before and as written, also when opened again
    let (file, opened) = load(&contents, true);
    if let Ok(image) = opened {
        for ((at, old), (_, new)) in before.iter().zip(sample(&image)) {
            if let (Ok(old), Ok(new)) = (old, new) {
                assert!(*old == new, "the disk at {at} reads differently after a replay in the file");
            }
        }
        let written: Vec<u64> =
            before.iter().map(|(at, _)| *at).take(3).filter(|at| image.write(*at, &[0x77; 4096]).is_ok()).collect();
        let _ = image.trim(1 << 20, 2 << 20);
        let flushed = image.flush().is_ok();
        let closed = image.close().is_ok();
        drop(image);
        let after = file.0.read().clone();
        if let Ok(report) = &report
            && report.is_clean()
        {
            assert!(flushed && closed, "a clean image can be written");
            let again = check(&ImageSource(&*file), &mut |_, _| {});
            assert!(again.is_ok_and(|r| r.is_consistent()), "a clean image is not consistent after writing");
            let (_, opened) = load(&after, false);
            let image = opened.expect("a clean image that was written opens");
            for at in written {
                let mut buf = vec![0; 4096];
                image.read(at, &mut buf).expect("what was written can be read");
                let trimmed = ((1 << 20)..(3 << 20)).contains(&at);
                assert!(trimmed || buf == [0x77; 4096], "what was written at {at} is not there");
            }
        }
    }
    let _ = mended(&contents);
    true
}

/// A repair ends, and what it leaves can be checked; an image that it says is clean opens.
fn mended(contents: &Contents) -> Result<()> {
    let file = file(contents.clone());
    let dry = repair(&*file, &environment(), true, &mut |_, _| {});
    assert!(file.0.read().pages == contents.pages, "a dry run changes nothing");
    let done = repair(&*file, &environment(), false, &mut |_, _| {});
    assert_eq!(dry.is_ok(), done.is_ok(), "a dry run says what would happen");
    if done?.after.is_clean() {
        let (_, opened) = load(&file.0.read(), false);
        if let Err(e) = opened {
            assert_eq!(e.kind(), ErrorKind::Unsupported, "a repaired image cannot be opened: {e}");
        }
    }
    Ok(())
}
