//! Rebuild: columns on a returned or a new device are computed from the others, zone by zone.
//!
//! Erasure coding works position by position, so a zone is rebuilt without knowing where records begin: under the guide
//! of the row bitmap, in pieces, each under the group's exclusive I/O lock. Writes between the pieces go to the stale
//! column too. A column counts again when all its pieces are done and flushed; checksums then prove it, by scrub.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Pool;
use super::open::{Candidate, wipe, write_label};
use super::status::{Job, JobKind, JobState};
use crate::buf::BLOCK_SIZE;
use crate::dataset::Host;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::pool::format::entries::{Class, ColumnEntry, DeviceEntry, MemberState, ZoneRef};
use crate::pool::format::label::Label;
use crate::pool::format::layout;
use crate::pool::group::Group;
use crate::pool::member::Member;

mod rows;

use rows::Late;

/// Rows rebuilt under one lock at most: 4 MiB of each column.
const PIECE_ROWS: u32 = 1024;
/// After so long, the lock is given to those who wait for it, before the next run.
const LOCK_NS: u64 = 500_000_000;
/// Longest run read and decoded at once, rows.
const RUN_ROWS_MAX: u32 = 256;

impl Pool {
    /// The member that a path, index or id names.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find_member(&self, name: &str) -> Result<Arc<Member>> {
        let members = self.space.members();
        let canonical = std::fs::canonicalize(name).map(|p| p.display().to_string()).unwrap_or_default();
        let alive = || members.iter().filter(|m| m.state() != MemberState::Removed);
        let found = alive()
            .find(|m| m.path() == name)
            .or_else(|| alive().find(|m| !canonical.is_empty() && m.path() == canonical))
            .or_else(|| alive().find(|m| format!("{:032x}", m.device_id) == name))
            .or_else(|| alive().find(|m| m.index.to_string() == name));
        match found {
            Some(m) => Ok(m.clone()),
            None => fail!(
                NotFound,
                "pool '{}' has no device '{name}'; it has {}",
                self.name,
                alive().map(|m| m.path()).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    /// Whether the pool can do without this member right now.
    fn can_lose(&self, index: u16) -> bool {
        self.space.groups().iter().all(|g| {
            let serves = |p: ZoneRef| p.device != index && self.space.member(p.device).is_some_and(|m| m.in_service());
            let holds = |c: &ColumnEntry| (!c.stale && serves(c.place)) || c.previous.is_some_and(serves);
            // groups of the log and empty ones as well: a commit needs them writable
            g.columns.read().iter().filter(|c| !holds(c)).count() <= usize::from(g.parity)
        })
    }

    /// Takes a member out of service on request.
    ///
    /// # Errors
    /// `Degraded` when data would become unreadable.
    pub fn offline(&self, name: &str) -> Result<()> {
        let member = self.find_member(name)?;
        if !member.in_service() {
            fail!(Invalid, "{} is not in service ({})", member.path(), member.message());
        }
        if !self.can_lose(member.index) {
            fail!(
                Degraded,
                "without {} data of pool '{}' would be unreadable; bring other devices back first",
                member.path(),
                self.name
            );
        }
        // what is in memory reaches it before it leaves
        self.commit()?;
        loop {
            // it may have failed, or its replacement may be complete, since
            let (was, to, why) = match member.state() {
                MemberState::Removed => return Ok(()),
                was @ MemberState::Leaving => (was, MemberState::Removed, "taken offline while it was being replaced"),
                was => (was, MemberState::Offline, "taken offline by the administrator"),
            };
            if member.change_state(was, to, why) {
                break;
            }
        }
        self.commit()?;
        member.set_device(None);
        Ok(())
    }

    /// Brings a member back into service; all it holds is rebuilt before it counts.
    ///
    /// # Errors
    /// `Invalid` when it is in service or the device is not this member.
    pub fn online(&self, name: &str, candidate: Candidate) -> Result<()> {
        let member = match self.find_member(name) {
            Ok(m) => m,
            Err(e) => {
                let id = candidate.label.device_id;
                self.space.members().into_iter().find(|m| m.device_id == id).ok_or(e)?
            }
        };
        if member.in_service() {
            fail!(Invalid, "{} is in service already", member.path());
        }
        if candidate.label.pool_id != self.id {
            fail!(Invalid, "{} belongs to another pool ('{}')", candidate.path().display(), candidate.label.pool_name);
        }
        if candidate.label.device_id != member.device_id {
            fail!(Invalid, "{} is another member of the pool than {}", candidate.path().display(), member.path());
        }
        if member.state() == MemberState::Removed || self.gave_way(member.index) {
            fail!(Invalid, "{} was replaced; use 'pool replace' to bring it in as a new device", member.path());
        }
        if candidate.damaged_labels > 0 {
            write_label(&candidate.device, &candidate.label)?;
        }
        {
            // no uberblock lists it whose log begins before it takes part in that
            let _commits = self.commit_state.lock();
            self.check_writable()?;
            self.mark_stale(member.index);
            member.set_device(Some(candidate.device.clone()));
            member.set_state(MemberState::Rebuilding, "back in service, being rebuilt");
        }
        self.commit()
    }

    /// Whether a member's columns lie on another by now, which has yet to get all of what is in them.
    pub(crate) fn gave_way(&self, index: u16) -> bool {
        let groups = self.space.groups();
        let any = |is: &dyn Fn(&ColumnEntry) -> bool| groups.iter().any(|g| g.columns.read().iter().any(is));
        any(&|c| c.previous.is_some_and(|p| p.device == index)) && !any(&|c| c.place.device == index)
    }

    /// Marks every column on a member as one to rebuild. No writer is in flight when a group's turn comes.
    pub(crate) fn mark_stale(&self, index: u16) {
        for group in self.space.groups() {
            let _io = group.io.write();
            let mut columns = group.columns.write();
            for c in columns.iter_mut() {
                if c.place.device == index {
                    c.stale = true;
                    group.changed.store(true, Ordering::Release);
                }
                if c.previous.is_some_and(|p| p.device == index) {
                    // it left while it was being replaced and missed writes: no source any more. Its zone stays taken
                    // until the next import.
                    c.previous = None;
                    group.changed.store(true, Ordering::Release);
                }
            }
        }
    }

    /// Puts a new device in a member's place. The rebuild moves the contents.
    ///
    /// # Errors
    /// `Invalid` for a device that is too small, `Busy` when another came in at the same time. Nothing has changed then,
    /// except on the new device.
    pub fn begin_replace(&self, old: &str, device: Arc<dyn Device>) -> Result<()> {
        self.check_writable()?;
        let old = self.find_member(old)?;
        if old.state() == MemberState::Leaving {
            fail!(Invalid, "{} is being replaced already", old.path());
        }
        let path = device.info().path.display().to_string();
        let size_bytes = device.info().size_bytes;
        if size_bytes < layout::DEVICE_BYTES_MIN {
            fail!(
                Invalid,
                "{path} is too small: at least {} MiB are needed",
                layout::DEVICE_BYTES_MIN.div_ceil(1 << 20)
            );
        }
        self.fits(&device, &old, self.space.used_zones(old.index))?;
        wipe(&device)?;
        let index = u16::try_from(self.space.members().len())
            .map_err(|_| Error::new(ErrorKind::Invalid, "the pool has had too many devices"))?;
        let entry = DeviceEntry {
            index,
            device_id: self.env.random_u128(),
            state: MemberState::Rebuilding,
            size_bytes,
            read_errors: 0,
            write_errors: 0,
            checksum_errors: 0,
            repaired: 0,
            path,
            message: format!("takes the place of {}", old.path()),
        };
        let label = Label {
            pool_id: self.id,
            device_id: entry.device_id,
            index,
            data: self.space.geometry.data,
            parity: self.space.geometry.parity,
            zone_shift: self.space.zone_shift,
            size_bytes,
            created_ns: self.created_ns,
            incompatible: 0,
            readonly_compatible: 0,
            pool_name: self.name.clone(),
        };
        write_label(&device, &label)?;
        // no commit makes or dissolves groups meanwhile
        let state = self.commit_state.lock();
        // commits since the first look have made groups
        if let Err(e) = self.check_writable().and_then(|()| self.still_replaceable(&old, index, &device)) {
            drop(state);
            if let Err(e) = wipe(&device) {
                tracing::warn!("the label of a device that was not taken could not be removed: {e}");
            }
            return Err(e);
        }
        self.space.add_member(Arc::new(Member::new(&entry, Some(device))));
        let old_serves = loop {
            // the end of a rebuild may change it meanwhile, or a failure
            let was = old.state();
            if !was.in_service() || old.change_state(was, MemberState::Leaving, "being replaced") {
                break was.in_service();
            }
        };
        // until the columns are stored, an import reads the log on a device that gets no more of it
        self.log.pause_until_commit();
        for group in self.space.groups() {
            let _io = group.io.write();
            if !group.columns.read().iter().any(|c| c.place.device == old.index) {
                continue;
            }
            // a group has at most one column on a member; its zone first: no lock is taken under that of the columns
            let zone = self.space.take_zone(index)?;
            let mut columns = group.columns.write();
            for c in columns.iter_mut().filter(|c| c.place.device == old.index) {
                // if the old device does not hold the column itself yet, it still comes from where that would have it from
                let previous = if c.stale { c.previous } else { old_serves.then_some(c.place) };
                *c = ColumnEntry { place: ZoneRef { device: index, zone }, stale: true, previous };
                group.changed.store(true, Ordering::Release);
            }
        }
        if !old_serves {
            old.set_state(MemberState::Removed, "replaced");
        }
        drop(state);
        self.commit()
    }

    /// Fails when a device has fewer zones than are needed for what is on another.
    fn fits(&self, device: &Arc<dyn Device>, old: &Member, needed: u64) -> Result<()> {
        let have = u64::from(layout::zone_count(device.info().size_bytes, self.space.zone_shift));
        if have < needed {
            fail!(
                Invalid,
                "{} is too small: {needed} zones of {} MiB are in use on {}, it has room for {have}",
                device.info().path.display(),
                (1u64 << self.space.zone_shift) >> 20,
                old.path()
            );
        }
        Ok(())
    }

    /// What has to hold when the columns of `old` begin to move to a device that becomes member `index`. The caller keeps
    /// commits out.
    fn still_replaceable(&self, old: &Member, index: u16, device: &Arc<dyn Device>) -> Result<()> {
        if matches!(old.state(), MemberState::Leaving | MemberState::Removed) {
            fail!(Invalid, "{} is being replaced already", old.path());
        }
        if self.space.members().len() != usize::from(index) {
            fail!(Busy, "another device was brought in at the same time; try again");
        }
        let has_column = |g: &&Arc<Group>| g.columns.read().iter().any(|c| c.place.device == old.index);
        self.fits(device, old, self.space.groups().iter().filter(has_column).count() as u64)
    }

    /// Whether columns wait to be rebuilt on members that are in service.
    pub fn needs_rebuild(&self) -> bool {
        self.space.groups().iter().any(|g| !self.stale_columns(g).is_empty())
            || self.space.members().iter().any(|m| m.state() == MemberState::Rebuilding && m.in_service())
    }

    fn stale_columns(&self, group: &Group) -> Vec<usize> {
        let columns = group.columns.read();
        (0..columns.len())
            .filter(|i| {
                columns[*i].stale && self.space.member(columns[*i].place.device).is_some_and(|m| m.in_service())
            })
            .collect()
    }

    /// Registers a rebuild. The caller runs [`Pool::run_rebuild`], one at a time.
    pub fn new_rebuild(&self) -> Arc<Job> {
        let job = self.jobs.begin(JobKind::Rebuild, self.env.clock.wall_ns());
        *job.rate_base.lock() = (self.env.clock.monotonic_ns(), 0);
        self.store_job(&job);
        job
    }

    /// Rebuilds until no stale column is left.
    pub fn run_rebuild(&self, job: &Arc<Job>) {
        let result = self.rebuild_all(job);
        job.finished_ns.store(self.env.clock.wall_ns().max(0) as u64, Ordering::Relaxed);
        match result {
            Ok(true) => job.set_state(JobState::Finished, ""),
            Ok(false) => {
                job.set_state(JobState::Stopped, "ended before it was complete; it goes on at the next import")
            }
            Err(e) => job.set_state(JobState::Failed, e.to_string()),
        }
        self.store_job(job);
        self.wake_committer();
    }

    fn rebuild_all(&self, job: &Arc<Job>) -> Result<bool> {
        // members whose columns this rebuild moved away
        let mut left = BTreeSet::new();
        let mut late = Late::new();
        // rounds, since writes on a degraded pool make groups with stale columns, too
        let mut given_up: BTreeSet<u32> = BTreeSet::new();
        let mut first_error = None;
        for _ in 0..100 {
            let wanted = |g: &Arc<Group>| !given_up.contains(&g.id) && !self.stale_columns(g).is_empty();
            let todo: Vec<Arc<Group>> = self.space.groups().into_iter().filter(wanted).collect();
            if todo.is_empty() {
                break;
            }
            let bytes = |g: &Group| u64::from(g.used_rows()) * BLOCK_SIZE as u64;
            let total = todo.iter().map(|g| bytes(g)).sum::<u64>() + job.done.load(Ordering::Relaxed);
            job.total.store(total, Ordering::Relaxed);
            for group in todo {
                if job.request.load(Ordering::Acquire) != 0 {
                    return Ok(false);
                }
                // a group that cannot be had must not keep the others from their redundancy
                if let Err(e) = self.rebuild_group(job, &group, &mut late, &mut left) {
                    tracing::error!(pool = %self.name, group = group.id, "rebuild: {e}");
                    given_up.insert(group.id);
                    first_error.get_or_insert(e);
                }
            }
            // the columns count from this commit on
            self.commit()?;
            self.finish_members(&left)?;
        }
        self.finish_members(&left)?;
        first_error.map_or(Ok(true), Err)
    }

    /// Rebuilds the stale columns of one group that are in service.
    fn rebuild_group(
        &self,
        job: &Job,
        group: &Arc<Group>,
        late: &mut Late,
        left_members: &mut BTreeSet<u16>,
    ) -> Result<()> {
        let stale = self.stale_columns(group);
        let attachments =
            |place: ZoneRef| self.space.member(place.device).map(|m| m.attachments.load(Ordering::Acquire));
        let began_with: Vec<(ZoneRef, Option<u64>)> =
            group.columns.read().iter().map(|c| (c.place, attachments(c.place))).collect();
        let mut row = 0;
        while group.class != Class::Log && row < group.zone_rows() {
            if job.request.load(Ordering::Acquire) != 0 {
                return Ok(());
            }
            row = self.rebuild_piece(job, group, &stale, row, late)?;
        }
        let mut left = Vec::new();
        {
            let _io = group.io.write();
            if self.space.group(group.id).is_err() {
                // emptied and dissolved meanwhile, its zones are given back
                return Ok(());
            }
            self.records.flush();
            for (i, c) in group.columns.write().iter_mut().enumerate() {
                // a member that left and came back meanwhile missed pieces
                let stayed = began_with.get(i) == Some(&(c.place, attachments(c.place)));
                if stale.contains(&i) && stayed && self.space.member(c.place.device).is_some_and(|m| m.in_service()) {
                    c.stale = false;
                    left.extend(c.previous.take());
                }
            }
            group.changed.store(true, Ordering::Release);
        }
        // A commit under way may have stored the columns as they were: its root still takes them from there. The group open
        // now is the first that is sure to store the change. (Not under the group's lock: who holds the gate may want it.)
        let txg = self.gate.open_txg();
        for place in left {
            left_members.insert(place.device);
            self.space.return_zone(txg, place);
        }
        Ok(())
    }

    /// Rebuilds the rows in use from `row` on, as many as one lock is held for. Returns the row to go on with.
    pub(super) fn rebuild_piece(
        &self,
        job: &Job,
        group: &Group,
        stale: &[usize],
        row: u32,
        late: &mut Late,
    ) -> Result<u32> {
        let began = self.env.clock.monotonic_ns();
        let (mut end, mut bytes) = ((row + PIECE_ROWS).min(group.zone_rows()), 0);
        {
            let _io = group.io.write();
            // under each lock anew: meanwhile the group may have been dissolved, and others may have its zones
            // (freed rows, too: somebody may still be reading them, and takes the column for whole when it is unmarked)
            let runs = self.space.with_rows(group, |r| r.busy.set_runs(row, end))?;
            'piece: for run in runs {
                let mut start = run.start;
                while start < run.end {
                    if bytes > 0 && self.env.clock.monotonic_ns().saturating_sub(began) >= LOCK_NS {
                        end = start;
                        break 'piece;
                    }
                    let count = (run.end - start).min(RUN_ROWS_MAX);
                    self.rebuild_run(job, group, stale, start, count, late)?;
                    bytes += u64::from(count) * BLOCK_SIZE as u64;
                    start += count;
                }
            }
        }
        job.done.fetch_add(bytes, Ordering::Relaxed);
        self.pace(began, bytes);
        Ok(end)
    }

    /// Members whose last stale column is done are online; those that have no column left are out, also when they failed
    /// before their replacement was complete (`left`).
    fn finish_members(&self, left: &BTreeSet<u16>) -> Result<()> {
        let mut stale_on: BTreeSet<u16> = BTreeSet::new();
        let mut used: BTreeSet<u16> = BTreeSet::new();
        for group in self.space.groups() {
            for c in group.columns.read().iter() {
                if c.stale {
                    stale_on.insert(c.place.device);
                }
                used.extend(std::iter::once(c.place.device).chain(c.previous.map(|p| p.device)));
            }
        }
        let mut changed = false;
        let mut gone = Vec::new();
        for member in self.space.members() {
            match member.state() {
                state @ MemberState::Rebuilding if member.in_service() && !stale_on.contains(&member.index) => {
                    changed |= member.change_state(state, MemberState::Online, "");
                }
                state @ MemberState::Leaving if !used.contains(&member.index) => {
                    let device = member.device();
                    if member.change_state(state, MemberState::Removed, "replaced") {
                        gone.push(device);
                    }
                    changed = true;
                }
                MemberState::Faulted | MemberState::Offline
                    if left.contains(&member.index) && !used.contains(&member.index) =>
                {
                    member.set_state(MemberState::Removed, "replaced");
                    changed = true;
                }
                _ => {}
            }
        }
        if changed {
            self.commit()?;
            for device in gone.into_iter().flatten() {
                // so that it is not taken for a member again
                if let Err(e) = wipe(&device) {
                    tracing::warn!("the label of a replaced device could not be removed: {e}");
                }
            }
            for member in self.space.members().iter().filter(|m| m.state() == MemberState::Removed) {
                member.set_device(None);
            }
        }
        Ok(())
    }
}
