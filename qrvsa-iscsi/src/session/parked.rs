//! Where a connection stands while its own thread carries out a command that may wait.
//!
//! Most commands take microseconds, and handing them to another thread would cost more than they do. So the connection's thread
//! carries them out itself, but leaves the connection here meanwhile. If a command takes longer than [`PATIENCE`], the watchdog
//! gives the connection to a new thread, and the old one delivers its result as any worker does. So pings are answered
//! however long a disk hangs. A thread that does not wait but has not got the processor is given more time: handing its
//! connection on would not make it faster, and would be held against its kind of command.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::conn::Conn;
use super::task::{Head, TaskControl};

/// Longest time that a connection stands still for one command.
pub(crate) const PATIENCE: Duration = Duration::from_millis(4);
/// Longest time that it stands still for one that works, or would if it got the processor.
const PATIENCE_BUSY: Duration = Duration::from_millis(40);
const TICK: Duration = Duration::from_millis(2);
/// Ticks without work after which the watchdog sleeps for good.
const QUIET_TICKS: u32 = 50;

struct Place {
    conn: Box<Conn>,
    since: Instant,
    /// Who carries the command out.
    thread: Option<u32>,
    head: Head,
    control: Arc<TaskControl>,
}

/// The kernel's number of this thread; `None` where there is no `/proc`.
fn this_thread() -> Option<u32> {
    thread_local! {
        static NUMBER: OnceCell<Option<u32>> = const { OnceCell::new() };
    }
    let look = || std::fs::read_link("/proc/thread-self").ok()?.file_name()?.to_str()?.parse().ok();
    NUMBER.with(|number| *number.get_or_init(look))
}

/// Whether a thread of this process runs or could run: its state in proc_pid_stat(5) is R. `false` when that cannot be told.
fn is_busy(thread: Option<u32>) -> bool {
    let stat =
        thread.and_then(|number| std::fs::read(format!("/proc/self/task/{number}/stat")).ok()).unwrap_or_default();
    // the name before it ends with the last parenthesis, and may have anything in it
    let after_name = stat.iter().rposition(|b| *b == b')').and_then(|at| stat.get(at + 1..)).unwrap_or_default();
    after_name.starts_with(b" R")
}

#[derive(Default)]
pub(crate) struct Parking(Mutex<Option<Place>>);

impl Parking {
    pub(crate) fn park(&self, conn: Box<Conn>, since: Instant, head: Head, control: Arc<TaskControl>) {
        *self.0.lock() = Some(Place { conn, since, thread: this_thread(), head, control });
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

    /// The command for which a connection has stood too long.
    fn overdue(&self) -> Option<u64> {
        let (serial, thread) = {
            let place = self.0.lock();
            let stands = place.as_ref()?;
            let stood = stands.since.elapsed();
            if stood < PATIENCE {
                return None;
            }
            (stands.head.serial, stands.thread.filter(|_| stood < PATIENCE_BUSY))
        };
        // not under the lock, which the end of the command takes
        (!is_busy(thread)).then_some(serial)
    }

    /// Takes the connection, if it still stands for that command.
    fn steal(&self, serial: u64) -> Option<Box<Conn>> {
        let mut place = self.0.lock();
        if place.as_ref()?.head.serial != serial {
            return None;
        }
        let Place { mut conn, head, control, .. } = place.take()?;
        conn.left_behind(&head, control);
        Some(conn)
    }

    /// Lets a connection that has stood too long go on with another thread. Without one it stays: its command may end yet.
    fn relieve(&self) {
        let Some(serial) = self.overdue() else { return };
        match super::conn::thread() {
            Ok(thread) => {
                if let Some(conn) = self.steal(serial) {
                    // It waits for nothing else.
                    let _ = thread.send(conn);
                }
            }
            Err(error) => tracing::debug!("no thread for an iSCSI connection whose command takes long: {error}"),
        }
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
            each(&mut |parking| parking.relieve());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_waits_is_not_busy() {
        assert!(is_busy(this_thread()));
        assert!(!is_busy(None) && !is_busy(Some(u32::MAX)));
        let ((says, said), (end, ended)) = (channel(), channel::<()>());
        let thread = std::thread::Builder::new().name("a) R (b".into());
        let waits = thread.spawn(move || {
            says.send(this_thread()).unwrap();
            ended.recv().unwrap_err();
        });
        let number = said.recv().unwrap();
        assert!(number.is_some() && number != this_thread());
        while is_busy(number) {
            std::thread::yield_now();
        }
        drop(end);
        waits.unwrap().join().unwrap();
    }
}
