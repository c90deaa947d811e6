//! SCSI commands with their parameter lists, against a device server over memory.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_iscsi::backing::MemoryBacking;
use qrvsa_iscsi::scsi::{
    Command, DeviceServer, DeviceType, Management, Nexus, Persistence, Response, TargetUnits, TaskAttribute, UnitConfig,
};

use super::Input;
use crate::Target;

/// Sequences of commands from two initiators to four units.
pub const COMMANDS: Target = Target {
    name: "scsi-commands",
    covers: "CDBs and parameter lists, sequences of them from two initiators",
    run: commands,
    seeds,
    words: &[
        &[0x5f, 0],
        &[0x5f, 6],
        &[0x5e, 1],
        &[0x9e, 0x10],
        &[0x9e, 0x12],
        &[0xa3, 0x0a],
        &[0xa4, 0x0a],
        &[0xa3, 0x0c],
        &[0x41],
        &[0x42],
        &[0x93],
        &[0x89],
        &[0x83, 0],
        &[0x83, 0x10],
        &[0x83, 0x11],
        &[0x84, 7],
        &[0x15, 0x11],
        &[0x55, 0x11],
        &[0x9c],
        &[0x35],
        &[0x12, 1, 0xb0],
        &[0x4d, 0x4c],
        &[0x04],
        &[0x1b],
        &[0x7f],
    ],
    bytes_max: 4096,
    memory_max: 256 << 20,
};

const BLOCKS: u64 = 4096;
/// Opcode of SANITIZE, which goes on in the background for as long as it takes. Only its refusals are fuzzed.
const SANITIZE: u8 = 0x48;
/// Opcode of FORMAT UNIT; the same.
const FORMAT_UNIT: u8 = 0x04;

#[derive(Default)]
struct Kept(Mutex<HashMap<String, Vec<u8>>>);

impl Persistence for Kept {
    fn put(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.0.lock().insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(self.0.lock().get(key).cloned())
    }
}

/// Addressing of a unit: flat, as initiators write small numbers.
fn lun(number: u8) -> [u8; 8] {
    [0, number, 0, 0, 0, 0, 0, 0]
}

fn make() -> TargetUnits {
    let units = TargetUnits::new("iqn.2026-01.org.example:t", Some(Arc::new(Kept::default())));
    let thin = UnitConfig { removable: true, thin: Some(true), ..UnitConfig::default() };
    let large = UnitConfig { block_bytes: 4096, descriptor_sense: true, ..UnitConfig::default() };
    let locked = UnitConfig { read_only: true, write_cache: false, ..UnitConfig::default() };
    for (number, config, block) in [(1, thin, 512), (2, large, 4096), (3, locked, 512)] {
        // not room for all: writes run out of space too
        let disk = MemoryBacking::with_limit(BLOCKS * block, BLOCKS * block / 2);
        units.add_unit(number, config, Arc::new(disk)).expect("a sound configuration");
    }
    units.set_ports(vec![1, 2]);
    assert!(matches!(UnitConfig::controller().device_type, DeviceType::Controller));
    units
}

/// Each command: who and which unit, length of the CDB, the CDB, length of the data, the data.
fn commands(input: &[u8]) -> bool {
    let mut input = Input(input);
    let units = make();
    let nexuses = [1, 2].map(|tsih| {
        let nexus = Arc::new(Nexus {
            initiator_name: format!("iqn.2026-01.org.example:i{tsih}"),
            isid: [0x80, 0, 0, 0, 0, 1],
            portal_group_tag: 1,
            tsih,
        });
        units.nexus_opened(&nexus);
        for number in 1..4 {
            run(&units, &nexus, number, &[0; 6], &[]);
        }
        nexus
    });
    let mut good = false;
    for _ in 0..24 {
        if input.is_empty() {
            break;
        }
        let who = input.u8();
        let nexus = &nexuses[usize::from(who & 1)];
        let number = who >> 1 & 3;
        if who >> 3 == 31 {
            let function = [
                Management::AbortTask(u32::from(input.u8())),
                Management::AbortTaskSet,
                Management::ClearAca,
                Management::ClearTaskSet,
                Management::LogicalUnitReset,
                Management::TargetWarmReset,
                Management::TargetColdReset,
            ][usize::from(input.u8() % 7)];
            let _ = units.manage(nexus, lun(number), function);
            continue;
        }
        let cdb_bytes = usize::from(input.u8() % 33);
        let cdb = input.bytes(cdb_bytes);
        let data_bytes = usize::from(input.u16() % 2048);
        let data = input.bytes(data_bytes);
        let mut cdb = cdb.to_vec();
        if let [SANITIZE, action, ..] = cdb.as_mut_slice() {
            *action |= 0x1f;
        }
        if let [FORMAT_UNIT, flags, ..] = cdb.as_mut_slice() {
            *flags |= 0x60;
        }
        let response = run(&units, nexus, number, &cdb, data);
        good |= response.status == 0;
    }
    for nexus in &nexuses {
        units.nexus_lost(nexus);
    }
    good
}

fn run(units: &TargetUnits, nexus: &Arc<Nexus>, number: u8, cdb: &[u8], data: &[u8]) -> Response {
    let command = Command {
        lun: lun(number),
        cdb: cdb.to_vec(),
        attribute: TaskAttribute::Simple,
        task_tag: 1,
        data_out_expected: data.len() as u64,
    };
    let wanted = units.data_out_bytes(command.lun, &command.cdb);
    let now = if wanted == 0 { units.execute_now(nexus, &command) } else { None };
    let response = now.unwrap_or_else(|| units.execute(nexus, &command, data));
    assert!([0, 2, 4, 8, 0x18, 0x28, 0x30, 0x40].contains(&response.status), "status {:#x}", response.status);
    assert_eq!(response.status == 2, !response.sense.is_empty(), "sense data comes with CHECK CONDITION");
    // more than a transfer may have is refused before any of it is asked for
    let too_long = wanted == 0 && response.status != 0 && response.data_out_bytes > 16 << 20;
    assert!(response.data_out_bytes == wanted || response.data_out_bytes == 0 || too_long);
    assert!(response.data_in.len() <= 17 << 20);
    if let [code, ..] = response.sense.as_slice() {
        assert!(matches!(code & 0x7f, 0x70..=0x73) && response.sense.len() >= 8);
    }
    response
}

/// A step of the first initiator to unit `number`.
fn step(number: u8, cdb: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(0).to_le_bytes();
    [&[number << 1, u8::try_from(cdb.len()).unwrap_or(0)][..], cdb, &length, data].concat()
}

fn cdb10(opcode: u8, flags: u8, lba: u32, count: u16) -> Vec<u8> {
    [&[opcode, flags][..], &lba.to_be_bytes(), &[0], &count.to_be_bytes(), &[0]].concat()
}

fn cdb16(opcode: u8, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    [&[opcode, flags][..], &lba.to_be_bytes(), &count.to_be_bytes(), &[0, 0]].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let key = |service: [u8; 8], old: [u8; 8], flags: u8| [&old[..], &service, &[0; 4], &[flags, 0, 0, 0]].concat();
    let (a, none) = ([1u8; 8], [0u8; 8]);
    let out = |action: u8, kind: u8| vec![0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let unmap = [&[0u8, 22, 0, 16, 0, 0, 0, 0][..], &64u64.to_be_bytes(), &32u32.to_be_bytes(), &[0; 4]].concat();
    let copy_segment = [
        &[0u8, 0x14, 0, 24][..], // UNMAP-like header of a token
        &[0; 12],
        &8u64.to_be_bytes(),
        &16u32.to_be_bytes(),
        &[0; 4],
    ]
    .concat();
    vec![
        [
            step(1, &[0x12, 0, 0, 0, 96, 0], &[]),
            step(1, &[0x12, 1, 0x83, 0, 255, 0], &[]),
            step(1, &[0x12, 1, 0xb0, 0, 255, 0], &[]),
            step(1, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]),
        ]
        .concat(),
        [
            step(1, &cdb10(0x2a, 8, 16, 1), &[7; 512]),
            step(1, &cdb10(0x28, 0, 16, 1), &[]),
            step(1, &cdb10(0x2f, 2, 16, 1), &[7; 512]),
            step(1, &cdb16(0x89, 0, 16, 1), &[7; 1024]),
            step(1, &cdb10(0x35, 0, 0, 0), &[]),
        ]
        .concat(),
        [step(1, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap), step(1, &cdb16(0x9e, 0x12, 0, 0), &[])].concat(),
        [step(1, &cdb10(0x41, 8, 5, 9), &[1; 512]), step(2, &cdb16(0x93, 0, 5, 9), &[])].concat(),
        [
            step(1, &out(0, 0), &key(a, none, 1)),
            step(1, &out(1, 3), &key(none, a, 0)),
            step(1, &[0x5e, 1, 0, 0, 0, 0, 0, 0, 64, 0], &[]),
            step(1, &out(4, 3), &key(a, a, 0)),
            step(1, &out(3, 0), &key(none, a, 0)),
        ]
        .concat(),
        [
            step(1, &[0x1a, 0, 0x3f, 0xff, 255, 0], &[]),
            step(1, &[0x15, 0x10, 0, 0, 24, 0], &[&[0u8; 4][..], &[0x08, 18, 4], &[0; 17]].concat()),
            step(2, &[0x5a, 0, 8, 0, 0, 0, 0, 0, 255, 0], &[]),
            step(1, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 255, 0], &[]),
            step(1, &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], &[]),
            step(1, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &[]),
        ]
        .concat(),
        [
            step(1, &[0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0], &copy_segment),
            step(1, &[0x84, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0], &[]),
            step(1, &[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0], &[]),
        ]
        .concat(),
        [
            step(1, &cdb16(0x9c, 0, 8, 2), &[3; 1024]),
            step(3, &cdb10(0x2a, 0, 0, 1), &[3; 512]),
            step(1, &[0x1b, 0, 0, 0, 2, 0], &[]),
        ]
        .concat(),
    ]
}
