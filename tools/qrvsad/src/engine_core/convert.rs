//! The engine's facts in the words of the interface.

use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use qrvsa_api as api;
use qrvsa_core::engine::admin::{Fragment, Role};
use qrvsa_core::engine::status::{DeviceStatus, Job, JobKind, JobState};
use qrvsa_core::pool::format::entries::MemberState;

use super::running::Running;

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
        message: match job.lost.load(Relaxed) {
            0 => job.message(),
            n => format!("{n} units are damaged beyond repair {}", job.message()).trim_end().to_owned(),
        },
        report: None,
    }
}

fn device(d: &DeviceStatus) -> api::DeviceStatus {
    let errors = d.read_errors + d.write_errors + d.checksum_errors;
    let missing = d.message.contains("not found") || d.message.contains("is gone");
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
    let mut message = d.message.clone();
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

/// A pool's status.
pub fn status(running: &Running) -> api::PoolStatus {
    let pool = &running.pool;
    let s = pool.status();
    let out: Vec<&DeviceStatus> = s.devices.iter().filter(|d| !d.in_service).collect();
    let (state, message) = if let Some(why) = &s.suspended {
        (api::PoolState::Suspended, format!("stopped writing: {why}"))
    } else if s.bytes_degraded > 0 || !out.is_empty() {
        let names: Vec<&str> = out.iter().map(|d| d.path.as_str()).collect();
        let text = match names.is_empty() {
            true => "data is being rebuilt".to_owned(),
            false => format!("out of service: {}", names.join(", ")),
        };
        (api::PoolState::Degraded, text)
    } else {
        (api::PoolState::Online, String::new())
    };
    let jobs = pool.jobs();
    let info = |kind: JobKind| jobs.get(kind).map(|j| job(running, &j));
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
        devices: s.devices.iter().map(device).collect(),
        scrub,
        rebuild: info(JobKind::Rebuild).filter(|j| !j.state.is_final()),
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
