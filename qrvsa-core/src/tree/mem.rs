//! Nodes in memory: a [`NodeStore`] for tests and benches.
//!
//! It enforces the contract rather than trusting it: a read of a freed node, a double free and an oversized node panic.
//! It can fail any read or write, and take back what an aborted commit wrote.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_64;

use crate::buf::{AlignedBuf, BLOCK_SIZE};
use crate::error::Result;
use crate::fail;
use crate::record::pointer::Pointer;

use super::{NODE_BYTES_MAX, Node, NodeStore};

/// A node as it was written, or `None` once it is freed.
type Slot = Option<(Pointer, Arc<Node>)>;

/// A node store in memory.
pub struct MemStore {
    /// By row.
    nodes: RwLock<HashMap<u32, Slot>>,
    width: u8,
    parity: u8,
    reads: AtomicU64,
    writes: AtomicU64,
    fail_read: AtomicU64,
    fail_write: AtomicU64,
}

impl Default for MemStore {
    fn default() -> MemStore {
        MemStore::new(1, 2)
    }
}

impl MemStore {
    /// A store whose pointers have this geometry, which decides how long they are.
    pub fn new(width: u8, parity: u8) -> MemStore {
        MemStore {
            nodes: RwLock::default(),
            width,
            parity,
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            fail_read: AtomicU64::new(u64::MAX),
            fail_write: AtomicU64::new(u64::MAX),
        }
    }

    /// Nodes written and not freed.
    pub fn live_nodes(&self) -> usize {
        self.nodes.read().values().flatten().count()
    }

    /// Calls of `read_node` so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Nodes written so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Fails the read that follows `reads` good ones, and all after it; `None` heals.
    pub fn fail_read_after(&self, reads: Option<u64>) {
        self.fail_read.store(reads.map_or(u64::MAX, |n| self.reads() + n), Ordering::Relaxed);
    }

    /// Fails the write that follows `nodes` good ones, and all after it; `None` heals.
    pub fn fail_write_after(&self, nodes: Option<u64>) {
        self.fail_write.store(nodes.map_or(u64::MAX, |n| self.writes() + n), Ordering::Relaxed);
    }

    /// The row the next node gets: a mark for [`MemStore::abort`].
    pub fn mark(&self) -> u32 {
        u32::try_from(self.nodes.read().len()).expect("tests write fewer than 2^32 nodes")
    }

    /// Drops what was written since a mark, as the abort of a commit does.
    pub fn abort(&self, mark: u32) {
        self.nodes.write().retain(|row, _| *row < mark);
    }

    /// Replaces the bytes of a node under an unchanged pointer.
    ///
    /// # Panics
    /// If the bytes are not a node.
    pub fn corrupt(&self, ptr: &Pointer, bytes: AlignedBuf) {
        let node = Arc::new(Node::parse(bytes).expect("a replaced node is well-formed"));
        self.nodes.write().insert(ptr.row, Some((ptr.clone(), node)));
    }
}

impl NodeStore for MemStore {
    fn read_node(&self, ptr: &Pointer) -> Result<Arc<Node>> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= self.fail_read.load(Ordering::Relaxed) {
            fail!(Io, "injected read failure");
        }
        let nodes = self.nodes.read();
        let (written, node) = nodes.get(&ptr.row).expect("node was written").as_ref().expect("node was not freed");
        assert_eq!(written, ptr, "pointers come back as they were given");
        Ok(node.clone())
    }

    fn write_nodes(&self, bufs: Vec<AlignedBuf>) -> Result<Vec<Pointer>> {
        let mut pointers = Vec::with_capacity(bufs.len());
        for buf in bufs {
            if self.writes.load(Ordering::Relaxed) >= self.fail_write.load(Ordering::Relaxed) {
                fail!(Io, "injected write failure");
            }
            self.writes.fetch_add(1, Ordering::Relaxed);
            assert!(!buf.is_empty() && buf.len() <= NODE_BYTES_MAX && buf.len().is_multiple_of(BLOCK_SIZE));
            let blocks = u16::try_from(buf.len() / BLOCK_SIZE).expect("a node has at most 4 blocks");
            let sum = xxh3_64(&buf);
            let node = Arc::new(Node::parse(buf).expect("only well-formed nodes are written"));
            let row = self.mark();
            let (width, parity) = (self.width, self.parity);
            let mut pointer =
                Pointer { group: 1, row, birth: node.birth(), blocks, width, parity, checksums: Box::default() };
            let columns = if width == 1 { 1 } else { pointer.columns() };
            pointer.checksums = (0..columns * pointer.units_per_column()).map(|i| sum ^ u64::from(i)).collect();
            self.nodes.write().insert(row, Some((pointer.clone(), node)));
            pointers.push(pointer);
        }
        Ok(pointers)
    }

    fn free_node(&self, ptr: &Pointer) {
        let mut nodes = self.nodes.write();
        let slot = nodes.get_mut(&ptr.row).expect("a freed node was written");
        let (written, _) = slot.take().expect("a node is freed once");
        assert_eq!(&written, ptr, "pointers come back as they were given");
    }
}
