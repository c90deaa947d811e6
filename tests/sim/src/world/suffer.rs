//! Faults: who suffers, and how.

use super::{Inner, disk_of};
use crate::fault::{Kind, PoolState, Target};
use crate::image::BLOCK;
use crate::plan::{self, pick};

impl Inner {
    /// Who may suffer next without breaking the promise.
    fn victim(&mut self, target: Option<Target>) -> Option<usize> {
        let mut serving: Vec<usize> = Vec::new();
        for m in self.pool().space.members() {
            if m.in_service()
                && let Some(disk) = disk_of(&m.path())
            {
                serving.push(disk);
            }
        }
        let spare = self.tainted.len() < self.parity();
        let fits: Vec<usize> =
            serving.into_iter().filter(|d| self.beyond || spare || self.tainted.contains(d)).collect();
        self.choose(fits, target)
    }

    /// One of these, if possible one that has what is to be hit.
    fn choose(&mut self, fits: Vec<usize>, target: Option<Target>) -> Option<usize> {
        let has = |d: &usize| {
            let bus = self.bus.0.lock();
            target.is_some() && bus.map.get(*d).is_some_and(|zones| zones.contains(&target))
        };
        let better: Vec<usize> = fits.iter().copied().filter(has).collect();
        let fits = if better.is_empty() { fits } else { better };
        if fits.is_empty() {
            return None;
        }
        let victim = *pick(&self.random, &fits);
        self.tainted.insert(victim);
        Some(victim)
    }

    /// A fault of a kind on a device that may suffer, or the plan of a crash.
    pub(super) fn arm(&mut self, goal: plan::Goal) {
        let plan::Goal { kind, target, .. } = goal;
        if matches!(kind, Kind::Crash | Kind::Lost) || (kind == Kind::Torn && self.random.chance(1, 2)) {
            let skip = self.random.below(3);
            self.bus.0.lock().cut_on = Some((target, skip));
            return;
        }
        let victim = if self.session.is_some() { self.victim(Some(target)) } else { self.victim_at_rest(Some(target)) };
        let Some(victim) = victim else { return };
        let (devices, size) = (self.bus.0.lock().disks.len(), self.size);
        let mut rule = plan::rule(&self.random, kind, victim, Some(target), devices, size);
        if self.bus.0.lock().state == PoolState::Importing || goal.state == PoolState::Rebuilding {
            rule.skip = 0;
        }
        // labels, uberblocks and the log are read by an import alone
        let at_work = goal.state != PoolState::Importing && matches!(target, Target::Label | Target::Log);
        if at_work && rule.op != Some(crate::bus::Op::Flush) {
            rule.op = Some(crate::bus::Op::Write);
        }
        // an import reads the log and does not write it
        let reads = rule.effect.is_possible_on_read();
        if goal.state == PoolState::Importing
            && target == Target::Log
            && reads
            && rule.op == Some(crate::bus::Op::Write)
        {
            rule.op = Some(crate::bus::Op::Read);
        }
        self.tell(|| format!("fault: {rule:?}"));
        // what is away is rebuilt when it is back; whatever else it was, only a scrub finds
        self.rotten |= kind != Kind::Vanished;
        self.bus.inject(rule);
    }

    /// The same while no pool is open.
    fn victim_at_rest(&mut self, target: Option<Target>) -> Option<usize> {
        let spare = self.tainted.len() < self.parity();
        let count = self.bus.0.lock().disks.len();
        let fits: Vec<usize> = (0..count)
            .filter(|d| (self.beyond || spare || self.tainted.contains(d)) && !self.clones.contains(d))
            .filter(|d| !self.bus.0.lock().disks[*d].vanished)
            .collect();
        self.choose(fits, target)
    }

    /// Keeps what the devices hold, as their past.
    pub(super) fn remember(&mut self) {
        let Some(session) = &self.session else { return };
        self.past = session.pool.committed_txg();
        self.bus.0.lock().disks.iter_mut().for_each(|d| d.remember());
    }

    /// While nothing is open, a device is put back to what it was some groups ago.
    pub(super) fn restore_old(&mut self, committed: u64) {
        if self.past == 0 || committed < self.past + 3 || !self.random.chance(1, 4) {
            return;
        }
        let Some(victim) = self.victim_at_rest(None) else { return };
        self.tell(|| format!("disk{victim} is what it was at group {}", self.past));
        let mut bus = self.bus.0.lock();
        let state = bus.state;
        bus.disks[victim].go_back();
        bus.hits.push(crate::bus::Hit { kind: Kind::Vanished, device: victim, offset: 0, state });
    }

    /// A device goes.
    pub(super) fn lose_one(&mut self) {
        let Some(victim) = self.victim(None) else { return };
        self.tell(|| format!("disk{victim} vanishes"));
        self.bus.0.lock().disks[victim].vanished = true;
        self.pool().check_devices();
        self.rest();
    }

    /// Changes what lies on a device that may suffer, behind everyone's back.
    pub(super) fn rot(&mut self) {
        let Some(victim) = self.victim(None) else { return };
        self.rotten = true;
        let mut bus = self.bus.0.lock();
        let state = bus.state;
        let written: Vec<u64> = bus.disks[victim].medium().blocks().into_keys().collect();
        if written.is_empty() {
            return;
        }
        for _ in 0..1 + self.random.below(6) {
            let number = *pick(&self.random, &written);
            let (at, bit) = (self.random.below(BLOCK as u64) as usize, self.random.below(8));
            bus.disks[victim].tamper(number, |block| block[at] ^= 1 << bit);
            bus.hits.push(crate::bus::Hit { kind: Kind::Flip, device: victim, offset: number * BLOCK as u64, state });
        }
        drop(bus);
        self.pool().records.drop_cache();
        self.rest();
    }
}
