//! The text of answers, in the shape that programs written for tgt read.

use std::fmt::Write;

use qrvsa_api::{AclRule, Counters, LunInfo, LunSource, LunState, SessionInfo, TargetInfo};
use qrvsa_tgt::wire::{Code, Request};

use super::super::Targets;
use super::super::model::{Lun, Target, TgtStorage};
use super::Done;

const STAT_HEAD: &str =
    "tgt lun sid rd_subm(bytes,cmds) rd_done(bytes,cmds) wr_subm(bytes,cmds) wr_done(bytes,cmds) errs\n";
const SESSION_HEAD: &str = "sid cid rxdata_octets txdata_octets dataout_pdus datain_pdus cmd_pdus rsp_pdus\n";

fn yes(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// A host without its port, as tgt shows it.
fn host(address: &str) -> String {
    match address.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => address.to_owned(),
    }
}

struct Shown<'a> {
    number: u64,
    kind: &'a str,
    id: String,
    serial: String,
    /// Megabytes of a million bytes, rounded.
    size_mb: u64,
    block_bytes: u32,
    online: bool,
    removable: bool,
    removal_prevented: bool,
    read_only: bool,
    write_protected: bool,
    thin: bool,
    store: String,
    path: String,
    flags: String,
}

fn megabytes(bytes: u64) -> u64 {
    bytes.saturating_add(500_000) / 1_000_000
}

fn show_unit(out: &mut String, unit: &Shown<'_>) {
    let _ = write!(
        out,
        "        LUN: {}\n            Type: {}\n            SCSI ID: {}\n            SCSI SN: {}\n            \
         Size: {} MB, Block size: {}\n            Online: {}\n            Removable media: {}\n            \
         Prevent removal: {}\n            Readonly: {}\n            SWP: {}\n            Thin-provisioning: {}\n            \
         Backing store type: {}\n            Backing store path: {}\n            Backing store flags: {}\n",
        unit.number,
        unit.kind,
        unit.id,
        unit.serial,
        unit.size_mb,
        unit.block_bytes,
        yes(unit.online),
        yes(unit.removable),
        yes(unit.removal_prevented),
        yes(unit.read_only),
        yes(unit.write_protected),
        yes(unit.thin),
        unit.store,
        unit.path,
        unit.flags,
    );
}

fn controller(tid: u32) -> Shown<'static> {
    Shown {
        number: 0,
        kind: "controller",
        id: format!("IET     {tid:04x}0000"),
        serial: format!("beaf{tid}0"),
        size_mb: 0,
        block_bytes: 1,
        online: true,
        removable: false,
        removal_prevented: false,
        read_only: false,
        write_protected: false,
        thin: false,
        store: "null".into(),
        path: "None".into(),
        flags: String::new(),
    }
}

fn unit(info: &LunInfo, tgt: &TgtStorage) -> Shown<'static> {
    let o = &info.options;
    let bstype = if tgt.bstype.is_empty() { "rdwr" } else { &tgt.bstype };
    let (store, path) = match &info.source {
        LunSource::File(path) => (bstype.to_owned(), path.display().to_string()),
        LunSource::Volume(name) => ("qrvsa".to_owned(), name.to_string()),
        LunSource::Vhdx(path) => ("vhdx".to_owned(), path.display().to_string()),
        LunSource::Null(_) => ("null".to_owned(), "/dev/null".to_owned()),
        LunSource::Empty => (bstype.to_owned(), "None".to_owned()),
    };
    Shown {
        number: info.lun,
        kind: "disk",
        id: o.scsi_id.clone().unwrap_or_default(),
        serial: o.serial.clone().unwrap_or_default(),
        size_mb: megabytes(info.size_bytes),
        block_bytes: if info.block_bytes == 0 { 512 } else { info.block_bytes },
        online: info.state == LunState::Online,
        removable: o.removable,
        removal_prevented: info.removal_prevented,
        read_only: o.read_only,
        write_protected: info.write_protected,
        thin: o.thin.unwrap_or(info.thin),
        store,
        path,
        flags: tgt.bsoflags.clone(),
    }
}

fn show_target(out: &mut String, info: &TargetInfo, target: &Target, sessions: &[SessionInfo]) {
    let _ = write!(
        out,
        "Target {}: {}\n    System information:\n        Driver: iscsi\n        State: {}\n",
        info.tid,
        info.iqn,
        if info.offline { "offline" } else { "ready" }
    );
    for (name, value) in [("interval", target.nop_interval_s), ("count", target.nop_count.map(u64::from))] {
        if let Some(value) = value.filter(|value| *value > 0) {
            let _ = writeln!(out, "        Nop {name}: {value}");
        }
    }
    out.push_str("    I_T nexus information:\n");
    for session in sessions {
        let alias = if session.alias.is_empty() { "none" } else { &session.alias };
        let _ = write!(
            out,
            "        I_T nexus: {}\n            Initiator: {} alias: {alias}\n",
            session.sid, session.initiator
        );
        for connection in &session.connections {
            let address = host(&connection.initiator_address);
            let _ = write!(out, "            Connection: {}\n                IP Address: {address}\n", connection.cid);
        }
    }
    out.push_str("    LUN information:\n");
    if !info.luns.iter().any(|lun| lun.lun == 0) {
        show_unit(out, &controller(info.tid));
    }
    for lun in &info.luns {
        let tgt = target.luns.get(&lun.lun).map(|lun: &Lun| lun.tgt.clone()).unwrap_or_default();
        show_unit(out, &unit(lun, &tgt));
    }
    out.push_str("    Account information:\n");
    for user in &info.users {
        let _ = writeln!(out, "        {}{}", user.name, if user.mutual { " (outgoing)" } else { "" });
    }
    out.push_str("    ACL information:\n");
    let is_name = |rule: &&AclRule| matches!(rule, AclRule::Initiator(_));
    for rule in info.acl.iter().filter(|rule| !is_name(rule)).chain(info.acl.iter().filter(is_name)) {
        let _ = writeln!(out, "        {rule}");
    }
}

fn show_counts(out: &mut String, tid: u32, lun: u64, sid: u64, c: &Counters) {
    let _ = writeln!(
        out,
        "{tid:3} {lun:3} {sid:3} {:12} {:6} {:12} {:6} {:12} {:6} {:12} {:6} {:4}",
        c.reads_begun.bytes,
        c.reads_begun.commands,
        c.reads.bytes,
        c.reads.commands,
        c.writes_begun.bytes,
        c.writes_begun.commands,
        c.writes.bytes,
        c.writes.commands,
        c.errors
    );
}

impl Targets {
    pub(super) fn tgt_show_targets(&self) -> String {
        let mut out = String::new();
        let model = self.model();
        for info in self.list() {
            let Some(target) = model.targets.get(&info.tid) else { continue };
            let sessions = self.sessions(&info.iqn).unwrap_or_default();
            show_target(&mut out, &info, target, &sessions);
        }
        out
    }

    pub(super) fn tgt_show_parameters(&self, request: &Request) -> Done {
        let (tid, _) = self.tgt_iqn(request.tid)?;
        let model = self.model();
        let target = model.targets.get(&tid).ok_or(Code::NoTarget)?;
        let redirect = &target.redirect;
        if !redirect.address.is_empty() {
            let reason = match redirect.permanent {
                Some(true) => "Permanent",
                Some(false) => "Temporary",
                None => "Unknown",
            };
            return Ok(format!(
                "RedirectAddress={}\nRedirectPort={}\nRedirectReason={reason}\n",
                redirect.address, redirect.port
            ));
        }
        let config = self.service.target(&target.iqn).map_err(|_| Code::NoTarget)?.config;
        let mut out = format!("nop_interval={}\nnop_count={}\n", config.nop_interval.as_secs(), config.nop_count);
        for (key, value) in config.parameters.show() {
            let _ = writeln!(out, "{key}={value}");
        }
        Ok(out)
    }

    pub(super) fn tgt_show_drivers(&self) -> String {
        let mut out = "LLDs:\n    iscsi: ready\n".to_owned();
        for (tid, target) in &self.model().targets {
            let _ = writeln!(out, "        Target {tid}: {}", target.iqn);
        }
        out.push_str("    iser: error\n");
        out
    }

    pub(super) fn tgt_show_system(&self) -> String {
        let model = self.model();
        let setting = |name: &str, default: &str| model.system.get(name).cloned().unwrap_or_else(|| default.to_owned());
        let state = if self.service.is_open() { "ready" } else { "offline" };
        let mut out = format!("System:\n    State: {state}\n    debug: {}\n", setting("debug", "off"));
        out.push_str("LLDs:\n    iscsi: ready\n    iser: error\nBacking stores:\n");
        out.push_str("    null\n    rdwr (bsoflags sync:direct)\n    aio\n");
        out.push_str("Device types:\n    disk\n    controller\n");
        if !model.discovery_incoming.is_empty() || model.discovery_outgoing.is_some() {
            out.push_str("    Account information:\n\n");
            for name in &model.discovery_incoming {
                let _ = writeln!(out, "    {name}");
            }
            if let Some(name) = &model.discovery_outgoing {
                let _ = writeln!(out, "    {name} (outgoing)");
            }
        }
        let _ = write!(
            out,
            "iSNS:\n    iSNS={}\n    iSNSServerIP={}\n    iSNSServerPort={}\n    iSNSAccessControl={}\n",
            setting("iSNS", "Off"),
            setting("iSNSServerIP", ""),
            setting("iSNSServerPort", "3205"),
            setting("iSNSAccessControl", "Off")
        );
        out
    }

    /// Added portals first, the newest of them on top, then the configured ones, then those that targets have alone.
    pub(super) fn tgt_show_portals(&self) -> String {
        let model = self.model();
        let mut portals: Vec<_> = model.portals.iter().chain(&self.defaults).copied().collect();
        for portal in model.targets.values().flat_map(|target| &target.portals) {
            if !portals.contains(portal) {
                portals.push(*portal);
            }
        }
        portals.iter().map(|portal| format!("Portal: {portal},{}\n", super::super::GROUP_TAG)).collect()
    }

    pub(super) fn tgt_show_connections(&self, request: &Request) -> Done {
        let (_, iqn) = self.tgt_iqn(request.tid)?;
        let mut out = String::new();
        for session in self.sessions(&iqn).unwrap_or_default() {
            for connection in &session.connections {
                let _ = write!(
                    out,
                    "Session: {}\n    Connection: {}\n        Initiator: {}\n        IP Address: {}\n",
                    session.sid,
                    connection.cid,
                    session.initiator,
                    host(&connection.initiator_address)
                );
            }
        }
        Ok(out)
    }

    /// Counts per LUN and session, of one target or all, of one LUN or all.
    pub(super) fn tgt_stat_luns(&self, tid: Option<u32>, lun: Option<u64>) -> String {
        let mut out = STAT_HEAD.to_owned();
        for (number, target) in &self.model().targets {
            if tid.is_some_and(|tid| tid != *number) {
                continue;
            }
            let sessions = self.sessions(&target.iqn).unwrap_or_default();
            for unit in std::iter::once(0).chain(target.luns.keys().copied().filter(|unit| *unit != 0)) {
                if lun.is_some_and(|lun| lun != unit) {
                    continue;
                }
                for session in &sessions {
                    let counts = session.luns.get(&unit.to_string()).cloned().unwrap_or_default();
                    show_counts(&mut out, *number, unit, session.sid, &counts);
                }
            }
        }
        out
    }

    /// Counts of one session: by LUN if asked for, and by connection.
    pub(super) fn tgt_stat_session(&self, request: &Request, by_lun: bool) -> Done {
        let (tid, iqn) = self.tgt_iqn(request.tid).map_err(|_| Code::NoSession)?;
        let sessions = self.sessions(&iqn).map_err(|_| Code::NoSession)?;
        let session = sessions.iter().find(|session| session.sid == request.sid).ok_or(Code::NoSession)?;
        let mut out = String::new();
        if by_lun {
            out.push_str(STAT_HEAD);
            let model = self.model();
            let luns = model.targets.get(&tid).map(|target| target.luns.keys().copied().collect::<Vec<_>>());
            for lun in luns.unwrap_or_default().into_iter().chain(std::iter::once(0)) {
                let counts = session.luns.get(&lun.to_string()).cloned().unwrap_or_default();
                show_counts(&mut out, tid, lun, session.sid, &counts);
            }
            out.push('\n');
        }
        out.push_str(SESSION_HEAD);
        let mut sum = Counters::default();
        for counts in session.luns.values() {
            sum.reads.bytes += counts.reads.bytes;
            sum.writes.bytes += counts.writes.bytes;
            sum.reads.commands += counts.reads.commands + counts.others;
            sum.writes.commands += counts.writes.commands;
        }
        let commands = sum.reads.commands + sum.writes.commands;
        for connection in &session.connections {
            // Bytes of data, without headers; data-out and data-in PDUs are not counted one by one.
            let _ = writeln!(
                out,
                "{:3} {:3} {:13} {:13} {:12} {:11} {:8} {:8}",
                session.sid, connection.cid, sum.writes.bytes, sum.reads.bytes, 0, 0, commands, commands
            );
        }
        Ok(out)
    }
}
