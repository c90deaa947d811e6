//! LOG SENSE (SPC-4 6.6) and diagnostics.

use super::bytes::{be16, clamp32, len16};
use super::call::{Call, Outcome};
use super::limits::THRESHOLD_SET_BYTES;
use super::sense::Sense;

/// The pages: list of pages, logical block provisioning, temperature-free informational exceptions.
fn pages(call: &Call) -> Vec<u8> {
    if call.shape.thin { vec![0x00, 0x0c, 0x2f] } else { vec![0x00, 0x2f] }
}

pub(crate) fn log_sense(call: &Call) -> Outcome {
    if call.cdb[1] & 1 != 0 {
        return Err(Sense::cdb_field(1, 0).into());
    }
    let (code, subcode, first) = (call.cdb[2] & 0x3f, call.cdb[3], be16(call.cdb, 5));
    if !pages(call).contains(&code) || !(subcode == 0 || (subcode == 0xff && code == 0)) {
        return Err(Sense::cdb_field(2, 5).into());
    }
    let mut parameters: Vec<(u16, Vec<u8>)> = Vec::new();
    let mut body = Vec::new();
    match code {
        0x00 if subcode == 0 => body = pages(call),
        0x00 => {
            for page in pages(call) {
                body.extend([page, 0]);
            }
            body.extend([0, 0xff]);
        }
        0x0c => {
            let space = call.shape.backing.space();
            for (code, bytes) in [(1, space.available_bytes), (2, space.allocated_bytes)] {
                let mut value = clamp32(bytes / THRESHOLD_SET_BYTES).to_be_bytes().to_vec();
                // the available space is shared with other units, the used is not
                value.extend([if code == 1 { 2 } else { 1 }, 0, 0, 0]);
                parameters.push((code, value));
            }
        }
        // no exception; temperature not known
        _ => parameters.push((0, vec![0, 0, 0xff, 0])),
    }
    if parameters.iter().all(|(code, _)| *code < first) && first != 0 {
        return Err(Sense::cdb_field(5, 7).into());
    }
    for (code, value) in parameters.into_iter().filter(|(code, _)| *code >= first) {
        body.extend(code.to_be_bytes());
        // a binary list
        body.extend([0x03, u8::try_from(value.len()).unwrap_or(0)]);
        body.extend(value);
    }
    let mut out = vec![code | if subcode == 0 { 0 } else { 0x40 }, subcode];
    out.extend(len16(body.len()));
    out.extend(body);
    out.truncate(usize::from(be16(call.cdb, 7)));
    Ok(out)
}

/// SEND DIAGNOSTIC: the default self-test finds nothing; no pages are taken.
pub(crate) fn send_diagnostic(call: &Call) -> Outcome {
    let self_test = call.cdb[1] >> 5;
    if call.cdb[1] & 0x10 != 0 && be16(call.cdb, 3) != 0 {
        return Err(Sense::cdb_field(3, 7).into());
    }
    if self_test != 0 {
        return Err(Sense::cdb_field(1, 7).into());
    }
    Ok(Vec::new())
}

/// RECEIVE DIAGNOSTIC RESULTS: the page that lists the pages.
pub(crate) fn receive_diagnostic(call: &Call) -> Outcome {
    if call.cdb[1] & 1 != 0 && call.cdb[2] != 0 {
        return Err(Sense::cdb_field(2, 7).into());
    }
    let mut out = vec![0, 0, 0, 1, 0];
    out.truncate(usize::from(be16(call.cdb, 3)));
    Ok(out)
}
