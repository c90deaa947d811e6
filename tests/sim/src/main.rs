//! The command line of the simulator.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use qrvsa_sim::explore::{self, Found, GEOMETRIES, Start};
use qrvsa_sim::fault::Table;
use qrvsa_sim::world;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Simulated pools: crashed at every write, and run from seeds through faults of every kind
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stop short workloads at every write, with every choice of what was unflushed
    CrashStates {
        /// States to explore, at least
        #[arg(long, default_value_t = 200_000)]
        states: u64,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Only this workload
        #[arg(long)]
        workload: Option<u64>,
        /// Only this geometry, by number
        #[arg(long)]
        geometry: Option<usize>,
        /// Begin with this workload
        #[arg(long, default_value_t = 0)]
        first: u64,
    },
    /// Run worlds from seeds in a row
    Seeds {
        /// How many
        #[arg(long, default_value_t = 2000)]
        count: u64,
        /// The first
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// Threads
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// Print the table of what the faults met
        #[arg(long)]
        table: bool,
        /// Run the seeds of this file first, one a line
        #[arg(long)]
        known: Option<std::path::PathBuf>,
    },
    /// Run the world of one seed and tell what happens
    Replay {
        /// The seed
        #[arg(long)]
        seed: u64,
    },
}

fn seeds(count: u64, first: u64, threads: usize, table: bool, known: Vec<u64>) -> bool {
    let list: Vec<u64> = known.into_iter().chain(first..first + count).collect();
    let next = AtomicU64::new(0);
    let total = Mutex::new((Table::default(), Vec::<String>::new(), [0u64; 5]));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = list.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let outcome = world::run(*seed, false);
                    let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
                    total.0.add(&outcome.table);
                    let sums = [1, outcome.operations, outcome.crashes, outcome.requests, u64::from(outcome.beyond)];
                    total.2.iter_mut().zip(sums).for_each(|(sum, n)| *sum += n);
                    if let Some(v) = outcome.violation {
                        println!("VIOLATION seed {seed}: {v}\n  again: qrvsa-sim replay --seed {seed}");
                        total.1.push(v);
                    }
                    if total.2[0].is_multiple_of(250) {
                        println!("  {} s: {} seeds", begin.elapsed().as_secs(), total.2[0]);
                    }
                }
            });
        }
    });
    let (cells, violations, [run, operations, crashes, requests, beyond]) =
        total.into_inner().unwrap_or_else(|e| e.into_inner());
    if table {
        println!("{}", cells.markdown());
    }
    for (kind, target, state) in cells.empty_cells() {
        println!("  not reached: {kind:?} on {target:?}, {state:?}");
    }
    println!(
        "{operations} operations, {crashes} crashes, {requests} requests, {beyond} worlds beyond the promise, {:.0} s",
        begin.elapsed().as_secs_f64()
    );
    println!("seeds: {run} run, {} violations", violations.len());
    !violations.is_empty()
}

fn read_seeds(path: &std::path::Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn crash_states(
    states: u64,
    threads: usize,
    only: Option<u64>,
    geometry: Option<usize>,
    first: u64,
) -> qrvsa_core::Result<Found> {
    let mut starts = Vec::new();
    for (i, g) in GEOMETRIES.into_iter().enumerate() {
        if geometry.is_none_or(|only| only == i) {
            starts.push((i, Start::new(g)?));
        }
    }
    let total = Mutex::new(Found::default());
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let begin = Instant::now();
    let said = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if (only.is_some() && turn > first) || done.load(Ordering::Relaxed) >= states {
                        return;
                    }
                    let number = only.unwrap_or(turn);
                    let chosen: Vec<_> = match only {
                        Some(_) => starts.iter().collect(),
                        None => vec![&starts[(turn % starts.len() as u64) as usize]],
                    };
                    for (index, start) in chosen {
                        let mut found = match explore::explore(start, number, *index) {
                            Ok(found) => found,
                            Err(e) => Found {
                                violations: vec![format!("workload {number}, geometry {}: {e}", start.geometry)],
                                ..Found::default()
                            },
                        };
                        for v in &found.violations {
                            println!("VIOLATION {v}");
                        }
                        done.fetch_add(found.states, Ordering::Relaxed);
                        let mut total = total.lock().unwrap_or_else(|e| e.into_inner());
                        total.states += found.states;
                        total.in_import += found.in_import;
                        total.degraded += found.degraded;
                        total.violations.append(&mut found.violations);
                    }
                    let secs = begin.elapsed().as_secs() / 10;
                    if said.swap(secs, Ordering::Relaxed) != secs {
                        println!("  {} s: {} states", secs * 10, done.load(Ordering::Relaxed));
                    }
                }
            });
        }
    });
    let took: Duration = begin.elapsed();
    let found = total.into_inner().unwrap_or_else(|e| e.into_inner());
    println!(
        "{} workloads, {} states during an import, {} with a device lost besides, {:.0} s, {:.0} states a second",
        next.load(Ordering::Relaxed).saturating_sub(first + threads as u64),
        found.in_import,
        found.degraded,
        took.as_secs_f64(),
        found.states as f64 / took.as_secs_f64()
    );
    Ok(found)
}

fn main() -> std::process::ExitCode {
    let failed = match Args::parse().command {
        Command::CrashStates { states, threads, workload, geometry, first } => {
            match crash_states(states, threads, workload, geometry, first) {
                Ok(found) => {
                    println!("crash states: {} explored, {} violations", found.states, found.violations.len());
                    !found.violations.is_empty()
                }
                Err(e) => {
                    println!("crash states: {e}");
                    true
                }
            }
        }
        Command::Seeds { count, first, threads, table, known } => {
            seeds(count, first, threads, table, known.map(|p| read_seeds(&p)).unwrap_or_default())
        }
        Command::Replay { seed } => {
            let outcome = world::run(seed, true);
            println!("trace {:016x}", outcome.trace);
            println!("seed {seed}: {}", outcome.violation.as_deref().unwrap_or("no violation"));
            outcome.violation.is_some()
        }
    };
    std::process::ExitCode::from(u8::from(failed))
}
