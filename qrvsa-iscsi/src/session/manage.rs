//! Task management (RFC 7143 11.5, 11.6) and logout (11.14, 11.15).
//!
//! A request takes its turn among the commands before it. Tasks are marked as ended first; the answer is sent when those of them
//! that the device server has in hand are finished, of whatever session they are, so that nothing of them happens afterwards.

use std::sync::Arc;

use super::conn::{Conn, IMMEDIATE_MAX, Item};
use super::task::TaskControl;
use super::tx::Data;
use crate::pdu::build;
use crate::pdu::{Bhs, RejectReason, serial_before};
use crate::scsi::{Management as Function, ManagementAnswer};
use crate::service::counters::lun_number;

/// Answers (RFC 7143 11.6.1).
const COMPLETE: u8 = 0;
const NO_TASK: u8 = 1;
const NO_LUN: u8 = 2;
const REASSIGN_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
const REJECTED: u8 = 255;

/// A request that waits for its turn.
pub(crate) struct Management {
    bhs: Bhs,
    /// Tasks with lower serial numbers came before it.
    before: u64,
}

/// An answer that waits for tasks.
pub(crate) struct Pending {
    answer: Answer,
    waits_for: Vec<Arc<TaskControl>>,
}

enum Answer {
    Management { task_tag: u32, code: u8 },
    Logout { task_tag: u32 },
}

fn code_of(answer: ManagementAnswer) -> u8 {
    match answer {
        ManagementAnswer::Complete => COMPLETE,
        ManagementAnswer::LunDoesNotExist => NO_LUN,
        ManagementAnswer::NotSupported => NOT_SUPPORTED,
        ManagementAnswer::Rejected => REJECTED,
    }
}

impl Conn {
    pub(crate) fn task_management(&mut self, bhs: &Bhs) {
        let waiting = self.pending.len() + self.ready.iter().filter(|i| matches!(i, Item::Manage(_))).count();
        if waiting >= IMMEDIATE_MAX as usize {
            self.reject(bhs, RejectReason::TooManyImmediate);
            return;
        }
        let management = Management { bhs: *bhs, before: self.next_serial };
        self.ready.push_back(Item::Manage(management));
    }

    pub(crate) fn manage(&mut self, management: &Management) {
        let Some(session) = self.session.clone() else { return };
        let bhs = &management.bhs;
        let (task_tag, lun, before) = (bhs.task_tag(), bhs.lun(), management.before);
        let server = session.target.server();
        // Of whose tasks, of other sessions too, an answer has to wait for the end.
        let (mut all, mut unit) = (false, None);
        tracing::info!("{}: task management function {} for LUN {lun:02x?}", self.who(), bhs.flags() & 0x7f);
        let (code, mut waits_for) = match bhs.flags() & 0x7f {
            1 => {
                let (code, running) = self.abort_task(management);
                if code == COMPLETE {
                    server.manage(&session.nexus, lun, Function::AbortTask(bhs.word20()));
                }
                (code, running)
            }
            number @ (2 | 4 | 5) => {
                let function = match number {
                    2 => Function::AbortTaskSet,
                    4 => Function::ClearTaskSet,
                    _ => Function::LogicalUnitReset,
                };
                let running = session.end_tasks(&|t| lun_number(t.lun) == lun_number(lun) && t.serial < before);
                self.forget_early(bhs.cmd_sn(), Some(lun));
                unit = (number != 2).then(|| lun_number(lun));
                (code_of(server.manage(&session.nexus, lun, function)), running)
            }
            3 => (code_of(server.manage(&session.nexus, lun, Function::ClearAca)), Vec::new()),
            number @ (6 | 7) => {
                let running = session.end_tasks(&|t| t.serial < before);
                self.forget_early(bhs.cmd_sn(), None);
                all = true;
                let function = if number == 6 { Function::TargetWarmReset } else { Function::TargetColdReset };
                let code = code_of(server.manage(&session.nexus, lun, function));
                self.cold_reset |= number == 7 && code == COMPLETE;
                (code, running)
            }
            8 => (REASSIGN_NOT_SUPPORTED, Vec::new()),
            _ => (NOT_SUPPORTED, Vec::new()),
        };
        self.purge();
        waits_for.extend(session.target.dying(|t| all || unit.is_some_and(|number| lun_number(t.lun) == number)));
        self.pending.push(Pending { answer: Answer::Management { task_tag, code }, waits_for });
        self.answer_pending();
    }

    /// ABORT TASK (RFC 7143 11.5.1): by tag, and if that is unknown, by RefCmdSN.
    fn abort_task(&mut self, management: &Management) -> (u8, Vec<Arc<TaskControl>>) {
        let bhs = &management.bhs;
        let (tag, lun, number) = (bhs.word20(), bhs.lun(), bhs.word32());
        let Some(session) = self.session.clone() else { return (NO_TASK, Vec::new()) };
        let found =
            |t: &TaskControl| t.task_tag == tag && lun_number(t.lun) == lun_number(lun) && t.serial < management.before;
        if session.tasks.lock().values().any(|t| found(t)) {
            return (COMPLETE, session.end_tasks(&found));
        }
        // Not here. A command that has not come yet is taken as if it had; one that came before is done.
        let last = self.numbers().max_cmd_sn;
        let coming = !serial_before(number, self.exp_cmd_sn) && !serial_before(last, number);
        if coming && serial_before(number, bhs.cmd_sn()) {
            self.forget_coming(number);
            return (COMPLETE, Vec::new());
        }
        (NO_TASK, Vec::new())
    }

    /// Sends the answers that wait for nothing any more. That to a logout is the last.
    pub(crate) fn answer_pending(&mut self) {
        let mut at = 0;
        while let Some(next) = self.pending.get_mut(at) {
            next.waits_for.retain(|t| t.running());
            if !next.waits_for.is_empty() || (at > 0 && matches!(next.answer, Answer::Logout { .. })) {
                at += 1;
                continue;
            }
            let answer = self.pending.remove(at).answer;
            let numbers = self.numbered();
            match answer {
                Answer::Management { task_tag, code } => {
                    self.out.push(&build::task_management(task_tag, code, numbers), Data::None);
                }
                Answer::Logout { task_tag } => {
                    self.out.push(&build::logout(task_tag, 0, 0, 0, numbers), Data::None);
                    self.closing = Some("logged out".into());
                }
            }
        }
    }

    pub(crate) fn logout(&mut self, bhs: &Bhs) {
        let reason = bhs.flags() & 0x7f;
        let answer = match reason {
            0 => 0,
            1 if bhs.cid() == self.cid => 0,
            1 => 1,
            2 => 2, // connection recovery is not supported
            _ => {
                self.reject(bhs, RejectReason::InvalidField);
                return;
            }
        };
        if answer != 0 {
            let numbers = self.numbered();
            let (wait, retain) = (self.agreed.time2wait, self.agreed.time2retain);
            self.out.push(&build::logout(bhs.task_tag(), answer, wait, retain, numbers), Data::None);
            return;
        }
        let mut waits_for = Vec::new();
        if let Some(session) = &self.session {
            session.link.lock().state = "logging out";
            waits_for = session.end_tasks(&|_| true);
            session.target.server().tasks_ended(&session.nexus);
        }
        self.purge();
        self.logout_by = None;
        self.pending.push(Pending { answer: Answer::Logout { task_tag: bhs.task_tag() }, waits_for });
        self.answer_pending();
    }
}
