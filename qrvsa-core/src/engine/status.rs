//! How the pool is: the truth about devices, space, redundancy, jobs and damage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Pool;
use crate::buf::BLOCK_SIZE;
use crate::bytes::{Reader, Writer};
use crate::error::Result;
use crate::pool::format::entries::{Class, MemberState};
use crate::tree::Key;

/// A background job's kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum JobKind {
    /// Verify everything, repair what is wrong.
    Scrub,
    /// Fill stale columns.
    Rebuild,
}

/// A job's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// Under way.
    Running,
    /// Paused.
    Paused,
    /// At its end.
    Finished,
    /// Ended on request.
    Stopped,
    /// Cannot go on.
    Failed,
}

/// A job.
pub struct Job {
    /// Number, unique while the pool is open.
    pub id: u64,
    /// Kind.
    pub kind: JobKind,
    state: Mutex<(JobState, String)>,
    /// 0 go on, 1 pause, 2 stop.
    pub(crate) request: AtomicU8,
    /// Paused by the end of the daemon, not by anybody's wish.
    pub(crate) interrupted: std::sync::atomic::AtomicBool,
    /// Bytes done.
    pub done: AtomicU64,
    /// Bytes to do, an estimate.
    pub total: AtomicU64,
    /// Errors found.
    pub errors: AtomicU64,
    /// Errors repaired.
    pub repaired: AtomicU64,
    /// Units lost for good.
    pub lost: AtomicU64,
    /// Units (and tree nodes) of a scrub that too few devices have answered for in time: nothing is known of them.
    pub unanswered: AtomicU64,
    /// Wall time of the start, nanoseconds.
    pub started_ns: i64,
    /// Wall time of the end, 0 before.
    pub finished_ns: AtomicU64,
    /// Where it stands, for a resumption: tree owner and key.
    pub(crate) cursor: Mutex<(u64, Key)>,
    /// (monotonic time, done) when it last began to run, for the rate.
    pub(crate) rate_base: Mutex<(u64, u64)>,
}

impl Job {
    fn new(id: u64, kind: JobKind, started_ns: i64) -> Job {
        Job {
            id,
            kind,
            state: Mutex::new((JobState::Running, String::new())),
            request: AtomicU8::new(0),
            interrupted: std::sync::atomic::AtomicBool::new(false),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            repaired: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            started_ns,
            finished_ns: AtomicU64::new(0),
            cursor: Mutex::new((0, Key::MIN)),
            rate_base: Mutex::new((0, 0)),
        }
    }

    /// State.
    pub fn state(&self) -> JobState {
        self.state.lock().0
    }

    /// What there is to say about the state.
    pub fn message(&self) -> String {
        self.state.lock().1.clone()
    }

    /// Asks the job to pause.
    pub fn pause(&self) {
        self.request.store(1, Ordering::Release);
    }

    /// Asks the job to pause because the daemon ends.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.pause();
    }

    /// Whether the daemon's end asked it to pause.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Asks the job to end.
    pub fn stop(&self) {
        self.request.store(2, Ordering::Release);
    }

    pub(crate) fn set_state(&self, state: JobState, message: impl Into<String>) {
        *self.state.lock() = (state, message.into());
    }

    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let state = match self.state() {
            JobState::Running => 0u8,
            JobState::Paused => 1,
            JobState::Finished => 2,
            JobState::Stopped => 3,
            JobState::Failed => 4,
        };
        let (owner, key) = *self.cursor.lock();
        w.u8(state).u64(owner).raw(&key.to_bytes()).i64(self.started_ns);
        for c in [&self.done, &self.total, &self.errors, &self.repaired, &self.lost, &self.finished_ns] {
            w.u64(c.load(Ordering::Relaxed));
        }
        w.u64(self.unanswered.load(Ordering::Relaxed));
        w.finish()
    }

    fn decode(id: u64, kind: JobKind, bytes: &[u8]) -> Result<Job> {
        let mut r = Reader::new(bytes, "job entry");
        let state = match r.u8()? {
            0 => JobState::Running,
            1 => JobState::Paused,
            2 => JobState::Finished,
            3 => JobState::Stopped,
            _ => JobState::Failed,
        };
        let owner = r.u64()?;
        let key = Key::from_bytes(r.raw(17)?.try_into().expect("seventeen bytes"));
        let job = Job::new(id, kind, r.i64()?);
        for c in [&job.done, &job.total, &job.errors, &job.repaired, &job.lost, &job.finished_ns] {
            c.store(r.u64()?, Ordering::Relaxed);
        }
        // entries stored before it was counted end here
        job.unanswered.store(r.u64().unwrap_or(0), Ordering::Relaxed);
        *job.cursor.lock() = (owner, key);
        job.set_state(state, "");
        Ok(job)
    }
}

/// The jobs of a pool.
#[derive(Default)]
pub struct Jobs {
    list: Mutex<BTreeMap<JobKind, Arc<Job>>>,
    next_id: AtomicU64,
}

fn job_key(kind: JobKind) -> Key {
    let offset = match kind {
        JobKind::Scrub => 1,
        JobKind::Rebuild => 2,
    };
    Key::new(0, crate::pool::format::entries::kind::JOB, offset)
}

impl Jobs {
    /// The newest job of a kind.
    pub fn get(&self, kind: JobKind) -> Option<Arc<Job>> {
        self.list.lock().get(&kind).cloned()
    }

    /// All jobs.
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.list.lock().values().cloned().collect()
    }

    /// Registers a new job of a kind.
    pub(crate) fn begin(&self, kind: JobKind, now_ns: i64) -> Arc<Job> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let job = Arc::new(Job::new(id, kind, now_ns));
        self.list.lock().insert(kind, job.clone());
        job
    }

    /// Jobs as the pool tree had them at import.
    pub(crate) fn restore(&self, stored: Vec<(u64, Vec<u8>)>) {
        for (offset, bytes) in stored {
            let kind = match offset {
                1 => JobKind::Scrub,
                2 => JobKind::Rebuild,
                _ => continue,
            };
            let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
            match Job::decode(id, kind, &bytes) {
                Ok(job) => {
                    self.list.lock().insert(kind, Arc::new(job));
                }
                Err(e) => tracing::warn!("a stored job is unreadable: {e}"),
            }
        }
    }
}

/// A device of a pool, for status.
#[derive(Clone, Debug)]
pub struct DeviceStatus {
    /// Number.
    pub index: u16,
    /// Identity.
    pub id: u128,
    /// Where it is or was.
    pub path: String,
    /// State as stored.
    pub state: MemberState,
    /// Present and in service.
    pub in_service: bool,
    /// Failed reads.
    pub read_errors: u64,
    /// Failed writes and flushes.
    pub write_errors: u64,
    /// Checksum mismatches.
    pub checksum_errors: u64,
    /// Units repaired.
    pub repaired: u64,
    /// Bytes the pool uses of it.
    pub size_bytes: u64,
    /// Bytes of it that hold something.
    pub allocated_bytes: u64,
    /// What backs it, while it is present: `"block"`, `"file"`, `"vhdx"`.
    pub kind: &'static str,
    /// The filesystem under a device that grows.
    pub host: Option<crate::device::HostSpace>,
    /// Why it is in its state.
    pub message: String,
}

/// A pool, for status.
#[derive(Clone, Debug)]
pub struct Status {
    /// Newest durable transaction group.
    pub txg: u64,
    /// Usable bytes.
    pub usable_bytes: u64,
    /// Of them, used.
    pub used_bytes: u64,
    /// Of them, free.
    pub free_bytes: u64,
    /// Bytes on all devices.
    pub raw_bytes: u64,
    /// How many more devices may fail.
    pub more_failures_survived: u32,
    /// Bytes of records with less than full redundancy.
    pub bytes_degraded: u64,
    /// Bytes of records without any redundancy left.
    pub bytes_without_redundancy: u64,
    /// Bytes of records in groups that lost more columns than their parity.
    pub bytes_lost: u64,
    /// Devices.
    pub devices: Vec<DeviceStatus>,
    /// Objects that lost data.
    pub damaged: Vec<String>,
    /// Why the pool stopped writing.
    pub suspended: Option<String>,
    /// What the administrator should know.
    pub warnings: Vec<String>,
}

/// A container that has still to grow, on a filesystem that has hardly anything left.
fn host_nearly_full(device: &DeviceStatus) -> Option<String> {
    const LITTLE: u64 = 1 << 30;
    let host = device.host?;
    let growth = device.size_bytes.saturating_sub(device.allocated_bytes);
    (host.free_bytes < growth.min(LITTLE)).then(|| {
        let free = crate::device::size::format_size(host.free_bytes);
        format!(
            "{} can grow by {free} only: the filesystem that holds it is nearly full; make room there, or move the file",
            device.path
        )
    })
}

impl Pool {
    /// Stores where a job stands with the next commit.
    pub(crate) fn store_job(&self, job: &Job) {
        self.put_pool_item(job_key(job.kind), Some(job.encode()));
    }

    /// Bytes a second of a job since it last began to run.
    pub fn job_rate(&self, job: &Job) -> u64 {
        let (began, base) = *job.rate_base.lock();
        let took = self.env.clock.monotonic_ns().saturating_sub(began).max(1);
        let done = job.done.load(Ordering::Relaxed).saturating_sub(base);
        u64::try_from(u128::from(done) * 1_000_000_000 / u128::from(took)).unwrap_or(u64::MAX)
    }

    /// Ends or pauses a job that no thread runs.
    pub fn end_idle_job(&self, job: &Job, pause: bool) {
        if !pause {
            job.finished_ns.store(self.env.clock.wall_ns().max(0) as u64, Ordering::Relaxed);
        }
        job.set_state(if pause { JobState::Paused } else { JobState::Stopped }, "");
        self.store_job(job);
    }

    /// The daemon stops: a job that was running goes on at the next import.
    pub fn mark_interrupted(&self, job: &Job) {
        if job.state() == JobState::Paused && job.interrupted.load(Ordering::Acquire) {
            job.set_state(JobState::Running, "");
            self.store_job(job);
        }
    }

    /// Wakes the committer, so that it looks whether it shall stop.
    pub fn wake_up(&self) {
        self.wake_committer();
    }

    /// Bytes that a dataset's contents and items take, before redundancy.
    ///
    /// # Errors
    /// When its tree cannot be read.
    pub fn dataset_used_bytes(&self, dataset: &crate::dataset::Dataset) -> Result<u64> {
        /// Items looked at under one pin: what is freed meanwhile comes back when it is given up.
        const AT_ONCE: usize = 4096;
        let mut blocks = 0;
        let mut from = Some(Key::MIN);
        let mut nodes = 0;
        while let Some(first) = from.take() {
            let _pin = self.space.epoch.pin();
            let view = dataset.items.view();
            nodes = view.root.nodes;
            let mut cursor = crate::tree::Cursor::new(&*self.meta, &view.root, first, Key::MAX);
            let mut seen = 0;
            while let Some((key, value)) = cursor.peek()? {
                if seen == AT_ONCE {
                    from = Some(key);
                    break;
                }
                seen += 1;
                if key.kind == crate::object::KIND_SPACE
                    && let Some(bytes) = value.get(..8)
                {
                    blocks += u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                }
                cursor.advance();
            }
        }
        Ok((blocks + nodes * u64::from(crate::pool::space::NODE_ROWS)) * BLOCK_SIZE as u64)
    }

    /// The jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// How the pool is now.
    pub fn status(&self) -> Status {
        self.check_devices();
        self.note_damage();
        let capacity = self.space.capacity();
        let block = BLOCK_SIZE as u64;
        let free = (capacity.free + capacity.pending).min(capacity.total);
        let free = free.saturating_sub(self.space.reserved() + self.space.claimed());
        let allocated = self.space.allocated_bytes();
        let members = self.space.members();
        let devices: Vec<DeviceStatus> = members
            .iter()
            .filter(|m| m.state() != MemberState::Removed)
            .map(|m| DeviceStatus {
                index: m.index,
                id: m.device_id,
                path: m.path(),
                state: m.state(),
                in_service: m.in_service(),
                read_errors: m.read_errors.load(Ordering::Relaxed),
                write_errors: m.write_errors.load(Ordering::Relaxed),
                checksum_errors: m.checksum_errors.load(Ordering::Relaxed),
                repaired: m.repaired.load(Ordering::Relaxed),
                size_bytes: m.size_bytes,
                allocated_bytes: allocated[usize::from(m.index)],
                kind: m.device().map_or("", |d| d.info().kind),
                host: m.device().and_then(|d| d.host_space()),
                message: m.message(),
            })
            .collect();
        let (mut degraded, mut bare, mut lost) = (0u64, 0u64, 0u64);
        let mut survived = u32::from(self.space.geometry.parity);
        for group in self.space.groups() {
            if matches!(group.class, Class::Log) {
                continue;
            }
            let bytes = u64::from(group.used_rows()) * u64::from(group.width) * block;
            let out = group.columns.read().iter().filter(|c| self.locate_column(c).is_none()).count() as u32;
            let parity = u32::from(group.parity);
            if bytes > 0 {
                survived = survived.min(parity.saturating_sub(out));
            }
            if out > 0 {
                degraded += bytes;
            }
            if out >= parity {
                bare += bytes;
            }
            if out > parity {
                lost += bytes;
            }
        }
        let mut warnings = self.warnings.lock().clone();
        warnings.extend(devices.iter().filter_map(host_nearly_full));
        Status {
            txg: self.committed_txg(),
            usable_bytes: capacity.total * block,
            used_bytes: (capacity.total - capacity.total.min(free)) * block,
            free_bytes: free * block,
            raw_bytes: devices.iter().map(|d| d.size_bytes).sum(),
            more_failures_survived: survived,
            bytes_degraded: degraded,
            bytes_without_redundancy: bare,
            bytes_lost: lost,
            devices,
            damaged: self.damaged.lock().values().cloned().collect(),
            suspended: self.suspended(),
            warnings,
        }
    }

    fn locate_column(&self, column: &crate::pool::format::entries::ColumnEntry) -> Option<()> {
        self.records.locate(column, 0, false).map(|_| ())
    }
}
