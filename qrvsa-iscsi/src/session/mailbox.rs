//! How other threads reach the thread of a connection: a queue, and an eventfd that is written only when the thread sleeps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::task::Done;

/// What happened elsewhere.
pub(crate) enum Event {
    /// A command was carried out.
    Done(Box<Done>),
    /// Tasks of this session were marked as ended.
    TasksEnded,
    /// A task that a task management function waits for has finished, perhaps.
    TaskFinished,
    /// The clock has moved: timers may have run out.
    ClockMoved,
    /// Memory for data-out came back.
    MemoryFree,
    /// Ask the initiator to log out within so many seconds.
    AskLogout(u16),
    /// Tell the initiator about a logical unit: LUN and sense data.
    AboutLun([u8; 8], Vec<u8>),
    /// The target is no longer there: say so and close.
    TargetGone,
    /// Close; why, for the log.
    Close(String),
    /// The connection is replaced by a new one of the same session: give the session over.
    HandOver,
}

/// The mailbox of a connection.
pub(crate) struct Mailbox {
    queue: Mutex<Vec<Event>>,
    filled: AtomicBool,
    sleeping: AtomicBool,
    event: EventFd,
    /// Memory that its connection has been given for data-out that it asks for.
    pub(crate) data_out_bytes: AtomicU64,
}

impl Mailbox {
    /// # Errors
    /// No file descriptor is left.
    pub(crate) fn new() -> io::Result<Arc<Mailbox>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Mailbox {
            queue: Mutex::default(),
            filled: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            event,
            data_out_bytes: AtomicU64::new(0),
        }))
    }

    /// Leaves an event, and wakes the thread if it sleeps.
    pub(crate) fn post(&self, event: Event) {
        self.queue.lock().push(event);
        self.filled.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            let _ = self.event.write(1);
        }
    }

    /// All events so far.
    pub(crate) fn take(&self) -> Vec<Event> {
        if !self.filled.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut *self.queue.lock())
    }

    /// Call before sleeping on [`Mailbox::descriptor`]. `false`: do not sleep, there is something.
    pub(crate) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let empty = !self.filled.load(Ordering::SeqCst);
        if !empty {
            self.sleeping.store(false, Ordering::SeqCst);
        }
        empty
    }

    /// Call after sleeping; `rung`: the descriptor was readable.
    pub(crate) fn awake(&self, rung: bool) {
        self.sleeping.store(false, Ordering::SeqCst);
        if rung {
            let _ = self.event.read();
        }
    }

    /// To poll.
    pub(crate) fn descriptor(&self) -> &EventFd {
        &self.event
    }
}
