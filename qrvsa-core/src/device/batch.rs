//! A batch of requests over any number of devices: start, wait with a deadline, take the outcomes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Device, IoError, Request};
use crate::buf::AlignedBuf;

/// How one request of a batch ended.
#[derive(Debug)]
pub enum Outcome {
    /// Completed in full; the buffers of a read come back, in order.
    Done(Vec<AlignedBuf>),
    /// Failed.
    Failed(IoError),
    /// Not answered before the deadline. It may still complete later, unseen.
    TimedOut,
}

struct State {
    outcomes: Vec<Option<Outcome>>,
    pending: usize,
}

/// Where devices report. Shared by a batch and its requests in flight.
pub struct Completions {
    state: Mutex<State>,
    changed: Condvar,
}

impl Completions {
    /// Reports the end of the request with this tag. A second report for a tag is ignored.
    pub fn complete(&self, tag: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        let Some(slot) = usize::try_from(tag).ok().and_then(|i| state.outcomes.get_mut(i)) else { return };
        if slot.is_none() {
            *slot = Some(outcome);
            state.pending -= 1;
            if state.pending == 0 {
                self.changed.notify_all();
            }
        }
    }

    fn pending(&self) -> usize {
        self.state.lock().pending
    }
}

/// Requests that are started together and waited for together.
pub struct IoBatch {
    completions: Arc<Completions>,
    queued: Vec<(Arc<dyn Device>, Vec<(u64, Request)>)>,
    started: Vec<Arc<dyn Device>>,
    len: usize,
}

impl Default for IoBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl IoBatch {
    /// An empty batch.
    pub fn new() -> IoBatch {
        let state = Mutex::new(State { outcomes: Vec::new(), pending: 0 });
        IoBatch {
            completions: Arc::new(Completions { state, changed: Condvar::new() }),
            queued: Vec::new(),
            started: Vec::new(),
            len: 0,
        }
    }

    /// Adds a request; its outcome will stand at the returned index.
    pub fn push(&mut self, device: &Arc<dyn Device>, request: Request) -> usize {
        let index = self.len;
        self.len += 1;
        let entry = (index as u64, request);
        match self.queued.iter_mut().find(|(d, _)| Arc::ptr_eq(d, device)) {
            Some((_, requests)) => requests.push(entry),
            None => self.queued.push((device.clone(), vec![entry])),
        }
        index
    }

    /// Number of requests pushed so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands everything pushed so far to the devices without waiting. More may be pushed and started afterwards.
    pub fn start(&mut self) {
        {
            let mut state = self.completions.state.lock();
            let fresh = self.len - state.outcomes.len();
            state.outcomes.resize_with(self.len, || None);
            state.pending += fresh;
        }
        for (device, requests) in self.queued.drain(..) {
            device.submit(requests, &self.completions);
            if !self.started.iter().any(|d| Arc::ptr_eq(d, &device)) {
                self.started.push(device);
            }
        }
    }

    /// Starts what is not started, waits until all is answered or the deadline has passed, and returns the outcomes in
    /// the order of `push`.
    pub fn wait(mut self, deadline: Duration) -> Vec<Outcome> {
        self.start();
        let end = Instant::now() + deadline;
        while self.completions.pending() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut driven = false;
            for device in &self.started {
                if self.completions.pending() == 0 {
                    break;
                }
                driven |= device.drive(left);
            }
            if !driven {
                let mut state = self.completions.state.lock();
                if state.pending > 0 {
                    let _ = self.completions.changed.wait_for(&mut state, left);
                }
            }
        }
        let mut state = self.completions.state.lock();
        let outcomes = std::mem::take(&mut state.outcomes);
        state.pending = 0;
        outcomes.into_iter().map(|o| o.unwrap_or(Outcome::TimedOut)).collect()
    }
}
