//! The command line of the simulator.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use qrvsa_sim::runs::{self, Seeds, States};
use qrvsa_sim::{golden, world};

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
        /// End with the first violation
        #[arg(long)]
        fail_fast: bool,
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
        /// Run the seeds of this file first: one a line, words behind it are comments
        #[arg(long)]
        known: Option<PathBuf>,
        /// End with the first violation
        #[arg(long)]
        fail_fast: bool,
    },
    /// Run the world of one seed and tell what happens
    Replay {
        /// The seed
        #[arg(long)]
        seed: u64,
    },
    /// Crash states and seeds side by side until the time is over
    Soak {
        /// How long
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// The first seed and workload
        #[arg(long, default_value_t = 1_000_000)]
        first: u64,
        /// Threads for crash states, besides the one for seeds; as many as there are processors if not said
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Write golden images of this version that are not there yet
    Golden {
        /// The directory
        dir: PathBuf,
    },
}

fn read_seeds(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

fn soak(minutes: u64, first: u64, threads: usize) -> qrvsa_core::Result<bool> {
    let until = Some(Instant::now() + Duration::from_secs(minutes * 60));
    let states = States { count: u64::MAX, threads, first, only: None, geometry: None, fail_fast: false, until };
    let seeds = Seeds { list: Vec::new(), endless: Some(first), threads: 1, fail_fast: false, until };
    let (found, sums) = std::thread::scope(|scope| {
        let worlds = scope.spawn(|| runs::seeds(&seeds));
        (runs::states(&states), worlds.join())
    });
    let found = found?;
    let sums = sums.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    println!("crash states: {} explored, {} violations", found.states, found.violations.len());
    println!("seeds: {} run, {} violations", sums.run, sums.violations.len());
    Ok(found.violations.len() + sums.violations.len() > 0)
}

fn main() -> std::process::ExitCode {
    let failed = match Args::parse().command {
        Command::CrashStates { states, threads, workload, geometry, first, fail_fast } => {
            let plan = States { count: states, threads, first, only: workload, geometry, fail_fast, until: None };
            runs::states(&plan).map(|found| {
                println!("crash states: {} explored, {} violations", found.states, found.violations.len());
                !found.violations.is_empty()
            })
        }
        Command::Seeds { count, first, threads, table, known, fail_fast } => {
            let mut list = known.map(|p| read_seeds(&p)).unwrap_or_default();
            list.extend(first..first.saturating_add(count));
            let sums = runs::seeds(&Seeds { list, endless: None, threads, fail_fast, until: None });
            if table {
                println!("{}", sums.table.markdown());
                for (kind, target, state) in sums.table.empty_cells() {
                    println!("  not reached: {} of {target:?}, {state:?}", kind.name());
                }
            }
            println!("seeds: {} run, {} violations", sums.run, sums.violations.len());
            Ok(!sums.violations.is_empty())
        }
        Command::Replay { seed } => {
            let outcome = world::run(seed, true);
            println!("trace {:016x}", outcome.trace);
            println!("seed {seed}: {}", outcome.violation.as_deref().unwrap_or("no violation"));
            Ok(outcome.violation.is_some())
        }
        Command::Soak { minutes, first, threads } => {
            let cores = std::thread::available_parallelism().map_or(2, |n| n.get());
            soak(minutes, first, threads.unwrap_or(cores))
        }
        Command::Golden { dir } => golden::write_missing(&dir).map(|()| false),
    };
    let failed = failed.unwrap_or_else(|e| {
        println!("{e}");
        true
    });
    std::process::ExitCode::from(u8::from(failed))
}
