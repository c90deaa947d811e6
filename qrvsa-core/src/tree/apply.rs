//! The batched copy-on-write update.
//!
//! [`apply`] makes one pass per level, from the leaves up. The pass over level 0 merges the batch into the leaves it
//! touches; what happened to the leaves (this one gone, that one new, under these keys) is again a sorted batch of edits,
//! now of the items of the nodes at level 1, and so on up to the root. So there is one algorithm for all levels, and all
//! nodes of a level are written, in large requests, before any node that points to them is built.
//!
//! Within a pass, children of one parent that change side by side form a *run*: their items flow into one arena, from
//! which new nodes are cut ([`partition`](super::partition)). A run that ends below a quarter of a node takes in its
//! right neighbour, or at the end of its parent its left one. A child whose items turn out not to have changed (an absent
//! key deleted, a value put again) stays where it is, and ends the run.
//!
//! What is held in memory: the path of nodes from the root, a run of at most [`RUN_BYTES_MAX`] plus a node, pending nodes
//! of [`PENDING_BYTES_MAX`], and some hundred bytes for each node that changed.

use std::sync::Arc;

use crate::buf::AlignedBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::record::pointer::Pointer;

use super::node::{CONTENT_BYTES_MAX, ItemRun, LEVEL_MAX};
use super::partition::{FILL_BYTES, Shape, UNDERFULL_BYTES, partition};
use super::{Key, Node, NodeStore, Root, VALUE_BYTES_MAX, Value, read_checked, read_root};

/// Nodes built and not yet written, at most, in bytes.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// Size of a run from which on its front is cut into nodes.
const RUN_BYTES_MAX: usize = 16 * CONTENT_BYTES_MAX;
/// What such a cut leaves in the run, at least, so that its end can be divided well.
const RUN_BYTES_KEPT: usize = 2 * CONTENT_BYTES_MAX;

/// A change of an item: its new value, or `None` to remove it.
type Edit = (Key, Option<Value>);

/// Applies a batch, strictly ascending by key, to a tree. New nodes are owned by `tree_id` and born in `birth`.
///
/// The old root stays as it was. Only when all has succeeded, the nodes that the new root no longer uses are given to
/// [`NodeStore::free_node`]; these are all from the old root. A batch that changes nothing returns the same root and
/// writes nothing.
///
/// # Errors
/// Those of the store; `Corrupt` when nodes do not fit together; `Invalid` for a batch that is not ascending or a value
/// above [`VALUE_BYTES_MAX`]. Nodes written up to then are not freed: the caller drops its whole commit.
pub fn apply<S: NodeStore + ?Sized>(
    store: &S,
    root: &Root,
    birth: u64,
    tree_id: u64,
    batch: impl Iterator<Item = (Key, Option<Value>)>,
) -> Result<Root> {
    let mut tally = Tally { items_added: 0, nodes_written: 0, freed: Vec::new() };
    let mut pass = Pass::new(store, root, 0, birth, tree_id, &mut tally);
    let mut batch = batch;
    let mut outcome = pass.run(&mut batch)?;
    let mut level = 0;
    let (pointer, height) = loop {
        let edits = match outcome {
            Outcome::Edits(edits) => edits,
            Outcome::Collapse { child, child_is_new } => {
                free_levels_above(store, root, level, &mut tally.freed)?;
                if child_is_new {
                    break (Some(child), level);
                }
                break shrink(store, child, level, &mut tally.freed)?;
            }
        };
        if edits.is_empty() {
            if level > 0 {
                fail!(Corrupt, "a changed tree node was written to the place of the old one");
            }
            return Ok(root.clone());
        }
        let mut edits = edits;
        if level + 1 >= root.height {
            // Above the old root: only new nodes count.
            edits.retain(|(_, node)| node.is_some());
            match edits.as_slice() {
                [] => break (None, 0),
                [(_, Some(only))] => break (Some(Pointer::decode(only)?.0), level + 1),
                _ => {}
            }
        }
        level += 1;
        if level > LEVEL_MAX {
            fail!(Invalid, "a tree higher than {LEVEL_MAX} levels");
        }
        outcome = Pass::new(store, root, level, birth, tree_id, &mut tally).run(&mut edits.into_iter())?;
    };
    let count = |old: u64, added: u64, removed: u64| {
        (old.checked_add(added).and_then(|sum| sum.checked_sub(removed)))
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "the counts in a tree root are below what the tree holds"))
    };
    let (added, removed) = (tally.items_added.max(0), tally.items_added.min(0));
    let new_root = Root {
        pointer,
        height,
        items: count(root.items, added.unsigned_abs(), removed.unsigned_abs())?,
        nodes: count(root.nodes, tally.nodes_written, tally.freed.len() as u64)?,
    };
    for ptr in &tally.freed {
        store.free_node(ptr);
    }
    Ok(new_root)
}

/// Collects the old nodes above a level, all of which go.
fn free_levels_above<S: NodeStore + ?Sized>(store: &S, root: &Root, level: u8, freed: &mut Vec<Pointer>) -> Result<()> {
    fn below<S: NodeStore + ?Sized>(store: &S, node: &Node, level: u8, freed: &mut Vec<Pointer>) -> Result<()> {
        if node.level() > level + 1 {
            for i in 0..node.len() {
                freed.push(node.pointer(i).clone());
                let child = read_checked(store, node.pointer(i), node.level() - 1, Some(node.key(i)))?;
                below(store, &child, level, freed)?;
            }
        }
        Ok(())
    }
    if root.height > level + 1
        && let (Some(pointer), Some(node)) = (&root.pointer, read_root(store, root)?)
    {
        freed.push(pointer.clone());
        below(store, &node, level, freed)?;
    }
    Ok(())
}

/// Goes down from an old node, now the only one of its level, to the first that is a leaf or has more than one child.
/// Returns it and the height it gives.
fn shrink<S: NodeStore + ?Sized>(
    store: &S,
    mut pointer: Pointer,
    mut height: u8,
    freed: &mut Vec<Pointer>,
) -> Result<(Option<Pointer>, u8)> {
    while height > 1 {
        let node = read_checked(store, &pointer, height - 1, None)?;
        if node.len() > 1 {
            break;
        }
        freed.push(pointer);
        pointer = node.pointer(0).clone();
        height -= 1;
    }
    Ok((Some(pointer), height))
}

/// What all passes add up.
struct Tally {
    items_added: i64,
    nodes_written: u64,
    /// Old nodes the new root does not use.
    freed: Vec<Pointer>,
}

/// What a pass over a level comes to.
enum Outcome {
    /// What changes in the level above. Empty if nothing changed.
    Edits(Vec<Edit>),
    /// The level would consist of a single node with a single child: the child becomes the root instead. A node that is
    /// new has been through this before, and has more than one child (or is a leaf).
    Collapse { child: Pointer, child_is_new: bool },
}

/// The edits still to come, checked as they are taken.
struct Edits<'e> {
    source: &'e mut dyn Iterator<Item = Edit>,
    next: Option<Edit>,
}

impl Edits<'_> {
    fn new(source: &mut dyn Iterator<Item = Edit>) -> Result<Edits<'_>> {
        let mut edits = Edits { source, next: None };
        edits.fetch(None)?;
        Ok(edits)
    }

    fn fetch(&mut self, last: Option<Key>) -> Result<()> {
        self.next = self.source.next();
        if let Some((key, value)) = &self.next {
            if last.is_some_and(|last| last >= *key) {
                fail!(Invalid, "a batch for a tree is not ascending at {key:?}");
            }
            if let Some(value) = value
                && value.len() > VALUE_BYTES_MAX
            {
                fail!(Invalid, "a value of {} bytes for a tree", value.len());
            }
        }
        Ok(())
    }

    /// The key of the next edit, if it is below `end`.
    fn before(&self, end: Option<Key>) -> Option<Key> {
        self.next.as_ref().map(|(key, _)| *key).filter(|key| end.is_none_or(|end| *key < end))
    }

    /// Takes the next edit if its key is below `end`.
    fn take_before(&mut self, end: Option<Key>) -> Result<Option<Edit>> {
        if self.before(end).is_none() {
            return Ok(None);
        }
        let edit = self.next.take();
        self.fetch(edit.as_ref().map(|(key, _)| *key))?;
        Ok(edit)
    }
}

/// The nodes of a level that have one parent (the root has none).
enum Siblings<'n> {
    Of(&'n Node),
    Root(&'n Pointer),
}

impl Siblings<'_> {
    fn len(&self) -> usize {
        match self {
            Siblings::Of(node) => node.len(),
            Siblings::Root(_) => 1,
        }
    }

    fn key(&self, i: usize) -> Key {
        match self {
            Siblings::Of(node) => node.key(i),
            Siblings::Root(_) => Key::MIN,
        }
    }

    fn pointer(&self, i: usize) -> &Pointer {
        match self {
            Siblings::Of(node) => node.pointer(i),
            Siblings::Root(pointer) => pointer,
        }
    }

    fn route(&self, key: Key) -> usize {
        match self {
            Siblings::Of(node) => node.route(key),
            Siblings::Root(_) => 0,
        }
    }

    /// Where the range of child `i` ends, if that of all ends at `end`.
    fn end(&self, i: usize, end: Option<Key>) -> Option<Key> {
        if i + 1 < self.len() { Some(self.key(i + 1)) } else { end }
    }

    /// Reads child `i`. It lies within its range: a run stays in order whatever the devices return.
    fn read<S: NodeStore + ?Sized>(&self, store: &S, i: usize, level: u8, end: Option<Key>) -> Result<Arc<Node>> {
        let first = match self {
            Siblings::Of(node) => Some(node.key(i)),
            Siblings::Root(_) => None,
        };
        let child = read_checked(store, self.pointer(i), level, first)?;
        if let Some(end) = self.end(i, end)
            && child.last_key() >= end
        {
            fail!(Corrupt, "tree node holds {:?}, the next one begins at {end:?}", child.last_key());
        }
        Ok(child)
    }
}

/// Old items followed new ones, or not: decides how a run is cut.
#[derive(Clone, Copy, Default)]
struct Growth {
    inserted: bool,
    old_after_inserted: bool,
}

/// The pass over one level.
struct Pass<'a, S: NodeStore + ?Sized> {
    store: &'a S,
    root: &'a Root,
    level: u8,
    birth: u64,
    owner: u64,
    tally: &'a mut Tally,

    /// The items of the run.
    run: ItemRun,
    /// Old nodes whose items went into the run.
    run_nodes_before: usize,
    growth: Growth,
    /// The keys of the old nodes that this run replaces, ascending.
    removed: Vec<Key>,
    /// The nodes already cut from this run.
    cut: Vec<(Key, usize)>,

    /// The outcome so far: for each key the number of a new node, or `None`.
    out: Vec<(Key, Option<usize>)>,
    /// New nodes not yet written: the last ones in order.
    pending: Vec<AlignedBuf>,
    pending_bytes: usize,
    /// The encoded pointers of written nodes, by number.
    written: Vec<Value>,
    /// Whether old nodes of this level stay.
    kept: bool,
    /// The child of the node built last, if it has just one.
    only_child: Option<Value>,
    /// Whether an edit has set an item (in an internal node: brought in a new child).
    has_put: bool,
}

impl<'a, S: NodeStore + ?Sized> Pass<'a, S> {
    fn new(store: &'a S, root: &'a Root, level: u8, birth: u64, owner: u64, tally: &'a mut Tally) -> Pass<'a, S> {
        Pass {
            store,
            root,
            level,
            birth,
            owner,
            tally,
            run: ItemRun::default(),
            run_nodes_before: 0,
            growth: Growth::default(),
            removed: Vec::new(),
            cut: Vec::new(),
            out: Vec::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            written: Vec::new(),
            kept: false,
            only_child: None,
            has_put: false,
        }
    }

    fn run(&mut self, edits: &mut dyn Iterator<Item = Edit>) -> Result<Outcome> {
        let mut edits = Edits::new(edits)?;
        if edits.next.is_none() {
            return Ok(Outcome::Edits(Vec::new()));
        }
        match (&self.root.pointer, self.root.height.checked_sub(1)) {
            (Some(pointer), Some(top)) if top == self.level => {
                self.siblings(&Siblings::Root(pointer), None, &mut edits)?;
            }
            (Some(pointer), Some(top)) if top > self.level => {
                let node = read_checked(self.store, pointer, top, None)?;
                self.descend(&node, None, &mut edits)?;
            }
            _ => {
                self.merge(None, None, &mut edits)?;
                self.end_run()?;
            }
        }
        assert!(edits.next.is_none() && self.run.is_empty(), "a pass takes all edits");
        self.finish()
    }

    /// Goes down to the parents of the nodes of this level, where there are edits.
    fn descend(&mut self, node: &Node, end: Option<Key>, edits: &mut Edits<'_>) -> Result<()> {
        let children = Siblings::Of(node);
        if node.level() == self.level + 1 {
            return self.siblings(&children, end, edits);
        }
        let mut next = 0;
        while let Some(key) = edits.before(end) {
            let i = node.route(key);
            self.kept |= i > next;
            let child = children.read(self.store, i, node.level() - 1, end)?;
            self.descend(&child, children.end(i, end), edits)?;
            next = i + 1;
        }
        self.kept |= next < node.len();
        Ok(())
    }

    /// Takes all edits of the children of one parent, whose range ends before `end`.
    fn siblings(&mut self, children: &Siblings<'_>, end: Option<Key>, edits: &mut Edits<'_>) -> Result<()> {
        let mut i = 0;
        // The child before the run, if it is one that stays.
        let mut left = None;
        while i < children.len() {
            let touched = edits.before(end).map_or(children.len(), |key| children.route(key));
            if i < touched {
                if self.run_is_underfull() {
                    let child = children.read(self.store, i, self.level, end)?;
                    self.push_old(&child, 0..child.len());
                    self.replace(children, i);
                    i += 1;
                } else {
                    self.end_run()?;
                    self.kept = true;
                    left = Some(touched - 1);
                    i = touched;
                }
                continue;
            }
            let child = children.read(self.store, i, self.level, end)?;
            let (len_before, growth_before) = (self.run.len(), self.growth);
            let underfull_before = self.run_is_underfull();
            if self.merge(Some(&child), children.end(i, end), edits)? || underfull_before {
                self.replace(children, i);
            } else {
                self.run.truncate(len_before);
                self.growth = growth_before;
                self.end_run()?;
                self.kept = true;
                left = Some(i);
            }
            i += 1;
        }
        if self.run_is_underfull()
            && let Some(left) = left
        {
            let child = children.read(self.store, left, self.level, end)?;
            self.run.prepend(&child);
            self.removed.insert(0, children.key(left));
            self.tally.freed.push(children.pointer(left).clone());
            self.run_nodes_before += 1;
        }
        self.end_run()
    }

    /// Notes that the run holds the items of an old node, in place of it.
    fn replace(&mut self, children: &Siblings<'_>, i: usize) {
        self.removed.push(children.key(i));
        self.tally.freed.push(children.pointer(i).clone());
        self.run_nodes_before += 1;
    }

    fn run_is_underfull(&self) -> bool {
        !self.run.is_empty() && self.run.cost_all() < UNDERFULL_BYTES
    }

    fn push_old(&mut self, node: &Node, range: std::ops::Range<usize>) {
        self.growth.old_after_inserted |= self.growth.inserted && !range.is_empty();
        self.run.push_range(node, range);
    }

    /// Merges the items of a node (of none, for a new tree) with the edits below `end` into the run. Returns whether
    /// that makes a difference; if not, the run has grown by exactly the node's items.
    fn merge(&mut self, node: Option<&Node>, end: Option<Key>, edits: &mut Edits<'_>) -> Result<bool> {
        let len = node.map_or(0, Node::len);
        let (mut i, mut changed) = (0, false);
        while let Some((key, value)) = edits.take_before(end)? {
            self.has_put |= value.is_some();
            let mut old = None;
            if let Some(node) = node {
                let at = node.lower_bound(i, key);
                self.push_old(node, i..at);
                i = at;
                old = (i < len && node.key(i) == key).then(|| node.value(i));
            }
            match (old, value) {
                (None, None) => {}
                (None, Some(value)) => {
                    self.run.push(key, &value);
                    self.growth.inserted = true;
                    self.tally.items_added += i64::from(self.level == 0);
                    changed = true;
                }
                (Some(old), Some(value)) => {
                    changed |= old != &*value;
                    self.run.push(key, &value);
                    self.growth.old_after_inserted |= self.growth.inserted;
                    i += 1;
                }
                (Some(_), None) => {
                    self.tally.items_added -= i64::from(self.level == 0);
                    changed = true;
                    i += 1;
                }
            }
            if changed && self.run.cost_all() > RUN_BYTES_MAX {
                self.cut_front()?;
            }
        }
        if let Some(node) = node {
            self.push_old(node, i..len);
        }
        Ok(changed)
    }

    /// Cuts full nodes from the front of a long run.
    fn cut_front(&mut self) -> Result<()> {
        let mut start = 0;
        while self.run.cost(start..self.run.len()) > RUN_BYTES_KEPT + FILL_BYTES {
            let end = self.run.fit(start, FILL_BYTES);
            self.build(start..end)?;
            start = end;
        }
        self.run.drop_front(start);
        Ok(())
    }

    /// Cuts the run into nodes and notes what it means for the level above.
    fn end_run(&mut self) -> Result<()> {
        let appended = self.growth.inserted && !self.growth.old_after_inserted;
        let shape = if appended { Shape::Appended } else { Shape::Spread(self.run_nodes_before) };
        let mut start = 0;
        for end in partition(&self.run, shape) {
            self.build(start..end)?;
            start = end;
        }
        self.run.clear();
        self.run_nodes_before = 0;
        self.growth = Growth::default();
        // Both lists ascend; a new node under the key of an old one replaces it.
        let mut removed = self.removed.drain(..).peekable();
        for (key, number) in self.cut.drain(..) {
            while let Some(gone) = removed.next_if(|gone| *gone < key) {
                self.out.push((gone, None));
            }
            removed.next_if_eq(&key);
            self.out.push((key, Some(number)));
        }
        self.out.extend(removed.map(|gone| (gone, None)));
        Ok(())
    }

    /// Builds a node from a part of the run.
    fn build(&mut self, range: std::ops::Range<usize>) -> Result<()> {
        if self.pending_bytes >= PENDING_BYTES_MAX {
            self.write_pending()?;
        }
        let key = self.run.key(range.start);
        self.only_child = (self.level > 0 && range.len() == 1).then(|| self.run.value(range.start).into());
        let buf = self.run.encode(range, self.level, self.owner, self.birth);
        self.pending_bytes += buf.len();
        self.cut.push((key, self.written.len() + self.pending.len()));
        self.pending.push(buf);
        Ok(())
    }

    fn write_pending(&mut self) -> Result<()> {
        let bufs = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if bufs.is_empty() {
            return Ok(());
        }
        let count = bufs.len();
        let pointers = self.store.write_nodes(bufs)?;
        if pointers.len() != count {
            fail!(Invalid, "the node store returned {} pointers for {count} nodes", pointers.len());
        }
        for pointer in pointers {
            let mut bytes = Vec::with_capacity(pointer.encoded_len());
            pointer.encode(&mut bytes);
            self.written.push(bytes.into());
        }
        self.tally.nodes_written += count as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome> {
        if !self.kept
            && self.written.is_empty()
            && self.pending.len() == 1
            && let Some(child) = &self.only_child
        {
            let (child, _) = Pointer::decode(child)?;
            return Ok(Outcome::Collapse { child, child_is_new: self.has_put });
        }
        self.write_pending()?;
        let written = &self.written;
        let edits = self.out.iter().map(|(key, number)| (*key, number.map(|n| written[n].clone()))).collect();
        Ok(Outcome::Edits(edits))
    }
}
