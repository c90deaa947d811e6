//! START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5, SPC-4 6.17).

use super::attention::Attention;
use super::call::{Call, Outcome};
use super::sense::Sense;
use super::unit::{EJECTED, STOPPED};

/// START STOP UNIT. Power conditions are taken and change nothing: there is nothing to spin down.
pub(crate) fn start_stop(call: &Call) -> Outcome {
    let (power, no_flush, load, start) =
        (call.cdb[4] >> 4, call.cdb[4] & 0x04 != 0, call.cdb[4] & 0x02 != 0, call.cdb[4] & 0x01 != 0);
    match power {
        0 => {}
        1..=3 | 7 | 0x0a | 0x0b => return Ok(Vec::new()),
        _ => return Err(Sense::cdb_field(4, 7).into()),
    }
    let medium = call.unit.medium();
    if load && !call.shape.config.removable {
        return Err(Sense::cdb_field(4, 1).into());
    }
    if !start && !no_flush && medium & EJECTED == 0 && !call.shape.read_only {
        call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    }
    match (load, start) {
        (true, false) => {
            if call.unit.removal_prevented() {
                return Err(Sense::new(5, 0x53, 0x02).into());
            }
            call.unit.set_medium(EJECTED);
        }
        (true, true) => {
            if medium & EJECTED != 0 {
                call.unit.set_medium(0);
                call.unit.attend_others(Attention::MEDIUM_CHANGED, call.nexus);
            } else {
                call.unit.set_medium(0);
            }
        }
        (false, true) if medium & EJECTED != 0 => return Err(Sense::NO_MEDIUM.into()),
        (false, true) => call.unit.set_medium(0),
        (false, false) => call.unit.set_medium(medium | STOPPED),
    }
    Ok(Vec::new())
}

/// PREVENT ALLOW MEDIUM REMOVAL: kept per nexus.
pub(crate) fn prevent_allow(call: &Call) -> Outcome {
    if call.cdb[4] & 0x02 != 0 {
        return Err(Sense::cdb_field(4, 1).into());
    }
    call.unit.set_prevent(call.nexus, call.cdb[4] & 1 != 0);
    Ok(Vec::new())
}
