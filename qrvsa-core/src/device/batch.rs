//! A batch of requests over any number of devices: start, wait with a deadline, take the outcomes.
//!
//! The batch knows which device owes how many answers. A waiting thread drives only devices that owe it something: so it
//! never sits in a ring on account of somebody else's hung request while its own answer arrives from elsewhere.
//!
//! A batch stays on the thread that made it (it is not `Send`): requests may sit in that thread's ring, which only that
//! thread drives.

use crate::waits;
use std::marker::PhantomData;
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

struct Slot {
    /// Lane (device of the batch) that owes the answer.
    lane: usize,
    outcome: Option<Outcome>,
}

struct State {
    slots: Vec<Slot>,
    /// Answers owed, by lane; their sum is `pending`.
    owed: Vec<usize>,
    pending: usize,
}

/// Where devices report. Shared by a batch and its requests in flight.
pub struct Completions {
    state: Mutex<State>,
    changed: Condvar,
}

impl Completions {
    /// Reports the end of the request with this tag. A second report for a tag, and one after the batch has given up, is
    /// ignored.
    pub fn complete(&self, tag: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        let Some(slot) = usize::try_from(tag).ok().and_then(|i| state.slots.get_mut(i)) else { return };
        if slot.outcome.is_some() {
            return;
        }
        slot.outcome = Some(outcome);
        let lane = slot.lane;
        state.owed[lane] -= 1;
        state.pending -= 1;
        if state.pending == 0 {
            self.changed.notify_all();
        }
    }

    fn pending(&self) -> usize {
        self.state.lock().pending
    }

    fn owes(&self, lane: usize) -> bool {
        self.state.lock().owed[lane] > 0
    }
}

/// One device of a batch and what is queued for it.
struct Lane {
    device: Arc<dyn Device>,
    queued: Vec<(u64, Request)>,
}

/// Requests that are started together and waited for together.
pub struct IoBatch {
    completions: Arc<Completions>,
    lanes: Vec<Lane>,
    /// The lane of each request pushed and not yet started, in the order of `push`.
    fresh: Vec<usize>,
    len: usize,
    /// Rings belong to threads; see the module documentation.
    not_send: PhantomData<*const ()>,
}

impl Default for IoBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl IoBatch {
    /// An empty batch.
    pub fn new() -> IoBatch {
        let state = Mutex::new(State { slots: Vec::new(), owed: Vec::new(), pending: 0 });
        IoBatch {
            completions: Arc::new(Completions { state, changed: Condvar::new() }),
            lanes: Vec::new(),
            fresh: Vec::new(),
            len: 0,
            not_send: PhantomData,
        }
    }

    /// Adds a request; its outcome will stand at the returned index.
    pub fn push(&mut self, device: &Arc<dyn Device>, request: Request) -> usize {
        let index = self.len;
        self.len += 1;
        let lane = match self.lanes.iter().position(|l| Arc::ptr_eq(&l.device, device)) {
            Some(lane) => lane,
            None => {
                self.lanes.push(Lane { device: device.clone(), queued: Vec::new() });
                self.lanes.len() - 1
            }
        };
        self.lanes[lane].queued.push((index as u64, request));
        self.fresh.push(lane);
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

    /// Gives the queued requests to their devices, which may keep them until `kick` or `drive`.
    fn submit(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        {
            let mut state = self.completions.state.lock();
            state.owed.resize(self.lanes.len(), 0);
            for lane in self.fresh.drain(..) {
                state.slots.push(Slot { lane, outcome: None });
                state.owed[lane] += 1;
                state.pending += 1;
            }
        }
        for lane in &mut self.lanes {
            if !lane.queued.is_empty() {
                lane.device.submit(std::mem::take(&mut lane.queued), &self.completions);
            }
        }
    }

    fn kick(&self) {
        for lane in &self.lanes {
            lane.device.kick();
        }
    }

    /// Hands everything pushed so far to the devices without waiting. More may be pushed and started afterwards.
    pub fn start(&mut self) {
        if !self.fresh.is_empty() {
            self.submit();
            self.kick();
        }
    }

    /// Starts what is not started, waits until all is answered or `deadline` has passed since this call, and returns the
    /// outcomes in the order of `push`.
    pub fn wait(mut self, deadline: Duration) -> Vec<Outcome> {
        let now = Instant::now();
        // A deadline beyond the clock's range is no deadline; a day of waiting per round stands for it.
        let end = now.checked_add(deadline);
        let unstarted = !self.fresh.is_empty();
        self.submit();
        if self.completions.pending() > 0 {
            waits::announce();
        }
        if unstarted && self.lanes.len() > 1 {
            // Devices of several kinds must not wait for each other's queues. One device is kicked by its drive.
            self.kick();
        }
        while self.completions.pending() > 0 {
            let left = match end {
                Some(end) => end.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(86_400),
            };
            if left.is_zero() {
                self.drive(Duration::ZERO);
                break;
            }
            if !self.drive(left) {
                let mut state = self.completions.state.lock();
                if state.pending > 0 {
                    let _ = self.completions.changed.wait_for(&mut state, left);
                }
            }
        }
        let mut state = self.completions.state.lock();
        let slots = std::mem::take(&mut state.slots);
        state.owed.fill(0);
        state.pending = 0;
        drop(state);
        slots.into_iter().map(|s| s.outcome.unwrap_or(Outcome::TimedOut)).collect()
    }

    /// Drives devices that owe answers: the first that has something to drive, or all of them when there is no time left.
    fn drive(&self, timeout: Duration) -> bool {
        let mut driven = false;
        for (index, lane) in self.lanes.iter().enumerate() {
            if self.completions.owes(index) {
                driven |= lane.device.drive(timeout);
                if driven && !timeout.is_zero() {
                    break;
                }
            }
        }
        driven
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceInfo;

    /// Answers from another thread after a pause, or never; counts how often it is driven.
    struct Passive {
        info: DeviceInfo,
        answer_after: Option<Duration>,
    }

    impl Passive {
        fn device(answer_after: Option<Duration>) -> Arc<dyn Device> {
            let info = DeviceInfo {
                path: "passive".into(),
                size_bytes: 1 << 20,
                logical_sector_bytes: 512,
                physical_sector_bytes: 512,
                rotational: false,
                discard: false,
                kind: "sim",
            };
            Arc::new(Passive { info, answer_after })
        }
    }

    impl Device for Passive {
        fn info(&self) -> &DeviceInfo {
            &self.info
        }

        fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
            let Some(pause) = self.answer_after else { return };
            let completions = completions.clone();
            let answer = move || {
                for (tag, _) in requests {
                    completions.complete(tag, Outcome::Done(Vec::new()));
                    completions.complete(tag, Outcome::TimedOut);
                }
            };
            if pause.is_zero() {
                return answer();
            }
            std::thread::spawn(move || {
                std::thread::sleep(pause);
                answer();
            });
        }

        fn drive(&self, _timeout: Duration) -> bool {
            false
        }

        fn check_presence(&self) -> Result<(), IoError> {
            Ok(())
        }
    }

    #[test]
    fn passive_answers_wake_the_waiter_and_second_reports_are_ignored() {
        let device = Passive::device(Some(Duration::from_millis(20)));
        let mut batch = IoBatch::new();
        for _ in 0..4 {
            batch.push(&device, Request::Flush);
        }
        let start = Instant::now();
        let outcomes = batch.wait(Duration::MAX);
        assert_eq!(outcomes.len(), 4);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Done(_))));
        assert!(start.elapsed() < Duration::from_secs(3600), "it slept until the end of its time");
    }

    #[test]
    fn late_answers_are_dropped() {
        let never = Passive::device(None);
        let quick = Passive::device(Some(Duration::ZERO));
        let mut batch = IoBatch::new();
        batch.push(&never, Request::Flush);
        batch.start();
        batch.push(&quick, Request::Flush);
        batch.push(&never, Request::Flush);
        assert_eq!(batch.len(), 3);
        let completions = batch.completions.clone();
        let outcomes = batch.wait(Duration::from_millis(100));
        assert!(matches!(outcomes[..], [Outcome::TimedOut, Outcome::Done(_), Outcome::TimedOut]));
        for tag in [0, 1, 2, 3, u64::MAX] {
            let buffer = AlignedBuf::zeroed(4096);
            completions.complete(tag, Outcome::Done(vec![buffer]));
        }
        assert_eq!(completions.pending(), 0);
        assert!(completions.state.lock().slots.is_empty(), "nothing is kept for nobody");
    }

    #[test]
    fn empty_batch_returns_at_once() {
        assert!(IoBatch::new().wait(Duration::MAX).is_empty());
        assert!(IoBatch::default().is_empty());
    }
}
