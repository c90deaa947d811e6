//! The items of a dataset as its objects see them.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::memtable::Memtable;
use super::nodes::Nodes;
use super::view::View;
use crate::error::Result;
use crate::item::Value;
use crate::object::Items;
use crate::pool::epoch::Epochs;
use crate::tree::{Key, Root};

/// The current view of a dataset's items and where its nodes lie.
pub struct DatasetItems {
    view: ArcSwap<View>,
    nodes: Arc<Nodes>,
    epochs: Epochs,
}

impl DatasetItems {
    /// Items under a root.
    pub fn new(root: Root, nodes: Arc<Nodes>, epochs: Epochs) -> DatasetItems {
        let view = View { open: Arc::new(Memtable::new()), syncing: None, root: Arc::new(root) };
        DatasetItems { view: ArcSwap::from_pointee(view), nodes, epochs }
    }

    /// The view now.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The open memtable. Stable while the caller holds the open transaction group.
    pub fn open(&self) -> Arc<Memtable> {
        self.view.load().open.clone()
    }

    /// Closes the open memtable: it becomes the syncing one. Nobody holds the transaction group.
    pub fn freeze(&self) {
        let view = self.view.load_full();
        assert!(view.syncing.is_none(), "one transaction group syncs at a time");
        self.view.store(Arc::new(View {
            open: Arc::new(Memtable::new()),
            syncing: Some(view.open.clone()),
            root: view.root.clone(),
        }));
    }

    /// The syncing memtable is in the new root now.
    pub fn publish(&self, root: Root) {
        let view = self.view.load_full();
        self.view.store(Arc::new(View { open: view.open.clone(), syncing: None, root: Arc::new(root) }));
    }

    fn syncing(&self) -> Arc<Memtable> {
        self.view
            .load()
            .syncing
            .clone()
            .expect("only the committing thread changes syncing items, while there are some")
    }
}

impl Items for DatasetItems {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        let _pin = self.epochs.pin();
        self.view.load().get(&*self.nodes, key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        let _pin = self.epochs.pin();
        self.view.load().scan(&*self.nodes, from, to, limit)
    }

    fn put_syncing(&self, key: Key, value: Value) {
        self.syncing().put(key, value);
    }

    fn delete_syncing(&self, key: Key) {
        self.syncing().delete(key);
    }
}
