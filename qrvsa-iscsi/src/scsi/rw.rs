//! READ, WRITE, VERIFY and WRITE AND VERIFY (SBC-3 5), and what goes with the cache.

use super::bytes::byte;
use super::call::{Blocks, Call, Outcome, Refusal};
use super::limits::{PIECE_BYTES, VERIFY_BYTES_MAX};
use super::sense::Sense;
use super::stats;

fn zeroed(bytes: u64) -> Vec<u8> {
    vec![0; usize::try_from(bytes).unwrap_or(0)]
}

/// READ of 6, 10, 12 and 16 bytes.
pub(crate) fn read(call: &Call) -> Outcome {
    if call.cdb[0] != 0x08 {
        call.check_protect()?;
    }
    let blocks = Blocks::of(call.cdb);
    call.check_transfer(blocks)?;
    let hold = call.hold(blocks, false)?;
    let (offset, bytes) = (blocks.lba * call.block(), blocks.count * call.block());
    let mut out = Vec::new();
    if !call.lend(offset, usize::try_from(bytes).unwrap_or(0)) {
        out = zeroed(bytes);
        call.read(offset, &mut out)?;
    }
    drop(hold);
    stats::add(&call.unit.counters.reads, 1);
    stats::add(&call.unit.counters.read_bytes, bytes);
    Ok(out)
}

/// WRITE of 6, 10, 12 and 16 bytes.
pub(crate) fn write(call: &Call) -> Outcome {
    let six = call.cdb[0] == 0x0a;
    if !six {
        call.check_protect()?;
    }
    let blocks = Blocks::of(call.cdb);
    call.check_transfer(blocks)?;
    let data = call.whole_blocks(blocks)?;
    let _hold = call.hold(blocks, false)?;
    call.unit.watch.written(blocks);
    call.write(blocks.lba * call.block(), data, call.durable(!six && call.cdb[1] & 0x08 != 0))?;
    count_write(call, data);
    Ok(Vec::new())
}

pub(crate) fn count_write(call: &Call, data: &[u8]) {
    stats::add(&call.unit.counters.writes, 1);
    stats::add(&call.unit.counters.written_bytes, data.len() as u64);
}

/// Bytes of data-out of a VERIFY, by BYTCHK.
pub(crate) fn verify_bytes(cdb: &[u8; 16], block: u64) -> u64 {
    match (cdb[1] >> 1 & 3, Blocks::of(cdb).count) {
        (1, count) => count * block,
        (3, count) if count > 0 => block,
        _ => 0,
    }
}

/// VERIFY of 10, 12 and 16 bytes: reads (BYTCHK 0), compares all (1), or compares each block with one (3).
pub(crate) fn verify(call: &Call) -> Outcome {
    call.check_protect()?;
    let blocks = Blocks::of(call.cdb);
    let check = call.cdb[1] >> 1 & 3;
    match check {
        2 => return Err(Sense::cdb_field(1, 2).into()),
        1 => call.check_transfer(blocks)?,
        _ => call.check_range(blocks)?,
    }
    if blocks.count * call.block() > VERIFY_BYTES_MAX {
        return Err(call.length_field().into());
    }
    let block = call.block();
    let expected = match check {
        1 => call.whole_blocks(blocks)?,
        3 if blocks.count > 0 => call.data.get(..usize::try_from(block).unwrap_or(0)).ok_or(Sense::SHORT_DATA)?,
        _ => &[],
    };
    let _hold = call.hold(blocks, false)?;
    let (mut at, end) = (blocks.lba * block, (blocks.lba + blocks.count) * block);
    let start = at;
    let mut buf = zeroed((end - at).min(PIECE_BYTES));
    while at < end {
        let piece = (end - at).min(PIECE_BYTES);
        let part = buf.get_mut(..usize::try_from(piece).unwrap_or(0)).unwrap_or_default();
        call.read(at, part)?;
        match check {
            1 => {
                let from = usize::try_from(at - start).unwrap_or(usize::MAX).min(expected.len());
                let rest = expected.get(from..).unwrap_or_default();
                compare(part, rest, (at - start) / block, block)?;
            }
            3 => {
                for (n, one) in part.chunks(expected.len().max(1)).enumerate() {
                    compare(one, expected, (at - start) / block + n as u64, block)?;
                }
            }
            _ => {}
        }
        at += piece;
    }
    Ok(Vec::new())
}

/// MISCOMPARE with the block that differs, counted from the first of the command.
fn compare(read: &[u8], expected: &[u8], first: u64, block: u64) -> Result<(), Refusal> {
    match first_difference(read, expected) {
        Some(at) => Err(Sense::MISCOMPARE.at(first + at as u64 / block).into()),
        None => Ok(()),
    }
}

/// Where two buffers first differ, as far as both go.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let both = a.len().min(b.len());
    let (a, b) = (a.get(..both)?, b.get(..both)?);
    if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) }
}

/// WRITE AND VERIFY of 10, 12 and 16 bytes: on stable storage, read back and compared.
pub(crate) fn write_and_verify(call: &Call) -> Outcome {
    call.check_protect()?;
    if call.cdb[1] >> 1 & 3 > 1 {
        return Err(Sense::cdb_field(1, 2).into());
    }
    let blocks = Blocks::of(call.cdb);
    call.check_transfer(blocks)?;
    let data = call.whole_blocks(blocks)?;
    let hold = call.hold(blocks, true)?;
    call.unit.watch.written(blocks);
    let offset = blocks.lba * call.block();
    call.write(offset, data, true)?;
    let mut back = vec![0; data.len()];
    call.read(offset, &mut back)?;
    drop(hold);
    compare(&back, data, 0, call.block())?;
    count_write(call, data);
    Ok(Vec::new())
}

/// SYNCHRONIZE CACHE of 10 and 16 bytes. It is not over before the data are safe, also with IMMED.
pub(crate) fn synchronize(call: &Call) -> Outcome {
    call.check_range(Blocks::of(call.cdb))?;
    call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    Ok(Vec::new())
}

/// PRE-FETCH of 10 and 16 bytes. A hint: what lies below keeps its own cache, so there is no promise to make (GOOD, not CONDITION MET).
pub(crate) fn prefetch(call: &Call) -> Outcome {
    call.check_range(Blocks::of(call.cdb))?;
    Ok(Vec::new())
}

/// READ DEFECT DATA of 10 and 12 bytes: both lists are empty.
pub(crate) fn read_defects(call: &Call) -> Outcome {
    let twelve = call.cdb[0] == 0xb7;
    let asked = byte(call.cdb, if twelve { 1 } else { 2 });
    let (lists, format) = (asked & 0x18, asked & 0x07);
    if twelve {
        let mut out = vec![0, lists | format, 0, 0, 0, 0, 0, 0];
        out.truncate(usize::try_from(super::bytes::be32(call.cdb, 6)).unwrap_or(0));
        return Ok(out);
    }
    let mut out = vec![0, lists | format, 0, 0];
    out.truncate(usize::from(super::bytes::be16(call.cdb, 7)));
    Ok(out)
}
