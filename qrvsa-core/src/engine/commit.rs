//! The commit of a transaction group. `docs/durability.md` goes through every step with "crash here".
//!
//! 1. Close the group: freeze items and dirty data, mark the log. New transactions go to the next group.
//! 2. Write dirty data and tree nodes of every dataset to free rows.
//! 3. Write the pool tree: dataset roots, groups, bitmaps, members.
//! 4. Flush every device in service.
//! 5. Write the uberblock to every device in service, with forced unit access.
//! 6. Publish: readers see the new roots, rows freed one group earlier become available, the log before the mark of the
//!    previous group may be overwritten.

use crate::waits;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::buf::{AlignedBuf, BufSlice};
use crate::dataset::Dataset;
use crate::dataset::handle::encode_root;
use crate::device::{IoBatch, Outcome, Request};
use crate::engine::Pool;
use crate::error::Result;
use crate::fail;
use crate::item::Value;
use crate::pool::format::entries::{CHUNK_ROWS, Class, bitmap_key, group_key, kind};
use crate::pool::format::layout;
use crate::pool::format::uberblock::{LogStart, UberMember, Uberblock};
use crate::record::store::WRITE_DEADLINE;
use crate::tree::{self, Key, Root};

/// Owner number of the pool tree's nodes.
pub(crate) const POOL_TREE: u64 = 0;
/// Extents of deleted objects freed in one transaction group. Few in tests, so that what takes many groups is tested.
const REAP_EXTENTS_MAX: usize = if cfg!(test) { 1000 } else { 100_000 };

impl Pool {
    /// Commits until the group `wanted` is durable.
    ///
    /// # Errors
    /// `Suspended` when the pool cannot be written any more.
    pub fn commit_up_to(&self, wanted: u64) -> Result<()> {
        while self.committed.load(Ordering::Acquire) < wanted {
            waits::announce();
            let mut state = self.commit_state.lock();
            if self.committed.load(Ordering::Acquire) >= wanted {
                return Ok(());
            }
            self.commit_locked(&mut state)?;
        }
        Ok(())
    }

    /// Commits the open group.
    ///
    /// # Errors
    /// As [`Pool::commit_up_to`].
    pub fn commit(&self) -> Result<()> {
        let mut state = self.commit_state.lock();
        self.commit_locked(&mut state)
    }

    fn commit_locked(&self, state: &mut super::pool::CommitState) -> Result<()> {
        use crate::dataset::Host;
        self.check_writable()?;
        // a broken invariant stops the pool's writing like any other error: it must not leave a half-closed group behind
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.commit_steps(state, false)));
        match steps.unwrap_or_else(|_| fail!(Suspended, "an invariant was broken, the log tells which")) {
            Ok(()) => Ok(()),
            Err(e) => {
                self.suspend(&e);
                fail!(Suspended, "pool '{}' stopped writing: {e}", self.name)
            }
        }
    }

    /// The commit that ends the pool's service: marks it clean. What is not in it is refused.
    ///
    /// # Errors
    /// As [`Pool::commit_up_to`].
    pub(crate) fn commit_clean(&self) -> Result<()> {
        let mut state = self.commit_state.lock();
        self.commit_steps(&mut state, true)
    }

    fn commit_steps(&self, state: &mut super::pool::CommitState, clean: bool) -> Result<()> {
        // 1. close
        let (txg, (datasets, mark)) = self.gate.close(|txg| {
            // nobody holds the group: who comes later sees that it is too late
            if clean {
                self.end_writing();
            }
            let datasets = self.every_dataset();
            datasets.iter().for_each(|d| d.items.freeze());
            // looked at while nobody holds the group: later groups have no changes of a dataset that is destroyed now
            let datasets: Vec<_> = datasets.into_iter().map(|d| (d.clone(), d.destroying())).collect();
            self.reset_open_items();
            self.whole.store(0, Ordering::Relaxed);
            (datasets, self.log.mark(txg))
        });
        self.meta.set_txg(txg);
        self.system.set_txg(txg);
        // 2. data and dataset trees
        let mut roots: Vec<(Arc<Dataset>, Root)> = Vec::new();
        let mut removed = Vec::new();
        for (dataset, destroying) in datasets {
            let root = self.sync_dataset(txg, &dataset, destroying)?;
            // nothing begins on it any more: what is empty now stays so
            if destroying && root == Root::EMPTY {
                self.datasets.write().remove(&dataset.id);
                self.claims.lock().remove(&dataset.id);
                removed.push(dataset.id);
            }
            roots.push((dataset, root));
        }
        self.note_damage();
        self.prune_damage();
        // 3. pool tree
        self.space.dissolve_idle();
        self.space.keep_system_room();
        let batch = self.pool_batch(&roots, removed)?;
        let old = self.root.load_full();
        let root = tree::apply(&*self.system, &old, txg, POOL_TREE, batch.into_iter())?;
        self.meta.check_frees()?;
        self.system.check_frees()?;
        if state.replaying.is_some() {
            // the root takes in what a part of the log says: who has the root has that part, too
            self.log.spread_replayed();
        }
        // 4. flush
        self.records.flush();
        for group in self.space.groups() {
            self.records.check_writable(&group)?;
        }
        // 5. uberblock
        let log = match (&state.replaying, clean) {
            (Some(start), _) => *start,
            (None, _) => mark.start,
        };
        self.write_uberblock(txg, state.generation, &root, log, clean)?;
        // 6. publish
        self.root.store(Arc::new(root));
        self.tree_nodes.store(roots.iter().map(|(_, root)| root.nodes).sum(), Ordering::Relaxed);
        for (dataset, root) in roots {
            dataset.items.publish(root);
            dataset.trim_pending(txg);
            dataset.objects.committed(txg);
        }
        self.committed.store(txg, Ordering::Release);
        self.log.committed(&mark);
        if state.replaying.is_none() {
            self.log.reclaim(state.previous_mark);
            state.previous_mark = mark.position;
        }
        state.last_commit_ns = self.env.clock.monotonic_ns();
        self.space.commit_done(txg)?;
        self.discard_free_zones();
        self.update_claims()
    }

    /// Lets devices that grow on a filesystem give back the space of zones that are free for good: the root that no longer
    /// refers to them is on the devices. Nothing depends on success.
    fn discard_free_zones(&self) {
        const AT_ONCE: usize = 64;
        let member = |device: u16| self.space.members().get(usize::from(device)).and_then(|m| m.device());
        let grows = |device: u16| member(device).is_some_and(|d| d.host_space().is_some());
        let zones = self.space.take_discardable(AT_ONCE, grows);
        if zones.is_empty() {
            return;
        }
        let mut batch = crate::device::IoBatch::new();
        let mut waited = Vec::new();
        for place in &zones {
            let Some(device) = member(place.device) else { continue };
            let offset = self.space.offset(*place, 0);
            batch.push(&device, crate::device::Request::Discard { offset, len: 1 << self.space.zone_shift });
            waited.push(*place);
        }
        let outcomes = batch.wait(crate::record::store::WRITE_DEADLINE);
        // A discard that is still under way must not meet what is written next: its zone stays out of use.
        let late = |place: &_| {
            let at = waited.iter().position(|w| w == place);
            matches!(at.and_then(|i| outcomes.get(i)), Some(crate::device::Outcome::TimedOut))
        };
        self.space.discarded(zones.iter().filter(|p| !late(p)).copied().collect());
    }

    fn sync_dataset(&self, txg: u64, dataset: &Arc<Dataset>, destroying: bool) -> Result<Root> {
        dataset.objects.sync_txg(txg, REAP_EXTENTS_MAX)?;
        if destroying {
            dataset.objects.reap_everything(txg, REAP_EXTENTS_MAX)?;
        }
        let view = dataset.items.view();
        let syncing = view.syncing.as_ref().expect("frozen at the start of this commit");
        tree::apply(&*self.meta, &view.root, txg, dataset.id, syncing.batch())
    }

    /// Everything the pool tree has to take in.
    fn pool_batch(&self, roots: &[(Arc<Dataset>, Root)], removed: Vec<u64>) -> Result<BTreeMap<Key, Option<Value>>> {
        let mut batch: BTreeMap<Key, Option<Value>> = BTreeMap::new();
        let mut put = |key: Key, value: Option<Vec<u8>>| batch.insert(key, value.map(Arc::from));
        for (dataset, root) in roots {
            let bytes = dataset.entry(root).encode();
            let mut stored = dataset.stored.lock();
            if *stored != bytes {
                put(Key::new(0, kind::DATASET, dataset.id), Some(bytes.clone()));
                *stored = bytes;
            }
        }
        for id in removed {
            put(Key::new(0, kind::DATASET, id), None);
        }
        for member in self.space.members() {
            if member.changed.swap(false, Ordering::AcqRel) {
                put(Key::new(0, kind::DEVICE, u64::from(member.index)), Some(member.entry().encode()));
            }
        }
        for group in self.space.groups() {
            if !matches!(group.class, Class::Data | Class::Meta) || !group.changed.swap(false, Ordering::AcqRel) {
                continue;
            }
            let mut w = crate::bytes::Writer::new();
            group.entry().encode(&mut w);
            put(group_key(group.id), Some(w.finish()));
            let chunks = self.space.with_rows(&group, |rows| {
                let dirty = std::mem::take(&mut rows.dirty_chunks);
                dirty.into_iter().map(|c| (c, rows.live.chunk_bytes(c, CHUNK_ROWS))).collect::<Vec<_>>()
            })?;
            for (chunk, bytes) in chunks {
                let value = bytes.iter().any(|b| *b != 0).then_some(bytes);
                put(bitmap_key(group.id, chunk), value);
            }
        }
        let chunks = self.space.zone_rows().div_ceil(CHUNK_ROWS);
        for id in self.space.take_deleted_groups() {
            put(group_key(id), None);
            for chunk in 0..chunks {
                put(bitmap_key(id, chunk), None);
            }
        }
        for (key, value) in std::mem::take(&mut *self.pool_items.lock()) {
            put(key, value);
        }
        Ok(batch)
    }

    /// Writes the uberblock to every member in service. Fails when too few took it.
    pub(crate) fn write_uberblock(
        &self,
        txg: u64,
        generation: u64,
        root: &Root,
        log: LogStart,
        clean: bool,
    ) -> Result<()> {
        let members = self.space.members();
        let listed: Vec<UberMember> =
            members.iter().map(|m| UberMember { index: m.index, device_id: m.device_id, state: m.list() }).collect();
        let groups_of = |class| {
            let groups = self.space.groups();
            groups.iter().filter(|g| g.class == class).map(|g| g.entry()).collect::<Vec<_>>()
        };
        let mut block = Uberblock {
            pool_id: self.id,
            device_id: 0,
            txg,
            generation,
            time_ns: self.env.clock.wall_ns(),
            root: encode_root(root),
            members: listed,
            system_groups: groups_of(Class::System),
            log_groups: self.log.segments().iter().map(|g| g.entry()).collect(),
            log,
            clean,
        };
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        for member in &members {
            let Some(device) = member.device() else { continue };
            block.device_id = member.device_id;
            let bytes = AlignedBuf::from_slice(&block.encode()?);
            let slices = vec![BufSlice::whole(Arc::new(bytes))];
            batch.push(&device, Request::Write { offset: layout::slot_offset(txg), slices, durable: true });
            owners.push(member.clone());
        }
        let mut written = 0;
        let tried = owners.len();
        for (outcome, member) in batch.wait(WRITE_DEADLINE).into_iter().zip(owners) {
            let reason = match outcome {
                Outcome::Done(_) => {
                    written += 1;
                    continue;
                }
                Outcome::Failed(error) => format!("uberblock write failed: {error}"),
                Outcome::TimedOut => "the uberblock was not taken in time".to_owned(),
            };
            member.count(&member.write_errors);
            member.fail(&reason);
        }
        let present =
            members.iter().filter(|m| m.state() != crate::pool::format::entries::MemberState::Removed).count();
        let need = (usize::from(self.space.geometry.parity) + 1)
            .min(present.saturating_sub(usize::from(self.space.geometry.parity)));
        if written < need.max(1) {
            fail!(Suspended, "only {written} of {tried} devices took the uberblock, {need} are needed");
        }
        members.iter().zip(&block.members).for_each(|(member, listed)| member.listed_as(listed.state));
        for group in self.space.groups() {
            self.records.check_writable(&group)?;
        }
        Ok(())
    }
}
