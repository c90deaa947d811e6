//! A request in flight: it owns the memory the kernel reads or writes, knows how far it has come, and turns the kernel's
//! answers into an outcome. The ring and the blocking fallback share it, so both have the same semantics.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use super::super::batch::{Completions, Outcome};
use super::super::{Guard, IoError, Request};
use super::file::DeviceFile;
use crate::buf::BLOCK_SIZE;

/// Most vectors in one system call (`IOV_MAX`); the rest follows as the remainder of a short transfer.
const VECTORS_MAX: usize = 1024;
/// Most bytes of one plain read or write: the kernel's own limit, in whole blocks.
const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;
/// How often an interrupted or refused (`EINTR`, `EAGAIN`) call is repeated without progress.
const RETRIES_MAX: u32 = 1000;
/// Punches a hole without changing the size.
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

pub struct Entry {
    file: Arc<DeviceFile>,
    tag: u64,
    completions: Arc<Completions>,
    request: Request,
    /// Bytes the request is about.
    total: u64,
    /// Bytes transferred so far, in whole blocks.
    done: u64,
    retries: u32,
    /// Place in the table of registered files of the ring the entry lies in.
    slot: Option<u32>,
    /// Points into the request's buffers; the kernel may read it until it answers.
    vectors: Vec<libc::iovec>,
    /// What must stay as it is until the answer.
    guard: Option<Guard>,
}

// SAFETY: the pointers in `vectors` point into buffers that the entry itself owns (or, for writes, shares immutably); they
// move between threads together.
unsafe impl Send for Entry {}

/// What an answer means for the entry.
pub enum Step {
    /// Issue the entry again, for the remainder or because the kernel asks for it.
    Again,
    /// Report this.
    Finished(Outcome),
}

impl Entry {
    /// `total` bytes have been checked to lie on the device.
    pub fn new(file: Arc<DeviceFile>, tag: u64, request: Request, total: u64, completions: Arc<Completions>) -> Entry {
        let vectors = Vec::new();
        Entry { file, tag, completions, request, total, done: 0, retries: 0, slot: None, vectors, guard: None }
    }

    pub fn set_guard(&mut self, guard: Guard) {
        self.guard = Some(guard);
    }

    pub fn set_slot(&mut self, slot: Option<u32>) {
        self.slot = slot;
    }

    /// Releases the device and the sources of a write, then reports the outcome: whoever learns of it finds them free.
    pub fn finish(self, outcome: Outcome) {
        let Entry { file, tag, completions, request, guard, .. } = self;
        drop(request);
        drop(guard);
        drop(file);
        completions.complete(tag, outcome);
    }

    /// The position of the remainder.
    fn position(&self) -> u64 {
        self.request.offset() + self.done
    }

    /// Lists the remainder's memory in `vectors`, as much as one call takes.
    fn list_vectors(&mut self) {
        self.vectors.clear();
        let mut skip = usize::try_from(self.done).expect("transferred bytes lie in memory");
        let mut add = |ptr: *mut u8, len: usize| {
            if skip >= len {
                skip -= len;
            } else if self.vectors.len() < VECTORS_MAX {
                let base = ptr.wrapping_add(skip);
                self.vectors.push(libc::iovec { iov_base: base.cast(), iov_len: len - skip });
                skip = 0;
            }
        };
        match &mut self.request {
            Request::Read { bufs, .. } => bufs.iter_mut().for_each(|b| add(b.as_mut_ptr(), b.len())),
            // The kernel only reads through these.
            Request::Write { slices, .. } => slices.iter().for_each(|s| add(s.as_ptr().cast_mut(), s.len())),
            Request::Flush | Request::Discard { .. } => {}
        }
        if let [one] = self.vectors.as_mut_slice() {
            one.iov_len = one.iov_len.min(TRANSFER_BYTES_MAX);
        }
    }

    fn write_flags(&self) -> i32 {
        if matches!(self.request, Request::Write { durable: true, .. }) { libc::RWF_DSYNC } else { 0 }
    }

    /// The submission for the remainder. The entry must live, unmoved in its buffers and vectors, until the answer.
    pub fn submission(&mut self) -> squeue::Entry {
        self.list_vectors();
        match self.slot {
            Some(slot) => self.build(types::Fixed(slot)),
            None => self.build(types::Fd(self.file.fd.as_raw_fd())),
        }
    }

    fn build(&self, target: impl Target) -> squeue::Entry {
        let position = self.position();
        let flags = self.write_flags();
        // One vector: the plain opcode spares the kernel copying the list. Its length is at most TRANSFER_BYTES_MAX.
        let single = match self.vectors.as_slice() {
            [one] => u32::try_from(one.iov_len).ok().map(|len| (one.iov_base.cast::<u8>(), len)),
            _ => None,
        };
        let (list, count) = (self.vectors.as_ptr(), u32::try_from(self.vectors.len()).unwrap_or(0));
        match (&self.request, single) {
            (Request::Read { .. }, Some((base, len))) => target.read(base, len, position),
            (Request::Read { .. }, None) => target.readv(list, count, position),
            (Request::Write { .. }, Some((base, len))) => target.write(base, len, position, flags),
            (Request::Write { .. }, None) => target.writev(list, count, position, flags),
            (Request::Flush, _) => target.datasync(),
            (Request::Discard { len, .. }, _) => target.punch(position, *len),
        }
    }

    /// The same remainder as a blocking system call: bytes, or a negative errno, as in a completion.
    pub fn call(&mut self) -> i32 {
        self.list_vectors();
        let fd = self.file.fd.as_raw_fd();
        let (list, count) = (self.vectors.as_ptr(), i32::try_from(self.vectors.len()).unwrap_or(0));
        let position = i64::try_from(self.position()).unwrap_or(i64::MAX);
        let result = match &self.request {
            // SAFETY: the vectors point into buffers this entry owns, exclusively for a read.
            Request::Read { .. } => unsafe { libc::preadv(fd, list, count, position) },
            // SAFETY: the vectors point into buffers this entry keeps alive.
            Request::Write { .. } => unsafe { libc::pwritev2(fd, list, count, position, self.write_flags()) },
            // SAFETY: takes a descriptor only.
            Request::Flush => unsafe { libc::fdatasync(fd) as isize },
            Request::Discard { len, .. } => {
                let len = i64::try_from(*len).unwrap_or(i64::MAX);
                // SAFETY: takes a descriptor and numbers only.
                unsafe { libc::fallocate(fd, PUNCH, position, len) as isize }
            }
        };
        if result < 0 {
            return -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        }
        i32::try_from(result).unwrap_or(i32::MAX)
    }

    /// Takes the kernel's answer: bytes transferred, or a negative errno.
    pub fn advance(&mut self, result: i32) -> Step {
        if result < 0 {
            return self.refused(-result);
        }
        if let Request::Flush | Request::Discard { .. } = self.request {
            return Step::Finished(Outcome::Done(Vec::new()));
        }
        // A transfer that ends inside a block goes on at the block's start, as direct I/O must.
        let reached = self.done + u64::from(result.unsigned_abs());
        let reached = if reached >= self.total { self.total } else { reached - reached % BLOCK_SIZE as u64 };
        if reached == self.done {
            // Nothing at a place that was inside the device when it was opened.
            let what = format!("{}: the device ended early, it has shrunk", self.describe());
            return Step::Finished(Outcome::Failed(IoError { errno: libc::EIO, what }));
        }
        self.done = reached;
        self.retries = 0;
        if self.done < self.total {
            return Step::Again;
        }
        Step::Finished(Outcome::Done(match &mut self.request {
            Request::Read { bufs, .. } => std::mem::take(bufs),
            _ => Vec::new(),
        }))
    }

    fn refused(&mut self, errno: i32) -> Step {
        match errno {
            libc::EINTR | libc::EAGAIN if self.retries < RETRIES_MAX => {
                self.retries += 1;
                return Step::Again;
            }
            // Discard is a hint: without it, the content stays, which is as undefined as any.
            libc::EOPNOTSUPP | libc::ENOSYS if matches!(self.request, Request::Discard { .. }) => {
                return Step::Finished(Outcome::Done(Vec::new()));
            }
            _ => {}
        }
        Step::Finished(Outcome::Failed(IoError { errno, what: self.describe() }))
    }

    fn describe(&self) -> String {
        self.request.describe(&self.file.info.path.display())
    }
}

/// A registered or a plain descriptor; the submission builders take either type.
trait Target {
    fn read(self, base: *mut u8, len: u32, position: u64) -> squeue::Entry;
    fn readv(self, list: *const libc::iovec, count: u32, position: u64) -> squeue::Entry;
    fn write(self, base: *const u8, len: u32, position: u64, flags: i32) -> squeue::Entry;
    fn writev(self, list: *const libc::iovec, count: u32, position: u64, flags: i32) -> squeue::Entry;
    fn datasync(self) -> squeue::Entry;
    fn punch(self, position: u64, len: u64) -> squeue::Entry;
}

macro_rules! target {
    ($type:ty) => {
        impl Target for $type {
            fn read(self, base: *mut u8, len: u32, position: u64) -> squeue::Entry {
                opcode::Read::new(self, base, len).offset(position).build()
            }
            fn readv(self, list: *const libc::iovec, count: u32, position: u64) -> squeue::Entry {
                opcode::Readv::new(self, list, count).offset(position).build()
            }
            fn write(self, base: *const u8, len: u32, position: u64, flags: i32) -> squeue::Entry {
                opcode::Write::new(self, base, len).offset(position).rw_flags(flags).build()
            }
            fn writev(self, list: *const libc::iovec, count: u32, position: u64, flags: i32) -> squeue::Entry {
                opcode::Writev::new(self, list, count).offset(position).rw_flags(flags).build()
            }
            fn datasync(self) -> squeue::Entry {
                opcode::Fsync::new(self).flags(types::FsyncFlags::DATASYNC).build()
            }
            fn punch(self, position: u64, len: u64) -> squeue::Entry {
                opcode::Fallocate::new(self, len).offset(position).mode(PUNCH).build()
            }
        }
    };
}

target!(types::Fixed);
target!(types::Fd);
