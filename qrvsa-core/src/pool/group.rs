//! A block group in memory: where its columns lie, which rows are in use.
//!
//! Two bitmaps: `live` are the rows the root being built refers to (that is what is stored), `busy` are those that must
//! not be handed out: live ones and ones freed so recently that an older uberblock may still refer to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};

use super::bitmap::Bitmap;
use super::format::entries::{CHUNK_ROWS, Class, ColumnEntry, GroupEntry};

/// Rows in use.
pub struct Rows {
    /// Rows of the root being built.
    pub live: Bitmap,
    /// Rows that must not be handed out.
    pub busy: Bitmap,
    /// Chunks of `live` that changed since they were stored.
    pub dirty_chunks: BTreeSet<u32>,
    /// Where the next search starts.
    pub cursor: u32,
    /// No clear run of this many rows exists (a hint that holds until rows are released).
    pub no_run_of: u32,
}

/// A block group.
pub struct Group {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub class: Class,
    /// Data columns.
    pub width: u8,
    /// Parity columns or copies.
    pub parity: u8,
    /// Where the columns lie.
    pub columns: RwLock<Vec<ColumnEntry>>,
    /// Shared by writers for the time of a write, exclusive for a rebuild of a part.
    pub io: Arc<RwLock<()>>,
    /// Loaded on demand.
    rows: Mutex<Option<Box<Rows>>>,
    used: AtomicU32,
    busy_rows: AtomicU32,
    pub(crate) changed: AtomicBool,
    /// Takes no new extents (being emptied or rebuilt).
    pub frozen: AtomicBool,
    zone_rows: u32,
}

impl Group {
    /// A new, empty group.
    pub fn new(id: u32, class: Class, width: u8, parity: u8, columns: Vec<ColumnEntry>, zone_rows: u32) -> Group {
        let group = Group::from_entry(&GroupEntry { id, class, width, parity, used_rows: 0, columns }, zone_rows);
        *group.rows.lock() = Some(Box::new(Rows::empty(zone_rows)));
        group.changed.store(true, Ordering::Relaxed);
        group
    }

    /// A stored group; its rows are not loaded yet.
    pub fn from_entry(entry: &GroupEntry, zone_rows: u32) -> Group {
        Group {
            id: entry.id,
            class: entry.class,
            width: entry.width,
            parity: entry.parity,
            columns: RwLock::new(entry.columns.clone()),
            io: Arc::new(RwLock::new(())),
            rows: Mutex::new(None),
            used: AtomicU32::new(entry.used_rows),
            busy_rows: AtomicU32::new(entry.used_rows),
            changed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            zone_rows,
        }
    }

    /// What is stored of it.
    pub fn entry(&self) -> GroupEntry {
        GroupEntry {
            id: self.id,
            class: self.class,
            width: self.width,
            parity: self.parity,
            used_rows: self.used.load(Ordering::Relaxed),
            columns: self.columns.read().clone(),
        }
    }

    /// Rows in each column.
    pub fn zone_rows(&self) -> u32 {
        self.zone_rows
    }

    /// Data and parity columns.
    pub fn column_count(&self) -> u32 {
        u32::from(self.width) + u32::from(self.parity)
    }

    /// Rows of the root being built.
    pub fn used_rows(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Rows that may be handed out.
    pub fn free_rows(&self) -> u32 {
        self.zone_rows - self.busy_rows.load(Ordering::Relaxed)
    }

    /// Chunks of the bitmap.
    pub fn chunks(&self) -> u32 {
        self.zone_rows.div_ceil(CHUNK_ROWS)
    }

    /// Works on the rows, loading them with `load` if they are not in memory.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn with_rows<T, E>(
        &self,
        load: impl FnOnce(&Group) -> Result<Bitmap, E>,
        work: impl FnOnce(&mut Rows) -> T,
    ) -> Result<T, E> {
        let mut guard = self.rows.lock();
        if guard.is_none() {
            *guard = Some(Box::new(Rows::loaded(load(self)?)));
        }
        let rows = guard.as_mut().expect("filled above");
        let result = work(rows);
        Ok(result)
    }

    /// Installs rows found by a walk (system groups).
    pub fn install_rows(&self, live: Bitmap) {
        let ones = live.count_ones();
        self.used.store(ones, Ordering::Relaxed);
        self.busy_rows.store(ones, Ordering::Relaxed);
        *self.rows.lock() = Some(Box::new(Rows::loaded(live)));
    }

    /// Takes a run of rows out of `rows` and counts it.
    pub(crate) fn take(&self, rows: &mut Rows, row: u32, count: u32) {
        assert!(rows.busy.change_run(row, count, true), "group {}: rows {row}+{count} handed out twice", self.id);
        assert!(rows.live.change_run(row, count, true), "group {}: live rows {row}+{count} were not busy", self.id);
        rows.touch(row, count);
        self.used.fetch_add(count, Ordering::Relaxed);
        self.busy_rows.fetch_add(count, Ordering::Relaxed);
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Ends the life of a run; it stays busy. False if it was not live.
    #[must_use]
    pub(crate) fn drop_live(&self, rows: &mut Rows, row: u32, count: u32) -> bool {
        if !rows.live.change_run(row, count, false) {
            return false;
        }
        rows.touch(row, count);
        self.used.fetch_sub(count, Ordering::Relaxed);
        self.changed.store(true, Ordering::Relaxed);
        true
    }

    /// Makes dead rows available again.
    pub(crate) fn release(&self, rows: &mut Rows, row: u32, count: u32) {
        assert!(rows.busy.change_run(row, count, false), "group {}: rows {row}+{count} released twice", self.id);
        rows.no_run_of = u32::MAX;
        rows.cursor = rows.cursor.min(row);
        self.busy_rows.fetch_sub(count, Ordering::Relaxed);
    }

    /// Nothing in use, nothing waiting.
    pub fn is_idle(&self) -> bool {
        self.busy_rows.load(Ordering::Relaxed) == 0
    }
}

impl Rows {
    fn empty(len: u32) -> Rows {
        Rows::loaded(Bitmap::new(len))
    }

    fn loaded(live: Bitmap) -> Rows {
        Rows { busy: live.clone(), live, dirty_chunks: BTreeSet::new(), cursor: 0, no_run_of: u32::MAX }
    }

    fn touch(&mut self, row: u32, count: u32) {
        self.dirty_chunks.extend(row / CHUNK_ROWS..=(row + count - 1) / CHUNK_ROWS);
    }
}
