//! The pool in memory, and what its datasets ask of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::dataset::memtable::Growth;
use crate::dataset::nodes::Nodes;
use crate::dataset::{Dataset, Host};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::item::{Intent, Usage};
use crate::pool::format::entries::{Class, Content, kind};
use crate::pool::group::Group;
use crate::pool::space::{Geometry, Space};
use crate::record::store::RecordStore;
use crate::tree::{Key, Root};
use crate::txg::gate::Gate;
use crate::txg::log::IntentLog;
use crate::volume::Volume;

/// However much memory there is, a commit begins at so many dirty bytes: a file's first fsync waits for what is dirty of
/// it. It is not less because of what is changed at random: the more of it lies together, the more of it falls into the
/// same records, each of which is written once, however many of its blocks have changed.
const DIRTY_START_BYTES_MAX: u64 = 512 << 20;

/// Of data that costs the same whenever it is written (whole records, as a stream makes them), so many dirty bytes begin a
/// commit: the devices then work beside the stream from its start, and less is left to do when it ends.
const WHOLE_START_BYTES_MAX: u64 = 32 << 20;

/// With room for so many blocks no commit is begun for the rests of punched records.
const RESTS_BLOCKS_AHEAD: u64 = 16 << 10;

/// What a pool is run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for dirty data and caches together, bytes.
    pub memory_bytes: u64,
    /// Unsynced data is never older than this.
    pub commit_interval: Duration,
    /// Never write.
    pub read_only: bool,
    /// Bytes of intent log to make at creation; `None` for the default.
    pub log_bytes: Option<u64>,
    /// Scrub and rebuild at most so many bytes a second; 0 for no limit.
    pub background_rate: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            memory_bytes: 512 << 20,
            commit_interval: Duration::from_secs(5),
            read_only: false,
            log_bytes: None,
            background_rate: 0,
        }
    }
}

impl Options {
    /// Dirty memory at which writers wait.
    pub fn dirty_bytes_max(&self) -> u64 {
        self.memory_bytes * 2 / 5
    }

    /// Dirty memory at which a commit begins without waiting for its time.
    pub fn dirty_bytes_start(&self) -> u64 {
        (self.memory_bytes / 5).min(DIRTY_START_BYTES_MAX)
    }

    /// Dirty memory in whole records at which a commit begins without waiting for its time.
    pub fn whole_bytes_start(&self) -> u64 {
        (self.memory_bytes / 20).min(WHOLE_START_BYTES_MAX)
    }
}

/// What only the committing thread changes.
pub(crate) struct CommitState {
    /// Import counter.
    pub generation: u64,
    /// Log position that the previous uberblock refers to.
    pub previous_mark: u64,
    /// While a log is replayed, uberblocks go on naming its start.
    pub replaying: Option<crate::pool::format::uberblock::LogStart>,
    /// Times of the last commits, nanoseconds, for status.
    pub last_commit_ns: u64,
}

/// A running pool.
pub struct Pool {
    /// Name.
    pub name: String,
    /// Identity.
    pub id: u128,
    /// Creation, nanoseconds since the epoch.
    pub created_ns: i64,
    /// What it is run with.
    pub options: Options,
    /// Devices and rows.
    pub space: Arc<Space>,
    /// Records.
    pub records: Arc<RecordStore>,
    pub(crate) env: Environment,
    pub(crate) meta: Arc<Nodes>,
    pub(crate) system: Arc<Nodes>,
    pub(crate) gate: Gate,
    pub(crate) log: IntentLog,
    pub(crate) datasets: RwLock<BTreeMap<u64, Arc<Dataset>>>,
    /// Volumes in use, by dataset.
    pub(crate) volumes: Mutex<BTreeMap<u64, Weak<Volume>>>,
    /// What is promised to each reserved volume beyond what it has.
    pub(crate) claims: Mutex<BTreeMap<u64, super::volumes::Claim>>,
    /// Held while datasets are made and destroyed, so that names and numbers are given once.
    pub(crate) naming: Mutex<()>,
    /// Values that front ends keep, by name.
    pub(crate) blobs: super::blobs::Blobs,
    pub(crate) root: ArcSwap<Root>,
    pub(crate) commit_state: Mutex<CommitState>,
    pub(crate) committed: AtomicU64,
    pub(crate) dirty: Arc<AtomicI64>,
    /// Of that, bytes of whole records in the open group.
    pub(crate) whole: Arc<AtomicU64>,
    open_items: AtomicU64,
    open_item_bytes: AtomicI64,
    /// Nodes of all datasets' trees, as of the last commit.
    pub(crate) tree_nodes: AtomicU64,
    suspended: AtomicBool,
    suspended_why: Mutex<String>,
    /// Items of the pool tree to store with the next commit.
    pub(crate) pool_items: Mutex<BTreeMap<Key, Option<Vec<u8>>>>,
    /// Acknowledged data is being replayed: it is reserved whether there is room or not, the reserve has it.
    pub(crate) replaying: Arc<AtomicBool>,
    pub(crate) wake: Arc<(Mutex<bool>, Condvar)>,
    /// Objects known to have lost data.
    pub(crate) damaged: Mutex<BTreeMap<(u64, u64), String>>,
    pub(crate) jobs: super::status::Jobs,
    pub(crate) warnings: Mutex<Vec<String>>,
}

/// The parts that creation and import put together.
pub(crate) struct Parts {
    pub name: String,
    pub id: u128,
    pub created_ns: i64,
    pub env: Environment,
    pub options: Options,
    pub space: Arc<Space>,
    pub log_segments: Vec<Arc<Group>>,
    pub log_start: crate::pool::format::uberblock::LogStart,
    pub txg: u64,
    pub generation: u64,
    pub root: Root,
}

impl Pool {
    pub(crate) fn assemble(parts: Parts) -> Pool {
        let memory = parts.options.memory_bytes;
        let records = Arc::new(RecordStore::new(parts.space.clone(), memory / 4));
        let meta = Arc::new(Nodes::new(records.clone(), Class::Meta, memory / 5));
        let system = Arc::new(Nodes::new(records.clone(), Class::System, memory / 40));
        let log = IntentLog::new(parts.space.clone(), parts.id, parts.log_segments, parts.log_start);
        let mark = log.mark(parts.txg).position;
        Pool {
            name: parts.name,
            id: parts.id,
            created_ns: parts.created_ns,
            options: parts.options,
            space: parts.space,
            records,
            env: parts.env,
            meta,
            system,
            gate: Gate::new(parts.txg + 1),
            log,
            datasets: RwLock::new(BTreeMap::new()),
            volumes: Mutex::new(BTreeMap::new()),
            claims: Mutex::new(BTreeMap::new()),
            naming: Mutex::new(()),
            blobs: super::blobs::Blobs::default(),
            root: ArcSwap::from_pointee(parts.root),
            commit_state: Mutex::new(CommitState {
                generation: parts.generation,
                previous_mark: mark,
                replaying: None,
                last_commit_ns: 0,
            }),
            committed: AtomicU64::new(parts.txg),
            dirty: Arc::new(AtomicI64::new(0)),
            whole: Arc::new(AtomicU64::new(0)),
            open_items: AtomicU64::new(0),
            open_item_bytes: AtomicI64::new(0),
            tree_nodes: AtomicU64::new(0),
            suspended: AtomicBool::new(false),
            suspended_why: Mutex::new(String::new()),
            pool_items: Mutex::new(BTreeMap::new()),
            replaying: Arc::new(AtomicBool::new(false)),
            wake: Arc::new((Mutex::new(false), Condvar::new())),
            damaged: Mutex::new(BTreeMap::new()),
            jobs: super::status::Jobs::default(),
            warnings: Mutex::new(Vec::new()),
        }
    }

    /// Stops writing for good.
    pub(crate) fn suspend(&self, error: &Error) {
        let mut why = self.suspended_why.lock();
        if !self.suspended.swap(true, Ordering::AcqRel) {
            *why = error.to_string();
            tracing::error!(pool = %self.name, "pool suspended: {error}");
        }
    }

    /// Ends writing because the pool's service ends: what comes later is refused as on a suspended pool.
    pub(crate) fn end_writing(&self) {
        let mut why = self.suspended_why.lock();
        if !self.suspended.swap(true, Ordering::AcqRel) {
            "it was exported or destroyed".clone_into(&mut why);
        }
    }

    /// Why the pool stopped writing, if it did.
    pub fn suspended(&self) -> Option<String> {
        self.suspended.load(Ordering::Acquire).then(|| self.suspended_why.lock().clone())
    }

    /// Bytes of unsynced data and items.
    pub fn dirty_bytes(&self) -> u64 {
        let unsigned = |bytes: &AtomicI64| u64::try_from(bytes.load(Ordering::Relaxed)).unwrap_or(0);
        unsigned(&self.dirty) + unsigned(&self.open_item_bytes)
    }

    /// How many tree nodes a commit of the items that are changed now may write at most. Each changed item may rewrite a node of its
    /// own, but no node is rewritten twice: more than there are can only come from what is added, and are filled to a
    /// quarter at least.
    fn commit_nodes_max(&self) -> u64 {
        /// An extent of one block: pointer, key, and its part of a parent.
        const EXTENT_BYTES: u64 = 192;
        let extents = u64::try_from(self.dirty.load(Ordering::Relaxed)).unwrap_or(0) / crate::buf::BLOCK_SIZE as u64;
        let item_bytes = u64::try_from(self.open_item_bytes.load(Ordering::Relaxed)).unwrap_or(0);
        let added = (item_bytes + extents * EXTENT_BYTES) / (crate::tree::NODE_BYTES_MAX as u64 / 4);
        let items = self.open_items.load(Ordering::Relaxed);
        items.min(self.tree_nodes.load(Ordering::Relaxed) + added + 64)
    }

    /// The newest committed transaction group.
    pub fn committed_txg(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub(crate) fn reset_open_items(&self) {
        self.open_items.store(0, Ordering::Relaxed);
        self.open_item_bytes.store(0, Ordering::Relaxed);
    }

    /// All datasets, by number, without those that are being destroyed.
    pub fn datasets(&self) -> Vec<Arc<Dataset>> {
        self.datasets.read().values().filter(|d| !d.destroying()).cloned().collect()
    }

    /// All datasets, by number.
    pub(crate) fn every_dataset(&self) -> Vec<Arc<Dataset>> {
        self.datasets.read().values().cloned().collect()
    }

    /// The dataset of this name; empty for the pool's own filesystem.
    pub fn dataset(&self, name: &str) -> Option<Arc<Dataset>> {
        self.datasets.read().values().find(|d| d.name() == name && !d.destroying()).cloned()
    }

    /// Stores an item of the pool tree with the next commit.
    pub(crate) fn put_pool_item(&self, key: Key, value: Option<Vec<u8>>) {
        self.pool_items.lock().insert(key, value);
    }

    /// Wakes the committer.
    pub(crate) fn wake_committer(&self) {
        *self.wake.0.lock() = true;
        self.wake.1.notify_all();
    }

    /// Whether a commit would change anything on disk.
    pub(crate) fn has_work(&self) -> bool {
        self.dirty_bytes() > 0
            || self.space.has_coming_frees()
            || !self.pool_items.lock().is_empty()
            || self.is_destroying()
            || self.space.members().iter().any(|m| m.changed.load(Ordering::Relaxed))
            || self.every_dataset().iter().any(|d| d.objects.has_work())
    }

    /// Commits while the rests of records that were punched in part take more than half of what there is for them: their old
    /// records come back one commit later than they are written. `at_any_price`: also where there is so little room that
    /// each change would be a commit.
    ///
    /// # Errors
    /// As [`Pool::commit_up_to`].
    pub(crate) fn make_room_for_rests(&self, at_any_price: bool) -> Result<()> {
        // two records of the largest size
        let least = self.space.cost_blocks(256) * 2;
        for _ in 0..3 {
            let (room, reserved) = (self.space.room_with_rests(), self.space.reserved());
            let crowded = room.saturating_sub(reserved) < (room / 2).clamp(least, RESTS_BLOCKS_AHEAD);
            if reserved == 0 || !crowded || (room < least && !at_any_price) {
                break;
            }
            self.space.end_holds();
            self.commit_now()?;
        }
        Ok(())
    }

    /// Whether a dataset is being destroyed.
    pub fn is_destroying(&self) -> bool {
        self.datasets.read().values().any(|d| d.destroying())
    }

    /// The committer: runs commits when they are due until `stop` says so. One thread of the daemon runs this.
    pub fn run_committer(&self, stop: &AtomicBool) {
        let mut last = self.env.clock.monotonic_ns();
        while !stop.load(Ordering::Acquire) {
            {
                let mut wake = self.wake.0.lock();
                if !*wake {
                    self.wake.1.wait_for(&mut wake, Duration::from_millis(250));
                }
                *wake = false;
            }
            if self.suspended().is_some() || self.options.read_only {
                continue;
            }
            self.check_devices();
            let due =
                self.env.clock.monotonic_ns().saturating_sub(last) >= self.options.commit_interval.as_nanos() as u64;
            let full = self.dirty_bytes() >= self.options.dirty_bytes_start()
                || self.whole.load(Ordering::Relaxed) >= self.options.whole_bytes_start()
                || self.log.fill_percent() >= 50
                || self.is_destroying();
            if full || (due && self.has_work()) {
                if let Err(e) = self.commit() {
                    tracing::error!(pool = %self.name, "commit failed: {e}");
                }
                last = self.env.clock.monotonic_ns();
            } else if due {
                last = self.env.clock.monotonic_ns();
            }
        }
    }

    /// Takes devices out of service that are not there any more.
    pub fn check_devices(&self) {
        for member in self.space.members() {
            if let Some(device) = member.device()
                && let Err(e) = device.check_presence()
            {
                member.fail(&format!("the device is gone: {e}"));
            }
        }
    }

    /// Geometry of data.
    pub fn geometry(&self) -> Geometry {
        self.space.geometry
    }

    /// Records what a read or a scrub could not have any more.
    pub fn note_damage(&self) {
        for damage in self.records.take_damage() {
            let Some((dataset, object)) = damage.object else {
                let text = format!("metadata in block group {}, row {}", damage.group, damage.row);
                let key = (0, u64::from(damage.group) << 32 | u64::from(damage.row));
                if self.damaged.lock().insert(key, text.clone()).is_none() {
                    self.put_pool_item(damage_key(key), Some(text.into_bytes()));
                }
                continue;
            };
            let text = self.describe_object(dataset, object);
            if self.damaged.lock().insert((dataset, object), text.clone()).is_none() {
                self.put_pool_item(damage_key((dataset, object)), Some(text.into_bytes()));
            }
        }
    }

    /// Forgets damaged objects that are deleted by now.
    pub(crate) fn prune_damage(&self) {
        use crate::object::Items;
        let known: Vec<(u64, u64)> = self.damaged.lock().keys().copied().collect();
        for (dataset, object) in known {
            if dataset == 0 {
                continue;
            }
            let ds = self.datasets.read().get(&dataset).cloned();
            let (first, last) = (Key::new(object, 0, 0), Key::new(object, u8::MAX, u64::MAX));
            let gone = ds.is_none_or(|ds| ds.items.scan(first, last, 1).is_ok_and(|items| items.is_empty()));
            if gone && self.damaged.lock().remove(&(dataset, object)).is_some() {
                self.put_pool_item(damage_key((dataset, object)), None);
            }
        }
    }

    /// A name for people: dataset and path, or the object number.
    pub fn describe_object(&self, dataset: u64, object: u64) -> String {
        let Some(ds) = self.datasets.read().get(&dataset).cloned() else {
            return format!("object {object} of dataset {dataset}");
        };
        let name = ds.name();
        let label = if name.is_empty() { self.name.clone() } else { format!("{}/{name}", self.name) };
        if ds.content() == Content::Volume {
            return format!("volume {label}");
        }
        match crate::fs::path_of(&*ds, object) {
            Some(path) => format!("{label}:{}", String::from_utf8_lossy(&path)),
            None => format!("{label}: inode {object}"),
        }
    }
}

/// Key of a damage item.
pub(crate) fn damage_key(object: (u64, u64)) -> Key {
    Key::new(object.0.min(u64::from(u32::MAX)), kind::DAMAGE, object.1)
}

impl Host for Pool {
    fn gate(&self) -> &Gate {
        &self.gate
    }

    fn log(&self) -> &IntentLog {
        &self.log
    }

    fn admit(&self, intent: Intent) -> Result<()> {
        self.check_writable()?;
        if self.dirty_bytes() >= self.options.dirty_bytes_max() {
            self.commit_now()?;
        }
        let capacity = self.space.capacity();
        // each changed item may rewrite a node of its own, three times before the first comes back
        let node = u64::from(crate::pool::space::NODE_ROWS) * (1 + u64::from(self.space.geometry.parity));
        // what is promised to volumes is not touched, unless the promise is what is asked for
        let kept = if intent == Intent::Grow { self.space.claimed() } else { 0 };
        let room = capacity.free.saturating_sub(self.space.reserved() + kept) + capacity.reserve;
        if self.commit_nodes_max().saturating_mul(node * 3) > room.max(node * 64) {
            self.commit_now()?;
        }
        if intent == Intent::Shrink {
            self.make_room_for_rests(false)?;
        }
        if intent == Intent::Grow {
            // room for the largest single write, or a reason to believe that a commit makes some
            let margin = self.space.cost_blocks(512) * 2;
            for _ in 0..3 {
                if self.space.unclaimed() >= margin || !self.space_may_return() {
                    break;
                }
                self.space.end_holds();
                self.commit_now()?;
            }
            if self.space.unclaimed() < self.space.cost_blocks(1) * 4 {
                // a pool that was closed meanwhile has no devices, and so no room
                self.check_writable()?;
                return Err(Error::new(ErrorKind::NoSpace, "the pool is full"));
            }
        }
        Ok(())
    }

    fn commit_now(&self) -> Result<()> {
        let wanted = self.gate.open_txg();
        self.commit_up_to(wanted)
    }

    fn account_items(&self, growth: Growth) {
        self.open_items.fetch_add(growth.items, Ordering::Relaxed);
        let before = self.open_item_bytes.fetch_add(growth.bytes, Ordering::Relaxed);
        // wake the committer when the limit is passed, not at every item beyond it
        let limit = i64::try_from(self.options.dirty_bytes_start()).unwrap_or(i64::MAX);
        if before < limit && before + growth.bytes >= limit {
            self.wake_committer();
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.options.read_only {
            fail!(ReadOnly, "pool '{}' is read-only", self.name);
        }
        match self.suspended() {
            Some(why) => fail!(Suspended, "pool '{}' stopped writing: {why}", self.name),
            None => Ok(()),
        }
    }

    fn usage(&self) -> Usage {
        let capacity = self.space.capacity();
        let block = crate::buf::BLOCK_SIZE as u64;
        let free = (capacity.free + capacity.pending).min(capacity.total);
        let available = free.saturating_sub(self.space.reserved() + self.space.claimed());
        Usage { total_bytes: capacity.total * block, free_bytes: available * block, available_bytes: available * block }
    }

    fn env(&self) -> &Environment {
        &self.env
    }

    fn merge_content_fields(&self, old: Option<&[u8]>, new: &[u8]) -> Vec<u8> {
        crate::fs::inode::merge_content_fields(old, new)
    }

    fn space_may_return(&self) -> bool {
        self.space.reserved() > 0
            || self.space.has_pending_frees()
            || self.is_destroying()
            // what was punched or removed since the last commit
            || self.every_dataset().iter().any(|d| d.objects.has_work())
    }

    fn read_only(&self) -> bool {
        self.options.read_only
    }
}
