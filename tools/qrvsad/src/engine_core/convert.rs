//! The engine's facts in the words of the interface.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use qrvsa_api as api;
use qrvsa_core::engine::admin::{Fragment, Role};
use qrvsa_core::engine::status::{DeviceStatus, Job, JobKind, JobState, Status};
use qrvsa_core::pool::format::entries::MemberState;

use super::devices::LeftOut;
use super::running::Running;

/// What the engine says of a member that it was not given at its import.
const NOT_FOUND: &str = "not found at import";

/// The interface's id of a job.
pub fn job_id(running: &Running, job: &Job) -> String {
    let kind = match job.kind {
        JobKind::Scrub => "scrub",
        JobKind::Rebuild => "rebuild",
    };
    format!("{kind}-{:08x}-{}", (running.pool.id >> 96) as u32, job.id)
}

/// A job.
pub fn job(running: &Running, job: &Job) -> api::JobInfo {
    let (done, total) = (job.done.load(Relaxed), job.total.load(Relaxed));
    let state = match job.state() {
        JobState::Running => api::JobState::Running,
        JobState::Paused => api::JobState::Paused,
        JobState::Finished => api::JobState::Finished,
        JobState::Stopped => api::JobState::Stopped,
        JobState::Failed => api::JobState::Failed,
    };
    let rate = if state == api::JobState::Running { running.pool.job_rate(job) } else { 0 };
    let finished = job.finished_ns.load(Relaxed) / 1_000_000_000;
    api::JobInfo {
        id: job_id(running, job),
        kind: match job.kind {
            JobKind::Scrub => api::JobKind::Scrub,
            JobKind::Rebuild => api::JobKind::Rebuild,
        },
        pool: running.pool.name.clone(),
        state,
        done_bytes: done,
        total_bytes: total.max(done),
        rate_bytes_per_s: rate,
        eta_s: (rate > 0).then(|| total.saturating_sub(done) / rate),
        errors_found: job.errors.load(Relaxed),
        repaired: job.repaired.load(Relaxed),
        started_unix_s: job.started_ns / 1_000_000_000,
        finished_unix_s: i64::try_from(finished).ok().filter(|s| *s > 0),
        lost: job.lost.load(Relaxed),
        message: match job.lost.load(Relaxed) {
            0 => job.message(),
            n => format!("{n} units are damaged beyond repair {}", job.message()).trim_end().to_owned(),
        },
        report: None,
    }
}

fn device(d: &DeviceStatus, left_out: &[LeftOut]) -> api::DeviceStatus {
    let errors = d.read_errors + d.write_errors + d.checksum_errors;
    // as good as not found for the pool, but there is more to say
    let out = left_out.iter().find(|out| !d.in_service && d.message == NOT_FOUND && out.id == Some(d.id));
    let missing = out.is_none() && (d.message.contains("not found") || d.message.contains("is gone"));
    let state = match d.state {
        MemberState::Online | MemberState::Leaving if d.in_service => {
            if errors > 0 {
                api::DeviceState::Degraded
            } else {
                api::DeviceState::Online
            }
        }
        MemberState::Rebuilding if d.in_service => api::DeviceState::Rebuilding,
        MemberState::Offline => api::DeviceState::Offline,
        _ if missing => api::DeviceState::Missing,
        _ => api::DeviceState::Faulted,
    };
    let mut message = out.map_or_else(
        || d.message.clone(),
        |out| format!("left out at import: {}; 'pool online' brings it back when it can be used", out.error),
    );
    if message.is_empty() && errors > 0 {
        message = "it returned errors that were repaired from the other devices".to_owned();
        if d.checksum_errors + d.read_errors > d.repaired {
            message = "it returned errors; run a scrub".to_owned();
        }
    }
    api::DeviceStatus {
        index: u32::from(d.index),
        id: format!("{:032x}", d.id),
        path: PathBuf::from(&d.path),
        state,
        read_errors: d.read_errors,
        write_errors: d.write_errors,
        checksum_errors: d.checksum_errors,
        repaired: d.repaired,
        size_bytes: d.size_bytes,
        allocated_bytes: d.allocated_bytes,
        kind: d.kind.to_owned(),
        host_taken_bytes: d.host.map(|h| h.taken_bytes),
        host_free_bytes: d.host.map(|h| h.free_bytes),
        message,
    }
}

/// A pool's state, and what there is to say about it.
fn state(s: &Status, rebuilds: bool, failed: Option<&api::JobInfo>) -> (api::PoolState, String) {
    if let Some(why) = &s.suspended {
        return (api::PoolState::Suspended, format!("stopped writing: {why}"));
    }
    let out: Vec<&str> = s.devices.iter().filter(|d| !d.in_service).map(|d| d.path.as_str()).collect();
    if s.bytes_degraded == 0 && out.is_empty() && failed.is_none() {
        return (api::PoolState::Online, String::new());
    }
    let mut text = Vec::new();
    if !out.is_empty() {
        text.push(format!("out of service: {}", out.join(", ")));
    }
    match failed {
        Some(job) => text.push(format!("the last rebuild failed: {}", job.message)),
        None if rebuilds && out.is_empty() => text.push("data is being rebuilt".to_owned()),
        None if out.is_empty() => text.push("data has less than full redundancy".to_owned()),
        None => {}
    }
    (api::PoolState::Degraded, text.join("; "))
}

/// A pool's status.
pub fn status(running: &Running) -> api::PoolStatus {
    let pool = &running.pool;
    let s = pool.status();
    let jobs = pool.jobs();
    let info = |kind: JobKind| jobs.get(kind).map(|j| job(running, &j));
    let (rebuild, failed_rebuild) = match info(JobKind::Rebuild) {
        // what it left undone may have been dissolved or given up since
        Some(j) if j.state.is_final() => {
            (None, Some(j).filter(|j| j.state == api::JobState::Failed && pool.needs_rebuild()))
        }
        other => (other, None),
    };
    let (state, message) = state(&s, rebuild.is_some(), failed_rebuild.as_ref());
    let scrub = info(JobKind::Scrub);
    let (scrub, last_scrub) = match scrub {
        Some(j) if j.state.is_final() => (None, Some(j)),
        other => (other, None),
    };
    api::PoolStatus {
        summary: api::PoolSummary {
            name: pool.name.clone(),
            id: format!("{:032x}", pool.id),
            state,
            geometry: pool.geometry().to_string(),
            raw_bytes: s.raw_bytes,
            usable_bytes: s.usable_bytes,
            used_bytes: s.used_bytes,
            free_bytes: s.free_bytes,
            message,
        },
        txg: s.txg,
        more_failures_survived: s.more_failures_survived,
        bytes_degraded: s.bytes_degraded,
        bytes_without_redundancy: s.bytes_without_redundancy,
        bytes_lost: s.bytes_lost,
        devices: s.devices.iter().map(|d| device(d, &running.left_out)).collect(),
        scrub,
        rebuild,
        failed_rebuild,
        last_scrub,
        damaged_files: s.damaged,
        warnings: s.warnings,
    }
}

/// A fragment.
pub fn fragment(f: Fragment) -> api::Fragment {
    api::Fragment {
        file_offset: f.file_offset,
        length: f.record_bytes,
        column: f.column,
        role: match f.role {
            Role::Data => api::FragmentRole::Data,
            Role::Parity => api::FragmentRole::Parity,
            Role::Copy => api::FragmentRole::Copy,
        },
        device: PathBuf::from(f.device),
        device_offset: f.device_offset,
        device_length: f.len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The status says that a rebuild runs only while one does, and tells of one that failed.
    #[test]
    fn a_rebuild_that_failed_does_not_read_as_one_that_runs() {
        let device = |in_service| DeviceStatus {
            index: 0,
            id: 1,
            path: "/dev/a".to_owned(),
            state: MemberState::Rebuilding,
            in_service,
            read_errors: 0,
            write_errors: 0,
            checksum_errors: 0,
            repaired: 0,
            size_bytes: 0,
            allocated_bytes: 0,
            kind: "file",
            host: None,
            message: String::new(),
        };
        let mut s = Status {
            txg: 1,
            usable_bytes: 0,
            used_bytes: 0,
            free_bytes: 0,
            raw_bytes: 0,
            more_failures_survived: 0,
            bytes_degraded: 4096,
            bytes_without_redundancy: 0,
            bytes_lost: 0,
            devices: vec![device(true)],
            damaged: Vec::new(),
            suspended: None,
            warnings: Vec::new(),
        };
        let failed: api::JobInfo = serde_json::from_str(
            r#"{"id":"r","kind":"rebuild","pool":"p","state":"failed","message":"no answer in time"}"#,
        )
        .unwrap();
        let says = |s: &Status, rebuilds, failed: Option<&api::JobInfo>| {
            let (state, text) = state(s, rebuilds, failed);
            assert_eq!(state, api::PoolState::Degraded);
            text
        };
        assert_eq!(says(&s, true, None), "data is being rebuilt");
        assert_eq!(says(&s, false, None), "data has less than full redundancy");
        assert_eq!(says(&s, false, Some(&failed)), "the last rebuild failed: no answer in time");
        s.bytes_degraded = 0;
        assert_eq!(says(&s, false, Some(&failed)), "the last rebuild failed: no answer in time");
        assert_eq!(state(&s, false, None).0, api::PoolState::Online);
        s.devices.push(device(false));
        assert_eq!(says(&s, false, None), "out of service: /dev/a");
        assert_eq!(
            says(&s, false, Some(&failed)),
            "out of service: /dev/a; the last rebuild failed: no answer in time"
        );
    }
}
