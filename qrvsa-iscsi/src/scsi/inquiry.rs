//! INQUIRY (SPC-4 6.4): standard data and vital product data.

use super::attention::Attention;
use super::bytes::{be16, len16, put_ascii};
use super::call::{Call, Outcome};
use super::sense::Sense;
use super::vpd;

/// Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3 (none of a version).
const DISK_VERSIONS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];
const CONTROLLER_VERSIONS: [u16; 3] = [0x00a0, 0x0960, 0x0460];

pub(crate) fn inquiry(call: &Call) -> Outcome {
    let mut out = match (call.cdb[1] & 0x03, call.cdb[2]) {
        (0, 0) => standard(call),
        (1, code) => vpd::page(call, code).ok_or(Sense::cdb_field(2, 7))?,
        (0, _) => return Err(Sense::cdb_field(2, 7).into()),
        _ => return Err(Sense::cdb_field(1, 1).into()),
    };
    // who reads the data has heard that they changed
    call.unit.forget_attention(call.nexus, Attention::INQUIRY_CHANGED);
    out.truncate(usize::from(be16(call.cdb, 3)));
    Ok(out)
}

fn standard(call: &Call) -> Vec<u8> {
    let config = &call.shape.config;
    let disk = call.shape.is_disk();
    let tpgs = if call.units.alua().explicit { 0x30 } else { 0x10 };
    let third_party_copy = if disk { 0x08 } else { 0 };
    let mut out = vec![
        config.device_type.code(),
        if config.removable { 0x80 } else { 0 },
        0x06,
        0x12,
        91,
        tpgs | third_party_copy,
        0x10,
        0x02,
    ];
    put_ascii(&mut out, &config.vendor, 8);
    put_ascii(&mut out, &config.product, 16);
    put_ascii(&mut out, &config.revision, 4);
    out.resize(58, 0);
    let versions: &[u16] = if disk { &DISK_VERSIONS } else { &CONTROLLER_VERSIONS };
    out.extend(versions.iter().flat_map(|v| v.to_be_bytes()));
    out.resize(96, 0);
    out
}

/// What INQUIRY says of a LUN that has no unit: qualifier 3, unknown type.
pub(crate) fn absent(cdb: &[u8; 16]) -> Result<Vec<u8>, Sense> {
    let mut out = match (cdb[1] & 0x03, cdb[2]) {
        (0, 0) => {
            let mut out = vec![0x7f, 0, 0x06, 0x02, 91, 0, 0, 0x02];
            put_ascii(&mut out, "", 28);
            out.resize(96, 0);
            out
        }
        (1, 0) => {
            let mut out = vec![0x7f, 0];
            out.extend(len16(1));
            out.push(0);
            out
        }
        _ => return Err(Sense::cdb_field(2, 7)),
    };
    out.truncate(usize::from(be16(cdb, 3)));
    Ok(out)
}
