//! Exhaustive crash exploration: a short workload is run once and what it writes recorded; then every moment at which it
//! could have been stopped is brought about, with every choice of what was unflushed up to a bound, and the pool that is
//! left is imported, read, compared with the model and checked.
//!
//! The choice at a moment: of the writes answered but not flushed, and those in flight (durable ones too), each is there,
//! or not, or torn at a sector. States with the same bytes as one already seen for the workload are not counted again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use qrvsa_core::Result;
use qrvsa_core::engine::open::Candidate;
use qrvsa_core::engine::{Options, Pool};
use qrvsa_core::env::SeededRandom;
use qrvsa_core::pool::format::layout;
use qrvsa_core::pool::space::Geometry;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::bus::{Batch, Bus};
use crate::clock::WorldClock;
use crate::image::{BLOCK, Change, Image, SECTORS, merge};
use crate::model::{Model, State};
use crate::session::{Action, Session};
use crate::verify;
use crate::volumes::{self, Deed, Verb, Way};
use crate::workloads::{self, Step};

/// Choices of at most so many writes are all tried.
const EXHAUSTIVE_WRITES: usize = 6;
/// Of more writes, so many choices are tried besides the systematic ones.
const RANDOM_CHOICES: usize = 24;

/// A pool that workloads begin with.
pub struct Start {
    /// Its geometry.
    pub geometry: Geometry,
    size: u64,
    images: Vec<Image>,
    model: Model,
    volumes: volumes::Models,
}

/// The geometries that are explored: columns of data and parity, devices.
pub const GEOMETRIES: [(u32, u32, usize); 4] = [(1, 1, 2), (2, 1, 3), (1, 0, 1), (2, 2, 4)];

impl Start {
    /// Makes the pool and fills it.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn new((k, m, devices): (u32, u32, usize)) -> Result<Start> {
        let geometry = Geometry::new(k, m)?;
        let size = 53 << 20;
        let clock = Arc::new(WorldClock::default());
        let bus = Bus::new(clock.clone());
        let disks = (0..devices).map(|_| bus.device(bus.add(size, Image::default()))).collect();
        let env = verify::environment(&clock, 1);
        let pool = Pool::create(env, verify::options(), "tank", Some(geometry), disks)?;
        let mut session = Session::open(pool)?;
        let mut model = Model::default();
        let mut volumes = volumes::Models::new();
        for (name, spec, len) in workloads::VOLUMES {
            let write = Verb::Write { offset: 0, len, seed: 40, way: Way::Plain, fua: false };
            for verb in [Verb::Create(spec), write] {
                let deed = Deed { volume: name.to_owned(), verb };
                volumes::run(&mut session, &volumes, &deed)?;
                volumes::follow(&mut volumes, &deed, true);
            }
        }
        for (path, len) in workloads::START {
            let (dir, name) = match path.rsplit_once('/') {
                Some((dir, name)) => (model.lookup(crate::model::ROOT, dir).expect("made before"), name),
                None => (crate::model::ROOT, path),
            };
            match len {
                None => session.run("", &mut model, &Action::Mkdir(dir, name.to_owned()))?,
                Some(len) => {
                    session.run("", &mut model, &Action::Create(dir, name.to_owned()))?;
                    let ino = model.lookup(dir, name).expect("just made");
                    session.run("", &mut model, &Action::Write(ino, 0, len, ino))?;
                }
            }
        }
        session.pool.commit()?;
        model.durable = model.now.clone();
        volumes.values_mut().for_each(volumes::Model::settle);
        session.pool.close()?;
        session.abandon();
        let images = bus.0.lock().disks.iter_mut().map(|d| d.seen()).collect();
        Ok(Start { geometry, size, images, model, volumes })
    }

    fn bus(&self, images: &[Image]) -> (Bus, Arc<WorldClock>) {
        let clock = Arc::new(WorldClock::default());
        let bus = Bus::new(clock.clone());
        images.iter().for_each(|image| {
            bus.add(self.size, image.clone());
        });
        (bus, clock)
    }
}

/// What an exploration found.
#[derive(Default)]
pub struct Found {
    /// Workloads.
    pub workloads: u64,
    /// States brought about and verified.
    pub states: u64,
    /// Those of them in which the crash came during an import.
    pub in_import: u64,
    /// Those of them with a device lost in addition.
    pub degraded: u64,
    /// What was wrong, each with the command that repeats it.
    pub violations: Vec<String>,
}

impl Found {
    /// And what was found elsewhere.
    pub fn add(&mut self, mut other: Found) {
        self.workloads += other.workloads;
        self.states += other.states;
        self.in_import += other.in_import;
        self.degraded += other.degraded;
        self.violations.append(&mut other.violations);
    }
}

/// Batches in a row, with the states that are allowed when the world stops in one of them.
struct Stretch {
    batches: Vec<Batch>,
    allowed: Vec<State>,
    /// With a device lost besides, what only it had may be gone: nobody was told of it yet.
    allowed_lost: Vec<State>,
    /// Volumes as they may be, and with a device lost.
    volumes: volumes::Models,
    volumes_lost: volumes::Models,
}

/// Explores a workload of a start.
///
/// # Errors
/// When the workload itself fails.
pub fn explore(start: &Start, number: u64, index: usize) -> Result<Found> {
    let (bus, clock) = start.bus(&start.images);
    let mut session = verify::import(&bus, verify::environment(&clock, number), verify::options(), |_| true)?;
    let images: Vec<Image> = bus.0.lock().disks.iter_mut().map(|d| d.seen()).collect();
    let (mut model, mut volumes) = (start.model.clone(), start.volumes.clone());
    let mut stretches = Vec::new();
    for (operation, sync) in workloads::workload(number) {
        for step in [true, false] {
            let action = if step {
                workloads::operation(&model, &volumes, operation)
            } else {
                workloads::sync(&model, &volumes, sync)
            };
            let Some(action) = action else { continue };
            bus.0.lock().recording = Some(Vec::new());
            let before = model.clone();
            let committed = session.pool.committed_txg();
            // what the volumes may be while it is under way
            let mut under_way = volumes.clone();
            match &action {
                Step::Files(action) => session.run("", &mut model, action)?,
                Step::Volume(deed) => {
                    volumes::run(&mut session, &volumes, deed)?;
                    volumes::follow(&mut under_way, deed, false);
                }
            }
            let batches = bus.0.lock().recording.take().unwrap_or_default();
            let mut allowed = vec![state(&before.durable)];
            let commits = session.pool.committed_txg() != committed;
            match &action {
                Step::Files(Action::Fsync(ino)) if !commits => model.durable = model.synced(Some(*ino)),
                Step::Files(Action::Fsync(_) | Action::Commit) => {}
                Step::Files(_) => assert!(!commits, "nothing else commits in so small a workload"),
                Step::Volume(deed) => {
                    if commits {
                        volumes.values_mut().for_each(volumes::Model::settle);
                    }
                    volumes::follow(&mut volumes, deed, true);
                }
            }
            if commits {
                model.durable = model.now.clone();
                if !matches!(action, Step::Volume(_)) {
                    volumes.values_mut().for_each(volumes::Model::settle);
                }
            }
            allowed.push(state(&model.durable));
            stretches.push(Stretch {
                batches,
                allowed_lost: allowed.clone(),
                allowed,
                volumes_lost: under_way.clone(),
                volumes: under_way,
            });
        }
    }
    session.abandon();
    drop(bus);
    let mut explorer = Explorer {
        start,
        number,
        index,
        found: Found::default(),
        seen: HashSet::new(),
        random: SeededRandom::new(number),
        nested: false,
    };
    explorer.walk(images, &stretches);
    Ok(explorer.found)
}

fn state(tree: &crate::model::Tree) -> State {
    State::from([(String::new(), tree.clone())])
}

struct Explorer<'a> {
    start: &'a Start,
    number: u64,
    index: usize,
    found: Found,
    seen: HashSet<u64>,
    random: SeededRandom,
    nested: bool,
}

/// A write that may be there or not.
#[derive(Clone)]
struct Open {
    device: usize,
    change: Change,
    digests: Vec<u64>,
}

/// Which open writes are there: all sectors, or the first so many of one.
#[derive(Clone)]
struct Choice {
    kept: Vec<bool>,
    torn: Option<(usize, usize)>,
}

/// Whether an uberblock is there on some devices and missing on others.
fn on_some_devices(open: &[Open], choice: &Choice) -> bool {
    let ring = layout::RING_OFFSET / BLOCK as u64;
    let ring = ring..ring + layout::RING_SLOTS * layout::SLOT_BYTES as u64 / BLOCK as u64;
    let kept = |wanted| open.iter().zip(&choice.kept).any(|(o, k)| *k == wanted && ring.contains(&o.change.first));
    kept(true) && kept(false)
}

fn cell(device: usize, block: u64, digest: u64) -> u64 {
    xxh3_64_with_seed(&block.to_le_bytes(), digest ^ (device as u64) << 32)
}

impl Explorer<'_> {
    fn walk(&mut self, mut images: Vec<Image>, stretches: &[Stretch]) {
        let mut open: Vec<Open> = Vec::new();
        // digest of each block that differs from the beginning, and of all of them together
        let mut digests: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (n, stretch) in stretches.iter().enumerate() {
            for batch in &stretch.batches {
                images.iter_mut().for_each(Image::settle);
                let answered = open.len();
                open.extend(batch.writes.iter().map(|(device, change, _)| Open {
                    device: *device,
                    change: change.clone(),
                    digests: change.blocks.iter().map(|(b, _)| xxh3_64(&b[..])).collect(),
                }));
                for choice in self.choices(&open, answered) {
                    self.one(&images, &digests, &open, &choice, stretch, n);
                }
                // answered: flushes make durable what was answered before, durable writes are
                let mut kept = Vec::new();
                for (i, write) in open.drain(..).enumerate() {
                    let durable = if i < answered {
                        batch.flushes.contains(&write.device)
                    } else {
                        batch.writes.get(i - answered).is_some_and(|(_, _, durable)| *durable)
                    };
                    if durable {
                        write.change.apply_all(&mut images[write.device]);
                        for (b, digest) in write.digests.iter().enumerate() {
                            digests.insert((write.device, write.change.first + b as u64), *digest);
                        }
                    } else {
                        kept.push(write);
                    }
                }
                open = kept;
            }
        }
    }

    fn choices(&self, open: &[Open], answered: usize) -> Vec<Choice> {
        let n = open.len();
        let mut list = Vec::new();
        let mut add = |kept: Vec<bool>, torn| list.push(Choice { kept, torn });
        if n <= EXHAUSTIVE_WRITES {
            for mask in 0..1u32 << n {
                add((0..n).map(|i| mask & 1 << i != 0).collect(), None);
            }
        } else {
            add(vec![false; n], None);
            add(vec![true; n], None);
            for i in 0..n {
                add((0..n).map(|j| j == i).collect(), None);
                add((0..n).map(|j| j != i).collect(), None);
                add((0..n).map(|j| j < i).collect(), None);
            }
            for _ in 0..RANDOM_CHOICES {
                add((0..n).map(|_| self.random.chance(1, 2)).collect(), None);
            }
        }
        for (i, write) in open.iter().enumerate().skip(answered) {
            let sectors = write.change.sectors();
            let mut cuts = vec![1, sectors / 2, sectors - 1];
            cuts.extend((SECTORS < sectors).then_some(SECTORS));
            cuts.push(self.random.below(sectors as u64) as usize);
            cuts.sort_unstable();
            cuts.dedup();
            for cut in cuts.into_iter().filter(|c| (1..sectors).contains(c)) {
                for others in [true, false] {
                    add((0..n).map(|j| if j < answered { true } else { others && j != i }).collect(), Some((i, cut)));
                }
            }
        }
        list
    }

    /// Brings a state about and verifies it, unless it was seen.
    fn one(
        &mut self,
        images: &[Image],
        base: &BTreeMap<(usize, u64), u64>,
        open: &[Open],
        choice: &Choice,
        stretch: &Stretch,
        number: usize,
    ) {
        let mut images: Vec<Image> = images.to_vec();
        let mut digests: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for (i, write) in open.iter().enumerate() {
            let image = &mut images[write.device];
            match choice.torn {
                Some((torn, cut)) if torn == i => {
                    for (b, (block, _)) in write.change.blocks.iter().enumerate() {
                        let kept = cut.saturating_sub(b * SECTORS).min(SECTORS);
                        let mask = (0..kept).fold(0u8, |m, s| m | 1 << s);
                        if mask != 0 {
                            let number = write.change.first + b as u64;
                            let merged = merge(image.block(number), block, mask);
                            digests.insert((write.device, number), xxh3_64(&merged[..]));
                            image.set(number, merged);
                        }
                    }
                }
                _ if choice.kept[i] => {
                    for (b, (block, _)) in write.change.blocks.iter().enumerate() {
                        let number = write.change.first + b as u64;
                        digests.insert((write.device, number), write.digests[b]);
                        image.set(number, block.clone());
                    }
                }
                _ => {}
            }
        }
        let changed = base.iter().filter(|(place, _)| !digests.contains_key(place)).chain(&digests);
        let key = changed.fold(number as u64, |key, ((d, b), digest)| key ^ cell(*d, *b, *digest));
        if !self.seen.insert(key) {
            return;
        }
        let turn = self.found.states;
        self.found.states += 1;
        self.found.in_import += u64::from(self.nested);
        // more often where an uberblock is on some devices only: what the import does about that is what saves the next
        let chance = if on_some_devices(open, choice) { 60 } else { 400 };
        let nest = !self.nested && turn % chance == 7;
        // what is crashed again in its import has not gone on yet
        let go_on = turn % 16 == 3 && !nest;
        self.state(&images, &stretch.allowed, &stretch.volumes, None, nest, go_on);
        // the state before the newest is whole as long as no newer one is durable
        if turn % 8 == 5 && !self.nested {
            self.found.states += 1;
            self.guard(turn, None, |e| e.try_previous(&images));
        }
        // with one device lost besides
        if self.start.geometry.parity > 0 && turn % 4 == 1 {
            let lost = (turn / 4) as usize % images.len();
            self.found.states += 1;
            self.found.degraded += 1;
            self.state(&images, &stretch.allowed_lost, &stretch.volumes_lost, Some(lost), false, turn % 32 == 1);
        }
    }

    fn state(
        &mut self,
        images: &[Image],
        allowed: &[State],
        volumes: &volumes::Models,
        lost: Option<usize>,
        nest: bool,
        go_on: bool,
    ) {
        let turn = self.found.states;
        self.guard(turn, lost, |e| e.try_state(images, (allowed, volumes), lost, nest, go_on));
    }

    /// Notes what is wrong, panics too, with the command that repeats it.
    fn guard(
        &mut self,
        turn: u64,
        lost: Option<usize>,
        work: impl FnOnce(&mut Self) -> std::result::Result<(), String>,
    ) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(self)));
        let text = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(text)) => text,
            Err(_) => "a panic, see above".to_owned(),
        };
        let lost = lost.map_or(String::new(), |l| format!(", without disk{l}"));
        self.found.violations.push(format!(
            "geometry {}, workload {}, state {turn}{lost}: {text}\n  again: qrvsa-sim crash-states --geometry {} --workload {}",
            self.start.geometry, self.number, self.index, self.number
        ));
    }

    /// With the newest uberblock gone from all devices, the root of the one before is read and found whole.
    fn try_previous(&mut self, images: &[Image]) -> std::result::Result<(), String> {
        let (bus, clock) = self.start.bus(images);
        let candidates: Vec<Candidate> = (0..images.len()).filter_map(|i| Candidate::new(bus.device(i)).ok()).collect();
        let newest = candidates.iter().filter_map(|c| c.uberblocks.first()).map(|u| (u.generation, u.txg)).max();
        let Some((_, txg)) = newest else { return Err("no uberblock at all".to_owned()) };
        for (i, candidate) in candidates.iter().enumerate() {
            if candidate.uberblocks.first().map(|u| (u.generation, u.txg)) == newest {
                bus.0.lock().disks[i].tamper(layout::slot_offset(txg) / BLOCK as u64, |block| block[8] ^= 1);
            }
        }
        let options = Options { read_only: true, ..verify::options() };
        let session = verify::import(&bus, verify::environment(&clock, self.number), options, |_| true)
            .map_err(|e| format!("without its newest uberblock: {e}"))?;
        let report = session.pool.check(true, &mut |_| true);
        session.pool.abandon();
        let report = report.map_err(|e| format!("without its newest uberblock, the check: {e}"))?;
        if report.problem_count > 0 {
            return Err(format!("without its newest uberblock the check found: {}", report.problems.join("; ")));
        }
        Ok(())
    }

    fn try_state(
        &mut self,
        images: &[Image],
        (allowed, volumes): (&[State], &volumes::Models),
        lost: Option<usize>,
        nest: bool,
        go_on: bool,
    ) -> std::result::Result<(), String> {
        let (bus, clock) = self.start.bus(images);
        if nest {
            bus.0.lock().recording = Some(Vec::new());
        }
        let env = verify::environment(&clock, self.number);
        let wanted = |i| Some(i) != lost;
        // with hardly any memory: a commit after each entry that is replayed, and a crash around it
        let options =
            Options { memory_bytes: if nest { 512 } else { verify::options().memory_bytes }, ..verify::options() };
        let generation = if go_on { verify::newest(&bus, wanted).map_or(0, |u| u.generation) } else { 0 };
        let mut session =
            verify::import(&bus, env.clone(), options, wanted).map_err(|e| format!("the import failed: {e}"))?;
        let batches = bus.0.lock().recording.take();
        if go_on {
            verify::generation(&bus, wanted, generation)?;
        }
        let mut found_volumes = volumes.clone();
        let result = self.verify_session(&mut session, allowed, &mut found_volumes, go_on);
        session.pool.abandon();
        let which = result?;
        if go_on {
            // everything unflushed is gone, and what was fsynced is there; also when the lost device comes back as it was
            let mut disks: Vec<Image> = bus.0.lock().disks.iter().map(|d| d.medium().clone()).collect();
            for (which, back) in [("second", false), ("third", true)] {
                if back && lost.is_none() {
                    break;
                }
                let (bus, _) = self.start.bus(&disks);
                let again = verify::import(&bus, env.clone(), verify::options(), |i| back || wanted(i))
                    .map_err(|e| format!("the {which} import failed: {e}"))?;
                let result = again.dump().map_err(|e| e.to_string()).and_then(|found| {
                    let pattern = crate::session::pattern(99, 5000);
                    let is_it =
                        |n: &&crate::model::Node| matches!(&n.body, crate::model::Body::File(b) if **b == pattern);
                    match found[""].values().filter(is_it).count() {
                        1 => Ok(()),
                        _ => Err(format!("what was fsynced after the recovery is lost at the {which} import")),
                    }
                });
                let result = result.and_then(|()| verify::volumes(&again, &mut found_volumes.clone()));
                again.pool.abandon();
                result?;
                disks = bus.0.lock().disks.iter().map(|d| d.medium().clone()).collect();
            }
        }
        if let Some(batches) = batches {
            self.nested = true;
            let stretch = Stretch {
                batches,
                allowed: vec![allowed[which].clone()],
                allowed_lost: allowed.to_vec(),
                volumes: found_volumes,
                volumes_lost: volumes.clone(),
            };
            let mut inner = Explorer {
                found: Found::default(),
                seen: HashSet::new(),
                random: SeededRandom::new(self.number),
                ..*self
            };
            inner.walk(images.to_vec(), &[stretch]);
            self.nested = false;
            self.found.states += inner.found.states;
            self.found.in_import += inner.found.in_import;
            self.found.degraded += inner.found.degraded;
            self.found.violations.append(&mut inner.found.violations);
        }
        Ok(())
    }

    /// Compares with the states that are allowed, checks, and goes on working. The volumes are then as they were found, or
    /// as they were left.
    fn verify_session(
        &self,
        session: &mut Session,
        allowed: &[State],
        volumes: &mut volumes::Models,
        go_on: bool,
    ) -> std::result::Result<usize, String> {
        let which = verify::matches(session, allowed)?;
        verify::volumes(session, volumes)?;
        verify::check(&session.pool)?;
        if go_on {
            let mut model = Model { now: allowed[which][""].clone(), durable: allowed[which][""].clone() };
            let mut run = |action: Action| {
                session.run("", &mut model, &action).map_err(|e| format!("{action:?} after the recovery: {e}"))?;
                Ok::<_, String>(model.lookup(crate::model::ROOT, "zz").unwrap_or_default())
            };
            let ino = run(Action::Create(crate::model::ROOT, "zz".to_owned()))?;
            run(Action::Write(ino, 0, 5000, 99))?;
            run(Action::Fsync(ino))?;
            for name in volumes.keys().cloned().collect::<Vec<_>>() {
                let verb = Verb::Write { offset: 5000, len: 3000, seed: 98, way: Way::Plain, fua: true };
                let deed = Deed { volume: name, verb };
                volumes::run(session, volumes, &deed).map_err(|e| format!("{deed:?} after the recovery: {e}"))?;
                volumes::follow(volumes, &deed, true);
            }
        }
        Ok(which)
    }
}
