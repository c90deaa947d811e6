//! VHDX beside a plain file on the same code: `cargo bench -p qrvsa-core --bench vhdx`, and part of `tests/bench/vhdx.py`.
//!
//! Two ways lead to either: that of a pool's member (io_uring, direct I/O, batches of 32 or 4 requests), and that of a LUN
//! (the page cache; 32 threads with one request each, or one with 1 MiB). Contents lie in a fixed image and a file of the same
//! size, both written in full. Runs alternate; the ratio is the median of those of neighbouring runs. Then new blocks of 1 MiB are
//! written in dynamic images, with one flush at the end, inside the time; the file beside them begins as a hole.
//!
//! One line per test, fields parted by tabs: way, test, unit, plain file, VHDX, ratio. `BENCH_DIR` says where the files lie,
//! `VHDX_MB` how large they are, `RT` how many seconds a run takes, `REPS` how many there are. Without `--bench`, a quick look that it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use qrvsa_core::buf::{AlignedBuf, BufSlice};
use qrvsa_core::device::{Device, IoBatch, OpenOptions, Outcome, Request, open};
use qrvsa_core::vhdx::{CreateOptions, HostFile, Image, ImageFile, create, open_device};

const MIB: u64 = 1 << 20;
const LUN_THREADS: u64 = 32;
const DEADLINE: Duration = Duration::from_secs(60);

struct Plan {
    bytes: u64,
    time: Duration,
    reps: usize,
    /// Blocks that get their first bytes.
    fresh_blocks: u64,
}

/// The numbers of SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    size: u64,
    depth: u64,
    random: bool,
    write: bool,
}

const TESTS: [Test; 4] = [
    Test { name: "4 KiB random read, QD 32", size: 4096, depth: 32, random: true, write: false },
    Test { name: "4 KiB random write, QD 32", size: 4096, depth: 32, random: true, write: true },
    Test { name: "1 MiB sequential read", size: MIB, depth: 4, random: false, write: false },
    Test { name: "1 MiB sequential write", size: MIB, depth: 4, random: false, write: true },
];

impl Test {
    fn unit(&self) -> &'static str {
        if self.random { "IOPS" } else { "MB/s" }
    }

    fn rate(&self, requests: u64, time: Duration) -> f64 {
        let each = if self.random { 1.0 } else { self.size as f64 / 1e6 };
        requests as f64 * each / time.as_secs_f64()
    }

    fn offset(&self, number: u64, numbers: &mut Numbers, bytes: u64) -> u64 {
        let slots = bytes / self.size;
        (if self.random { numbers.next() } else { number }) % slots * self.size
    }
}

fn member(device: &Arc<dyn Device>, test: Test, plan: &Plan, seed: u64) -> f64 {
    let mut numbers = Numbers(seed);
    let contents = Arc::new(AlignedBuf::from_slice(&vec![0x5a; test.size as usize]));
    let mut spare: Vec<AlignedBuf> = (0..test.depth).map(|_| AlignedBuf::zeroed(test.size as usize)).collect();
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < plan.time {
        let mut batch = IoBatch::new();
        for n in 0..test.depth {
            let offset = test.offset(done + n, &mut numbers, plan.bytes);
            let request = if test.write {
                Request::Write { offset, slices: vec![BufSlice::whole(contents.clone())], durable: false }
            } else {
                Request::Read { offset, bufs: spare.pop().into_iter().collect() }
            };
            batch.push(device, request);
        }
        for outcome in batch.wait(DEADLINE) {
            let Outcome::Done(bufs) = outcome else { panic!("{outcome:?}") };
            spare.extend(bufs);
        }
        done += test.depth;
    }
    let rate = test.rate(done, start.elapsed());
    flush_device(device);
    rate
}

fn flush_device(device: &Arc<dyn Device>) {
    let mut batch = IoBatch::new();
    batch.push(device, Request::Flush);
    assert!(matches!(batch.wait(DEADLINE)[..], [Outcome::Done(_)]));
}

/// What a LUN stands on.
enum Lun {
    Plain(HostFile),
    Vhdx(Arc<Image>),
}

impl Lun {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        match self {
            Lun::Plain(file) => file.read_at(buf, offset).expect("it reads"),
            Lun::Vhdx(image) => image.read(offset, buf).expect("it reads"),
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        match self {
            Lun::Plain(file) => file.write_at(bytes, offset).expect("it writes"),
            Lun::Vhdx(image) => image.write(offset, bytes).expect("it writes"),
        }
    }

    fn flush(&self) {
        match self {
            Lun::Plain(file) => file.flush().expect("it flushes"),
            Lun::Vhdx(image) => image.flush().expect("it flushes"),
        }
    }
}

fn lun(lun: &Lun, test: Test, plan: &Plan, seed: u64) -> f64 {
    let threads = if test.random { LUN_THREADS } else { 1 };
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let done = &done;
            scope.spawn(move || {
                let mut numbers = Numbers(seed << 8 | thread);
                let mut buf = vec![0x5a; test.size as usize];
                let mut own = 0;
                while start.elapsed() < plan.time {
                    let offset = test.offset(own, &mut numbers, plan.bytes);
                    if test.write {
                        lun.write(offset, &buf)
                    } else {
                        lun.read(offset, &mut buf)
                    }
                    own += 1;
                }
                done.fetch_add(own, Ordering::Relaxed);
            });
        }
    });
    let rate = test.rate(done.load(Ordering::Relaxed), start.elapsed());
    lun.flush();
    rate
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs both by turns and prints the line.
fn compare(way: &str, test: &str, unit: &str, reps: usize, mut run: impl FnMut(bool, u64) -> f64) {
    let pairs: Vec<(f64, f64)> = (0..reps as u64)
        .map(|rep| {
            // The first of two may find more to clean up.
            let first = run(rep % 2 == 1, rep);
            let second = run(rep % 2 == 0, rep);
            if rep % 2 == 1 { (second, first) } else { (first, second) }
        })
        .collect();
    let of = |f: fn(&(f64, f64)) -> f64| median(pairs.iter().map(f).collect());
    println!("{way}\t{test}\t{unit}\t{:.0}\t{:.0}\t{:.2}", of(|p| p.0), of(|p| p.1), of(|p| p.1 / p.0));
}

fn fill(write: impl Fn(u64, &[u8]), bytes: u64) {
    let contents: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
    (0..bytes / MIB).for_each(|n| write(n * MIB, &contents));
}

fn dynamic(path: &Path, bytes: u64) -> Lun {
    let options = CreateOptions { block_size: MIB as u32, ..CreateOptions::dynamic(bytes) };
    create(path, &options).expect("the image is made");
    Lun::Vhdx(Image::open(path, true).expect("the image opens"))
}

/// New blocks, each touched by one write; how many a second, with the flush.
fn fresh(dir: &Path, vhdx: bool, size: u64, blocks: u64) -> f64 {
    let path = dir.join("fresh");
    let bytes = blocks * MIB;
    let lun = if vhdx {
        dynamic(&path, bytes)
    } else {
        let file = HostFile::create(&path).expect("the file is made");
        file.set_length(bytes).expect("it grows");
        Lun::Plain(file)
    };
    let contents = vec![0x5a; size as usize];
    let start = Instant::now();
    for block in 0..blocks {
        lun.write(block * MIB, &contents);
    }
    lun.flush();
    let time = start.elapsed();
    drop(lun);
    std::fs::remove_file(&path).expect("it goes");
    blocks as f64 / time.as_secs_f64()
}

fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let plan = if std::env::args().any(|a| a == "--bench") {
        let megabytes = (number("VHDX_MB", 256.0) as u64).max(16);
        Plan {
            bytes: megabytes * MIB,
            time: Duration::from_secs_f64(number("RT", 2.0).min(60.0)),
            reps: (number("REPS", 3.0) as usize).max(1),
            fresh_blocks: megabytes,
        }
    } else {
        Plan { bytes: 16 * MIB, time: Duration::from_millis(20), reps: 1, fresh_blocks: 8 }
    };
    let parent = std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    std::fs::create_dir_all(&parent).expect("the directory of the files");
    let dir = tempfile::Builder::new().prefix("qrvsa-vhdx").tempdir_in(parent).expect("a temporary directory");
    let (plain, fixed) = (dir.path().join("plain"), dir.path().join("fixed.vhdx"));

    let file = HostFile::create(&plain).expect("the file is made");
    fill(|at, bytes| file.write_at(bytes, at).expect("it writes"), plan.bytes);
    file.flush().expect("it flushes");
    drop(file);
    create(&fixed, &CreateOptions { fixed: true, ..CreateOptions::dynamic(plan.bytes) }).expect("the image is made");
    let image = Image::open(&fixed, true).expect("the image opens");
    fill(|at, bytes| image.write(at, bytes).expect("it writes"), plan.bytes);
    image.close().expect("it closes");
    drop(image);

    let options = OpenOptions { create_size: None, exclusive: true, read_only: false };
    let devices = [open(&plain, options).expect("it opens"), open_device(&fixed, options).expect("it opens")];
    for test in TESTS {
        compare("member", test.name, test.unit(), plan.reps, |vhdx, seed| {
            member(&devices[usize::from(vhdx)], test, &plan, seed)
        });
    }
    drop(devices);
    let luns = [
        Lun::Plain(HostFile::open(&plain, true).expect("it opens")),
        Lun::Vhdx(Image::open(&fixed, true).expect("it opens")),
    ];
    for test in TESTS {
        compare("lun", test.name, test.unit(), plan.reps, |vhdx, seed| {
            lun(&luns[usize::from(vhdx)], test, &plan, seed)
        });
    }
    drop(luns);
    compare("fresh", "1 MiB sequential write, allocating", "MB/s", plan.reps, |vhdx, _| {
        MIB as f64 / 1e6 * fresh(dir.path(), vhdx, MIB, plan.fresh_blocks)
    });
    // Four times as many: they are small, and what opening the log costs comes once.
    compare("fresh", "4 KiB write, each the first in its block", "IOPS", plan.reps, |vhdx, _| {
        fresh(dir.path(), vhdx, 4096, 4 * plan.fresh_blocks)
    });
}
