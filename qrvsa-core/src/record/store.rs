//! Records in a space: the owner of the read cache and of what readers and writers share.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use quick_cache::{OptionsBuilder, Weighter};

use super::pointer::{Pointer, UNIT_BLOCKS};
use super::reader::{record_key, unit_key};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::pool::space::Space;

/// A read is answered from the other columns after this long.
pub const READ_DEADLINE: Duration = Duration::from_secs(4);
/// Where the other columns are not enough, those that have not answered are asked once more and given this long: a disk
/// that has to spin up first takes ten seconds and more.
pub const LAST_READ_DEADLINE: Duration = Duration::from_secs(30);
/// A device that has not taken a write or a flush after this long is taken out of service.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Of a filesystem's contents, reads up to this many bytes go into the record cache; longer ones are streams, which the
/// kernel caches better.
pub const FILE_READ_KEPT_BYTES_MAX: usize = 64 << 10;

/// The cache is divided into parts, each with its own lock and its own share of the memory. They are at least this large, so
/// that none of them is full while others are empty, and the largest record fits.
const PART_BYTES_MIN: u64 = 4 << 20;

/// Identity of a checksum unit on the devices, or of a whole record (column [`WHOLE`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct UnitKey {
    pub group: u32,
    pub row: u32,
    pub column: u8,
    pub birth: u64,
}

/// Stands for all data columns together. No column has this number: there are at most 255.
pub(crate) const WHOLE: u8 = u8::MAX;

#[derive(Clone)]
pub(crate) struct ByLen;

impl Weighter<UnitKey, BufSlice> for ByLen {
    fn weight(&self, _: &UnitKey, value: &BufSlice) -> u64 {
        value.held_bytes() as u64 + 160
    }
}

/// Somebody lost data, or a device lied: kept for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Dataset and object on whose behalf the record was read, if known.
    pub object: Option<(u64, u64)>,
    /// Block group of the record.
    pub group: u32,
    /// First row of the record.
    pub row: u32,
}

/// Reads and writes records.
pub struct RecordStore {
    /// The space they lie in.
    pub space: Arc<Space>,
    pub(crate) cache: Cache<UnitKey, BufSlice, ByLen>,
    /// Whether whole records were ever put into the cache.
    has_whole: AtomicBool,
    pub(crate) damage: Mutex<Vec<Damage>>,
    describe: OnceLock<Describe>,
}

/// Names an object of a dataset for the log.
type Describe = Box<dyn Fn(u64, u64) -> String + Send + Sync>;

impl RecordStore {
    /// A store with a read cache of so many bytes.
    pub fn new(space: Arc<Space>, cache_bytes: u64) -> RecordStore {
        let items = usize::try_from(cache_bytes / (16 << 10)).unwrap_or(usize::MAX).max(64);
        let parts = usize::try_from(cache_bytes / PART_BYTES_MIN).unwrap_or(usize::MAX).max(1);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(cache_bytes)
            .shards(parts.min(4 * threads))
            .build()
            .expect("both capacities are set");
        RecordStore {
            space,
            cache: Cache::with_options(options, ByLen, Default::default(), Default::default()),
            has_whole: AtomicBool::new(false),
            damage: Mutex::new(Vec::new()),
            describe: OnceLock::new(),
        }
    }

    /// Sets how the log names objects. Once.
    pub fn set_describe(&self, describe: impl Fn(u64, u64) -> String + Send + Sync + 'static) {
        let _ = self.describe.set(Box::new(describe));
    }

    /// The object this thread works for, for the log.
    pub(crate) fn object_name(&self) -> String {
        thread_local! {
            static BUSY: Cell<bool> = const { Cell::new(false) };
        }
        let Some((dataset, object)) = super::context::current() else { return "metadata".to_owned() };
        // finding the name reads metadata, which may be damaged, too
        match self.describe.get() {
            Some(describe) if object != 0 && !BUSY.replace(true) => {
                let name = describe(dataset, object);
                BUSY.set(false);
                name
            }
            _ => format!("object {object} of dataset {dataset}"),
        }
    }

    /// Records that could not be read since the last call.
    pub fn take_damage(&self) -> Vec<Damage> {
        std::mem::take(&mut *self.damage.lock())
    }

    pub(crate) fn report_damage(&self, pointer: &Pointer) {
        let entry = Damage { object: super::context::current(), group: pointer.group, row: pointer.row };
        let mut list = self.damage.lock();
        if list.len() < 10_000 && !list.contains(&entry) {
            list.push(entry);
        }
    }

    /// Puts a record into the cache that was just written, as it lies in memory. Its contents are what its pointer's
    /// checksums are of.
    pub fn keep(&self, pointer: &Pointer, record: &BufSlice) {
        debug_assert_eq!(record.len(), pointer.len_bytes());
        self.has_whole.store(true, Ordering::Release);
        self.cache.insert(record_key(pointer), record.compact());
    }

    /// Puts a unit into the cache that was read and verified.
    pub(crate) fn keep_unit(&self, pointer: &Pointer, column: u32, unit: u32, bytes: &[u8]) {
        let copy = BufSlice::whole(Arc::new(AlignedBuf::from_slice(bytes)));
        self.cache.insert(unit_key(pointer, column, unit), copy);
    }

    /// The record, if it is in the cache as a whole.
    pub(crate) fn kept(&self, pointer: &Pointer) -> Option<BufSlice> {
        if self.has_whole.load(Ordering::Acquire) { self.cache.get(&record_key(pointer)) } else { None }
    }

    /// Appends bytes `range` of a record to `parts`, as they lie in the cache. `false`: not all of them are there, and
    /// some may have been appended. The caller holds a pin since before it looked the pointer up.
    pub fn lend(&self, pointer: &Pointer, range: Range<usize>, parts: &mut Vec<BufSlice>) -> bool {
        if let Some(bytes) = self.kept(pointer) {
            let inside = range.start <= range.end && range.end <= bytes.len();
            if inside {
                parts.push(bytes.slice(range));
            }
            return inside;
        }
        let (unit_bytes, fragment) = (UNIT_BLOCKS as usize * BLOCK_SIZE, pointer.rows() as usize * BLOCK_SIZE);
        let mut at = range.start;
        while at < range.end {
            let (column, in_column) = (at / fragment, at % fragment);
            let Some(bytes) = self.cache.get(&unit_key(pointer, column as u32, (in_column / unit_bytes) as u32)) else {
                return false;
            };
            let from = in_column % unit_bytes;
            let end = bytes.len().min(from + (range.end - at));
            if from >= end {
                return false;
            }
            at += end - from;
            parts.push(bytes.slice(from..end));
        }
        true
    }

    /// Takes a record out of the cache that nothing names any more: it would only keep others out. A reader that still has
    /// its pointer may put a part of it back, which then goes in its turn, as all that is not read.
    pub(crate) fn forget(&self, pointer: &Pointer) {
        if self.has_whole.load(Ordering::Acquire) && self.cache.remove(&record_key(pointer)).is_some() {
            // nobody has read parts of it from the disks
            return;
        }
        for column in 0..u32::from(pointer.width) {
            for unit in 0..pointer.units_per_column() {
                self.cache.remove(&unit_key(pointer, column, unit));
            }
        }
    }

    /// Bytes of memory that the cache takes.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Forgets cached units (a test or a scrub wants to see the devices).
    pub fn drop_cache(&self) {
        self.cache.clear();
    }
}
