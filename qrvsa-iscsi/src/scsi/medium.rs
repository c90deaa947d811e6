//! START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5, SPC-4 6.17).

use super::attention::Attention;
use super::call::{Call, Outcome};
use super::sense::Sense;
use super::unit::EJECTED;

/// START STOP UNIT. Stopping writes the cache out; like power conditions it changes nothing else, as there is nothing to spin down and the
/// next command would start it again.
pub(crate) fn start_stop(call: &Call) -> Outcome {
    let (power, no_flush, load, start) =
        (call.cdb[4] >> 4, call.cdb[4] & 0x04 != 0, call.cdb[4] & 0x02 != 0, call.cdb[4] & 0x01 != 0);
    call.unit.sanitize.readiness()?;
    if power != 0 {
        return Ok(Vec::new());
    }
    let medium = call.unit.medium();
    if load && !call.shape.config.removable {
        return Err(Sense::cdb_field(4, 1).into());
    }
    if load && call.unit.removal_prevented() {
        return Err(Sense::new(5, 0x53, 0x02).into());
    }
    if !start && !no_flush && medium & EJECTED == 0 && !call.shape.read_only {
        call.shape.backing.flush().map_err(|f| call.failed(&f))?;
    }
    match (load, start) {
        (true, false) => call.unit.set_medium(EJECTED),
        (true, true) if medium & EJECTED != 0 => {
            call.unit.set_medium(0);
            call.unit.attend_others(Attention::MEDIUM_CHANGED, call.nexus);
        }
        (false, _) if medium & EJECTED != 0 => return Err(Sense::NO_MEDIUM.into()),
        _ => {}
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
