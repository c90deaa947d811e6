//! Threads for commands that wait. They are made when work comes, and end when there has been none for a while.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Work to be done on some thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
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

    /// Queues a job; jobs begin in their order. Runs it here when not even one thread can be had.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) {
        let mut state = self.state.lock();
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            drop(state);
            self.work.notify_one();
            return;
        }
        if state.threads >= self.threads_max {
            return;
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let thread = std::thread::Builder::new().name("iscsi-worker".into()).spawn(move || pool.serve());
        if let Err(error) = thread {
            let mut state = self.state.lock();
            state.threads -= 1;
            let alone = if state.threads == 0 { state.queue.pop_front() } else { None };
            drop(state);
            tracing::warn!("cannot start a thread for iSCSI commands: {error}");
            if let Some(job) = alone {
                job();
            }
        }
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let timed_out = self.work.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn all_jobs_run_on_few_threads() {
        let pool = Workers::new(3);
        let (sender, receiver) = mpsc::channel();
        for n in 0..100 {
            let sender = sender.clone();
            pool.submit(Box::new(move || sender.send(n).unwrap()));
        }
        drop(sender);
        let mut seen: Vec<i32> = receiver.iter().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(pool.state.lock().threads <= 3);
    }

    #[test]
    fn jobs_that_wait_for_each_other_run_at_once() {
        let pool = Workers::new(2);
        let (to_first, first) = mpsc::channel();
        let (done, finished) = mpsc::channel();
        pool.submit(Box::new(move || done.send(first.recv().unwrap()).unwrap()));
        pool.submit(Box::new(move || to_first.send(7).unwrap()));
        assert_eq!(finished.recv_timeout(Duration::from_secs(60)), Ok(7));
    }
}
