//! `qrvsa-fuzz`: runs the fuzz targets without a special toolchain. See `docs/testing.md`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use qrvsa_fuzz::run::{self, Outcome, Until};
use qrvsa_fuzz::targets::TARGETS;
use qrvsa_fuzz::{Target, corpus};

#[derive(Parser)]
#[command(name = "qrvsa-fuzz", about = "Throw changed inputs at everything that reads foreign bytes")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fuzz all targets, or one: crashers and corpus first, then changed inputs
    Run {
        /// Seconds for all targets together
        #[arg(long, conflicts_with = "inputs")]
        seconds: Option<u64>,
        /// Changed inputs for each target
        #[arg(long, default_value_t = 2000)]
        inputs: u64,
        /// Only this one
        #[arg(long)]
        target: Option<String>,
        /// The same seed and number of inputs give the same inputs
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where inputs are kept that fail
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Run one target on files
    Replay {
        /// The target
        target: String,
        /// The inputs
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List the targets
    List,
    /// Write the corpus anew from the encoders
    Corpus,
}

fn find(name: &str) -> Result<&'static Target, String> {
    let names = || TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    TARGETS.iter().find(|t| t.name == name).ok_or_else(|| format!("there is no target {name}; there are: {}", names()))
}

fn show(target: &Target, outcome: &Outcome) {
    let percent = outcome.accepted * 100 / outcome.inputs.max(1);
    println!("{:<16} {:>9} inputs, {percent:>3} % accepted", target.name, outcome.inputs);
    for failure in &outcome.failures {
        println!("  {}", failure.what);
        println!("  replay: qrvsa-fuzz replay {} {}", target.name, failure.path.display());
    }
}

fn run(seconds: Option<u64>, inputs: u64, only: Option<&str>, seed: u64, keep: &Path) -> Result<bool, String> {
    let targets: Vec<&Target> = match only {
        Some(name) => vec![find(name)?],
        None => TARGETS.iter().collect(),
    };
    let begin = Instant::now();
    let share = seconds.map(|s| Duration::from_secs(s) / u32::try_from(targets.len().max(1)).unwrap_or(1));
    let (mut ran, mut failures) = (0, 0);
    for (i, target) in (1u32..).zip(&targets) {
        let until = share.map_or(Until::Inputs(inputs), |share| Until::Time(begin + share * i));
        let outcome = run::fuzz(target, seed, until, keep).map_err(|e| format!("cannot use the corpus: {e}"))?;
        show(target, &outcome);
        ran += outcome.inputs;
        failures += outcome.failures.len();
    }
    println!("fuzz: {} targets, {ran} inputs, {failures} failures", targets.len());
    Ok(failures > 0)
}

fn replay(name: &str, files: &[PathBuf]) -> Result<bool, String> {
    let target = find(name)?;
    let mut failed = false;
    for path in files {
        let input = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let result = run::execute(target, &input);
        failed |= result.is_err();
        match result {
            Ok(accepted) => println!("{}: {}", path.display(), if accepted { "accepted" } else { "refused" }),
            Err(what) => println!("{}: {what}", path.display()),
        }
    }
    Ok(failed)
}

fn main() -> std::process::ExitCode {
    let result = match Args::parse().command {
        Command::Run { seconds, inputs, target, seed, keep } => {
            let keep = keep.unwrap_or_else(|| corpus::root().join("crashers"));
            run(seconds, inputs, target.as_deref(), seed, &keep)
        }
        Command::Replay { target, files } => replay(&target, &files),
        Command::List => {
            for target in TARGETS {
                println!("{:<16} {}", target.name, target.covers);
            }
            Ok(false)
        }
        Command::Corpus => TARGETS
            .iter()
            .try_fold((), |(), target| {
                corpus::write(target).map(|count| println!("{:<16} {count} inputs", target.name))
            })
            .map(|()| false)
            .map_err(|e| e.to_string()),
    };
    let failed = result.unwrap_or_else(|what| {
        eprintln!("{what}");
        true
    });
    std::process::ExitCode::from(u8::from(failed))
}
