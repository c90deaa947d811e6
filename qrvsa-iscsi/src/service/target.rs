//! One target as the service keeps it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::{ErrorKind, ServiceError};
use crate::config::TargetConfig;
use crate::info::{SessionInfo, TargetInfo};
use crate::scsi::DeviceServer;

/// A target: its configuration, its device server, its sessions.
pub(crate) struct Target {
    config: RwLock<Arc<TargetConfig>>,
    _server: Arc<dyn DeviceServer>,
}

fn no_session(sid: u64) -> ServiceError {
    ServiceError::new(ErrorKind::NotFound, format!("there is no session {sid}"))
}

impl Target {
    pub(crate) fn new(config: TargetConfig, server: Arc<dyn DeviceServer>) -> Target {
        Target { config: RwLock::new(Arc::new(config)), _server: server }
    }

    pub(crate) fn config(&self) -> Arc<TargetConfig> {
        Arc::clone(&self.config.read())
    }

    pub(crate) fn set_config(&self, config: TargetConfig) {
        *self.config.write() = Arc::new(config);
    }

    pub(crate) fn session_count(&self) -> usize {
        0
    }

    pub(crate) fn info(&self) -> TargetInfo {
        TargetInfo { config: self.config(), sessions: self.session_count(), luns: Vec::new() }
    }

    pub(crate) fn sessions(&self) -> Vec<SessionInfo> {
        Vec::new()
    }

    pub(crate) fn drop_session(&self, sid: u64) -> Result<(), ServiceError> {
        Err(no_session(sid))
    }

    pub(crate) fn drop_connection(&self, sid: u64, _cid: u16) -> Result<(), ServiceError> {
        Err(no_session(sid))
    }

    pub(crate) fn report_lun_event(&self, _lun: [u8; 8], _sense: &[u8]) {}

    pub(crate) fn ask_logout(&self, _deadline: Duration) {}
}
