//! Tasks: what is known of a command between its PDU and its response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

use crate::scsi::{Command, Response};
use crate::service::budget::Reservation;
use crate::service::counters::Direction;

/// What other threads see of a task.
#[derive(Debug)]
pub(crate) struct TaskControl {
    pub(crate) serial: u64,
    pub(crate) lun: [u8; 8],
    pub(crate) task_tag: u32,
    ended: AtomicBool,
    state: AtomicU8,
}

const WAITING: u8 = 0;
const RUNNING: u8 = 1;
const FINISHED: u8 = 2;

impl TaskControl {
    pub(crate) fn new(head: &Head) -> Arc<TaskControl> {
        Arc::new(TaskControl {
            serial: head.serial,
            lun: head.lun,
            task_tag: head.task_tag,
            ended: AtomicBool::new(false),
            state: AtomicU8::new(WAITING),
        })
    }

    /// Of no command.
    #[cfg(test)]
    pub(crate) fn unnamed() -> Arc<TaskControl> {
        Arc::new(TaskControl {
            serial: 0,
            lun: [0; 8],
            task_tag: 0,
            ended: AtomicBool::new(false),
            state: AtomicU8::new(WAITING),
        })
    }

    /// It was aborted: no response will be sent.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether that is news.
    pub(crate) fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::SeqCst)
    }

    /// The device server has it.
    pub(crate) fn running(&self) -> bool {
        self.state.load(Ordering::SeqCst) == RUNNING
    }

    pub(crate) fn set_running(&self) {
        self.state.store(RUNNING, Ordering::SeqCst);
    }

    /// As [`TaskControl::set_running`], unless it was cancelled before.
    pub(crate) fn begin(&self) -> bool {
        self.state.compare_exchange(WAITING, RUNNING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// It is over without having begun; `false`: too late.
    pub(crate) fn cancel(&self) -> bool {
        self.state.compare_exchange(WAITING, FINISHED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    pub(crate) fn finished(&self) -> bool {
        self.state.load(Ordering::SeqCst) == FINISHED
    }

    pub(crate) fn set_finished(&self) {
        self.state.store(FINISHED, Ordering::SeqCst);
    }
}

/// The part of a task that its response needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// Unique in the session.
    pub(crate) serial: u64,
    pub(crate) lun: [u8; 8],
    pub(crate) task_tag: u32,
    /// It takes no place in the queue.
    pub(crate) immediate: bool,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    /// Expected data transfer length, bytes.
    pub(crate) expected: u32,
    /// That of the read part of a bidirectional command, bytes.
    pub(crate) expected_read: u32,
    /// R2T PDUs sent.
    pub(crate) r2ts: u32,
    pub(crate) cost_key: u16,
    /// When all of it was there.
    pub(crate) began: Instant,
}

impl Head {
    pub(crate) fn direction(&self) -> Direction {
        match (self.writes, self.reads) {
            (true, _) => Direction::Write,
            (false, true) => Direction::Read,
            _ => Direction::None,
        }
    }

    /// Data-in that the initiator takes, bytes.
    pub(crate) fn read_bytes(&self) -> u32 {
        match (self.writes, self.reads) {
            (true, true) => self.expected_read,
            (false, true) => self.expected,
            _ => 0,
        }
    }
}

/// A command with all of its data, ready to be carried out.
pub(crate) struct Ready {
    pub(crate) head: Head,
    pub(crate) command: Command,
    pub(crate) data: Vec<u8>,
    pub(crate) memory: Option<Reservation>,
    /// Where other threads know it.
    pub(crate) control: Option<Arc<TaskControl>>,
}

/// What a connection knows of a command that another thread has.
pub(crate) struct Away {
    pub(crate) head: Head,
    pub(crate) control: Arc<TaskControl>,
}

/// A command that was carried out on another thread.
pub(crate) struct Done {
    pub(crate) head: Head,
    pub(crate) control: Arc<TaskControl>,
    /// None when it was aborted before it began.
    pub(crate) response: Option<Response>,
    /// The data-out buffer, for another command.
    pub(crate) data: Vec<u8>,
    /// What it says of the time its kind takes, nanoseconds; `None`: nothing.
    pub(crate) lesson_ns: Option<u64>,
}

/// A range of data-out that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) transfer_tag: u32,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    pub(crate) got: u32,
    pub(crate) data_sn: u32,
}

/// A write whose data are coming.
pub(crate) struct Receiving {
    pub(crate) head: Head,
    pub(crate) command: Command,
    pub(crate) control: Arc<TaskControl>,
    pub(crate) buffer: Vec<u8>,
    /// Bytes of data-out to collect.
    pub(crate) want: u32,
    /// Unsolicited data are still to come.
    pub(crate) unsolicited: bool,
    /// Unsolicited bytes so far, immediate ones included.
    pub(crate) unsolicited_bytes: u32,
    pub(crate) unsolicited_sn: u32,
    pub(crate) asked: Vec<Asked>,
    /// First byte that was not asked for.
    pub(crate) next_offset: u32,
    /// It waits for memory before it can ask.
    pub(crate) starved: bool,
    pub(crate) memory: Option<Reservation>,
    pub(crate) memory_rest: Option<Reservation>,
    /// When it came, or could first ask.
    pub(crate) since: Instant,
    /// It has failed, and is answered so when its data has come, which is thrown away (RFC 7143 11.4.2).
    pub(crate) void: Option<Response>,
}

impl Receiving {
    /// Whether a sequence of its data is under way, or about to be.
    pub(crate) fn awaits_data(&self) -> bool {
        self.unsolicited || !self.asked.is_empty()
    }
}
