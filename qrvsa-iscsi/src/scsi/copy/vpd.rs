//! VPD page 8Fh, third-party copy (SPC-4 7.8.17).

use super::token::{TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S};
use super::{COPY_BYTES_MAX, CSCD_MAX, DESCRIPTOR_BYTES_MAX, SEGMENTS_MAX, TOKEN_RUNS_MAX};
use crate::scsi::bytes::{clamp32, len16};
use crate::scsi::call::Call;
use crate::scsi::table;

fn descriptor(out: &mut Vec<u8>, code: u16, mut body: Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
    out.extend(code.to_be_bytes());
    out.extend(len16(body.len()));
    out.extend(body);
}

/// The page without its header.
pub(crate) fn page(call: &Call) -> Vec<u8> {
    let mut out = Vec::new();
    let blocks = COPY_BYTES_MAX / call.block();
    // limits of tokens of block devices
    let mut body = vec![0; 6];
    body.extend(TOKEN_RUNS_MAX.to_be_bytes());
    body.extend(TIMEOUT_MAX_S.to_be_bytes());
    body.extend(TIMEOUT_DEFAULT_S.to_be_bytes());
    body.extend(blocks.to_be_bytes());
    body.extend((blocks / 16).to_be_bytes());
    descriptor(&mut out, 0x0000, body);
    // commands
    let mut commands = Vec::new();
    for opcode in [0x83, 0x84] {
        let actions: Vec<u8> = table::COMMANDS
            .iter()
            .filter(|e| e.opcode == opcode)
            .filter_map(|e| e.action.map(|a| a.to_be_bytes()[1]))
            .collect();
        commands.extend([opcode, u8::try_from(actions.len()).unwrap_or(0)]);
        commands.extend(actions);
    }
    commands.insert(0, u8::try_from(commands.len()).unwrap_or(0));
    descriptor(&mut out, 0x0001, commands);
    // parameter data
    let mut body = vec![0; 4];
    body.extend(CSCD_MAX.to_be_bytes());
    body.extend(SEGMENTS_MAX.to_be_bytes());
    body.extend(DESCRIPTOR_BYTES_MAX.to_be_bytes());
    body.resize(28, 0);
    descriptor(&mut out, 0x0004, body);
    // descriptor types
    descriptor(&mut out, 0x0008, vec![2, 0x02, 0xe4]);
    // general: copies at once, with and without identifier; segment length; granularity 512 bytes
    let mut body = 16u32.to_be_bytes().to_vec();
    body.extend(16u32.to_be_bytes());
    body.extend(clamp32(COPY_BYTES_MAX).to_be_bytes());
    body.push(9);
    body.resize(32, 0);
    descriptor(&mut out, 0x8001, body);
    out
}
