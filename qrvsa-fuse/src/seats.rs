//! Keeps all but one of the idle session threads away from the FUSE device.
//!
//! The kernel gives each request to the thread that waits at the device for longest. With sixteen of them there, a
//! caller's requests go from thread to thread, over processors with cold caches, and a file is created a third slower
//! than with one. One thread alone, though, would let everybody wait for the device of one. So: a thread that has
//! answered goes back to the device only if nobody else is there; else it is parked. A parked thread is sent to the
//! device
//!
//! - when a request is taken and the next one is waiting already;
//! - when an operation is about to wait ([`qrvsa_core::waits`]), if requests came side by side lately;
//! - by the standby, one of the parked threads, which looks every millisecond while there is work whether a request waits
//!   and nobody is there to take it. So whatever an operation waits for, others wait a millisecond at most.
//!
//! Threads that have not had a request yet are not known here, and wait at the device as ever. A known thread that ends
//! (the session is over) sends everybody to the device, where they see it themselves. Invariant: while there are parked
//! threads, a known thread is at the device, or works and will go there, or the standby will.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex, MutexGuard};
use qrvsa_core::waits;

/// How often the standby looks.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a request after which the standby sleeps until the next one.
const IDLE_TICKS_MAX: u32 = 100;
/// For so many requests after two that came side by side, operations that wait send somebody else to the device.
const CROWD_REQUESTS: u64 = 64;

/// The threads of one session.
#[derive(Default)]
pub(crate) struct Seats {
    /// To see whether a request is waiting. Without it, nobody is parked.
    device: OnceLock<OwnedFd>,
    state: Mutex<State>,
    /// Where parked threads wait, but for the standby.
    parked: Condvar,
    /// Where the standby waits.
    standby: Condvar,
    /// Requests taken so far.
    taken: AtomicU64,
    /// Up to this many, requests are taken to come side by side.
    crowd_until: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Known threads at the device, or on their way.
    reading: usize,
    /// Parked threads, but for the standby.
    parked: usize,
    /// Parked threads, the standby too, that are to go to the device; `reading` counts them already.
    sent: usize,
    has_standby: bool,
    /// The standby sleeps without looking.
    standby_sleeps: bool,
    /// A thread has ended: nobody is parked any more.
    closed: bool,
}

thread_local! {
    /// The session that this thread has taken requests of.
    static OCCUPANT: RefCell<Option<Occupant>> = const { RefCell::new(None) };
    /// Whether the operation under way has waited.
    static WAITED: Cell<bool> = const { Cell::new(false) };
}

struct Occupant(Arc<Seats>);

impl Drop for Occupant {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Held while a thread works on a request. Dropped after the answer; it may take until the thread is needed again.
pub(crate) struct Taken<'a> {
    seats: &'a Seats,
    may_park: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.seats.come_back(self.may_park);
    }
}

impl Seats {
    /// Begins to park threads; `device` is a duplicate of the session's.
    pub fn open(&self, device: OwnedFd) {
        let _ = self.device.set(device);
    }

    /// The calling thread has taken a request from the device.
    pub fn take(this: &Arc<Seats>) -> Taken<'_> {
        let known = OCCUPANT.with_borrow_mut(|occupant| {
            let known = occupant.is_some();
            if !known {
                *occupant = Some(Occupant(this.clone()));
                waits::before_each_wait(about_to_wait);
            }
            known
        });
        WAITED.set(false);
        this.taken.fetch_add(1, Ordering::Relaxed);
        let mut state = this.state.lock();
        if known {
            state.reading -= 1;
        }
        if state.standby_sleeps {
            state.standby_sleeps = false;
            this.standby.notify_one();
        }
        if state.reading == 0 && state.has_parked() && this.is_request_waiting() {
            this.note_crowd();
            this.send_one(&mut state);
        }
        drop(state);
        Taken { seats: this, may_park: true }
    }

    /// As [`Seats::take`], for a request that comes in several calls; nothing is waited for when it is dropped.
    pub fn take_one_of_many(this: &Arc<Seats>) -> Taken<'_> {
        let mut taken = Seats::take(this);
        taken.may_park = false;
        taken
    }

    /// After the answer: to the device, or parked until needed there.
    fn come_back(&self, may_park: bool) {
        let waited = WAITED.get();
        let mut state = self.state.lock();
        if state.reading == 0 || !may_park || state.closed || self.device.get().is_none() {
            state.reading += 1;
            if waited && state.has_parked() && self.is_request_waiting() {
                self.note_crowd();
            }
            return;
        }
        if state.has_standby {
            state.parked += 1;
            while state.sent == 0 && !state.closed && state.has_standby {
                self.parked.wait(&mut state);
            }
            state.parked -= 1;
            if state.sent > 0 || state.closed {
                state.leave();
                return;
            }
        }
        self.stand_by(state);
    }

    /// The life of the standby.
    fn stand_by(&self, mut state: MutexGuard<'_, State>) {
        state.has_standby = true;
        let (mut seen, mut idle) = (self.taken.load(Ordering::Relaxed), 0);
        while state.sent == 0 && !state.closed {
            if idle >= IDLE_TICKS_MAX {
                state.standby_sleeps = true;
                self.standby.wait(&mut state);
                state.standby_sleeps = false;
                idle = 0;
                continue;
            }
            self.standby.wait_for(&mut state, TICK);
            let taken = self.taken.load(Ordering::Relaxed);
            idle = if taken == seen { idle + 1 } else { 0 };
            seen = taken;
            if state.reading == 0 && state.sent == 0 {
                // somebody works, for longer perhaps than the next request should wait
                idle = 0;
                if self.is_request_waiting() {
                    self.note_crowd();
                    state.reading += 1;
                    state.sent += 1;
                }
            }
        }
        state.has_standby = false;
        state.leave();
        // another one becomes the standby
        self.parked.notify_one();
    }

    /// Sends a parked thread to the device.
    fn send_one(&self, state: &mut State) {
        state.reading += 1;
        state.sent += 1;
        if state.parked > 0 {
            self.parked.notify_one();
        } else {
            self.standby.notify_one();
        }
    }

    fn note_crowd(&self) {
        self.crowd_until.store(self.taken.load(Ordering::Relaxed) + CROWD_REQUESTS, Ordering::Relaxed);
    }

    fn is_request_waiting(&self) -> bool {
        let Some(device) = self.device.get() else { return false };
        let mut fds = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        // an error means that the session ends: go and see
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The session is over.
    fn close(&self) {
        self.state.lock().closed = true;
        self.parked.notify_all();
        self.standby.notify_all();
    }
}

impl State {
    fn has_parked(&self) -> bool {
        self.parked + usize::from(self.has_standby) > self.sent
    }

    /// A parked thread goes to the device.
    fn leave(&mut self) {
        if self.sent > 0 {
            self.sent -= 1;
        } else {
            self.reading += 1;
        }
    }
}

/// Called by operations of this thread before they wait.
fn about_to_wait() {
    WAITED.set(true);
    // a thread that is ending may wait for the last of its requests
    let _ = OCCUPANT.try_with(|occupant| {
        let occupant = occupant.borrow();
        let Some(Occupant(seats)) = &*occupant else { return };
        if seats.taken.load(Ordering::Relaxed) > seats.crowd_until.load(Ordering::Relaxed) {
            return;
        }
        let mut state = seats.state.lock();
        if state.reading == 0 && state.has_parked() {
            seats.send_one(&mut state);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Session threads over a socket instead of the FUSE device: each byte is a request, and `work` runs for it.
    struct Session {
        seats: Arc<Seats>,
        kernel: UnixStream,
        threads: Vec<thread::JoinHandle<()>>,
        answers: mpsc::Receiver<u8>,
    }

    impl Session {
        fn new(threads: usize, work: impl Fn(u8) + Send + Sync + 'static) -> Session {
            let (kernel, device) = UnixStream::pair().unwrap();
            let seats = Arc::new(Seats::default());
            seats.open(device.as_fd().try_clone_to_owned().unwrap());
            let (sender, answers) = mpsc::channel();
            let work = Arc::new(work);
            let threads = (0..threads)
                .map(|_| {
                    let (seats, sender, work) = (seats.clone(), sender.clone(), work.clone());
                    let mut device = device.try_clone().unwrap();
                    thread::spawn(move || {
                        let mut request = [0];
                        while device.read(&mut request).unwrap() == 1 {
                            let _seat = Seats::take(&seats);
                            work(request[0]);
                            sender.send(request[0]).unwrap();
                        }
                    })
                })
                .collect();
            Session { seats, kernel, threads, answers }
        }

        fn request(&self, number: u8) {
            (&self.kernel).write_all(&[number]).unwrap();
        }

        fn answer(&self) -> u8 {
            self.answers.recv_timeout(Duration::from_secs(60)).expect("an answer")
        }

        /// Ends as a session does: the device tells every thread that is at it.
        fn end(self) {
            self.kernel.shutdown(std::net::Shutdown::Both).unwrap();
            self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    }

    #[test]
    fn a_request_does_not_wait_for_the_operation_before_it() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let session = Session::new(3, {
            let gate = gate.clone();
            move |request| {
                let mut open = gate.0.lock();
                while request >= 100 && !*open {
                    gate.1.wait(&mut open);
                }
            }
        });
        for i in 0..20 {
            session.request(i);
            session.answer();
        }
        // two block; the last thread answers all that comes after
        session.request(100);
        session.request(101);
        for i in 0..20 {
            session.request(i);
            assert_eq!(session.answer(), i);
        }
        *gate.0.lock() = true;
        gate.1.notify_all();
        let mut late = [session.answer(), session.answer()];
        late.sort_unstable();
        assert_eq!(late, [100, 101]);
        session.end();
    }

    #[test]
    fn operations_that_announce_their_wait_are_joined_by_others() {
        let session = Session::new(4, |_| about_to_wait());
        for round in 0..50 {
            (0..8).for_each(|i| session.request(round * 4 + i));
            (0..8).for_each(|_| assert!(session.answer() < 204));
        }
        session.end();
    }

    #[test]
    fn everybody_leaves_at_the_end_whoever_was_parked() {
        for requests in [0, 1, 3, 40] {
            let session = Session::new(8, |_| {});
            for i in 0..requests {
                session.request(i);
                session.answer();
            }
            let seats = session.seats.clone();
            session.end();
            assert_eq!(seats.state.lock().closed, requests > 0);
        }
    }
}
