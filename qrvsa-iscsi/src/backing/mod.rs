//! What a logical unit keeps its bytes in.

mod file;
mod memory;
mod null;
mod sys;

pub use file::{FileBacking, FileOptions};
pub use memory::MemoryBacking;
pub use null::NullBacking;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Why a backing failed; decides the sense data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No space is left for this write: SPACE ALLOCATION FAILED WRITE PROTECT.
    NoSpace,
    /// The bytes cannot be read: UNRECOVERED READ ERROR.
    Unreadable,
    /// The bytes cannot be written: WRITE ERROR.
    Unwritable,
    /// The backing does not take writes: WRITE PROTECTED.
    ReadOnly,
    /// The backing is gone or suspended: LOGICAL UNIT NOT READY.
    Gone,
}

/// A failure of a backing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the initiator is told.
    pub kind: FailureKind,
    /// For the log: what failed on what, and why.
    pub text: String,
    /// First byte that failed, where known.
    pub offset: Option<u64>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Result of a backing's operation.
pub type Result<T> = std::result::Result<T, Failure>;

/// A run of bytes of one kind, for GET LBA STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes from the offset that was asked about; not 0.
    pub bytes: u64,
    /// Whether it takes space.
    pub mapped: bool,
}

/// Bytes that lie in a cache of the storage and are sent from there. They stay as they are as long as the part is held.
#[derive(Clone)]
pub struct Part {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({} of {} bytes)", self.range.len(), self.held_bytes())
    }
}

impl Part {
    /// A part of `bytes`, which are always the same; what of the range is beyond them is cut off.
    #[must_use]
    pub fn new(bytes: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Part {
        let end = range.end.min((*bytes).as_ref().len());
        Part { range: range.start.min(end)..end, bytes }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref().get(self.range.clone()).unwrap_or_default()
    }

    /// How much memory it keeps alive, bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        (*self.bytes).as_ref().len()
    }

    /// At most `len` bytes of it, from byte `from` on.
    pub(crate) fn part(&self, from: usize, len: usize) -> Part {
        let start = self.range.start.saturating_add(from).min(self.range.end);
        let end = start.saturating_add(len).min(self.range.end);
        Part { bytes: Arc::clone(&self.bytes), range: start..end }
    }
}

/// Space under a backing, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Taken by this backing.
    pub allocated_bytes: u64,
    /// Still to be had where it lies.
    pub available_bytes: u64,
}

/// Block storage of a fixed size. All methods may be called from any thread, at the same time, and may block, except
/// [`Backing::read_now`]. Offsets and lengths are multiples of the logical block that the unit was configured with, and lie within
/// [`Backing::size_bytes`]. A completed write is seen by every later read; it is durable after the next [`Backing::flush`].
pub trait Backing: Send + Sync {
    /// Size in bytes now; it may grow while in use.
    fn size_bytes(&self) -> u64;

    /// Never takes writes.
    fn read_only(&self) -> bool;

    /// Space is given on the first write and comes back with [`Backing::unmap`].
    fn thin(&self) -> bool;

    /// Best multiple of bytes to write at, a power of two; 0 when it does not matter.
    fn preferred_bytes(&self) -> u32 {
        0
    }

    /// A number that names this storage for good, over renames and restarts; `None` when it has none of its own.
    fn identity(&self) -> Option<u128> {
        None
    }

    /// Fills `buf` only if that needs no waiting (it is in memory); `None` says that it does.
    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<()>> {
        let _ = (offset, buf);
        None
    }

    /// The bytes as they lie in memory, one part after the other, together exactly `bytes` long; `None` when that cannot be:
    /// then they are read. A write that comes later does not change them.
    fn lend(&self, offset: u64, bytes: usize) -> Option<Vec<Part>> {
        let _ = (offset, bytes);
        None
    }

    /// Fills `buf`. Bytes never written are zero.
    ///
    /// # Errors
    /// [`FailureKind::Unreadable`], [`FailureKind::Gone`].
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes all of `data`; with `durable`, it is on stable storage at the return (FUA).
    ///
    /// # Errors
    /// Any kind; part of the data may have been written.
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()>;

    /// Writes all of `data`, or nothing of it, whatever happens (a crash included). Called for at most
    /// [`Backing::atomic_bytes_max`] bytes.
    ///
    /// # Errors
    /// Any kind; nothing was written.
    fn write_atomic(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        let _ = (offset, data, durable);
        Err(Failure { kind: FailureKind::Unwritable, text: "no atomic writes here".into(), offset: None })
    }

    /// Longest write that can be atomic, in bytes; 0 for none.
    fn atomic_bytes_max(&self) -> u64 {
        0
    }

    /// Makes every completed write durable (SYNCHRONIZE CACHE).
    ///
    /// # Errors
    /// [`FailureKind::Unwritable`] when something acknowledged may be lost, [`FailureKind::Gone`].
    fn flush(&self) -> Result<()>;

    /// Gives the range back; it reads as zero afterwards. Storage that cannot give space back writes zeroes.
    ///
    /// # Errors
    /// Any kind.
    fn unmap(&self, offset: u64, bytes: u64) -> Result<()>;

    /// Makes the range read as zero and keeps its space, so that later writes to it do not fail for space where that can be had.
    ///
    /// # Errors
    /// Any kind.
    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()>;

    /// The run that begins at `offset`, at most `bytes_max` long.
    ///
    /// # Errors
    /// [`FailureKind::Unreadable`].
    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent>;

    /// Space, for thin provisioning thresholds and log page 0Ch.
    fn space(&self) -> Space;
}
