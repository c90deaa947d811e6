//! A device server of one RAM disk with commands of its own:
//! `C0` waits until it is released, `C1` answers with as many bytes as bytes 2 to 5 say, `C2` ends in CHECK CONDITION, `C3` panics,
//! `C4` notes its byte 1, `C5` panics when it is asked how much data it takes, `C6` has the session that came first reset the unit, or
//! clear the tasks of this one if byte 1 is 1, or end all as for a unit that goes if it is 2.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use qrvsa_iscsi::backing::Part;
use qrvsa_iscsi::scsi::{Command, DeviceServer, Management, ManagementAnswer, Nexus, Response, TaskEnd};

pub const BLOCKS: usize = 16 << 10;

pub struct Device {
    pub medium: Mutex<Vec<u8>>,
    /// Reads are carried out at once.
    pub at_once: AtomicBool,
    /// Most of what is read is lent, in parts of many lengths.
    pub lends: AtomicBool,
    /// Commands that wait now.
    pub waiting: AtomicUsize,
    released: Mutex<usize>,
    release: Condvar,
    pub notes: Mutex<Vec<u8>>,
    pub managed: Mutex<Vec<Management>>,
    pub opened: Mutex<Vec<Arc<Nexus>>>,
    pub lost: Mutex<Vec<Arc<Nexus>>>,
    pub task_end: Mutex<Option<Arc<dyn TaskEnd>>>,
}

impl Default for Device {
    fn default() -> Device {
        Device {
            medium: Mutex::new(vec![0; BLOCKS * 512]),
            at_once: AtomicBool::new(true),
            lends: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            released: Mutex::new(0),
            release: Condvar::new(),
            notes: Mutex::default(),
            managed: Mutex::default(),
            opened: Mutex::default(),
            lost: Mutex::default(),
            task_end: Mutex::default(),
        }
    }
}

fn range(cdb: &[u8]) -> (usize, usize) {
    let block = u32::from_be_bytes(cdb[2..6].try_into().unwrap()) as usize;
    let blocks = usize::from(u16::from_be_bytes(cdb[7..9].try_into().unwrap()));
    (block * 512, blocks * 512)
}

impl Device {
    /// Lets so many waiting commands end.
    pub fn release(&self, count: usize) {
        let mut released = self.released.lock();
        *released = released.saturating_add(count);
        self.release.notify_all();
    }

    pub fn release_all(&self) {
        self.release(usize::MAX / 2);
    }

    pub fn until_waiting(&self, count: usize) {
        super::until(|| self.waiting.load(Ordering::SeqCst) == count);
    }

    fn read(&self, cdb: &[u8]) -> Response {
        let (at, bytes) = range(cdb);
        let mut data_in = self.medium.lock()[at..at + bytes].to_vec();
        let mut lent = Vec::new();
        if self.lends.load(Ordering::SeqCst) {
            let rest = data_in.split_off(bytes / 64);
            let (mut from, mut step) = (0, 1);
            while from < rest.len() {
                let to = rest.len().min(from + step);
                // in memory of its own, or of far more
                lent.push(match step % 2 {
                    0 => Part::new(Arc::new(rest[from..to].to_vec()), 0..to - from),
                    _ => Part::new(Arc::new(rest.clone()), from..to),
                });
                (from, step) = (to, step * 5 / 2 + 1);
            }
        }
        Response { data_in, lent, ..Response::default() }
    }
}

impl DeviceServer for Device {
    fn nexus_opened(&self, nexus: &Arc<Nexus>) {
        self.opened.lock().push(nexus.clone());
    }

    fn nexus_lost(&self, nexus: &Arc<Nexus>) {
        self.lost.lock().push(nexus.clone());
    }

    fn data_out_bytes(&self, _lun: [u8; 8], cdb: &[u8]) -> u64 {
        assert!(cdb[0] != 0xc5, "as told");
        if cdb[0] == 0x2a { range(cdb).1 as u64 } else { 0 }
    }

    fn execute_now(&self, _nexus: &Arc<Nexus>, command: &Command) -> Option<Response> {
        match command.cdb[0] {
            0x28 if self.at_once.load(Ordering::SeqCst) => Some(self.read(&command.cdb)),
            0x00 => Some(Response::default()),
            _ => None,
        }
    }

    fn execute(&self, nexus: &Arc<Nexus>, command: &Command, data_out: &[u8]) -> Response {
        let cdb = &command.cdb;
        match cdb[0] {
            0x28 => self.read(cdb),
            0x2a => {
                let (at, bytes) = range(cdb);
                self.medium.lock()[at..at + data_out.len()].copy_from_slice(data_out);
                Response { data_out_bytes: bytes as u64, ..Response::default() }
            }
            0xc0 => {
                let mut released = self.released.lock();
                self.waiting.fetch_add(1, Ordering::SeqCst);
                while *released == 0 {
                    self.release.wait(&mut released);
                }
                *released -= 1;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                Response::default()
            }
            0xc1 => {
                let bytes = u32::from_be_bytes(cdb[2..6].try_into().unwrap()) as usize;
                Response { data_in: super::pattern(bytes, 7), ..Response::default() }
            }
            0xc2 => Response {
                status: 2,
                sense: vec![0x70, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x24, 0],
                ..Response::default()
            },
            0xc3 => panic!("as told"),
            0xc4 => {
                self.notes.lock().push(cdb[1]);
                Response::default()
            }
            0xc6 => {
                let (first, end) = (self.opened.lock()[0].clone(), self.task_end.lock().clone().unwrap());
                match cdb[1] {
                    1 => end.end_tasks(Some(std::slice::from_ref(nexus)), Some(command.lun), None),
                    2 => end.end_tasks(None, Some(command.lun), None),
                    _ => end.end_tasks(None, Some(command.lun), Some(&first)),
                };
                Response::default()
            }
            _ => Response::default(),
        }
    }

    fn manage(&self, nexus: &Arc<Nexus>, lun: [u8; 8], function: Management) -> ManagementAnswer {
        self.managed.lock().push(function);
        let end = self.task_end.lock().clone().unwrap();
        match function {
            Management::ClearTaskSet | Management::LogicalUnitReset => end.end_tasks(None, Some(lun), Some(nexus)),
            Management::TargetWarmReset | Management::TargetColdReset => end.end_tasks(None, None, Some(nexus)),
            _ => Vec::new(),
        };
        ManagementAnswer::Complete
    }

    fn set_task_end(&self, observer: Arc<dyn TaskEnd>) {
        *self.task_end.lock() = Some(observer);
    }
}
