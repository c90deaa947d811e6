//! Golden images: small pools as a version of the format wrote them, good and broken, which every later version has to
//! open, or refuse, in the same way.
//!
//! An image file has the disks of a pool one after the other. All numbers are little-endian:
//!
//! | field | type |
//! |---|---|
//! | `QRVSAGLD` | 8 bytes |
//! | number of disks | u32 |
//! | of each disk: size in bytes, number of blocks that follow | u64, u32 |
//! | of each block: its number, then pairs of (zero bytes, other bytes) with the others behind, to 4096 | u32, u16 + u16 ... |
//!
//! Beside `NAME.pool` stands `NAME.txt`: what importing it gives, line by line.

use std::path::Path;
use std::sync::Arc;

use qrvsa_core::engine::Pool;
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::pool::format::label::Label;
use qrvsa_core::pool::format::layout;
use qrvsa_core::pool::space::Geometry;
use qrvsa_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::Bus;
use crate::clock::WorldClock;
use crate::image::{BLOCK, Image};
use crate::model::{Body, Model, ROOT};
use crate::session::{Action, Session};
use crate::verify;

const MAGIC: &[u8; 8] = b"QRVSAGLD";

/// The disks of a pool: sizes and contents.
pub type Disks = Vec<(u64, Image)>;

/// Writes disks down.
pub fn encode(disks: &Disks) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(disks.len() as u32).to_le_bytes());
    for (size, image) in disks {
        let blocks = image.blocks();
        let blocks: Vec<_> = blocks.iter().filter(|(_, b)| b.iter().any(|byte| *byte != 0)).collect();
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
        for (number, block) in blocks {
            out.extend_from_slice(&(*number as u32).to_le_bytes());
            let mut at = 0;
            while at < BLOCK {
                let zeros = block[at..].iter().take_while(|b| **b == 0).count();
                let rest = &block[at + zeros..];
                // a few zeros are cheaper in the middle than as a pair of their own
                let mut others = 0;
                while others < rest.len() && !(rest[others..].iter().take(6).all(|b| *b == 0)) {
                    others += 1;
                }
                out.extend_from_slice(&(zeros as u16).to_le_bytes());
                out.extend_from_slice(&(others as u16).to_le_bytes());
                out.extend_from_slice(&rest[..others]);
                at += zeros + others;
            }
        }
    }
    out
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let Some((taken, rest)) = bytes.split_at_checked(len) else {
        return Err(Error::new(ErrorKind::Corrupt, "a golden image is cut short"));
    };
    *bytes = rest;
    Ok(taken)
}

fn number(bytes: &mut &[u8], len: usize) -> Result<u64> {
    Ok(take(bytes, len)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Reads disks that were written down.
///
/// # Errors
/// `Corrupt`.
pub fn decode(mut bytes: &[u8]) -> Result<Disks> {
    if take(&mut bytes, 8)? != MAGIC {
        return Err(Error::new(ErrorKind::Corrupt, "not a golden image"));
    }
    let mut disks = Vec::new();
    for _ in 0..number(&mut bytes, 4)? {
        let (size, count) = (number(&mut bytes, 8)?, number(&mut bytes, 4)?);
        let mut image = Image::default();
        for _ in 0..count {
            let place = number(&mut bytes, 4)?;
            let mut block = Vec::with_capacity(BLOCK);
            while block.len() < BLOCK {
                let (zeros, others) = (number(&mut bytes, 2)? as usize, number(&mut bytes, 2)? as usize);
                block.resize(block.len() + zeros, 0);
                block.extend_from_slice(take(&mut bytes, others)?);
            }
            let block: [u8; BLOCK] = block
                .try_into()
                .map_err(|_| Error::new(ErrorKind::Corrupt, "a block of a golden image is too long"))?;
            image.set(place, Arc::new(block));
        }
        disks.push((size, image));
    }
    Ok(disks)
}

/// What importing the disks gives, line by line: what is in the pool, or the error.
pub fn describe(disks: &Disks) -> String {
    let clock = Arc::new(WorldClock::default());
    let bus = Bus::new(clock.clone());
    for (size, image) in disks {
        bus.add(*size, image.clone());
    }
    let mut lines: Vec<String> = Vec::new();
    for index in 0..disks.len() {
        if let Err(e) = Candidate::new(bus.device(index)) {
            lines.push(format!("disk {index}: {:?}: {e}", e.kind()));
        }
    }
    let imported = verify::import(&bus, verify::environment(&clock, 1), verify::options(), |_| true);
    let session = match imported {
        Ok(session) => session,
        Err(e) => {
            lines.push(format!("error {:?}: {e}", e.kind()));
            return lines.join("\n") + "\n";
        }
    };
    lines.push(format!("pool {} {}", session.pool.name, session.pool.geometry()));
    match session.dump() {
        Err(e) => lines.push(format!("error {:?}", e.kind())),
        Ok(state) => {
            for (name, tree) in state {
                lines.push(format!("filesystem '{name}'"));
                for (ino, node) in tree {
                    let what = match &node.body {
                        Body::File(bytes) => format!("file {} bytes {:016x}", bytes.len(), xxh3_64(bytes)),
                        Body::Dir(entries) => format!("directory {entries:?}"),
                        Body::Link(target) => format!("link {target}"),
                    };
                    let xattrs: Vec<String> =
                        node.xattrs.iter().map(|(n, v)| format!("{n}={} bytes {:016x}", v.len(), xxh3_64(v))).collect();
                    lines.push(format!("  {ino} {:o} {} {what} {}", node.mode, node.nlink, xattrs.join(" ")));
                }
            }
        }
    }
    match verify::check(&session.pool) {
        Ok(()) => lines.push("check clean".to_owned()),
        Err(text) => lines.push(format!("check: {text}")),
    }
    session.abandon();
    lines.iter().map(|l| l.trim_end().to_owned() + "\n").collect()
}

/// A pool with some of everything; `logged`: it ends in a crash with an intent log to replay, else it is exported.
fn sample(geometry: (u32, u32), devices: usize, logged: bool) -> Result<Disks> {
    let (clock, size) = (Arc::new(WorldClock::default()), 53 << 20);
    let bus = Bus::new(clock.clone());
    let disks = (0..devices).map(|_| bus.device(bus.add(size, Image::default()))).collect();
    let geometry = Geometry::new(geometry.0, geometry.1)?;
    let pool = Pool::create(verify::environment(&clock, 4), verify::options(), "golden", Some(geometry), disks)?;
    pool.create_dataset("second")?;
    let session = Session::open(pool)?;
    let mut model = Model::default();
    let mut run = |action: Action| -> Result<u64> {
        session.run("", &mut model, &action)?;
        Ok(match &action {
            Action::Create(dir, name) | Action::Mkdir(dir, name) => model.lookup(*dir, name).unwrap_or(0),
            _ => 0,
        })
    };
    let dir = run(Action::Mkdir(ROOT, "directory".to_owned()))?;
    let (small, large) =
        (run(Action::Create(ROOT, "small".to_owned()))?, run(Action::Create(dir, "large".to_owned()))?);
    run(Action::Write(small, 0, 1000, 1))?;
    run(Action::Write(large, 4096, 9000, 2))?;
    run(Action::Punch(large, 6000, 9000))?;
    run(Action::Symlink(ROOT, "link".to_owned(), "directory/large".to_owned()))?;
    run(Action::Link(small, dir, "again".to_owned()))?;
    run(Action::SetXattr(small, "user.short".to_owned(), 20, 3))?;
    run(Action::SetXattr(large, "user.long".to_owned(), 5000, 4))?;
    run(Action::Commit)?;
    if logged {
        let late = run(Action::Create(ROOT, "late".to_owned()))?;
        run(Action::Write(late, 0, 5000, 5))?;
        run(Action::Rename((ROOT, "link".to_owned()), (dir, "moved".to_owned()), false))?;
        run(Action::Fsync(late))?;
        run(Action::Create(ROOT, "lost".to_owned()))?;
    } else {
        session.pool.close()?;
    }
    session.abandon();
    let bus = bus.0.lock();
    Ok(bus.disks.iter().map(|d| (d.size, d.medium().clone())).collect())
}

/// Rewrites the labels of all disks.
fn relabel(disks: &mut Disks, change: impl Fn(&mut Label)) -> Result<()> {
    for (size, image) in disks {
        for offset in layout::label_offsets(*size) {
            let number = offset / BLOCK as u64;
            let block = image.block(number).cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no label"))?;
            let mut label = Label::decode(&block[..], *size)?;
            change(&mut label);
            let mut bytes = [0; BLOCK];
            let encoded = label.encode();
            bytes[..encoded.len()].copy_from_slice(&encoded);
            image.set(number, Arc::new(bytes));
        }
    }
    Ok(())
}

fn spoil(image: &mut Image, number: u64, at: usize) {
    if let Some(block) = image.block(number) {
        let mut block = **block;
        block[at] ^= 0x55;
        image.set(number, Arc::new(block));
    }
}

/// The images of this version of the format.
///
/// # Errors
/// Those of the engine.
pub fn images() -> Result<Vec<(&'static str, Disks)>> {
    let clean = sample((2, 1), 3, false)?;
    let logged = sample((1, 1), 2, true)?;
    let mut list = vec![("v1-exported-2+1", clean.clone()), ("v1-crashed-with-log-1+1", logged.clone())];
    list.push(("v1-single-1+0", sample((1, 0), 1, true)?));
    let mut degraded = sample((2, 2), 4, true)?;
    degraded.remove(1);
    list.push(("v1-one-disk-missing-2+2", degraded.clone()));
    degraded.remove(0);
    degraded.remove(0);
    list.push(("v1-three-disks-missing-2+2", degraded));
    let zone = layout::DATA_START / BLOCK as u64;
    let mut rotten = clean.clone();
    for number in rotten[0].1.blocks().into_keys().filter(|n| *n >= zone) {
        spoil(&mut rotten[0].1, number, 100);
    }
    list.push(("v1-rotten-disk-2+1", rotten));
    let mut unknown = clean.clone();
    relabel(&mut unknown, |l| l.incompatible = 1 << 40)?;
    list.push(("v1-unknown-incompatible-feature-2+1", unknown));
    let mut labels = clean.clone();
    for (size, image) in &mut labels {
        for offset in &layout::label_offsets(*size)[..3] {
            spoil(image, offset / BLOCK as u64, 60);
        }
    }
    list.push(("v1-one-label-left-2+1", labels));
    let mut ring = clean.clone();
    for (_, image) in &mut ring {
        for slot in 0..layout::RING_SLOTS {
            spoil(image, (layout::RING_OFFSET + slot * layout::SLOT_BYTES as u64) / BLOCK as u64, 50);
        }
    }
    list.push(("v1-no-uberblock-2+1", ring));
    let mut newest = logged.clone();
    for (_, image) in &mut newest {
        let numbers: Vec<u64> = image.blocks().into_keys().filter(|n| *n >= zone).collect();
        numbers.into_iter().for_each(|n| spoil(image, n, 2000));
    }
    list.push(("v1-everything-damaged-1+1", newest));
    Ok(list)
}

/// Writes images that are not there yet, and what importing them gives. What is there is never changed.
///
/// # Errors
/// Those of the engine; `Io`.
pub fn write_missing(dir: &Path) -> Result<()> {
    let io = |e: std::io::Error| Error::new(ErrorKind::Io, format!("{}", dir.display())).with_source(e);
    std::fs::create_dir_all(dir).map_err(io)?;
    for (name, disks) in images()? {
        let path = dir.join(format!("{name}.pool"));
        if path.exists() {
            continue;
        }
        std::fs::write(&path, encode(&disks)).map_err(io)?;
        std::fs::write(dir.join(format!("{name}.txt")), describe(&disks)).map_err(io)?;
        println!("{}", path.display());
    }
    Ok(())
}
