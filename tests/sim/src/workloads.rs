//! Short workloads, all of them: two operations, each followed by one of the ways to make something durable or by none, on
//! a small tree and two volumes, in the manner of bounded black-box crash testing.

use qrvsa_core::volume::Spec;

use crate::model::{Ino, Model, ROOT};
use crate::session::Action;
use crate::volumes::{self, Deed, Verb, Way};

/// A step of a workload.
#[derive(Clone, Debug)]
pub enum Step {
    /// On the pool's own filesystem, or the pool.
    Files(Action),
    /// On a volume.
    Volume(Deed),
}

/// Files and directories that a workload begins with: `/a` (12,000 bytes), `/b` (100 bytes, in the inode's item), `/d/c`
/// (5000 bytes), `/e` (70,000 bytes), `/d/f` (empty).
pub const START: [(&str, Option<usize>); 6] =
    [("a", Some(12_000)), ("b", Some(100)), ("d", None), ("d/c", Some(5000)), ("e", Some(70_000)), ("d/f", Some(0))];

/// Volumes that a workload begins with; their first bytes are written (20,000 of `v`, 9000 of `r`).
pub const VOLUMES: [(&str, Spec, usize); 2] = [
    ("v", Spec { size_bytes: 128 << 10, block_bytes: 512, record_bytes: 16 << 10, reserve: false }, 20_000),
    ("r", Spec { size_bytes: 48 << 10, block_bytes: 4096, record_bytes: 8 << 10, reserve: true }, 9000),
];

fn at(model: &Model, path: &str) -> Option<Ino> {
    path.split('/').try_fold(ROOT, |dir, name| model.lookup(dir, name))
}

fn place(model: &Model, path: &str) -> Option<(Ino, String)> {
    match path.rsplit_once('/') {
        Some((dir, name)) => Some((at(model, dir)?, name.to_owned())),
        None => Some((ROOT, path.to_owned())),
    }
}

fn free(model: &Model, path: &str) -> Option<(Ino, String)> {
    let (dir, name) = place(model, path)?;
    model.lookup(dir, &name).is_none().then_some((dir, name))
}

fn named(model: &Model, path: &str) -> Option<(Ino, String)> {
    let (dir, name) = place(model, path)?;
    model.lookup(dir, &name).map(|_| (dir, name))
}

fn rename(model: &Model, from: &str, to: &str, exchange: bool) -> Option<Action> {
    let (source, target) = (named(model, from)?, if exchange { named(model, to)? } else { place(model, to)? });
    // a file does not replace a directory
    let fits = |t: Ino| exchange || (!model.is_dir(t) && !model.is_dir(at(model, from).unwrap_or(t)));
    if !at(model, to).is_none_or(fits) {
        return None;
    }
    Some(Action::Rename(source, target, exchange))
}

fn file(model: &Model, path: &str) -> Option<Ino> {
    at(model, path).filter(|i| !model.is_dir(*i))
}

/// Number of operations on files.
const FILE_OPERATIONS: usize = 30;
/// Number of operations.
pub const OPERATIONS: usize = FILE_OPERATIONS + 20;

/// An operation by number; `None` if it makes no sense now.
pub fn operation(model: &Model, volumes: &volumes::Models, number: usize) -> Option<Step> {
    match number.checked_sub(FILE_OPERATIONS) {
        None => on_files(model, number).map(Step::Files),
        Some(more) => on_volumes(volumes, more).map(Step::Volume),
    }
}

fn on_volumes(volumes: &volumes::Models, number: usize) -> Option<Deed> {
    let write = |volume: &str, offset: u64, len: usize, way: Way, fua: bool| {
        let size = volumes.get(volume)?.size;
        let seed = number as u64 + 50;
        (offset + len as u64 <= size)
            .then(|| Deed { volume: volume.to_owned(), verb: Verb::Write { offset, len, seed, way, fua } })
    };
    let deed = |volume: &str, verb: Verb| {
        let end = match verb {
            Verb::Discard(offset, len) => offset + len,
            Verb::Overtake(offset, len, _) | Verb::Pierce { offset, len, .. } => offset + len as u64,
            _ => 0,
        };
        let makes_sense = match volumes.get(volume) {
            Some(model) => end <= model.size && !matches!(verb, Verb::Create(_)),
            None => matches!(verb, Verb::Create(_)),
        };
        makes_sense.then(|| Deed { volume: volume.to_owned(), verb })
    };
    let pierce = |volume: &str, offset: u64, hole: (u64, u64), crowd: u64| {
        deed(volume, Verb::Pierce { offset, len: 24_576, hole, seed: number as u64 + 50, crowd })
    };
    match number {
        0 => write("v", 0, 4096, Way::Plain, false),
        1 => write("r", 1000, 5000, Way::Plain, false),
        2 => write("v", 3000, 40_000, Way::Plain, false),
        3 => write("v", 16_384, 20_000, Way::Plain, true),
        4 => write("r", 9000, 100, Way::Plain, true),
        5 => deed("v", Verb::Discard(0, 17_000)),
        6 => write("v", 8192, 24_576, Way::Atomic, false),
        7 => write("r", 4096, 20_000, Way::Atomic, false),
        8 => write("v", 4096, 12_288, Way::Atomic, true),
        9 => deed("v", Verb::Resize(9216)),
        10 => deed("v", Verb::Resize(160 << 10)),
        11 => deed("r", Verb::Discard(4096, 30_000)),
        12 => write("r", 8192, 4096, Way::Compared, true),
        13 => deed("v", Verb::Destroy),
        14 => deed("w", Verb::Create(VOLUMES[1].1)),
        15 => deed("v", Verb::Overtake(2000, 9000, 70)),
        16 => pierce("v", 8192, (16_384, 24_576), 0),
        // its two parts would lie on both sides of the end of a block of the log
        17 => pierce("v", 8192, (16_384, 24_576), 42),
        18 => pierce("r", 4096, (8192, 16_384), 42),
        19 => deed("v", Verb::Discard(13_000, 9000)),
        _ => None,
    }
}

fn on_files(model: &Model, number: usize) -> Option<Action> {
    let write =
        |path: &str, offset: u64, len: usize| Some(Action::Write(file(model, path)?, offset, len, number as u64 + 7));
    match number {
        0 => free(model, "n").map(|(dir, name)| Action::Create(dir, name)),
        1 => write("a", 0, 4096),
        2 => rename(model, "a", "b", false),
        3 => write("b", 50, 3000),
        4 => named(model, "a").map(|(dir, name)| Action::Unlink(dir, name)),
        5 => write("a", 11_000, 20_000),
        6 => Some(Action::Truncate(file(model, "a")?, 5000)),
        7 => rename(model, "d/c", "n", false),
        8 => free(model, "d/n").and_then(|(dir, name)| Some(Action::Link(file(model, "a")?, dir, name))),
        9 => Some(Action::Punch(file(model, "e")?, 4096, 40_000)),
        10 => free(model, "n").map(|(dir, name)| Action::Mkdir(dir, name)),
        11 => rename(model, "d", "g", false),
        12 => rename(model, "a", "d/c", true),
        13 => Some(Action::SetXattr(at(model, "a")?, "user.x".to_owned(), 200, 3)),
        14 => write("d/c", 100, 10),
        15 => Some(Action::Copy((file(model, "e")?, 0), (file(model, "b")?, 0), 30_000)),
        16 => Some(Action::Chmod(at(model, "b")?, 0o600)),
        17 => named(model, "e").map(|(dir, name)| Action::Unlink(dir, name)),
        18 => Some(Action::Truncate(file(model, "e")?, 0)),
        19 => free(model, "s").map(|(dir, name)| Action::Symlink(dir, name, "d/c".to_owned())),
        20 => write("d/f", 0, 300),
        21 => rename(model, "e", "a", false),
        22 => write("a", 200_000, 100),
        23 => named(model, "d/f").map(|(dir, name)| Action::Unlink(dir, name)),
        24 => Some(Action::Truncate(file(model, "b")?, 9000)),
        25 => Some(Action::SetXattr(at(model, "d")?, "user.big".to_owned(), 7000, 5)),
        26 => write("e", 30_000, 9000),
        27 => rename(model, "b", "d/b", false),
        28 => write("d/f", 0, 150_000),
        29 => free(model, "d/x").map(|(dir, name)| Action::Create(dir, name)),
        _ => None,
    }
}

/// Ways to make something durable: nothing, fsync of some files and directories, a commit, and a flush of a volume.
pub const SYNCS: usize = 8;

/// One of them.
pub fn sync(model: &Model, volumes: &volumes::Models, number: usize) -> Option<Step> {
    let flush = |volume: &str| {
        volumes.contains_key(volume).then(|| Step::Volume(Deed { volume: volume.to_owned(), verb: Verb::Flush }))
    };
    match number {
        6 => flush("v"),
        7 => flush("r"),
        _ => sync_files(model, number).map(Step::Files),
    }
}

fn sync_files(model: &Model, number: usize) -> Option<Action> {
    match number {
        0 => None,
        1 => Some(Action::Fsync(at(model, "a").or_else(|| at(model, "b"))?)),
        2 => Some(Action::Commit),
        3 => Some(Action::Fsync(at(model, "b").or_else(|| at(model, "e"))?)),
        4 => Some(Action::Fsync(ROOT)),
        _ => Some(Action::Fsync(at(model, "n").or_else(|| at(model, "d/c")).or_else(|| at(model, "e"))?)),
    }
}

/// How many workloads there are.
pub const COUNT: u64 = (OPERATIONS * OPERATIONS * SYNCS * SYNCS) as u64;

/// A workload by number, as numbers of operations and syncs. Neighbours have little in common.
pub fn workload(number: u64) -> [(usize, usize); 2] {
    // a step without a common divisor with the count visits all of them
    let mut n = (number % COUNT) * 7919 % COUNT;
    let mut next = |count: usize| {
        let value = n % count as u64;
        n /= count as u64;
        value as usize
    };
    let second = next(OPERATIONS);
    let first = next(OPERATIONS);
    let (s1, s2) = (next(SYNCS), next(SYNCS));
    [(first, s1), (second, s2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_visited_once() {
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..COUNT {
            seen.insert(workload(n));
        }
        assert_eq!(seen.len() as u64, COUNT);
    }
}
