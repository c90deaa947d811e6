//! Threads for commands that wait. They are made when work comes, and end when there has been none for a while.
//!
//! Each logical unit has a lane of its own. Storage that hangs takes all threads that it is given, so beyond the bound each lane
//! still gets some of its own: one hung unit, or one that is being formatted, keeps nobody else waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::session::task::TaskControl;

/// Work to be done on some thread, unless its task is finished before it begins.
pub(crate) struct Job {
    pub(crate) task: Arc<TaskControl>,
    pub(crate) work: Box<dyn FnOnce() + Send>,
}

/// What jobs of one lane have in common: a number of the target, and the LUN.
pub(crate) type LaneKey = (usize, u64);

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);
/// Threads that a lane gets whatever others do.
const LANE_THREADS_MIN: usize = 8;
/// Threads altogether, as a multiple of the bound.
const THREADS_FACTOR_MAX: usize = 16;
/// Lanes without work that are kept.
const LANES_KEPT: usize = 16;

struct Lane {
    key: LaneKey,
    /// With numbers in the order in which they came.
    queue: VecDeque<(u64, Job)>,
    running: usize,
}

#[derive(Default)]
struct State {
    lanes: Vec<Lane>,
    next: u64,
    running: usize,
    threads: usize,
    /// Threads that sleep, and how many of them were called.
    idle: usize,
    called: usize,
}

impl State {
    fn lane(&mut self, key: LaneKey) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.key == key)
    }

    /// Takes the job that is to run next: of the lane with the fewest that run, the oldest.
    fn take(&mut self, threads_max: usize) -> Option<(LaneKey, Job)> {
        let free = self.running < threads_max;
        let first = |lane: &Lane| lane.queue.front().map(|(number, _)| *number);
        let own = threads_max.min(LANE_THREADS_MIN);
        let may = |lane: &&mut Lane| !lane.queue.is_empty() && (free || lane.running < own);
        let lane = self.lanes.iter_mut().filter(may).min_by_key(|lane| (lane.running, first(lane)))?;
        let (_, job) = lane.queue.pop_front()?;
        lane.running += 1;
        self.running += 1;
        Some((lane.key, job))
    }

    fn done(&mut self, key: LaneKey) {
        self.running -= 1;
        let crowded = self.lanes.len() > LANES_KEPT;
        if let Some(at) = self.lanes.iter().position(|lane| lane.key == key)
            && let Some(lane) = self.lanes.get_mut(at)
        {
            lane.running -= 1;
            if crowded && lane.running == 0 && lane.queue.is_empty() {
                self.lanes.swap_remove(at);
            }
        }
    }
}

/// A bounded pool of threads.
pub(crate) struct Workers {
    threads_max: usize,
    state: Mutex<State>,
    work: Condvar,
}

impl Workers {
    pub(crate) fn new(threads_max: usize) -> Arc<Workers> {
        Arc::new(Workers { threads_max: threads_max.max(1), state: Mutex::default(), work: Condvar::new() })
    }

    /// Queues a job; jobs of a lane begin in their order. Runs it here when not even one thread can be had.
    pub(crate) fn submit(self: &Arc<Self>, key: LaneKey, job: Job) {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        if state.lane(key).is_none() {
            state.lanes.push(Lane { key, queue: VecDeque::new(), running: 0 });
        }
        let Some(lane) = state.lane(key) else { return };
        lane.queue.push_back((number, job));
        let own = self.threads_max.min(LANE_THREADS_MIN);
        // Beyond, those of the lane that run take the others later.
        let in_need = lane.running + lane.queue.len() <= own;
        if state.running >= self.threads_max && !in_need {
            return;
        }
        if state.idle > state.called {
            state.called += 1;
            drop(state);
            self.work.notify_one();
            return;
        }
        let beyond = if in_need { own * state.lanes.len() } else { 0 };
        if state.threads >= (self.threads_max + beyond).min(self.threads_max * THREADS_FACTOR_MAX) {
            return;
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("iscsi-worker".into()).spawn(move || pool.serve());
        if let Err(error) = thread {
            let mut state = self.state.lock();
            state.threads -= 1;
            let alone = if state.threads == 0 { state.take(self.threads_max) } else { None };
            drop(state);
            tracing::warn!("cannot start a thread for iSCSI commands: {error}");
            if let Some((key, job)) = alone {
                (job.work)();
                self.state.lock().done(key);
            }
        }
    }

    /// Throws away the jobs whose tasks were finished before they began.
    pub(crate) fn withdraw(&self) {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        for lane in &mut state.lanes {
            let queue = std::mem::take(&mut lane.queue);
            let (out, stay): (VecDeque<_>, VecDeque<_>) = queue.into_iter().partition(|(_, job)| job.task.finished());
            lane.queue = stay;
            gone.extend(out);
        }
        drop(state);
        // Their memory goes back without the lock.
        drop(gone);
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        let mut timed_out = false;
        loop {
            if let Some((key, job)) = state.take(self.threads_max) {
                drop(state);
                (job.work)();
                state = self.state.lock();
                state.done(key);
                timed_out = false;
                continue;
            }
            if timed_out {
                state.threads -= 1;
                return;
            }
            state.idle += 1;
            timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            // Who sleeps too long may have been called at that very moment.
            state.called = state.called.saturating_sub(usize::from(!timed_out)).min(state.idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn job(work: impl FnOnce() + Send + 'static) -> Job {
        Job { task: TaskControl::unnamed(), work: Box::new(work) }
    }

    fn until(mut happened: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !happened() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
    }

    #[test]
    fn all_jobs_run_on_few_threads() {
        let pool = Workers::new(3);
        let (sender, receiver) = mpsc::channel();
        for n in 0..100 {
            let sender = sender.clone();
            pool.submit((1, 0), job(move || sender.send(n).unwrap()));
        }
        drop(sender);
        let mut seen: Vec<i32> = receiver.iter().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        // The bound, and what the lane may have of its own.
        assert!(pool.state.lock().threads <= 3 + 3);
    }

    #[test]
    fn jobs_that_wait_for_each_other_run_at_once() {
        let pool = Workers::new(2);
        let (to_first, first) = mpsc::channel();
        let (done, finished) = mpsc::channel();
        pool.submit((1, 0), job(move || done.send(first.recv().unwrap()).unwrap()));
        pool.submit((1, 0), job(move || to_first.send(7).unwrap()));
        assert_eq!(finished.recv_timeout(PATIENCE), Ok(7));
    }

    #[test]
    fn lanes_that_hang_keep_no_other_waiting() {
        let pool = Workers::new(4);
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for n in 0..200 {
            let gate = Arc::clone(&gate);
            pool.submit((1, n % 2), job(move || drop(gate.lock())));
        }
        let (done, finished) = mpsc::channel();
        for round in 0..300 {
            let done = done.clone();
            pool.submit((2, round % 3), job(move || done.send(round).unwrap()));
            if round % 10 == 9 {
                let mut seen: Vec<u64> = (0..10).map(|_| finished.recv_timeout(PATIENCE).unwrap()).collect();
                seen.sort_unstable();
                assert_eq!(seen, (round - 9..=round).collect::<Vec<_>>());
            }
        }
        assert!(pool.state.lock().threads <= 4 + 5 * 4);
        drop(closed);
        until(|| pool.state.lock().running == 0);
        assert!(pool.state.lock().lanes.iter().all(|lane| lane.queue.is_empty() && lane.running == 0));
    }

    #[test]
    fn who_is_finished_before_it_begins_gives_its_memory_back() {
        let pool = Workers::new(1);
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        let waits = Arc::clone(&gate);
        pool.submit((1, 0), job(move || drop(waits.lock())));
        until(|| pool.state.lock().running == 1);
        let memory = Arc::new(());
        let tasks: Vec<_> = (0..10).map(|_| TaskControl::unnamed()).collect();
        for task in &tasks {
            let held = Arc::clone(&memory);
            pool.submit((1, 0), Job { task: Arc::clone(task), work: Box::new(move || drop(held)) });
        }
        assert!(tasks[2..].iter().all(|task| task.cancel()));
        pool.withdraw();
        assert_eq!(Arc::strong_count(&memory), 3);
        drop(closed);
        until(|| Arc::strong_count(&memory) == 1);
    }
}
