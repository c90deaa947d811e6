//! The tree on a node store in memory: what it costs without devices.
//!
//! `cargo bench -p qrvsa-core --bench tree` prints one line for each measurement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qrvsa_core::dataset::{Memtable, View};
use qrvsa_core::tree::mem::MemStore;
use qrvsa_core::tree::{self, Key, NodeStore, Root, Value};

const ITEMS: u64 = 1_000_000;
const BATCH_ITEMS: u64 = 50_000;
const VALUE_BYTES: usize = 48;

/// A pseudo-random bijection (the finalizer of SplitMix64).
fn scatter(i: u64) -> u64 {
    let z = (i ^ (i >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Inserts all items, batch by batch, through a memtable as a commit does.
fn insert(name: &str, key: impl Fn(u64) -> Key) -> (MemStore, Root) {
    let store = MemStore::default();
    let value = Value::from([0x5a; VALUE_BYTES]);
    let (mut root, mut fill, mut apply) = (Root::EMPTY, Duration::ZERO, Duration::ZERO);
    for batch in 0..ITEMS / BATCH_ITEMS {
        let start = Instant::now();
        let memtable = Memtable::new();
        for i in 0..BATCH_ITEMS {
            memtable.put(key(batch * BATCH_ITEMS + i), value.clone());
        }
        fill += start.elapsed();
        let start = Instant::now();
        root = tree::apply(&store, &root, batch + 1, 1, memtable.batch()).expect("the store does not fail");
        apply += start.elapsed();
    }
    let rate = |time: Duration| ITEMS as f64 / time.as_secs_f64() / 1e6;
    let content_bytes = (ITEMS * (VALUE_BYTES as u64 + 19)) as f64;
    println!(
        "{name}: {ITEMS} inserts in batches of {BATCH_ITEMS}: memtable {:.2} M/s, apply {:.2} M/s; height {}, {} nodes ({:.0} % full), {} written",
        rate(fill),
        rate(apply),
        root.height,
        root.nodes,
        100.0 * content_bytes / (root.nodes as f64 * 16384.0),
        store.writes(),
    );
    (store, root)
}

fn percentiles(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos();
    println!("{name}: p50 {} ns, p99 {} ns, max {} ns", at(0.5), at(0.99), at(1.0));
}

fn lookups<S: NodeStore>(store: &S, root: &Root) {
    let times = (0..200_000u64)
        .map(|i| {
            let key = Key::new(scatter(scatter(i) % ITEMS), 0, 0);
            let start = Instant::now();
            let found = tree::get(store, root, key).expect("the store does not fail");
            let time = start.elapsed();
            assert!(found.is_some());
            time
        })
        .collect();
    percentiles("point look-up in the tree", times);
}

fn scans<S: NodeStore>(store: &S, root: Root) {
    let view = View { open: Arc::default(), syncing: Some(Arc::default()), root: Arc::new(root) };
    let times = (0..100u64)
        .map(|i| {
            let from = Key::new(scatter(i) / 2, 0, 0);
            let start = Instant::now();
            let found = view.scan(store, from, Key::MAX, 10_000).expect("the store does not fail");
            assert_eq!(found.len(), 10_000);
            start.elapsed()
        })
        .collect();
    percentiles("scan of 10000 items through a view", times);
}

fn main() {
    let (store, root) = insert("random", |i| Key::new(scatter(i), 0, 0));
    lookups(&store, &root);
    scans(&store, root);
    insert("sequential", |i| Key::new(7, 2, i));
}
