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
/// Bytes of data-out in which a connection has got on.
const PROGRESS_BYTES: usize = 64 << 10;

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
        (self.commanded_at, self.shrunk) = (self.now, false);
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
        self.collect(head, command, data, want, unsolicited)
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
    fn collect(&mut self, head: Head, command: Command, data: &[u8], want: u32, unsolicited: bool) -> Result<()> {
        let immediate_bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let first = if unsolicited { want.min(self.agreed.first_burst_bytes) } else { want.min(immediate_bytes) };
        let Some(memory) = self.service.budget.force(u64::from(first)) else {
            let full = Response { status: TASK_SET_FULL, ..Response::default() };
            return self.refuse_data(head, command, unsolicited, full);
        };
        self.order.came(head.serial, head.lun, command.attribute);
        let complete = immediate_bytes >= want && !unsolicited;
        let mut buffer = self.buffers.get(if complete { want } else { first } as usize);
        let kept = data.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..kept), data.get(..kept)) {
            to.copy_from_slice(from);
        }
        if complete {
            let ready = Ready { head, command, data: buffer, memory: Some(memory), control: None };
            self.ready.push_back(Item::Command(Box::new(ready)));
            return Ok(());
        }
        let task_tag = head.task_tag;
        let control = TaskControl::new(&head);
        self.receive(Receiving {
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
            since: self.now,
            void: None,
        });
        self.pump(task_tag);
        Ok(())
    }

    /// Waits for the data of a command.
    fn receive(&mut self, task: Receiving) {
        if let Some(session) = &self.session {
            session.tasks.lock().insert(task.head.serial, Arc::clone(&task.control));
        }
        if self.receiving.is_empty() {
            (self.data_out_at, self.data_out_came) = (self.now, 0);
        }
        self.receiving.insert(task.head.task_tag, task);
    }

    /// Answers a command whose data-out cannot be taken. Unsolicited data that is on its way is thrown away, and comes first.
    fn refuse_data(&mut self, head: Head, command: Command, unsolicited: bool, response: Response) -> Result<()> {
        if !unsolicited {
            self.respond(&head, response);
            return Ok(());
        }
        if self.receiving.values().filter(|t| t.void.is_some()).count() >= VOID_MAX {
            return close("too many refused commands whose data does not come");
        }
        let control = TaskControl::new(&head);
        self.receive(Receiving {
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
            since: self.now,
            void: Some(response),
        });
        Ok(())
    }

    /// Asks for as much data of a task as may be outstanding, or lets it run when it has all.
    fn pump(&mut self, task_tag: u32) {
        let Some(task) = self.receiving.get_mut(&task_tag) else { return };
        if task.unsolicited || task.void.is_some() {
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
                    if std::mem::take(&mut task.starved) {
                        task.since = self.now;
                    }
                    task.memory_rest = Some(memory);
                    self.buffers.lengthen(&mut task.buffer, task.want as usize, task.next_offset as usize);
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
        let task = self.receiving.get(&bhs.task_tag()).filter(|t| t.void.is_none() && !t.control.ended())?;
        check(task, bhs, bytes, self.agreed.data_pdu_in_order, self.agreed.first_burst_bytes).ok()?;
        let at = bhs.buffer_offset() as usize;
        (at.checked_add(bytes)? <= task.buffer.len()).then_some(at)
    }

    pub(crate) fn data_out(&mut self, bhs: &Bhs, data: &[u8]) -> Result<()> {
        let Some(task) = self.receiving.get_mut(&bhs.task_tag()) else {
            // Of a task that is aborted or answered.
            tracing::debug!("{}: data for no task: {bhs:?}", self.who());
            return Ok(());
        };
        if task.void.is_none() {
            let fault =
                check(task, bhs, data.len(), self.agreed.data_pdu_in_order, self.agreed.first_burst_bytes).err();
            if let Some(code) = fault {
                self.fail_receiving(bhs, code);
                return Ok(());
            }
            // What is beyond the wanted bytes is thrown away.
            let at = bhs.buffer_offset() as usize;
            let kept = data.len().min(task.buffer.len().saturating_sub(at));
            if let (Some(to), Some(from)) = (task.buffer.get_mut(at..at + kept), data.get(..kept)) {
                to.copy_from_slice(from);
            }
        }
        self.data_came(data.len());
        self.data_out_taken(bhs, data.len());
        Ok(())
    }

    /// So much data-out has come.
    pub(crate) fn data_came(&mut self, bytes: usize) {
        self.data_out_came = self.data_out_came.saturating_add(bytes);
        if self.data_out_came >= PROGRESS_BYTES {
            (self.data_out_at, self.data_out_came) = (self.now, 0);
        }
    }

    /// Accounts for a data-out PDU whose data lies in its place.
    pub(crate) fn data_out_taken(&mut self, bhs: &Bhs, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let tag = bhs.task_tag();
        let Some(task) = self.receiving.get_mut(&tag) else { return };
        if task.void.is_some() {
            if bhs.is_final() {
                self.sequence_thrown_away(bhs);
            }
            return;
        }
        if bhs.word20() == NO_TAG {
            task.unsolicited_bytes = task.unsolicited_bytes.saturating_add(bytes);
            task.unsolicited_sn = task.unsolicited_sn.wrapping_add(1);
            task.next_offset = task.unsolicited_bytes.min(task.want);
            if !bhs.is_final() {
                return;
            }
            task.unsolicited = false;
        } else if let Some(at) = task.asked.iter().position(|a| a.transfer_tag == bhs.word20())
            && let Some(asked) = task.asked.get_mut(at)
        {
            asked.got = asked.got.saturating_add(bytes);
            asked.data_sn = asked.data_sn.wrapping_add(1);
            if !bhs.is_final() {
                return;
            }
            if asked.got != asked.bytes {
                self.fail_receiving(bhs, INCORRECT_AMOUNT);
                return;
            }
            task.asked.remove(at);
        }
        self.pump(tag);
    }

    /// Fails a task whose data-out is wrong. It is answered when all data that it was asked for, or is still to come unasked, has come.
    fn fail_receiving(&mut self, bhs: &Bhs, code: (u8, u8)) {
        let tag = bhs.task_tag();
        tracing::info!("{}: wrong data-out for task {tag:#010x}, sense code {:02x}/{:02x}", self.who(), code.0, code.1);
        let Some(task) = self.receiving.get_mut(&tag) else { return };
        task.void = Some(aborted(code));
        task.starved = false;
        task.buffer = Vec::new();
        (task.memory, task.memory_rest) = (None, None);
        if bhs.is_final() || !task.awaits_data() {
            self.sequence_thrown_away(bhs);
        }
    }

    /// A sequence of data of a failed task has ended. Behind the last of them comes its answer (RFC 7143 11.4.2).
    fn sequence_thrown_away(&mut self, bhs: &Bhs) {
        let tag = bhs.task_tag();
        let Some(task) = self.receiving.get_mut(&tag) else { return };
        if bhs.word20() == NO_TAG {
            task.unsolicited = false;
        } else {
            task.asked.retain(|asked| asked.transfer_tag != bhs.word20());
        }
        if task.awaits_data() {
            return;
        }
        let Some(task) = self.receiving.remove(&tag) else { return };
        if let Some(session) = &self.session {
            session.tasks.lock().remove(&task.head.serial);
        }
        match task.void {
            Some(response) if !task.control.ended() => self.respond(&task.head, response),
            _ => self.abandon(&task.head),
        }
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
