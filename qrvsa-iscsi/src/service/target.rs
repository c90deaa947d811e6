//! One target as the service keeps it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use super::counters::{lun_number, sum_up};
use super::{ErrorKind, ServiceError};
use crate::config::TargetConfig;
use crate::info::{LunMetrics, Metrics, SessionInfo, TargetInfo};
use crate::scsi::{DeviceServer, Nexus, TaskEnd};
use crate::session::enter::Entry;
use crate::session::mailbox::Event;
use crate::session::shared::Session;
use crate::session::sweep::Fate;
use crate::session::task::TaskControl;

#[derive(Default)]
struct Sessions {
    list: Vec<Arc<Session>>,
    /// Removed: nobody gets in any more.
    gone: bool,
}

/// A target: its configuration, its device server, its sessions.
pub(crate) struct Target {
    config: RwLock<Arc<TargetConfig>>,
    server: Arc<dyn DeviceServer>,
    sessions: Mutex<Sessions>,
    session_left: Condvar,
    /// Counts of sessions that are over.
    retired: Mutex<BTreeMap<u64, Metrics>>,
    /// Tasks that were ended while the device server had them in hand.
    dying: Mutex<Vec<Arc<TaskControl>>>,
}

fn no_session(sid: u64) -> ServiceError {
    ServiceError::new(ErrorKind::NotFound, format!("there is no session {sid}"))
}

/// How long management waits for a session that was told to end.
const PATIENCE: Duration = Duration::from_secs(10);

struct Ender(Weak<Target>);

impl TaskEnd for Ender {
    fn end_tasks(
        &self,
        nexuses: Option<&[Arc<Nexus>]>,
        lun: Option<[u8; 8]>,
        spare: Option<&Arc<Nexus>>,
    ) -> Vec<Arc<Nexus>> {
        self.0.upgrade().map(|target| target.end_tasks(nexuses, lun, spare)).unwrap_or_default()
    }

    fn has_ended(&self, nexus: &Nexus, task_tag: u32) -> bool {
        let session = self.0.upgrade().and_then(|target| target.find(&|s| s.nexus.tsih == nexus.tsih));
        // without its session nobody waits for it
        session.is_none_or(|session| session.has_ended(task_tag))
    }
}

impl Target {
    pub(crate) fn new(config: TargetConfig, server: Arc<dyn DeviceServer>) -> Arc<Target> {
        let target = Arc::new(Target {
            config: RwLock::new(Arc::new(config)),
            server,
            sessions: Mutex::default(),
            session_left: Condvar::new(),
            retired: Mutex::default(),
            dying: Mutex::default(),
        });
        target.server.set_task_end(Arc::new(Ender(Arc::downgrade(&target))));
        target
    }

    pub(crate) fn config(&self) -> Arc<TargetConfig> {
        Arc::clone(&self.config.read())
    }

    pub(crate) fn set_config(&self, config: TargetConfig) {
        *self.config.write() = Arc::new(config);
    }

    pub(crate) fn name(&self) -> String {
        self.config().name.to_string()
    }

    pub(crate) fn server(&self) -> &Arc<dyn DeviceServer> {
        &self.server
    }

    fn list(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().list.clone()
    }

    pub(crate) fn each_session(&self, call: &mut dyn FnMut(&Arc<Session>)) {
        for session in self.list() {
            call(&session);
        }
    }

    pub(crate) fn has_tsih(&self, tsih: u16) -> bool {
        self.sessions.lock().list.iter().any(|s| s.nexus.tsih == tsih)
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.lock().list.len()
    }

    pub(crate) fn find(&self, which: &dyn Fn(&Session) -> bool) -> Option<Arc<Session>> {
        self.sessions.lock().list.iter().find(|s| which(s)).cloned()
    }

    /// Lets a session in, unless one like it is there.
    pub(crate) fn enter(&self, same: &dyn Fn(&Session) -> bool, make: &dyn Fn() -> Arc<Session>) -> Entry {
        let mut sessions = self.sessions.lock();
        if sessions.gone {
            return Entry::Gone;
        }
        if let Some(old) = sessions.list.iter().find(|s| same(s)) {
            return Entry::Taken(Arc::clone(old));
        }
        let session = make();
        sessions.list.push(Arc::clone(&session));
        drop(sessions);
        self.server.nexus_opened(&session.nexus);
        Entry::New(session)
    }

    /// A session is over: its nexus is lost, its counts are kept.
    pub(crate) fn session_ended(&self, session: &Arc<Session>) {
        self.server.nexus_lost(&session.nexus);
        sum_up(&mut self.retired.lock(), &session.counters.read());
        self.sessions.lock().list.retain(|s| !Arc::ptr_eq(s, session));
        session.set_ended();
        self.session_left.notify_all();
    }

    fn end_tasks(
        &self,
        nexuses: Option<&[Arc<Nexus>]>,
        lun: Option<[u8; 8]>,
        spare: Option<&Arc<Nexus>>,
    ) -> Vec<Arc<Nexus>> {
        let mut hit = Vec::new();
        for session in self.list() {
            let meant =
                nexuses.is_none_or(|list| list.iter().any(|n| Arc::ptr_eq(n, &session.nexus) || *n == session.nexus));
            let spared = spare.is_some_and(|n| Arc::ptr_eq(n, &session.nexus) || *n == session.nexus);
            if meant && !spared {
                // Only who resets is spared; what goes for other reasons is told of.
                let fate = if nexuses.is_none() && spare.is_some() { Fate::Silent } else { Fate::Told };
                session.sweeps.add(lun, fate);
                session.mailbox.post(Event::TasksEnded);
                let (news, running) =
                    session.end_some(&|task| lun.is_none_or(|lun| lun_number(task.lun) == lun_number(lun)));
                self.dying.lock().extend(running);
                if news {
                    hit.push(Arc::clone(&session.nexus));
                }
            }
        }
        hit
    }

    /// Ended tasks that are not finished.
    pub(crate) fn dying(&self, which: impl Fn(&TaskControl) -> bool) -> Vec<Arc<TaskControl>> {
        let mut dying = self.dying.lock();
        dying.retain(|task| task.running());
        dying.iter().filter(|task| which(task)).cloned().collect()
    }

    /// A task that was ended has finished: answers may wait for it, in any session.
    pub(crate) fn tasks_finished(&self) {
        for session in self.list() {
            session.mailbox.post(Event::TaskFinished);
        }
    }

    pub(crate) fn metrics(&self) -> Vec<LunMetrics> {
        // Live ones first: one that ends meanwhile is missed for a moment rather than counted twice.
        let live: Vec<_> = self.list().iter().map(|s| s.counters.read()).collect();
        let mut sums = self.retired.lock().clone();
        for luns in &live {
            sum_up(&mut sums, luns);
        }
        sums.into_iter().map(|(lun, metrics)| LunMetrics { lun, metrics }).collect()
    }

    pub(crate) fn info(&self) -> TargetInfo {
        TargetInfo { config: self.config(), sessions: self.session_count(), luns: self.metrics() }
    }

    pub(crate) fn sessions(&self) -> Vec<SessionInfo> {
        self.list().iter().map(|s| s.info()).collect()
    }

    fn close_session(&self, session: &Session) -> Result<(), ServiceError> {
        session.mailbox.post(Event::Close("closed by the administrator".into()));
        if session.wait_ended(PATIENCE) {
            return Ok(());
        }
        let text = format!(
            "session {} is closed, but still has commands in its storage; it ends when they do, look at what that stands on",
            session.sid()
        );
        Err(ServiceError::new(ErrorKind::Busy, text))
    }

    pub(crate) fn drop_session(&self, sid: u64) -> Result<(), ServiceError> {
        let session = self.find(&|s| s.sid() == sid).ok_or_else(|| no_session(sid))?;
        self.close_session(&session)
    }

    pub(crate) fn drop_connection(&self, sid: u64, cid: u16) -> Result<(), ServiceError> {
        let session = self.find(&|s| s.sid() == sid).ok_or_else(|| no_session(sid))?;
        if session.link.lock().cid != cid {
            let text = format!("session {sid} has no connection {cid}");
            return Err(ServiceError::new(ErrorKind::NotFound, text));
        }
        self.close_session(&session)
    }

    pub(crate) fn report_lun_event(&self, lun: [u8; 8], sense: &[u8]) {
        for session in self.list() {
            session.mailbox.post(Event::AboutLun(lun, sense.to_vec()));
        }
    }

    pub(crate) fn close_sessions(&self, why: &str) {
        for session in self.list() {
            session.mailbox.post(Event::Close(why.into()));
        }
    }

    /// Lets nobody in any more, tells all sessions, and waits for their end: how many have not ended.
    pub(crate) fn remove(&self) -> usize {
        let list = {
            let mut sessions = self.sessions.lock();
            sessions.gone = true;
            sessions.list.clone()
        };
        for session in &list {
            session.mailbox.post(Event::TargetGone);
        }
        // Who does not even take the news is closed all the same.
        self.wait_empty(Duration::from_secs(2));
        self.close_sessions("the target was removed");
        self.wait_empty(PATIENCE);
        self.session_count()
    }

    fn wait_empty(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut sessions = self.sessions.lock();
        while !sessions.list.is_empty() {
            if self.session_left.wait_until(&mut sessions, deadline).timed_out() {
                return;
            }
        }
    }
}
