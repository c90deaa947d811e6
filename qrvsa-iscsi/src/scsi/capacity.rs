//! READ CAPACITY, REPORT LUNS, TEST UNIT READY, REQUEST SENSE and small inquiries.

use super::attention::Attention;
use super::bytes::{be32, clamp32, len32};
use super::call::{Call, Outcome};
use super::lun;
use super::sense::Sense;

/// TEST UNIT READY: the table has it checked before.
pub(crate) fn ready(_call: &Call) -> Outcome {
    Ok(Vec::new())
}

/// REQUEST SENSE: a unit attention, else why the unit is not ready, else nothing to tell.
pub(crate) fn request_sense(call: &Call) -> Outcome {
    let sense = match call.unit.attention(call.nexus, true) {
        Some(attention) => attention.sense(),
        None if call.shape.unavailable => Sense::UNAVAILABLE,
        None => call.unit.sanitize.readiness().err().unwrap_or(Sense::NONE),
    };
    let mut out = sense.encode(call.cdb[1] & 1 != 0);
    out.truncate(usize::from(call.cdb[4]));
    Ok(out)
}

/// REQUEST SENSE to a LUN without a unit.
pub(crate) fn absent_sense(cdb: &[u8; 16]) -> Vec<u8> {
    let mut out = Sense::NO_SUCH_UNIT.encode(cdb[1] & 1 != 0);
    out.truncate(usize::from(cdb[4]));
    out
}

/// READ CAPACITY (10).
pub(crate) fn capacity10(call: &Call) -> Outcome {
    if call.cdb[8] & 1 == 0 && be32(call.cdb, 2) != 0 {
        return Err(Sense::cdb_field(2, 7).into());
    }
    let blocks = told_capacity(call);
    let mut out = clamp32(blocks.saturating_sub(1)).to_be_bytes().to_vec();
    out.extend(call.shape.block.to_be_bytes());
    Ok(out)
}

/// READ CAPACITY (16).
pub(crate) fn capacity16(call: &Call) -> Outcome {
    let blocks = told_capacity(call);
    let mut out = blocks.saturating_sub(1).to_be_bytes().to_vec();
    out.extend(call.shape.block.to_be_bytes());
    // thin; reads zero
    let provisioning: u16 = if call.shape.thin { 0xc000 } else { 0 };
    out.extend([0, call.shape.config.physical_block_exponent & 0x0f]);
    out.extend((provisioning | call.shape.config.lowest_aligned).to_be_bytes());
    out.resize(32, 0);
    out.truncate(usize::try_from(be32(call.cdb, 10)).unwrap_or(usize::MAX));
    Ok(out)
}

/// The capacity; whoever is told need not hear that it has changed.
fn told_capacity(call: &Call) -> u64 {
    let blocks = call.unit.notice_size(call.shape);
    call.unit.forget_attention(call.nexus, Attention::CAPACITY_CHANGED);
    blocks
}

/// REPORT LUNS: which ones, by SELECT REPORT (SPC-4 6.33). There are no well-known units and no hierarchy.
pub(crate) fn report_luns(luns: &[u64], cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    let listed: &[u64] = match cdb[2] {
        0x00 | 0x02 | 0x11 => luns,
        0x01 | 0x10 | 0x12 => &[],
        _ => return Err(Sense::cdb_field(2, 7)),
    };
    let allocation = usize::try_from(be32(cdb, 6)).unwrap_or(usize::MAX);
    if allocation < 16 {
        return Err(Sense::cdb_field(6, 7));
    }
    let mut out = len32(listed.len() * 8).to_vec();
    out.extend([0; 4]);
    out.extend(listed.iter().flat_map(|l| lun::encode(*l)));
    out.truncate(allocation);
    Ok(out)
}
