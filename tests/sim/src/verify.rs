//! What has to hold of every pool that comes back: the oracle.

use std::sync::Arc;

use qrvsa_core::Result;
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::{Environment, SeededRandom};
use qrvsa_core::fs::store::{KIND_ORPHAN, Store};
use qrvsa_core::pool::format::uberblock::Uberblock;
use qrvsa_core::tree::Key;

use crate::bus::Bus;
use crate::clock::WorldClock;
use crate::model::{State, difference};
use crate::session::Session;
use crate::volumes;

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

/// Every import has a generation of its own, and a log of that generation: nothing left over from before can be taken for
/// something newer. `before`: the newest generation that the devices had.
///
/// # Errors
/// What is wrong, in words.
pub fn generation(bus: &Bus, wanted: impl Fn(usize) -> bool, before: u64) -> std::result::Result<(), String> {
    let newest = newest(bus, wanted).ok_or("no uberblock is left")?;
    if newest.generation <= before || newest.log.generation != newest.generation {
        return Err(format!(
            "generation {} and a log of generation {} after an import, {before} before it",
            newest.generation, newest.log.generation
        ));
    }
    Ok(())
}

/// The newest uberblock of those devices that are wanted.
pub fn newest(bus: &Bus, wanted: impl Fn(usize) -> bool) -> Option<Uberblock> {
    let count = bus.0.lock().disks.len();
    let candidates = (0..count).filter(|i| wanted(*i)).filter_map(|i| Candidate::new(bus.device(i)).ok());
    candidates.filter_map(|c| c.uberblocks.first().cloned()).max_by_key(|u| (u.generation, u.txg))
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

/// Compares the volumes that are there with what may be; the models go on with what was found.
///
/// # Errors
/// What is wrong, in words.
pub fn volumes(session: &Session, models: &mut volumes::Models) -> std::result::Result<(), String> {
    let found = session.read_volumes().map_err(|e| format!("reading a volume failed: {e}"))?;
    volumes::compare(models, &found)
}

/// Checks a pool at rest: nothing is inconsistent, every byte is right, no space is held by nobody.
///
/// # Errors
/// What is wrong, in words.
pub fn check(pool: &Arc<Pool>) -> std::result::Result<(), String> {
    let report = pool.check(true, &mut |_| true).map_err(|e| format!("the check failed: {e}"))?;
    if report.problem_count > 0 {
        return Err(format!("the check found {}: {}", report.problem_count, report.problems.join("; ")));
    }
    if let Some(why) = report.unfinished {
        return Err(format!("the check of a pool at rest did not come to its end: {why}"));
    }
    let (reserved, dirty) = (pool.space.reserved(), pool.dirty_bytes());
    if reserved != 0 || dirty != 0 {
        return Err(format!("nothing is dirty, and {reserved} blocks are reserved for {dirty} bytes"));
    }
    for dataset in pool.datasets() {
        // nothing is open: what lost its last name goes with the next commit, after a crash with that of the import
        let (from, to) = (Key::new(0, KIND_ORPHAN, 0), Key::new(0, KIND_ORPHAN, u64::MAX));
        let left = Store::scan(&*dataset, from, to, 1).map_err(|e| format!("scanning failed: {e}"))?;
        if let Some((key, _)) = left.first() {
            return Err(format!(
                "'{}': object {} has no name, and its space is not given back",
                dataset.name(),
                key.offset
            ));
        }
    }
    if !pool.status().damaged.is_empty() {
        return Err(format!("files are listed as damaged: {:?}", pool.status().damaged));
    }
    Ok(())
}
