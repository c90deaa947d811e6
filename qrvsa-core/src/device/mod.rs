//! The one seam between the engine and whatever holds bytes.
//!
//! A [`Device`] takes batches of requests and completes them in any order. Requests own their memory, so a request that
//! outlives its caller's patience (a hung disk) harms nobody: the caller goes on after its deadline, the memory is
//! released when the device answers at last. Offsets, lengths and buffer addresses are multiples of 4 KiB.
//!
//! Durability: a completed write is volatile until a later [`Request::Flush`] on the same device completes, unless the
//! write was `durable`. A failed flush or write says nothing about what reached the medium; the pool takes the device out
//! of service, it never retries and trusts.

pub mod batch;
mod open;
mod probe;
mod request;
mod signature;
pub mod sim;
pub mod size;
mod spec;
#[cfg(test)]
mod tests;
mod uring;

pub use batch::{IoBatch, Outcome};
pub(crate) use open::open_growing;
pub use open::{OpenOptions, open};
pub use signature::{contains_foreign_data, is_blank};
pub use spec::DeviceSpec;
pub use uring::UringDevice;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::buf::{AlignedBuf, BufSlice};

/// What is known about a device when it is opened.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Where it was opened; for people and for the import hint.
    pub path: PathBuf,
    /// Usable bytes, a multiple of 4 KiB.
    pub size_bytes: u64,
    /// Smallest addressable unit, bytes (512 or 4096 usually).
    pub logical_sector_bytes: u32,
    /// Smallest unit written without an internal read, bytes.
    pub physical_sector_bytes: u32,
    /// Spinning disk.
    pub rotational: bool,
    /// Discard gives space back.
    pub discard: bool,
    /// What backs it: `"block"`, `"file"`, `"vhdx"`, `"sim"`.
    pub kind: &'static str,
}

/// One request. Offsets and lengths in bytes, multiples of 4 KiB.
#[derive(Debug)]
pub enum Request {
    /// Reads one contiguous run into the buffers, in order.
    Read {
        /// First byte.
        offset: u64,
        /// Destinations; they come back with the completion.
        bufs: Vec<AlignedBuf>,
    },
    /// Writes the slices, in order, as one contiguous run.
    Write {
        /// First byte.
        offset: u64,
        /// Sources.
        slices: Vec<BufSlice>,
        /// Forced unit access: durable when completed.
        durable: bool,
    },
    /// Makes every write completed before this request was submitted durable.
    Flush,
    /// Gives the run back; its content is undefined afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Something that is kept until a request has been answered, however long that takes.
pub(crate) type Guard = Box<dyn std::any::Any + Send>;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    /// The errno of the kernel, or of the simulator.
    pub errno: i32,
    /// What the device was doing, for the log.
    pub what: String,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for IoError {}

/// A member of a pool, whatever it is made of.
pub trait Device: Send + Sync {
    /// Facts probed at open.
    fn info(&self) -> &DeviceInfo;

    /// Starts the requests; each is answered exactly once through `completions` under its tag, from any thread, possibly
    /// before this returns. Requests are unordered among themselves.
    ///
    /// A device may only queue them on the calling thread and hand them over when that thread calls [`Device::kick`] or
    /// [`Device::drive`], so that a batch over many devices costs one system call. Whoever calls `submit` must
    /// therefore call one of the two afterwards, on the same thread; [`IoBatch`] does.
    fn submit(&self, requests: Vec<(u64, Request)>, completions: &Arc<batch::Completions>);

    /// Hands over what `submit` only queued on the calling thread. Does not wait.
    fn kick(&self) {}

    /// Hands over what is queued, and lets the calling thread reap completions that only it can reap (a ring of its own), for at most `timeout`:
    /// returns `true` as soon as some were reaped, or after `timeout`; a zero `timeout` reaps what is there.
    /// Returns at once with `false` when there is nothing for this thread to drive: the caller then waits passively.
    fn drive(&self, timeout: Duration) -> bool;

    /// Asks whether the device is still the one that was opened (present, not shrunk, not unlinked). Cheap: no I/O to the
    /// medium.
    ///
    /// # Errors
    /// What changed, in words.
    fn check_presence(&self) -> std::result::Result<(), IoError>;

    /// What the device takes of a filesystem under it, and what that has left; `None` where nothing grows.
    fn host_space(&self) -> Option<HostSpace> {
        None
    }
}

/// Space of a filesystem that a growing device lies on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostSpace {
    /// Bytes the device takes of it.
    pub taken_bytes: u64,
    /// Bytes it has left.
    pub free_bytes: u64,
}
