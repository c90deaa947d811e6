//! The tree on a real pool: `cargo bench -p qrvsa-core --bench pool`.
//!
//! A 4+2 pool of six files takes a million items in random order, with a commit after each 50,000 (20,000 items with
//! `--bench` missing, for a quick look that it runs). It is closed and imported again, so that its caches are empty: then
//! items are looked up one by one, and scanned 10,000 at a time. `BENCH_DIR` says where the files lie.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qrvsa_core::device::{Device, OpenOptions, open};
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::Environment;
use qrvsa_core::fs::store::{Intent, Log, Store, Value};
use qrvsa_core::pool::space::Geometry;
use qrvsa_core::tree::Key;

const BATCH_ITEMS: u64 = 50_000;
/// Items of one transaction.
const TX_ITEMS: u64 = 10;
const VALUE_BYTES: usize = 48;
const SCAN_ITEMS: usize = 10_000;
/// Objects of the bench lie above this number, out of the way of the filesystem.
const FIRST_OBJECT: u64 = 1 << 62;

/// A pseudo-random bijection (the finalizer of SplitMix64), cut to the numbers above `FIRST_OBJECT`.
fn key(i: u64) -> Key {
    let z = (i ^ (i >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Key::new(FIRST_OBJECT + (z ^ (z >> 31)) / 4, 1, i)
}

fn percentiles(name: &str, mut times: Vec<Duration>, mark: &str) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{name}: p50 {:.0} us, p99 {:.0} us, max {:.0} us ({mark})", at(0.5), at(0.99), at(1.0));
}

fn main() {
    let full = std::env::args().any(|a| a == "--bench");
    let (items, samples) = if full { (1_000_000, 100_000) } else { (20_000, 1_000) };
    let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    std::fs::create_dir_all(&parent).expect("the directory of the files");
    let dir = tempfile::Builder::new().prefix("qrvsa-pool").tempdir_in(parent).expect("a temporary directory");
    let paths: Vec<_> = (0..6).map(|i| dir.path().join(format!("{i}.img"))).collect();
    let devices = |create: bool| -> Vec<Arc<dyn Device>> {
        let size = create.then_some(8 << 30);
        let options = OpenOptions { create_size: size, exclusive: true, read_only: false };
        paths.iter().map(|p| open(p, options).expect("the file opens")).collect()
    };
    let options = Options::default();
    let geometry = Geometry::new(4, 2).expect("4+2 is a geometry");
    let pool = Pool::create(Environment::system(), options.clone(), "bench", Some(geometry), devices(true))
        .expect("the pool is made");
    let dataset = pool.dataset("").expect("a pool has a filesystem");
    let value = Value::from([0x5a; VALUE_BYTES]);
    let began = Instant::now();
    let mut at = 0;
    while at < items {
        for _ in 0..BATCH_ITEMS.min(items - at) / TX_ITEMS {
            let tx = dataset.begin(Intent::Grow).expect("there is room");
            (at..at + TX_ITEMS).for_each(|i| dataset.put(&tx, key(i), value.clone(), Log::Always));
            at += TX_ITEMS;
        }
        pool.commit().expect("the commit is durable");
    }
    println!(
        "on a 4+2 pool of files: {items} inserts, a commit after each {BATCH_ITEMS}: {:.2} s (mark: 30 s)",
        began.elapsed().as_secs_f64()
    );
    drop(dataset);
    pool.close().expect("the pool closes");
    drop(pool);

    let candidates = devices(false).into_iter().map(|d| Candidate::new(d).expect("a member")).collect();
    let pool = Pool::import(Environment::system(), options, candidates).expect("the pool imports");
    let dataset = pool.dataset("").expect("a pool has a filesystem");
    let lookup = |i: u64| {
        let wanted = key(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % items);
        let start = Instant::now();
        let found = Store::get(&*dataset, wanted).expect("it reads");
        let time = start.elapsed();
        assert!(found.is_some());
        time
    };
    percentiles("point look-up, from empty caches on", (0..samples).map(lookup).collect(), "mark: p99 1000 us");
    let scans = (0..100u64).map(|i| {
        let from = Key::new(FIRST_OBJECT + (key(i).object - FIRST_OBJECT) / 4, 0, 0);
        let start = Instant::now();
        let found = Store::scan(&*dataset, from, Key::MAX, SCAN_ITEMS).expect("it reads");
        assert_eq!(found.len(), SCAN_ITEMS);
        start.elapsed()
    });
    percentiles("scan of 10000 keys", scans.collect(), "mark: 100000 us");
    drop(dataset);
    pool.close().expect("the pool closes");
}
