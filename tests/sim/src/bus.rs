//! The disks of one world on one bus: what is submitted waits until its issuer waits, and is then executed as one batch.
//!
//! So the simulator knows which requests are in flight together, on all devices, and may stop the world in the middle of
//! them. Each disk has a volatile cache before its medium. Misbehaviour is given as rules; each request that one applies
//! to is noted as a hit. Nothing waits in real time: a request that is never answered is reported as timed out at once.
//!
//! The requests of a batch are executed in the order of devices and offsets, whatever order they were submitted in: the
//! trace depends on what the engine does alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use qrvsa_core::buf::AlignedBuf;
use qrvsa_core::device::batch::{Completions, Outcome};
use qrvsa_core::device::{Device, DeviceInfo, IoError, Request};
use qrvsa_core::env::SeededRandom;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::clock::WorldClock;
use crate::fault::{Kind, PoolState, Target};
use crate::image::{BLOCK, Change, Image, SECTORS};

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It fails with this errno and has no effect.
    Fail(i32),
    /// Only so many sectors of a write arrive; with `error`, it is reported.
    Torn {
        /// Sectors that arrive.
        sectors: usize,
        /// Whether the issuer is told.
        error: bool,
    },
    /// It goes to another place.
    Misdirect {
        /// First byte of it, a multiple of 4 KiB.
        to: u64,
    },
    /// A write is acknowledged and dropped.
    Drop,
    /// A bit of it changes on its way.
    Flip {
        /// Which bit, counted modulo its length.
        bit: u64,
    },
    /// What it makes durable stays volatile.
    Lie,
    /// It takes long.
    Slow(Duration),
    /// The device is gone from here on.
    Vanish,
    /// Another device stands in its place from here on.
    Swap(Stranger),
    /// The device takes no writes from here on.
    Fill,
    /// It is not answered in time. A write may land later.
    Hang {
        /// Whether a write lands after all.
        lands: bool,
    },
}

impl Effect {
    /// Whether it means something for a read.
    pub fn is_possible_on_read(self) -> bool {
        matches!(
            self,
            Effect::Fail(_) | Effect::Misdirect { .. } | Effect::Flip { .. } | Effect::Slow(_) | Effect::Hang { .. }
        )
    }
}

/// What stands in a device's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stranger {
    /// A blank device.
    Blank,
    /// A copy of another disk of this bus.
    Sister(usize),
    /// The device as it was when [`DiskState::remember`] was called last.
    Past,
}

/// On which requests of a device something happens.
#[derive(Clone, Debug)]
pub struct Rule {
    /// For the table.
    pub kind: Kind,
    /// The device.
    pub device: usize,
    /// Which requests; `None`: all.
    pub op: Option<Op>,
    /// What they have to hit; `None`: anything.
    pub target: Option<Target>,
    /// So many that match pass first.
    pub skip: u64,
    /// So many times.
    pub times: u64,
    /// What happens.
    pub effect: Effect,
}

/// A request that a fault met, by place: what lies there is looked up when the pool is at rest.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// The fault.
    pub kind: Kind,
    /// The device.
    pub device: usize,
    /// First byte; of a flush that lied, of what it should have covered.
    pub offset: u64,
    /// The pool then.
    pub state: PoolState,
}

/// Requests that were in flight together, without the reads.
#[derive(Clone, Default)]
pub struct Batch {
    /// Device, what is written, whether it is durable when answered.
    pub writes: Vec<(usize, Change, bool)>,
    /// Devices that are flushed: what was answered before is durable.
    pub flushes: Vec<usize>,
}

/// One disk.
#[derive(Default)]
pub struct DiskState {
    /// Its size in bytes.
    pub size: u64,
    medium: Image,
    seen: Image,
    volatile: Vec<Change>,
    hung: Vec<Change>,
    /// Gone: every request fails.
    pub vanished: bool,
    /// Another device stands in its place: requests count as hits.
    pub swapped: bool,
    /// Writes fail for want of space.
    pub full: bool,
    past: Image,
}

struct Queued {
    device: usize,
    tag: u64,
    request: Request,
    completions: Arc<Completions>,
}

/// What all disks of a world share.
pub struct BusState {
    /// The disks.
    pub disks: Vec<DiskState>,
    queue: Vec<Queued>,
    rules: Vec<Rule>,
    /// What each zone of each device holds, as far as known; zone size as a power of two.
    pub map: Vec<Vec<Option<Target>>>,
    /// log2 of the zone size.
    pub zone_shift: u8,
    /// What the pool is doing.
    pub state: PoolState,
    /// What faults met.
    pub hits: Vec<Hit>,
    /// Batches, while they are recorded.
    pub recording: Option<Vec<Batch>>,
    trace: Xxh3Default,
    /// Requests executed.
    pub requests: u64,
    /// Changes executed.
    pub changes: u64,
    /// The power fails with the batch that brings `changes` beyond this.
    pub cut_at: Option<u64>,
    /// The power is off.
    pub off: bool,
    /// The power fails with the batch that writes to this target, after so many that do.
    pub cut_on: Option<(Target, u64)>,
    /// Uberblock writes begun.
    pub uberblocks: u64,
    clock: Arc<WorldClock>,
}

/// The bus.
#[derive(Clone)]
pub struct Bus(pub Arc<Mutex<BusState>>);

struct Disk {
    info: DeviceInfo,
    index: usize,
    bus: Bus,
}

impl Bus {
    /// A bus without disks.
    pub fn new(clock: Arc<WorldClock>) -> Bus {
        Bus(Arc::new(Mutex::new(BusState {
            disks: Vec::new(),
            queue: Vec::new(),
            rules: Vec::new(),
            map: Vec::new(),
            zone_shift: 22,
            state: PoolState::Healthy,
            hits: Vec::new(),
            recording: None,
            trace: Xxh3Default::new(),
            requests: 0,
            changes: 0,
            cut_at: None,
            cut_on: None,
            off: false,
            uberblocks: 0,
            clock,
        })))
    }

    /// Adds a disk and returns its number.
    pub fn add(&self, size: u64, image: Image) -> usize {
        let mut state = self.0.lock();
        state.disks.push(DiskState { size, medium: image.clone(), seen: image, ..DiskState::default() });
        state.disks.len() - 1
    }

    /// The disk as the engine sees it.
    pub fn device(&self, index: usize) -> Arc<dyn Device> {
        let size_bytes = self.0.lock().disks[index].size;
        let info = DeviceInfo {
            path: PathBuf::from(format!("disk{index}")),
            size_bytes,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            rotational: false,
            discard: false,
            kind: "sim",
        };
        Arc::new(Disk { info, index, bus: self.clone() })
    }

    /// Everything stops; what becomes of unflushed writes is drawn. Then the power is back.
    pub fn crash(&self, random: &SeededRandom) {
        let mut bus = self.0.lock();
        let bus = &mut *bus;
        bus.queue.clear();
        for (device, disk) in bus.disks.iter_mut().enumerate() {
            if disk.vanished {
                continue;
            }
            let habit = random.below(4);
            for change in std::mem::take(&mut disk.volatile) {
                let fate = match habit {
                    0 => 0,
                    1 => 3,
                    _ => random.below(4),
                };
                let offset = change.first * BLOCK as u64;
                match fate {
                    0 => bus.hits.push(Hit { kind: Kind::Lost, device, offset, state: bus.state }),
                    1 => {
                        bus.hits.push(Hit { kind: Kind::Torn, device, offset, state: bus.state });
                        change.apply(&mut disk.medium, |_| random.chance(1, 2));
                    }
                    _ => change.apply_all(&mut disk.medium),
                }
            }
            disk.hung.clear();
            disk.seen = disk.medium.clone();
        }
        bus.off = false;
        bus.cut_at = None;
        bus.cut_on = None;
    }

    /// Adds a rule.
    pub fn inject(&self, rule: Rule) {
        self.0.lock().rules.push(rule);
    }

    /// No misbehaviour from here on.
    pub fn clear_rules(&self) {
        self.0.lock().rules.clear();
    }

    /// A number that two runs share only if they made the same requests with the same bytes, in the same order.
    pub fn trace(&self) -> u64 {
        self.0.lock().trace.digest()
    }
}

impl DiskState {
    /// What would be left if everything unflushed were lost.
    pub fn medium(&self) -> &Image {
        &self.medium
    }

    /// Puts another medium into the disk.
    pub fn replace(&mut self, image: Image) {
        self.medium = image.clone();
        self.seen = image;
        self.volatile.clear();
        self.hung.clear();
    }

    /// Keeps what is on the medium, to come back as the device's past.
    pub fn remember(&mut self) {
        self.medium.settle();
        self.past = self.medium.clone();
    }

    /// Goes back to what was remembered.
    pub fn go_back(&mut self) {
        let past = self.past.clone();
        self.replace(past);
    }

    /// What a read sees, settled so that copies are cheap.
    pub fn seen(&mut self) -> Image {
        self.seen.settle();
        self.seen.clone()
    }

    /// Changes a block behind everyone's back.
    pub fn tamper(&mut self, number: u64, change: impl Fn(&mut [u8; BLOCK])) {
        for image in [&mut self.medium, &mut self.seen] {
            let mut block = image.block(number).map_or([0; BLOCK], |b| **b);
            change(&mut block);
            image.set(number, Arc::new(block));
        }
        for change_ in &mut self.volatile {
            let at = number.wrapping_sub(change_.first);
            if let Some((block, _)) = usize::try_from(at).ok().and_then(|i| change_.blocks.get_mut(i)) {
                change(Arc::make_mut(block));
            }
        }
    }

    /// Writes that never answered land now.
    pub fn land_hung(&mut self) {
        for change in std::mem::take(&mut self.hung) {
            self.write(change, false);
        }
    }

    /// Whether writes hang.
    pub fn has_hung(&self) -> bool {
        !self.hung.is_empty()
    }

    fn write(&mut self, change: Change, durable: bool) {
        change.apply_all(&mut self.seen);
        if durable {
            change.apply_all(&mut self.medium);
            // older unflushed writes of the same sectors no longer matter
            for older in self.volatile.iter_mut().filter(|o| o.overlaps(&change)) {
                for (i, (_, mask)) in change.blocks.iter().enumerate() {
                    let at = (change.first + i as u64).wrapping_sub(older.first);
                    if let Some((_, old)) = usize::try_from(at).ok().and_then(|i| older.blocks.get_mut(i)) {
                        *old &= !mask;
                    }
                }
            }
        } else {
            self.volatile.push(change);
        }
    }

    fn flush(&mut self) {
        for change in std::mem::take(&mut self.volatile) {
            change.apply_all(&mut self.medium);
        }
    }
}

impl BusState {
    fn target_at(&self, device: usize, offset: u64) -> Option<Target> {
        let start = qrvsa_core::pool::format::layout::DATA_START;
        if offset < start {
            return Some(Target::Label);
        }
        let zone = usize::try_from((offset - start) >> self.zone_shift).ok()?;
        match self.map.get(device).and_then(|zones| zones.get(zone)) {
            Some(target) => *target,
            // behind the last zone are labels
            None => Some(Target::Label),
        }
    }

    /// What lies at an offset of a device; data if nobody knows.
    pub fn target(&self, device: usize, offset: u64) -> Target {
        self.target_at(device, offset).unwrap_or(Target::Data)
    }

    fn hit(&mut self, kind: Kind, device: usize, offset: u64) {
        let state = self.state;
        self.hits.push(Hit { kind, device, offset, state });
    }

    fn effect(&mut self, device: usize, op: Op, offset: u64) -> Option<(Kind, Effect)> {
        let target = if op == Op::Flush { None } else { self.target_at(device, offset) };
        let mut found = None;
        for rule in &mut self.rules {
            let matches = rule.device == device
                && !matches!(rule.effect, Effect::Vanish | Effect::Swap(_) | Effect::Fill)
                && rule.op.is_none_or(|o| o == op)
                && (rule.target.is_none() || op == Op::Flush || rule.target == target);
            if !matches || found.is_some() {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            found = Some((rule.kind, rule.effect));
        }
        self.rules.retain(|r| r.times > 0);
        found
    }

    /// Executes what is queued. False if nothing was.
    fn run(&mut self) -> Vec<(Arc<Completions>, u64, Outcome)> {
        let mut queue = std::mem::take(&mut self.queue);
        queue.sort_by_key(|q| (!matches!(q.request, Request::Flush), q.device, offset_of(&q.request), q.tag));
        let changes = queue.iter().filter(|q| !matches!(q.request, Request::Read { .. })).count() as u64;
        let mut cut = changes > 0 && self.cut_at.is_some_and(|at| self.changes + changes > at);
        if let Some((target, after)) = self.cut_on {
            let meets = |q: &Queued| match &q.request {
                Request::Write { offset, .. } => self.target_at(q.device, *offset) == Some(target),
                _ => false,
            };
            if queue.iter().any(meets) {
                cut |= after == 0;
                self.cut_on = Some((target, after.saturating_sub(1)));
            }
        }
        if !self.off && cut {
            self.off = true;
            for q in &queue {
                let Request::Write { offset, slices, .. } = &q.request else { continue };
                if self.disks[q.device].vanished || self.disks[q.device].full {
                    continue;
                }
                self.hit(Kind::Crash, q.device, *offset);
                self.note_uberblock(*offset);
                let change = Change::new(*offset, &concat(slices));
                self.disks[q.device].volatile.push(change);
            }
        }
        if self.off {
            let failed = |q: Queued| (q.completions, q.tag, fail(libc::EIO, q.device, "power is off"));
            return queue.into_iter().map(failed).collect();
        }
        self.changes += changes;
        if let Some(recording) = &mut self.recording
            && changes > 0
        {
            let mut batch = Batch::default();
            for q in &queue {
                match &q.request {
                    Request::Write { offset, slices, durable } => {
                        batch.writes.push((q.device, Change::new(*offset, &concat(slices)), *durable));
                    }
                    Request::Flush => batch.flushes.push(q.device),
                    Request::Read { .. } | Request::Discard { .. } => {}
                }
            }
            recording.push(batch);
        }
        queue.into_iter().map(|q| (q.completions, q.tag, self.execute(q.device, q.request))).collect()
    }

    fn note_uberblock(&mut self, offset: u64) {
        use qrvsa_core::pool::format::layout::{RING_OFFSET, RING_SLOTS, SLOT_BYTES};
        if (RING_OFFSET..RING_OFFSET + RING_SLOTS * SLOT_BYTES as u64).contains(&offset) {
            self.uberblocks += 1;
        }
    }

    fn note(&mut self, device: usize, op: Op, offset: u64, len: usize, digest: u64) {
        self.requests += 1;
        for n in [device as u64, op as u64, offset, len as u64, digest] {
            self.trace.update(&n.to_le_bytes());
        }
    }

    /// Rules that change the device itself, before the request reaches it.
    fn transform(&mut self, device: usize, op: Op, offset: u64) {
        let target = self.target_at(device, offset);
        let due = |r: &mut Rule| {
            let matches = r.device == device
                && matches!(r.effect, Effect::Vanish | Effect::Swap(_) | Effect::Fill)
                && r.op.is_none_or(|o| o == op)
                && (r.target.is_none() || (op != Op::Flush && r.target == target));
            if matches && r.skip > 0 {
                r.skip -= 1;
                return false;
            }
            matches
        };
        let Some(at) = self.rules.iter_mut().position(due) else { return };
        let rule = self.rules.remove(at);
        match rule.effect {
            Effect::Vanish => self.disks[device].vanished = true,
            Effect::Fill => self.disks[device].full = true,
            Effect::Swap(stranger) => {
                match stranger {
                    Stranger::Blank => self.disks[device].replace(Image::default()),
                    Stranger::Past => self.disks[device].go_back(),
                    Stranger::Sister(other) => {
                        let image = self.disks[other].seen();
                        self.disks[device].replace(image);
                    }
                }
                self.disks[device].swapped = true;
            }
            _ => {}
        }
    }

    fn execute(&mut self, device: usize, request: Request) -> Outcome {
        let offset = offset_of(&request);
        let op = match &request {
            Request::Read { .. } => Op::Read,
            Request::Write { .. } => Op::Write,
            Request::Flush | Request::Discard { .. } => Op::Flush,
        };
        self.transform(device, op, offset);
        if self.disks[device].vanished {
            self.hit(Kind::Vanished, device, offset);
            return fail(libc::ENODEV, device, "the device is gone");
        }
        if self.disks[device].swapped {
            self.hit(Kind::Swapped, device, offset);
        }
        match request {
            Request::Read { offset, mut bufs } => {
                let len = bufs.iter().map(|b| b.len()).sum();
                self.note(device, Op::Read, offset, len, 0);
                let effect = self.effect(device, Op::Read, offset);
                self.count_hit(device, offset, effect);
                let mut first = offset / BLOCK as u64;
                match effect {
                    Some((_, Effect::Fail(errno))) => return fail(errno, device, "read failed"),
                    Some((_, Effect::Hang { .. })) => return Outcome::TimedOut,
                    Some((_, Effect::Slow(time))) => self.clock.advance(time),
                    Some((_, Effect::Misdirect { to })) => first = to / BLOCK as u64,
                    _ => {}
                }
                for buf in &mut bufs {
                    self.disks[device].seen.read(first, buf);
                    first += (buf.len() / BLOCK) as u64;
                }
                if let Some((_, Effect::Flip { bit })) = effect {
                    flip(&mut bufs, bit);
                }
                Outcome::Done(bufs)
            }
            Request::Write { offset, slices, durable } => {
                let data = concat(&slices);
                self.note(device, Op::Write, offset, data.len(), xxh3_64(&data));
                self.note_uberblock(offset);
                if self.disks[device].full {
                    self.hit(Kind::Full, device, offset);
                    return fail(libc::ENOSPC, device, "the device is full");
                }
                let effect = self.effect(device, Op::Write, offset);
                self.count_hit(device, offset, effect);
                let mut change = Change::new(offset, &data);
                let disk = &mut self.disks[device];
                match effect {
                    Some((_, Effect::Fail(errno))) => return fail(errno, device, "write failed"),
                    Some((_, Effect::Drop)) => {}
                    Some((_, Effect::Hang { lands })) => {
                        if lands {
                            disk.hung.push(change);
                        }
                        return Outcome::TimedOut;
                    }
                    Some((_, Effect::Torn { sectors, error })) => {
                        let sectors = sectors % change.sectors();
                        for (i, (_, mask)) in change.blocks.iter_mut().enumerate() {
                            let kept = sectors.saturating_sub(i * SECTORS).min(SECTORS);
                            *mask = (0..kept).fold(0, |m, s| m | 1 << s);
                        }
                        disk.write(change, durable);
                        if error {
                            return fail(libc::EIO, device, "write failed");
                        }
                    }
                    Some((_, Effect::Misdirect { to })) => {
                        if to + data.len() as u64 <= disk.size {
                            change.first = to / BLOCK as u64;
                            disk.write(change, durable);
                        }
                    }
                    Some((_, Effect::Flip { bit })) => {
                        let bit = bit % (data.len() as u64 * 8);
                        let at = (bit / 8) as usize;
                        Arc::make_mut(&mut change.blocks[at / BLOCK].0)[at % BLOCK] ^= 1 << (bit % 8);
                        disk.write(change, durable);
                    }
                    Some((_, Effect::Lie)) => disk.write(change, false),
                    Some((_, Effect::Slow(time))) => {
                        disk.write(change, durable);
                        self.clock.advance(time);
                    }
                    _ => disk.write(change, durable),
                }
                Outcome::Done(Vec::new())
            }
            Request::Flush => {
                self.note(device, Op::Flush, 0, 0, 0);
                let effect = self.effect(device, Op::Flush, 0);
                if let Some((kind, _)) = effect {
                    let covered: Vec<u64> =
                        self.disks[device].volatile.iter().map(|c| c.first * BLOCK as u64).collect();
                    covered.into_iter().for_each(|offset| self.hit(kind, device, offset));
                }
                match effect {
                    Some((_, Effect::Fail(errno))) => return fail(errno, device, "flush failed"),
                    Some((_, Effect::Hang { .. })) => return Outcome::TimedOut,
                    Some((_, Effect::Slow(time))) => self.clock.advance(time),
                    Some((_, Effect::Lie)) => return Outcome::Done(Vec::new()),
                    _ => {}
                }
                self.disks[device].flush();
                Outcome::Done(Vec::new())
            }
            Request::Discard { .. } => Outcome::Done(Vec::new()),
        }
    }

    fn count_hit(&mut self, device: usize, offset: u64, effect: Option<(Kind, Effect)>) {
        if let Some((kind, _)) = effect {
            self.hit(kind, device, offset);
        }
    }
}

fn offset_of(request: &Request) -> u64 {
    match request {
        Request::Read { offset, .. } | Request::Write { offset, .. } | Request::Discard { offset, .. } => *offset,
        Request::Flush => 0,
    }
}

fn concat(slices: &[qrvsa_core::buf::BufSlice]) -> Vec<u8> {
    let mut data = Vec::with_capacity(slices.iter().map(|s| s.len()).sum());
    slices.iter().for_each(|s| data.extend_from_slice(s));
    data
}

fn flip(bufs: &mut [AlignedBuf], bit: u64) {
    let len: usize = bufs.iter().map(|b| b.len()).sum();
    let bit = bit % (len as u64 * 8);
    let mut at = (bit / 8) as usize;
    for buf in bufs {
        if let Some(byte) = buf.get_mut(at) {
            *byte ^= 1 << (bit % 8);
            return;
        }
        at -= buf.len();
    }
}

fn fail(errno: i32, device: usize, what: &str) -> Outcome {
    Outcome::Failed(IoError { errno, what: format!("disk{device}: {what}") })
}

impl Device for Disk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let mut bus = self.bus.0.lock();
        for (tag, request) in requests {
            let (device, completions) = (self.index, completions.clone());
            bus.queue.push(Queued { device, tag, request, completions });
        }
    }

    fn drive(&self, _timeout: Duration) -> bool {
        let done = self.bus.0.lock().run();
        let any = !done.is_empty();
        for (completions, tag, outcome) in done {
            completions.complete(tag, outcome);
        }
        any
    }

    fn check_presence(&self) -> Result<(), IoError> {
        let bus = self.bus.0.lock();
        if bus.disks[self.index].vanished {
            return Err(IoError { errno: libc::ENODEV, what: format!("disk{} is gone", self.index) });
        }
        Ok(())
    }
}
