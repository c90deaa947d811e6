//! A dataset as its readers see it: the open memtable over the syncing one over the tree.
//!
//! A [`View`] names three layers; the first that knows a key decides, and a tombstone hides what is below. The commit
//! publishes a new view at each of its two turns: when it freezes the open memtable (`syncing` becomes that one, `open` a
//! new one), and when the new root is in place (`syncing` becomes `None`). Both turns leave every item as it was, so a
//! reader that still works on the view before sees the same, except for changes made to later memtables.
//!
//! A view does not protect its tree's nodes: their space is reused some commits after a new root has replaced them.
//! Readers take the current view for each operation and do not keep it.

use std::sync::Arc;

use crate::error::Result;
use crate::tree::{self, Cursor, Key, NodeStore, Root, Value};

use super::memtable::{Memtable, Scan};

/// The layers of a dataset at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// Changes of the open transaction group.
    pub open: Arc<Memtable>,
    /// Changes of the transaction group that is being committed, if there is one.
    pub syncing: Option<Arc<Memtable>>,
    /// The tree as of the last commit.
    pub root: Arc<Root>,
}

impl View {
    /// The newest value of an item.
    ///
    /// # Errors
    /// As [`tree::get`].
    pub fn get<S: NodeStore + ?Sized>(&self, store: &S, key: Key) -> Result<Option<Value>> {
        if let Some(known) = self.open.get(key) {
            return Ok(known);
        }
        if let Some(known) = self.syncing.as_ref().and_then(|memtable| memtable.get(key)) {
            return Ok(known);
        }
        tree::get(store, &self.root, key)
    }

    /// At most `limit` items with `from <= key <= to`, ascending; fewer only when the range has no more.
    ///
    /// # Errors
    /// As [`tree::get`].
    pub fn scan<S: NodeStore + ?Sized>(
        &self,
        store: &S,
        from: Key,
        to: Key,
        limit: usize,
    ) -> Result<Vec<(Key, Value)>> {
        let mut items = Vec::new();
        if limit == 0 {
            return Ok(items);
        }
        let mut cursor = self.cursor(store, from, to);
        while items.len() < limit
            && let Some(item) = cursor.next()?
        {
            items.push(item);
        }
        Ok(items)
    }

    /// Goes through a range item by item.
    pub fn cursor<'a, S: NodeStore + ?Sized>(&'a self, store: &'a S, from: Key, to: Key) -> ViewCursor<'a, S> {
        ViewCursor {
            open: self.open.scan(from, to),
            syncing: self.syncing.as_ref().map(|memtable| memtable.scan(from, to)),
            tree: Cursor::new(store, &self.root, from, to),
        }
    }
}

/// Merges the layers of a [`View`] in key order. What it knows of the memtables may be some items old; see
/// [`memtable`](super::memtable).
pub struct ViewCursor<'a, S: NodeStore + ?Sized> {
    open: Scan<'a>,
    syncing: Option<Scan<'a>>,
    tree: Cursor<'a, S>,
}

impl<S: NodeStore + ?Sized> ViewCursor<'_, S> {
    /// The next item. After an error the call may be repeated.
    ///
    /// # Errors
    /// As [`tree::get`].
    #[allow(clippy::should_implement_trait, reason = "an iterator of results would not end after an error")]
    pub fn next(&mut self) -> Result<Option<(Key, Value)>> {
        loop {
            let open = self.open.peek_key();
            let syncing = self.syncing.as_ref().and_then(Scan::peek_key);
            let memory = match (open, syncing) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let below = self.tree.peek()?;
            let Some(key) = memory else {
                let item = below.map(|(key, value)| (key, Value::from(value)));
                self.tree.advance();
                return Ok(item);
            };
            if let Some((tree_key, value)) = below {
                if tree_key < key {
                    let item = (tree_key, Value::from(value));
                    self.tree.advance();
                    return Ok(Some(item));
                }
                if tree_key == key {
                    self.tree.advance();
                }
            }
            let from_syncing = if syncing == Some(key) { self.syncing.as_mut().and_then(Iterator::next) } else { None };
            let newest = if open == Some(key) { self.open.next() } else { from_syncing };
            if let Some((key, Some(value))) = newest {
                return Ok(Some((key, value)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::mem::MemStore;

    fn key() -> impl Strategy<Value = Key> {
        (0u64..4, 0u64..200).prop_map(|(object, offset)| Key::new(object, 1, offset))
    }

    fn layer(max: usize) -> impl Strategy<Value = BTreeMap<Key, Option<Value>>> {
        let value = proptest::option::weighted(0.6, proptest::collection::vec(any::<u8>(), 0..200));
        proptest::collection::btree_map(key(), value.prop_map(|v| v.map(Value::from)), 0..max)
    }

    fn memtable(layer: &BTreeMap<Key, Option<Value>>) -> Arc<Memtable> {
        let memtable = Memtable::new();
        for (key, value) in layer {
            memtable.set(*key, value.clone());
        }
        Arc::new(memtable)
    }

    proptest! {
        #[test]
        fn layers_against_a_map(
            tree in layer(500),
            syncing in proptest::option::of(layer(200)),
            open in layer(200),
            ranges in proptest::collection::vec((key(), key(), 0usize..60), 10),
        ) {
            let store = MemStore::default();
            let root = tree::apply(&store, &Root::EMPTY, 1, 1, tree.clone().into_iter()).unwrap();
            let view = View { open: memtable(&open), syncing: syncing.as_ref().map(memtable), root: Arc::new(root) };
            let mut model = tree;
            model.extend(syncing.unwrap_or_default());
            model.extend(open);
            let model: BTreeMap<Key, Value> = model.into_iter().filter_map(|(k, v)| v.map(|v| (k, v))).collect();
            for (from, to, limit) in ranges {
                let found = view.scan(&store, from, to, limit).unwrap();
                let expected: Vec<_> = model.iter().filter(|(k, _)| (from..=to).contains(k)).take(limit).collect();
                prop_assert!(found.iter().map(|(k, v)| (k, v)).eq(expected));
                prop_assert_eq!(view.get(&store, from).unwrap(), model.get(&from).cloned());
            }
            let all = view.scan(&store, Key::MIN, Key::MAX, usize::MAX).unwrap();
            prop_assert!(all.iter().map(|(k, v)| (k, v)).eq(&model));
            // The two turns of a commit change nothing, and applying the memtables in order ends in the same tree.
            let mut root = view.root.clone();
            for (txg, memtable) in view.syncing.iter().chain([&view.open]).enumerate() {
                root = Arc::new(tree::apply(&store, &root, 2 + txg as u64, 1, memtable.batch()).unwrap());
            }
            let clean = View { open: Arc::default(), syncing: None, root };
            prop_assert_eq!(clean.scan(&store, Key::MIN, Key::MAX, usize::MAX).unwrap(), all);
        }
    }

    #[test]
    fn a_page_of_a_large_directory_reads_a_few_leaves() {
        let store = MemStore::default();
        let entry = |i: u64| (Key::new(7, 2, i), Some(Value::from([0u8; 40])));
        let root = Arc::new(tree::apply(&store, &Root::EMPTY, 1, 1, (0..100_000).map(entry)).unwrap());
        let view = View { open: Arc::default(), syncing: Some(Arc::default()), root };
        // A gap of deleted entries, which a page must step over.
        for i in 1000..4000 {
            view.open.delete(Key::new(7, 2, i));
        }
        let (mut from, mut seen) = (Key::new(7, 2, 0), 0);
        loop {
            let reads = store.reads();
            let page = view.scan(&store, from, Key::new(7, 2, u64::MAX), 500).unwrap();
            let Some((last, _)) = page.last() else { break };
            assert!(store.reads() - reads <= if from.offset == 1000 { 30 } else { 9 });
            seen += page.len();
            from = last.successor().unwrap();
        }
        assert_eq!(seen, 97_000);
    }

    #[test]
    fn an_error_below_is_returned_and_not_taken_for_the_end() {
        let store = MemStore::default();
        let entry = |i: u64| (Key::new(7, 2, i), Some(Value::from([0u8; 400])));
        let root = Arc::new(tree::apply(&store, &Root::EMPTY, 1, 1, (0..2000).map(entry)).unwrap());
        let view = View { open: Arc::default(), syncing: None, root };
        view.open.delete(Key::new(7, 2, 500));
        store.fail_read_after(Some(10));
        assert!(view.scan(&store, Key::MIN, Key::MAX, 2000).is_err());
        store.fail_read_after(Some(0));
        assert!(view.get(&store, Key::new(7, 2, 5)).is_err());
        assert_eq!(view.get(&store, Key::new(7, 2, 500)).unwrap(), None);
    }
}
