//! Carrying commands out: on the connection's own thread, or on another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::conn::{Conn, Item};
use super::cost::Switches;
use super::mailbox::Event;
use super::respond::check_condition;
use super::shared::Session;
use super::sweep::{self, Fate};
use super::task::{Away, Done, Head, Ready, TaskControl};
use crate::scsi::{Command, Response};
use crate::service::counters::lun_number;
use crate::service::workers::Job;

/// What the data-in of all units together may take, as a multiple of what that of one may.
const UNITS_FACTOR: usize = 8;

/// Calls the device server. A panic in it becomes HARDWARE ERROR, INTERNAL TARGET FAILURE, and harms nobody else.
pub(crate) fn guarded(call: impl FnOnce() -> Option<Response>) -> Option<Response> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        tracing::error!("a SCSI command made the device server panic; this is a bug");
        Some(check_condition(4, (0x44, 0)))
    })
}

fn execute(session: &Session, command: &Command, data: &[u8]) -> Option<Response> {
    guarded(|| Some(session.target.server().execute(&session.nexus, command, data)))
}

fn elapsed_ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Delivers a result from another thread than the connection's.
fn deliver(session: &Session, done: Done) {
    let control = Arc::clone(&done.control);
    control.set_finished();
    session.mailbox.post(Event::Done(Box::new(done)));
    if control.ended() {
        session.target.tasks_finished();
    }
}

impl Conn {
    /// Carries out what is ready. `None`: another thread has taken the connection over meanwhile.
    pub(crate) fn carry_out(mut conn: Box<Conn>) -> Option<Box<Conn>> {
        if !conn.ready.is_empty() {
            conn.switches = Switches::now();
        }
        while let Some(item) = conn.next_item() {
            match item {
                Item::Manage(management) => conn.manage(&management),
                Item::Command(ready) => {
                    let Some(session) = conn.session.clone() else { continue };
                    let alone = conn.ready.is_empty() && conn.running.is_empty();
                    if conn.costs.suits_here(ready.head.cost_key, alone) {
                        conn = Conn::run_here(conn, &session, *ready)?;
                    } else {
                        conn.hand_out(&session, *ready);
                    }
                }
            }
        }
        if let Some(session) = &conn.session {
            let outstanding = u64::from(conn.outstanding) + u64::from(conn.immediate_outstanding);
            session.outstanding.store(outstanding, std::sync::atomic::Ordering::Relaxed);
        }
        Some(conn)
    }

    /// What is to be done next, if its data-in has room.
    fn next_item(&mut self) -> Option<Item> {
        self.sweep();
        if let Some(at) = self.free_held() {
            return Some(Item::Command(Box::new(self.held.remove(at))));
        }
        loop {
            if self.is_full() {
                return None;
            }
            match self.ready.pop_front()? {
                Item::Command(mut ready) if !self.may_begin(&ready) || self.must_wait(&ready) => {
                    let control = ready.control.get_or_insert_with(|| TaskControl::new(&ready.head));
                    if let Some(session) = &self.session {
                        session.tasks.lock().insert(ready.head.serial, Arc::clone(control));
                    }
                    self.held.push(*ready);
                }
                item => return Some(item),
            }
        }
    }

    /// Whether its attribute lets a command run now.
    fn may_begin(&self, ready: &Ready) -> bool {
        self.order.may_run(ready.head.serial, ready.head.lun, ready.command.attribute)
    }

    /// The first of the held commands that can run.
    fn free_held(&self) -> Option<usize> {
        // Units whose reads wait: later ones do not overtake them.
        let mut full: Vec<u64> = Vec::new();
        self.held.iter().position(|ready| {
            if !self.may_begin(ready) {
                return false;
            }
            let lun = lun_number(ready.head.lun);
            if ready.head.read_bytes() == 0 {
                return true;
            }
            let free = !full.contains(&lun) && self.has_room(&ready.head);
            if !free {
                full.push(lun);
            }
            free
        })
    }

    /// Whether a command that is in turn must wait for room, or behind others of its unit that do.
    fn must_wait(&self, ready: &Ready) -> bool {
        let lun = lun_number(ready.head.lun);
        let before = |r: &Ready| r.head.read_bytes() > 0 && lun_number(r.head.lun) == lun && self.may_begin(r);
        ready.head.read_bytes() > 0 && (self.held.iter().any(before) || !self.has_room(&ready.head))
    }

    /// Whether there is room for the data-in of a command beside that of its unit, and of all. What was ended sends none: storage
    /// that hangs with it takes no room from others.
    fn has_room(&self, head: &Head) -> bool {
        let (lun, more) = (lun_number(head.lun), head.read_bytes() as usize);
        let out = self.out.bytes();
        let (mut own, mut all) = (out, out);
        for away in self.running.values().filter(|away| !away.control.ended()) {
            let bytes = away.head.read_bytes() as usize;
            all = all.saturating_add(bytes);
            if lun_number(away.head.lun) == lun {
                own = own.saturating_add(bytes);
            }
        }
        let max = self.service.limits.data_in_bytes_max;
        let fits = |waiting: usize, max: usize| waiting == 0 || waiting.saturating_add(more) <= max;
        fits(own, max) && fits(all, max.saturating_mul(UNITS_FACTOR))
    }

    /// Whether the next command, and all behind it, must wait until more data-in has left.
    fn is_full(&self) -> bool {
        let Some(Item::Command(ready)) = self.ready.front() else { return false };
        let (waiting, more) = (self.out.bytes(), ready.head.read_bytes() as usize);
        more > 0 && waiting > 0 && waiting.saturating_add(more) > self.service.limits.data_in_bytes_max
    }

    /// Whether a command that had to wait can go on.
    pub(crate) fn can_go_on(&self) -> bool {
        (!self.ready.is_empty() && !self.is_full()) || self.free_held().is_some()
    }

    fn run_here(mut conn: Box<Conn>, session: &Arc<Session>, ready: Ready) -> Option<Box<Conn>> {
        let Ready { head, command, data, memory, control } = ready;
        let control = control.unwrap_or_else(|| TaskControl::new(&head));
        control.set_running();
        if control.ended() {
            control.set_finished();
            conn.close_books(&head);
            return Some(conn);
        }
        let service = Arc::clone(&conn.service);
        let (mut switches, swept) = (conn.switches, conn.swept);
        let begun = Instant::now();
        service.watchdog.begin();
        session.parking.park(conn, begun, head, Arc::clone(&control));
        // Whoever ends it from here on sees it; who did so before has left a note.
        let fate = session.sweeps.since(swept, head.lun);
        let response = fate.map_or_else(|| execute(session, &command, &data), Fate::response);
        service.watchdog.end();
        drop(memory);
        let lesson_ns = switches.lesson(elapsed_ns(begun)).filter(|_| fate.is_none());
        match session.parking.unpark(head.serial) {
            Some(mut conn) => {
                conn.now = conn.service.clock.now();
                conn.switches = switches;
                control.set_finished();
                if control.ended() {
                    session.target.tasks_finished();
                }
                conn.ended(Done { head, control, response, data, lesson_ns });
                Some(conn)
            }
            None => {
                deliver(session, Done { head, control, response, data, lesson_ns });
                None
            }
        }
    }

    fn hand_out(&mut self, session: &Arc<Session>, ready: Ready) {
        let Ready { head, command, data, memory, control } = ready;
        let control = control.unwrap_or_else(|| TaskControl::new(&head));
        session.tasks.lock().insert(head.serial, Arc::clone(&control));
        // As on the own thread: from here on it is seen.
        if let Some(fate) = session.sweeps.since(self.swept, head.lun) {
            self.end_swept(&head, control.ended(), fate);
            return;
        }
        self.running.insert(head.serial, Away { head, control: Arc::clone(&control) });
        let lane = (Arc::as_ptr(&session.target) as usize, lun_number(head.lun));
        let session = Arc::clone(session);
        let task = Arc::clone(&control);
        let work = Box::new(move || {
            if !control.begin() {
                return;
            }
            let mut switches = Switches::now();
            let begun = Instant::now();
            let response = if control.ended() { None } else { execute(&session, &command, &data) };
            drop(memory);
            let lesson_ns = switches.lesson(elapsed_ns(begun));
            deliver(&session, Done { head, control, response, data, lesson_ns });
        });
        self.service.workers.submit(lane, Job { task, work });
    }

    /// A result from another thread.
    pub(crate) fn done(&mut self, done: Done) {
        self.running.remove(&done.head.serial);
        self.now = self.service.clock.now();
        self.ended(done);
    }

    fn ended(&mut self, done: Done) {
        let Done { head, control, response, data, lesson_ns } = done;
        self.buffers.keep(data);
        if let Some(session) = &self.session {
            session.tasks.lock().remove(&head.serial);
        }
        match response {
            Some(response) => {
                if let Some(took_ns) = lesson_ns {
                    self.costs.learn(head.cost_key, took_ns);
                }
                if control.ended() { self.abandon(&head) } else { self.respond(&head, response) }
            }
            None => self.abandon(&head),
        }
    }

    /// A task ends without an answer.
    fn close_books(&mut self, head: &Head) {
        if let Some(session) = &self.session {
            session.tasks.lock().remove(&head.serial);
        }
        self.abandon(head);
    }

    /// A command ends that others have ended before it could be seen.
    fn end_swept(&mut self, head: &Head, ended: bool, fate: Fate) {
        match fate.response() {
            Some(response) if !ended => {
                if let Some(session) = &self.session {
                    session.tasks.lock().remove(&head.serial);
                }
                self.respond(head, response);
            }
            _ => self.close_books(head),
        }
    }

    /// Ends the commands at hand about which others have left notes.
    fn sweep(&mut self) {
        let Some(session) = &self.session else { return };
        if session.sweeps.count() == self.swept {
            return;
        }
        let (count, notes) = session.sweeps.take();
        self.swept = count;
        let mut gone: Vec<(Head, bool, Fate)> = Vec::new();
        let mut keep = |ready: &Ready| match sweep::fate(&notes, ready.head.lun) {
            Some(fate) => {
                gone.push((ready.head, ready.control.as_ref().is_some_and(|c| c.ended()), fate));
                false
            }
            None => true,
        };
        self.held.retain(&mut keep);
        self.ready.retain(|item| match item {
            Item::Command(ready) => keep(ready),
            Item::Manage(_) => true,
        });
        for (head, ended, fate) in gone {
            self.end_swept(&head, ended, fate);
        }
    }

    /// Throws away all tasks that were ended and are not running.
    pub(crate) fn purge(&mut self) {
        self.sweep();
        let mut gone: Vec<Head> = Vec::new();
        self.receiving.retain(|_, task| {
            let ended = task.control.ended();
            if ended {
                gone.push(task.head);
            }
            !ended
        });
        let mut keep = |ready: &Ready| {
            let ended = ready.control.as_ref().is_some_and(|c| c.ended());
            if ended {
                gone.push(ready.head);
            }
            !ended
        };
        self.held.retain(&mut keep);
        self.ready.retain(|item| match item {
            Item::Command(ready) => keep(ready),
            Item::Manage(_) => true,
        });
        self.cancel_waiting(&mut gone);
        for head in gone {
            self.close_books(&head);
        }
    }

    /// Takes ended tasks back that wait for a thread: storage that hangs may have them all.
    pub(crate) fn cancel_waiting(&mut self, gone: &mut Vec<Head>) {
        let before = self.running.len();
        self.running.retain(|_, away| {
            let cancelled = away.control.ended() && away.control.cancel();
            if cancelled {
                gone.push(away.head);
            }
            !cancelled
        });
        if self.running.len() < before {
            self.service.workers.withdraw();
        }
    }
}
