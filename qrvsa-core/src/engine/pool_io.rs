//! Records as the object layer sees them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::Pool;
use crate::buf::BufSlice;
use crate::error::Result;
use crate::item::Intent;
use crate::object::{Pin, ReadRequest, RecordIo};
use crate::pool::format::entries::{Class, Content};
use crate::record::pointer::Pointer;
use crate::record::store::{FILE_READ_KEPT_BYTES_MAX, RecordStore};

/// Data records of a pool.
pub struct PoolIo {
    records: Arc<RecordStore>,
    dirty: Arc<AtomicI64>,
    whole: Arc<AtomicU64>,
    whole_start: u64,
    wake: Arc<(Mutex<bool>, Condvar)>,
    dirty_start: i64,
    replaying: Arc<AtomicBool>,
    /// The dataset's space is set aside.
    claimed: bool,
    /// Reads up to this length are kept in the record cache.
    kept_bytes_max: usize,
    /// What is written is kept in the record cache.
    keeps_written: bool,
}

impl PoolIo {
    /// Over a pool, for a dataset of this kind whose space is set aside (`claimed`) or not.
    pub fn new(pool: &Pool, content: Content, claimed: bool) -> PoolIo {
        PoolIo {
            claimed,
            kept_bytes_max: match content {
                Content::FileSystem => FILE_READ_KEPT_BYTES_MAX,
                // nobody above a volume keeps what it reads
                Content::Volume => usize::MAX,
            },
            // for the same reason: what was just written was in memory, and would have to come from the disks
            keeps_written: content == Content::Volume,
            records: pool.records.clone(),
            dirty: pool.dirty.clone(),
            whole: pool.whole.clone(),
            whole_start: pool.options.whole_bytes_start(),
            wake: pool.wake.clone(),
            replaying: pool.replaying.clone(),
            dirty_start: i64::try_from(pool.options.dirty_bytes_start()).unwrap_or(i64::MAX),
        }
    }
}

impl RecordIo for PoolIo {
    fn read(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        self.records.read(requests, self.kept_bytes_max)
    }

    fn lend(&self, pointer: &Pointer, range: Range<usize>, parts: &mut Vec<BufSlice>) -> bool {
        self.records.lend(pointer, range, parts)
    }

    fn read_once(&self, requests: &mut [ReadRequest<'_>]) -> Result<()> {
        self.records.read(requests, 0)
    }

    fn keep(&self, pointer: &Pointer, record: &BufSlice) {
        if self.keeps_written {
            self.records.keep(pointer, record);
        }
    }

    fn write(&self, txg: u64, records: &[BufSlice]) -> Result<Vec<Pointer>> {
        self.records.write(txg, Class::Data, records)
    }

    fn free(&self, txg: u64, pointer: &Pointer) {
        if let Err(e) = self.records.free(txg, pointer) {
            // space is leaked, which check finds; no data is in danger
            tracing::error!("a record could not be freed: {e}");
        }
    }

    fn cost_blocks(&self, blocks: u32) -> u64 {
        self.records.space.cost_blocks(blocks)
    }

    fn reserve(&self, blocks: u64, intent: Intent) -> Result<()> {
        let space = &self.records.space;
        match intent {
            // acknowledged before the crash, when there was room
            _ if self.replaying.load(Ordering::Acquire) => {
                space.reserve_forced(blocks);
                Ok(())
            }
            Intent::Shrink => space.reserve_rest(blocks),
            Intent::Grow if !self.claimed => space.reserve(blocks),
            Intent::Grow | Intent::Claimed => space.reserve_claimed(blocks),
        }
    }

    fn release(&self, blocks: u64) {
        self.records.space.release(blocks);
    }

    fn account_dirty(&self, delta_bytes: i64) {
        let before = self.dirty.fetch_add(delta_bytes, Ordering::AcqRel);
        if before < self.dirty_start && before + delta_bytes >= self.dirty_start {
            *self.wake.0.lock() = true;
            self.wake.1.notify_all();
        }
    }

    fn whole_dirty(&self, bytes: u64) {
        let before = self.whole.fetch_add(bytes, Ordering::AcqRel);
        if before < self.whole_start && before.saturating_add(bytes) >= self.whole_start {
            *self.wake.0.lock() = true;
            self.wake.1.notify_all();
        }
    }

    fn pin(&self) -> Pin {
        Pin::new(self.records.space.epoch.pin())
    }
}
