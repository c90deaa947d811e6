//! The copy-on-write B+tree that holds all metadata, of the pool and of every dataset.
//!
//! A tree is **immutable between commits**. File-system operations change the open memtable of a dataset (see
//! [`dataset`](crate::dataset)); a commit hands the frozen memtable to [`apply()`] as one sorted batch. `apply` reads each
//! touched leaf once, writes new nodes to free space, and yields a new [`Root`]; the old root stays readable until the
//! commit is durable. This way a leaf is rewritten once per commit however often its items changed, there are no latches,
//! and a reader needs nothing but a root.
//!
//! Where things are:
//!
//! - [`node`]: the node format (byte tables there), parsing, building
//! - [`get`], [`scan`], [`Cursor`]: reading
//! - [`apply()`]: the batched copy-on-write update
//! - [`walk()`] with a [`Visitor`], and [`verify()`]: scrub, check, accounting
//! - [`mem`]: a node store in memory for tests and benches, with checks and fault injection
//!
//! Invariants of a tree:
//!
//! - All leaves are at level 0; the children of a node at level *n* are at level *n - 1*.
//! - A parent lists each child under exactly the child's first key, and all keys of a child are below the next entry's.
//! - No node is empty. The root, if it is an internal node, has at least two children.
//! - A node's birth equals the birth in the pointer to it and is not above its parent's: a subtree born before a
//!   snapshot belongs to the snapshot as a whole.
//! - Nodes born in one commit are filled to about 90 % where neighbours are rewritten together; a node that a commit
//!   leaves below a quarter is merged with a neighbour under the same parent.

pub mod key;
pub mod mem;
pub mod node;

mod apply;
mod partition;
mod read;
mod verify;
mod walk;

use std::sync::Arc;

use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::record::pointer::Pointer;

pub use apply::apply;
pub use key::Key;
pub use node::{NODE_BYTES_MAX, Node};
pub use read::{Cursor, get, scan};
pub use verify::{PROBLEMS_MAX, Problem, VerifyReport, verify};
pub use walk::{Place, Step, Visitor, walk};

/// The bytes of an item, at most [`VALUE_BYTES_MAX`].
pub type Value = Arc<[u8]>;

/// Largest value of an item, in bytes. Two of these always fit in a node.
pub const VALUE_BYTES_MAX: usize = 6 * 1024;

/// Where the nodes of trees are kept.
pub trait NodeStore: Sync {
    /// The node a pointer names, from a cache or from the devices, checked by [`Node::parse`].
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `Unsupported`.
    fn read_node(&self, ptr: &Pointer) -> Result<Arc<Node>>;

    /// Allocates space for nodes and writes them; returns the pointers in order. Each buffer is 1 to 4 whole blocks. The
    /// pointers' birth is the transaction group that the nodes say they were born in. The nodes may not be durable, but
    /// a following [`NodeStore::read_node`] finds them.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Suspended`: the caller gives up its commit.
    fn write_nodes(&self, nodes: Vec<AlignedBuf>) -> Result<Vec<Pointer>>;

    /// Says that the new root does not use this node, which the old root does: its space may be reused (or goes to a
    /// deadlist) when the new root has become durable.
    fn free_node(&self, ptr: &Pointer);
}

/// Bytes of an encoded root before the pointer.
pub const ROOT_HEADER_BYTES: usize = 24;

/// A state of a tree.
///
/// On disk (little-endian), as part of whatever structure names the tree:
///
/// | offset | size | field |
/// |-------:|-----:|-------|
/// | 0  | 1 | height: levels of nodes, 0 for an empty tree, at most 32 |
/// | 1  | 7 | 0 (anything else is `Unsupported`) |
/// | 8  | 8 | items |
/// | 16 | 8 | nodes |
/// | 24 |   | record pointer to the root node; absent if the height is 0 |
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Root {
    /// The root node; `None` for an empty tree.
    pub pointer: Option<Pointer>,
    /// Levels of nodes: the root node's level plus one, 0 for an empty tree.
    pub height: u8,
    /// Items in the tree.
    pub items: u64,
    /// Nodes in the tree.
    pub nodes: u64,
}

impl Root {
    /// The tree without items.
    pub const EMPTY: Root = Root { pointer: None, height: 0, items: 0, nodes: 0 };

    /// Appends the on-disk form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.height, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.items.to_le_bytes());
        out.extend_from_slice(&self.nodes.to_le_bytes());
        if let Some(pointer) = &self.pointer {
            pointer.encode(out);
        }
    }

    /// Reads a root from the front of `bytes`; returns it and the bytes it took.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for impossible values, [`ErrorKind::Unsupported`] for features not known here.
    pub fn decode(bytes: &[u8]) -> Result<(Root, usize)> {
        let Some((head, rest)) = bytes.split_first_chunk::<ROOT_HEADER_BYTES>() else {
            return Err(Error::new(ErrorKind::Corrupt, "tree root is cut short"));
        };
        let u64_at = |i: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&head[i..i + 8]);
            u64::from_le_bytes(raw)
        };
        let (height, items, nodes) = (head[0], u64_at(8), u64_at(16));
        if head[1..8].iter().any(|b| *b != 0) {
            return Err(Error::new(ErrorKind::Unsupported, "tree root uses a feature this version does not know"));
        }
        if height > node::LEVEL_MAX + 1
            || items < nodes.min(1)
            || nodes < u64::from(height)
            || (height == 0) != (items == 0)
        {
            fail!(Corrupt, "tree root of height {height} with {items} items in {nodes} nodes");
        }
        if height == 0 {
            return Ok((Root::EMPTY, ROOT_HEADER_BYTES));
        }
        let (pointer, used) = Pointer::decode(rest)?;
        if pointer.len_bytes() > NODE_BYTES_MAX {
            fail!(Corrupt, "tree root names a node of {} blocks", pointer.blocks);
        }
        Ok((Root { pointer: Some(pointer), height, items, nodes }, ROOT_HEADER_BYTES + used))
    }
}

/// Reads a node and checks that it is the one its parent means: the level, and the first key where it is known.
fn read_checked<S: NodeStore + ?Sized>(store: &S, ptr: &Pointer, level: u8, first: Option<Key>) -> Result<Arc<Node>> {
    let node = store.read_node(ptr)?;
    if node.level() != level {
        fail!(Corrupt, "tree node at level {} where level {level} belongs", node.level());
    }
    if let Some(key) = first
        && node.first_key() != key
    {
        fail!(Corrupt, "tree node that begins with {:?}, listed under {key:?}", node.first_key());
    }
    Ok(node)
}

/// The root node of a tree that is not empty.
fn read_root<S: NodeStore + ?Sized>(store: &S, root: &Root) -> Result<Option<Arc<Node>>> {
    match (&root.pointer, root.height.checked_sub(1)) {
        (Some(pointer), Some(level)) => read_checked(store, pointer, level, None).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
