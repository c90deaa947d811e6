//! Tree nodes as records: the node store of dataset trees (class `Meta`) and of the pool tree (class `System`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::buf::{AlignedBuf, BufSlice};
use crate::error::{Error, Result};
use crate::fail;
use crate::pool::format::entries::Class;
use crate::record::pointer::Pointer;
use crate::record::reader::ReadRequest;
use crate::record::store::RecordStore;
use crate::tree::{Node, NodeStore};

type NodeKey = (u32, u32, u64);

#[derive(Clone)]
struct ByMemory;

impl Weighter<NodeKey, Arc<Node>> for ByMemory {
    fn weight(&self, _: &NodeKey, node: &Arc<Node>) -> u64 {
        node.memory_bytes() as u64 + 64
    }
}

/// A node store over records.
pub struct Nodes {
    records: Arc<RecordStore>,
    class: Class,
    /// Transaction group that writes now.
    txg: AtomicU64,
    cache: Cache<NodeKey, Arc<Node>, ByMemory>,
    free_error: Mutex<Option<Error>>,
}

impl Nodes {
    /// A store with a cache of so many bytes.
    pub fn new(records: Arc<RecordStore>, class: Class, cache_bytes: u64) -> Nodes {
        let items = usize::try_from(cache_bytes / (16 << 10)).unwrap_or(usize::MAX).max(64);
        Nodes {
            records,
            class,
            txg: AtomicU64::new(0),
            cache: Cache::with_weighter(items, cache_bytes, ByMemory),
            free_error: Mutex::new(None),
        }
    }

    /// Sets the transaction group that following writes and frees belong to. Committing thread only.
    pub fn set_txg(&self, txg: u64) {
        self.txg.store(txg, Ordering::Release);
    }

    /// The first error of a free since the last call.
    ///
    /// # Errors
    /// That error.
    pub fn check_frees(&self) -> Result<()> {
        match self.free_error.lock().take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Forgets cached nodes.
    pub fn drop_cache(&self) {
        self.cache.clear();
    }

    fn key(pointer: &Pointer) -> NodeKey {
        (pointer.group, pointer.row, pointer.birth)
    }
}

impl NodeStore for Nodes {
    fn read_node(&self, pointer: &Pointer) -> Result<Arc<Node>> {
        let key = Self::key(pointer);
        if let Some(node) = self.cache.get(&key) {
            return Ok(node);
        }
        let mut bytes = AlignedBuf::zeroed(pointer.len_bytes());
        // nodes have a cache of their own
        self.records.read(&mut [ReadRequest { pointer, first_block: 0, out: &mut bytes }], 0)?;
        let node = Arc::new(Node::parse(bytes)?);
        if node.birth() != pointer.birth {
            fail!(Corrupt, "a tree node says it was born in {} but its pointer says {}", node.birth(), pointer.birth);
        }
        self.cache.insert(key, node.clone());
        Ok(node)
    }

    fn write_nodes(&self, nodes: Vec<AlignedBuf>) -> Result<Vec<Pointer>> {
        let nodes: Vec<Arc<AlignedBuf>> = nodes.into_iter().map(Arc::new).collect();
        let slices: Vec<BufSlice> = nodes.iter().cloned().map(BufSlice::whole).collect();
        let pointers = self.records.write(self.txg.load(Ordering::Acquire), self.class, &slices)?;
        if pointers.len() < slices.len() {
            fail!(NoSpace, "no room for tree nodes");
        }
        drop(slices);
        for (pointer, buf) in pointers.iter().zip(nodes) {
            let buf = Arc::try_unwrap(buf).unwrap_or_else(|shared| (*shared).clone());
            self.cache.insert(Self::key(pointer), Arc::new(Node::parse(buf)?));
        }
        Ok(pointers)
    }

    fn free_node(&self, pointer: &Pointer) {
        self.cache.remove(&Self::key(pointer));
        if let Err(e) = self.records.free(self.txg.load(Ordering::Acquire), pointer) {
            self.free_error.lock().get_or_insert(e);
        }
    }
}
