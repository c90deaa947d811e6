//! Where a connection stands while its own thread carries out a command that may wait.
//!
//! Most commands take microseconds, and handing them to another thread would cost more than they do. So the connection's thread
//! carries them out itself, but leaves the connection here meanwhile. If a command takes longer than [`PATIENCE`], the watchdog
//! gives the connection to a new thread, and the old one delivers its result as any worker does. So pings are answered
//! however long a disk hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::conn::Conn;
use super::task::{Head, TaskControl};

/// Longest time that a connection stands still for one command.
pub(crate) const PATIENCE: Duration = Duration::from_millis(4);
const TICK: Duration = Duration::from_millis(2);
/// Ticks without work after which the watchdog sleeps for good.
const QUIET_TICKS: u32 = 50;

struct Place {
    conn: Box<Conn>,
    since: Instant,
    head: Head,
    control: Arc<TaskControl>,
}

#[derive(Default)]
pub(crate) struct Parking(Mutex<Option<Place>>);

impl Parking {
    pub(crate) fn park(&self, conn: Box<Conn>, since: Instant, head: Head, control: Arc<TaskControl>) {
        *self.0.lock() = Some(Place { conn, since, head, control });
    }

    /// The connection, if nobody took it.
    pub(crate) fn unpark(&self, serial: u64) -> Option<Box<Conn>> {
        let mut place = self.0.lock();
        match place.take() {
            Some(p) if p.head.serial == serial => Some(p.conn),
            other => {
                *place = other;
                None
            }
        }
    }

    /// The task that is carried out meanwhile.
    pub(crate) fn task(&self) -> Option<Arc<TaskControl>> {
        self.0.lock().as_ref().map(|place| Arc::clone(&place.control))
    }

    /// Takes a connection that has stood too long.
    fn steal(&self) -> Option<Box<Conn>> {
        let mut place = self.0.lock();
        if place.as_ref().is_none_or(|p| p.since.elapsed() < PATIENCE) {
            return None;
        }
        let Place { mut conn, head, control, .. } = place.take()?;
        conn.left_behind(&head, control);
        Some(conn)
    }
}

/// What is done with each place.
pub(crate) type Look<'a> = dyn FnMut(&Parking) + 'a;

/// The thread that looks for connections that stand too long. It runs only while commands are carried out.
#[derive(Default)]
pub(crate) struct Watchdog {
    parked: AtomicUsize,
    asleep: AtomicBool,
    lock: Mutex<bool>,
    wake: Condvar,
}

impl Watchdog {
    pub(crate) fn begin(&self) {
        self.parked.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            let _guard = self.lock.lock();
            self.wake.notify_one();
        }
    }

    pub(crate) fn end(&self) {
        self.parked.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) {
        *self.lock.lock() = true;
        self.wake.notify_one();
    }

    /// The thread's work, until [`Watchdog::stop`]. `each` calls its argument with each session's place.
    pub(crate) fn run(&self, each: &dyn Fn(&mut Look<'_>)) {
        let mut quiet = 0;
        loop {
            let mut stopped = self.lock.lock();
            if quiet >= QUIET_TICKS {
                self.asleep.store(true, Ordering::SeqCst);
                while !*stopped && self.parked.load(Ordering::SeqCst) == 0 {
                    self.wake.wait(&mut stopped);
                }
                self.asleep.store(false, Ordering::SeqCst);
                quiet = 0;
            }
            if *stopped {
                return;
            }
            self.wake.wait_for(&mut stopped, TICK);
            drop(stopped);
            if self.parked.load(Ordering::SeqCst) == 0 {
                quiet += 1;
                continue;
            }
            quiet = 0;
            each(&mut |parking| {
                if let Some(conn) = parking.steal() {
                    super::conn::start(conn);
                }
            });
        }
    }
}
