//! Tests of the device server as a whole, through the trait that sessions use.

mod blocks;
mod copies;
mod facts;
mod hostile;
mod medium;
mod reservations;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::{
    Command, DeviceServer, MediumState, Nexus, Persistence, Response, TargetUnits, TaskAttribute, UnitConfig, lun,
};
use crate::backing::{Backing, Extent, Failure, FailureKind, MemoryBacking, Space};

const BLOCK: usize = 512;
const BLOCKS: u64 = 4096;

/// Keeps values in memory.
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

/// Storage that takes no writes while it is told so, and lets something else happen before one.
struct Managed {
    memory: MemoryBacking,
    fails: AtomicBool,
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Managed {
    fn new() -> Self {
        let memory = MemoryBacking::new(BLOCKS * BLOCK as u64);
        Self { memory, fails: AtomicBool::new(false), before: Mutex::default() }
    }

    fn check(&self) -> crate::backing::Result<()> {
        if let Some(before) = self.before.lock().take() {
            before();
        }
        let failure = Failure { kind: FailureKind::Unwritable, text: "as told".into(), offset: Some(0) };
        if self.fails.load(Ordering::SeqCst) { Err(failure) } else { Ok(()) }
    }
}

impl Backing for Managed {
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> crate::backing::Result<()> {
        self.memory.read(offset, buf)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> crate::backing::Result<()> {
        self.check()?;
        self.memory.write(offset, data, durable)
    }
    fn flush(&self) -> crate::backing::Result<()> {
        self.check()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> crate::backing::Result<()> {
        self.check()?;
        self.memory.unmap(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, bytes: u64) -> crate::backing::Result<()> {
        self.check()?;
        self.memory.write_zeroes(offset, bytes)
    }
    fn extent(&self, offset: u64, bytes_max: u64) -> crate::backing::Result<Extent> {
        self.memory.extent(offset, bytes_max)
    }
    fn space(&self) -> Space {
        self.memory.space()
    }
}

struct World {
    units: TargetUnits,
    kept: Arc<Kept>,
    disk: Arc<MemoryBacking>,
}

fn config() -> UnitConfig {
    UnitConfig { removable: true, ..UnitConfig::default() }
}

impl World {
    fn new() -> Self {
        Self::with(Arc::default(), config())
    }

    fn with(kept: Arc<Kept>, config: UnitConfig) -> Self {
        let units = TargetUnits::new("iqn.2026-01.test:disks", Some(kept.clone()));
        let disk = Arc::new(MemoryBacking::new(BLOCKS * BLOCK as u64));
        units.add_unit(1, config, disk.clone()).expect("adds");
        units.set_ports(vec![1, 2]);
        Self { units, kept, disk }
    }

    /// A nexus that has heard of its power-on.
    fn nexus(&self, tsih: u16) -> Arc<Nexus> {
        let nexus = self.fresh(tsih);
        assert_eq!(self.run(&nexus, &[0; 6], &[]).status, 2);
        assert_eq!(self.run(&nexus, &[0; 6], &[]).status, 0);
        nexus
    }

    /// The same where the unit is not ready.
    fn nexus_of_absent(&self, tsih: u16) -> Arc<Nexus> {
        let nexus = self.fresh(tsih);
        while self.refused(&nexus, &[0; 6], &[]).0 == 6 {}
        nexus
    }

    fn fresh(&self, tsih: u16) -> Arc<Nexus> {
        let nexus = Arc::new(Nexus {
            initiator_name: format!("iqn.2026-01.test:host{tsih}"),
            isid: [0x80, 0, 0, 0, 0, 1],
            portal_group_tag: 1,
            tsih,
        });
        self.units.nexus_opened(&nexus);
        nexus
    }

    fn run_on(&self, number: u64, nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> Response {
        let command = Command {
            lun: lun::encode(number),
            cdb: cdb.to_vec(),
            attribute: TaskAttribute::Simple,
            task_tag: 1,
            data_out_expected: data.len() as u64,
        };
        let wanted = self.units.data_out_bytes(command.lun, &command.cdb);
        if wanted == 0
            && let Some(response) = self.units.execute_now(nexus, &command)
        {
            return response;
        }
        let response = self.units.execute(nexus, &command, data);
        let too_long = wanted == 0 && response.data_out_bytes > crate::scsi::limits::TRANSFER_BYTES_MAX;
        assert!(response.data_out_bytes == wanted || response.data_out_bytes == 0 || too_long && response.status != 0);
        response
    }

    fn run(&self, nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> Response {
        self.run_on(1, nexus, cdb, data)
    }

    /// The data of a command that succeeds.
    fn good(&self, nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> Vec<u8> {
        let response = self.run(nexus, cdb, data);
        assert_eq!((response.status, sense(&response)), (0, None), "{cdb:x?}");
        response.data_in
    }

    /// Key, code and qualifier of a command that is refused.
    fn refused(&self, nexus: &Arc<Nexus>, cdb: &[u8], data: &[u8]) -> (u8, u8, u8) {
        let response = self.run(nexus, cdb, data);
        assert_eq!(response.status, 2, "{cdb:x?} {:x?}", response.data_in);
        sense(&response).expect("sense data")
    }
}

/// Key, code and qualifier.
fn sense(response: &Response) -> Option<(u8, u8, u8)> {
    match response.sense.as_slice() {
        [] => None,
        [0x70 | 0xf0, rest @ ..] => Some((rest[1] & 0x0f, rest[11], rest[12])),
        [0x72, key, asc, ascq, ..] => Some((*key, *asc, *ascq)),
        other => panic!("no sense data: {other:x?}"),
    }
}

/// A CDB of 10 bytes.
fn cdb10(opcode: u8, flags: u8, lba: u32, count: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.push(0);
    cdb.extend(count.to_be_bytes());
    cdb.push(0);
    cdb
}

/// A CDB of 16 bytes.
fn cdb16(opcode: u8, flags: u8, lba: u64, count: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(count.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}
