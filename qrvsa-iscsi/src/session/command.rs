//! SCSI commands and their data-out (RFC 7143 4.2.5, 11.3, 11.7, 11.8): taken, collected, asked for.

use std::sync::Arc;

use super::conn::{Conn, IMMEDIATE_MAX, Item, Result, VOID_MAX, close};
use super::cost;
use super::respond::{INCORRECT_AMOUNT, PROTOCOL_SERVICE_CRC, UNEXPECTED_DATA, aborted};
use super::shared::Session;
use super::task::{Asked, Head, Ready, Receiving, TaskControl};
use super::tx::Data;
use crate::pdu::{Bhs, NO_TAG, RejectReason, ahs, build};
use crate::scsi::{Command, Response, TaskAttribute};

/// SCSI status TASK SET FULL.
const TASK_SET_FULL: u8 = 0x28;
/// Buffers that are kept for the next commands, and their length in bytes altogether.
const FREE_BUFFERS_MAX: usize = 32;
const FREE_BUFFER_BYTES_MAX: usize = 1 << 20;

fn attribute(flags: u8) -> TaskAttribute {
    match flags & 7 {
        1 => TaskAttribute::Simple,
        2 => TaskAttribute::Ordered,
        3 => TaskAttribute::HeadOfQueue,
        4 => TaskAttribute::Aca,
        _ => TaskAttribute::Untagged,
    }
}

impl Conn {
    pub(crate) fn scsi_command(&mut self, bhs: &Bhs, ahs: &[u8], data: &[u8]) -> Result<()> {
        let Some(session) = self.session.clone() else { return Ok(()) };
        let Some(additional) = ahs::parse(ahs) else {
            self.reject(bhs, RejectReason::InvalidField);
            return Ok(());
        };
        if self.receiving.contains_key(&bhs.task_tag()) || bhs.task_tag() == NO_TAG {
            self.reject(bhs, RejectReason::TaskInProgress);
            return Ok(());
        }
        if bhs.immediate() && self.immediate_outstanding >= IMMEDIATE_MAX {
            self.reject(bhs, RejectReason::TooManyImmediate);
            return Ok(());
        }
        let mut cdb = bhs.cdb().to_vec();
        cdb.extend_from_slice(&additional.extended_cdb);
        let (reads, writes) = (bhs.flags() & 0x40 != 0, bhs.flags() & 0x20 != 0);
        let expected = bhs.word20();
        let command = Command {
            lun: bhs.lun(),
            cdb,
            attribute: attribute(bhs.flags()),
            task_tag: bhs.task_tag(),
            data_out_expected: if writes { expected.into() } else { 0 },
        };
        let head = Head {
            serial: self.next_serial,
            lun: command.lun,
            task_tag: command.task_tag,
            immediate: bhs.immediate(),
            reads,
            writes,
            expected,
            expected_read: additional.read_bytes.unwrap_or(0),
            r2ts: 0,
            cost_key: cost::key(&command.cdb, expected),
            began: self.now,
        };
        self.next_serial += 1;
        if head.immediate {
            self.immediate_outstanding += 1;
        } else {
            self.outstanding += 1;
        }
        self.counters_of(&head).begun(head.direction(), u64::from(expected));
        let unsolicited = writes && !bhs.is_final();
        if !writes && data.is_empty() {
            self.without_data(&session, head, command);
            return Ok(());
        }
        let immediate_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let too_much = immediate_bytes > expected || immediate_bytes > self.agreed.first_burst_bytes;
        if !writes
            || (!data.is_empty() && (!self.agreed.immediate_data || too_much))
            || (unsolicited && self.agreed.initial_r2t)
        {
            return self.refuse_data(head, command, unsolicited, aborted(UNEXPECTED_DATA));
        }
        let wanted = session.target.server().data_out_bytes(command.lun, &command.cdb);
        let want = u32::try_from(wanted).unwrap_or(u32::MAX).min(expected).min(self.service.limits.command_bytes_max);
        self.collect(&session, head, command, data, want, unsolicited)
    }

    /// A command without data-out: carried out at once if that needs no waiting.
    fn without_data(&mut self, session: &Arc<Session>, head: Head, command: Command) {
        let room = self.out.bytes() + (head.read_bytes() as usize) <= self.service.limits.data_in_bytes_max;
        if (room || self.out.bytes() == 0)
            && self.order.may_run(head.serial, head.lun, command.attribute)
            && let Some(response) =
                super::run::guarded(|| session.target.server().execute_now(&session.nexus, &command))
        {
            self.respond(&head, response);
            return;
        }
        self.order.came(head.serial, head.lun, command.attribute);
        let ready = Ready { head, command, data: Vec::new(), memory: None, control: None };
        self.ready.push_back(Item::Command(Box::new(ready)));
    }

    /// A command with data-out: its immediate data is here.
    fn collect(
        &mut self,
        session: &Arc<Session>,
        head: Head,
        command: Command,
        data: &[u8],
        want: u32,
        unsolicited: bool,
    ) -> Result<()> {
        let immediate_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let first = if unsolicited { want.min(self.agreed.first_burst_bytes) } else { want.min(immediate_bytes) };
        let Some(memory) = self.service.budget.force(u64::from(first)) else {
            let full = Response { status: TASK_SET_FULL, ..Response::default() };
            return self.refuse_data(head, command, unsolicited, full);
        };
        self.order.came(head.serial, head.lun, command.attribute);
        let complete = immediate_bytes >= want && !unsolicited;
        let mut buffer = self.buffer(if complete { want } else { first } as usize);
        let kept = data.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..kept), data.get(..kept)) {
            to.copy_from_slice(from);
        }
        if complete {
            let ready = Ready { head, command, data: buffer, memory: Some(memory), control: None };
            self.ready.push_back(Item::Command(Box::new(ready)));
            return Ok(());
        }
        let control = TaskControl::new(&head);
        session.tasks.lock().insert(head.serial, Arc::clone(&control));
        if self.receiving.is_empty() {
            self.data_out_at = self.now;
        }
        let task_tag = head.task_tag;
        self.receiving.insert(
            task_tag,
            Receiving {
                head,
                command,
                control,
                buffer,
                want,
                unsolicited,
                unsolicited_bytes: immediate_bytes,
                unsolicited_sn: 0,
                asked: Vec::new(),
                next_offset: immediate_bytes.min(want),
                starved: false,
                memory: Some(memory),
                memory_rest: None,
                void: false,
            },
        );
        self.pump(task_tag);
        Ok(())
    }

    /// Answers a command whose data-out cannot be taken; unsolicited data that is on its way is thrown away.
    fn refuse_data(&mut self, head: Head, command: Command, unsolicited: bool, response: Response) -> Result<()> {
        self.respond(&head, response);
        if unsolicited {
            if self.receiving.values().filter(|t| t.void).count() >= VOID_MAX {
                return close("too many refused commands whose data does not come");
            }
            let control = TaskControl::new(&head);
            let task = Receiving {
                head,
                command,
                control,
                buffer: Vec::new(),
                want: 0,
                unsolicited: true,
                unsolicited_bytes: 0,
                unsolicited_sn: 0,
                asked: Vec::new(),
                next_offset: 0,
                starved: false,
                memory: None,
                memory_rest: None,
                void: true,
            };
            if self.receiving.is_empty() {
                self.data_out_at = self.now;
            }
            self.receiving.insert(head.task_tag, task);
        }
        Ok(())
    }

    /// A buffer of that length; its content is what an earlier command of this session brought, or zero.
    fn buffer(&mut self, bytes: usize) -> Vec<u8> {
        let fit = self.free.iter().position(|b| b.len() >= bytes && b.len() / 4 <= bytes);
        match fit.map(|at| self.free.swap_remove(at)) {
            Some(mut buffer) => {
                buffer.truncate(bytes);
                buffer
            }
            None => vec![0; bytes],
        }
    }

    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.free.len() < FREE_BUFFERS_MAX && (1..=FREE_BUFFER_BYTES_MAX).contains(&buffer.len()) {
            self.free.push(buffer);
        }
    }

    /// Asks for as much data of a task as may be outstanding, or lets it run when it has all.
    fn pump(&mut self, task_tag: u32) {
        let Some(task) = self.receiving.get_mut(&task_tag) else { return };
        if task.unsolicited || task.void {
            return;
        }
        if task.next_offset >= task.want && task.asked.is_empty() {
            let Some(task) = self.receiving.remove(&task_tag) else { return };
            let mut head = task.head;
            head.began = self.now;
            // Both parts of its memory are one from here on.
            let memory = task.memory.map(|m| m.joined(task.memory_rest));
            let ready = Ready { head, command: task.command, data: task.buffer, memory, control: Some(task.control) };
            self.ready.push_back(Item::Command(Box::new(ready)));
            return;
        }
        if task.buffer.len() < task.want as usize {
            let rest = u64::from(task.want) - task.buffer.len() as u64;
            match self.service.budget.reserve(rest, &self.mailbox) {
                Some(memory) => {
                    task.starved = false;
                    task.memory_rest = Some(memory);
                    let (want, held) = (task.want as usize, task.next_offset as usize);
                    let fit = self.free.iter().position(|b| b.len() >= want);
                    if let Some(mut larger) = fit.map(|at| self.free.swap_remove(at)) {
                        larger.truncate(want);
                        if let (Some(to), Some(from)) = (larger.get_mut(..held), task.buffer.get(..held)) {
                            to.copy_from_slice(from);
                        }
                        task.buffer = larger;
                    } else {
                        task.buffer.resize(want, 0);
                    }
                }
                None => {
                    task.starved = true;
                    return;
                }
            }
        }
        let mut ask = Vec::new();
        while task.next_offset < task.want && task.asked.len() < usize::from(self.agreed.max_outstanding_r2t) {
            let bytes = (task.want - task.next_offset).min(self.agreed.max_burst_bytes);
            let tag = self.next_transfer_tag;
            self.next_transfer_tag = if tag >= NO_TAG - 1 { 1 } else { tag + 1 };
            task.asked.push(Asked { transfer_tag: tag, offset: task.next_offset, bytes, got: 0, data_sn: 0 });
            ask.push((tag, task.head.r2ts, task.next_offset, bytes));
            task.head.r2ts += 1;
            task.next_offset += bytes;
        }
        let lun = task.head.lun;
        if !ask.is_empty() {
            self.data_out_at = self.now;
        }
        for (tag, r2t_sn, offset, bytes) in ask {
            let numbers = self.numbers();
            self.out.push(&build::r2t(task_tag, tag, lun, r2t_sn, offset, bytes, numbers), Data::None);
        }
    }

    /// Memory has come back.
    pub(crate) fn feed_starved(&mut self) {
        let mut starved: Vec<(u64, u32)> =
            self.receiving.iter().filter(|(_, t)| t.starved).map(|(tag, t)| (t.head.serial, *tag)).collect();
        starved.sort_unstable();
        for (_, tag) in starved {
            self.pump(tag);
        }
    }

    /// Where a data-out PDU belongs in its task's buffer, if it is as it should be and all of it is wanted.
    pub(crate) fn place_of(&self, bhs: &Bhs, bytes: usize) -> Option<usize> {
        let task = self.receiving.get(&bhs.task_tag()).filter(|t| !t.void && !t.control.ended())?;
        check(task, bhs, bytes, self.agreed.data_pdu_in_order, self.agreed.first_burst_bytes).ok()?;
        let at = bhs.buffer_offset() as usize;
        (at.checked_add(bytes)? <= task.buffer.len()).then_some(at)
    }

    pub(crate) fn data_out(&mut self, bhs: &Bhs, data: &[u8]) -> Result<()> {
        self.data_out_at = self.now;
        let Some(task) = self.receiving.get_mut(&bhs.task_tag()) else {
            // Of a task that is aborted or answered.
            tracing::debug!("{}: data for no task: {bhs:?}", self.who());
            return Ok(());
        };
        if !task.void {
            let fault =
                check(task, bhs, data.len(), self.agreed.data_pdu_in_order, self.agreed.first_burst_bytes).err();
            if let Some(code) = fault {
                return self.fail_receiving(bhs.task_tag(), code, bhs.is_final());
            }
            // What is beyond the wanted bytes is thrown away.
            let at = bhs.buffer_offset() as usize;
            let kept = data.len().min(task.buffer.len().saturating_sub(at));
            if let (Some(to), Some(from)) = (task.buffer.get_mut(at..at + kept), data.get(..kept)) {
                to.copy_from_slice(from);
            }
        }
        self.data_out_taken(bhs, data.len())
    }

    /// Accounts for a data-out PDU whose data lies in its place.
    pub(crate) fn data_out_taken(&mut self, bhs: &Bhs, bytes: usize) -> Result<()> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let tag = bhs.task_tag();
        let Some(task) = self.receiving.get_mut(&tag) else { return Ok(()) };
        if task.void {
            if bhs.is_final() {
                self.receiving.remove(&tag);
            }
            return Ok(());
        }
        if bhs.word20() == NO_TAG {
            task.unsolicited_bytes = task.unsolicited_bytes.saturating_add(bytes);
            task.unsolicited_sn = task.unsolicited_sn.wrapping_add(1);
            task.next_offset = task.unsolicited_bytes.min(task.want);
            if !bhs.is_final() {
                return Ok(());
            }
            task.unsolicited = false;
        } else if let Some(at) = task.asked.iter().position(|a| a.transfer_tag == bhs.word20())
            && let Some(asked) = task.asked.get_mut(at)
        {
            asked.got = asked.got.saturating_add(bytes);
            asked.data_sn = asked.data_sn.wrapping_add(1);
            if !bhs.is_final() {
                return Ok(());
            }
            if asked.got != asked.bytes {
                return self.fail_receiving(tag, INCORRECT_AMOUNT, true);
            }
            task.asked.remove(at);
        }
        self.pump(tag);
        Ok(())
    }

    /// Ends a task whose data-out is wrong.
    fn fail_receiving(&mut self, tag: u32, code: (u8, u8), last: bool) -> Result<()> {
        let Some(mut task) = self.receiving.remove(&tag) else { return Ok(()) };
        tracing::info!("{}: wrong data-out for task {tag:#010x}, sense code {:02x}/{:02x}", self.who(), code.0, code.1);
        if task.control.ended() {
            self.abandon(&task.head);
        } else {
            self.respond(&task.head, aborted(code));
        }
        if task.unsolicited && !last {
            task.void = true;
            task.buffer = Vec::new();
            (task.memory, task.memory_rest) = (None, None);
            self.receiving.insert(tag, task);
        }
        Ok(())
    }
}

/// What is wrong with a data-out PDU: additional sense code and qualifier.
fn check(
    task: &Receiving,
    bhs: &Bhs,
    bytes: usize,
    in_order: bool,
    first_burst: u32,
) -> std::result::Result<(), (u8, u8)> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let offset = bhs.buffer_offset();
    if bhs.word20() == NO_TAG {
        let end = task.unsolicited_bytes.checked_add(bytes).ok_or(INCORRECT_AMOUNT)?;
        return if !task.unsolicited {
            Err(UNEXPECTED_DATA)
        } else if bhs.data_sn() != task.unsolicited_sn {
            Err(PROTOCOL_SERVICE_CRC)
        } else if offset != task.unsolicited_bytes || end > first_burst || end > task.head.expected {
            Err(INCORRECT_AMOUNT)
        } else {
            Ok(())
        };
    }
    let asked = task.asked.iter().find(|a| a.transfer_tag == bhs.word20()).ok_or(UNEXPECTED_DATA)?;
    let end = offset.checked_add(bytes).ok_or(INCORRECT_AMOUNT)?;
    let got = asked.got.checked_add(bytes).ok_or(INCORRECT_AMOUNT)?;
    if bhs.data_sn() != asked.data_sn {
        Err(PROTOCOL_SERVICE_CRC)
    } else if offset < asked.offset
        || end > asked.offset + asked.bytes
        || got > asked.bytes
        || (in_order && offset != asked.offset + asked.got)
    {
        Err(INCORRECT_AMOUNT)
    } else {
        Ok(())
    }
}
