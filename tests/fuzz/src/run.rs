//! The loop: change an input, run the target, judge.
//!
//! An input that a parser accepts although it is new takes the place of another one in the pool of the run, so that changes
//! add up to what a few changes to the corpus would not reach.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Once};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use crate::mutate::{Random, mutate};
use crate::{Target, corpus};

/// Longest processor time that one input may take. Far above what any needs: it finds loops.
pub const TIME_MAX: Duration = Duration::from_secs(20);
/// Inputs in the pool beside the corpus.
const POOL: usize = 64;
/// Failures of one target after which it is left alone.
const FAILURES_MAX: usize = 5;

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// An input that runs now.
struct Running {
    target: &'static str,
    input: Vec<u8>,
    since_tick: u64,
    keep_in: PathBuf,
}

/// Seconds that the thread beside has seen go by: not those in which the machine or the process stood still.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// What runs now, by the thread that runs it; beside it a thread that ends the process when an input never ends.
static RUNNING: LazyLock<Mutex<HashMap<ThreadId, Running>>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = TICKS.fetch_add(1, Ordering::Relaxed);
            let running = RUNNING.lock();
            let late = |r: &&Running| now.saturating_sub(r.since_tick) > TIME_MAX.as_secs() * 3;
            let Some(hung) = running.values().find(late) else { continue };
            let path = corpus::keep(&hung.keep_in.join(hung.target), &hung.input);
            eprintln!("an input of {} does not end; it is kept: {path:?}", hung.target);
            std::process::exit(1);
        }
    });
    Mutex::default()
});

/// Keeps panics of this thread quiet, for the report.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string().replace('\n', " "));
        }));
    });
}

/// Runs a target on one input: whether a parser took it.
///
/// # Errors
/// In words: a panic, too much memory, too much time.
pub fn execute(target: &Target, input: &[u8]) -> Result<bool, String> {
    install_hook();
    let counter = tikv_jemalloc_ctl::thread::allocatedp::read().map_err(|e| format!("no memory counter: {e}"))?;
    let busy = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    let (before, begin) = (counter.get(), busy());
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (taken, allocated) = (busy().saturating_sub(begin), counter.get().wrapping_sub(before));
    let accepted = result.map_err(|_| LAST_PANIC.with(|last| last.borrow().clone()))?;
    if allocated > target.memory_max {
        return Err(format!(
            "{allocated} bytes allocated for an input of {}; at most {}",
            input.len(),
            target.memory_max
        ));
    }
    if taken > TIME_MAX {
        return Err(format!("{taken:?} for an input of {} bytes", input.len()));
    }
    Ok(accepted)
}

/// An input on which a target failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Where it is kept.
    pub path: PathBuf,
    /// How it failed.
    pub what: String,
}

/// What a run of one target did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Inputs run.
    pub inputs: u64,
    /// Of those, accepted by a parser.
    pub accepted: u64,
    /// What failed.
    pub failures: Vec<Failure>,
}

/// When a run of one target ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many inputs beside the corpus.
    Inputs(u64),
    /// At that time.
    Time(Instant),
}

/// Fuzzes one target: crashers, corpus, then changed inputs. Failing inputs are kept in `keep_in`.
///
/// # Errors
/// When corpus or failing inputs cannot be read or written.
pub fn fuzz(target: &Target, seed: u64, until: Until, keep_in: &Path) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    for (path, input) in corpus::crashers(target)? {
        outcome.inputs += 1;
        if let Err(what) = execute(target, &input) {
            outcome.failures.push(Failure { path, what });
        }
    }
    let mut pool: Vec<Vec<u8>> = corpus::seeds(target)?.into_iter().map(|(_, input)| input).collect();
    let seeds = pool.len();
    for input in &pool {
        outcome.one(target, input, keep_in)?;
    }
    let mut random = Random::new(seed ^ xxhash_rust::xxh3::xxh3_64(target.name.as_bytes()));
    let mut input = Vec::new();
    let mut done = 0;
    while outcome.failures.len() < FAILURES_MAX {
        match until {
            Until::Inputs(count) if done >= count => break,
            Until::Time(end) if Instant::now() >= end => break,
            _ => done += 1,
        }
        input.clear();
        if let Some(from) = pool.get(random.below(pool.len())) {
            input.extend_from_slice(from);
        }
        let other = pool.get(random.below(pool.len())).cloned().unwrap_or_default();
        mutate(&mut input, &other, target.words, target.bytes_max, &mut random);
        if outcome.one(target, &input, keep_in)? {
            if pool.len() < seeds + POOL {
                pool.push(input.clone());
            } else if random.below(4) == 0 {
                let place = seeds + random.below(POOL);
                pool[place] = input.clone();
            }
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn one(&mut self, target: &Target, input: &[u8], keep_in: &Path) -> io::Result<bool> {
        self.inputs += 1;
        let thread = std::thread::current().id();
        let keep = keep_in.to_owned();
        let now = Running {
            target: target.name,
            input: input.to_vec(),
            since_tick: TICKS.load(Ordering::Relaxed),
            keep_in: keep,
        };
        RUNNING.lock().insert(thread, now);
        let result = execute(target, input);
        RUNNING.lock().remove(&thread);
        match result {
            Ok(accepted) => {
                self.accepted += u64::from(accepted);
                Ok(accepted)
            }
            Err(what) => {
                let small = shrink(target, input);
                let what = execute(target, &small).err().unwrap_or(what);
                let path = corpus::keep(&keep_in.join(target.name), &small)?;
                // the same place in the code again is no news
                let place = |what: &str| what.split(": ").next().map(str::to_owned);
                if !self.failures.iter().any(|f| place(&f.what) == place(&what)) {
                    self.failures.push(Failure { path, what });
                }
                Ok(false)
            }
        }
    }
}

/// A shorter input that fails too: pieces are taken out while it does.
fn shrink(target: &Target, input: &[u8]) -> Vec<u8> {
    let mut best = input.to_vec();
    let until = Instant::now() + Duration::from_secs(10);
    let mut piece = best.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < best.len() && Instant::now() < until {
            let mut shorter = best.clone();
            shorter.drain(at..(at + piece).min(best.len()));
            if execute(target, &shorter).is_err() {
                best = shorter;
            } else {
                at += piece;
            }
        }
        if piece == 1 || Instant::now() >= until {
            return best;
        }
        piece = piece.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(run: fn(&[u8]) -> bool) -> Target {
        let seeds = || vec![b"seed".to_vec()];
        Target { name: "none", covers: "", run, seeds, words: &[b"word"], bytes_max: 64, memory_max: 1 << 20 }
    }

    #[test]
    fn panics_memory_and_acceptance_are_told_apart() {
        assert_eq!(execute(&target(|input| input == b"yes"), b"yes"), Ok(true));
        assert_eq!(execute(&target(|input| input == b"yes"), b"no"), Ok(false));
        let panicking = target(|input| input.iter().any(|b| if *b == 7 { panic!("seven") } else { false }));
        assert!(execute(&panicking, &[1, 7]).unwrap_err().contains("seven"));
        assert_eq!(shrink(&panicking, &[1, 2, 3, 7, 9, 9, 9]), [7]);
        let hungry = target(|input| vec![1u8; 2 << 20].len() == input.len());
        assert!(execute(&hungry, b"").unwrap_err().contains("allocated"));
    }
}
