//! PERSISTENT RESERVE IN (SPC-4 6.15).

use super::{State, transport};
use crate::scsi::bytes::{be16, len32};
use crate::scsi::call::{Call, Outcome};

fn finish(call: &Call, mut out: Vec<u8>) -> Outcome {
    out.truncate(usize::from(be16(call.cdb, 7)));
    Ok(out)
}

fn header(state: &State, bytes: usize) -> Vec<u8> {
    let mut out = state.generation.to_be_bytes().to_vec();
    out.extend(len32(bytes));
    out
}

/// READ KEYS and READ RESERVATION.
pub(crate) fn persistent_in(call: &Call) -> Outcome {
    let inner = call.unit.reservations.inner.lock();
    let state = &inner.state;
    let out = if call.cdb[1] & 0x1f == 0 {
        let mut out = header(state, state.registrations.len() * 8);
        out.extend(state.registrations.iter().flat_map(|r| r.key.to_be_bytes()));
        out
    } else {
        let Some(holding) = &state.holding else { return finish(call, header(state, 0)) };
        let key = match &holding.holder {
            Some(holder) => state.registrations.iter().find(|r| r.port == *holder).map_or(0, |r| r.key),
            None => 0,
        };
        let mut out = header(state, 16);
        out.extend(key.to_be_bytes());
        out.extend([0, 0, 0, 0, 0, holding.kind.code(), 0, 0]);
        out
    };
    drop(inner);
    finish(call, out)
}

/// REPORT CAPABILITIES.
pub(crate) fn report_capabilities(call: &Call) -> Outcome {
    let inner = call.unit.reservations.inner.lock();
    let keeps = call.units.persistence().is_some();
    // compatible handling of SPC-2, SPEC_I_PT, ALL_TG_PT, survival of power loss
    let can = 0x10 | 0x08 | 0x04 | u8::from(keeps);
    // the type mask counts; which commands get through is as in SPC-4 (001b); survival is on
    let how = 0x80 | 0x10 | u8::from(inner.state.aptpl);
    drop(inner);
    finish(call, vec![0, 8, can, how, 0xea, 0x01, 0, 0])
}

/// READ FULL STATUS.
pub(crate) fn read_full_status(call: &Call) -> Outcome {
    let inner = call.unit.reservations.inner.lock();
    let state = &inner.state;
    let mut body = Vec::new();
    for r in &state.registrations {
        let holds = state.holds(&r.port);
        body.extend(r.key.to_be_bytes());
        body.extend([0; 4]);
        body.push(u8::from(holds) | if r.all_ports { 2 } else { 0 });
        body.push(state.holding.as_ref().filter(|_| holds).map_or(0, |h| h.kind.code()));
        body.extend([0; 4]);
        body.extend(r.port.group.to_be_bytes());
        let id = transport::encode(&r.port);
        body.extend(len32(id.len()));
        body.extend(id);
    }
    let mut out = header(state, body.len());
    out.extend(body);
    drop(inner);
    finish(call, out)
}
