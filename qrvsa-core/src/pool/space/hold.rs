//! Holding a whole committed state for longer than a reader may: as long as nobody needs the space.
//!
//! A check compares everything with everything, and wants one state for it. A reader's pin would keep all that is freed
//! meanwhile from coming back, and a pool fills up that is far from full. So rows freed since are *held* for it, and the
//! hold ends, without asking, when an operation finds no room or when what is held grows beside what is free. From then on the
//! state may be overwritten, and whoever was reading it has to begin again, or to give up.
//!
//! Each read under a hold has a pin of its own, taken before it looks whether the hold stands ([`Hold::reader`]). When the
//! hold ends, what it held waits for the readers of that moment as if it had been freed then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{AllocState, Freed, Space};
use crate::pool::epoch::Pin;
use crate::pool::format::entries::Class;

/// Held runs of rows are kept in memory: 40 bytes each.
const HELD_MAX: usize = 1 << 20;

/// A state that is held.
pub(super) struct Kept {
    /// Its transaction group: what is freed in later ones is held.
    txg: u64,
    ended: Arc<AtomicBool>,
}

/// Keeps the rows of a committed state from being handed out, until it is dropped or space is short.
pub struct Hold {
    space: Arc<Space>,
    ended: Arc<AtomicBool>,
}

impl Hold {
    /// A pin for one read of the state; `None` when the state is not held any more.
    pub fn reader(&self) -> Option<Pin> {
        // in this order: what is handed out after the hold has ended waits for those who found it standing
        let pin = self.space.epoch.pin();
        (!self.ended.load(Ordering::SeqCst)).then_some(pin)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.space.alloc.lock().holds.retain(|kept| !Arc::ptr_eq(&kept.ended, &self.ended));
    }
}

impl AllocState {
    /// The group up to which nothing that was freed is held.
    pub(super) fn kept_from(&self) -> u64 {
        self.holds.iter().map(|kept| kept.txg).min().unwrap_or(u64::MAX)
    }
}

impl Space {
    /// Holds the state of the newest committed transaction group, `txg`. The caller keeps commits away meanwhile.
    pub fn hold(self: &Arc<Self>, txg: u64) -> Hold {
        let ended = Arc::new(AtomicBool::new(false));
        self.alloc.lock().holds.push(Kept { txg, ended: ended.clone() });
        Hold { space: self.clone(), ended }
    }

    /// Ends all holds: what they kept comes back with the next commits.
    pub fn end_holds(&self) {
        self.end_holds_of(&mut self.alloc.lock());
    }

    pub(super) fn end_holds_of(&self, alloc: &mut AllocState) {
        if alloc.holds.is_empty() {
            return;
        }
        let kept_from = alloc.kept_from();
        for kept in alloc.holds.drain(..) {
            kept.ended.store(true, Ordering::SeqCst);
        }
        // those who read under a hold have entered an epoch up to this one
        let epoch = self.epoch.current();
        alloc.freed.iter_mut().filter(|f| f.txg > kept_from && f.epoch != u64::MAX).for_each(|f| f.epoch = epoch);
    }

    /// Whether holds keep more than a quarter of what is free, `unclaimed` blocks of it for data, or more than memory should
    /// be spent on. Nodes of the pool tree have rows of their own, without which there is no commit.
    pub(super) fn holds_too_much(&self, alloc: &AllocState, unclaimed: u64) -> bool {
        if alloc.holds.is_empty() {
            return false;
        }
        let kept_from = alloc.kept_from();
        let groups = self.groups.read();
        let (k, all) = (u64::from(self.geometry.data), self.geometry.columns() as u64);
        let (mut runs, mut blocks, mut system) = (0, 0u64, 0u64);
        for Freed { group, rows, width, .. } in alloc.freed.iter().filter(|f| f.txg > kept_from) {
            runs += 1;
            match groups.get(group) {
                Some(g) if g.class == Class::System => system += u64::from(*rows),
                Some(g) if *width == 0 => blocks += (u64::from(*rows) * u64::from(g.column_count()) * k).div_ceil(all),
                _ => blocks += u64::from(*rows) * u64::from(*width),
            }
        }
        let system_free: u64 =
            groups.values().filter(|g| g.class == Class::System).map(|g| u64::from(g.free_rows())).sum();
        runs > HELD_MAX || blocks.saturating_mul(4) > unclaimed || system.saturating_mul(4) > system_free
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::entry;
    use super::*;
    use crate::device::sim::{SimConfig, SimDevice};
    use crate::pool::member::Member;
    use crate::pool::space::Geometry;

    fn space() -> Arc<Space> {
        let space = Arc::new(Space::new(Geometry { data: 1, parity: 0 }, 22, Vec::new(), Vec::new()).unwrap());
        let (device, _) = SimDevice::create(SimConfig::new(64 << 20));
        space.add_member(Arc::new(Member::new(&entry(64 << 20), Some(device))));
        space
    }

    /// Takes a record and frees it in the next group; `commit_done` of that group and of so many later ones.
    fn free_one(space: &Space, txg: u64, later: u64) {
        let extent = space.allocate(Class::Data, 16).unwrap();
        space.free(txg, extent.group.id, extent.row, extent.rows).unwrap();
        (txg..=txg + later).for_each(|txg| space.commit_done(txg).unwrap());
    }

    #[test]
    fn what_is_freed_is_held_until_it_is_wanted() {
        let space = space();
        let hold = space.hold(4);
        free_one(&space, 5, 3);
        assert!(space.has_pending_frees() && !space.has_coming_frees());
        assert!(hold.reader().is_some());
        let free = space.capacity().free;
        assert!(space.reserve(free + 1).is_err(), "more than there is");
        assert!(hold.reader().is_none(), "somebody wanted it");
        assert!(space.has_coming_frees());
        space.commit_done(9).unwrap();
        assert!(!space.has_pending_frees());
        assert_eq!(space.capacity().pending, 0);
    }

    #[test]
    fn who_reads_when_a_hold_ends_is_waited_for() {
        let space = space();
        let hold = space.hold(4);
        free_one(&space, 5, 3);
        let reader = hold.reader().unwrap();
        space.end_holds();
        for txg in 9..14 {
            space.commit_done(txg).unwrap();
            assert!(space.has_pending_frees(), "commit {txg}: somebody reads there");
        }
        drop(reader);
        space.commit_done(14).unwrap();
        assert!(!space.has_pending_frees());
    }

    #[test]
    fn a_hold_that_is_given_up_holds_nothing() {
        let space = space();
        let (first, second) = (space.hold(4), space.hold(5));
        free_one(&space, 5, 3);
        drop(second);
        space.commit_done(9).unwrap();
        assert!(space.has_pending_frees());
        drop(first);
        space.commit_done(10).unwrap();
        assert!(!space.has_pending_frees());
    }

    #[test]
    fn a_hold_ends_before_it_keeps_much_of_what_is_free() {
        let space = space();
        let hold = space.hold(4);
        let (free, mut txg) = (space.capacity().free, 5);
        while hold.reader().is_some() {
            assert!(space.capacity().pending <= free / 4, "group {txg}");
            free_one(&space, txg, 0);
            txg += 1;
        }
        assert!(space.capacity().pending <= 32, "it is back at once");
        assert!(txg > 20, "it ended in group {txg}");
    }
}
