//! Labels and uberblocks of a device, decoded for people.

use std::path::Path;

use qrvsa_api::DebugEntry;
use qrvsa_core::Result;
use qrvsa_core::device::{OpenOptions, open};
use qrvsa_core::engine::open::{read_at, read_labels};
use qrvsa_core::pool::format::layout::{RING_OFFSET, RING_SLOTS, SLOT_BYTES};
use qrvsa_core::pool::format::uberblock::Uberblock;

fn look(path: &Path) -> Result<std::sync::Arc<dyn qrvsa_core::device::Device>> {
    open(path, OpenOptions { create_size: None, exclusive: false, read_only: true })
}

fn field(name: &str, value: impl std::fmt::Display) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// The four label copies.
pub fn labels(path: &Path) -> Result<Vec<DebugEntry>> {
    let device = look(path)?;
    let copies = read_labels(&device);
    Ok(copies
        .into_iter()
        .enumerate()
        .map(|(i, copy)| {
            let title = format!("label {i}");
            match copy.label {
                Err(e) => {
                    DebugEntry { title, offset: copy.offset, valid: false, problem: e.to_string(), fields: Vec::new() }
                }
                Ok(l) => DebugEntry {
                    title,
                    offset: copy.offset,
                    valid: true,
                    problem: String::new(),
                    fields: vec![
                        field("pool_name", &l.pool_name),
                        field("pool_id", format!("{:032x}", l.pool_id)),
                        field("device_id", format!("{:032x}", l.device_id)),
                        field("index", l.index),
                        field("geometry", format!("{}+{}", l.data, l.parity)),
                        field("zone_bytes", 1u64 << l.zone_shift),
                        field("size_bytes", l.size_bytes),
                        field("created_unix_s", l.created_ns / 1_000_000_000),
                        field("incompatible", format!("{:#x}", l.incompatible)),
                        field("readonly_compatible", format!("{:#x}", l.readonly_compatible)),
                    ],
                },
            }
        })
        .collect())
}

/// The uberblock ring.
pub fn uberblocks(path: &Path) -> Result<Vec<DebugEntry>> {
    let device = look(path)?;
    let ring = read_at(&device, RING_OFFSET, RING_SLOTS as usize * SLOT_BYTES)?;
    Ok(ring
        .chunks(SLOT_BYTES)
        .enumerate()
        .map(|(i, slot)| {
            let (title, offset) = (format!("uberblock {i}"), RING_OFFSET + (i * SLOT_BYTES) as u64);
            match Uberblock::decode(slot) {
                Err(e) => DebugEntry { title, offset, valid: false, problem: e.to_string(), fields: Vec::new() },
                Ok(u) => DebugEntry {
                    title,
                    offset,
                    valid: true,
                    problem: String::new(),
                    fields: vec![
                        field("txg", u.txg),
                        field("generation", u.generation),
                        field("time_unix_s", u.time_ns / 1_000_000_000),
                        field("clean", u.clean),
                        field("pool_id", format!("{:032x}", u.pool_id)),
                        field("device_id", format!("{:032x}", u.device_id)),
                        field("members_in_service", u.members.iter().filter(|m| m.in_service()).count()),
                        field("system_groups", u.system_groups.len()),
                        field("log_groups", u.log_groups.len()),
                        field("log_sequence", u.log.sequence),
                    ],
                },
            }
        })
        .collect())
}
