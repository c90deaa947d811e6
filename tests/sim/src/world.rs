//! A world from a seed: a pool, a workload, faults and crashes, and at the end everything has to be right.
//!
//! Most worlds stay within the promise: at most as many devices suffer as the geometry has parity columns, between two
//! moments at which a rebuild and a clean scrub have shown that all is well. Then every operation succeeds (or the pool is
//! full), every read is right, and what comes back after a crash is a state that was promised. Worlds that go beyond the
//! promise may get errors from everything, but never a byte that was not written there.

mod life;
mod room;
mod suffer;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_core::engine::Pool;
use qrvsa_core::env::{Random, SeededRandom};
use qrvsa_core::pool::format::entries::{Class, MemberState};
use qrvsa_core::pool::space::Geometry;
use qrvsa_core::{Error, ErrorKind};
use xxhash_rust::xxh3::xxh3_64;

use crate::bus::Bus;
use crate::clock::WorldClock;
use crate::fault::{Kind, PoolState, Table, Target};
use crate::image::BLOCK;
use crate::model::{Body, Ino, Model, ROOT, State, difference};
use crate::plan::{self, Plan, pick};
use crate::session::{Action, Session, is_full};
use crate::verify;
use crate::volumes::Models;

/// How a world ended.
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What was wrong.
    pub violation: Option<String>,
    /// What the faults met.
    pub table: Table,
    /// Requests and their bytes, in order, as one number.
    pub trace: u64,
    /// Requests of the devices.
    pub requests: u64,
    /// Operations of the workload.
    pub operations: u64,
    /// Crashes survived.
    pub crashes: u64,
    /// Whether it went beyond the promise.
    pub beyond: bool,
}

/// Something that must not be, in words.
type Verdict<T> = Result<T, String>;

struct Inner {
    random: SeededRandom,
    bus: Bus,
    clock: Arc<WorldClock>,
    geometry: Geometry,
    size: u64,
    session: Option<Session>,
    models: BTreeMap<String, Model>,
    volumes: Models,
    /// States that a crash may leave besides what the models call durable.
    allowed: Vec<State>,
    /// A file of which a commit caught one of several transactions.
    unsure: Option<(String, Ino)>,
    tainted: BTreeSet<usize>,
    beyond: bool,
    history: HashSet<(String, Ino, u64, u64)>,
    table: Table,
    operations: u64,
    crashes: u64,
    imports: u64,
    say: bool,
    problem: Option<String>,
    clones: BTreeSet<usize>,
    /// The fault of the coming rebuild goes beyond the promise.
    next_beyond: bool,
    /// Something else than absence happened to a device since the last clean scrub.
    rotten: bool,
    /// The transaction group at which the devices' past was kept.
    past: u64,
    /// A rebuild or a replacement is under way.
    rebuilding: bool,
    /// The group that was committed when the work in a pause of a job ended.
    committed: u64,
    /// The power fails in the next rebuild.
    cut_rebuild: bool,
    /// Members that give way to another for good.
    replaced: BTreeSet<u16>,
    habits: Habits,
}

/// What only some worlds do. The others are as they were before it was thought of: their seeds show what they showed.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// A check after each import.
    checks_imports: bool,
    /// Checks while the workload goes on.
    checks_at_work: bool,
    /// A filesystem is made when the pool is full.
    makes_when_full: bool,
}

impl Habits {
    fn of(seed: u64) -> Habits {
        let drawn = seed.wrapping_add(150).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Habits {
            checks_imports: drawn.is_multiple_of(4),
            checks_at_work: (drawn >> 8).is_multiple_of(4),
            makes_when_full: (drawn >> 16).is_multiple_of(2),
        }
    }
}

/// A world.
#[derive(Clone)]
pub struct World(Arc<Mutex<Inner>>);

/// Runs the world of a seed. `say`: tells what happens.
pub fn run(seed: u64, say: bool) -> Outcome {
    let random = SeededRandom::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9c1d);
    let plan = Plan::new(&random, seed);
    let clock = Arc::new(WorldClock::default());
    let bus = Bus::new(clock.clone());
    let (k, m, devices, mib) = plan.shape;
    let geometry = Geometry { data: k as u8, parity: m as u8 };
    let inner = Inner {
        random,
        bus: bus.clone(),
        clock,
        geometry,
        size: mib << 20,
        session: None,
        models: BTreeMap::new(),
        volumes: Models::new(),
        allowed: Vec::new(),
        unsure: None,
        tainted: BTreeSet::new(),
        beyond: false,
        history: HashSet::new(),
        table: Table::default(),
        operations: 0,
        crashes: 0,
        imports: 0,
        say,
        problem: None,
        clones: BTreeSet::new(),
        next_beyond: false,
        rotten: false,
        past: 0,
        rebuilding: false,
        committed: 0,
        cut_rebuild: false,
        replaced: BTreeSet::new(),
        habits: Habits::of(seed),
    };
    let world = World(Arc::new(Mutex::new(inner)));
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live(&plan, devices)));
    let mut inner = world.0.lock();
    inner.clock.set_yield(None);
    let violation = match lived {
        Ok(Ok(())) => inner.problem.take(),
        Ok(Err(text)) => Some(text),
        Err(_) => Some("a panic, see above".to_owned()),
    };
    inner.settle_hits();
    if let Some(session) = inner.session.take() {
        session.abandon();
    }
    let requests = bus.0.lock().requests;
    Outcome {
        seed,
        violation,
        table: inner.table.clone(),
        trace: bus.trace(),
        requests,
        operations: inner.operations,
        crashes: inner.crashes,
        beyond: inner.beyond,
    }
}

impl Inner {
    fn tell(&self, text: impl FnOnce() -> String) {
        if self.say {
            println!("  [{}] {}", self.operations, text());
        }
    }

    fn pool(&self) -> Arc<Pool> {
        self.session.as_ref().expect("the pool is open").pool.clone()
    }

    fn off(&self) -> bool {
        self.bus.0.lock().off
    }

    fn parity(&self) -> usize {
        usize::from(self.geometry.parity)
    }

    /// Looks up what lies where, and counts what the faults met.
    fn settle_hits(&mut self) {
        let mut bus = self.bus.0.lock();
        if let Some(session) = &self.session {
            let space = &session.pool.space;
            bus.zone_shift = space.zone_shift;
            let mut map: Vec<Vec<Option<Target>>> = Vec::new();
            for disk in &bus.disks {
                let zones = qrvsa_core::pool::format::layout::zone_count(disk.size, space.zone_shift);
                map.push(vec![None; zones as usize]);
            }
            for group in space.groups() {
                for (i, c) in group.columns.read().iter().enumerate() {
                    let target = match group.class {
                        Class::Data if i < usize::from(group.width) => Target::Data,
                        Class::Data => Target::Parity,
                        Class::Meta | Class::System => Target::Metadata,
                        Class::Log => Target::Log,
                    };
                    for place in std::iter::once(c.place).chain(c.previous) {
                        let disk = space.member(place.device).and_then(|m| disk_of(&m.path()));
                        let slot = disk.and_then(|d| map.get_mut(d)).and_then(|z| z.get_mut(place.zone as usize));
                        if let Some(slot) = slot {
                            *slot = Some(target);
                        }
                    }
                }
            }
            bus.map = map;
        }
        for hit in std::mem::take(&mut bus.hits) {
            let target = bus.target(hit.device, hit.offset);
            self.table.count(hit.kind, target, hit.state);
        }
    }

    /// How many members are out, and with it the state of a pool that does nothing special.
    fn resting_state(&self) -> PoolState {
        let Some(session) = &self.session else { return PoolState::Importing };
        if self.rebuilding {
            return PoolState::Rebuilding;
        }
        let members = session.pool.space.members();
        let out = members.iter().filter(|m| m.state() != MemberState::Removed && !m.in_service()).count();
        match out {
            0 => PoolState::Healthy,
            n if n >= self.parity() => PoolState::AllLost,
            _ => PoolState::OneLost,
        }
    }

    fn rest(&mut self) {
        self.settle_hits();
        // without power every device fails: that is not the state the crash meets
        if !self.off() {
            let state = self.resting_state();
            self.bus.0.lock().state = state;
        }
    }

    fn full_state(&self) -> State {
        self.models.iter().map(|(name, m)| (name.clone(), m.now.clone())).collect()
    }

    fn durable_state(&self) -> State {
        self.models.iter().map(|(name, m)| (name.clone(), m.durable.clone())).collect()
    }

    fn all_durable(&mut self) {
        self.models.values_mut().for_each(|m| m.durable = m.now.clone());
        self.volumes.values_mut().for_each(crate::volumes::Model::settle);
        self.allowed.clear();
        self.unsure = None;
    }

    fn remember_bytes(&mut self, fs: &str, ino: Ino) {
        let Some(Body::File(bytes)) = self.models[fs].now.get(&ino).map(|n| n.body.clone()) else { return };
        for (block, chunk) in bytes.chunks(BLOCK).enumerate() {
            self.history.insert((fs.to_owned(), ino, block as u64, digest(chunk)));
        }
    }

    /// One operation of the workload, on any filesystem or volume.
    fn operate(&mut self) -> Verdict<()> {
        if self.random.chance(1, 4)
            && let Some(deed) = crate::volumes::deed(&self.random, &self.volumes)
        {
            return self.perform_deed(&deed);
        }
        let names: Vec<String> = self.models.keys().cloned().collect();
        let fs = pick(&self.random, &names).clone();
        let action = plan::action(&self.random, &self.models[&fs]);
        self.perform(&fs, &action)
    }

    fn perform(&mut self, fs: &str, action: &Action) -> Verdict<()> {
        if self.off() || self.session.is_none() {
            return Ok(());
        }
        self.operations += 1;
        self.clock.advance(std::time::Duration::from_millis(1 + self.random.below(20)));
        let pool = self.pool();
        let before = self.models[fs].clone();
        let full_before = self.full_state();
        let (committed, uberblocks) = (pool.committed_txg(), self.bus.0.lock().uberblocks);
        if self.random.chance(1, 8) {
            pool.records.drop_cache();
        }
        let mut model = before.clone();
        let result = self.session.as_ref().expect("open").run(fs, &mut model, action);
        self.tell(|| format!("{fs:?} {action:?}: {}", result.as_ref().err().map_or("ok".to_owned(), Error::to_string)));
        let commit_tried = self.bus.0.lock().uberblocks != uberblocks;
        if pool.committed_txg() != committed {
            self.volumes.values_mut().for_each(crate::volumes::Model::settle);
        }
        match result {
            Ok(()) => {
                self.models.insert(fs.to_owned(), model);
                if let Action::Write(ino, ..)
                | Action::Truncate(ino, _)
                | Action::Punch(ino, ..)
                | Action::Copy(_, (ino, _), _) = action
                {
                    self.remember_bytes(fs, *ino);
                }
                let full = self.full_state();
                match action {
                    Action::Commit => self.all_durable(),
                    Action::Fsync(_) if pool.committed_txg() != committed => self.all_durable(),
                    Action::Fsync(ino) => {
                        let model = self.models.get_mut(fs).expect("it is there");
                        model.durable = model.synced(Some(*ino));
                        self.allowed.clear();
                    }
                    _ if pool.committed_txg() != committed => {
                        // a commit when the operation asked for admission, or between its transactions
                        self.models.iter_mut().for_each(|(name, m)| m.durable = full_before[name].clone());
                        self.allowed = vec![full];
                        if let Action::Copy(_, (ino, _), _) = action {
                            self.unsure = Some((fs.to_owned(), *ino));
                        }
                    }
                    _ if commit_tried => self.allowed.extend([full_before, full]),
                    _ => {}
                }
            }
            Err(e) if is_full(&e) && !self.off() => {
                let state = self.bus.0.lock().state;
                self.table.count(Kind::Full, Target::Data, state);
                self.is_crowded(room::wanted_bytes(action)).map_err(|why| format!("{action:?}: {why}"))?;
                if pool.committed_txg() != committed {
                    self.models.iter_mut().for_each(|(name, m)| m.durable = full_before[name].clone());
                    self.allowed.clear();
                }
            }
            Err(e) if self.off() => {
                if let Action::Fsync(ino) = action {
                    let mut state = self.durable_state();
                    state.insert(fs.to_owned(), before.synced(Some(*ino)));
                    self.allowed.push(state);
                }
                if commit_tried {
                    self.allowed.push(full_before);
                    if let Action::Copy(_, (ino, _), _) = action {
                        self.unsure = Some((fs.to_owned(), *ino));
                    }
                }
                let _ = e;
            }
            Err(e) if self.beyond && e.kind() != ErrorKind::Corrupt => {
                self.tell(|| format!("an honest error: {e}"));
            }
            Err(e) if self.beyond && !e.to_string().contains("wrong bytes") => {}
            Err(e) => return Err(format!("{action:?} failed within the promise: {e}")),
        }
        self.rest();
        Ok(())
    }

    /// Makes everything durable by a commit of the whole pool, if it can.
    fn commit(&mut self) -> Verdict<()> {
        self.perform("", &Action::Commit)
    }

    /// Power fails if it has not yet, and comes back; the pool is imported again, perhaps after crashes in that.
    fn recover(&mut self, goal: Option<plan::Goal>) -> Verdict<()> {
        self.settle_hits();
        let committed = self.session.as_ref().map_or(0, |s| s.pool.committed_txg());
        if let Some(session) = self.session.take() {
            session.abandon();
        }
        let mut goal = goal;
        for attempt in 0..6 {
            self.crashes += 1;
            self.bus.crash(&self.random);
            self.rebuilding = false;
            self.bus.0.lock().state = PoolState::Importing;
            if attempt == 0 && goal.is_none() {
                self.restore_old(committed);
            }
            if attempt < 3 && self.random.chance(1, 4) {
                let mut bus = self.bus.0.lock();
                bus.cut_at = Some(bus.changes + self.random.below(25));
            }
            let aimed = goal.take();
            if let Some(goal) = aimed {
                self.arm(goal);
            }
            let result = self.import();
            let off = self.off();
            // what was to fail in the import does not fail while it is looked at
            {
                let mut bus = self.bus.0.lock();
                (bus.cut_at, bus.cut_on) = (None, None);
            }
            self.tell(|| format!("import: {}", result.as_ref().err().map_or("ok".to_owned(), Error::to_string)));
            if off {
                self.settle_import_hits(result.as_ref().ok());
                if let Ok(session) = result {
                    session.abandon();
                }
                continue;
            }
            if aimed.is_some() {
                self.bus.clear_rules();
            }
            match result {
                Ok(session) => {
                    self.settle_import_hits(Some(&session));
                    self.session = Some(session);
                    self.compare()?;
                    if self.habits.checks_imports {
                        self.check_import()?;
                    }
                    self.rest();
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Exists && !self.bus.0.lock().disks.iter().all(|d| !d.swapped) => {
                    // two devices that say they are the same: the administrator takes the strange one away
                    let bus = self.bus.0.lock();
                    self.clones.extend((0..bus.disks.len()).filter(|i| bus.disks[*i].swapped));
                }
                Err(e) if self.beyond => {
                    self.tell(|| format!("an honest end: {e}"));
                    return Ok(());
                }
                Err(e) => return Err(format!("the import failed within the promise: {e}")),
            }
        }
        Err("six imports in a row did not succeed".to_owned())
    }

    fn settle_import_hits(&mut self, session: Option<&Session>) {
        if let Some(session) = session {
            let (filesystems, volumes) = Default::default();
            let own = Session { pool: session.pool.clone(), filesystems, volumes };
            self.session = Some(own);
            self.settle_hits();
            self.session = None;
        } else {
            self.settle_hits();
        }
    }

    fn import(&mut self) -> qrvsa_core::Result<Session> {
        self.imports += 1;
        let env = verify::environment(&self.clock, self.random.next_u64());
        let clones = self.clones.clone();
        verify::import(&self.bus, env, options(), |i| !clones.contains(&i))
    }

    /// What is there after an import is one of the states that may be.
    fn compare(&mut self) -> Verdict<()> {
        let session = self.session.as_ref().expect("open");
        if self.beyond {
            self.compare_beyond()?;
            self.allowed.clear();
            self.unsure = None;
            // what can be read is what there is from here on; a filesystem that cannot be read is left alone
            let session = self.session.as_ref().expect("open");
            match session.dump() {
                Ok(found) => {
                    self.adopt(found);
                    self.adopt_volumes();
                }
                Err(e) => {
                    self.tell(|| format!("an honest end: {e}"));
                    self.session.take().expect("open").abandon();
                }
            }
            return Ok(());
        }
        let found = session.dump().map_err(|e| format!("reading after an import failed: {e}"))?;
        let mut allowed = vec![self.durable_state()];
        allowed.append(&mut self.allowed);
        if let Some((fs, ino)) = self.unsure.take() {
            for state in &mut allowed {
                let got = found.get(&fs).and_then(|t| t.get(&ino)).cloned();
                let slot = state.get_mut(&fs).and_then(|t| t.get_mut(&ino));
                if let (Some(got), Some(slot)) = (got, slot) {
                    slot.body = got.body;
                }
            }
        }
        if !allowed.contains(&found) {
            let words: Vec<String> = allowed.iter().filter_map(|s| difference(&found, s)).collect();
            return Err(format!("after a crash the state is none of those allowed: {}", words.join(" | ")));
        }
        verify::volumes(session, &mut self.volumes).map_err(|e| format!("after a crash: {e}"))?;
        self.adopt(found);
        Ok(())
    }

    fn adopt(&mut self, found: State) {
        self.models = found.into_iter().map(|(name, t)| (name, Model { now: t.clone(), durable: t })).collect();
    }

    /// Beyond the promise: what can be read was written there once.
    fn compare_beyond(&mut self) -> Verdict<()> {
        let session = self.session.as_ref().expect("open");
        for (name, fs) in &session.filesystems {
            let Some(model) = self.models.get(name) else { continue };
            for ino in &crate::session::reachable(fs) {
                let Ok(bytes) = crate::session::contents(fs, *ino) else { continue };
                for (block, chunk) in bytes.chunks(BLOCK).enumerate() {
                    if !self.history.contains(&(name.clone(), *ino, block as u64, digest(chunk))) {
                        let want = model.now.get(ino).map(|n| n.body.clone());
                        let want = if let Some(Body::File(b)) = want { b } else { Arc::default() };
                        let want = &want[want.len().min(block * BLOCK)..want.len().min((block + 1) * BLOCK)];
                        let differ: Vec<usize> =
                            (0..chunk.len()).filter(|i| want.get(*i) != Some(&chunk[*i])).collect();
                        return Err(format!(
                            "{name:?}: inode {ino}, block {block}: these bytes were never written there: {} bytes, now {} expected, \
                             {} differ, from {:?} to {:?}, zeros there: {}",
                            chunk.len(),
                            want.len(),
                            differ.len(),
                            differ.first(),
                            differ.last(),
                            differ.iter().all(|i| chunk[*i] == 0)
                        ));
                    }
                }
            }
        }
        self.volumes_beyond()
    }

    /// A dataset comes or goes.
    fn datasets(&mut self) -> Verdict<()> {
        if self.random.chance(1, 2) {
            return self.change_volumes();
        }
        let name = format!("fs{}", self.random.below(2));
        self.change_filesystem(name)
    }

    /// The filesystem of this name comes, or goes if it is there.
    fn change_filesystem(&mut self, name: String) -> Verdict<()> {
        if self.off() || self.session.is_none() {
            return Ok(());
        }
        let pool = self.pool();
        let before = self.full_state();
        let (committed, uberblocks) = (pool.committed_txg(), self.bus.0.lock().uberblocks);
        let exists = self.models.contains_key(&name);
        let result = if exists {
            self.session.as_mut().expect("open").filesystems.remove(&name);
            pool.destroy_dataset(&name)
        } else {
            pool.create_dataset(&name)
        };
        self.tell(|| {
            format!(
                "filesystem {name}, there {exists}: {}",
                result.as_ref().err().map_or("ok".into(), Error::to_string)
            )
        });
        let mut after = before.clone();
        if exists {
            after.remove(&name);
        } else {
            after.insert(name.clone(), Model::default().now);
        }
        match result {
            Ok(()) => {
                if exists {
                    self.models.remove(&name);
                } else {
                    self.models.insert(name.clone(), Model::default());
                    let dataset = pool.dataset(&name).ok_or("the filesystem that was made is not there")?;
                    let fs = qrvsa_core::fs::FileSystem::open(dataset, qrvsa_core::fs::Options::default());
                    let fs = fs.map_err(|e| format!("the new filesystem cannot be opened: {e}"))?;
                    self.session.as_mut().expect("open").filesystems.insert(name, Arc::new(fs));
                }
                self.all_durable();
            }
            Err(_) if self.off() || self.beyond => {
                if self.bus.0.lock().uberblocks != uberblocks {
                    self.allowed.extend([before, after]);
                }
                self.bus.0.lock().off = true;
            }
            Err(e) if is_full(&e) => {
                self.is_crowded(0).map_err(|why| format!("filesystem {name}: {why}"))?;
                if pool.dataset(&name).is_some() != exists {
                    return Err(format!("filesystem {name}: a part of it was made"));
                }
                if pool.committed_txg() != committed {
                    self.all_durable();
                }
            }
            Err(e) => return Err(format!("making or removing a filesystem failed within the promise: {e}")),
        }
        self.rest();
        Ok(())
    }

    /// Some files, so that there is data, parity and metadata to hit.
    fn furnish(&mut self) -> Verdict<()> {
        for i in 0..4 {
            let name = format!("data{i}");
            self.perform("", &Action::Create(ROOT, name.clone()))?;
            let Some(ino) = self.models[""].lookup(ROOT, &name) else { continue };
            let (len, seed) = (self.random.below(300_000) as usize + 20_000, self.random.next_u64());
            self.perform("", &Action::Write(ino, 0, len, seed))?;
        }
        self.change_volumes()?;
        self.change_volumes()?;
        self.commit()
    }

    /// Touches everything: data is written and read, the log is written, a commit is made.
    fn provoke(&mut self) -> Verdict<()> {
        let is_file = |(ino, n): (&Ino, &crate::model::Node)| matches!(n.body, Body::File(_)).then_some(*ino);
        let files: Vec<Ino> = self.models[""].now.iter().filter_map(is_file).take(5).collect();
        for ino in &files {
            let (len, seed) = (self.random.below(90_000) as usize + 5000, self.random.next_u64());
            self.perform("", &Action::Write(*ino, self.random.below(8) * 4096, len, seed))?;
            if self.random.chance(1, 3) {
                self.perform("", &Action::Fsync(*ino))?;
            }
        }
        self.operate()?;
        self.commit()?;
        if self.off() || self.session.is_none() {
            return Ok(());
        }
        self.pool().records.drop_cache();
        for ino in &files {
            if self.models[""].now.contains_key(ino) {
                self.perform("", &Action::Read(*ino))?;
            }
        }
        self.commit()
    }

    /// Makes a hole in each record of a file, and so has the rest of each written anew, in a pool that has no room.
    fn perforate(&mut self, ino: Ino, size: u64, durable: bool) -> Verdict<()> {
        for at in (0..size).step_by(128 << 10) {
            self.perform("", &Action::Punch(ino, at + 8192, at + 12288))?;
        }
        if durable { self.perform("", &Action::Fsync(ino)) } else { Ok(()) }
    }

    /// Writes until the pool is full, and gives the space back.
    fn fill(&mut self) -> Verdict<()> {
        let model = self.models.get_mut("").expect("the pool's own filesystem");
        if model.lookup(ROOT, "big").is_some() {
            return Ok(());
        }
        self.perform("", &Action::Create(ROOT, "big".to_owned()))?;
        let Some(ino) = self.models[""].lookup(ROOT, "big") else { return Ok(()) };
        let was_full = |inner: &Inner| {
            inner
                .table
                .0
                .iter()
                .filter(|((k, t, _), _)| *k == Kind::Full && *t == Target::Data)
                .map(|(_, n)| n)
                .sum::<u64>()
        };
        if self.random.chance(1, 2) {
            self.add_reserved()?;
        }
        let full = was_full(self);
        for i in 0..48 {
            let seed = self.random.next_u64();
            self.perform("", &Action::Write(ino, i << 20, 1 << 20, seed))?;
            if was_full(self) != full {
                if seed.is_multiple_of(3) {
                    self.perforate(ino, i << 20, seed.is_multiple_of(2))?;
                }
                self.fill_reserved()?;
                if self.habits.makes_when_full && !self.models.contains_key("full") {
                    self.change_filesystem("full".to_owned())?;
                    if seed.is_multiple_of(5) {
                        self.bus.0.lock().off = true;
                    }
                }
                for _ in 0..4 {
                    self.operate()?;
                }
                break;
            }
        }
        // unless an operation took the name away, or gave it to another
        if self.models[""].lookup(ROOT, "big") == Some(ino) {
            self.perform("", &Action::Unlink(ROOT, "big".to_owned()))?;
        }
        for _ in 0..3 {
            self.commit()?;
        }
        Ok(())
    }
}

/// Number of a disk from its path.
fn disk_of(path: &str) -> Option<usize> {
    path.strip_prefix("disk")?.parse().ok()
}

fn digest(chunk: &[u8]) -> u64 {
    let mut block = [0; BLOCK];
    block[..chunk.len()].copy_from_slice(chunk);
    xxh3_64(&block)
}

/// What these pools are run with: a rate for background work, so that it lets others run.
fn options() -> qrvsa_core::engine::Options {
    qrvsa_core::engine::Options { background_rate: 1 << 20, ..verify::options() }
}

impl Inner {
    /// A job commits on its own, between its pauses: what was there at the end of the last one is durable.
    fn note_commits(&mut self) {
        let Some(session) = &self.session else { return };
        let committed = session.pool.committed_txg();
        if committed != self.committed {
            self.committed = committed;
            self.all_durable();
        }
    }

    /// A pause of a job is over.
    fn end_pause(&mut self) {
        if let Some(session) = &self.session {
            self.committed = session.pool.committed_txg();
        }
    }

    /// After a job: what was there when it ended is durable, or may be.
    fn after_job(&mut self) {
        if self.session.is_none() {
            return;
        }
        self.note_commits();
        if self.off() {
            // perhaps in a commit of its own
            let full = self.full_state();
            self.allowed.push(full);
            return;
        }
        let pool = self.pool();
        if pool.suspended().is_none() {
            match pool.commit() {
                Ok(()) => self.all_durable(),
                Err(_) => self.allowed.push(self.full_state()),
            }
        }
    }
}
