//! Ends of tasks that come from other sessions, for commands that only their connection's own thread can see.
//!
//! A command that waits on its connection's thread is in no table: that would cost every command something. So whoever ends the
//! tasks of a session from outside leaves a note here, too, before looking for those that can be seen. The connection compares a
//! number before each command, once that one can be seen: either it finds the note, or the other side finds the command.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::respond::check_condition;
use crate::scsi::Response;
use crate::service::counters::lun_number;

/// What becomes of a command that was ended before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No answer; a unit attention condition tells of the reset.
    Silent,
    /// It ends with COMMANDS CLEARED BY ANOTHER INITIATOR: who left the note may not have known of it. As well when the unit or its
    /// medium has gone: what comes in its place is not what the command was meant for.
    Told,
}

impl Fate {
    pub(crate) fn response(self) -> Option<Response> {
        (self == Fate::Told).then(|| check_condition(6, (0x2f, 0)))
    }
}

/// That the commands at hand were ended.
#[derive(Debug)]
pub(crate) struct Note {
    number: u64,
    /// Of which logical unit; `None`: of all.
    lun: Option<u64>,
    fate: Fate,
}

#[derive(Default)]
pub(crate) struct Sweeps {
    count: AtomicU64,
    notes: Mutex<Vec<Note>>,
}

impl Sweeps {
    pub(crate) fn add(&self, lun: Option<[u8; 8]>, fate: Fate) {
        let lun = lun.map(lun_number);
        let mut notes = self.notes.lock();
        let number = self.count.load(Ordering::Relaxed) + 1;
        if notes.last().is_none_or(|last| (last.lun, last.fate) != (lun, fate)) {
            notes.push(Note { number, lun, fate });
        }
        self.count.store(number, Ordering::Relaxed);
    }

    /// Notes so far. The locks that make a command visible order this against [`Sweeps::add`].
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All notes, and their number with those before. Only the connection takes them.
    pub(crate) fn take(&self) -> (u64, Vec<Note>) {
        let mut notes = self.notes.lock();
        (self.count.load(Ordering::Relaxed), std::mem::take(&mut *notes))
    }

    /// What the notes after the first `seen` say of a command that came before them.
    pub(crate) fn since(&self, seen: u64, lun: [u8; 8]) -> Option<Fate> {
        if self.count() == seen {
            return None;
        }
        let notes = self.notes.lock();
        if notes.first().is_none_or(|first| first.number > seen + 1) {
            // The connection has gone on with another thread, which has taken some.
            return Some(Fate::Told);
        }
        fate(&notes, lun)
    }
}

/// What notes say of a command.
pub(crate) fn fate(notes: &[Note], lun: [u8; 8]) -> Option<Fate> {
    let lun = lun_number(lun);
    let mut about = notes.iter().filter(|note| note.lun.is_none_or(|of| of == lun)).map(|note| note.fate);
    let first = about.next()?;
    Some(if about.any(|fate| fate == Fate::Told) { Fate::Told } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
    const ONE_FLAT: [u8; 8] = [0x40, 1, 0, 0, 0, 0, 0, 0];
    const TWO: [u8; 8] = [0, 2, 0, 0, 0, 0, 0, 0];

    #[test]
    fn notes_meet_the_commands_that_they_are_about() {
        let sweeps = Sweeps::default();
        assert_eq!(sweeps.since(0, ONE), None);
        for _ in 0..1000 {
            sweeps.add(Some(ONE), Fate::Silent);
        }
        assert_eq!(sweeps.notes.lock().len(), 1);
        assert_eq!(sweeps.since(0, ONE_FLAT), Some(Fate::Silent));
        assert_eq!(sweeps.since(0, TWO), None);
        sweeps.add(Some(TWO), Fate::Told);
        assert_eq!((sweeps.since(0, ONE), sweeps.since(0, TWO)), (Some(Fate::Silent), Some(Fate::Told)));
        sweeps.add(None, Fate::Silent);
        assert_eq!(sweeps.since(0, TWO), Some(Fate::Told));
        let (count, notes) = sweeps.take();
        assert_eq!((count, notes.len(), sweeps.since(count, ONE)), (1002, 3, None));
        assert_eq!(fate(&notes, ONE), Some(Fate::Silent));
        assert_eq!(sweeps.since(1001, TWO), Some(Fate::Told), "who missed some does not run");
    }
}
