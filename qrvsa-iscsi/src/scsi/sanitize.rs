//! SANITIZE and FORMAT UNIT (SBC-3 5.3, 5.28): the whole medium is made to read as something else. The work runs in a thread of its own;
//! while it does, and after it has failed, the medium cannot be used. That outlives the process: before the command is answered, what is
//! to be done is stored, and it is forgotten only when it is done.

pub(crate) mod record;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::record::{Keeper, Record};
use super::bytes::{be16, byte};
use super::call::{Call, Outcome, Refusal};
use super::limits::PIECE_BYTES;
use super::sense::{BUSY, Sense};
use super::unit::{Shape, Unit};
use crate::backing::{Failure, FailureKind};

/// Bytes overwritten in a second at most: other units want to be served meanwhile.
const PACE_BYTES_PER_S: u64 = 256 << 20;
/// Overwriting a unit takes no less than this: a small one is not a reason for a burst of writes, and whoever has aborted the command
/// in error can still see that the work goes on.
const OVERWRITE_MIN: Duration = Duration::from_secs(6);

/// Commands that had begun before are waited for in steps of this length.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

const IDLE: u8 = 0;
const SANITIZING: u8 = 1;
const FORMATTING: u8 = 2;
const FAILED: u8 = 3;
/// As before, and EXIT FAILURE MODE may end it.
const FAILED_UNRESTRICTED: u8 = 4;
/// A FORMAT UNIT has failed: another one, or a SANITIZE, ends that.
const FORMAT_FAILED: u8 = 5;

const FORMAT_COMMAND_FAILED: Sense = Sense::new(3, 0x31, 0x01);
const SANITIZE_COMMAND_FAILED: Sense = Sense::new(3, 0x31, 0x03);

/// Where a unit is with it.
#[derive(Debug, Default)]
pub(crate) struct Sanitize {
    state: AtomicU8,
    progress: AtomicU16,
    desk: Mutex<Desk>,
    changed: Condvar,
    /// Tests need not wait.
    #[cfg(test)]
    pub(crate) hasty: AtomicBool,
}

/// Who is concerned with the work.
#[derive(Debug, Default)]
struct Desk {
    waiter: Option<Waiter>,
    /// A thread is at work, or will be in a moment.
    working: bool,
    /// The unit goes: nothing begins any more, and what is under way stops.
    stopped: bool,
}

/// The command that waits for the end of the work.
#[derive(Debug)]
struct Waiter {
    tsih: u16,
    task_tag: u32,
    /// It has been aborted: the work goes on without it.
    abandoned: bool,
    result: Option<Result<(), Sense>>,
}

impl Sanitize {
    pub(crate) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) == IDLE
    }

    /// Why commands to the medium cannot run.
    pub(crate) fn readiness(&self) -> Result<(), Sense> {
        let progress = self.progress.load(Ordering::Relaxed);
        match self.state.load(Ordering::Acquire) {
            IDLE => Ok(()),
            SANITIZING => Err(Sense::new(2, 0x04, 0x1b).progress(progress)),
            FORMATTING => Err(Sense::new(2, 0x04, 0x04).progress(progress)),
            FORMAT_FAILED => Err(FORMAT_COMMAND_FAILED),
            _ => Err(SANITIZE_COMMAND_FAILED),
        }
    }

    fn overwrite_min(&self) -> Duration {
        #[cfg(test)]
        if self.hasty.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        OVERWRITE_MIN
    }

    /// Lets the waiting command go, if `whose` says so of its session's TSIH and its task tag.
    pub(crate) fn abandon(&self, whose: impl Fn(u16, u32) -> bool) {
        if let Some(waiter) = self.desk.lock().waiter.as_mut()
            && whose(waiter.tsih, waiter.task_tag)
        {
            waiter.abandoned = true;
            self.changed.notify_all();
        }
    }

    /// Stops the work that is under way, and lets no other begin. `false`: it has not stopped within that time.
    pub(crate) fn stop(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut desk = self.desk.lock();
        desk.stopped = true;
        if let Some(waiter) = desk.waiter.as_mut() {
            waiter.abandoned = true;
        }
        self.changed.notify_all();
        while desk.working && !self.changed.wait_until(&mut desk, deadline).timed_out() {}
        !desk.working
    }

    fn stopped(&self) -> bool {
        self.desk.lock().stopped
    }

    /// Waits until then. `false`: the work has to stop.
    fn goes_on(&self, until: Instant) -> bool {
        let mut desk = self.desk.lock();
        while !desk.stopped && !self.changed.wait_until(&mut desk, until).timed_out() {}
        !desk.stopped
    }

    /// The work is over; the unit is in this state (`None`: the one it was in), and this is its result.
    fn finish(&self, state: Option<u8>, result: Option<Result<(), Sense>>) {
        let mut desk = self.desk.lock();
        if let Some(state) = state {
            self.state.store(state, Ordering::Release);
        }
        if let Some(waiter) = desk.waiter.as_mut() {
            waiter.abandoned |= result.is_none();
            waiter.result = result;
        }
        desk.working = false;
        self.changed.notify_all();
    }

    /// It did not come to the work: all is as before.
    fn undo(&self, before: u8) {
        let mut desk = self.desk.lock();
        self.state.store(before, Ordering::Release);
        desk.waiter = None;
        desk.working = false;
        self.changed.notify_all();
    }

    /// Waits for the end of the work; `None`: the command was aborted.
    fn wait(&self) -> Option<Result<(), Sense>> {
        let mut desk = self.desk.lock();
        loop {
            match &desk.waiter {
                Some(waiter) if waiter.result.is_none() && !waiter.abandoned => self.changed.wait(&mut desk),
                Some(_) => return desk.waiter.take().and_then(|w| w.result),
                None => return None,
            }
        }
    }

    /// Takes the state of a record, before anybody sees the unit. `false`: there is no work to go on with.
    pub(crate) fn restore(&self, record: &Record, shape: &Shape, lun: u64) -> bool {
        let mut desk = self.desk.lock();
        let working = matches!(record.state, SANITIZING | FORMATTING);
        let same = record.of == record::name_of(shape);
        if !same {
            tracing::error!(
                "LUN {lun}: other storage than this was being sanitized or formatted; it is not touched, and not ready \
                 until that is repeated or the LUN is removed and added anew"
            );
        }
        let state = if working && !same { failed(record).0 } else { record.state };
        self.state.store(state, Ordering::Release);
        desk.working = working && same;
        desk.working
    }

    /// EXIT FAILURE MODE: where it is allowed, the unit is as if nothing had been.
    fn exit_failure(&self, keeper: &Keeper) -> Result<(), Sense> {
        let _desk = self.desk.lock();
        match self.state.load(Ordering::Acquire) {
            FAILED_UNRESTRICTED => {}
            FAILED => return Err(Sense::cdb_field(1, 4)),
            _ => return self.readiness(),
        }
        keeper.clear().map_err(|text| {
            tracing::error!("the end of a failed sanitizing cannot be stored: {text}");
            Sense::new(4, 0x44, 0x00)
        })?;
        self.state.store(IDLE, Ordering::Release);
        Ok(())
    }

    /// Another medium comes: a failure was the old one's.
    pub(crate) fn medium_changes(&self, keeper: &Keeper) -> Result<(), String> {
        let desk = self.desk.lock();
        if desk.working {
            return Err("the medium is being sanitized or formatted; wait for the end of that".into());
        }
        keeper.clear()?;
        self.state.store(IDLE, Ordering::Release);
        Ok(())
    }

    /// Takes the unit for the work, with the command that waits for it; answers the state before. After a sanitizing that failed in
    /// restricted completion mode nothing but another such one leads out (SBC-4 4.11).
    fn begin(&self, what: u8, unrestricted: bool, waiter: Option<Waiter>) -> Result<u8, Sense> {
        let mut desk = self.desk.lock();
        let before = self.state.load(Ordering::Acquire);
        // a command that is about to give its answer has the place still
        if desk.stopped || desk.working || desk.waiter.is_some() {
            return Err(self.readiness().err().unwrap_or(Sense::NOT_READY));
        }
        match before {
            IDLE | FORMAT_FAILED => {}
            FAILED if what == SANITIZING && unrestricted => return Err(Sense::cdb_field(1, 5)),
            FAILED | FAILED_UNRESTRICTED if what == SANITIZING => {}
            _ => return Err(self.readiness().err().unwrap_or(Sense::NOT_READY)),
        }
        self.progress.store(0, Ordering::Relaxed);
        self.state.store(what, Ordering::Release);
        desk.waiter = waiter;
        desk.working = true;
        Ok(before)
    }
}

/// Fill patterns are kept to this length: what divides a block is repeated, so that a piece is a whole number of both.
fn piece_of(pattern: &[u8], block: u32) -> Option<Vec<u8>> {
    let block = usize::try_from(block).ok()?;
    let one: Vec<u8> = pattern.iter().copied().cycle().take(block).collect();
    let copies = (usize::try_from(PIECE_BYTES).ok()? / block).max(1);
    Some(one.repeat(copies))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Each block gets this, so many times.
    Overwrite { pattern: Vec<u8>, times: u8 },
    /// Space goes back.
    Erase,
}

/// Does the work. `false`: it was stopped.
fn run(unit: &Unit, shape: &Shape, work: &Work) -> Result<bool, Failure> {
    let size = shape.blocks() * u64::from(shape.block);
    let begun = Instant::now();
    let set = |done: u64, times: u8, time: u8| {
        let all = u128::from(size.max(1)) * u128::from(times.max(1));
        let part = (u128::from(size) * u128::from(time) + u128::from(done)) * 65535 / all;
        unit.sanitize.progress.store(u16::try_from(part).unwrap_or(u16::MAX), Ordering::Relaxed);
    };
    match work {
        Work::Erase => {
            let piece = PIECE_BYTES << 12;
            let mut at = 0;
            while at < size {
                if unit.sanitize.stopped() {
                    return Ok(false);
                }
                let bytes = piece.min(size - at);
                shape.backing.unmap(at, bytes)?;
                at += bytes;
                set(at, 1, 0);
            }
        }
        Work::Overwrite { pattern, times } => {
            let Some(buf) = piece_of(pattern, shape.block) else { return Ok(true) };
            let all = size.saturating_mul(u64::from(*times));
            let due = |done: u64| {
                let by_rate = Duration::from_millis(done.saturating_mul(1000) / PACE_BYTES_PER_S);
                let by_share = unit.sanitize.overwrite_min().mul_f64(done as f64 / all.max(1) as f64);
                begun + by_rate.max(by_share)
            };
            for time in 0..*times {
                let mut at = 0;
                while at < size {
                    let bytes = (buf.len() as u64).min(size - at);
                    let part = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                    shape.backing.write(at, part, false)?;
                    at += bytes;
                    set(at, *times, time);
                    if !unit.sanitize.goes_on(due(size.saturating_mul(u64::from(time)).saturating_add(at))) {
                        return Ok(false);
                    }
                }
            }
        }
    }
    shape.backing.flush()?;
    Ok(true)
}

/// The state that failed work leaves, and what commands are told.
fn failed(record: &Record) -> (u8, Sense) {
    match (record.state, record.unrestricted) {
        (FORMATTING, _) => (FORMAT_FAILED, FORMAT_COMMAND_FAILED),
        (_, true) => (FAILED_UNRESTRICTED, SANITIZE_COMMAND_FAILED),
        (_, false) => (FAILED, SANITIZE_COMMAND_FAILED),
    }
}

/// Work for a thread of its own.
struct Job {
    unit: Arc<Unit>,
    shape: Arc<Shape>,
    record: Record,
    keeper: Keeper,
}

impl Job {
    /// Begins with it in another thread, as soon as the answer is told to. Without that, nothing happens.
    fn spawn(self) -> std::io::Result<mpsc::Sender<()>> {
        let (go, told) = mpsc::channel();
        let name = format!("sanitize-{}", self.unit.lun);
        std::thread::Builder::new().name(name).spawn(move || {
            if told.recv().is_ok() {
                self.carry_out();
            }
        })?;
        Ok(go)
    }

    fn carry_out(self) {
        let Self { unit, shape, record, keeper } = self;
        // what had begun before ends before
        while !unit.ranges.drain(DRAIN_PATIENCE) {
            if unit.sanitize.stopped() {
                return unit.sanitize.finish(None, None);
            }
            tracing::warn!("LUN {}: waiting for commands to end before the medium is sanitized", unit.lun);
        }
        unit.watch.written_all();
        let result = catch_unwind(AssertUnwindSafe(|| run(&unit, &shape, &record.work))).unwrap_or_else(|_| {
            let text = "the storage panicked; this is a bug".into();
            Err(Failure { kind: FailureKind::Unwritable, text, offset: None })
        });
        drop(shape);
        unit.threshold.freed();
        if unit.sanitize.stopped() {
            // it goes on where the unit comes back
            return unit.sanitize.finish(None, None);
        }
        // As long as it is not forgotten it would be done again after a restart, and what was written since would be lost.
        let Err(text) = result.map_err(|f| f.text).and_then(|_| keeper.clear()) else {
            return unit.sanitize.finish(Some(IDLE), Some(Ok(())));
        };
        tracing::error!("LUN {}: sanitizing failed: {text}; its medium cannot be used until it is repeated", unit.lun);
        let (state, sense) = failed(&record);
        if let Err(text) = keeper.put(&Record { state, ..record }) {
            tracing::error!("LUN {}: that cannot be stored: {text}; after a restart it is tried again", unit.lun);
        }
        unit.sanitize.finish(Some(state), Some(Err(sense)));
    }
}

/// Goes on with what a restart has interrupted.
pub(crate) fn resume(unit: Arc<Unit>, record: Record, keeper: Keeper) {
    tracing::info!("LUN {}: goes on with being sanitized or formatted, from the beginning", unit.lun);
    let (state, lost) = (failed(&record).0, unit.clone());
    match (Job { shape: unit.shape_arc(), unit, record, keeper }).spawn() {
        Ok(go) => drop(go.send(())),
        Err(error) => {
            tracing::error!("LUN {}: no thread to sanitize: {error}", lost.lun);
            lost.sanitize.finish(Some(state), None);
        }
    }
}

fn start(call: &Call, what: u8, work: Work, immediate: bool, unrestricted: bool) -> Outcome {
    let sanitize = &call.unit.sanitize;
    let waiter =
        (!immediate).then(|| Waiter { tsih: call.nexus.tsih, task_tag: call.task_tag, abandoned: false, result: None });
    let before = sanitize.begin(what, unrestricted, waiter)?;
    // From here on whoever ends the command finds it; what was ended until now does not begin.
    if call.units.has_ended(call.nexus, call.task_tag) {
        sanitize.undo(before);
        return Err(Refusal::Status(BUSY));
    }
    let shape = call.unit.shape_arc();
    let record = Record { of: record::name_of(&shape), state: what, unrestricted, work };
    let keeper = call.units.sanitize_keeper(call.unit.lun);
    let job = Job { unit: call.unit.clone(), shape, record: record.clone(), keeper: keeper.clone() };
    let ready = job.spawn().map_err(|e| e.to_string()).and_then(|go| keeper.put(&record).map(|()| go));
    match ready {
        Ok(go) => drop(go.send(())),
        Err(text) => {
            tracing::error!("LUN {}: cannot begin to sanitize: {text}", call.unit.lun);
            sanitize.undo(before);
            return Err(Sense::new(4, 0x44, 0x00).into());
        }
    }
    if immediate {
        return Ok(Vec::new());
    }
    match sanitize.wait() {
        Some(Ok(())) => Ok(Vec::new()),
        Some(Err(sense)) => Err(sense.into()),
        // nobody waits for an answer
        None => Err(Refusal::Status(BUSY)),
    }
}

/// SANITIZE, OVERWRITE: a list of 4 bytes and a pattern of at most a block.
pub(crate) fn overwrite(call: &Call) -> Outcome {
    check_reserved(call)?;
    check_writable(call)?;
    let length = usize::from(be16(call.cdb, 7));
    let list = call.data.get(..length).ok_or(Sense::PARAMETER_LENGTH)?;
    let block = usize::try_from(call.shape.block).unwrap_or(0);
    if list.len() < 5 || list.len() > 4 + block {
        return Err(Sense::cdb_field(7, 7).into());
    }
    let times = byte(list, 0) & 0x1f;
    let told = usize::from(be16(list, 2));
    if times == 0 || byte(list, 0) & 0x80 != 0 {
        return Err(Sense::parameter_field(0).into());
    }
    if told == 0 || told > block || told != list.len() - 4 {
        return Err(Sense::parameter_field(2).into());
    }
    let pattern = list.get(4..).unwrap_or_default().to_vec();
    start(call, SANITIZING, Work::Overwrite { pattern, times }, call.cdb[1] & 0x80 != 0, call.cdb[1] & 0x20 != 0)
}

/// SANITIZE, BLOCK ERASE.
pub(crate) fn block_erase(call: &Call) -> Outcome {
    check_reserved(call)?;
    check_writable(call)?;
    if be16(call.cdb, 7) != 0 {
        return Err(Sense::cdb_field(7, 7).into());
    }
    start(call, SANITIZING, Work::Erase, call.cdb[1] & 0x80 != 0, call.cdb[1] & 0x20 != 0)
}

/// SANITIZE, EXIT FAILURE MODE: only after a sanitizing that allowed it (AUSE).
pub(crate) fn exit_failure(call: &Call) -> Outcome {
    check_reserved(call)?;
    if be16(call.cdb, 7) != 0 {
        return Err(Sense::cdb_field(7, 7).into());
    }
    call.unit.sanitize.exit_failure(&call.units.sanitize_keeper(call.unit.lun))?;
    Ok(Vec::new())
}

/// FORMAT UNIT: everything reads as zero afterwards. It looks at the medium itself: one that a failed one has left is no reason against it. Defect lists are empty, the block length stays, protection there is none.
pub(crate) fn format(call: &Call) -> Outcome {
    check_writable(call)?;
    let (protection, long, with_list, format) =
        (call.cdb[1] >> 6, call.cdb[1] & 0x20 != 0, call.cdb[1] & 0x10 != 0, call.cdb[1] & 0x07);
    if protection != 0 {
        return Err(Sense::cdb_field(1, 7).into());
    }
    let mut immediate = false;
    if with_list {
        let header = if long { 8 } else { 4 };
        if call.data.len() < header {
            return Err(Sense::PARAMETER_LENGTH.into());
        }
        let options = byte(call.data, 1);
        let defects = if long { super::bytes::be32(call.data, 4) } else { u32::from(be16(call.data, 2)) };
        if defects != 0 || !matches!(format, 0 | 4 | 6) {
            return Err(Sense::parameter_field(2).into());
        }
        if byte(call.data, 0) & 0x07 != 0 || options & 0x08 != 0 {
            return Err(Sense::parameter_field(0).into());
        }
        immediate = options & 0x02 != 0;
    }
    start(call, FORMATTING, Work::Erase, immediate, true)
}

/// Reserved bits of SANITIZE are checked: it is not the command to guess at.
fn check_reserved(call: &Call) -> Result<(), Refusal> {
    if call.cdb[1] & 0x40 != 0 {
        return Err(Sense::cdb_field(1, 6).into());
    }
    match (2..=6u16).find(|at| call.cdb[usize::from(*at)] != 0) {
        Some(at) => Err(Sense::cdb_field(at, 7).into()),
        None => Ok(()),
    }
}

fn check_writable(call: &Call) -> Result<(), Refusal> {
    call.unit.medium_readiness(call.shape)?;
    if call.shape.read_only {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    if call.unit.pages.read().write_protect() { Err(Sense::new(7, 0x27, 0x02).into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_begin_anew_in_each_block() {
        let piece = piece_of(&[1, 2, 3], 512).expect("fits");
        assert_eq!(piece.len(), 1 << 20);
        assert_eq!(piece[510..515], [1, 2, 1, 2, 3]);
    }
}
