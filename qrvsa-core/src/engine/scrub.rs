//! Scrub: every column of every record is read and verified, and repaired from the others.
//!
//! The walk goes tree by tree in key order and holds a pin only for a slice at a time, so that space freed meanwhile comes
//! back. Where it stands is stored with each commit: a scrub survives a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Pool;
use super::commit::POOL_TREE;
use super::pool::damage_key;
use super::status::{Job, JobKind, JobState};
use crate::error::{ErrorKind, Result};
use crate::object::KIND_EXTENT;
use crate::pool::format::entries::MemberState;
use crate::record::context::with_object;
use crate::record::pointer::Pointer;
use crate::tree::{self, Key, Node, NodeStore, Place, Root, Step, Visitor};

/// Bytes verified under one pin.
const SLICE_BYTES: u64 = 32 << 20;

struct Slice<'a> {
    pool: &'a Pool,
    job: &'a Job,
    owner: u64,
    from: Key,
    bytes: u64,
    /// First key of the leaf to go on with.
    next: Option<Key>,
}

impl Slice<'_> {
    fn verify(&mut self, object: u64, pointer: &Pointer) -> Result<()> {
        let verdict = with_object(self.owner, object, || self.pool.records.verify(pointer, true))?;
        self.bytes += verdict.bytes;
        self.job.done.fetch_add(verdict.bytes, Ordering::Relaxed);
        self.job.errors.fetch_add(verdict.errors, Ordering::Relaxed);
        self.job.repaired.fetch_add(verdict.repaired, Ordering::Relaxed);
        self.job.lost.fetch_add(verdict.lost, Ordering::Relaxed);
        self.job.unanswered.fetch_add(verdict.unanswered, Ordering::Relaxed);
        Ok(())
    }
}

impl Visitor for Slice<'_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        if self.bytes >= SLICE_BYTES && place.level == 0 {
            self.next = Some(place.first_key);
            return Ok(Step::Stop);
        }
        // what began before the slice was verified with an earlier one
        if place.first_key >= self.from {
            self.verify(0, place.pointer)?;
        }
        Ok(Step::Into)
    }

    fn node(&mut self, place: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        if place.level == 0 && self.owner != POOL_TREE {
            for (key, value) in node.items() {
                if key.kind == KIND_EXTENT && key >= self.from {
                    let (pointer, _) = Pointer::decode(value)?;
                    self.verify(key.object, &pointer)?;
                }
            }
        }
        Ok(Step::Into)
    }

    fn failed(&mut self, place: &Place<'_>, error: crate::Error) -> Result<()> {
        let counter = if error.kind() == ErrorKind::Io { &self.job.unanswered } else { &self.job.lost };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::error!(pool = %self.pool.name, tree = self.owner, level = place.level, "scrub: unreadable node: {error}");
        Ok(())
    }
}

impl Pool {
    /// Registers a scrub, or goes on with a paused or interrupted one. The caller runs [`Pool::run_scrub`].
    pub fn begin_scrub(&self) -> (Arc<Job>, bool) {
        if let Some(job) = self.jobs.get(JobKind::Scrub)
            && matches!(job.state(), JobState::Running | JobState::Paused)
        {
            let was_running = job.state() == JobState::Running;
            job.request.store(0, Ordering::Release);
            job.set_state(JobState::Running, "");
            return (job, !was_running);
        }
        let job = self.jobs.begin(JobKind::Scrub, self.env.clock.wall_ns());
        self.store_job(&job);
        (job, true)
    }

    /// Runs a scrub to its end, or until it is paused or stopped.
    pub fn run_scrub(&self, job: &Arc<Job>) {
        let known: Vec<(u64, u64)> = self.damaged.lock().keys().copied().collect();
        let result = self.scrub_all(job);
        self.note_damage();
        match result {
            Ok(true) => {
                self.forget_damage(job, known);
                job.finished_ns.store(self.env.clock.wall_ns().max(0) as u64, Ordering::Relaxed);
                job.done
                    .store(job.total.load(Ordering::Relaxed).max(job.done.load(Ordering::Relaxed)), Ordering::Relaxed);
                match job.unanswered.load(Ordering::Relaxed) {
                    0 => job.set_state(JobState::Finished, ""),
                    n => job.set_state(
                        JobState::Failed,
                        format!(
                            "it went through everything, but too few devices have answered for {n} units in time; scrub \
                             again when they do"
                        ),
                    ),
                }
            }
            Ok(false) => {
                let state = if job.request.load(Ordering::Acquire) == 1 { JobState::Paused } else { JobState::Stopped };
                if state == JobState::Stopped {
                    job.finished_ns.store(self.env.clock.wall_ns().max(0) as u64, Ordering::Relaxed);
                }
                job.set_state(state, "");
            }
            Err(e) => {
                job.finished_ns.store(self.env.clock.wall_ns().max(0) as u64, Ordering::Relaxed);
                job.set_state(JobState::Failed, e.to_string());
            }
        }
        self.store_job(job);
        self.wake_committer();
    }

    /// After a scrub that verified everything and lost nothing, with all devices there: what was damaged before is deleted,
    /// overwritten or readable again.
    fn forget_damage(&self, job: &Job, known: Vec<(u64, u64)>) {
        let all_there = self.space.members().iter().all(|m| m.state() == MemberState::Removed || m.in_service());
        let nothing = |count: &AtomicU64| count.load(Ordering::Relaxed) == 0;
        if !(nothing(&job.lost) && nothing(&job.unanswered) && all_there) {
            return;
        }
        let mut damaged = self.damaged.lock();
        for key in known {
            if damaged.remove(&key).is_some() {
                self.put_pool_item(damage_key(key), None);
            }
        }
    }

    /// True when all was walked, false when it was asked to pause or stop.
    fn scrub_all(&self, job: &Arc<Job>) -> Result<bool> {
        // what is only in memory is not what a scrub is about, but what was just written should be seen
        if !self.options.read_only {
            use crate::dataset::Host;
            self.commit_now()?;
        }
        let total: u64 = self.space.allocated_bytes().iter().sum();
        job.total.store(total.max(job.done.load(Ordering::Relaxed)), Ordering::Relaxed);
        *job.rate_base.lock() = (self.env.clock.monotonic_ns(), job.done.load(Ordering::Relaxed));
        loop {
            if job.request.load(Ordering::Acquire) != 0 {
                return Ok(false);
            }
            let (owner, from) = *job.cursor.lock();
            let began = self.env.clock.monotonic_ns();
            let mut slice = Slice { pool: self, job, owner, from, bytes: 0, next: None };
            {
                let _pin = self.space.epoch.pin();
                self.walk_tree(owner, from, &mut slice)?;
            }
            let (bytes, next) = (slice.bytes, slice.next);
            let place = match next {
                Some(key) => (owner, key),
                None => match self.tree_after(owner) {
                    Some(tree) => (tree, Key::MIN),
                    None => return Ok(true),
                },
            };
            *job.cursor.lock() = place;
            self.store_job(job);
            self.pace(began, bytes);
        }
    }

    /// Waits as long as the rate limit asks for.
    pub(crate) fn pace(&self, began_ns: u64, bytes: u64) {
        let rate = self.options.background_rate;
        if rate == 0 {
            return;
        }
        let wanted = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let took = u128::from(self.env.clock.monotonic_ns().saturating_sub(began_ns));
        if wanted > took {
            let wait = u64::try_from(wanted - took).unwrap_or(u64::MAX).min(5_000_000_000);
            self.env.clock.sleep(Duration::from_nanos(wait));
        }
    }

    pub(super) fn tree_after(&self, owner: u64) -> Option<u64> {
        self.datasets.read().keys().find(|id| **id > owner).copied()
    }

    /// Walks a tree as readers see it now.
    pub(super) fn walk_tree(&self, owner: u64, from: Key, visitor: &mut dyn Visitor) -> Result<()> {
        if owner == POOL_TREE {
            let root: Arc<Root> = self.root.load_full();
            return tree::walk(&*self.system as &dyn NodeStore, &root, from, visitor);
        }
        let Some(dataset) = self.datasets.read().get(&owner).cloned() else { return Ok(()) };
        let view = dataset.items.view();
        tree::walk(&*self.meta as &dyn NodeStore, &view.root, from, visitor)
    }
}
