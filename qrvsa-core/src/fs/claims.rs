//! Files that serve as disks, and the opens that must not meet them.
//!
//! A file is **claimed** by what uses it as a disk below the front end (a logical unit, a child that has it as its parent):
//! to read, by many, or to write, by one. A claim and opens through the front end keep out of each other's way:
//!
//! | while a file is | may be opened to read | may be opened to write, cut or extended | may lose a name |
//! |---|---|---|---|
//! | claimed to read | yes | no, `ETXTBSY` | no, `EBUSY` |
//! | claimed to write | yes; the front end remembers nothing of it | no, `ETXTBSY` | no, `EBUSY` |
//! | open to read | to claim it to read only | | |
//! | open to write | it cannot be claimed | | |
//!
//! So nobody who has the file open from before a claim to write holds contents that it changes: the front end's cache is
//! never made to forget contents, which could wait for this very process. Attributes are forgotten at the claim
//! ([`Operations::on_change`](super::ops::Operations::on_change)), and not remembered while it lasts.
//!
//! A claim is made under the inode's exclusive lock, and what it forbids is checked under that lock too.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::fs::filesystem::FileSystem;
use crate::fs::ops::{Ino, Operations};
use crate::fs::store::Store;

/// How long a claim waits for opens and claims that are just ending, a second: the kernel tells of a close a moment later. Counted
/// in looks, so that time in which this process stood still is none.
const CLAIM_RETRY: Duration = Duration::from_millis(10);
const CLAIM_RETRIES: u32 = 100;
const SHARDS: usize = 64;

/// The extended attribute that names who has claimed a file to write; it is there only as long as the claim.
pub const XATTR_IN_USE: &[u8] = b"user.qrvsa.in_use";

/// Makes the front end forget the attributes of an inode.
pub type Tell = Arc<dyn Fn(Ino) + Send + Sync>;

/// Who uses one inode.
#[derive(Default)]
struct Use {
    /// Opens through the front end, those to write included.
    opens: u32,
    /// Those that may write.
    writers: u32,
    /// Who has claimed it to read.
    reading: Vec<Arc<str>>,
    /// Who has claimed it to write.
    writing: Option<Arc<str>>,
    /// It was claimed to write in this life of the filesystem: what somebody remembers from before may be old.
    was_written: bool,
}

impl Use {
    fn is_nothing(&self) -> bool {
        self.opens == 0 && self.reading.is_empty() && self.writing.is_none() && !self.was_written
    }

    fn user(&self) -> Option<&Arc<str>> {
        self.writing.as_ref().or(self.reading.first())
    }
}

/// Opens and claims of one filesystem.
pub(crate) struct Claims {
    shards: Box<[Mutex<HashMap<Ino, Use>>]>,
    /// Claims there are: mostly none, and then nothing is looked up.
    claims: AtomicUsize,
    /// Claims to write there ever were.
    written: AtomicUsize,
    tell: RwLock<Option<Tell>>,
}

impl Claims {
    pub(crate) fn new() -> Claims {
        Claims {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            claims: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            tell: RwLock::default(),
        }
    }

    fn with<T>(&self, ino: Ino, look: impl FnOnce(&mut Use) -> T) -> T {
        let mut shard = self.shards[(ino % SHARDS as u64) as usize].lock();
        let found = shard.entry(ino).or_default();
        let result = look(found);
        if found.is_nothing() {
            shard.remove(&ino);
        }
        result
    }

    fn user(&self, ino: Ino) -> Option<Arc<str>> {
        if self.claims.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.with(ino, |found| found.user().cloned())
    }

    fn writing_user(&self, ino: Ino) -> Option<Arc<str>> {
        if self.claims.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.with(ino, |found| found.writing.clone())
    }

    /// Counts an open.
    pub(crate) fn opened(&self, ino: Ino) {
        self.with(ino, |found| found.opens = found.opens.saturating_add(1));
    }

    /// Ends an open.
    pub(crate) fn released(&self, ino: Ino) {
        self.with(ino, |found| found.opens = found.opens.saturating_sub(1));
    }

    /// Ends all opens.
    pub(crate) fn released_all(&self) {
        for shard in &self.shards {
            shard.lock().retain(|_, found| {
                (found.opens, found.writers) = (0, 0);
                !found.is_nothing()
            });
        }
    }

    /// Counts somebody who may write; `ETXTBSY` while it is claimed.
    pub(crate) fn begin_writing(&self, ino: Ino) -> Result<()> {
        self.with(ino, |found| match found.user() {
            Some(user) => Err(in_use(Errno::ETXTBSY, user)),
            None => {
                // counted as an open too, so that the entry stays
                (found.opens, found.writers) = (found.opens.saturating_add(1), found.writers.saturating_add(1));
                Ok(())
            }
        })
    }

    /// Ends [`Claims::begin_writing`].
    pub(crate) fn end_writing(&self, ino: Ino) {
        self.with(ino, |found| {
            (found.opens, found.writers) = (found.opens.saturating_sub(1), found.writers.saturating_sub(1));
        });
    }

    /// `ETXTBSY` while the file is claimed: its contents are not to be changed by others.
    pub(crate) fn check_contents(&self, ino: Ino) -> Result<()> {
        self.user(ino).map_or(Ok(()), |user| Err(in_use(Errno::ETXTBSY, &user)))
    }

    /// `EBUSY` while the file is claimed: its names stay.
    pub(crate) fn check_name(&self, ino: Ino) -> Result<()> {
        self.user(ino).map_or(Ok(()), |user| Err(in_use(Errno::EBUSY, &user)))
    }

    /// Whether the file changes below the front end now.
    pub(crate) fn changes_below(&self, ino: Ino) -> bool {
        self.writing_user(ino).is_some()
    }

    /// Whether contents that the front end remembers may still hold.
    pub(crate) fn may_keep(&self, ino: Ino) -> bool {
        self.written.load(Ordering::Acquire) == 0 || self.with(ino, |found| !found.was_written)
    }

    /// The value of [`XATTR_IN_USE`].
    pub(crate) fn in_use_value(&self, ino: Ino) -> Option<Vec<u8>> {
        self.writing_user(ino).map(|user| user.as_bytes().to_vec())
    }

    pub(crate) fn set_tell(&self, tell: Tell) {
        *self.tell.write() = Some(tell);
    }

    /// Claims, or says what is in the way.
    fn claim(&self, ino: Ino, write: bool, who: &Arc<str>) -> Result<(), String> {
        self.with(ino, |found| {
            let other = if write { found.user() } else { found.writing.as_ref() };
            if let Some(other) = other {
                return Err(format!("is in use by {other}"));
            }
            if found.writers > 0 {
                return Err("is open for writing through its mount".to_owned());
            }
            if write && found.opens > 0 {
                return Err("is open through its mount".to_owned());
            }
            if write {
                found.writing = Some(who.clone());
                found.was_written = true;
                self.written.fetch_add(1, Ordering::AcqRel);
            } else {
                found.reading.push(who.clone());
            }
            self.claims.fetch_add(1, Ordering::AcqRel);
            Ok(())
        })
    }

    fn end(&self, ino: Ino, write: bool, who: &str) {
        self.with(ino, |found| {
            if write {
                found.writing = None;
            } else if let Some(at) = found.reading.iter().position(|reader| **reader == *who) {
                found.reading.swap_remove(at);
            }
        });
        self.claims.fetch_sub(1, Ordering::AcqRel);
    }

    fn any_user(&self) -> Option<Arc<str>> {
        self.shards.iter().find_map(|shard| shard.lock().values().find_map(|found| found.user().cloned()))
    }
}

fn in_use(errno: Errno, user: &str) -> Error {
    Error::new(ErrorKind::Posix(errno), format!("in use by {user}"))
}

impl<S: Store> FileSystem<S> {
    /// Claims a regular file as a disk for `who`, a few words for people. It exists, with a name, until
    /// [`FileSystem::unclaim`] is called with the same arguments.
    ///
    /// # Errors
    /// `Busy` when it is in use, with the words of whoever uses it; `NotFound`, `Invalid`, `ReadOnly`.
    pub fn claim(&self, ino: Ino, write: bool, who: &Arc<str>) -> Result<()> {
        if write && self.store.read_only() {
            crate::fail!(ReadOnly, "the pool is read-only");
        }
        let mut retries = 0;
        loop {
            let held = self.locks.exclusive(&[ino]);
            let inode = match self.load(ino) {
                Ok(inode) if inode.nlink > 0 => inode,
                Err(e) if e.errno() != Errno::ENOENT => return Err(e),
                _ => crate::fail!(NotFound, "the file does not exist any more"),
            };
            if !inode.is_regular() {
                crate::fail!(Invalid, "it is not a regular file");
            }
            match self.claims.claim(ino, write, who) {
                Ok(()) => {
                    self.open_files.open(ino);
                    drop(held);
                    let tell = self.claims.tell.read().clone();
                    if let Some(tell) = tell {
                        tell(ino);
                    }
                    return Ok(());
                }
                Err(why) if retries >= CLAIM_RETRIES => crate::fail!(Busy, "it {why}"),
                Err(_) => {}
            }
            drop(held);
            std::thread::sleep(CLAIM_RETRY);
            retries += 1;
        }
    }

    /// Ends a claim.
    pub fn unclaim(&self, ino: Ino, write: bool, who: &str) {
        self.claims.end(ino, write, who);
        Operations::forget(self, ino, 1);
    }

    /// Who uses a file of this filesystem as a disk, if anybody does.
    pub fn claimed_by(&self) -> Option<Arc<str>> {
        self.claims.any_user()
    }
}
