//! Checks as background jobs. Scrubs and rebuilds are the engine's own jobs; a check only reads, so the daemon runs it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use qrvsa_api::{ApiError, ErrorKind, JobInfo, JobKind, JobState};

use crate::engine::Engine;

/// Ended checks that are remembered.
const ENDED_MAX: usize = 64;

/// The checks of this run of the daemon.
#[derive(Default)]
pub struct Checks {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    checks: BTreeMap<u64, Arc<Check>>,
}

struct Check {
    deep: bool,
    stop: AtomicBool,
    info: Mutex<JobInfo>,
    ended: Condvar,
}

/// Seconds since the epoch.
#[must_use]
pub fn unix_now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

impl Checks {
    /// Starts a check of a pool, or returns the one that runs.
    ///
    /// # Errors
    /// `Busy` when one of the other depth runs.
    pub fn start(&self, engine: Arc<dyn Engine>, pool: &str, deep: bool) -> Result<JobInfo, ApiError> {
        let (id, check) = {
            let mut inner = self.inner.lock();
            for check in inner.checks.values() {
                let info = check.info.lock();
                if info.pool == pool && !info.state.is_final() {
                    if check.deep == deep {
                        return Ok(info.clone());
                    }
                    return Err(ApiError::busy(format!("a check of pool {pool} of the other depth is running"))
                        .with_hint(format!("wait for it: `qrvsa job wait {}`", info.id)));
                }
            }
            inner.last += 1;
            let id = inner.last;
            let check = Arc::new(Check {
                deep,
                stop: AtomicBool::new(false),
                info: Mutex::new(JobInfo {
                    id: format!("check-{id}"),
                    kind: JobKind::Check,
                    pool: pool.to_owned(),
                    state: JobState::Running,
                    done_bytes: 0,
                    total_bytes: 0,
                    rate_bytes_per_s: 0,
                    eta_s: None,
                    errors_found: 0,
                    repaired: 0,
                    lost: 0,
                    started_unix_s: unix_now_s(),
                    finished_unix_s: None,
                    message: if deep { "deep: metadata and data".to_owned() } else { "metadata".to_owned() },
                    report: None,
                }),
                ended: Condvar::new(),
            });
            inner.checks.insert(id, Arc::clone(&check));
            inner.forget_old();
            (id, check)
        };
        let running = Arc::clone(&check);
        let spawned = std::thread::Builder::new().name(format!("check-{id}")).spawn(move || running.run(&*engine));
        if let Err(e) = spawned {
            self.inner.lock().checks.remove(&id);
            return Err(ApiError::new(ErrorKind::Internal, format!("cannot start a thread for the check: {e}")));
        }
        let info = check.info.lock().clone();
        Ok(info)
    }

    /// All checks, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<JobInfo> {
        let checks: Vec<_> = self.inner.lock().checks.values().cloned().collect();
        checks.iter().map(|check| check.info.lock().clone()).collect()
    }

    /// Stops the checks of a pool, or of all pools; returns whether they ended in time.
    pub fn stop(&self, pool: Option<&str>, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let checks: Vec<_> = self.inner.lock().checks.values().cloned().collect();
        let mine = |check: &Check| pool.is_none_or(|pool| check.info.lock().pool == pool);
        let checks: Vec<_> = checks.into_iter().filter(|check| mine(check)).collect();
        for check in &checks {
            check.stop.store(true, Ordering::Relaxed);
        }
        checks.iter().all(|check| {
            let mut info = check.info.lock();
            while !info.state.is_final() {
                if check.ended.wait_until(&mut info, deadline).timed_out() {
                    return info.state.is_final();
                }
            }
            true
        })
    }
}

impl Inner {
    fn forget_old(&mut self) {
        let ended: Vec<u64> =
            self.checks.iter().filter(|(_, c)| c.info.lock().state.is_final()).map(|(id, _)| *id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
            self.checks.remove(id);
        }
    }
}

impl Check {
    fn run(&self, engine: &dyn Engine) {
        let started = Instant::now();
        let pool = self.info.lock().pool.clone();
        let mut told_to_end = false;
        let mut progress = |p: crate::engine::CheckProgress| {
            let mut info = self.info.lock();
            info.done_bytes = p.done_bytes;
            info.total_bytes = p.total_bytes;
            info.errors_found = p.problems;
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            info.rate_bytes_per_s = p.done_bytes.saturating_mul(1000) / elapsed_ms;
            info.eta_s = (p.total_bytes > 0 && info.rate_bytes_per_s > 0)
                .then(|| p.total_bytes.saturating_sub(p.done_bytes) / info.rate_bytes_per_s);
            told_to_end = self.stop.load(Ordering::Relaxed);
            !told_to_end
        };
        // A panic in the checker must not leave a job that runs for ever.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| engine.check(&pool, self.deep, &mut progress)));
        let mut info = self.info.lock();
        info.eta_s = None;
        info.finished_unix_s = Some(unix_now_s());
        match result {
            // Whatever it was told: it went through, and this is what it found.
            Ok(Ok(report)) => {
                info.state = JobState::Finished;
                info.errors_found = u64::try_from(report.problems.len()).unwrap_or(u64::MAX);
                info.total_bytes = info.total_bytes.max(info.done_bytes);
                info.done_bytes = info.total_bytes;
                info.report = Some(report);
            }
            Ok(Err(_)) if told_to_end => {
                info.state = JobState::Stopped;
                info.message = "stopped before its end".to_owned();
            }
            Ok(Err(e)) => {
                info.state = JobState::Failed;
                info.message = e.to_string();
            }
            Err(_) => {
                info.state = JobState::Failed;
                info.message = "the checker itself failed; the log of the daemon has the details".to_owned();
            }
        }
        self.ended.notify_all();
    }
}
