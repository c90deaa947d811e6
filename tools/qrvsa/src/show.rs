//! Answers of the daemon as text for people.

use std::fmt::Write;
use std::time::Duration;

use qrvsa_api::units::{format_bytes, format_duration, format_rate, format_time};
use qrvsa_api::{
    DebugEntry, DeviceState, DeviceStatus, Fragment, FsInfo, JobInfo, JobKind, JobState, MountInfo, MountState,
    PoolState, PoolStatus, PoolSummary, Property, VolumeInfo,
};

use crate::ui::{clean, table};

fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        Some(percent) => format!("{}%", percent.min(100)),
        None => "-".to_owned(),
    }
}

fn plural(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `pool list`.
#[must_use]
pub fn pools(pools: &[PoolSummary]) -> String {
    if pools.is_empty() {
        return "no pools; `qrvsa pool create` makes one, `qrvsa pool import` looks for some\n".to_owned();
    }
    let mut rows = vec![cells(["NAME", "STATE", "GEOMETRY", "USABLE", "USED", "FREE", "USE", "NOTE"])];
    for pool in pools {
        let known = pool.state != PoolState::Faulted;
        let bytes = |bytes| if known { format_bytes(bytes) } else { "-".to_owned() };
        rows.push(vec![
            clean(&pool.name),
            pool.state.to_string(),
            if pool.geometry.is_empty() { "-".to_owned() } else { clean(&pool.geometry) },
            bytes(pool.usable_bytes),
            bytes(pool.used_bytes),
            bytes(pool.free_bytes),
            percent(pool.used_bytes, pool.usable_bytes),
            clean(&pool.message),
        ]);
    }
    table(&rows, &[3, 4, 5, 6])
}

/// How far a job is, in one line without its name.
#[must_use]
pub fn job_progress(job: &JobInfo) -> String {
    let mut text = String::new();
    if job.total_bytes > 0 {
        let (done, total) = (format_bytes(job.done_bytes), format_bytes(job.total_bytes));
        text.push_str(&format!("{} ({done} of {total})", percent(job.done_bytes, job.total_bytes)));
    } else {
        text.push_str(&format!("{} done", format_bytes(job.done_bytes)));
    }
    if job.state == JobState::Running {
        text.push_str(&format!(", {}", format_rate(job.rate_bytes_per_s)));
        if let Some(eta) = job.eta_s {
            text.push_str(&format!(", {} left", format_duration(Duration::from_secs(eta))));
        }
    }
    text.push_str(&format!(", {}", job_errors(job)));
    text
}

/// What a job found.
fn job_errors(job: &JobInfo) -> String {
    match job.kind {
        JobKind::Check if job.errors_found == 0 => "no problems".to_owned(),
        JobKind::Check => plural(job.errors_found, "problem"),
        _ if job.errors_found == 0 => "no errors".to_owned(),
        JobKind::Rebuild if job.lost == 0 => {
            format!("{}, nothing lost", plural(job.errors_found, "error"))
        }
        JobKind::Rebuild => {
            format!("{}, {} lost", plural(job.errors_found, "error"), plural(job.lost, "unit"))
        }
        _ => format!("{} found, {} repaired", plural(job.errors_found, "error"), job.repaired),
    }
}

/// How a job ended, in one line.
#[must_use]
pub fn job_end(job: &JobInfo) -> String {
    let took = job.finished_unix_s.and_then(|end| u64::try_from(end.saturating_sub(job.started_unix_s)).ok());
    let took = took.map_or_else(String::new, |s| format!(" in {}", format_duration(Duration::from_secs(s))));
    let mut text = format!(
        "{} of {} {}{took}: {}, {}",
        job.kind,
        clean(&job.pool),
        job.state,
        format_bytes(job.done_bytes),
        job_errors(job)
    );
    if matches!(job.state, JobState::Failed | JobState::Stopped) && !job.message.is_empty() {
        text.push_str(&format!(" ({})", clean(&job.message)));
    }
    text
}

/// `check` at its end.
#[must_use]
pub fn check(job: &JobInfo) -> String {
    let mut text = String::new();
    if let Some(report) = &job.report {
        for problem in &report.problems {
            text.push_str(&format!("{}\n", clean(problem)));
        }
        if !report.counts.is_empty() {
            let counts = report.counts.iter().map(|(what, count)| format!("{count} {}", clean(what)));
            text.push_str(&format!("checked: {}\n", counts.collect::<Vec<_>>().join(", ")));
        }
        if report.problems.is_empty() {
            text.push_str(&format!("pool {} is consistent\n", clean(&job.pool)));
        } else {
            let problems = plural(u64::try_from(report.problems.len()).unwrap_or(u64::MAX), "problem");
            text.push_str(&format!("pool {} has {problems}\n", clean(&job.pool)));
        }
    }
    text
}

/// `pool status`.
#[must_use]
pub fn status(pool: &PoolStatus) -> String {
    let s = &pool.summary;
    let mut lines: Vec<(&str, String)> = vec![("pool", clean(&s.name))];
    if !s.id.is_empty() {
        lines.push(("id", clean(&s.id)));
    }
    let note = if s.message.is_empty() { String::new() } else { format!(" - {}", clean(&s.message)) };
    lines.push(("state", format!("{}{note}", s.state)));
    if s.state != PoolState::Faulted {
        let survives = match pool.more_failures_survived {
            0 => "the next device failure loses data".to_owned(),
            1 => "survives the failure of 1 more device".to_owned(),
            n => format!("survives the failure of {n} more devices"),
        };
        let devices = plural(u64::try_from(pool.devices.len()).unwrap_or(u64::MAX), "device");
        lines.push(("geometry", format!("{} on {devices}; {survives}", clean(&s.geometry))));
        lines.push((
            "space",
            format!(
                "{} used ({}), {} free of {}; {} raw",
                format_bytes(s.used_bytes),
                percent(s.used_bytes, s.usable_bytes),
                format_bytes(s.free_bytes),
                format_bytes(s.usable_bytes),
                format_bytes(s.raw_bytes)
            ),
        ));
        let redundancy = if pool.bytes_degraded == 0 && pool.bytes_without_redundancy == 0 {
            "all data has full redundancy".to_owned()
        } else {
            format!(
                "{} with less than full redundancy, of it {} that one more failure would destroy",
                format_bytes(pool.bytes_degraded),
                format_bytes(pool.bytes_without_redundancy)
            )
        };
        lines.push(("redundancy", redundancy));
        if pool.bytes_lost > 0 {
            lines.push(("lost", format!("{} of data cannot be read any more", format_bytes(pool.bytes_lost))));
        }
        match (&pool.scrub, &pool.last_scrub) {
            (Some(job), _) => lines.push(("scrub", format!("{}, {}", job.state, job_progress(job)))),
            (None, Some(last)) => {
                let when = format_time(last.finished_unix_s.unwrap_or(last.started_unix_s));
                lines.push(("scrub", format!("{} {when}, {}", last.state, job_errors(last))));
            }
            (None, None) => lines.push(("scrub", format!("never; `qrvsa pool scrub {}` starts one", clean(&s.name)))),
        }
        if let Some(job) = &pool.rebuild {
            lines.push(("rebuild", format!("{}, {}", job.state, job_progress(job))));
        } else if let Some(job) = &pool.failed_rebuild {
            let when = format_time(job.finished_unix_s.unwrap_or(job.started_unix_s));
            let again = "export and import the pool, or restart the daemon, to begin it again";
            lines.push(("rebuild", format!("failed {when}: {}; {again}", clean(&job.message))));
        }
        lines.push(("txg", pool.txg.to_string()));
    }
    let mut out = String::new();
    for (name, value) in lines {
        let _ = writeln!(out, "{name:>10}: {value}");
    }
    if !pool.devices.is_empty() {
        out.push('\n');
        out.push_str(&devices(pool));
    }
    if s.state != PoolState::Faulted || !pool.damaged_files.is_empty() {
        out.push('\n');
        if pool.damaged_files.is_empty() {
            out.push_str("No damaged files known.\n");
        } else {
            out.push_str("Files with damage beyond repair (restore them from a backup):\n");
            for file in &pool.damaged_files {
                let _ = writeln!(out, "  {}", clean(file));
            }
        }
    }
    for warning in &pool.warnings {
        let _ = writeln!(out, "Warning: {}", clean(warning));
    }
    out
}

fn devices(pool: &PoolStatus) -> String {
    let heading = ["#", "DEVICE", "STATE", "SIZE", "ALLOCATED", "READ", "WRITE", "CHECKSUM", "REPAIRED", "NOTE"];
    let mut rows = vec![cells(heading)];
    for device in &pool.devices {
        let size = |bytes: u64| {
            if device.state == DeviceState::Missing && bytes == 0 { "-".into() } else { format_bytes(bytes) }
        };
        rows.push(vec![
            device.index.to_string(),
            clean(&device.path.display().to_string()),
            device.state.to_string(),
            size(device.size_bytes),
            size(device.allocated_bytes),
            device.read_errors.to_string(),
            device.write_errors.to_string(),
            device.checksum_errors.to_string(),
            device.repaired.to_string(),
            note(device),
        ]);
    }
    table(&rows, &[0, 3, 4, 5, 6, 7, 8])
}

/// What there is to say about a device.
fn note(device: &DeviceStatus) -> String {
    let mut notes = Vec::new();
    if let (Some(taken), Some(free)) = (device.host_taken_bytes, device.host_free_bytes) {
        let (taken, free) = (format_bytes(taken), format_bytes(free));
        notes.push(format!("{}: takes {taken} of its filesystem, which has {free} left", clean(&device.kind)));
    }
    if !device.message.is_empty() {
        notes.push(clean(&device.message));
    }
    notes.join("; ")
}

/// `fs list`.
#[must_use]
pub fn filesystems(list: &[FsInfo]) -> String {
    let mut rows = vec![cells(["NAME", "USED", "AVAILABLE", "MOUNTED ON"])];
    for fs in list {
        let points: Vec<_> = fs.mountpoints.iter().map(|p| clean(&p.display().to_string())).collect();
        let points = if points.is_empty() { "-".to_owned() } else { points.join(", ") };
        rows.push(vec![fs.name.to_string(), format_bytes(fs.used_bytes), format_bytes(fs.available_bytes), points]);
    }
    table(&rows, &[1, 2])
}

/// `volume list`.
#[must_use]
pub fn volumes(list: &[VolumeInfo]) -> String {
    if list.is_empty() {
        return "no volumes; `qrvsa volume create POOL/VOL SIZE` makes one\n".to_owned();
    }
    let mut rows = vec![cells(["NAME", "SIZE", "ALLOCATED", "USE", "BLOCK", "RECORD", "KIND"])];
    for v in list {
        rows.push(vec![
            v.name.to_string(),
            format_bytes(v.size_bytes),
            format_bytes(v.allocated_bytes),
            percent(v.allocated_bytes, v.size_bytes),
            v.block_bytes.to_string(),
            format_bytes(u64::from(v.record_bytes)),
            (if v.reserve { "reserved" } else { "thin" }).to_owned(),
        ]);
    }
    table(&rows, &[1, 2, 3, 4, 5])
}

/// `volume show`.
#[must_use]
pub fn volume(v: &VolumeInfo) -> String {
    let size = |bytes: u64| format!("{} ({bytes} bytes)", format_bytes(bytes));
    let rows = [
        ("volume", v.name.to_string()),
        ("size", size(v.size_bytes)),
        ("allocated", size(v.allocated_bytes)),
        ("available", size(v.available_bytes)),
        ("provisioning", (if v.reserve { "reserved" } else { "thin" }).to_owned()),
        ("block size", v.block_bytes.to_string()),
        ("record size", format_bytes(u64::from(v.record_bytes))),
        ("id", clean(&v.id)),
        ("naa", clean(&v.naa)),
        ("created", format_time(v.created_unix_s)),
    ];
    table(&rows.map(|(key, value)| vec![key.to_owned(), value]), &[])
}

/// `fs get`.
#[must_use]
pub fn properties(list: &[Property]) -> String {
    let mut rows = vec![cells(["PROPERTY", "VALUE", ""])];
    for p in list {
        let note = if p.read_only { "(read-only)" } else { "" };
        rows.push(vec![clean(&p.key), clean(&p.value), note.to_owned()]);
    }
    table(&rows, &[])
}

/// `mount` without arguments.
#[must_use]
pub fn mounts(list: &[MountInfo]) -> String {
    if list.is_empty() {
        return "nothing is mounted\n".to_owned();
    }
    let mut rows = vec![cells(["FILESYSTEM", "MOUNTED ON", "STATE", "OPTIONS", "NOTE"])];
    for mount in list {
        let options = if mount.options.is_empty() { "-".to_owned() } else { clean(&mount.options.join(",")) };
        let note = if mount.state == MountState::Mounted { String::new() } else { clean(&mount.message) };
        let at = clean(&mount.mountpoint.display().to_string());
        rows.push(vec![mount.source.to_string(), at, mount.state.to_string(), options, note]);
    }
    table(&rows, &[])
}

/// `job list`.
#[must_use]
pub fn jobs(list: &[JobInfo]) -> String {
    if list.is_empty() {
        return "no jobs since the daemon started\n".to_owned();
    }
    let mut rows = vec![cells(["ID", "KIND", "POOL", "STATE", "STARTED", "PROGRESS"])];
    for job in list {
        let started = format_time(job.started_unix_s);
        rows.push(vec![
            clean(&job.id),
            job.kind.to_string(),
            clean(&job.pool),
            job.state.to_string(),
            started,
            job_progress(job),
        ]);
    }
    table(&rows, &[])
}

/// `debug labels`, `debug uberblocks`.
#[must_use]
pub fn debug(entries: &[DebugEntry]) -> String {
    if entries.is_empty() {
        return "nothing of QRVSA is on the device\n".to_owned();
    }
    let mut out = String::new();
    for entry in entries {
        let validity = match (entry.valid, entry.problem.is_empty()) {
            (true, _) => "valid".to_owned(),
            (false, true) => "NOT VALID".to_owned(),
            (false, false) => format!("NOT VALID: {}", clean(&entry.problem)),
        };
        let _ = writeln!(out, "{} at {:#x}: {validity}", clean(&entry.title), entry.offset);
        let width = entry.fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &entry.fields {
            let _ = writeln!(out, "  {:<width$}  {}", clean(name), clean(value));
        }
    }
    out
}

/// `debug locate`.
#[must_use]
pub fn fragments(list: &[Fragment]) -> String {
    if list.is_empty() {
        return "nothing of the file is on a device yet (empty, all holes, or not written out: try `qrvsa pool sync`)\n"
            .to_owned();
    }
    let heading = ["FILE OFFSET", "LENGTH", "COLUMN", "ROLE", "DEVICE", "DEVICE OFFSET", "DEVICE LENGTH"];
    let mut rows = vec![cells(heading)];
    for f in list {
        rows.push(vec![
            f.file_offset.to_string(),
            f.length.to_string(),
            f.column.to_string(),
            f.role.to_string(),
            clean(&f.device.display().to_string()),
            f.device_offset.to_string(),
            f.device_length.to_string(),
        ]);
    }
    table(&rows, &[0, 1, 2, 5, 6])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon's answers as they travel; everything not given has its default.
    fn pool(json: &str) -> PoolStatus {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_degraded_pool() {
        let text = status(&pool(
            r#"{"name":"tank","id":"abc","state":"DEGRADED","geometry":"2+2","message":"device 1 is missing",
            "usable_bytes":4096,"used_bytes":1024,"free_bytes":3072,"raw_bytes":8192,"txg":9,
            "more_failures_survived":1,"bytes_degraded":1024,"damaged_files":["home:/a\u001b[2J"],
            "rebuild":{"id":"j","kind":"rebuild","pool":"tank","state":"running","done_bytes":50,"total_bytes":100,
              "rate_bytes_per_s":10,"eta_s":5},
            "last_scrub":{"id":"s","kind":"scrub","pool":"tank","state":"finished","errors_found":3,"repaired":2,
              "started_unix_s":0,"finished_unix_s":60},
            "devices":[{"index":0,"id":"x","path":"/dev/a","state":"ONLINE","size_bytes":2048,"checksum_errors":3},
                       {"index":1,"id":"y","path":"/dev/b","state":"MISSING","message":"not found"}],
            "warnings":["the pool is nearly full"]}"#,
        ));
        for part in [
            "state: DEGRADED - device 1 is missing",
            "2+2 on 2 devices; survives the failure of 1 more device",
            "1.00 KiB used (25%), 3.00 KiB free of 4.00 KiB; 8.00 KiB raw",
            "1.00 KiB with less than full redundancy, of it 0 B that one more failure would destroy",
            "rebuild: running, 50% (50 B of 100 B), 10 B/s, 5s left, no errors",
            "scrub: finished 1970-01-01 00:01:00 UTC, 3 errors found, 2 repaired",
            "MISSING",
            "home:/a?[2J",
            "Warning: the pool is nearly full",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn a_rebuild_that_failed() {
        let text = status(&pool(
            r#"{"name":"tank","state":"DEGRADED","message":"the last rebuild failed: no answer",
            "failed_rebuild":{"id":"j","kind":"rebuild","pool":"tank","state":"failed","message":"no answer",
              "finished_unix_s":60}}"#,
        ));
        let part =
            "rebuild: failed 1970-01-01 00:01:00 UTC: no answer; export and import the pool, or restart the daemon";
        assert!(text.contains(part), "{text}");
        for (json, said) in [(r#""lost":0"#, "3 errors, nothing lost"), (r#""lost":1"#, "3 errors, 1 unit lost")] {
            let json =
                format!(r#"{{"id":"j","kind":"rebuild","pool":"tank","state":"finished","errors_found":3,{json}}}"#);
            let text = job_end(&serde_json::from_str(&json).unwrap());
            assert!(text.ends_with(said), "{text}");
        }
    }

    #[test]
    fn a_pool_that_is_not_imported() {
        let json = r#"{"name":"tank","state":"FAULTED","message":"no device","warnings":["not imported"]}"#;
        let text = status(&pool(json));
        assert!(text.contains("FAULTED - no device") && text.contains("Warning: not imported"), "{text}");
        assert!(!text.contains("space") && !text.contains("No damaged"), "{text}");
        let list = pools(&[pool(json).summary]);
        assert!(list.lines().nth(1).unwrap().starts_with("tank  FAULTED  -"), "{list}");
    }

    #[test]
    fn empty_lists_say_so() {
        assert!(pools(&[]).contains("pool create"));
        assert!(mounts(&[]).contains("nothing"));
        assert!(jobs(&[]).contains("no jobs"));
        assert!(debug(&[]).contains("nothing"));
        assert!(fragments(&[]).contains("sync"));
    }
}
