//! The SCSI side of a target: what a session hands over, and what it gets back.

mod alua;
mod atomic;
mod attention;
mod bytes;
mod call;
mod capacity;
mod config;
mod copy;
mod ident;
mod inquiry;
mod limits;
mod log;
mod lun;
mod medium;
mod mode;
mod ranges;
mod reserve;
mod rsoc;
mod rw;
mod sanitize;
mod sense;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod thin;
mod unit;
mod units;
mod vpd;
mod watch;

pub use alua::{AccessState, Alua, PortGroup};
pub use config::{DeviceType, ModePage, UnitConfig};
pub use stats::{LATENCY_BOUNDS_US, UnitStats};
pub use units::{MediumState, TargetUnits};

use std::sync::Arc;

use crate::backing::Part;

/// An I_T nexus (SAM-5 4.7): one session of one initiator port with the target port of a portal group.
#[derive(Debug, PartialEq, Eq)]
pub struct Nexus {
    /// iSCSI name of the initiator.
    pub initiator_name: String,
    /// Initiator session identifier (RFC 7143 11.12.5).
    pub isid: [u8; 6],
    /// Target portal group tag, which is also the relative target port identifier.
    pub portal_group_tag: u16,
    /// Target session identifying handle; unique in the life of the process.
    pub tsih: u16,
}

/// Task attributes (SAM-5 8.6), as iSCSI codes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAttribute {
    /// No attribute given; taken as simple.
    Untagged,
    /// May run in any order.
    Simple,
    /// Runs after all before it and before all after it.
    Ordered,
    /// Runs before all that has not begun.
    HeadOfQueue,
    /// Runs while an auto contingent allegiance is there.
    Aca,
}

/// A command as it arrived. The session side has put all data-out together, but not more than
/// [`DeviceServer::data_out_bytes`] asked for.
#[derive(Debug)]
pub struct Command {
    /// The 8-byte LUN field as received (SAM-5 4.6).
    pub lun: [u8; 8],
    /// Command descriptor block: 16 bytes, or more from an extended CDB.
    pub cdb: Vec<u8>,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Initiator task tag, for the log and for task management.
    pub task_tag: u32,
    /// Bytes of data-out that the initiator means to send; 0 for a command without. Some commands must check it.
    pub data_out_expected: u64,
}

/// How a command ended.
#[derive(Debug, Default)]
pub struct Response {
    /// SCSI status (SAM-5 5.3).
    pub status: u8,
    /// Sense data in the format in force, without the length field in front; empty for none.
    pub sense: Vec<u8>,
    /// Data for the initiator. May be longer than the initiator expects: the session cuts it and reports the overflow.
    pub data_in: Vec<u8>,
    /// More of it, behind `data_in`, that is sent from where it lies.
    pub lent: Vec<Part>,
    /// Bytes of data-out that the command takes by its CDB; the session computes the residual of a write from it.
    pub data_out_bytes: u64,
}

/// Task management functions (SAM-5 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Management {
    /// ABORT TASK with this tag of the same nexus.
    AbortTask(u32),
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR ACA.
    ClearAca,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// TARGET WARM RESET.
    TargetWarmReset,
    /// TARGET COLD RESET: the session side drops all connections of the target afterwards.
    TargetColdReset,
}

/// Answer to a task management function, as iSCSI codes it (RFC 7143 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagementAnswer {
    /// 0.
    Complete,
    /// 2.
    LunDoesNotExist,
    /// 5.
    NotSupported,
    /// 255.
    Rejected,
}

/// One target's logical units, as its sessions see them. Called from any thread.
pub trait DeviceServer: Send + Sync {
    /// A session has begun. The nexus gets its unit attentions.
    fn nexus_opened(&self, nexus: &Arc<Nexus>);

    /// A session has ended: reservations of SPC-2 and other state of the nexus go.
    fn nexus_lost(&self, nexus: &Arc<Nexus>);

    /// The session side has ended all tasks of the nexus (logout, a lost connection) and waits for those that are in
    /// [`DeviceServer::execute`]: what takes long there returns at once. Nobody is told its result.
    fn tasks_ended(&self, nexus: &Arc<Nexus>) {
        let _ = nexus;
    }

    /// Bytes of data-out that the command needs, from its CDB alone; 0 for a read or for what is not understood. May be
    /// beyond any sensible length: the session asks the initiator for no more than that and than its own limit.
    fn data_out_bytes(&self, lun: [u8; 8], cdb: &[u8]) -> u64;

    /// Runs a command without data-out on the calling thread if it can be done without waiting; `None`: use
    /// [`DeviceServer::execute`] where waiting does no harm. Has no effect when it answers `None`.
    fn execute_now(&self, nexus: &Arc<Nexus>, command: &Command) -> Option<Response>;

    /// Runs a command, with waiting. Never panics, whatever the CDB and the data are.
    fn execute(&self, nexus: &Arc<Nexus>, command: &Command, data_out: &[u8]) -> Response;

    /// Runs the SCSI part of a task management function (unit attentions, reservations, mode pages). The session side takes care of its own tasks: for
    /// [`Management::AbortTask`] it knows the task; for functions that end other sessions' tasks see [`TaskEnd`].
    fn manage(&self, nexus: &Arc<Nexus>, lun: [u8; 8], function: Management) -> ManagementAnswer;

    /// Told of tasks to end: set once by the session side.
    fn set_task_end(&self, observer: Arc<dyn TaskEnd>);
}

/// How the SCSI side has tasks ended that the session side keeps (CLEAR TASK SET, resets, PREEMPT AND ABORT).
pub trait TaskEnd: Send + Sync {
    /// Ends the tasks of these nexuses (`None`: all of them) for a logical unit (`None`: all): no response is sent for them,
    /// except to `spare`. Answers the nexuses that had such tasks.
    fn end_tasks(
        &self,
        nexuses: Option<&[Arc<Nexus>]>,
        lun: Option<[u8; 8]>,
        spare: Option<&Arc<Nexus>>,
    ) -> Vec<Arc<Nexus>>;

    /// Whether the task of this nexus with this tag, which is in [`DeviceServer::execute`], has been ended. A command that is about to
    /// wait for long asks once it can be woken, so that no end is missed.
    fn has_ended(&self, nexus: &Nexus, task_tag: u32) -> bool {
        let _ = (nexus, task_tag);
        false
    }
}

/// Where state lies that must survive a restart (APTPL reservations, saved mode pages, unfinished SANITIZE and FORMAT UNIT). A value is durable at the return of `put`.
pub trait Persistence: Send + Sync {
    /// Stores a value under a key, in the place of an older one.
    ///
    /// # Errors
    /// In words; nothing was changed.
    fn put(&self, key: &str, value: &[u8]) -> std::result::Result<(), String>;

    /// The value, if there is one.
    ///
    /// # Errors
    /// In words.
    fn get(&self, key: &str) -> std::result::Result<Option<Vec<u8>>, String>;
}
