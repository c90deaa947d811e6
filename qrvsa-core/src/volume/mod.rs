//! Block volumes: the contents of one object as a disk of fixed size.
//!
//! A volume is a dataset of its own with one object; writing, holes, commit and intent log are the object layer's, as for
//! files. What is here: the size, which bytes may be touched at once ([`locks`]), what a reserved volume promises, and the
//! words of disks: flush, forced unit access, discard, compare and write.
//!
//! # What a write promises
//! A write that returned is seen by every later read. It is durable after the next [`Volume::flush`], or at once when asked
//! for (`fua`). After a crash each 4 KiB block is there as it was written by the last durable write or by a later one; an
//! atomic write ([`Volume::write_atomic`]) is there as a whole or not at all.
//!
//! # A reserved volume
//! Room for all of it, in the worst case that its records can cost, is set aside when it is made. Each of its records is
//! either whole or absent: the first write to a part of one fills the rest with zeros, and a discard gives back whole records
//! only. So it costs exactly what was set aside, however it is written. An overwrite needs room for the new record before the
//! old one's comes back, one or two commits later; when others have taken everything else, the write waits for that.

mod check;
mod locks;
mod settings;
mod side;
mod users;
mod wholes;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use check::check;
pub use settings::{RECORD_BYTES_DEFAULT, SIZE_BYTES_MAX, Settings, Spec, VOLUME_OBJECT};
pub(crate) use settings::{check_size, settings_key};
pub(crate) use side::SIDE_BLOCK;
pub use users::{Alone, Sharing};

use crate::buf::{BLOCK_SIZE, BufSlice};
use crate::dataset::Dataset;
use crate::error::{ErrorKind, Result};
use crate::fail;
use crate::fs::store::Store;
use crate::item::{Intent, Log, ObjectRef};
use locks::Locks;
use users::Users;
use wholes::Wholes;

/// Longest atomic write, bytes.
pub const ATOMIC_BYTES_MAX: u64 = 256 << 10;
/// A longer write is done in pieces that end at multiples of this.
const PIECE_BYTES: u64 = 1 << 20;
/// Records that one transaction discards at most.
const DISCARD_RECORDS: u64 = 16 << 10;
/// Records that are discarded between two commits at most: freeing them takes memory.
const DISCARD_RECORDS_PER_COMMIT: u64 = 128 << 10;
/// How often a write that finds no room waits for a commit.
const WAITS_FOR_SPACE: u32 = 3;
/// The same for a reserved volume, whose room is there as soon as others have committed theirs.
const WAITS_FOR_CLAIMED_SPACE: u32 = 64;

/// Space, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeUsage {
    /// Data the volume holds, before redundancy.
    pub allocated_bytes: u64,
    /// What may still be written to places that hold nothing.
    pub available_bytes: u64,
}

/// A volume in use. Every user of a volume has the same one ([`crate::engine::Pool::open_volume`]). All methods may be called
/// from any thread, block on devices, and take offsets and lengths to the byte; multiples of 4 KiB cost least.
pub struct Volume {
    dataset: Arc<Dataset>,
    settings: Settings,
    size_bytes: AtomicU64,
    locks: Locks,
    wholes: Wholes,
    users: Users,
    /// The pool was closed.
    retired: AtomicBool,
    /// Held while the size changes.
    resizing: Mutex<()>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({}, {} bytes)", self.name(), self.size_bytes())
    }
}

impl Volume {
    /// The volume of a dataset.
    pub(crate) fn open(dataset: Arc<Dataset>) -> Result<Volume> {
        let Some(value) = Store::get(&*dataset, settings_key())? else {
            fail!(Corrupt, "volume '{}' has no settings", dataset.name());
        };
        let settings = Settings::decode(&value)?;
        Ok(Volume {
            dataset,
            settings,
            size_bytes: AtomicU64::new(settings.size_bytes),
            locks: Locks::new(),
            wholes: Wholes::default(),
            users: Users::default(),
            retired: AtomicBool::new(false),
            resizing: Mutex::new(()),
        })
    }

    /// Name within the pool.
    pub fn name(&self) -> String {
        self.dataset.name()
    }

    /// Size now, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// Logical block, 512 or 4096 bytes.
    pub fn block_bytes(&self) -> u32 {
        self.settings.block_bytes
    }

    /// Largest record, bytes: the best multiple to write at.
    pub fn record_bytes(&self) -> u32 {
        self.settings.record_bytes
    }

    /// Whether room for all of it is set aside.
    pub fn reserved(&self) -> bool {
        self.dataset.reserved()
    }

    /// Whether the pool takes no writes.
    pub fn read_only(&self) -> bool {
        Store::read_only(&*self.dataset)
    }

    /// A random number that names this volume for good, over renames and imports elsewhere.
    pub fn id(&self) -> u128 {
        self.settings.id
    }

    /// Its name for SCSI: [`Settings::naa`].
    pub fn naa(&self) -> u64 {
        self.settings.naa()
    }

    fn object(&self) -> ObjectRef {
        self.settings.object()
    }

    /// The range, if it lies in the volume. To be called with the range held.
    fn inside(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        if self.retired.load(Ordering::Acquire) {
            fail!(Suspended, "volume '{}' is closed: its pool was exported", self.name());
        }
        let size = self.size_bytes();
        match offset.checked_add(len).filter(|end| *end <= size) {
            Some(end) => Ok(offset..end),
            None => fail!(Invalid, "{len} bytes at {offset} lie beyond the end of the volume at {size} bytes"),
        }
    }

    /// Fills `buf` from the volume; what was never written is zero.
    ///
    /// # Errors
    /// `Invalid` beyond the end; `Io`, `Corrupt`; `Suspended` after the pool was closed.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _held = self.locks.shared(offset..offset.saturating_add(buf.len() as u64));
        self.inside(offset, buf.len() as u64)?;
        Store::read(&*self.dataset, self.object(), offset, buf)
    }

    /// The bytes at `offset` as they lie in the pool's cache, one part after the other, if all of them do; `None`: use
    /// [`Volume::read`]. What is lent stays as it is, whatever is written meanwhile.
    ///
    /// # Errors
    /// As for `read`.
    pub fn lend(&self, offset: u64, len: usize) -> Result<Option<Vec<BufSlice>>> {
        let _held = self.locks.shared(offset..offset.saturating_add(len as u64));
        self.inside(offset, len as u64)?;
        self.dataset.lend(self.object(), offset, len)
    }

    /// Writes; with `fua` it is durable at the return. A write of more than 1 MiB is done in pieces.
    ///
    /// # Errors
    /// `NoSpace`: of a long write, pieces before the one that failed are done. `Invalid`, `Io`, `Suspended`, `ReadOnly`.
    pub fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        let mut at = offset;
        let mut rest = data;
        loop {
            let room = usize::try_from(PIECE_BYTES - at % PIECE_BYTES).unwrap_or(usize::MAX);
            let (piece, after) = rest.split_at(rest.len().min(room));
            self.write_piece(at, piece)?;
            at += piece.len() as u64;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        if fua { self.sync_range(offset..at) } else { Ok(()) }
    }

    fn write_piece(&self, offset: u64, data: &[u8]) -> Result<()> {
        let span = offset..offset.saturating_add(data.len() as u64);
        {
            let _held = self.locks.shared(span.clone());
            self.inside(offset, data.len() as u64)?;
            if !self.needs_filling(&span)? {
                return self.put(offset, data);
            }
        }
        let _held = self.locks.exclusive(self.whole_records(&span));
        self.inside(offset, data.len() as u64)?;
        self.put_filled(offset, data)
    }

    /// Writes all of `data` or nothing of it, whatever happens, and no read sees a part of it. At most
    /// [`ATOMIC_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// As [`Volume::write`]; nothing was written. With `fua`, after an error of the log it may have been.
    pub fn write_atomic(&self, offset: u64, data: &[u8], fua: bool) -> Result<()> {
        if data.len() as u64 > ATOMIC_BYTES_MAX {
            fail!(Invalid, "an atomic write has at most {ATOMIC_BYTES_MAX} bytes");
        }
        let span = offset..offset.saturating_add(data.len() as u64);
        {
            let _held = self.locks.exclusive(self.whole_records(&span));
            self.inside(offset, data.len() as u64)?;
            self.put_whole(offset, data)?;
        }
        if fua { self.sync_range(span) } else { Ok(()) }
    }

    /// Compares what is at `offset` with `compare`, and writes `data` there if it is equal, as one step. Returns the first
    /// byte that differs, counted from `offset`, and writes nothing, if it is not. At most [`ATOMIC_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// As [`Volume::write_atomic`], and those of reading.
    pub fn compare_and_write(&self, offset: u64, compare: &[u8], data: &[u8], fua: bool) -> Result<Option<usize>> {
        if compare.len() as u64 > ATOMIC_BYTES_MAX || compare.len() != data.len() {
            fail!(Invalid, "compare and write takes two buffers of one length, at most {ATOMIC_BYTES_MAX} bytes");
        }
        let span = offset..offset.saturating_add(data.len() as u64);
        {
            let _held = self.locks.exclusive(self.whole_records(&span));
            self.inside(offset, data.len() as u64)?;
            let mut now = vec![0; compare.len()];
            Store::read(&*self.dataset, self.object(), offset, &mut now)?;
            let differs = now.iter().zip(compare).position(|(a, b)| a != b);
            if differs.is_some() {
                return Ok(differs);
            }
            self.put_whole(offset, data)?;
        }
        if fua {
            self.sync_range(span)?;
        }
        Ok(None)
    }

    /// Makes every write that returned durable.
    ///
    /// # Errors
    /// `Io`, `Suspended`: nothing may be assumed.
    pub fn flush(&self) -> Result<()> {
        {
            let _held = self.locks.shared(0..1);
            self.inside(0, 0)?;
        }
        let (_, known) = self.wholes.around(0..u64::MAX, Range::clone);
        let ticket = self.dataset.log_object(self.object(), &[])?;
        self.dataset.wait_durable(ticket)?;
        self.wholes.forget(&known);
        Ok(())
    }

    /// Makes a range durable, and every atomic write as a whole of which a part lies in it.
    fn sync_range(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        // the log has blocks; a record of a reserved volume is whole, also after a crash
        let unit = if self.reserved() { u64::from(self.settings.record_bytes) } else { BLOCK_SIZE as u64 };
        let (range, known) = self.wholes.around(range, |range| whole_units(range, unit));
        let ticket = self.dataset.log_range(self.object(), range)?;
        self.dataset.wait_durable(ticket)?;
        self.wholes.forget(&known);
        Ok(())
    }

    /// Makes a range read as zeros and gives its space back, with the next commits. Of a reserved volume whole records are
    /// given back, and stay set aside for it.
    ///
    /// # Errors
    /// `Invalid`, `Io`, `Corrupt` (reading blocks that are zeroed in part), `NoSpace` (keeping the rest of a record),
    /// `Suspended`, `ReadOnly`. Parts before the one that failed are done.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        {
            let _held = self.locks.shared(offset..offset.saturating_add(len.min(1)));
            self.inside(offset, len)?;
        }
        self.clear(offset..offset + len)
    }

    /// [`Volume::discard`] without a look at the size.
    fn clear(&self, range: Range<u64>) -> Result<()> {
        let record = u64::from(self.settings.record_bytes);
        let step = DISCARD_RECORDS * record;
        let mut at = range.start;
        let mut since_commit = 0;
        while at < range.end {
            // what holds nothing is stepped over, however large
            let data = Store::next_data(&*self.dataset, self.object(), at)?;
            let Some(data) = data.filter(|data| *data < range.end) else { return Ok(()) };
            at = at.max(data - data % record);
            let end = range.end.min((at / step + 1) * step);
            self.clear_piece(at..end)?;
            since_commit += (end - at).div_ceil(record);
            if since_commit >= DISCARD_RECORDS_PER_COMMIT && end < range.end {
                self.dataset.host.commit_now()?;
                since_commit = 0;
            }
            at = end;
        }
        Ok(())
    }

    fn clear_piece(&self, range: Range<u64>) -> Result<()> {
        // of a reserved volume no record goes while somebody counts on it
        let (_shared, _exclusive) = match self.reserved() {
            true => (None, Some(self.locks.exclusive(range.clone()))),
            false => (Some(self.locks.shared(range.clone())), None),
        };
        if self.retired.load(Ordering::Acquire) {
            fail!(Suspended, "volume '{}' is closed: its pool was exported", self.name());
        }
        let mut punched = range.clone();
        if self.reserved() {
            let record = u64::from(self.settings.record_bytes);
            punched = range.start.next_multiple_of(record)..range.end - range.end % record;
            if punched.start > range.end || punched.start > punched.end {
                return self.zero_inside(range);
            }
            self.zero_inside(range.start..punched.start)?;
            self.zero_inside(punched.end..range.end)?;
        }
        if punched.is_empty() {
            return Ok(());
        }
        self.when_there_is_room(WAITS_FOR_SPACE, || {
            let tx = self.dataset.begin(Intent::Shrink)?;
            Store::punch(&*self.dataset, &tx, self.object(), punched.clone())
        })
    }

    /// Zeroes a part of a record of a reserved volume, if the record is there.
    fn zero_inside(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() || self.absent(&range)? {
            return Ok(());
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        self.put(range.start, &vec![0; len])
    }

    /// The first byte at or after `offset` in a block with data; `None`: there is none before the end.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        let found = Store::next_data(&*self.dataset, self.object(), offset)?;
        Ok(found.filter(|at| *at < self.size_bytes()))
    }

    /// The first byte at or after `offset` in a block without data, at most the size.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        Ok(Store::next_hole(&*self.dataset, self.object(), offset)?.min(self.size_bytes()))
    }

    /// Space.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn usage(&self) -> Result<VolumeUsage> {
        let allocated_bytes = Store::allocated_bytes(&*self.dataset, self.object())?;
        let left = self.size_bytes().saturating_sub(allocated_bytes);
        let available_bytes = if self.reserved() { left } else { Store::usage(&*self.dataset).available_bytes };
        Ok(VolumeUsage { allocated_bytes, available_bytes })
    }

    /// The whole records that a range touches.
    fn whole_records(&self, range: &Range<u64>) -> Range<u64> {
        whole_units(range, u64::from(self.settings.record_bytes))
    }

    /// Whether nothing of the record that `range` lies in is there.
    fn absent(&self, range: &Range<u64>) -> Result<bool> {
        let whole = self.whole_records(range);
        let data = Store::next_data(&*self.dataset, self.object(), whole.start)?;
        Ok(data.is_none_or(|data| data >= whole.end))
    }

    /// The parts of the first and the last record that a write to `range` leaves out.
    fn left_out(&self, range: &Range<u64>) -> [Range<u64>; 2] {
        let whole = self.whole_records(range);
        [whole.start..range.start, range.end..whole.end]
    }

    /// Whether a write to `range` would leave a record in part.
    fn needs_filling(&self, range: &Range<u64>) -> Result<bool> {
        if !self.reserved() || range.is_empty() {
            return Ok(false);
        }
        for part in self.left_out(range).into_iter().filter(|part| !part.is_empty()) {
            if self.absent(&part)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes, and fills records that are not there yet with zeros around it. With the whole records held exclusively.
    fn put_filled(&self, offset: u64, data: &[u8]) -> Result<()> {
        let span = offset..offset + data.len() as u64;
        if !self.needs_filling(&span)? {
            return self.put(offset, data);
        }
        let [head, tail] = self.left_out(&span);
        let zeros = |part: &Range<u64>| -> Result<usize> {
            let fill = !part.is_empty() && self.absent(part)?;
            Ok(if fill { usize::try_from(part.end - part.start).unwrap_or(0) } else { 0 })
        };
        let (before, after) = (zeros(&head)?, zeros(&tail)?);
        let mut filled = vec![0; before + data.len() + after];
        if let Some(part) = filled.get_mut(before..before + data.len()) {
            part.copy_from_slice(data);
        }
        self.put(offset - before as u64, &filled)
    }

    /// As [`Volume::put_filled`], never to be there in part.
    fn put_whole(&self, offset: u64, data: &[u8]) -> Result<()> {
        let begun = self.wholes.begin(offset..offset + data.len() as u64);
        let done = self.put_filled(offset, data);
        self.wholes.end(begun, done.is_ok());
        done
    }

    /// Writes into the object, as one change of one transaction. Waits for commits that may make room.
    fn put(&self, offset: u64, data: &[u8]) -> Result<()> {
        let (intent, waits) = match self.reserved() {
            true => (Intent::Claimed, WAITS_FOR_CLAIMED_SPACE),
            false => (Intent::Grow, WAITS_FOR_SPACE),
        };
        self.when_there_is_room(waits, || {
            let tx = self.dataset.begin(intent)?;
            Store::write(&*self.dataset, &tx, self.object(), offset, data)
        })
    }

    /// Makes a change; while it finds no room and a commit may make some, again, at most `waits` times. The change is no longer
    /// open when `change` returns.
    fn when_there_is_room(&self, waits: u32, change: impl Fn() -> Result<()>) -> Result<()> {
        let mut waited = 0;
        loop {
            match change() {
                Err(e) if e.kind() == ErrorKind::NoSpace && waited < waits && self.dataset.host.space_may_return() => {
                    waited += 1;
                    self.dataset.host.commit_now()?;
                }
                done => return done,
            }
        }
    }

    /// Changes the size, durably. What is cut off is gone.
    pub(crate) fn set_size(&self, size_bytes: u64, force: bool) -> Result<()> {
        let _resizing = self.resizing.lock();
        check_size(size_bytes, self.settings.block_bytes)?;
        let old = self.size_bytes();
        if size_bytes < old && !force {
            fail!(
                NeedsForce,
                "volume '{}' would shrink from {old} to {size_bytes} bytes and lose what is behind that; use --force to do it",
                self.name()
            );
        }
        {
            // nobody is beyond the new end after this
            let _held = self.locks.exclusive(0..u64::MAX);
            self.inside(0, 0)?;
            if size_bytes < old {
                self.size_bytes.store(size_bytes, Ordering::Release);
            }
        }
        let stored = self.store_size(size_bytes, old);
        let now = if stored.is_ok() { size_bytes } else { old };
        self.size_bytes.store(now, Ordering::Release);
        stored
    }

    fn store_size(&self, size_bytes: u64, old: u64) -> Result<()> {
        if size_bytes < old {
            // a later growth must not bring it back
            self.clear(size_bytes..self.whole_records(&(0..old)).end)?;
        }
        {
            let settings = Settings { size_bytes, ..self.settings };
            let tx = self.dataset.begin(Intent::Shrink)?;
            Store::put(&*self.dataset, &tx, settings_key(), settings.encode().into(), Log::WithObject);
        }
        self.dataset.host.commit_now()
    }

    /// Ends all use: what is under way ends first, what comes later fails.
    pub(crate) fn retire(&self) {
        let _held = self.locks.exclusive(0..u64::MAX);
        self.retired.store(true, Ordering::Release);
    }
}

/// The whole units that a range touches.
fn whole_units(range: &Range<u64>, unit: u64) -> Range<u64> {
    let end = range.end.max(range.start);
    range.start - range.start % unit..end.checked_next_multiple_of(unit).unwrap_or(end)
}
