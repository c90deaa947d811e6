//! Repair of every violation: what has one answer is clean afterwards, everything else is untouched; and crash by crash,
//! no write leaves the image worse.

use std::io;
use std::path::Path;

use parking_lot::Mutex;

use super::super::check::testing::{VIOLATIONS, differencing, dirty, dynamic};
use super::super::check::{Source, check, codes::CODES};
use super::*;
use crate::env::Environment;

/// A file in memory that stops to take writes after so many.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    left: Mutex<u64>,
}

impl Memory {
    fn new(bytes: Vec<u8>, writes: u64) -> Memory {
        Memory { bytes: Mutex::new(bytes), left: Mutex::new(writes) }
    }

    /// The first place from `offset` on in a page of 4 KiB that is zero, or is not.
    fn next_page(&self, offset: u64, zero: bool) -> Option<u64> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let bytes = self.bytes.lock();
        let first = offset / 4096;
        let pages = bytes.chunks(4096).enumerate().skip(first as usize);
        let mut found = pages.filter(|(_, page)| ZEROS.starts_with(page) == zero);
        found.next().map(|(number, _)| (number as u64 * 4096).max(offset))
    }

    fn spend(&self) -> io::Result<()> {
        let mut left = self.left.lock();
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("power failure"))?;
        Ok(())
    }
}

impl ImageFile for Memory {
    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.bytes.lock().as_slice().read(offset, buf).map_err(io::Error::other)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.spend()?;
        let mut all = self.bytes.lock();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if all.len() < end {
            all.resize(end, 0);
        }
        all[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.spend()?;
        self.bytes.lock().resize(length as usize, 0);
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        self.spend()?;
        self.bytes.lock()[offset as usize..(offset + length) as usize].fill(0);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.next_page(offset, false))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok(self.next_page(offset, true).unwrap_or(self.length()?))
    }

    fn identity(&self) -> (u64, u64) {
        (0, 0)
    }
}

fn run(file: &Memory, dry_run: bool) -> Result<Repaired> {
    repair(file, &Environment::system(), dry_run, &mut |_, _| {})
}

/// Whether repair is the advice for all of these codes, and none forbids it.
fn repairable(codes: &[&str]) -> bool {
    codes.iter().all(|code| {
        let info = CODES.iter().find(|info| info.code == *code).unwrap();
        info.advice.contains("vhdx repair") || info.severity == Severity::Remark
    })
}

#[test]
fn what_has_one_answer_is_clean_afterwards() {
    let mut repaired = 0;
    for (name, base, breaking, codes) in VIOLATIONS {
        let mut image = base();
        breaking(&mut image);
        let file = Memory::new(image.bytes.clone(), u64::MAX);
        let dry = run(&file, true).unwrap();
        assert!(*file.bytes.lock() == image.bytes, "{name}: a dry run wrote");
        let wet = run(&file, false).unwrap();
        assert!(dry.actions.len() <= wet.actions.len(), "{name}: {:?} {:?}", dry.actions, wet.actions);
        if repairable(codes) {
            assert!(wet.after.is_clean(), "{name}: {:?}", wet.after.findings);
            repaired += u64::from(!dry.before.is_clean());
        } else if wet.actions.is_empty() {
            assert!(*file.bytes.lock() == image.bytes, "{name}: changed without a report");
        } else {
            assert!(wet.after.count(Severity::Error) <= dry.before.count(Severity::Error), "{name}");
        }
        // Nothing is left to do for a second run.
        let again = run(&file, false).unwrap();
        assert!(again.actions.is_empty(), "{name}: {:?}", again.actions);
    }
    assert!(repaired >= 20, "{repaired}");
}

#[test]
fn sound_images_are_not_touched() {
    for image in [dynamic(), differencing()] {
        let file = Memory::new(image.bytes.clone(), 0);
        let result = run(&file, false).unwrap();
        assert!(result.actions.is_empty() && result.after.is_clean());
    }
}

#[test]
fn every_crash_leaves_it_no_worse() {
    let mut broken = dynamic();
    for (name, _, breaking, _) in VIOLATIONS {
        if ["region flags", "metadata reserved", "zero with an offset", "header 1 checksum", "trailing MiB"]
            .contains(name)
        {
            breaking(&mut broken);
        }
    }
    let mut dirty_too = dirty();
    dirty_too.bat(8, 6, 4);
    for image in [broken, dirty_too] {
        let mut writes = 0;
        loop {
            let file = Memory::new(image.bytes.clone(), writes);
            let result = run(&file, false);
            let after = check(&file.bytes.lock().as_slice(), &mut |_, _| {}).unwrap();
            let before = check(&image.bytes.as_slice(), &mut |_, _| {}).unwrap();
            let new: Vec<_> = after.counts.keys().filter(|code| !before.has(code) && **code != "log-dirty").collect();
            assert!(new.is_empty(), "after {writes} writes: {new:?}");
            // The next run goes on where this one ended.
            *file.left.lock() = u64::MAX;
            assert!(run(&file, false).unwrap().after.is_clean(), "after {writes} writes");
            if result.is_ok() {
                break;
            }
            writes += 1;
        }
        assert!(writes >= 5, "{writes}");
    }
}
