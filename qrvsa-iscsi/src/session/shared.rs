//! A session as other threads see it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::mailbox::{Event, Mailbox};
use super::parked::Parking;
use super::sweep::Sweeps;
use super::task::TaskControl;
use crate::info::{ConnectionInfo, SessionInfo};
use crate::login::negotiate::Negotiated;
use crate::scsi::Nexus;
use crate::service::Target;
use crate::service::counters::CounterTable;

/// The connection of a session.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) cid: u16,
    pub(crate) initiator: SocketAddr,
    pub(crate) target: SocketAddr,
    pub(crate) state: &'static str,
}

/// What a new connection takes over from the one that it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A connection works for the session.
    Active,
    /// It has left; the session waits for the connection that replaces it.
    Handed {
        /// The next CmdSN.
        exp_cmd_sn: u32,
        /// The next serial number of a task.
        serial: u64,
    },
    /// Over.
    Ended,
}

struct StageState {
    stage: Stage,
    /// Logins that wait to take the session over.
    heirs: usize,
}

pub(crate) struct Session {
    pub(crate) nexus: Arc<Nexus>,
    pub(crate) alias: String,
    pub(crate) target: Arc<Target>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) agreed: Mutex<Negotiated>,
    pub(crate) link: Mutex<Link>,
    /// Tasks that do not end before anybody else can look.
    pub(crate) tasks: Mutex<HashMap<u64, Arc<TaskControl>>>,
    /// For those that nobody else can see.
    pub(crate) sweeps: Sweeps,
    pub(crate) outstanding: AtomicU64,
    pub(crate) counters: CounterTable,
    pub(crate) parking: Parking,
    pub(crate) began: Instant,
    stage: Mutex<StageState>,
    stage_changed: Condvar,
}

impl Session {
    pub(crate) fn new(
        nexus: Nexus,
        alias: String,
        target: Arc<Target>,
        mailbox: Arc<Mailbox>,
        agreed: Negotiated,
        link: Link,
    ) -> Arc<Session> {
        Arc::new(Session {
            nexus: Arc::new(nexus),
            alias,
            target,
            mailbox,
            agreed: Mutex::new(agreed),
            link: Mutex::new(link),
            tasks: Mutex::default(),
            sweeps: Sweeps::default(),
            outstanding: AtomicU64::new(0),
            counters: CounterTable::default(),
            parking: Parking::default(),
            began: Instant::now(),
            stage: Mutex::new(StageState { stage: Stage::Active, heirs: 0 }),
            stage_changed: Condvar::new(),
        })
    }

    pub(crate) fn sid(&self) -> u64 {
        u64::from(self.nexus.tsih)
    }

    pub(crate) fn info(&self) -> SessionInfo {
        let link = self.link.lock().clone();
        SessionInfo {
            sid: self.sid(),
            initiator_name: self.nexus.initiator_name.clone(),
            initiator_alias: self.alias.clone(),
            isid: self.nexus.isid,
            portal_group_tag: self.nexus.portal_group_tag,
            connections: vec![ConnectionInfo {
                cid: link.cid,
                initiator_address: link.initiator,
                target_address: link.target,
                state: link.state,
                commands_outstanding: self.outstanding.load(Ordering::Relaxed),
            }],
            negotiated: self.agreed.lock().show(),
            age_seconds: self.began.elapsed().as_secs(),
            luns: self.counters.read(),
        }
    }

    /// Tasks that others can see. The parked one first: when it leaves its place unfinished, it is among the others before.
    fn all_tasks(&self) -> Vec<Arc<TaskControl>> {
        let mut tasks: Vec<Arc<TaskControl>> = self.parking.task().into_iter().collect();
        tasks.extend(self.tasks.lock().values().cloned());
        tasks
    }

    /// Whether a task with this tag was ended and is not finished.
    pub(crate) fn has_ended(&self, task_tag: u32) -> bool {
        self.all_tasks().iter().any(|t| t.task_tag == task_tag && t.ended())
    }

    /// Marks tasks as ended, and returns those that the device server has in hand.
    pub(crate) fn end_tasks(&self, which: &dyn Fn(&TaskControl) -> bool) -> Vec<Arc<TaskControl>> {
        self.end_some(which).1
    }

    /// The same, and whether there was a task that nobody had ended before.
    pub(crate) fn end_some(&self, which: &dyn Fn(&TaskControl) -> bool) -> (bool, Vec<Arc<TaskControl>>) {
        let mut running = Vec::new();
        let (mut any, mut news) = (false, false);
        for task in self.all_tasks().into_iter().filter(|t| which(t)) {
            news |= task.end();
            any = true;
            if task.running() {
                running.push(task);
            }
        }
        if any {
            self.mailbox.post(Event::TasksEnded);
        }
        (news, running)
    }

    pub(crate) fn set_ended(&self) {
        self.stage.lock().stage = Stage::Ended;
        self.stage_changed.notify_all();
    }

    /// Leaves the session to a login that waits for it. `false`: none does any more.
    pub(crate) fn hand_over(&self, exp_cmd_sn: u32, serial: u64) -> bool {
        let mut state = self.stage.lock();
        if state.heirs == 0 {
            return false;
        }
        state.stage = Stage::Handed { exp_cmd_sn, serial };
        self.stage_changed.notify_all();
        true
    }

    /// Makes a new connection the active one of a session that was handed over. `None`: it was not, or another was faster.
    fn take_over(state: &mut StageState) -> Option<(u32, u64)> {
        match state.stage {
            Stage::Handed { exp_cmd_sn, serial } => {
                state.stage = Stage::Active;
                // A serial number of 0 marks a new session.
                Some((exp_cmd_sn, serial.max(1)))
            }
            _ => None,
        }
    }

    /// Asks the connection to leave, and takes the session over from it: next CmdSN and serial number.
    ///
    /// # Errors
    /// The stage that the session is in instead.
    pub(crate) fn inherit(&self, patience: Duration) -> Result<(u32, u64), Stage> {
        let deadline = Instant::now() + patience;
        let mut state = self.stage.lock();
        state.heirs += 1;
        self.mailbox.post(Event::HandOver);
        while state.stage == Stage::Active && !self.stage_changed.wait_until(&mut state, deadline).timed_out() {}
        state.heirs -= 1;
        Session::take_over(&mut state).ok_or(state.stage)
    }

    /// Whether another login waits to take the session over.
    pub(crate) fn has_heirs(&self) -> bool {
        self.stage.lock().heirs > 0
    }

    /// Waits for the end of the session. `false`: it has not come within that time.
    pub(crate) fn wait_ended(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.stage.lock();
        while state.stage != Stage::Ended {
            if self.stage_changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}
