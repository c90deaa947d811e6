//! iSCSI targets as text.

use std::fmt::Write;

use qrvsa_api::units::{format_bytes, format_duration};
use qrvsa_api::{Counters, LunState, SessionInfo, TargetInfo};

use crate::ui::{clean, table};

fn cells<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// `target list`.
#[must_use]
pub fn list(targets: &[TargetInfo]) -> String {
    if targets.is_empty() {
        return "no iSCSI targets; `qrvsa target create IQN` makes one\n".to_owned();
    }
    let mut rows = vec![cells(["ID", "TARGET", "STATE", "PORTALS", "LUNS", "SESSIONS", "NOTE"])];
    for target in targets {
        let portals: Vec<String> = target.portals.iter().map(|portal| clean(&portal.address)).collect();
        let unavailable = target.luns.iter().filter(|lun| lun.state == LunState::Unavailable).count();
        let deaf = target.portals.iter().filter(|portal| !portal.error.is_empty()).count();
        let mut notes = Vec::new();
        if deaf > 0 {
            notes.push(format!("{deaf} portals do not listen"));
        }
        if unavailable > 0 {
            notes.push(format!("{unavailable} LUNs unavailable"));
        }
        if target.acl.is_empty() {
            notes.push("lets nobody in".to_owned());
        }
        rows.push(vec![
            target.tid.to_string(),
            clean(&target.iqn),
            if target.offline { "offline" } else { "ready" }.to_owned(),
            portals.join(", "),
            target.luns.len().to_string(),
            target.sessions.to_string(),
            notes.join(", "),
        ]);
    }
    table(&rows, &[0, 4, 5])
}

/// `target show`.
#[must_use]
pub fn target(target: &TargetInfo) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:>10}: {value}");
    };
    line("target", &clean(&target.iqn));
    line("id", &target.tid.to_string());
    line("state", if target.offline { "offline - takes no new logins" } else { "ready" });
    for portal in &target.portals {
        let problem = if portal.error.is_empty() { String::new() } else { format!(" - {}", clean(&portal.error)) };
        line("portal", &format!("{}{problem}", clean(&portal.address)));
    }
    for address in &target.advertise {
        line("advertised", &clean(address));
    }
    line("sessions", &target.sessions.to_string());
    out.push_str(&access(target));
    if target.luns.is_empty() {
        out.push_str("\nno LUNs; `qrvsa target lun add` adds one\n");
        return out;
    }
    let heading = ["LUN", "STATE", "SIZE", "BLOCK", "STORAGE", "FLAGS", "READS", "WRITES", "ERRORS", "NOTE"];
    let mut rows = vec![cells(heading)];
    for lun in &target.luns {
        let flags: Vec<&str> = [
            (lun.thin, "thin"),
            (lun.options.read_only, "read-only"),
            (lun.options.removable, "removable"),
            (lun.options.write_through, "write-through"),
            (lun.write_protected, "write-protected"),
            (lun.removal_prevented, "not to be removed"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
        rows.push(vec![
            lun.lun.to_string(),
            lun.state.to_string(),
            if lun.state == LunState::Unavailable { "-".to_owned() } else { format_bytes(lun.size_bytes) },
            if lun.block_bytes == 0 { "-".to_owned() } else { lun.block_bytes.to_string() },
            clean(&lun.source.to_string()),
            if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
            format_bytes(lun.counters.reads.bytes),
            format_bytes(lun.counters.writes.bytes),
            lun.counters.errors.to_string(),
            clean(&lun.message),
        ]);
    }
    out.push('\n');
    out.push_str(&table(&rows, &[0, 2, 3, 6, 7, 8]));
    out
}

/// Who gets in.
#[must_use]
pub fn access(target: &TargetInfo) -> String {
    let mut out = String::new();
    let rules: Vec<String> = target.acl.iter().map(|rule| clean(&rule.to_string())).collect();
    let rules = if rules.is_empty() { "nobody".to_owned() } else { rules.join(", ") };
    let _ = writeln!(out, "{:>10}: {rules}", "lets in");
    let users: Vec<String> = target
        .users
        .iter()
        .map(|user| format!("{}{}", clean(&user.name), if user.mutual { " (mutual)" } else { "" }))
        .collect();
    let users = if users.is_empty() { "none; no CHAP is asked for".to_owned() } else { users.join(", ") };
    let _ = writeln!(out, "{:>10}: {users}", "users");
    out
}

fn sum<'a>(list: impl Iterator<Item = &'a Counters>) -> (u64, u64, u64) {
    list.fold((0, 0, 0), |(reads, writes, errors), c| {
        (reads + c.reads.bytes, writes + c.writes.bytes, errors + c.errors)
    })
}

/// `target sessions`.
#[must_use]
pub fn sessions(list: &[SessionInfo]) -> String {
    if list.is_empty() {
        return "no sessions\n".to_owned();
    }
    let mut rows = vec![cells(["SID", "INITIATOR", "ADDRESS", "AGE", "READ", "WRITTEN", "ERRORS", "OUTSTANDING"])];
    for session in list {
        let addresses: Vec<String> = session.connections.iter().map(|c| clean(&c.initiator_address)).collect();
        let (reads, writes, errors) = sum(session.luns.values());
        let outstanding: u64 = session.connections.iter().map(|c| c.commands_outstanding).sum();
        rows.push(vec![
            session.sid.to_string(),
            clean(&session.initiator),
            if addresses.is_empty() { "gone, may come back".to_owned() } else { addresses.join(", ") },
            format_duration(std::time::Duration::from_secs(session.age_s)),
            format_bytes(reads),
            format_bytes(writes),
            errors.to_string(),
            outstanding.to_string(),
        ]);
    }
    table(&rows, &[0, 3, 4, 5, 6, 7])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_shown() {
        let info: TargetInfo = serde_json::from_str(
            r#"{"iqn":"iqn.2026-01.test:a","tid":1,"portals":[{"address":"127.0.0.1:3260","error":"in use"}],
            "luns":[{"lun":1,"source":{"file":"/a\u001b"},"state":"unavailable","message":"it is gone"},
                    {"lun":2,"source":{"null":1024},"state":"online","size_bytes":1024,"thin":true}]}"#,
        )
        .unwrap();
        let text = target(&info);
        for part in
            ["127.0.0.1:3260 - in use", "lets in: nobody", "unavailable", "it is gone", "/a?", "1.00 KiB", "thin"]
        {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let text = list(&[info]);
        assert!(text.contains("1 portals do not listen, 1 LUNs unavailable, lets nobody in"), "{text}");
        assert!(list(&[]).contains("target create") && sessions(&[]).contains("no sessions"));
    }
}
