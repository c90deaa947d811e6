//! The running service: portals, targets, their sessions. Everything here may be called at any time, from any thread.

mod error;
mod target;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

pub use error::{ErrorKind, ServiceError};
pub(crate) use target::Target;

use crate::config::{DiscoveryConfig, IscsiName, Limits, TargetConfig};
use crate::info::{PortalInfo, SessionInfo, TargetInfo};
use crate::scsi::DeviceServer;

/// An iSCSI service: cheap to clone, all clones are the same.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Portal {
    info: PortalInfo,
    _listener: TcpListener,
}

/// What all threads of the service share.
pub(crate) struct Inner {
    limits: Limits,
    targets: RwLock<BTreeMap<IscsiName, Arc<Target>>>,
    discovery: RwLock<Arc<DiscoveryConfig>>,
    portals: Mutex<Vec<Portal>>,
}

type Result<T> = std::result::Result<T, ServiceError>;

impl Service {
    /// A service without portals and targets.
    #[must_use]
    pub fn new(limits: Limits) -> Service {
        Service {
            inner: Arc::new(Inner {
                limits,
                targets: RwLock::default(),
                discovery: RwLock::default(),
                portals: Mutex::default(),
            }),
        }
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
        let listener = TcpListener::bind(address).map_err(|e| {
            ServiceError::new(ErrorKind::Io, format!("cannot listen on {address}: {e}; use another address or port"))
        })?;
        let address = listener.local_addr().unwrap_or(address);
        portals.push(Portal { info: PortalInfo { address, group_tag }, _listener: listener });
        Ok(address)
    }

    /// Stops listening; connections that are there go on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn remove_portal(&self, address: SocketAddr) -> Result<()> {
        let mut portals = self.inner.portals.lock();
        let before = portals.len();
        portals.retain(|p| p.info.address != address);
        if portals.len() == before {
            return Err(ServiceError::new(ErrorKind::NotFound, format!("there is no portal {address}")));
        }
        Ok(())
    }

    /// The portals.
    #[must_use]
    pub fn portals(&self) -> Vec<PortalInfo> {
        self.inner.portals.lock().iter().map(|p| p.info.clone()).collect()
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
        targets.insert(config.name.clone(), Arc::new(Target::new(config, server)));
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
        let target = targets.get(&key(name)?).ok_or_else(|| no_target(name))?;
        let sessions = target.session_count();
        if sessions > 0 && !force {
            return Err(ServiceError::new(
                ErrorKind::Busy,
                format!("the target {name} has {sessions} sessions; log them out, or use force"),
            ));
        }
        targets.remove(&key(name)?);
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

    /// Stops: no new connections; initiators are asked to log out, and what has not gone after `deadline` is closed.
    pub fn shutdown(&self, deadline: Duration) {
        self.inner.portals.lock().clear();
        let targets: Vec<Arc<Target>> = self.inner.targets.read().values().cloned().collect();
        for target in &targets {
            target.ask_logout(deadline);
        }
    }
}

fn key(name: &str) -> Result<IscsiName> {
    name.parse().map_err(|_| no_target(name))
}

fn no_target(name: &str) -> ServiceError {
    ServiceError::new(ErrorKind::NotFound, format!("there is no target {name}"))
}

impl Inner {
    pub(crate) fn target(&self, name: &str) -> Result<Arc<Target>> {
        self.targets.read().get(&key(name)?).cloned().ok_or_else(|| no_target(name))
    }
}
