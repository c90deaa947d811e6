//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36), out of the command table.

use super::bytes::{be16, be32, len16, len32};
use super::call::{Call, Outcome};
use super::sense::Sense;
use super::table::{self, Entry};

/// Timeouts are not told: their descriptor says 0, "not specified".
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) fn supported_opcodes(call: &Call) -> Outcome {
    let (timeouts, option) = (call.cdb[2] & 0x80 != 0, call.cdb[2] & 0x07);
    let (opcode, action) = (call.cdb[3], be16(call.cdb, 4));
    let explicit = call.units.alua().explicit;
    let here = |e: &&Entry| table::supports(e, call.shape, explicit);
    let mut out = Vec::new();
    if option == 0 {
        let mut body = Vec::new();
        for entry in table::COMMANDS.iter().filter(here) {
            body.extend([entry.opcode, 0]);
            body.extend(entry.action.unwrap_or(0).to_be_bytes());
            body.extend([0, u8::from(entry.action.is_some()) | if timeouts { 2 } else { 0 }]);
            body.extend(len16(entry.usage.len()));
            if timeouts {
                body.extend(TIMEOUTS);
            }
        }
        out.extend(len32(body.len()));
        out.extend(body);
    } else {
        let mut of_code = table::COMMANDS.iter().filter(here).filter(|e| e.opcode == opcode).peekable();
        let has_actions = of_code.peek().is_some_and(|e| e.action.is_some());
        let known = of_code.peek().is_some();
        let found = match option {
            1 if has_actions => return Err(Sense::cdb_field(2, 2).into()),
            1 => of_code.next(),
            2 if known && !has_actions => return Err(Sense::cdb_field(2, 2).into()),
            2 => of_code.find(|e| e.action == Some(action)),
            3 if has_actions => of_code.find(|e| e.action == Some(action)),
            3 if action == 0 => of_code.next(),
            3 => None,
            _ => return Err(Sense::cdb_field(2, 2).into()),
        };
        out.push(0);
        match found {
            Some(entry) => {
                out.push(0x03 | if timeouts { 0x80 } else { 0 });
                out.extend(len16(entry.usage.len()));
                out.extend(table::usage_of(entry));
                if timeouts {
                    out.extend(TIMEOUTS);
                }
            }
            None => out.extend([0x01, 0, 0]),
        }
    }
    out.truncate(usize::try_from(be32(call.cdb, 6)).unwrap_or(usize::MAX));
    Ok(out)
}

pub(crate) fn supported_management(call: &Call) -> Outcome {
    let extended = call.cdb[2] & 0x80 != 0;
    // ABORT TASK and TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET
    let mut out = vec![0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0, if extended { 0x0c } else { 0 }];
    if extended {
        out.resize(16, 0);
    }
    let allocation = usize::try_from(be32(call.cdb, 6)).unwrap_or(usize::MAX);
    if allocation < 4 {
        return Err(Sense::cdb_field(6, 7).into());
    }
    out.truncate(allocation);
    Ok(out)
}
