//! Tokens that stand for data (SBC-3 5.10, 5.41; SPC-4 5.17.6): POPULATE TOKEN makes one, WRITE USING TOKEN copies what it stands for.
//!
//! A token is good for a while, and as long as nobody writes to its blocks: it stands for what was there when it was made.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::engine::{self, Side};
use super::results::{Kind, Report};
use super::{COPY_BYTES_MAX, TOKEN_RUNS_MAX};
use crate::scsi::bytes::{be16, be32, be64, byte};
use crate::scsi::call::{Blocks, Call, Outcome, Refusal};
use crate::scsi::sense::Sense;
use crate::scsi::unit::Unit;
use crate::scsi::watch::Watched;

/// Bytes of a token.
const TOKEN_BYTES: usize = 512;
/// ROD type: a copy of a point in time, vulnerable to writes.
const POINT_IN_TIME: u32 = 0x0080_0000;
/// ROD type: zeroes, any number of them.
const ZEROES: u32 = 0xffff_0001;
/// Tokens of a target at once.
const TOKENS_MAX: usize = 256;
/// How long a token lasts unused, seconds.
pub(super) const TIMEOUT_DEFAULT_S: u32 = 120;
pub(super) const TIMEOUT_MAX_S: u32 = 600;

struct Held {
    unit: Arc<Unit>,
    watched: Arc<Watched>,
    timeout: Duration,
    used: Instant,
}

impl Held {
    fn expired(&self) -> bool {
        self.used.elapsed() > self.timeout
    }
}

/// The tokens of one target.
#[derive(Default)]
pub(crate) struct Tokens {
    held: Mutex<HashMap<[u8; 24], Held>>,
    secrets: [RandomState; 3],
    made: std::sync::atomic::AtomicU64,
}

impl Tokens {
    /// A name that nobody guesses.
    fn new_name(&self) -> [u8; 24] {
        let n = self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut name = [0; 24];
        for (part, secret) in name.chunks_exact_mut(8).zip(&self.secrets) {
            part.copy_from_slice(&secret.hash_one(n).to_be_bytes());
        }
        name
    }

    fn put(&self, name: [u8; 24], held: Held) -> Result<(), Refusal> {
        let mut all = self.held.lock();
        all.retain(|_, h| !h.expired() && h.watched.is_valid());
        if all.len() >= TOKENS_MAX {
            // INSUFFICIENT RESOURCES TO CREATE ROD TOKEN
            return Err(Sense::new(5, 0x55, 0x0d).into());
        }
        all.insert(name, held);
        Ok(())
    }

    pub(crate) fn forget_unit(&self, serial: u64) {
        self.held.lock().retain(|_, h| h.unit.serial != serial);
    }
}

/// The runs in a list of block device range descriptors.
fn runs(call: &Call, list: &[u8], length_at: usize) -> Result<Vec<Blocks>, Refusal> {
    let length = usize::from(be16(list, length_at));
    let descriptors = list.get(length_at + 2..length_at + 2 + length).ok_or(Sense::PARAMETER_LENGTH)?;
    if length == 0 || !length.is_multiple_of(16) {
        return Err(Sense::parameter_field(length_at).into());
    }
    if length / 16 > usize::from(TOKEN_RUNS_MAX) {
        return Err(Sense::new(5, 0x26, 0x08).into());
    }
    let runs: Vec<_> =
        descriptors.chunks_exact(16).map(|d| Blocks { lba: be64(d, 0), count: u64::from(be32(d, 8)) }).collect();
    for run in &runs {
        call.check_range(*run)?;
    }
    let total: u64 = runs.iter().map(|r| r.count).sum();
    if total == 0 || total * call.block() > COPY_BYTES_MAX {
        return Err(Sense::parameter_field(length_at + 10).into());
    }
    Ok(runs)
}

fn parameter_list<'a>(call: &Call<'a>, header: usize) -> Result<&'a [u8], Refusal> {
    let length = usize::try_from(be32(call.cdb, 10)).unwrap_or(usize::MAX);
    let list = call.data.get(..length).ok_or(Sense::PARAMETER_LENGTH)?;
    if list.len() < header || usize::from(be16(list, 0)) + 2 > list.len() {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    Ok(list)
}

/// POPULATE TOKEN.
pub(crate) fn populate(call: &Call) -> Outcome {
    let list = parameter_list(call, 16)?;
    let runs = runs(call, list, 14)?;
    let (explicit, kind) = (byte(list, 2) & 2 != 0, be32(list, 8));
    if explicit && kind != POINT_IN_TIME {
        // UNSUPPORTED TOKEN TYPE
        return Err(Sense::new(5, 0x23, 0x01).into());
    }
    let seconds = match be32(list, 4) {
        0 => TIMEOUT_DEFAULT_S,
        more if more > TIMEOUT_MAX_S => return Err(Sense::parameter_field(4).into()),
        some => some,
    };
    let total: u64 = runs.iter().map(|r| r.count).sum();
    let watched = {
        // no write is under way while the watch begins
        let end = runs.iter().map(|r| r.lba + r.count).max().unwrap_or(0);
        let start = runs.iter().map(|r| r.lba).min().unwrap_or(0);
        let _hold = call.hold(Blocks { lba: start, count: end - start }, true)?;
        call.unit.watch.begin(runs)
    };
    let name = call.units.tokens().new_name();
    let held =
        Held { unit: call.unit.clone(), watched, timeout: Duration::from_secs(seconds.into()), used: Instant::now() };
    call.units.tokens().put(name, held)?;
    let bytes = total * call.block();
    let token = encode(call, &name, bytes);
    let report = Report {
        kind: Kind::Long,
        list_id: be32(call.cdb, 6),
        service: 0x10,
        segments: 0,
        bytes,
        block: call.shape.block,
        token: Some(token),
        ..Report::default()
    };
    call.units.copy_results().put(call.nexus.tsih, report);
    Ok(Vec::new())
}

/// The token (SPC-4 5.17.6.6): type, length, name, creator, size, and the rest of the name.
fn encode(call: &Call, name: &[u8; 24], bytes: u64) -> Vec<u8> {
    let mut token = POINT_IN_TIME.to_be_bytes().to_vec();
    token.extend([0, 0, 0x01, 0xf8]);
    token.extend(&name[..8]);
    token.extend([0xe4, 0, 0, 0, 1, 3, 0, 16]);
    token.extend(call.shape.ident.naa);
    token.resize(45, 0);
    token.extend(&call.shape.block.to_be_bytes()[1..]);
    token.extend(u128::from(bytes).to_be_bytes());
    token.resize(96, 0);
    token.extend(call.shape.block.to_be_bytes());
    token.resize(128, 0);
    token.extend(&name[8..]);
    token.resize(TOKEN_BYTES, 0);
    token
}

enum Source {
    Zeroes,
    Runs(Side, Arc<Watched>),
}

/// What a token stands for.
fn open(call: &Call, token: &[u8], delete: bool) -> Result<Source, Refusal> {
    let invalid = |ascq| Refusal::from(Sense::new(5, 0x23, ascq));
    if be16(token, 6) != 0x01f8 {
        return Err(invalid(0x0a));
    }
    match be32(token, 0) {
        ZEROES => return Ok(Source::Zeroes),
        POINT_IN_TIME => {}
        _ => return Err(invalid(0x01)),
    }
    let mut name = [0; 24];
    name[..8].copy_from_slice(token.get(8..16).unwrap_or(&[0; 8]));
    name[8..].copy_from_slice(token.get(128..144).unwrap_or(&[0; 16]));
    let mut all = call.units.tokens().held.lock();
    let held = all.get_mut(&name).ok_or_else(|| invalid(0x04))?;
    if held.expired() {
        all.remove(&name);
        return Err(invalid(0x07));
    }
    if !held.watched.is_valid() {
        all.remove(&name);
        // TOKEN REVOKED: what it stood for has been written to
        return Err(invalid(0x06));
    }
    held.used = Instant::now();
    let source = Source::Runs(Side::new(&held.unit), held.watched.clone());
    if delete {
        all.remove(&name);
    }
    Ok(source)
}

/// WRITE USING TOKEN.
pub(crate) fn write_using(call: &Call) -> Outcome {
    let list = parameter_list(call, 536)?;
    let token = list.get(16..16 + TOKEN_BYTES).ok_or(Sense::PARAMETER_LENGTH)?;
    let to = runs(call, list, 534)?;
    let offset = be64(list, 8).checked_mul(call.block()).ok_or_else(|| Sense::parameter_field(8))?;
    let source = open(call, token, byte(list, 2) & 2 != 0)?;
    let mut report = Report {
        kind: Kind::Long,
        list_id: be32(call.cdb, 6),
        service: 0x11,
        block: call.shape.block,
        ..Report::default()
    };
    let result = copy_runs(call, &source, offset, &to, &mut report);
    report.failure = match &result {
        Err(Refusal::Sense(sense)) => Some(*sense),
        Err(_) => Some(Sense::new(0x0a, 0, 0)),
        Ok(()) => None,
    };
    call.units.copy_results().put(call.nexus.tsih, report);
    result.map(|()| Vec::new())
}

fn copy_runs(call: &Call, source: &Source, offset: u64, to: &[Blocks], report: &mut Report) -> Result<(), Refusal> {
    let here = Side::new(call.unit);
    let block = call.block();
    let Source::Runs(from, watched) = source else {
        for run in to {
            here.clear(call, run.lba * block, run.count * block)?;
            report.bytes += run.count * block;
        }
        return Ok(());
    };
    let mut source = pieces(&watched.runs, from.block(), offset).ok_or_else(|| Sense::parameter_field(8))?;
    let mut front = source.next();
    // what the copy itself writes over has no say
    let writes_over =
        from.unit.serial == here.unit.serial && to.iter().any(|to| watched.runs.iter().any(|run| run.overlaps(*to)));
    for run in to {
        let (mut at, mut rest) = (run.lba * block, run.count * block);
        while rest > 0 {
            let Some((from_at, left)) = front else {
                // what the token stands for is at its end
                report.partial = true;
                return Ok(());
            };
            let bytes = left.min(rest);
            if !bytes.is_multiple_of(block) || !bytes.is_multiple_of(from.block()) {
                return Err(Sense::parameter_field(8).into());
            }
            engine::copy(call, from, from_at, &here, at, bytes)?;
            if !watched.is_valid() && !writes_over {
                return Err(Sense::new(5, 0x23, 0x06).into());
            }
            report.bytes += bytes;
            at += bytes;
            rest -= bytes;
            front = if left > bytes { Some((from_at + bytes, left - bytes)) } else { source.next() };
        }
    }
    Ok(())
}

/// The runs as bytes, without the first `skip`; `None`: there are not so many.
fn pieces(runs: &[Blocks], block: u64, skip: u64) -> Option<impl Iterator<Item = (u64, u64)>> {
    let total: u64 = runs.iter().map(|r| r.count * block).sum();
    if skip >= total || !skip.is_multiple_of(block) {
        return None;
    }
    let mut skip = skip;
    Some(runs.iter().filter_map(move |run| {
        let bytes = run.count * block;
        let cut = skip.min(bytes);
        skip -= cut;
        (cut < bytes).then_some((run.lba * block + cut, bytes - cut))
    }))
}
