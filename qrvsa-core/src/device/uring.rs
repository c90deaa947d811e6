//! A block device, a partition or a plain file behind io_uring and direct I/O.
//!
//! - **One ring per thread** (`ring`), shared by all devices: no lock is contended on the I/O path, a batch over many
//!   devices is one system call, and a single read at queue depth 1 is one `io_uring_enter` that submits and waits.
//!   [`Device::submit`] therefore only queues; [`Device::kick`] and [`Device::drive`] hand over.
//! - **Requests own their memory** (`entry`) and lie in their ring's slab until the kernel has answered, however long
//!   the caller has stopped waiting. A thread that exits first waits for them a little, then leaves its ring to the
//!   others.
//! - **Registered files** (`file`): a ring registers a device at its first request and loses it when the device goes.
//!   Buffers are *not* registered: requests bring buffers that the record layer allocates, hands out and frees as it
//!   likes; registering each would cost a system call and page pinning per request, more than the page lookup it saves,
//!   and a pool of registered bounce buffers would copy every byte.
//! - Where io_uring is not permitted (containers often forbid it), the same requests run as blocking `preadv`/`pwritev2`
//!   calls inside `submit` (`blocking`), with the same outcomes.

mod blocking;
mod entry;
mod file;
mod ring;

use std::sync::Arc;
use std::time::Duration;

use super::batch::{Completions, Outcome};
use super::{Device, DeviceInfo, Guard, IoError, Request, probe};
use entry::Entry;
pub(super) use file::DeviceFile;

/// A disk or a file, opened by [`open`](super::open()).
pub struct UringDevice {
    file: Arc<DeviceFile>,
}

impl UringDevice {
    /// A device on an open file.
    pub(super) fn new(file: DeviceFile) -> UringDevice {
        UringDevice { file: Arc::new(file) }
    }

    /// Whether transfers bypass the page cache. Where the filesystem refuses that (tmpfs), they are buffered, with the
    /// same durability: a flush is `fdatasync`, a durable write is synchronous.
    pub fn direct_io(&self) -> bool {
        self.file.direct
    }

    /// Starts requests as [`Device::submit`] does, each with something that is let go when it has been answered.
    pub(crate) fn submit_guarded(&self, requests: Vec<(u64, Request, Guard)>, completions: &Arc<Completions>) {
        let admit = |(tag, request, guard)| {
            let mut entry = self.admit(tag, request, completions)?;
            entry.set_guard(guard);
            Some(entry)
        };
        self.queue(requests.into_iter().filter_map(admit).collect());
    }

    /// Device and inode of the open file.
    pub(crate) fn identity(&self) -> nix::Result<(u64, u64)> {
        nix::sys::stat::fstat(&self.file.fd).map(|stat| (stat.st_dev, stat.st_ino))
    }

    fn queue(&self, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        ring::with_local(|ring| match ring {
            Some(ring) => ring.queue(&self.file, entries),
            None => entries.into_iter().for_each(blocking::execute),
        });
    }

    /// Checks a request; answers it at once if it is wrong or empty.
    fn admit(&self, tag: u64, request: Request, completions: &Arc<Completions>) -> Option<Entry> {
        let path = self.file.info.path.display();
        if self.file.read_only && request.is_change() {
            let what = format!("{} refused (opened read-only)", request.describe(&path));
            completions.complete(tag, Outcome::Failed(IoError { errno: libc::EROFS, what }));
            return None;
        }
        let len = match request.check(self.file.info.size_bytes, &path) {
            Ok(len) => len,
            Err(error) => {
                completions.complete(tag, Outcome::Failed(error));
                return None;
            }
        };
        match request {
            Request::Read { bufs, .. } if len == 0 => completions.complete(tag, Outcome::Done(bufs)),
            Request::Write { .. } | Request::Discard { .. } if len == 0 => {
                completions.complete(tag, Outcome::Done(Vec::new()));
            }
            request => return Some(Entry::new(self.file.clone(), tag, request, len, completions.clone())),
        }
        None
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        // Answered requests that no thread has come back for would keep the file open, and claimed.
        ring::reap_everywhere();
    }
}

impl Device for UringDevice {
    fn info(&self) -> &DeviceInfo {
        &self.file.info
    }

    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<Completions>) {
        let admit = |(tag, request)| self.admit(tag, request, completions);
        self.queue(requests.into_iter().filter_map(admit).collect());
    }

    fn kick(&self) {
        ring::with_existing(|ring| ring.kick());
    }

    fn drive(&self, timeout: Duration) -> bool {
        ring::with_existing(|ring| ring.drive(timeout)).unwrap_or(false)
    }

    fn check_presence(&self) -> Result<(), IoError> {
        probe::check_presence(&self.file.fd, &self.file.info)
    }
}

#[cfg(test)]
pub(super) mod testing {
    /// Makes the calling thread, which has not used a device yet, do without io_uring.
    pub fn forbid_ring_on_this_thread() {
        super::ring::forbid_on_this_thread();
    }

    /// Requests the calling thread's ring still waits for; `None` without a ring.
    pub fn in_flight() -> Option<usize> {
        super::ring::with_existing(|ring| ring.in_flight())
    }

    /// Devices registered with the calling thread's ring; `None` without a ring.
    pub fn registered() -> Option<usize> {
        super::ring::registered_on_this_thread()
    }

    /// Rings left behind by threads that ended with requests in flight, after reaping what has arrived.
    pub fn orphans() -> usize {
        super::ring::reap_orphans();
        super::ring::orphan_count()
    }
}
