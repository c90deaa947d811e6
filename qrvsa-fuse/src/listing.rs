//! Directory listings, from a filesystem's entries to replies of limited size.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::FileHandle;
use parking_lot::Mutex;
use qrvsa_core::Result;
use qrvsa_core::fs::ops::DirEntry;

/// Bit of the handle of a directory that was opened not to have its access time updated.
const QUIET: u64 = 1 << 63;

/// Whether the directory was opened with `O_NOATIME`.
pub(crate) fn is_quiet(handle: FileHandle) -> bool {
    handle.0 & QUIET != 0
}

/// Where the listings under way end, by the handle of the open directory: at what was there when each began, at its first
/// request or the first after a rewind. Else a program that renames or adds for each entry it is shown would never see
/// the end.
#[derive(Default)]
pub(crate) struct Ends {
    last_handle: AtomicU64,
    ends: Mutex<HashMap<u64, u64>>,
}

impl Ends {
    /// A handle for an open directory, not used before. `quiet`: see [`is_quiet`].
    pub fn open(&self, quiet: bool) -> FileHandle {
        let number = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        FileHandle(if quiet { number | QUIET } else { number })
    }

    /// The last cookie to show; `now` gives that of a listing that begins.
    pub fn of(&self, handle: FileHandle, cookie: u64, now: impl FnOnce() -> Result<u64>) -> Result<u64> {
        if cookie != 0
            && let Some(end) = self.ends.lock().get(&handle.0)
        {
            return Ok(*end);
        }
        let end = now()?;
        self.ends.lock().insert(handle.0, end);
        Ok(end)
    }

    /// The directory is closed.
    pub fn close(&self, handle: FileHandle) {
        self.ends.lock().remove(&handle.0);
    }
}

/// Takes an entry; false if it has no room for it.
pub(crate) type Emit<'a> = dyn FnMut(&DirEntry) -> bool + 'a;

/// What became of an entry of a listing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Added,
    /// No room: it comes first in the next reply.
    Full,
    /// Not to be shown.
    Skipped,
}

impl Listed {
    /// Whether the reply had room for the entry.
    pub fn fits(fits: bool) -> Listed {
        if fits { Listed::Added } else { Listed::Full }
    }
}

/// Reads a directory from a cookie into a reply. The kernel takes an empty reply for the end, so there is none while
/// entries were skipped only.
pub(crate) fn list(
    mut cookie: u64,
    read: &mut dyn FnMut(u64, &mut Emit<'_>) -> Result<()>,
    add: &mut dyn FnMut(&DirEntry) -> Listed,
) -> Result<()> {
    loop {
        let (mut added, mut skipped) = (false, None);
        read(cookie, &mut |entry| {
            let listed = add(entry);
            match listed {
                Listed::Added => added = true,
                Listed::Skipped => skipped = Some(entry.cookie),
                Listed::Full => {}
            }
            listed != Listed::Full
        })?;
        match skipped {
            Some(last) if !added && last != cookie => cookie = last,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_where_it_was_when_it_began() {
        let ends = Ends::default();
        let (a, b) = (ends.open(false), ends.open(false));
        assert_ne!(a, b);
        assert_eq!(ends.of(a, 0, || Ok(10)).unwrap(), 10);
        assert_eq!(ends.of(a, 5, || Ok(20)).unwrap(), 10);
        assert_eq!(ends.of(b, 5, || Ok(20)).unwrap(), 20, "it began in the middle");
        assert_eq!(ends.of(a, 0, || Ok(30)).unwrap(), 30, "rewound");
        ends.close(a);
        ends.close(b);
        assert!(ends.ends.lock().is_empty());
    }

    #[test]
    fn a_reply_is_empty_at_the_end_only() {
        // Names 1 to 20 of which 3 to 17 are gone; five at a time.
        let mut read = |cookie: u64, emit: &mut Emit<'_>| {
            for cookie in (cookie + 1..=20).take(5) {
                let gone = (3..=17).contains(&cookie);
                let file_type = if gone { 0 } else { libc::S_IFREG };
                if !emit(&DirEntry { ino: cookie, cookie, file_type, name: vec![b'a'], attr: None }) {
                    break;
                }
            }
            Ok(())
        };
        let mut from = |cookie: u64, room: usize| {
            let mut seen = Vec::new();
            list(cookie, &mut read, &mut |entry| {
                if entry.file_type == 0 {
                    return Listed::Skipped;
                }
                if seen.len() == room {
                    return Listed::Full;
                }
                seen.push(entry.cookie);
                Listed::Added
            })
            .unwrap();
            seen
        };
        assert_eq!(from(0, 10), [1, 2]);
        assert_eq!(from(2, 10), [18, 19, 20], "though fifteen names before them are gone");
        assert_eq!(from(2, 2), [18, 19]);
        assert_eq!(from(19, 10), [20]);
        assert!(from(20, 10).is_empty());
    }
}
