//! SANITIZE and FORMAT UNIT (SBC-3 5.3, 5.28): the whole medium is made to read as something else. The work runs in a thread of its own;
//! while it does, and after it has failed, the medium cannot be used.

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::bytes::{be16, byte};
use super::call::{Call, Outcome, Refusal};
use super::limits::PIECE_BYTES;
use super::sense::{BUSY, Sense};
use super::unit::{Shape, Unit};
use crate::backing::Failure;

/// Bytes overwritten in a second at most: other units want to be served meanwhile.
const PACE_BYTES_PER_S: u64 = 256 << 20;
/// Overwriting a unit takes no less than this: a small one is not a reason for a burst of writes, and whoever has aborted the command
/// in error can still see that the work goes on.
const OVERWRITE_MIN: Duration = Duration::from_secs(6);

const IDLE: u8 = 0;
const SANITIZING: u8 = 1;
const FORMATTING: u8 = 2;
const FAILED: u8 = 3;
/// As before, and EXIT FAILURE MODE may end it.
const FAILED_UNRESTRICTED: u8 = 4;

/// Where a unit is with it.
#[derive(Debug, Default)]
pub(crate) struct Sanitize {
    state: AtomicU8,
    progress: AtomicU16,
    waiter: Mutex<Option<Waiter>>,
    changed: Condvar,
    /// Tests need not wait.
    #[cfg(test)]
    pub(crate) hasty: AtomicBool,
}

/// The command that waits for the end of the work.
#[derive(Debug)]
struct Waiter {
    tsih: u16,
    task_tag: u32,
    /// It has been aborted: the work goes on without it.
    abandoned: bool,
    result: Option<Result<(), Failure>>,
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
            _ => Err(Sense::new(3, 0x31, 0x03)),
        }
    }

    fn overwrite_min(&self) -> Duration {
        #[cfg(test)]
        if self.hasty.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        OVERWRITE_MIN
    }

    /// Lets the waiting command go, if it is of this session and has this tag (`None`: any).
    pub(crate) fn abandon(&self, tsih: Option<u16>, task_tag: Option<u32>) {
        if let Some(waiter) = self.waiter.lock().as_mut()
            && tsih.is_none_or(|tsih| tsih == waiter.tsih)
            && task_tag.is_none_or(|tag| tag == waiter.task_tag)
        {
            waiter.abandoned = true;
            self.changed.notify_all();
        }
    }

    fn finish(&self, state: u8, result: Result<(), Failure>) {
        let mut waiter = self.waiter.lock();
        self.state.store(state, Ordering::Release);
        if let Some(waiter) = waiter.as_mut() {
            waiter.result = Some(result);
            self.changed.notify_all();
        }
    }

    /// Waits for the end of the work; `None`: the command was aborted.
    fn wait(&self) -> Option<Result<(), Failure>> {
        let mut slot = self.waiter.lock();
        loop {
            match slot.as_mut() {
                Some(waiter) if waiter.result.is_none() && !waiter.abandoned => self.changed.wait(&mut slot),
                Some(_) => return slot.take().and_then(|w| w.result),
                None => return None,
            }
        }
    }

    fn begin(&self, what: u8) -> Result<(), Sense> {
        for from in [IDLE, FAILED, FAILED_UNRESTRICTED] {
            if self.state.compare_exchange(from, what, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                self.progress.store(0, Ordering::Relaxed);
                return Ok(());
            }
        }
        self.readiness()
    }
}

/// Fill patterns are kept to this length: what divides a block is repeated, so that a piece is a whole number of both.
fn piece_of(pattern: &[u8], block: u32) -> Option<Vec<u8>> {
    let block = usize::try_from(block).ok()?;
    let one: Vec<u8> = pattern.iter().copied().cycle().take(block).collect();
    let copies = (usize::try_from(PIECE_BYTES).ok()? / block).max(1);
    Some(one.repeat(copies))
}

enum Work {
    /// Each block gets this, so many times.
    Overwrite { pattern: Vec<u8>, times: u8 },
    /// Space goes back.
    Erase,
}

fn run(unit: &Unit, shape: &Shape, work: &Work) -> Result<(), Failure> {
    let size = shape.blocks() * u64::from(shape.block);
    let begun = Instant::now();
    let pace = |done: u64, all: u64| {
        let by_rate = Duration::from_millis(done.saturating_mul(1000) / PACE_BYTES_PER_S);
        let by_share = unit.sanitize.overwrite_min().mul_f64(done as f64 / all.max(1) as f64);
        std::thread::sleep(by_rate.max(by_share).saturating_sub(begun.elapsed()));
    };
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
                let bytes = piece.min(size - at);
                shape.backing.unmap(at, bytes)?;
                at += bytes;
                set(at, 1, 0);
            }
        }
        Work::Overwrite { pattern, times } => {
            let Some(buf) = piece_of(pattern, shape.block) else { return Ok(()) };
            for time in 0..*times {
                let mut at = 0;
                while at < size {
                    let bytes = (buf.len() as u64).min(size - at);
                    let part = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                    shape.backing.write(at, part, false)?;
                    at += bytes;
                    set(at, *times, time);
                    pace(size * u64::from(time) + at, size * u64::from(*times));
                }
            }
        }
    }
    shape.backing.flush()
}

fn start(call: &Call, what: u8, work: Work, immediate: bool, unrestricted: bool) -> Outcome {
    call.unit.sanitize.begin(what)?;
    // what had begun before ends before
    while !call.unit.ranges.drain(Duration::from_secs(60)) {
        tracing::warn!("LUN {}: waiting for commands to end before the medium is sanitized", call.unit.lun);
    }
    let (unit, shape): (Arc<Unit>, Arc<Shape>) = (call.unit.clone(), call.unit.shape_arc());
    unit.watch.written_all();
    *unit.sanitize.waiter.lock() =
        (!immediate).then(|| Waiter { tsih: call.nexus.tsih, task_tag: call.task_tag, abandoned: false, result: None });
    let work = move || {
        let result = run(&unit, &shape, &work);
        let state = match &result {
            Ok(()) => IDLE,
            Err(failure) => {
                tracing::error!("LUN {}: sanitizing failed: {failure}", unit.lun);
                if unrestricted { FAILED_UNRESTRICTED } else { FAILED }
            }
        };
        unit.threshold.freed();
        unit.sanitize.finish(state, result);
    };
    let name = format!("sanitize-{}", call.unit.lun);
    if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
        tracing::error!("LUN {}: no thread to sanitize: {error}", call.unit.lun);
        call.unit.sanitize.waiter.lock().take();
        call.unit.sanitize.state.store(IDLE, Ordering::Release);
        return Err(Sense::new(4, 0x44, 0x00).into());
    }
    if immediate {
        return Ok(Vec::new());
    }
    match call.unit.sanitize.wait() {
        Some(Ok(())) => Ok(Vec::new()),
        Some(Err(failure)) => Err(call.failed(&failure)),
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
    let state = &call.unit.sanitize.state;
    match state.compare_exchange(FAILED_UNRESTRICTED, IDLE, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) | Err(IDLE) => Ok(Vec::new()),
        Err(FAILED) => Err(Sense::cdb_field(1, 4).into()),
        Err(_) => Err(call.unit.sanitize.readiness().err().unwrap_or(Sense::NOT_READY).into()),
    }
}

/// FORMAT UNIT: everything reads as zero afterwards. Defect lists are empty, the block length stays, protection there is none.
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
    if call.write_protected() { Err(Sense::WRITE_PROTECTED.into()) } else { Ok(()) }
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
