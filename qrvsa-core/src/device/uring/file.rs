//! The open file under a device, and its places in the rings' tables of registered files.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::IoUring;
use parking_lot::Mutex;

use super::super::DeviceInfo;
use super::ring;

/// An open file. Requests in flight hold it, so that neither the descriptor nor a place in a table of registered files is
/// reused under them, and so that the exclusive claim lasts as long as a late write may still land.
pub struct DeviceFile {
    /// Never used twice in a process; never zero.
    pub id: u64,
    /// Does the I/O.
    pub fd: OwnedFd,
    /// Holds the exclusive claim (`flock`, `O_EXCL`). Not the I/O descriptor: rings register that one, and a registered
    /// file stays open a little longer than its descriptor.
    _claim: Option<OwnedFd>,
    pub info: DeviceInfo,
    /// Transfers bypass the page cache.
    pub direct: bool,
    pub read_only: bool,
}

impl DeviceFile {
    pub fn new(fd: OwnedFd, claim: Option<OwnedFd>, info: DeviceInfo, direct: bool, read_only: bool) -> DeviceFile {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        DeviceFile { id, fd, _claim: claim, info, direct, read_only }
    }
}

impl Drop for DeviceFile {
    fn drop(&mut self) {
        ring::forget_file(self.id);
    }
}

/// Places in a ring's table. Beyond that many devices, plain descriptors are used.
pub(super) const SLOTS: u32 = 256;

/// Which device holds which place in one ring's table of registered files. Locked apart from the ring's queues: a device
/// that goes away leaves the tables of all threads, also of one that waits in its ring.
pub(super) struct FileTable {
    /// Device ids by place; 0 is free. `None` when the kernel refused a table.
    ids: Mutex<Option<Vec<u64>>>,
}

impl FileTable {
    /// Makes the kernel's table, all places free.
    pub fn new(ring: &IoUring) -> FileTable {
        let ids = match ring.submitter().register_files_sparse(SLOTS) {
            Ok(()) => Some(vec![0; SLOTS as usize]),
            Err(error) => {
                tracing::debug!(%error, "io_uring: no registered files, using plain descriptors");
                None
            }
        };
        FileTable { ids: Mutex::new(ids) }
    }

    /// The file's place, registering it at first use. `None`: use the plain descriptor.
    pub fn place(&self, ring: &IoUring, file: &DeviceFile) -> Option<u32> {
        let mut guard = self.ids.lock();
        let ids = guard.as_mut()?;
        if let Some(slot) = position(ids, file.id) {
            return Some(slot);
        }
        let slot = position(ids, 0)?;
        match ring.submitter().register_files_update(slot, &[file.fd.as_raw_fd()]) {
            Ok(_) => {
                ids[slot as usize] = file.id;
                Some(slot)
            }
            Err(error) => {
                tracing::debug!(%error, "io_uring: cannot register a file, using its plain descriptor");
                None
            }
        }
    }

    /// Takes a file out. No request in flight uses it: requests keep their file alive.
    pub fn forget(&self, ring: &IoUring, id: u64) {
        const NONE: RawFd = -1;
        let mut guard = self.ids.lock();
        let Some(ids) = guard.as_mut() else { return };
        let Some(slot) = position(ids, id) else { return };
        // A place the kernel will not clear stays taken by an id that never comes again.
        if ring.submitter().register_files_update(slot, &[NONE]).is_ok() {
            ids[slot as usize] = 0;
        }
    }

    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.ids.lock().as_ref().map_or(0, |ids| ids.iter().filter(|id| **id != 0).count())
    }
}

fn position(ids: &[u64], id: u64) -> Option<u32> {
    ids.iter().position(|i| *i == id).and_then(|i| u32::try_from(i).ok())
}
