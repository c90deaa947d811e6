//! Logical block provisioning (SBC-3 4.7): UNMAP, WRITE SAME, GET LBA STATUS, and the notice that space gets short.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::attention::Attention;
use super::bytes::{be16, be32, be64, clamp32, len32};
use super::call::{Blocks, Call, Outcome, Refusal};
use super::limits::{Limits, PIECE_BYTES, THRESHOLD_SET_BYTES, UNMAP_DESCRIPTORS_MAX};
use super::sense::Sense;
use super::stats;
use super::unit::{Shape, Unit};

/// UNMAP: all descriptors are checked before the first counts.
pub(crate) fn unmap(call: &Call) -> Outcome {
    if !call.shape.thin {
        return Err(Sense::INVALID_OPCODE.into());
    }
    if call.cdb[1] & 1 != 0 {
        return Err(Sense::cdb_field(1, 0).into());
    }
    let length = usize::from(be16(call.cdb, 7));
    let list = call.data.get(..length).unwrap_or(call.data);
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 8 {
        return Err(Sense::PARAMETER_LENGTH.into());
    }
    let descriptors = list.get(8..).unwrap_or_default();
    let told = usize::from(be16(list, 2)).min(descriptors.len());
    let descriptors = descriptors.get(..told).unwrap_or_default();
    let runs: Vec<Blocks> =
        descriptors.chunks_exact(16).map(|d| Blocks { lba: be64(d, 0), count: u64::from(be32(d, 8)) }).collect();
    if runs.len() > usize::try_from(UNMAP_DESCRIPTORS_MAX).unwrap_or(0) {
        return Err(Sense::parameter_field(2).into());
    }
    let limit = u64::from(Limits::of(call.shape).unmap);
    if runs.iter().map(|r| r.count).sum::<u64>() > limit {
        return Err(Sense::parameter_field(8).into());
    }
    for run in &runs {
        call.check_range(*run)?;
    }
    for run in runs.into_iter().filter(|r| r.count > 0) {
        unmap_run(call, run)?;
    }
    if call.durable(false) {
        call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    }
    stats::add(&call.unit.counters.unmaps, 1);
    Ok(Vec::new())
}

fn unmap_run(call: &Call, run: Blocks) -> Result<(), Refusal> {
    let _hold = call.hold(run, false)?;
    call.unit.watch.written(run);
    let block = call.block();
    call.shape.backing.unmap(run.lba * block, run.count * block).map_err(|f| call.failed(&f))?;
    call.unit.threshold.freed();
    Ok(())
}

/// Bytes of data-out of a WRITE SAME: one block, or none with NDOB.
pub(crate) fn write_same_bytes(cdb: &[u8; 16], block: u64) -> u64 {
    if cdb[0] == 0x93 && cdb[1] & 1 != 0 { 0 } else { block }
}

/// WRITE SAME of 10 and 16 bytes.
pub(crate) fn write_same(call: &Call) -> Outcome {
    call.check_protect()?;
    let sixteen = call.cdb[0] == 0x93;
    let (anchor, unmap, no_data) =
        (call.cdb[1] & 0x10 != 0, call.cdb[1] & 0x08 != 0, sixteen && call.cdb[1] & 0x01 != 0);
    if anchor {
        return Err(Sense::cdb_field(1, 4).into());
    }
    if unmap && !call.shape.thin {
        return Err(Sense::cdb_field(1, 3).into());
    }
    if call.cdb[1] & 0x06 != 0 {
        return Err(Sense::cdb_field(1, 2).into());
    }
    let mut blocks = Blocks::of(call.cdb);
    call.check_range(blocks)?;
    if blocks.count == 0 {
        // to the end
        blocks.count = call.shape.blocks().saturating_sub(blocks.lba);
    }
    if blocks.count > Limits::of(call.shape).write_same {
        return Err(call.length_field().into());
    }
    let block = call.block();
    let pattern = match (no_data, call.data.get(..usize::try_from(block).unwrap_or(0))) {
        (true, _) => &[],
        (false, Some(data)) if call.expected == block => data,
        (false, _) => return Err(Sense::SHORT_DATA.into()),
    };
    if blocks.count == 0 {
        return Ok(Vec::new());
    }
    // Unmapped blocks read as zero: what is to read as something else is written (SBC-4 5.50). WRITE SAME (10) unmaps whatever it
    // brings, as LIO and tgt do: libiscsi's suite sends it FFh and wants zeroes.
    if unmap && (!sixteen || pattern.iter().all(|b| *b == 0)) {
        unmap_run(call, blocks)?;
        stats::add(&call.unit.counters.unmaps, 1);
    } else {
        let _hold = call.hold(blocks, false)?;
        call.unit.watch.written(blocks);
        fill(call, blocks, pattern)?;
        stats::add(&call.unit.counters.writes, 1);
        stats::add(&call.unit.counters.written_bytes, blocks.count * block);
    }
    if call.durable(false) {
        call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    }
    Ok(Vec::new())
}

/// Writes the pattern of one block (or of none: zeroes) to each block.
pub(crate) fn fill(call: &Call, blocks: Blocks, pattern: &[u8]) -> Result<(), Refusal> {
    let block = call.block();
    let (mut at, end) = (blocks.lba * block, (blocks.lba + blocks.count) * block);
    if pattern.iter().all(|b| *b == 0) {
        call.shape.backing.write_zeroes(at, end - at).map_err(|f| call.failed(&f))?;
        call.unit.threshold.wrote(call.unit, call.shape, end - at);
        return Ok(());
    }
    let copies = usize::try_from((PIECE_BYTES / block).min(blocks.count)).unwrap_or(1);
    let buf = pattern.repeat(copies);
    while at < end {
        let piece = (end - at).min(buf.len() as u64);
        call.write(at, buf.get(..usize::try_from(piece).unwrap_or(0)).unwrap_or_default(), false)?;
        at += piece;
    }
    Ok(())
}

/// Descriptors that one GET LBA STATUS answers with at most.
const STATUS_RUNS_MAX: usize = 512;

/// GET LBA STATUS (16).
pub(crate) fn lba_status(call: &Call) -> Outcome {
    let start = be64(call.cdb, 2);
    let capacity = call.unit.notice_size(call.shape);
    if start >= capacity {
        return Err(Sense::LBA_OUT_OF_RANGE.into());
    }
    let allocation = usize::try_from(be32(call.cdb, 10)).unwrap_or(usize::MAX);
    let runs_max = (allocation.saturating_sub(8) / 16).clamp(1, STATUS_RUNS_MAX);
    let block = call.block();
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    let mut lba = start;
    while lba < capacity {
        let ask = (capacity - lba).min(u64::from(u32::MAX));
        let (count, mapped) = if call.shape.thin {
            let extent = call.shape.backing.extent(lba * block, ask * block).map_err(|f| call.failed(&f))?;
            // a block that is mapped in part is mapped
            match (extent.bytes / block, extent.mapped) {
                (0, _) => (1, true),
                (whole, false) => (whole, false),
                (_, true) => (extent.bytes.div_ceil(block), true),
            }
        } else {
            (ask, true)
        };
        let count = count.min(ask);
        let full = runs.len() == runs_max;
        match runs.last_mut() {
            Some((_, length, kind)) if *kind == mapped && *length + count <= u64::from(u32::MAX) => *length += count,
            _ if full => break,
            _ => runs.push((lba, count, mapped)),
        }
        lba += count;
    }
    let mut out = len32(4 + runs.len() * 16).to_vec();
    out.extend([0; 4]);
    for (lba, count, mapped) in runs {
        out.extend(lba.to_be_bytes());
        out.extend(clamp32(count).to_be_bytes());
        out.extend([u8::from(!mapped), 0, 0, 0]);
    }
    out.truncate(allocation);
    Ok(out)
}

/// Bytes that may be written between two looks at the space.
const LOOK_BYTES: u64 = 16 << 20;
/// Most that is added to that far from the threshold.
const SPARE_BYTES_MAX: u64 = 256 << 20;

/// The soft threshold of a thin unit: initiators hear once that space gets short, and again after there was enough in between.
#[derive(Debug, Default)]
pub(crate) struct Threshold {
    since_look: AtomicU64,
    /// Bytes that may be written before the next look, beyond [`LOOK_BYTES`].
    spare: AtomicU64,
    told: AtomicBool,
}

impl Threshold {
    /// Counts what was written; looks at the space now and then.
    pub(crate) fn wrote(&self, unit: &Unit, shape: &Shape, bytes: u64) {
        if !shape.thin || shape.config.soft_threshold_percent == 0 {
            return;
        }
        let since = self.since_look.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if since < LOOK_BYTES + self.spare.load(Ordering::Relaxed) {
            return;
        }
        self.since_look.store(0, Ordering::Relaxed);
        let left = left(shape);
        // looking takes a while; far from the threshold, also with others on the same space, it is done less often
        self.spare.store(left.map_or(0, |left| (left / 16).min(SPARE_BYTES_MAX)), Ordering::Relaxed);
        if left.is_some() {
            self.told.store(false, Ordering::Relaxed);
        } else if !self.told.swap(true, Ordering::Relaxed) {
            unit.attend(Attention::THIN_THRESHOLD, |_| true);
        }
    }

    /// Space has come back: the next write looks.
    pub(crate) fn freed(&self) {
        self.since_look.store(LOOK_BYTES + SPARE_BYTES_MAX, Ordering::Relaxed);
    }
}

/// The soft threshold in sets of blocks.
pub(crate) fn threshold_sets(shape: &Shape) -> u32 {
    let space = shape.backing.space();
    let total = u128::from(space.allocated_bytes) + u128::from(space.available_bytes);
    let sets = total * u128::from(shape.config.soft_threshold_percent) / 100 / u128::from(THRESHOLD_SET_BYTES);
    u32::try_from(sets).unwrap_or(u32::MAX)
}

/// Bytes that are left before the threshold; `None`: it is reached.
fn left(shape: &Shape) -> Option<u64> {
    let space = shape.backing.space();
    let total = u128::from(space.allocated_bytes) + u128::from(space.available_bytes);
    let threshold = total * u128::from(shape.config.soft_threshold_percent) / 100;
    let left = threshold.checked_sub(u128::from(space.allocated_bytes)).filter(|left| *left > 0)?;
    Some(u64::try_from(left).unwrap_or(u64::MAX))
}
