//! A file in memory whose machine can lose power at every step.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::env::SeededRandom;
use crate::vhdx::ImageFile;

const PAGE: u64 = 4096;
/// What is written at once, whatever happens.
const SECTOR: usize = 512;

/// Contents of a file; pages that are not there are holes.
#[derive(Clone, Default)]
pub struct Contents {
    pub length: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
}

impl Contents {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let len = (PAGE as usize - within).min(bytes.len() - done);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let len = (PAGE as usize - within).min(buf.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => buf[done..done + len].copy_from_slice(&page[within..within + len]),
                None => buf[done..done + len].fill(0),
            }
            done += len;
        }
        let there = self.length.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[there..].fill(0);
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = (offset + length).min(self.length);
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first >= last {
            if offset < end {
                self.write(offset, &vec![0; (end - offset) as usize]);
            }
            return;
        }
        let inside: Vec<u64> = self.pages.range(first..last).map(|(k, _)| *k).collect();
        inside.iter().for_each(|k| drop(self.pages.remove(k)));
        if offset < first * PAGE {
            self.write(offset, &vec![0; (first * PAGE - offset) as usize]);
        }
        if last * PAGE < end {
            self.write(last * PAGE, &vec![0; (end - last * PAGE) as usize]);
        }
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            let keep = length.div_ceil(PAGE);
            self.pages.split_off(&keep);
            if !length.is_multiple_of(PAGE)
                && let Some(page) = self.pages.get_mut(&(length / PAGE))
            {
                Arc::make_mut(page)[(length % PAGE) as usize..].fill(0);
            }
        }
        self.length = length;
    }
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Length(u64),
}

impl Change {
    fn apply(&self, contents: &mut Contents) {
        match self {
            Change::Write(offset, bytes) => contents.write(*offset, bytes),
            Change::Zero(offset, length) => contents.zero(*offset, *length),
            Change::Length(length) => contents.set_length(*length),
        }
    }
}

#[derive(Default)]
struct State {
    durable: Contents,
    seen: Contents,
    unflushed: Vec<Change>,
    /// Changes and flushes left until the power fails.
    left: Option<u64>,
    steps: u64,
    off: bool,
    /// Writes that need new space fail.
    full: bool,
    /// What was said of new space: offset, length, whether it is fresh.
    hints: Vec<(u64, u64, bool)>,
}

/// What of the unflushed changes survives a power failure.
#[derive(Clone, Copy, Debug)]
pub enum Survives {
    Nothing,
    Everything,
    /// Each sector of each change by chance.
    Some(u64),
}

pub struct SimFile {
    state: Mutex<State>,
    path: PathBuf,
    id: u64,
}

impl SimFile {
    pub fn new() -> Arc<SimFile> {
        Self::with(Contents::default())
    }

    pub fn with(contents: Contents) -> Arc<SimFile> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let state = State { durable: contents.clone(), seen: contents, ..State::default() };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(SimFile { state: Mutex::new(state), path: format!("sim-{id}.vhdx").into(), id })
    }

    /// Lets so many more changes and flushes succeed.
    pub fn cut_after(&self, steps: u64) {
        self.state.lock().left = Some(steps);
    }

    /// Changes and flushes so far.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Lets everything fail that needs space of the filesystem.
    pub fn set_full(&self, full: bool) {
        self.state.lock().full = full;
    }

    /// What is seen now: what a killed process leaves.
    pub fn contents(&self) -> Contents {
        self.state.lock().seen.clone()
    }

    /// What is on the disk after a power failure now.
    pub fn crashed(&self, survives: Survives) -> Contents {
        let state = self.state.lock();
        let mut contents = state.durable.clone();
        let random = match survives {
            Survives::Nothing => return contents,
            Survives::Everything => return state.seen.clone(),
            Survives::Some(seed) => SeededRandom::new(seed),
        };
        for change in &state.unflushed {
            match change {
                Change::Write(offset, bytes) if random.chance(3, 4) => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.chance(2, 3) {
                            contents.write(offset + (i * SECTOR) as u64, sector);
                        }
                    }
                }
                other if random.chance(1, 2) => other.apply(&mut contents),
                _ => {}
            }
        }
        contents
    }

    /// Overwrites bytes on the disk.
    pub fn tamper(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.durable.write(offset, bytes);
        state.seen.write(offset, bytes);
    }

    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.state.lock().seen.read(offset, &mut buf);
        buf
    }

    /// What was said of new space since the last call: offset, length, whether it is fresh.
    pub fn take_hints(&self) -> Vec<(u64, u64, bool)> {
        std::mem::take(&mut self.state.lock().hints)
    }

    fn step(&self, change: Change) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if state.full && needs_space(&state.seen, &change) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        state.steps += 1;
        change.apply(&mut state.seen);
        state.unflushed.push(change);
        state.spend()
    }
}

fn needs_space(seen: &Contents, change: &Change) -> bool {
    match change {
        Change::Write(offset, bytes) => {
            let end = offset + bytes.len() as u64;
            (offset / PAGE..end.div_ceil(PAGE)).any(|page| !seen.pages.contains_key(&page))
        }
        _ => false,
    }
}

impl State {
    /// Counts a step down; the one that finds nothing left is on its way when the power fails.
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => {
                self.off = true;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl ImageFile for SimFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().seen.length)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        if state.off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.seen.read(offset, buf);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.step(Change::Write(offset, bytes.to_vec()))
    }

    fn wrote_new(&self, offset: u64, length: u64, fresh: bool) {
        self.state.lock().hints.push((offset, length, fresh));
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.steps += 1;
        state.spend()?;
        state.durable = state.seen.clone();
        state.unflushed.clear();
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.step(Change::Length(length))
    }

    fn zero(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        self.step(Change::Zero(offset, length))
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let end = (offset + length).min(state.seen.length);
        for page in offset / PAGE..end.div_ceil(PAGE) {
            if state.full && !state.seen.pages.contains_key(&page) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            // Space without contents: what is not there reads the same.
            state.seen.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let state = self.state.lock();
        let page = state.seen.pages.range(offset / PAGE..).next().map(|(page, _)| (page * PAGE).max(offset));
        Ok(page.filter(|at| *at < state.seen.length))
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let state = self.state.lock();
        let mut at = offset;
        while at < state.seen.length && state.seen.pages.contains_key(&(at / PAGE)) {
            at = (at / PAGE + 1) * PAGE;
        }
        Ok(at.min(state.seen.length))
    }

    fn identity(&self) -> (u64, u64) {
        (0, self.id)
    }
}
