//! Blocks that copy tokens stand for. A token is good as long as nobody writes to its blocks.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::call::Blocks;

/// Blocks that must stay as they are.
#[derive(Debug)]
pub(crate) struct Watched {
    pub runs: Vec<Blocks>,
    valid: AtomicBool,
}

impl Watched {
    /// Nothing has been written there.
    pub(crate) fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Acquire)
    }
}

/// What is watched on one unit.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    count: AtomicUsize,
    list: Mutex<Vec<Weak<Watched>>>,
}

impl Watch {
    /// Watches the runs for as long as the answer lives.
    pub(crate) fn begin(&self, runs: Vec<Blocks>) -> Arc<Watched> {
        let watched = Arc::new(Watched { runs, valid: AtomicBool::new(true) });
        let mut list = self.list.lock();
        list.retain(|w| w.strong_count() > 0);
        list.push(Arc::downgrade(&watched));
        self.count.store(list.len(), Ordering::Release);
        watched
    }

    /// These blocks are about to be written. Called under a hold on them.
    pub(crate) fn written(&self, blocks: Blocks) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut list = self.list.lock();
        list.retain(|weak| {
            let Some(watched) = weak.upgrade() else { return false };
            if watched.runs.iter().any(|run| run.overlaps(blocks)) {
                watched.valid.store(false, Ordering::Release);
            }
            watched.is_valid()
        });
        self.count.store(list.len(), Ordering::Release);
    }

    pub(crate) fn written_all(&self) {
        self.written(Blocks { lba: 0, count: u64::MAX });
    }
}
