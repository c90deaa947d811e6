//! What each block of a disk may hold, by what was acknowledged, and a disk that takes its time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use qrvsa_iscsi::backing::{Backing, Extent, MemoryBacking, Result, Space};

pub const BLOCK: usize = 512;

/// The content of a block: number and version over and over; version 0 is zeroes.
pub fn content(block: u32, version: u32) -> Vec<u8> {
    let word = if version == 0 { 0 } else { u64::from(block) << 32 | u64::from(version) };
    word.to_be_bytes().repeat(BLOCK / 8)
}

/// Blocks and what they may hold.
pub struct Model {
    allowed: Vec<Vec<u32>>,
    pub violations: Vec<String>,
}

impl Model {
    pub fn new(blocks: u32) -> Model {
        Model { allowed: vec![vec![0]; blocks as usize], violations: Vec::new() }
    }

    /// A write is acknowledged.
    pub fn written(&mut self, first: u32, count: u32, version: u32) {
        for at in first..first + count {
            self.allowed[at as usize] = vec![version];
        }
    }

    /// A write was on its way and may have happened. It is over.
    pub fn perhaps(&mut self, first: u32, count: u32, version: u32) {
        for at in first..first + count {
            self.allowed[at as usize].push(version);
        }
    }

    /// What was read has to be allowed, and is what is there from now on.
    pub fn read(&mut self, first: u32, data: &[u8]) {
        for (at, found) in (first..).zip(data.chunks(BLOCK)) {
            let allowed = &mut self.allowed[at as usize];
            match allowed.iter().copied().find(|v| content(at, *v) == found) {
                Some(version) => *allowed = vec![version],
                None => self.violations.push(format!("block {at}: {:02x?}..., allowed are {allowed:?}", &found[..8])),
            }
        }
    }
}

/// Memory whose writes take up to some milliseconds, in an order that hardly repeats.
pub struct Slow {
    memory: MemoryBacking,
    turn: AtomicU64,
}

impl Slow {
    pub fn new(bytes: u64) -> Slow {
        Slow { memory: MemoryBacking::new(bytes), turn: AtomicU64::new(0) }
    }

    fn wait(&self) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(3) {
            std::thread::sleep(Duration::from_micros(turn.wrapping_mul(2_654_435_761) % 7000));
        }
    }
}

impl Backing for Slow {
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read(offset, buf)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.wait();
        self.memory.write(offset, data, durable)
    }
    fn flush(&self) -> Result<()> {
        self.wait();
        self.memory.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        self.memory.unmap(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        self.memory.write_zeroes(offset, bytes)
    }
    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent> {
        self.memory.extent(offset, bytes_max)
    }
    fn space(&self) -> Space {
        self.memory.space()
    }
}
