//! A thread's ring: its queues, the requests in flight, and what happens to them when the thread ends.
//!
//! Invariants:
//! - A request lies in the slab from `queue` until the kernel's last answer for it has been taken; the memory it owns is
//!   not freed before, whoever waits or does not.
//! - The kernel's queues are touched only under the lock `inner`. It is never held while an outcome is reported or an entry
//!   dropped, since both may run foreign code (the last holder of a device takes it out of every ring).
//! - The ring is set up without `SINGLE_ISSUER`: other threads take dropped devices out of its file table and reap for
//!   threads that are idle or have ended.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode, types};
use parking_lot::Mutex;

use super::super::batch::Outcome;
use super::entry::{Entry, Step};
use super::file::{DeviceFile, FileTable};

/// Submissions per system call. More in one batch go in pieces.
const SUBMISSION_ENTRIES: u32 = 256;
/// Completions the ring holds; the kernel keeps further ones aside (`NODROP`).
const COMPLETION_ENTRIES: u32 = 2048;
/// How long a thread that ends waits for its requests in flight.
const EXIT_WAIT: Duration = Duration::from_secs(1);
/// Longest single wait in the kernel, far inside the range of its clock.
const DRIVE_WAIT_MAX: Duration = Duration::from_secs(86_400);
/// A pause where the kernel has no memory for a submission just now.
const BUSY_PAUSE: Duration = Duration::from_micros(200);

/// Every living ring, for devices that go away.
static RINGS: Mutex<Vec<Weak<Ring>>> = Mutex::new(Vec::new());
/// Rings of ended threads that still have requests in flight.
static ORPHANS: Mutex<Vec<Arc<Ring>>> = Mutex::new(Vec::new());

pub struct Ring {
    io: IoUring,
    files: FileTable,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Requests from `queue` to the last answer. A slot's number is the `user_data` of its submission.
    slab: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// Slab slots waiting for a place in the submission queue.
    ready: VecDeque<usize>,
    in_flight: usize,
}

/// Requests that have ended, reported after the lock is released.
type Finished = Vec<(Entry, Outcome)>;

fn report(finished: Finished) {
    for (entry, outcome) in finished {
        entry.finish(outcome);
    }
}

impl Ring {
    fn new() -> std::io::Result<Ring> {
        let unsupported = || std::io::Error::from_raw_os_error(libc::ENOSYS);
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(COMPLETION_ENTRIES);
        // Completions are processed when the thread enters the kernel, without interrupting it (Linux 5.19).
        let mut modern = builder.clone();
        modern.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        let io = modern.build(SUBMISSION_ENTRIES).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => builder.build(SUBMISSION_ENTRIES),
            _ => Err(error),
        })?;
        let mut probe = Probe::new();
        io.submitter().register_probe(&mut probe)?;
        let opcodes = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let complete = io.params().is_feature_ext_arg() && io.params().is_feature_nodrop();
        if !complete || !opcodes.iter().all(|code| probe.is_supported(*code)) {
            return Err(unsupported());
        }
        let files = FileTable::new(&io);
        Ok(Ring { io, files, inner: Mutex::new(Inner::default()) })
    }

    /// Takes requests for one device into the slab, to be handed over by `kick` or `drive`.
    pub fn queue(&self, file: &DeviceFile, entries: Vec<Entry>) {
        let slot = self.files.place(&self.io, file);
        let mut inner = self.inner.lock();
        for mut entry in entries {
            entry.set_slot(slot);
            let index = match inner.free.pop() {
                Some(index) => index,
                None => {
                    inner.slab.push(None);
                    inner.slab.len() - 1
                }
            };
            inner.slab[index] = Some(entry);
            inner.ready.push_back(index);
            inner.in_flight += 1;
        }
    }

    /// Hands over what is queued and takes the answers that are there.
    pub fn kick(&self) {
        let mut finished = Vec::new();
        let mut inner = self.inner.lock();
        self.hand_over(&mut inner, &mut finished);
        self.reap(&mut inner, &mut finished);
        drop(inner);
        report(finished);
    }

    /// Hands over what is queued and waits for at least one request to end, at most `timeout`. `false` if none is in
    /// flight.
    pub fn drive(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let timeout = timeout.min(DRIVE_WAIT_MAX);
        let mut finished = Vec::new();
        let mut inner = self.inner.lock();
        if inner.in_flight == 0 {
            return false;
        }
        self.reap(&mut inner, &mut finished);
        let mut left = timeout;
        while finished.is_empty() && !left.is_zero() {
            self.fill(&mut inner, &mut finished);
            if finished.is_empty() {
                self.enter(Some(left));
                self.reap(&mut inner, &mut finished);
                if finished.is_empty() {
                    left = timeout.saturating_sub(start.elapsed());
                }
            }
        }
        // Remainders of short transfers, and everything when there was no time to wait.
        self.hand_over(&mut inner, &mut finished);
        if timeout.is_zero() {
            self.reap(&mut inner, &mut finished);
        }
        drop(inner);
        report(finished);
        true
    }

    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.inner.lock().in_flight
    }

    /// Gives the kernel everything that is queued.
    fn hand_over(&self, inner: &mut Inner, finished: &mut Finished) {
        self.fill(inner, finished);
        // SAFETY: the caller holds the lock on `inner`, so nobody else uses the submission queue.
        let empty = unsafe { self.io.submission_shared() }.is_empty();
        if !empty {
            self.enter(None);
        }
    }

    /// Moves queued requests into the submission queue, handing over full queues on the way.
    fn fill(&self, inner: &mut Inner, finished: &mut Finished) {
        while !inner.ready.is_empty() {
            // SAFETY: the caller holds the lock on `inner`, so nobody else uses the submission queue.
            let mut queue = unsafe { self.io.submission_shared() };
            while !queue.is_full()
                && let Some(index) = inner.ready.pop_front()
            {
                let Some(entry) = inner.slab.get_mut(index).and_then(Option::as_mut) else { continue };
                let submission = entry.submission().user_data(index as u64);
                // SAFETY: the entry owns the memory the submission names and stays in the slab until it is answered;
                // moving the entry (a growing slab) moves neither its buffers nor its list of vectors.
                let pushed = unsafe { queue.push(&submission) };
                pushed.expect("the queue is not full");
            }
            drop(queue);
            if inner.ready.is_empty() {
                return;
            }
            self.enter(None);
            self.reap(inner, finished);
            // SAFETY: as above.
            if unsafe { self.io.submission_shared() }.is_full() {
                // The kernel takes nothing just now; the next drive tries again.
                return;
            }
        }
    }

    /// One `io_uring_enter`: submits, and with `wait`, waits for a completion for at most that long.
    fn enter(&self, wait: Option<Duration>) {
        let result = match wait {
            None => self.io.submitter().submit(),
            Some(timeout) => {
                let timespec = types::Timespec::from(timeout);
                self.io.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        };
        let Err(error) = result else { return };
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR) => {}
            // Full of unreaped completions, or out of memory: reap, breathe, and come again.
            Some(libc::EAGAIN | libc::EBUSY) => std::thread::sleep(BUSY_PAUSE),
            _ => {
                tracing::warn!(%error, "io_uring_enter failed");
                std::thread::sleep(BUSY_PAUSE);
            }
        }
    }

    /// Takes the answers that are in the completion queue.
    fn reap(&self, inner: &mut Inner, finished: &mut Finished) {
        // SAFETY: the caller holds the lock on `inner`, so nobody else uses the completion queue.
        for completion in unsafe { self.io.completion_shared() } {
            let index = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let Some(place) = inner.slab.get_mut(index) else { continue };
            let Some(entry) = place.as_mut() else { continue };
            match entry.advance(completion.result()) {
                Step::Again => inner.ready.push_back(index),
                Step::Finished(outcome) => {
                    if let Some(entry) = place.take() {
                        finished.push((entry, outcome));
                    }
                    inner.free.push(index);
                    inner.in_flight -= 1;
                }
            }
        }
    }

    /// Takes the answers that are there, unless the ring's thread is just using it and does so itself.
    fn try_reap(&self) {
        let mut finished = Vec::new();
        if let Some(mut inner) = self.inner.try_lock() {
            self.reap(&mut inner, &mut finished);
        }
        report(finished);
    }

    /// Waits until nothing is in flight; `false` when `timeout` passes first.
    fn drain(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if !self.drive(left) {
                return true;
            }
            if left.is_zero() {
                return self.inner.lock().in_flight == 0;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        if inner.in_flight > 0 {
            // Cannot happen: an ended thread's ring is kept until it is drained. The kernel may still write to this memory.
            std::mem::forget(std::mem::take(&mut inner.slab));
        }
    }
}

/// The calling thread's hold on its ring.
struct Local(Arc<Ring>);

impl Drop for Local {
    fn drop(&mut self) {
        // No logging here: a subscriber's own thread locals may be gone already, and a panic now would abort.
        if !self.0.drain(EXIT_WAIT) {
            ORPHANS.lock().push(self.0.clone());
        }
        reap_orphans();
    }
}

thread_local! {
    static LOCAL: OnceCell<Option<Local>> = const { OnceCell::new() };
}

fn create() -> Option<Local> {
    reap_orphans();
    match Ring::new() {
        Ok(ring) => {
            let ring = Arc::new(ring);
            let mut rings = RINGS.lock();
            rings.retain(|r| r.strong_count() > 0);
            rings.push(Arc::downgrade(&ring));
            Some(Local(ring))
        }
        Err(error) => {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| {
                tracing::warn!(%error, "io_uring is not available, falling back to blocking reads and writes");
            });
            None
        }
    }
}

/// Runs `f` with the calling thread's ring, made at first use; with `None` where there can be none.
pub fn with_local<T>(f: impl FnOnce(Option<&Ring>) -> T) -> T {
    let mut f = Some(f);
    let mut run = |ring: Option<&Ring>| f.take().map(|f| f(ring));
    // A thread whose locals are being destroyed does its last I/O without a ring.
    let done = LOCAL.try_with(|cell| run(cell.get_or_init(create).as_ref().map(|local| &*local.0)));
    done.ok().flatten().or_else(|| run(None)).expect("exactly one of the two runs")
}

/// Runs `f` with the calling thread's ring if it has one.
pub fn with_existing<T>(f: impl FnOnce(&Ring) -> T) -> Option<T> {
    LOCAL.try_with(|cell| cell.get().and_then(Option::as_ref).map(|local| f(&local.0))).ok().flatten()
}

/// Takes a device that is going away out of every ring's file table.
pub fn forget_file(id: u64) {
    for ring in living() {
        ring.files.forget(&ring.io, id);
    }
}

fn living() -> Vec<Arc<Ring>> {
    RINGS.lock().iter().filter_map(Weak::upgrade).collect()
}

/// Takes the answers that have arrived for threads that are gone or busy elsewhere.
pub fn reap_everywhere() {
    living().iter().for_each(|ring| ring.try_reap());
    reap_orphans();
}

/// Takes the answers that have arrived for threads that are gone, and lets drained rings go.
pub fn reap_orphans() {
    let orphans = std::mem::take(&mut *ORPHANS.lock());
    for ring in orphans {
        if !ring.drain(Duration::ZERO) {
            ORPHANS.lock().push(ring);
        }
    }
}

#[cfg(test)]
pub fn orphan_count() -> usize {
    ORPHANS.lock().len()
}

#[cfg(test)]
pub fn forbid_on_this_thread() {
    LOCAL.with(|cell| assert!(cell.set(None).is_ok(), "the thread has used its ring already"));
}

#[cfg(test)]
pub fn registered_on_this_thread() -> Option<usize> {
    with_existing(|ring| ring.files.taken())
}
