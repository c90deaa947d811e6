//! Records in a space: the owner of the read cache and of what readers and writers share.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::pointer::Pointer;
use crate::pool::space::Space;

/// A read is answered from the other columns after this long.
pub const READ_DEADLINE: Duration = Duration::from_secs(4);
/// A device that has not taken a write or a flush after this long is taken out of service.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Of a filesystem's contents, reads up to this many bytes go into the record cache; longer ones are streams, which the
/// kernel caches better.
pub const FILE_READ_KEPT_BYTES_MAX: usize = 64 << 10;

/// Identity of a checksum unit on the devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct UnitKey {
    pub group: u32,
    pub row: u32,
    pub column: u8,
    pub birth: u64,
}

#[derive(Clone)]
pub(crate) struct ByLen;

impl Weighter<UnitKey, Arc<[u8]>> for ByLen {
    fn weight(&self, _: &UnitKey, value: &Arc<[u8]>) -> u64 {
        value.len() as u64 + 96
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
    pub(crate) cache: Cache<UnitKey, Arc<[u8]>, ByLen>,
    pub(crate) damage: Mutex<Vec<Damage>>,
    describe: OnceLock<Describe>,
}

/// Names an object of a dataset for the log.
type Describe = Box<dyn Fn(u64, u64) -> String + Send + Sync>;

impl RecordStore {
    /// A store with a read cache of so many bytes.
    pub fn new(space: Arc<Space>, cache_bytes: u64) -> RecordStore {
        let items = usize::try_from(cache_bytes / (16 << 10)).unwrap_or(usize::MAX).max(64);
        RecordStore {
            space,
            cache: Cache::with_weighter(items, cache_bytes, ByLen),
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

    /// Forgets cached units (a test or a scrub wants to see the devices).
    pub fn drop_cache(&self) {
        self.cache.clear();
    }
}
