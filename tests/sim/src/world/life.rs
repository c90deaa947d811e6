//! The life of a world: phases of work, the planned fault in the planned state, and the healing afterwards.

use std::collections::BTreeSet;

use qrvsa_core::engine::Pool;
use qrvsa_core::engine::status::JobState;
use qrvsa_core::env::Random;
use qrvsa_core::pool::format::entries::MemberState;

use super::{Inner, Verdict, World, disk_of, options};
use crate::fault::{Kind, PoolState};
use crate::image::Image;
use crate::model::{Body, Ino, Model};
use crate::plan::{self, Plan, pick};
use crate::session::{Action, Session};
use crate::verify;

impl World {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock())
    }

    pub(super) fn live(&self, plan: &Plan, devices: usize) -> Verdict<()> {
        self.with(|w| {
            w.tell(|| format!("{plan:?}"));
            let disks: Vec<_> = (0..devices).map(|_| w.bus.device(w.bus.add(w.size, Image::default()))).collect();
            let env = verify::environment(&w.clock, w.random.next_u64());
            let pool = Pool::create(env, options(), "tank", Some(w.geometry), disks)
                .map_err(|e| format!("the pool cannot be made: {e}"))?;
            w.session = Some(Session::open(pool).map_err(|e| e.to_string())?);
            w.models.insert(String::new(), Model::default());
            w.rest();
            Ok::<_, String>(())
        })?;
        self.with(Inner::furnish)?;
        for phase in 0..plan.phases {
            self.work(3 + self.with(|w| w.random.below(12)))?;
            if phase == plan.phases / 2 {
                self.pursue(plan)?;
                if self.with(|w| w.session.is_none()) {
                    return Ok(());
                }
            } else {
                self.event()?;
            }
            if self.with(|w| w.habits.checks_at_work) {
                self.check_at_work()?;
            }
            if self.with(|w| w.beyond) {
                return self.end_beyond();
            }
        }
        self.work(3)?;
        self.heal()?;
        self.with(|w| {
            if w.off() {
                w.recover(None)?;
            }
            let mut bus = w.bus.0.lock();
            (bus.cut_at, bus.cut_on) = (None, None);
            drop(bus);
            if w.session.is_some() && !w.beyond {
                verify::check(&w.pool())?;
                let reserved = w.volumes.values().any(|v| v.spec.reserve);
                super::room::is_accounted_for(&w.pool(), reserved)?;
            }
            Ok(())
        })
    }

    /// Some operations; a crash if the power failed.
    fn work(&self, count: u64) -> Verdict<()> {
        self.with(|w| {
            for _ in 0..count {
                if w.session.is_none() {
                    return Ok(());
                }
                w.operate()?;
                if w.off() {
                    return w.recover(None);
                }
            }
            Ok(())
        })
    }

    /// Everything is touched, twice; a crash if the power failed.
    fn touch(&self) -> Verdict<()> {
        self.with(|w| {
            for _ in 0..2 {
                if w.session.is_none() {
                    return Ok(());
                }
                w.provoke()?;
                if w.off() {
                    return w.recover(None);
                }
            }
            Ok(())
        })
    }

    /// Something happens.
    fn event(&self) -> Verdict<()> {
        let choice = self.with(|w| w.random.below(15));
        match choice {
            0..=3 => {
                self.with(|w| {
                    let kinds = [
                        Kind::Torn,
                        Kind::Misdirected,
                        Kind::Dropped,
                        Kind::Flip,
                        Kind::Eio,
                        Kind::FlushLie,
                        Kind::Slow,
                        Kind::Vanished,
                        Kind::Swapped,
                        Kind::Full,
                    ];
                    let kind = *pick(&w.random, &kinds);
                    let target = *pick(&w.random, &crate::fault::TARGETS);
                    w.remember();
                    w.arm(plan::Goal { kind, target, state: PoolState::Healthy });
                });
                self.work(8)
            }
            4..=6 => {
                self.with(|w| {
                    let mut bus = w.bus.0.lock();
                    bus.cut_at = Some(bus.changes + w.random.below(60));
                });
                self.work(15)
            }
            7 => self.with(|w| w.recover(None)),
            8 => {
                self.with(Inner::rot);
                self.work(3)
            }
            9 => self.scrub().map(|_| ()),
            10 => {
                self.with(Inner::lose_one);
                self.work(6)
            }
            11 => self.with(|w| {
                w.datasets()?;
                if w.off() { w.recover(None) } else { Ok(()) }
            }),
            12 => self.with(|w| {
                if w.geometry.data <= 2 && w.bus.0.lock().disks.len() <= 4 {
                    w.fill()?;
                }
                if w.off() { w.recover(None) } else { Ok(()) }
            }),
            13 => self.replace_one(None),
            _ => self.heal(),
        }
    }

    /// Brings the planned fault about in the planned state.
    fn pursue(&self, plan: &Plan) -> Verdict<()> {
        let goal = plan.goal;
        self.with(|w| {
            w.tell(|| format!("the goal: {goal:?}"));
            w.remember();
        });
        let harmless = matches!(goal.kind, Kind::Crash | Kind::Lost);
        match goal.state {
            PoolState::Healthy | PoolState::Recoding => {
                self.heal()?;
                self.with(|w| {
                    w.remember();
                    w.arm(goal);
                });
                self.touch()?;
                self.work(4)
            }
            PoolState::OneLost | PoolState::AllLost => {
                self.heal()?;
                let many = if goal.state == PoolState::OneLost { 1 } else { self.with(|w| w.parity()) };
                for _ in 0..many {
                    self.with(Inner::lose_one);
                }
                self.work(2)?;
                self.with(|w| {
                    w.remember();
                    w.beyond |= !harmless && w.tainted.len() >= w.parity();
                    if w.session.is_some() {
                        w.arm(goal);
                    }
                });
                self.touch()?;
                self.work(4)
            }
            PoolState::Importing => {
                self.work(4)?;
                self.with(|w| {
                    let names: Vec<Ino> = w.models[""]
                        .now
                        .iter()
                        .filter(|(_, n)| matches!(n.body, Body::File(_)))
                        .map(|(i, _)| *i)
                        .collect();
                    // so that the log has something
                    for ino in names.iter().take(3) {
                        let seed = w.random.next_u64();
                        w.perform("", &Action::Write(*ino, 0, 30_000, seed))?;
                        w.perform("", &Action::Fsync(*ino))?;
                    }
                    w.beyond |= !harmless && w.parity() == 0;
                    w.recover(Some(goal))
                })
            }
            PoolState::Rebuilding => {
                self.heal()?;
                if self.with(|w| w.random.chance(1, 2)) {
                    // one that serves gives way to another: a fault anywhere is within the promise
                    self.replace_one(Some(goal))?;
                } else {
                    self.with(Inner::lose_one);
                    self.touch()?;
                    self.with(|w| w.next_beyond = !harmless && w.parity() < 2 && w.random.chance(2, 3));
                    self.bring_back(Some(goal))?;
                }
                self.work(4)
            }
        }
    }

    /// Vanished devices come back, and the pool is imported: what they missed is rebuilt.
    fn bring_back(&self, goal: Option<plan::Goal>) -> Verdict<()> {
        self.with(|w| {
            w.bus.clear_rules();
            {
                let mut bus = w.bus.0.lock();
                for disk in &mut bus.disks {
                    disk.vanished = false;
                    disk.full = false;
                    if disk.has_hung() {
                        disk.land_hung();
                    }
                }
            }
            w.recover(None)
        })?;
        self.replace_missing()?;
        self.rebuild(goal, goal.is_some())
    }

    /// Members whose device is not there get another one.
    fn replace_missing(&self) -> Verdict<()> {
        self.with(|w| {
            let Some(session) = &w.session else { return Ok(()) };
            let pool = session.pool.clone();
            let missing: Vec<u16> = pool
                .space
                .members()
                .iter()
                .filter(|m| !m.in_service() && m.state() != MemberState::Removed)
                .map(|m| m.index)
                .collect();
            for index in missing {
                let disk = w.bus.add(w.size, Image::default());
                w.tainted.insert(disk);
                let result = pool.begin_replace(&index.to_string(), w.bus.device(disk));
                w.tell(|| format!("member {index} replaced by disk{disk}: {result:?}"));
                match result {
                    Ok(()) => {
                        w.replaced.insert(index);
                        w.all_durable();
                    }
                    Err(_) if w.off() || w.beyond => return Ok(()),
                    Err(e) => return Err(format!("a replacement failed within the promise: {e}")),
                }
            }
            w.rest();
            Ok(())
        })
    }

    /// A member that serves is replaced by another device, and goes on serving until that has everything. The planned
    /// fault meets the beginning, or the rebuild.
    fn replace_one(&self, goal: Option<plan::Goal>) -> Verdict<()> {
        let early = self.with(|w| {
            let Some(session) = &w.session else { return Ok(false) };
            let pool = session.pool.clone();
            let members = pool.space.members();
            let serving: Vec<u16> = members
                .iter()
                .filter(|m| m.state() == MemberState::Online && m.in_service())
                .map(|m| m.index)
                .collect();
            if serving.is_empty() {
                return Ok(false);
            }
            let index = *pick(&w.random, &serving);
            let disk = w.bus.add(w.size, Image::default());
            w.rebuilding = true;
            w.rest();
            let early = goal.filter(|_| w.random.chance(1, 4));
            if let Some(goal) = early {
                w.arm(goal);
            }
            let result = pool.begin_replace(&index.to_string(), w.bus.device(disk));
            w.tell(|| format!("member {index}, which serves, gives way to disk{disk}: {result:?}"));
            match result {
                Ok(()) => {
                    w.replaced.insert(index);
                    w.all_durable();
                }
                // whatever was to be durable then
                Err(_) if w.off() => {
                    let full = w.full_state();
                    w.allowed.push(full);
                }
                Err(_) if w.beyond => {}
                Err(e) => return Err(format!("a replacement failed within the promise: {e}")),
            }
            w.rest();
            Ok(early.is_some())
        })?;
        self.rebuild(goal.filter(|_| !early), true)?;
        self.with(|w| if w.off() { w.recover(None) } else { Ok(()) })
    }

    /// Rebuilds what is stale, with the workload running in the pauses. `troubled`: it need not end well.
    fn rebuild(&self, goal: Option<plan::Goal>, troubled: bool) -> Verdict<()> {
        let result = self.rebuild_now(goal, troubled);
        self.with(|w| {
            // without power it is under way until the crash
            if !w.off() {
                w.rebuilding = false;
                w.rest();
            }
        });
        result
    }

    fn rebuild_now(&self, goal: Option<plan::Goal>, troubled: bool) -> Verdict<()> {
        let Some(pool) = self.with(|w| w.session.as_ref().map(|s| s.pool.clone())) else { return Ok(()) };
        if !pool.needs_rebuild() || self.with(|w| w.off()) {
            return Ok(());
        }
        let quiet = !troubled;
        self.with(|w| {
            w.rebuilding = true;
            w.rest();
            if let Some(goal) = goal {
                w.beyond |= w.next_beyond;
                w.arm(goal);
            }
            if std::mem::take(&mut w.cut_rebuild) && quiet && w.random.chance(1, 6) {
                let mut bus = w.bus.0.lock();
                bus.cut_at = Some(bus.changes + w.random.below(120));
            }
        });
        let job = pool.new_rebuild();
        let world = self.clone();
        self.with(|w| {
            w.clock.set_yield(Some(Box::new(move || {
                world.with(|w| {
                    w.note_commits();
                    for _ in 0..w.random.below(4).max(u64::from(!quiet)) {
                        if w.problem.is_none() && !w.off() && w.session.is_some() {
                            let result = if !quiet || w.random.chance(1, 2) { w.provoke() } else { w.operate() };
                            if let Err(e) = result {
                                w.problem = Some(format!("during a rebuild: {e}"));
                            }
                        }
                    }
                    w.end_pause();
                });
            })));
            w.end_pause();
        });
        pool.run_rebuild(&job);
        self.with(|w| {
            w.clock.set_yield(None);
            w.tell(|| format!("rebuild: {:?} {}", job.state(), job.message()));
            w.after_job();
            if let Some(problem) = w.problem.take() {
                return Err(problem);
            }
            if w.off() {
                return w.recover(None);
            }
            {
                let mut bus = w.bus.0.lock();
                (bus.cut_at, bus.cut_on) = (None, None);
            }
            w.rest();
            if quiet && !w.beyond && (job.state() != JobState::Finished || pool.needs_rebuild()) {
                return Err(format!("a rebuild did not end well: {:?} {}", job.state(), job.message()));
            }
            Ok(())
        })
    }

    /// A scrub with the workload running in the pauses. Whether it found nothing.
    fn scrub(&self) -> Verdict<bool> {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(pool) = self.with(|w| w.session.as_ref().map(|s| s.pool.clone())) else { return Ok(true) };
        if self.with(|w| w.off()) {
            return self.with(|w| w.recover(None)).map(|()| false);
        }
        let world = self.clone();
        let (job, _) = pool.begin_scrub();
        self.with(|w| {
            w.clock.set_yield(Some(Box::new(move || {
                world.with(|w| {
                    w.note_commits();
                    if w.problem.is_none()
                        && let Err(e) = w.operate()
                    {
                        w.problem = Some(format!("during a scrub: {e}"));
                    }
                    w.end_pause();
                });
            })));
            w.end_pause();
        });
        pool.run_scrub(&job);
        self.with(|w| {
            w.clock.set_yield(None);
            w.after_job();
            w.rest();
            let (errors, repaired, lost) =
                (job.errors.load(Relaxed), job.repaired.load(Relaxed), job.lost.load(Relaxed));
            w.tell(|| {
                format!("scrub: {:?} {} errors {errors} repaired {repaired} lost {lost}", job.state(), job.message())
            });
            if let Some(problem) = w.problem.take() {
                return Err(problem);
            }
            if w.off() {
                return w.recover(None).map(|()| false);
            }
            if !w.beyond && (job.state() != JobState::Finished || lost > 0) {
                return Err(format!("a scrub within the promise: {:?} {}, {lost} lost", job.state(), job.message()));
            }
            Ok(errors == 0)
        })
    }

    /// A check with the workload running between its steps: what it reports is true, and it takes no room from anybody.
    fn check_at_work(&self) -> Verdict<()> {
        let Some(pool) = self.with(|w| w.session.as_ref().map(|s| s.pool.clone())) else { return Ok(()) };
        if self.with(|w| w.off() || w.beyond) || pool.suspended().is_some() {
            return Ok(());
        }
        let (deep, mut left) = self.with(|w| {
            w.end_pause();
            (w.random.chance(1, 2), 5 + w.random.below(20))
        });
        let report = pool.check(deep, &mut |_| {
            self.with(|w| {
                w.note_commits();
                if left > 0 && w.problem.is_none() && !w.off() && w.session.is_some() && w.random.chance(1, 3) {
                    left -= 1;
                    let result = match w.random.below(3) {
                        0 => w.commit(),
                        _ => w.operate(),
                    };
                    if let Err(e) = result {
                        w.problem = Some(format!("during a check: {e}"));
                    }
                }
                w.end_pause();
                w.problem.is_none() && !w.off()
            })
        });
        self.with(|w| {
            w.after_job();
            w.rest();
            w.tell(|| format!("check at work, deep {deep}: {report:?}"));
            if let Some(problem) = w.problem.take() {
                return Err(problem);
            }
            if w.off() {
                return w.recover(None);
            }
            if w.beyond {
                return Ok(());
            }
            let report = report.map_err(|e| format!("a check within the promise: {e}"))?;
            // a scrub has to find what is wrong in columns of devices that suffered
            let expected = |text: &String| deep && !w.tainted.is_empty() && text.ends_with("a scrub repairs them");
            match report.problems.iter().find(|text| !expected(text)) {
                Some(problem) => Err(format!("a check while the workload went on: {problem}")),
                None => Ok(()),
            }
        })
    }

    /// All devices are there, whole, and proven right.
    fn heal(&self) -> Verdict<()> {
        for round in 0..4 {
            if self.with(|w| {
                w.cut_rebuild = round == 0;
                w.session.is_none()
            }) {
                return Ok(());
            }
            self.bring_back(None)?;
            if self.with(|w| w.session.is_none() || w.beyond) {
                return Ok(());
            }
            let mut clean = false;
            let crashes = self.with(|w| w.crashes);
            for _ in 0..3 {
                let rotten = self.with(|w| w.rotten);
                clean = self.scrub()?;
                if clean {
                    break;
                }
                // devices were away, and nothing else: what they missed was rebuilt before they count
                if self.with(|w| w.session.is_some() && !rotten && !w.rotten && !w.beyond && w.crashes == crashes) {
                    return Err("a device that was away came back without what it missed".to_owned());
                }
            }
            let done = self.with(|w| {
                if w.session.is_none() {
                    return Ok(true);
                }
                w.commit()?;
                w.commit()?;
                if w.off() {
                    w.recover(None)?;
                    return Ok(false);
                }
                let whole = w
                    .pool()
                    .space
                    .members()
                    .iter()
                    .all(|m| m.state() == MemberState::Removed || m.state() == MemberState::Online);
                if clean && whole {
                    let members = w.pool().space.members();
                    let left = |index: &u16| members[usize::from(*index)].state() == MemberState::Removed;
                    if let Some(index) = w.replaced.iter().find(|index| !left(index)) {
                        return Err(format!("member {index} was replaced, and serves again"));
                    }
                    w.tainted.clear();
                    w.rotten = false;
                    w.bus.0.lock().disks.iter_mut().for_each(|d| d.swapped = false);
                    w.clones.clear();
                    let members = w.pool().space.members();
                    let used: BTreeSet<usize> = members
                        .iter()
                        .filter(|m| m.state() == MemberState::Online)
                        .filter_map(|m| disk_of(&m.path()))
                        .collect();
                    let count = w.bus.0.lock().disks.len();
                    // disks that were replaced, and strangers, are taken away
                    w.clones.extend((0..count).filter(|d| !used.contains(d)));
                }
                Ok::<_, String>(clean && whole)
            })?;
            if done {
                return Ok(());
            }
        }
        Err("four rounds of rebuild and scrub did not make the pool whole".to_owned())
    }

    /// The end of a world beyond the promise: errors are honest, bytes are right.
    fn end_beyond(&self) -> Verdict<()> {
        self.work(4)?;
        self.with(|w| {
            if w.session.is_none() {
                return Ok(());
            }
            w.bus.clear_rules();
            w.pool().records.drop_cache();
            w.compare_beyond()?;
            // all devices are back with what they have
            for disk in &mut w.bus.0.lock().disks {
                (disk.full, disk.vanished) = (false, false);
            }
            w.recover(None)
        })
    }
}
