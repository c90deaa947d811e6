//! The dataset in memory, and what it needs from the pool it belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::items::DatasetItems;
use super::memtable::Growth;
use crate::buf::BufSlice;
use crate::env::Environment;
use crate::error::Result;
use crate::item::{Intent, KIND_ORPHAN, ObjectRef, Usage};
use crate::object::Objects;
use crate::pool::format::entries::{Content, DatasetEntry};
use crate::record::context::with_object;
use crate::tree::{Key, Root};
use crate::txg::gate::Gate;
use crate::txg::log::IntentLog;

/// What a dataset asks of its pool.
pub trait Host: Send + Sync {
    /// The gate of the open transaction group.
    fn gate(&self) -> &Gate;
    /// The intent log.
    fn log(&self) -> &IntentLog;
    /// Waits (by committing, if need be) until a transaction may begin. Nobody holds the gate on this thread.
    ///
    /// # Errors
    /// `NoSpace`, `ReadOnly`, `Suspended`.
    fn admit(&self, intent: Intent) -> Result<()>;
    /// Commits everything begun before the call.
    ///
    /// # Errors
    /// `Suspended`, `Io`.
    fn commit_now(&self) -> Result<()>;
    /// Accounts what the changed items of the open transaction group have grown by.
    fn account_items(&self, growth: Growth);
    /// Fails once the pool stopped writing.
    ///
    /// # Errors
    /// `Suspended`, `ReadOnly`.
    fn check_writable(&self) -> Result<()>;
    /// Space.
    fn usage(&self) -> Usage;
    /// Clock and randomness.
    fn env(&self) -> &Environment;
    /// Merges an inode item whose content fields are not to be replayed.
    fn merge_content_fields(&self, old: Option<&[u8]>, new: &[u8]) -> Vec<u8>;
    /// Whether a commit may make room: something is freed, reserved or being destroyed.
    fn space_may_return(&self) -> bool;
    /// Whether the pool was imported read-only.
    fn read_only(&self) -> bool;
}

/// Namespace changes that are not in the intent log yet.
#[derive(Default)]
pub(crate) struct PendingLog {
    pub entries: Vec<(u64, Vec<u8>)>,
    pub bytes: usize,
}

/// A dataset.
pub struct Dataset {
    /// Its number.
    pub id: u64,
    /// Seed of name hashes.
    pub hash_seed: u64,
    /// Creation, nanoseconds since the epoch.
    pub created_ns: i64,
    name: RwLock<String>,
    content: Content,
    /// Room for all of its contents is set aside.
    reserved: bool,
    destroying: AtomicBool,
    properties: RwLock<BTreeMap<String, String>>,
    next_object: AtomicU64,
    pub(crate) items: Arc<DatasetItems>,
    pub(crate) objects: Objects,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) pending: Mutex<PendingLog>,
    /// Entries enter the log in the order in which this was held.
    pub(crate) log_order: Mutex<()>,
    /// The entry as it was last stored.
    pub(crate) stored: Mutex<Vec<u8>>,
}

impl Dataset {
    /// A dataset from its stored entry.
    ///
    /// # Errors
    /// `Corrupt` when the root does not parse.
    pub fn new(entry: &DatasetEntry, items: Arc<DatasetItems>, objects: Objects, host: Arc<dyn Host>) -> Dataset {
        Dataset {
            id: entry.id,
            hash_seed: entry.hash_seed,
            created_ns: entry.created_ns,
            name: RwLock::new(entry.name.clone()),
            content: entry.content,
            reserved: entry.reserved,
            destroying: AtomicBool::new(entry.destroying),
            properties: RwLock::new(entry.properties.iter().cloned().collect()),
            next_object: AtomicU64::new(entry.next_object.max(1025)),
            items,
            objects,
            host,
            pending: Mutex::new(PendingLog::default()),
            log_order: Mutex::new(()),
            stored: Mutex::new(Vec::new()),
        }
    }

    /// Bytes of an object as they lie in a cache ([`Objects::lend`]).
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn lend(&self, object: ObjectRef, offset: u64, len: usize) -> Result<Option<Vec<BufSlice>>> {
        with_object(self.id, object.id, || self.objects.lend(object, offset, len))
    }

    /// Name within the pool; empty for the pool's own filesystem.
    pub fn name(&self) -> String {
        self.name.read().clone()
    }

    /// What it holds.
    pub fn content(&self) -> Content {
        self.content
    }

    /// Whether room for all of its contents is set aside.
    pub fn reserved(&self) -> bool {
        self.reserved
    }

    /// Whether it is being destroyed: nothing more may be begun on it.
    pub fn destroying(&self) -> bool {
        self.destroying.load(Ordering::Acquire)
    }

    /// Takes it out of use for good; its space comes back with the following commits.
    pub(crate) fn set_destroying(&self) {
        self.destroying.store(true, Ordering::Release);
    }

    /// A setting.
    pub fn property(&self, key: &str) -> Option<String> {
        self.properties.read().get(key).cloned()
    }

    /// All settings.
    pub fn properties(&self) -> BTreeMap<String, String> {
        self.properties.read().clone()
    }

    /// Changes a setting; stored with the next commit.
    pub fn set_property(&self, key: &str, value: &str) {
        self.properties.write().insert(key.to_owned(), value.to_owned());
    }

    /// The entry to store, with this root.
    pub fn entry(&self, root: &Root) -> DatasetEntry {
        DatasetEntry {
            id: self.id,
            content: self.content,
            destroying: self.destroying(),
            reserved: self.reserved,
            hash_seed: self.hash_seed,
            next_object: self.next_object.load(Ordering::Acquire),
            created_ns: self.created_ns,
            name: self.name(),
            properties: self.properties.read().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            root: encode_root(root),
        }
    }

    /// A number never used before.
    pub fn allocate_object(&self) -> u64 {
        self.next_object.fetch_add(1, Ordering::AcqRel)
    }

    /// Makes sure that a number seen in the log is never given out again.
    pub(crate) fn note_object(&self, id: u64) {
        self.next_object.fetch_max(id.saturating_add(1), Ordering::AcqRel);
    }

    /// Puts deleted objects back into the queue after an import.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub(crate) fn resume_orphans(&self) -> Result<usize> {
        use crate::object::Items;
        let mut from = Key::new(0, KIND_ORPHAN, 0);
        let to = Key::new(0, KIND_ORPHAN, u64::MAX);
        let mut count = 0;
        loop {
            let page = self.items.scan(from, to, 256)?;
            let Some((last, _)) = page.last() else { return Ok(count) };
            let next = last.successor();
            for (key, value) in &page {
                let record_size =
                    value.get(..4).map_or(131_072, |b| u32::from_le_bytes(b.try_into().expect("four bytes")));
                let hold = self.host.gate().hold();
                self.objects.reap(hold.txg(), ObjectRef { id: key.offset, record_size });
                count += 1;
            }
            match next {
                Some(next) if next <= to => from = next,
                _ => return Ok(count),
            }
        }
    }
}

/// A root's bytes.
pub(crate) fn encode_root(root: &Root) -> Vec<u8> {
    let mut bytes = Vec::new();
    root.encode(&mut bytes);
    bytes
}
