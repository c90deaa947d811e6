//! What a seed decides: the shape of its world, which operations run, what goes wrong.

use std::time::Duration;

use qrvsa_core::env::{Random, SeededRandom};

use crate::bus::{Effect, Op, Rule, Stranger};
use crate::fault::{KINDS, Kind, PoolState, STATES, TARGETS, Target};
use crate::model::{Body, Ino, Model, ROOT};
use crate::session::Action;

/// Columns of data and parity, devices, MiB of each.
pub type Shape = (u32, u32, usize, u64);

const SHAPES: [Shape; 10] = [
    (1, 0, 1, 64),
    (1, 1, 2, 53),
    (2, 1, 3, 53),
    (2, 1, 5, 53),
    (2, 2, 4, 60),
    (1, 2, 3, 64),
    (3, 1, 4, 53),
    (4, 2, 6, 53),
    (2, 2, 6, 53),
    (3, 3, 6, 64),
];

/// The cell of the table that a world tries to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Goal {
    /// The fault.
    pub kind: Kind,
    /// What it is to hit.
    pub target: Target,
    /// The pool then.
    pub state: PoolState,
}

/// What is drawn first.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Geometry and devices.
    pub shape: Shape,
    /// The cell it tries to reach.
    pub goal: Goal,
    /// Phases of work.
    pub phases: u64,
}

/// One of a list.
pub fn pick<'a, T>(random: &SeededRandom, list: &'a [T]) -> &'a T {
    &list[random.below(list.len() as u64) as usize]
}

impl Plan {
    /// The plan of a seed.
    pub fn new(random: &SeededRandom, seed: u64) -> Plan {
        let states: Vec<PoolState> = STATES.into_iter().filter(|s| *s != PoolState::Recoding).collect();
        // seeds in a row go through all cells
        let cell = seed as usize;
        let goal = Goal {
            kind: KINDS[cell % KINDS.len()],
            target: TARGETS[cell / KINDS.len() % TARGETS.len()],
            state: states[cell / (KINDS.len() * TARGETS.len()) % states.len()],
        };
        let fits = |s: &Shape| match goal.state {
            PoolState::OneLost => s.1 >= 2,
            PoolState::AllLost | PoolState::Rebuilding => s.1 >= 1,
            _ => true,
        };
        let with_parity = !matches!(goal.kind, Kind::Crash | Kind::Lost | Kind::Torn | Kind::Slow);
        let shapes: Vec<Shape> = SHAPES
            .into_iter()
            .filter(|s| fits(s) && (s.1 > 0 || !with_parity) && (s.1 > 0 || goal.target != Target::Parity))
            .collect();
        Plan { shape: *pick(random, &shapes), goal, phases: 2 + random.below(3) }
    }
}

/// A rule that brings a kind of fault about on a device.
pub fn rule(
    random: &SeededRandom,
    kind: Kind,
    device: usize,
    target: Option<Target>,
    devices: usize,
    size: u64,
) -> Rule {
    let blocks = size / 4096;
    let (op, effect) = match kind {
        Kind::Torn | Kind::Lost | Kind::Crash => {
            (Some(Op::Write), Effect::Torn { sectors: random.below(2048) as usize, error: random.chance(1, 3) })
        }
        Kind::Misdirected => {
            let op = if random.chance(1, 3) { Op::Read } else { Op::Write };
            (Some(op), Effect::Misdirect { to: random.below(blocks - 256) * 4096 })
        }
        Kind::Dropped => (Some(Op::Write), Effect::Drop),
        Kind::Flip => {
            let op = if random.chance(1, 2) { Op::Read } else { Op::Write };
            (Some(op), Effect::Flip { bit: random.next_u64() >> 8 })
        }
        Kind::Eio => (*pick(random, &[Some(Op::Read), Some(Op::Write), None]), Effect::Fail(libc::EIO)),
        Kind::FlushLie => {
            // what is written with forced access is not covered by a flush: the device lies about that, too
            let durable = matches!(target, Some(Target::Label | Target::Log));
            (Some(if durable { Op::Write } else { Op::Flush }), Effect::Lie)
        }
        Kind::Slow => match random.below(3) {
            0 => (None, Effect::Hang { lands: random.chance(1, 2) }),
            _ => (None, Effect::Slow(Duration::from_millis(random.below(3000)))),
        },
        Kind::Vanished => (None, Effect::Vanish),
        Kind::Swapped => {
            let other = (device + 1 + random.below(devices.max(2) as u64 - 1) as usize) % devices;
            let stranger = match random.below(3) {
                0 => Stranger::Blank,
                1 if other != device => Stranger::Sister(other),
                _ => Stranger::Past,
            };
            (None, Effect::Swap(stranger))
        }
        Kind::Full => (Some(Op::Write), Effect::Fill),
    };
    let target = if op == Some(Op::Flush) { None } else { target };
    Rule { kind, device, op, target, skip: random.below(3) * random.below(4), times: 1 + random.below(3), effect }
}

/// An operation that makes sense now.
pub fn action(random: &SeededRandom, model: &Model) -> Action {
    let mut files: Vec<Ino> = Vec::new();
    let mut dirs: Vec<Ino> = Vec::new();
    let mut names: Vec<(Ino, String, Ino)> = Vec::new();
    for (ino, node) in &model.now {
        match &node.body {
            Body::File(_) => files.push(*ino),
            Body::Dir(entries) => {
                dirs.push(*ino);
                names.extend(entries.iter().map(|(name, child)| (*ino, name.clone(), *child)));
            }
            Body::Link(_) => {}
        }
    }
    let free = || {
        let dir = *pick(random, &dirs);
        (0..20).map(|_| format!("n{}", random.below(40))).find(|n| model.lookup(dir, n).is_none()).map(|n| (dir, n))
    };
    let any = |ino: Ino| if random.chance(1, 4) { ROOT } else { ino };
    loop {
        let file = (!files.is_empty()).then(|| *pick(random, &files));
        let name = (!names.is_empty()).then(|| pick(random, &names).clone());
        let found = match random.below(32) {
            0..=3 => free().map(|(dir, name)| Action::Create(dir, name)),
            4 => free().map(|(dir, name)| Action::Mkdir(dir, name)),
            5 => free().map(|(dir, name)| Action::Symlink(dir, name, "some/where".to_owned())),
            6 => file.zip(free()).map(|(ino, (dir, name))| Action::Link(ino, dir, name)),
            7..=8 => name.map(|(dir, name, ino)| {
                if !model.is_dir(ino) {
                    Action::Unlink(dir, name)
                } else if matches!(&model.now[&ino].body, Body::Dir(e) if e.is_empty()) {
                    Action::Rmdir(dir, name)
                } else {
                    Action::Fsync(ino)
                }
            }),
            9..=11 => name.and_then(|(dir, name, ino)| {
                let to = if random.chance(1, 2) {
                    free()?
                } else {
                    let (dir, name, _) = pick(random, &names).clone();
                    (dir, name)
                };
                let target = model.lookup(to.0, &to.1);
                let exchange = target.is_some() && random.chance(1, 2);
                let into_itself = |a: Ino, b: Ino| model.is_dir(a) && model.is_within(b, a);
                if into_itself(ino, to.0) || target.is_some_and(|t| exchange && into_itself(t, dir)) {
                    return None;
                }
                if let Some(target) = target
                    && !exchange
                {
                    let fits = match (&model.now[&ino].body, &model.now[&target].body) {
                        (Body::Dir(_), Body::Dir(e)) => e.is_empty() && target != dir,
                        (Body::Dir(_), _) | (_, Body::Dir(_)) => false,
                        _ => true,
                    };
                    if !fits {
                        return None;
                    }
                }
                Some(Action::Rename((dir, name), to, exchange))
            }),
            12..=18 => file.map(|ino| {
                let size = model.bytes(ino).len() as u64;
                let len = *pick(random, &[10, 700, 2048, 4096, 9000, 40_000, 140_000]);
                let offset = match random.below(4) {
                    0 => 0,
                    1 => size,
                    2 => random.below(size + 5000),
                    _ => random.below(60) * 4096,
                };
                Action::Write(ino, offset, 1 + random.below(len) as usize, random.next_u64())
            }),
            19 => file.map(|ino| {
                let size = model.bytes(ino).len() as u64;
                Action::Truncate(ino, *pick(random, &[0, size / 2, size + 5000, 100]))
            }),
            20 => file.map(|ino| {
                let from = random.below(20) * 3000;
                Action::Punch(ino, from, from + 1 + random.below(50_000))
            }),
            21 if files.len() > 1 => {
                let (from, to) = (*pick(random, &files), *pick(random, &files));
                let size = model.bytes(from).len() as u64;
                (from != to && size > 0).then(|| {
                    let start = random.below(size);
                    Action::Copy((from, start), (to, random.below(10) * 4096), 1 + random.below(size - start))
                })
            }
            22 => Some(Action::Chmod(any(*pick(random, &dirs)), 0o700 + random.below(64) as u32)),
            23 => {
                let ino = file.unwrap_or(ROOT);
                let len = *pick(random, &[5, 300, 3000, 9000]);
                Some(Action::SetXattr(ino, format!("user.x{}", random.below(3)), len, random.next_u64()))
            }
            24 => {
                let ino = file.unwrap_or(ROOT);
                model.now[&ino].xattrs.keys().next().map(|name| Action::RemoveXattr(ino, name.clone()))
            }
            25..=26 => file.map(Action::Read),
            27..=30 => file.map(Action::Fsync),
            _ => Some(if random.chance(1, 2) { Action::Commit } else { Action::Fsync(*pick(random, &dirs)) }),
        };
        if let Some(action) = found {
            return action;
        }
    }
}
