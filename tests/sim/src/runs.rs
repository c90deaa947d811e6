//! Many states and many seeds, on several threads, with progress and sums.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::explore::{self, Found, GEOMETRIES, Start};
use crate::fault::Table;
use crate::world;

/// What to explore.
#[derive(Clone, Debug)]
pub struct States {
    /// At least so many states.
    pub count: u64,
    /// On so many threads.
    pub threads: usize,
    /// Begin with this workload.
    pub first: u64,
    /// Only this workload.
    pub only: Option<u64>,
    /// Only this geometry, by number.
    pub geometry: Option<usize>,
    /// End with the first violation.
    pub fail_fast: bool,
    /// End at this time.
    pub until: Option<Instant>,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Seeds {
    /// These seeds.
    pub list: Vec<u64>,
    /// And then those from here on, until the time is over.
    pub endless: Option<u64>,
    /// On so many threads.
    pub threads: usize,
    /// End with the first violation.
    pub fail_fast: bool,
    /// End at this time.
    pub until: Option<Instant>,
}

/// Sums over many seeds.
#[derive(Default)]
pub struct Sums {
    /// Worlds.
    pub run: u64,
    /// Operations of their workloads.
    pub operations: u64,
    /// Crashes they survived.
    pub crashes: u64,
    /// Requests of their devices.
    pub requests: u64,
    /// Worlds beyond the promise.
    pub beyond: u64,
    /// What the faults met.
    pub table: Table,
    /// What was wrong.
    pub violations: Vec<String>,
}

fn over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() >= until)
}

/// What was found, taken together in the order of the workloads whichever thread was first, so that the same ones count in every
/// run: no more than it takes for so many states.
#[derive(Default)]
struct InTurn {
    next: u64,
    /// What comes later than one that is not done.
    ahead: BTreeMap<u64, Found>,
    found: Found,
}

impl InTurn {
    fn add(&mut self, turn: u64, found: Found, count: u64) {
        self.ahead.insert(turn, found);
        while self.found.states < count
            && let Some(found) = self.ahead.remove(&self.next)
        {
            found.violations.iter().for_each(|v| println!("VIOLATION {v}"));
            self.found.add(found);
            self.next += 1;
        }
    }
}

/// Explores crash states.
///
/// # Errors
/// When the pools that workloads begin with cannot be made.
pub fn states(plan: &States) -> qrvsa_core::Result<Found> {
    let mut starts = Vec::new();
    for (i, g) in GEOMETRIES.into_iter().enumerate() {
        if plan.geometry.is_none_or(|only| only == i) {
            starts.push((i, Start::new(g)?));
        }
    }
    let total = Mutex::new(InTurn { next: plan.first, ..InTurn::default() });
    let (next, said) = (AtomicU64::new(plan.first), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && !over(plan.until) {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if plan.only.is_some() && turn > plan.first {
                        return;
                    }
                    let number = plan.only.unwrap_or(turn);
                    let chosen: Vec<_> = match plan.only {
                        Some(_) => starts.iter().collect(),
                        None => vec![&starts[(turn % starts.len() as u64) as usize]],
                    };
                    let mut of_turn = Found::default();
                    for (index, start) in chosen {
                        let found = explore::explore(start, number, *index).unwrap_or_else(|e| Found {
                            violations: vec![format!("workload {number}, geometry {}: {e}", start.geometry)],
                            ..Found::default()
                        });
                        of_turn.add(Found { workloads: 1, ..found });
                    }
                    let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
                    total.add(turn, of_turn, plan.count);
                    if total.found.states >= plan.count || (plan.fail_fast && !total.found.violations.is_empty()) {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let slot = begin.elapsed().as_secs() / 20;
                    if said.swap(slot, Ordering::Relaxed) != slot {
                        println!("  {} s: {} states", slot * 20, total.found.states);
                    }
                }
            });
        }
    });
    let InTurn { mut found, ahead, .. } = total.into_inner().unwrap_or_else(|e| e.into_inner());
    // nothing bad is kept silent because it lies beyond what was to be explored
    for further in ahead.into_values().filter(|further| !further.violations.is_empty()) {
        further.violations.iter().for_each(|v| println!("VIOLATION {v}"));
        found.add(further);
    }
    let secs = begin.elapsed().as_secs_f64();
    println!(
        "{} workloads; {} states in a crash of an import, {} with a device lost besides; {secs:.0} s, {:.0} states a second",
        found.workloads,
        found.in_import,
        found.degraded,
        found.states as f64 / secs
    );
    Ok(found)
}

/// Runs worlds.
pub fn seeds(plan: &Seeds) -> Sums {
    let next = AtomicU64::new(0);
    let (sums, stop) = (Mutex::new(Sums::default()), AtomicBool::new(false));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && !over(plan.until) {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let listed = plan.list.get(usize::try_from(turn).unwrap_or(usize::MAX)).copied();
                    let Some(seed) = listed.or_else(|| Some(plan.endless? + turn)) else { return };
                    let outcome = world::run(seed, false);
                    let mut sums = sums.lock().unwrap_or_else(|e| e.into_inner());
                    sums.table.add(&outcome.table);
                    sums.run += 1;
                    sums.operations += outcome.operations;
                    sums.crashes += outcome.crashes;
                    sums.requests += outcome.requests;
                    sums.beyond += u64::from(outcome.beyond);
                    if let Some(v) = outcome.violation {
                        println!("VIOLATION seed {seed}: {v}\n  again: qrvsa-sim replay --seed {seed}");
                        sums.violations.push(v);
                        stop.fetch_or(plan.fail_fast, Ordering::Relaxed);
                    }
                    if sums.run.is_multiple_of(250) {
                        println!("  {} s: {} seeds", begin.elapsed().as_secs(), sums.run);
                    }
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_else(|e| e.into_inner());
    println!(
        "{} operations, {} crashes, {} requests, {} worlds beyond the promise; {:.0} s",
        sums.operations,
        sums.crashes,
        sums.requests,
        sums.beyond,
        begin.elapsed().as_secs_f64()
    );
    sums
}
