//! The running service: portals, targets, their sessions. Everything here may be called at any time, from any thread.

pub(crate) mod budget;
mod clock;
pub(crate) mod counters;
mod error;
mod gate;
mod portal;
mod target;
mod workers;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use self::budget::Budget;
use self::clock::Clock;
use self::gate::Gate;
use self::portal::Portal;
use self::workers::Workers;

pub use error::{ErrorKind, ServiceError};
pub(crate) use target::Target;

use crate::config::{DiscoveryConfig, IscsiName, Limits, TargetConfig};
use crate::info::{PortalInfo, SessionInfo, TargetInfo};
use crate::name::PortalAddress;
use crate::scsi::DeviceServer;
use crate::session::mailbox::{Event, Mailbox};
use crate::session::parked::{Parking, Watchdog};

/// An iSCSI service: cheap to clone, all clones are the same.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// What all threads of the service share.
pub(crate) struct Inner {
    pub(crate) limits: Limits,
    targets: RwLock<BTreeMap<IscsiName, Arc<Target>>>,
    pub(crate) discovery: RwLock<Arc<DiscoveryConfig>>,
    portals: Mutex<Vec<Portal>>,
    /// New connections are closed at once.
    pub(crate) closed: AtomicBool,
    pub(crate) gate: Gate,
    pub(crate) workers: Arc<Workers>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) clock: Clock,
    pub(crate) watchdog: Arc<Watchdog>,
    /// Mailboxes of all connections in the full feature phase.
    connections: Mutex<Vec<Arc<Mailbox>>>,
    connection_left: Condvar,
    last_tsih: AtomicU16,
    on_request: OnceLock<fn()>,
}

type Result<T> = std::result::Result<T, ServiceError>;

impl Service {
    /// Has `note` called whenever requests have come in on a connection, on its thread; it must not wait. Once.
    pub fn on_request(&self, note: fn()) {
        if self.inner.on_request.set(note).is_err() {
            tracing::warn!("iSCSI requests are counted already");
        }
    }

    /// A service without portals and targets.
    #[must_use]
    pub fn new(limits: Limits) -> Service {
        let inner = Arc::new(Inner {
            targets: RwLock::default(),
            discovery: RwLock::default(),
            portals: Mutex::default(),
            closed: AtomicBool::new(false),
            gate: Gate::new(limits.half_open_max),
            workers: Workers::new(limits.workers_max),
            budget: Budget::new(limits.data_out_bytes_max),
            clock: Clock::default(),
            watchdog: Arc::default(),
            connections: Mutex::default(),
            connection_left: Condvar::new(),
            last_tsih: AtomicU16::new(0),
            on_request: OnceLock::new(),
            limits,
        });
        let (watchdog, weak) = (Arc::clone(&inner.watchdog), Arc::downgrade(&inner));
        let thread = std::thread::Builder::new()
            .name("iscsi-watchdog".into())
            .spawn(move || watchdog.run(&|look| each_parking(&weak, look)));
        if let Err(error) = thread {
            tracing::error!("no thread to watch slow iSCSI commands: {error}; they hold up their session's others");
        }
        Service { inner }
    }

    /// The bounds it was made with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Listens on an address; port 0 takes a free one. Returns the address taken.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for a portal that is there, [`ErrorKind::Io`] when the address cannot be had.
    pub fn add_portal(&self, address: SocketAddr, group_tag: u16) -> Result<SocketAddr> {
        let mut portals = self.inner.portals.lock();
        if portals.iter().any(|p| p.info.address == address) {
            return Err(ServiceError::new(ErrorKind::Exists, format!("the portal {address} is there already")));
        }
        let portal = Portal::open(Arc::downgrade(&self.inner), address, group_tag).map_err(|e| {
            ServiceError::new(ErrorKind::Io, format!("cannot listen on {address}: {e}; use another address or port"))
        })?;
        let address = portal.info.address;
        portals.push(portal);
        Ok(address)
    }

    /// Stops listening; connections that are there go on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn remove_portal(&self, address: SocketAddr) -> Result<()> {
        let mut portals = self.inner.portals.lock();
        let Some(at) = portals.iter().position(|p| p.info.address == address) else {
            return Err(ServiceError::new(ErrorKind::NotFound, format!("there is no portal {address}")));
        };
        let portal = portals.remove(at);
        drop(portals);
        drop(portal);
        Ok(())
    }

    /// The portals.
    #[must_use]
    pub fn portals(&self) -> Vec<PortalInfo> {
        self.inner.portals.lock().iter().map(|p| p.info.clone()).collect()
    }

    /// Whether new connections are taken, on all portals; else they are closed at once. Those that are there go on.
    pub fn set_open(&self, open: bool) {
        self.inner.closed.store(!open, Ordering::Release);
    }

    /// Whether new connections are taken.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.inner.closed.load(Ordering::Acquire)
    }

    /// Sets what holds for discovery sessions from now on.
    pub fn set_discovery(&self, config: DiscoveryConfig) {
        *self.inner.discovery.write() = Arc::new(config);
    }

    /// What holds for discovery sessions.
    #[must_use]
    pub fn discovery(&self) -> Arc<DiscoveryConfig> {
        Arc::clone(&self.inner.discovery.read())
    }

    /// Makes a target.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] when its name or number is taken.
    pub fn create_target(&self, config: TargetConfig, server: Arc<dyn DeviceServer>) -> Result<()> {
        let mut targets = self.inner.targets.write();
        if targets.contains_key(&config.name) {
            return Err(ServiceError::new(ErrorKind::Exists, format!("the target {} is there already", config.name)));
        }
        if targets.values().any(|t| t.config().tid == config.tid) {
            return Err(ServiceError::new(ErrorKind::Exists, format!("the target number {} is taken", config.tid)));
        }
        targets.insert(config.name.clone(), Target::new(config, server));
        Ok(())
    }

    /// Gives the target of that name a new configuration. Access lists, accounts, parameters, state and redirection hold for
    /// logins from now on, NOP times for sessions that are there, too.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Invalid`] when the number would change.
    pub fn update_target(&self, config: TargetConfig) -> Result<()> {
        let target = self.inner.target(config.name.as_str())?;
        if target.config().tid != config.tid {
            return Err(ServiceError::new(ErrorKind::Invalid, "a target keeps its number".into()));
        }
        target.set_config(config);
        Ok(())
    }

    /// Takes a target away.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Busy`] when it has sessions and `force` is not given.
    pub fn remove_target(&self, name: &str, force: bool) -> Result<()> {
        let mut targets = self.inner.targets.write();
        let target = targets.get(&key(name)?).cloned().ok_or_else(|| no_target(name))?;
        let sessions = target.session_count();
        if sessions > 0 && !force {
            return Err(ServiceError::new(
                ErrorKind::Busy,
                format!("the target {name} has {sessions} sessions; log them out, or use force"),
            ));
        }
        targets.remove(&key(name)?);
        drop(targets);
        target.remove();
        Ok(())
    }

    /// All targets, by name.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetInfo> {
        self.inner.targets.read().values().map(|t| t.info()).collect()
    }

    /// One target.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn target(&self, name: &str) -> Result<TargetInfo> {
        Ok(self.inner.target(name)?.info())
    }

    /// The sessions of a target.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn sessions(&self, name: &str) -> Result<Vec<SessionInfo>> {
        Ok(self.inner.target(name)?.sessions())
    }

    /// Ends a session: its connections are closed, its tasks aborted.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn drop_session(&self, name: &str, sid: u64) -> Result<()> {
        self.inner.target(name)?.drop_session(sid)
    }

    /// Closes a connection.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn drop_connection(&self, name: &str, sid: u64, cid: u16) -> Result<()> {
        self.inner.target(name)?.drop_connection(sid, cid)
    }

    /// Tells all sessions of a target, in an asynchronous message with this sense data, what happened to a logical unit.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn report_lun_event(&self, name: &str, lun: [u8; 8], sense: &[u8]) -> Result<()> {
        self.inner.target(name)?.report_lun_event(lun, sense);
        Ok(())
    }

    /// Connections in the full feature phase, discovery included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.connections.lock().len()
    }

    /// Moves the clock of sessions and logins ahead, for simulations: pings, stalls and deadlines come so much earlier. What waits
    /// for threads and storage keeps the machine's time.
    pub fn advance_clock(&self, by: Duration) {
        self.inner.clock.advance(by);
        self.inner.post_all(&|| Event::ClockMoved);
        self.inner.gate.close_expired(self.inner.clock.now());
    }

    /// Stops: no new connections; initiators are asked to log out, and what has not gone after `deadline` is closed.
    pub fn shutdown(&self, deadline: Duration) {
        let portals = std::mem::take(&mut *self.inner.portals.lock());
        drop(portals);
        self.inner.gate.close_all();
        let seconds = u16::try_from(deadline.as_secs()).unwrap_or(u16::MAX);
        self.inner.post_all(&|| Event::AskLogout(seconds));
        self.inner.wait_alone(deadline);
        self.inner.post_all(&|| Event::Close("the service stops".into()));
        self.inner.wait_alone(Duration::from_secs(10));
    }
}

fn key(name: &str) -> Result<IscsiName> {
    name.parse().map_err(|_| no_target(name))
}

fn no_target(name: &str) -> ServiceError {
    ServiceError::new(ErrorKind::NotFound, format!("there is no target {name}"))
}

fn each_parking(service: &Weak<Inner>, look: &mut dyn FnMut(&Parking)) {
    if let Some(service) = service.upgrade() {
        let targets: Vec<Arc<Target>> = service.targets.read().values().cloned().collect();
        for target in targets {
            target.each_session(&mut |session| look(&session.parking));
        }
    }
}

impl Inner {
    /// Requests have come in on a connection.
    pub(crate) fn requested(&self) {
        if let Some(note) = self.on_request.get() {
            note();
        }
    }

    pub(crate) fn target(&self, name: &str) -> Result<Arc<Target>> {
        self.targets.read().get(&key(name)?).cloned().ok_or_else(|| no_target(name))
    }

    /// A session handle that no session has.
    pub(crate) fn new_tsih(&self) -> u16 {
        loop {
            let tsih = self.last_tsih.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
            let targets = self.targets.read();
            if tsih != 0 && !targets.values().any(|t| t.has_tsih(tsih)) {
                return tsih;
            }
        }
    }

    /// Counts a connection in. `false`: there are too many.
    pub(crate) fn connection_opened(&self, mailbox: &Arc<Mailbox>) -> bool {
        let mut connections = self.connections.lock();
        if connections.len() >= self.limits.connections_max {
            return false;
        }
        connections.push(Arc::clone(mailbox));
        true
    }

    pub(crate) fn connection_closed(&self, mailbox: &Arc<Mailbox>) {
        let mut connections = self.connections.lock();
        if let Some(at) = connections.iter().position(|m| Arc::ptr_eq(m, mailbox)) {
            connections.swap_remove(at);
        }
        self.connection_left.notify_all();
    }

    fn post_all(&self, event: &dyn Fn() -> Event) {
        for mailbox in self.connections.lock().iter() {
            mailbox.post(event());
        }
    }

    fn wait_alone(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut connections = self.connections.lock();
        while !connections.is_empty() {
            if self.connection_left.wait_until(&mut connections, deadline).timed_out() {
                return;
            }
        }
    }

    /// Targets that an initiator at that address sees on a portal.
    pub(crate) fn visible_targets(&self, initiator: &str, peer: IpAddr, portal: SocketAddr) -> Vec<Arc<TargetConfig>> {
        let all: Vec<Arc<TargetConfig>> = self.targets.read().values().map(|t| t.config()).collect();
        all.into_iter()
            .filter(|t| (t.portals.is_empty() || t.portals.contains(&portal)) && t.admits(initiator, peer))
            .collect()
    }

    /// Values of TargetAddress for a target, told to an initiator that reached us at `local`.
    pub(crate) fn addresses_of(&self, target: &TargetConfig, local: SocketAddr, group_tag: u16) -> Vec<String> {
        if !target.advertise.is_empty() {
            return target.advertise.iter().map(|a| format!("{a},{group_tag}")).collect();
        }
        let portals = self.portals.lock();
        let seen = portals
            .iter()
            .map(|p| &p.info)
            .filter(|p| target.portals.is_empty() || target.portals.contains(&p.address));
        let mut list = Vec::new();
        for portal in seen {
            let mut address = portal.address;
            if address.ip().is_unspecified() {
                // Of a wildcard, only the address that the initiator uses is known to be of use to it.
                if address.is_ipv4() != local.is_ipv4() {
                    continue;
                }
                address.set_ip(local.ip());
            }
            list.push(format!("{},{}", PortalAddress::from(address), portal.group_tag));
        }
        list
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watchdog.stop();
    }
}
