//! Connections that are not logged in yet: so many and no more. The oldest makes room, so that somebody who opens thousands of
//! them and says nothing keeps nobody out who does speak.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub(crate) struct Gate {
    most: usize,
    next: AtomicU64,
    /// Number, socket, and when its login has to be over.
    waiting: Mutex<VecDeque<(u64, TcpStream, Instant)>>,
}

impl Gate {
    pub(crate) fn new(most: usize) -> Gate {
        Gate { most: most.max(1), next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    /// A connection has come; `None` when it cannot be watched.
    pub(crate) fn came(&self, socket: &TcpStream, deadline: Instant) -> Option<u64> {
        let watched = socket.try_clone().ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        waiting.push_back((number, watched, deadline));
        while waiting.len() > self.most {
            if let Some((_, oldest, _)) = waiting.pop_front() {
                tracing::debug!("too many connections without a login; the oldest is closed");
                let _ = oldest.shutdown(Shutdown::Both);
            }
        }
        Some(number)
    }

    /// It has logged in, or is closed.
    pub(crate) fn left(&self, number: u64) {
        self.waiting.lock().retain(|(n, ..)| *n != number);
    }

    /// Closes those that did not log in in time. Their own threads do so by the machine's clock; this is for when another one rules.
    pub(crate) fn close_expired(&self, now: Instant) {
        for (_, socket, _) in self.waiting.lock().iter().filter(|(.., deadline)| *deadline <= now) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn close_all(&self) {
        for (_, socket, _) in self.waiting.lock().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}
