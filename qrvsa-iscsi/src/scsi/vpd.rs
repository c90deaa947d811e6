//! Vital product data (SPC-4 7.8, SBC-3 6.6).

use super::bytes::{clamp32, len16, put_ascii};
use super::call::Call;
use super::copy;
use super::limits::{self, Limits};

const OF_UNIT: u8 = 0x00;
const OF_PORT: u8 = 0x10;
const OF_DEVICE: u8 = 0x20;
const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF8: u8 = 3;

const COMMON: [u8; 7] = [0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88];
const OF_DISK: [u8; 4] = [0x8f, 0xb0, 0xb1, 0xb2];

/// One page with its header; `None`: there is no such page.
pub(crate) fn page(call: &Call, code: u8) -> Option<Vec<u8>> {
    let disk = call.shape.is_disk();
    let body = match code {
        0x00 if disk => COMMON.into_iter().chain(OF_DISK).collect(),
        0x00 => COMMON.to_vec(),
        0x80 => call.shape.ident.serial.clone().into_bytes(),
        0x83 => identification(call),
        0x85 => Vec::new(),
        0x86 => extended(call),
        0x87 => vec![0x3f, 0xff, 0x00, 0x00],
        0x88 => ports(call),
        0x8f if disk => copy::vpd_page(call),
        0xb0 if disk => block_limits(call),
        0xb1 if disk => characteristics(call),
        0xb2 if disk => provisioning(call),
        _ => return None,
    };
    let mut out = vec![call.shape.config.device_type.code(), code];
    out.extend(len16(body.len()));
    out.extend(body);
    Some(out)
}

fn designator(out: &mut Vec<u8>, set: u8, kind: u8, body: &[u8]) {
    // protocol iSCSI; valid with those of ports and devices
    let protocol_valid = if kind & 0x30 == 0 { 0x00 } else { 0x80 };
    let protocol = if protocol_valid == 0 { 0 } else { 0x50 };
    out.extend([protocol | set, protocol_valid | kind, 0, u8::try_from(body.len()).unwrap_or(0)]);
    out.extend(body);
}

/// A SCSI name string: ends with a zero, padded to a multiple of 4.
fn name_string(name: &str) -> Vec<u8> {
    let mut out = name.as_bytes().to_vec();
    out.truncate(248);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn port_name(call: &Call, group: u16) -> Vec<u8> {
    name_string(&format!("{},t,0x{group:04x}", call.units.name()))
}

fn identification(call: &Call) -> Vec<u8> {
    let ident = &call.shape.ident;
    let mut out = Vec::new();
    designator(&mut out, BINARY, OF_UNIT | 3, &ident.naa);
    let mut vendor = Vec::new();
    put_ascii(&mut vendor, &call.shape.config.vendor, 8);
    vendor.extend(ident.vendor_specific.as_bytes());
    designator(&mut out, ASCII, OF_UNIT | 1, &vendor);
    let naa: String = ident.naa.iter().map(|b| format!("{b:02X}")).collect();
    designator(&mut out, UTF8, OF_UNIT | 8, &name_string(&format!("naa.{naa}")));
    let group = call.nexus.portal_group_tag;
    let [high, low] = group.to_be_bytes();
    designator(&mut out, BINARY, OF_PORT | 4, &[0, 0, high, low]);
    let [high, low] = call.units.alua().group_of(group).to_be_bytes();
    designator(&mut out, BINARY, OF_PORT | 5, &[0, 0, high, low]);
    designator(&mut out, UTF8, OF_PORT | 8, &port_name(call, group));
    designator(&mut out, UTF8, OF_DEVICE | 8, &name_string(call.units.name()));
    out
}

fn extended(call: &Call) -> Vec<u8> {
    let mut out = vec![0; 60];
    // simple, ordered and head of queue tasks
    out[1] = 0x07;
    // the write cache is volatile
    out[2] = if call.shape.is_disk() { 0x01 } else { 0 };
    // attentions of changed LUNs are cleared for the target as a whole
    out[3] = 0x01;
    out
}

fn ports(call: &Call) -> Vec<u8> {
    let mut out = Vec::new();
    for group in call.units.ports() {
        out.extend([0, 0]);
        out.extend(group.to_be_bytes());
        out.extend([0; 6]);
        let mut descriptor = Vec::new();
        designator(&mut descriptor, UTF8, OF_PORT | 8, &port_name(call, group));
        out.extend(len16(descriptor.len()));
        out.extend(descriptor);
    }
    out
}

fn block_limits(call: &Call) -> Vec<u8> {
    let limits = Limits::of(call.shape);
    let mut out = vec![0; 60];
    out[1] = limits::COMPARE_BLOCKS_MAX;
    out[2..4].copy_from_slice(&limits.granularity.to_be_bytes());
    out[4..8].copy_from_slice(&limits.transfer.to_be_bytes());
    out[8..12].copy_from_slice(&call.shape.config.optimal_blocks.to_be_bytes());
    if call.shape.thin {
        out[16..20].copy_from_slice(&limits.unmap.to_be_bytes());
        out[20..24].copy_from_slice(&limits::UNMAP_DESCRIPTORS_MAX.to_be_bytes());
        out[24..28].copy_from_slice(&limits.unmap_granularity.to_be_bytes());
        let alignment = u32::from(call.shape.config.lowest_aligned) % limits.unmap_granularity.max(1);
        out[28..32].copy_from_slice(&(1 << 31 | alignment).to_be_bytes());
    }
    out[32..40].copy_from_slice(&limits.write_same.to_be_bytes());
    out[40..44].copy_from_slice(&limits.atomic.to_be_bytes());
    out
}

fn characteristics(call: &Call) -> Vec<u8> {
    let mut out = vec![0; 60];
    out[0..2].copy_from_slice(&call.shape.config.rotation_rate.to_be_bytes());
    // after a block erase reads succeed; FUA forces to the medium
    out[3] = 0x40;
    out[4] = 0x02;
    out
}

fn provisioning(call: &Call) -> Vec<u8> {
    if !call.shape.thin {
        return vec![0; 4];
    }
    let exponent = u8::try_from(limits::THRESHOLD_SET_BYTES.ilog2() - call.shape.block.ilog2().min(20)).unwrap_or(0);
    // UNMAP, WRITE SAME 16 and 10 unmap; unmapped blocks read as zero; thin
    vec![exponent, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0]
}

/// Blocks as a field of 32 bits.
pub(crate) fn blocks32(bytes: u64, block: u32) -> u32 {
    clamp32(bytes / u64::from(block))
}
