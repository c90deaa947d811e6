//! A simulated disk in memory: deterministic, sparse, and as treacherous as it is told to be.
//!
//! Requests complete inside [`Device::submit`]: first the flushes, then the others in the order given or in one drawn from
//! the seed. The disk has a
//! volatile cache in front of its medium (`cache`): what a power failure leaves is any choice of the unflushed sectors.
//! Misbehaviour is injected as rules (`fault`); several disks can share a power supply (`power`), so that a whole pool
//! stops at its N-th write. A [`SimControl`] is the experimenter's hand on a disk; the engine only sees the [`Device`].
//!
//! A run is reproducible as far as the order of submissions is: one thread, or one scheduled by the experimenter.
//!
//! Nothing here waits in real time: a hung request is reported as timed out at once, a slow one moves the simulated clock.

mod cache;
mod control;
mod fault;
mod image;
mod power;
mod trace;

pub use cache::{DiscardMode, Unflushed};
pub use control::{CrashMode, SimControl};
pub use fault::{Effect, Fault};
pub use image::SimImage;
pub use power::PowerSwitch;
pub use trace::{Counters, Operation, TraceEntry};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::batch::{Completions, Outcome};
use super::{Device, DeviceInfo, IoError, Request};
use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::env::{SeededRandom, SimClock};
use cache::Cache;
use fault::Faults;
use power::Admission;
use trace::Trace;

/// Bytes written or lost as one: the unit of tearing.
pub const SECTOR_BYTES: usize = 512;

/// How a simulated disk is made.
#[derive(Clone)]
pub struct SimConfig {
    /// Its name, where others have a path.
    pub name: String,
    /// Its size in bytes; rounded down to 4 KiB. Any size: only written blocks take memory.
    pub size_bytes: u64,
    /// Decides everything that is not told explicitly.
    pub seed: u64,
    /// Handle the requests of one submission in an order drawn from the seed.
    pub shuffle: bool,
    /// The clock that slow requests move.
    pub clock: Arc<SimClock>,
    /// The power supply; share it to make disks fail together.
    pub power: PowerSwitch,
}

impl SimConfig {
    /// A well-behaved disk with a supply and a clock of its own.
    pub fn new(size_bytes: u64) -> SimConfig {
        SimConfig {
            name: "sim".to_string(),
            size_bytes,
            seed: 0,
            shuffle: false,
            clock: Arc::default(),
            power: PowerSwitch::new(),
        }
    }
}

/// The simulated disk. Made by [`SimDevice::create`].
pub struct SimDevice {
    info: DeviceInfo,
    shared: Arc<Shared>,
}

/// What the disk and its controls share.
struct Shared {
    name: String,
    size_bytes: u64,
    shuffle: bool,
    clock: Arc<SimClock>,
    power: PowerSwitch,
    state: Mutex<State>,
}

struct State {
    cache: Cache,
    faults: Faults,
    trace: Trace,
    random: SeededRandom,
    /// Crashed and not restarted.
    down: bool,
    /// Pulled out.
    vanished: bool,
    /// Writes that never answered and may yet land.
    hung: Vec<(u64, Vec<u8>)>,
}

impl SimDevice {
    /// An empty disk and its control.
    pub fn create(config: SimConfig) -> (Arc<dyn Device>, SimControl) {
        SimDevice::with_image(config, SimImage::default())
    }

    /// A disk with content, and its control.
    pub fn with_image(config: SimConfig, image: SimImage) -> (Arc<dyn Device>, SimControl) {
        let size_bytes = config.size_bytes - config.size_bytes % BLOCK_SIZE as u64;
        let info = DeviceInfo {
            path: PathBuf::from(&config.name),
            size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            rotational: false,
            discard: true,
            kind: "sim",
        };
        let state = State {
            cache: Cache::new(image),
            faults: Faults::default(),
            trace: Trace::default(),
            random: SeededRandom::new(config.seed),
            down: false,
            vanished: false,
            hung: Vec::new(),
        };
        let shared = Arc::new(Shared {
            name: config.name,
            size_bytes,
            shuffle: config.shuffle,
            clock: config.clock,
            power: config.power,
            state: Mutex::new(state),
        });
        (Arc::new(SimDevice { info, shared: shared.clone() }), SimControl::new(shared))
    }
}

impl Device for SimDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&self, mut requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let outcomes: Vec<(u64, Outcome)> = {
            let mut state = self.shared.state.lock();
            if self.shared.shuffle {
                for i in (1..requests.len()).rev() {
                    let j = usize::try_from(state.random.below(i as u64 + 1)).unwrap_or(0);
                    requests.swap(i, j);
                }
            }
            // A flush covers only what was completed before it was submitted: run it first, so that nobody relies on more.
            requests.sort_by_key(|(_, request)| !matches!(request, Request::Flush));
            let mut call = Call { shared: &self.shared, state: &mut state, cut: false };
            requests.into_iter().map(|(tag, request)| (tag, call.run(request))).collect()
        };
        for (tag, outcome) in outcomes {
            completions.complete(tag, outcome);
        }
    }

    fn drive(&self, _timeout: Duration) -> bool {
        false
    }

    fn check_presence(&self) -> Result<(), IoError> {
        let state = self.shared.state.lock();
        if state.vanished || state.down || self.shared.power.is_off() {
            return Err(IoError { errno: libc::ENODEV, what: format!("{} is gone", self.shared.name) });
        }
        Ok(())
    }
}

/// One submission on its way through the disk.
struct Call<'a> {
    shared: &'a Shared,
    state: &'a mut State,
    /// The power failed during this submission: its later writes were on their way, too.
    cut: bool,
}

impl Call<'_> {
    fn fail(&self, errno: i32, request: &Request) -> Outcome {
        Outcome::Failed(IoError { errno, what: request.describe(&self.shared.name) })
    }

    fn run(&mut self, request: Request) -> Outcome {
        if self.state.vanished {
            return self.fail(libc::ENODEV, &request);
        }
        if self.state.down {
            return self.fail(libc::EIO, &request);
        }
        let len = match request.check(self.shared.size_bytes, &self.shared.name) {
            Ok(len) => len,
            Err(error) => return Outcome::Failed(error),
        };
        let operation = Operation::of(&request);
        let admission = self.shared.power.admit(operation != Operation::Read);
        if admission != Admission::Run {
            self.cut |= admission == Admission::CutNow;
            if self.cut {
                self.leave_in_flight(&request);
            }
            return self.fail(libc::EIO, &request);
        }
        self.state.trace.record(operation, &request, len);
        let offset = request.offset();
        let effect = self.state.faults.effect(operation, offset..offset + len);
        let outcome = match effect {
            Some(Effect::Fail { errno }) => return self.fail(errno, &request),
            Some(Effect::Hang) => {
                if let Request::Write { slices, .. } = &request {
                    self.state.hung.push((offset, slices.concat_bytes()));
                }
                return Outcome::TimedOut;
            }
            Some(Effect::Slow { duration }) => {
                self.shared.clock.advance(duration);
                self.execute(request, len, None)
            }
            effect => self.execute(request, len, effect),
        };
        self.state.trace.count(operation, len, &outcome);
        outcome
    }

    /// A write that the power failure caught may have reached the medium in any part.
    fn leave_in_flight(&mut self, request: &Request) {
        match request {
            Request::Write { offset, slices, .. } => {
                self.state.cache.write_unacknowledged(*offset, &slices.concat_bytes());
            }
            Request::Discard { offset, len } => self.state.cache.discard_unacknowledged(*offset, *len),
            Request::Read { .. } | Request::Flush => {}
        }
    }

    fn execute(&mut self, request: Request, len: u64, effect: Option<Effect>) -> Outcome {
        match request {
            Request::Read { offset, bufs } => self.read(offset, bufs, effect),
            Request::Write { offset, ref slices, durable } => {
                let data = slices.concat_bytes();
                match self.write(offset, data, durable, effect) {
                    Ok(()) => Outcome::Done(Vec::new()),
                    Err(errno) => self.fail(errno, &request),
                }
            }
            Request::Flush => {
                if effect != Some(Effect::Lose) {
                    self.state.cache.flush();
                }
                Outcome::Done(Vec::new())
            }
            Request::Discard { offset, .. } => {
                if effect != Some(Effect::Lose) {
                    self.state.cache.discard(offset, len);
                }
                Outcome::Done(Vec::new())
            }
        }
    }

    fn read(&self, offset: u64, mut bufs: Vec<AlignedBuf>, effect: Option<Effect>) -> Outcome {
        let mut place = match effect {
            Some(Effect::Misdirect { to }) => to,
            _ => offset,
        };
        for buf in &mut bufs {
            self.state.cache.read(place, buf);
            place = place.saturating_add(buf.len() as u64);
        }
        if let Some(Effect::Flip { byte, mask }) = effect {
            let mut skip = byte;
            for buf in &mut bufs {
                if let Some(hit) = usize::try_from(skip).ok().and_then(|at| buf.get_mut(at)) {
                    *hit ^= mask;
                    break;
                }
                skip -= buf.len() as u64;
            }
        }
        Outcome::Done(bufs)
    }

    fn write(&mut self, offset: u64, mut data: Vec<u8>, durable: bool, effect: Option<Effect>) -> Result<(), i32> {
        let sectors_all = data.len() / SECTOR_BYTES;
        let (mut place, mut sectors, mut errno) = (offset, sectors_all, None);
        match effect {
            Some(Effect::Lose) => return Ok(()),
            Some(Effect::Misdirect { to }) => place = to,
            Some(Effect::Torn { sectors: kept, errno: error }) => (sectors, errno) = (kept.min(sectors_all), error),
            Some(Effect::Flip { byte, mask }) => {
                if let Some(hit) = usize::try_from(byte).ok().and_then(|at| data.get_mut(at)) {
                    *hit ^= mask;
                }
            }
            _ => {}
        }
        // A misdirected write must land somewhere on the disk.
        let end = place.saturating_add(data.len() as u64);
        let block = BLOCK_SIZE as u64;
        let place = if end > self.shared.size_bytes || !place.is_multiple_of(block) { offset } else { place };
        self.state.cache.write(place, &data, durable, sectors);
        errno.map_or(Ok(()), Err)
    }
}

/// The bytes of a write in one piece.
trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for Vec<crate::buf::BufSlice> {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|s| s.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests;
