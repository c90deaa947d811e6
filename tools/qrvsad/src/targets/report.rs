//! What is told about targets, units and sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use qrvsa_api::{
    ConnectionInfo, Counters, LunInfo, LunSource, LunState, PortalInfo, SessionInfo, TargetInfo, TargetUser, Traffic,
};
use qrvsa_iscsi::info::{LunMetrics, Metrics, OTHER_LUNS, Transfers};
use qrvsa_iscsi::scsi::{DeviceType, UnitConfig};

use super::{Result, Targets, from_service, model, no_target};

fn traffic(transfers: Transfers) -> Traffic {
    Traffic { commands: transfers.commands, bytes: transfers.bytes }
}

fn counters(metrics: &Metrics) -> Counters {
    Counters {
        reads_begun: traffic(metrics.reads_begun),
        reads: traffic(metrics.reads_done),
        writes_begun: traffic(metrics.writes_begun),
        writes: traffic(metrics.writes_done),
        others: metrics.others_done,
        errors: metrics.errors,
        latency: metrics.latency.to_vec(),
        latency_ns: metrics.latency_ns,
    }
}

fn lun_name(lun: u64) -> String {
    if lun == OTHER_LUNS { "other".to_owned() } else { lun.to_string() }
}

impl Targets {
    /// All targets, by number.
    #[must_use]
    pub fn list(&self) -> Vec<TargetInfo> {
        self.model().targets.iter().map(|(tid, target)| self.target_info(*tid, target)).collect()
    }

    /// One target.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn info(&self, iqn: &str) -> Result<TargetInfo> {
        let model = self.model();
        let (tid, target) = model.find(iqn).ok_or_else(|| no_target(iqn))?;
        Ok(self.target_info(tid, target))
    }

    pub(super) fn info_by_tid(&self, tid: u32) -> Option<TargetInfo> {
        self.model().targets.get(&tid).map(|target| self.target_info(tid, target))
    }

    fn target_info(&self, tid: u32, target: &model::Target) -> TargetInfo {
        let info = self.service.target(&target.iqn).ok();
        let errors = self.portal_errors.lock().clone();
        let listening: BTreeSet<SocketAddr> = self.service.portals().iter().map(|portal| portal.address).collect();
        let open = self.service.is_open();
        let error = |address: &SocketAddr| match errors.get(address) {
            Some(error) => error.clone(),
            None if !listening.contains(address) => "does not listen".to_owned(),
            None if !open => "takes no new connections: the state of tgt's system is offline".to_owned(),
            None => String::new(),
        };
        let portals = self.portals_of(&self.model(), target);
        let user = |mutual: bool| move |name: &String| TargetUser { name: name.clone(), mutual };
        let metrics = info.as_ref().map(|info| info.luns.clone()).unwrap_or_default();
        TargetInfo {
            iqn: target.iqn.clone(),
            tid,
            offline: target.offline,
            portals: portals
                .iter()
                .map(|address| PortalInfo { address: address.to_string(), error: error(address) })
                .collect(),
            advertise: target.advertise.clone(),
            acl: target.acl.clone(),
            users: target.incoming.iter().map(user(false)).chain(target.outgoing.iter().map(user(true))).collect(),
            luns: target.luns.iter().map(|(number, lun)| self.lun(tid, *number, lun, &metrics)).collect(),
            parameters: info
                .as_ref()
                .map(|info| info.config.parameters.show().into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
                .unwrap_or_default(),
            sessions: info.map_or(0, |info| u64::try_from(info.sessions).unwrap_or(u64::MAX)),
        }
    }

    pub(super) fn lun_info(&self, tid: u32, number: u64) -> Option<LunInfo> {
        let model = self.model();
        let target = model.targets.get(&tid)?;
        Some(self.lun(tid, number, target.luns.get(&number)?, &[]))
    }

    fn lun(&self, tid: u32, number: u64, lun: &model::Lun, metrics: &[LunMetrics]) -> LunInfo {
        let running = self.running.read().get(&tid).cloned();
        let noted = running.as_ref().and_then(|running| running.unavailable.get(&number).cloned());
        let units = running.map(|running| running.units);
        // The controller that stands in at LUN 0 is not what the model has there.
        let is_it = |(unit, config): &(u64, UnitConfig)| *unit == number && config.device_type == DeviceType::Disk;
        let config = units.as_ref().and_then(|units| units.units().into_iter().find(is_it).map(|(_, config)| config));
        let medium = units.as_ref().and_then(|units| units.medium(number)).unwrap_or_default();
        let (state, message) = match (noted, &config) {
            (Some(why), _) => (LunState::Unavailable, why),
            (None, None) => (LunState::Unavailable, "it does not serve; the log of the daemon says why".to_owned()),
            _ if lun.source == LunSource::Empty => (LunState::Offline, "there is no medium".to_owned()),
            _ if medium.ejected => (LunState::Offline, "the medium is ejected".to_owned()),
            _ if lun.options.offline => (LunState::Offline, String::new()),
            _ => (LunState::Online, String::new()),
        };
        LunInfo {
            lun: number,
            source: lun.source.clone(),
            state,
            message,
            size_bytes: units.as_ref().and_then(|units| units.size_bytes(number)).unwrap_or_default(),
            block_bytes: config
                .as_ref()
                .filter(|_| state != LunState::Unavailable)
                .map_or(0, |config| config.block_bytes),
            thin: config.and_then(|config| config.thin).unwrap_or(matches!(lun.source, LunSource::Volume(_))),
            removal_prevented: medium.removal_prevented,
            write_protected: medium.write_protected,
            options: lun.options.clone(),
            counters: metrics.iter().find(|m| m.lun == number).map(|m| counters(&m.metrics)).unwrap_or_default(),
        }
    }

    /// The sessions of a target.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn sessions(&self, iqn: &str) -> Result<Vec<SessionInfo>> {
        let sessions = self.service.sessions(iqn).map_err(|e| from_service(&e))?;
        Ok(sessions
            .into_iter()
            .map(|s| SessionInfo {
                sid: s.sid,
                initiator: s.initiator_name,
                alias: s.initiator_alias,
                age_s: s.age_seconds,
                connections: s
                    .connections
                    .into_iter()
                    .map(|c| ConnectionInfo {
                        cid: c.cid,
                        initiator_address: c.initiator_address.to_string(),
                        target_address: c.target_address.to_string(),
                        state: c.state.to_owned(),
                        commands_outstanding: c.commands_outstanding,
                    })
                    .collect(),
                negotiated: s.negotiated.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                luns: s.luns.iter().map(|m| (lun_name(m.lun), counters(&m.metrics))).collect::<BTreeMap<_, _>>(),
            })
            .collect())
    }
}
