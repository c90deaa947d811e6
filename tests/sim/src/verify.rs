//! What has to hold of every pool that comes back: the oracle.

use std::sync::Arc;

use qrvsa_core::Result;
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::{Environment, SeededRandom};

use crate::bus::Bus;
use crate::clock::WorldClock;
use crate::model::{State, difference};
use crate::session::Session;

/// What small pools are run with.
pub fn options() -> Options {
    Options { memory_bytes: 16 << 20, ..Options::default() }
}

/// A world's clock and random numbers.
pub fn environment(clock: &Arc<WorldClock>, seed: u64) -> Environment {
    Environment { clock: clock.clone(), random: Arc::new(SeededRandom::new(seed)) }
}

/// Imports from those disks that are wanted.
///
/// # Errors
/// Those of the import.
pub fn import(bus: &Bus, env: Environment, options: Options, wanted: impl Fn(usize) -> bool) -> Result<Session> {
    let count = bus.0.lock().disks.len();
    let candidates =
        (0..count).filter(|i| wanted(*i)).filter_map(|i| Candidate::new(bus.device(i)).ok()).collect::<Vec<_>>();
    let pool = Pool::import(env, options, candidates)?;
    Session::open(pool)
}

/// Compares what is there with the states that are allowed. Returns which it is.
///
/// # Errors
/// What is wrong, in words.
pub fn matches(session: &Session, allowed: &[State]) -> std::result::Result<usize, String> {
    let found = session.dump().map_err(|e| format!("reading failed: {e}"))?;
    if let Some(i) = allowed.iter().position(|state| *state == found) {
        return Ok(i);
    }
    let mut text = format!("the state is none of the {} that are allowed", allowed.len());
    for (i, state) in allowed.iter().enumerate() {
        let words = difference(&found, state).unwrap_or_default();
        text.push_str(&format!("\n  allowed {i}: {words}"));
    }
    Err(text)
}

/// Checks a pool at rest: nothing is inconsistent, every byte is right, no space is held by nobody.
///
/// # Errors
/// What is wrong, in words.
pub fn check(pool: &Arc<Pool>) -> std::result::Result<(), String> {
    let report = pool.check(true, &mut |_| ()).map_err(|e| format!("the check failed: {e}"))?;
    if report.problem_count > 0 {
        return Err(format!("the check found {}: {}", report.problem_count, report.problems.join("; ")));
    }
    let (reserved, dirty) = (pool.space.reserved(), pool.dirty_bytes());
    if reserved != 0 || dirty != 0 {
        return Err(format!("nothing is dirty, and {reserved} blocks are reserved for {dirty} bytes"));
    }
    if !pool.status().damaged.is_empty() {
        return Err(format!("files are listed as damaged: {:?}", pool.status().damaged));
    }
    Ok(())
}
