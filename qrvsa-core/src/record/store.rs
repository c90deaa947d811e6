//! Records in a space: the owner of the read cache and of what readers and writers share.

use std::sync::Arc;
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
/// Reads up to this many bytes go into the record cache; longer ones are streams, which the kernel caches better.
pub const CACHED_READ_BYTES_MAX: usize = 64 << 10;

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
}

impl RecordStore {
    /// A store with a read cache of so many bytes.
    pub fn new(space: Arc<Space>, cache_bytes: u64) -> RecordStore {
        let items = usize::try_from(cache_bytes / (16 << 10)).unwrap_or(usize::MAX).max(64);
        RecordStore { space, cache: Cache::with_weighter(items, cache_bytes, ByLen), damage: Mutex::new(Vec::new()) }
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
