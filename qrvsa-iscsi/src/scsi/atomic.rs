//! Commands that are indivisible: COMPARE AND WRITE, ORWRITE and WRITE ATOMIC (SBC-4 5).

use super::bytes::{be16, be64};
use super::call::{Blocks, Call, Outcome};
use super::limits::Limits;
use super::rw::{count_write, first_difference};
use super::sense::Sense;

/// Blocks of a COMPARE AND WRITE.
pub(crate) fn compare_blocks(cdb: &[u8; 16]) -> Blocks {
    Blocks { lba: be64(cdb, 2), count: u64::from(cdb[13]) }
}

/// COMPARE AND WRITE: the first half of the data is compared; if it is equal, the second half is written.
pub(crate) fn compare_and_write(call: &Call) -> Outcome {
    call.check_protect()?;
    let blocks = compare_blocks(call.cdb);
    call.check_range(blocks)?;
    if call.expected != blocks.count * call.block() * 2 {
        // who compares with other data than those it sends has not written what it thinks
        return Err(Sense::cdb_field(13, 7).into());
    }
    let bytes = usize::try_from(blocks.count * call.block()).unwrap_or(usize::MAX);
    let (Some(expected), Some(new)) = (call.data.get(..bytes), call.data.get(bytes..bytes * 2)) else {
        return Err(Sense::SHORT_DATA.into());
    };
    let _hold = call.hold(blocks, true)?;
    let offset = blocks.lba * call.block();
    let mut read = vec![0; bytes];
    call.read(offset, &mut read)?;
    if let Some(at) = first_difference(&read, expected) {
        return Err(Sense::MISCOMPARE.at(at as u64).into());
    }
    call.unit.watch.written(blocks);
    call.write(offset, new, call.durable(call.cdb[1] & 0x08 != 0))?;
    count_write(call, new);
    Ok(Vec::new())
}

/// ORWRITE: what is there, or the data.
pub(crate) fn or_write(call: &Call) -> Outcome {
    call.check_protect()?;
    let blocks = Blocks::of(call.cdb);
    call.check_transfer(blocks)?;
    let data = call.whole_blocks(blocks)?;
    let _hold = call.hold(blocks, true)?;
    let offset = blocks.lba * call.block();
    let mut result = vec![0; data.len()];
    call.read(offset, &mut result)?;
    result.iter_mut().zip(data).for_each(|(old, new)| *old |= new);
    call.unit.watch.written(blocks);
    call.write(offset, &result, call.durable(call.cdb[1] & 0x08 != 0))?;
    count_write(call, data);
    Ok(Vec::new())
}

/// Blocks of a WRITE ATOMIC.
pub(crate) fn atomic_blocks(cdb: &[u8; 16]) -> Blocks {
    Blocks { lba: be64(cdb, 2), count: u64::from(be16(cdb, 12)) }
}

/// WRITE ATOMIC (16): all or nothing, over a crash too.
pub(crate) fn write_atomic(call: &Call) -> Outcome {
    let limits = Limits::of(call.shape);
    if limits.atomic == 0 {
        return Err(Sense::INVALID_OPCODE.into());
    }
    call.check_protect()?;
    if be16(call.cdb, 10) != 0 {
        // pieces with boundaries of their own
        return Err(Sense::cdb_field(10, 7).into());
    }
    let blocks = atomic_blocks(call.cdb);
    call.check_range(blocks)?;
    if blocks.count > u64::from(limits.atomic) {
        return Err(Sense::cdb_field(12, 7).into());
    }
    let bytes = usize::try_from(blocks.count * call.block()).unwrap_or(usize::MAX);
    let data = call.data.get(..bytes).ok_or(Sense::SHORT_DATA)?;
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let _hold = call.hold(blocks, true)?;
    call.unit.watch.written(blocks);
    let durable = call.durable(call.cdb[1] & 0x08 != 0);
    call.shape.backing.write_atomic(blocks.lba * call.block(), data, durable).map_err(|f| call.failed(&f))?;
    call.unit.threshold.wrote(call.unit, call.shape, data.len() as u64);
    count_write(call, data);
    Ok(Vec::new())
}
