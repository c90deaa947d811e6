//! Bringing a pool back: find its members, choose the newest uberblock whose root verifies, replay the intent log.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::open::{Candidate, write_label};
use super::pool::{Options, Parts, Pool};
use crate::buf::{AlignedBuf, BufSlice};
use crate::dataset::items::DatasetItems;
use crate::dataset::{Dataset, Host};
use crate::device::{IoBatch, Outcome, Request};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::object::{Items, Objects};
use crate::pool::bitmap::Bitmap;
use crate::pool::format::entries::{
    CHUNK_ROWS, Class, ColumnEntry, DatasetEntry, DeviceEntry, GroupEntry, MemberState, bitmap_key, kind,
};
use crate::pool::format::layout;
use crate::pool::format::uberblock::Uberblock;
use crate::pool::group::Group;
use crate::pool::member::Member;
use crate::pool::space::{Geometry, NODE_ROWS, Space};
use crate::record::pointer::Pointer;
use crate::record::store::WRITE_DEADLINE;
use crate::tree::{self, Key, Place, Root, Step, Visitor};
use crate::txg::entry::{Action, Entry};

/// Pools found on a set of devices: id, name, and how many members were seen.
pub fn group_by_pool(candidates: Vec<Candidate>) -> BTreeMap<u128, Vec<Candidate>> {
    let mut pools: BTreeMap<u128, Vec<Candidate>> = BTreeMap::new();
    for c in candidates {
        pools.entry(c.label.pool_id).or_default().push(c);
    }
    pools
}

/// Leaves one candidate per member, or says which are clones of each other.
fn refuse_clones(candidates: Vec<Candidate>, warnings: &mut Vec<String>) -> Result<Vec<Candidate>> {
    let mut by_member: BTreeMap<u128, Vec<Candidate>> = BTreeMap::new();
    for c in candidates {
        by_member.entry(c.label.device_id).or_default().push(c);
    }
    let mut kept = Vec::new();
    for (_, mut same) in by_member {
        same.sort_by_key(|c| std::cmp::Reverse(c.uberblocks.first().map(|u| (u.generation, u.txg))));
        let newest = |c: &Candidate| c.uberblocks.first().map(|u| (u.generation, u.txg));
        if same.len() > 1 && newest(&same[0]) == newest(&same[1]) {
            fail!(
                Exists,
                "{} and {} are copies of the same member; take one of them away and import again",
                same[0].path().display(),
                same[1].path().display()
            );
        }
        let mut rest = same.split_off(1);
        for old in rest.drain(..) {
            warnings.push(format!(
                "{} is an older copy of {} and was not used",
                old.path().display(),
                same[0].path().display()
            ));
        }
        kept.append(&mut same);
    }
    Ok(kept)
}

/// Warns of devices with a history of their own: they were used without any of those that are used now, so what was
/// changed on them meanwhile is not in the state that `chosen` names.
fn note_diverged(candidates: &[Candidate], chosen: &Uberblock, warnings: &mut Vec<String>) {
    let serving =
        |u: &Uberblock| -> Vec<u128> { u.members.iter().filter(|m| m.in_service()).map(|m| m.device_id).collect() };
    let used = serving(chosen);
    // the states that the devices in use have been through, as far as they remember
    let is_ours = |u: &Uberblock| {
        let mut kept = candidates.iter().filter(|c| used.contains(&c.label.device_id)).flat_map(|c| &c.uberblocks);
        kept.any(|o| (o.generation, o.txg) == (u.generation, u.txg) && o.root == u.root)
    };
    for candidate in candidates.iter().filter(|c| !used.contains(&c.label.device_id)) {
        let Some(last) = candidate.uberblocks.first() else { continue };
        let apart = !serving(last).is_empty() && serving(last).iter().all(|device| !used.contains(device));
        if apart && !is_ours(last) {
            warnings.push(format!(
                "{} was used apart from the devices in use now and has changes of its own (up to transaction group {}), \
                 which are not in this pool; to see them, export the pool and import it from the other devices alone, \
                 before they are brought back or replaced",
                candidate.path().display(),
                last.txg
            ));
        }
    }
}

impl Pool {
    /// Imports a pool from the candidates that carry its label.
    ///
    /// # Errors
    /// `Degraded` when too few members are there, `Corrupt` when no root verifies, `Exists` for clones.
    pub fn import(env: Environment, options: Options, candidates: Vec<Candidate>) -> Result<Arc<Pool>> {
        let mut warnings = Vec::new();
        let candidates = refuse_clones(candidates, &mut warnings)?;
        for c in candidates.iter().filter(|c| c.unreadable_slots != 0) {
            warnings.push(format!(
                "{} of {} uberblocks of {} cannot be read",
                c.unreadable_slots.count_ones(),
                layout::RING_SLOTS,
                c.path().display()
            ));
        }
        let mut choices: Vec<Uberblock> =
            candidates.iter().flat_map(|c| c.uberblocks.iter().take(3).cloned()).collect();
        choices.sort_by_key(|u| std::cmp::Reverse((u.generation, u.txg)));
        choices.dedup_by_key(|u| (u.generation, u.txg));
        let Some(newest) = choices.first() else {
            fail!(Corrupt, "no device of the pool has a valid uberblock");
        };
        let newest_txg = newest.txg;
        // a newer one would be on all devices that this one lists; the pool must not be written over what it refers to
        let next = 1 << (newest_txg.wrapping_add(1) % layout::RING_SLOTS);
        let is_listed =
            |c: &&Candidate| newest.members.iter().any(|m| m.device_id == c.label.device_id && m.in_service());
        let mut listed = candidates.iter().filter(is_listed).peekable();
        if !options.read_only && listed.peek().is_some() && listed.all(|c| c.unreadable_slots & next != 0) {
            fail!(
                Io,
                "the newest state of pool '{}' may lie where no device can be read (behind transaction group {newest_txg}): import \
                 again when they answer, or copy them as far as they can be read and import the copies",
                candidates[0].label.pool_name
            );
        }
        let mut first_error = None;
        for choice in choices.iter().take(2) {
            match Self::import_at(&env, &options, &candidates, choice, &mut warnings) {
                Ok(pool) => {
                    // from here on the pool is written to: no older state is good any more, an error ends the import
                    if !pool.options.read_only
                        && let Err(e) = pool.become_writable(choice, &candidates)
                    {
                        // the pool and its datasets hold each other, and the devices
                        pool.abandon();
                        return Err(e);
                    }
                    if choice.txg != newest_txg {
                        let text = format!(
                            "the newest state (transaction group {newest_txg}) could not be read; the pool went back to {}",
                            choice.txg
                        );
                        tracing::error!(pool = %pool.name, "{text}");
                        warnings.push(text);
                    }
                    note_diverged(&candidates, choice, &mut warnings);
                    warnings.iter().for_each(|w| tracing::warn!(pool = %pool.name, "{w}"));
                    pool.warnings.lock().append(&mut warnings);
                    return Ok(pool);
                }
                Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Io) => {
                    first_error.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(first_error.expect("there was at least one choice"))
    }

    /// The pool as an uberblock describes it; nothing is written.
    fn import_at(
        env: &Environment,
        options: &Options,
        candidates: &[Candidate],
        uber: &Uberblock,
        warnings: &mut Vec<String>,
    ) -> Result<Arc<Pool>> {
        let label = &candidates[0].label;
        let geometry = Geometry::new(u32::from(label.data), u32::from(label.parity))?;
        let mut options = options.clone();
        if !candidates.iter().all(|c| c.label.writable()) && !options.read_only {
            options.read_only = true;
            warnings.push("the pool uses features that this version can only read: it is read-only".to_owned());
        }
        // members: present ones from their labels, with the state the uberblock gives them
        let mut members = Vec::new();
        let mut missing = 0;
        for (position, m) in uber.members.iter().enumerate() {
            if usize::from(m.index) != position {
                fail!(Corrupt, "the uberblock lists member {} at place {position}", m.index);
            }
            let candidate = candidates.iter().find(|c| c.label.device_id == m.device_id);
            let mut entry = DeviceEntry {
                index: m.index,
                device_id: m.device_id,
                state: m.state,
                size_bytes: candidate.map_or(0, |c| c.label.size_bytes),
                read_errors: 0,
                write_errors: 0,
                checksum_errors: 0,
                repaired: 0,
                path: String::new(),
                message: String::new(),
            };
            let behind = candidate.is_some_and(|c| {
                c.uberblocks.first().is_none_or(|u| u.txg + 1 < uber.txg || u.generation > uber.generation)
            });
            if m.state == MemberState::Removed {
                members.push((entry, None));
                continue;
            }
            let message = match candidate {
                Some(c) if m.in_service() && !behind => {
                    members.push((entry, Some(c.device.clone())));
                    continue;
                }
                Some(c) => {
                    entry.path = c.path().display().to_string();
                    if c.unreadable_slots != 0 {
                        "it missed transaction groups, or its uberblocks of them cannot be read; bring it back with \
                         'pool online', it will be rebuilt"
                    } else {
                        "it missed transaction groups; bring it back with 'pool online', it will be rebuilt"
                    }
                }
                None => "not found at import",
            };
            if m.state == MemberState::Leaving {
                // nothing but what it still had to give to another is missing, and that is no source any more
                entry.state = MemberState::Removed;
                "not here, or out of date, before its replacement was complete".clone_into(&mut entry.message);
            } else {
                missing += 1;
                if m.in_service() {
                    entry.state = MemberState::Faulted;
                    message.clone_into(&mut entry.message);
                }
            }
            members.push((entry, None));
        }
        let listed = members.iter().filter(|(entry, _)| entry.state != MemberState::Removed).count();
        if missing > usize::from(geometry.parity) && listed.saturating_sub(missing) < geometry.columns() {
            fail!(
                Degraded,
                "pool '{}': {missing} of {listed} devices are missing or out of date, {geometry} survives only {}; \
                 connect more of them and import again",
                label.pool_name,
                geometry.parity
            );
        }
        let zone_shift = label.zone_shift;
        let zone_rows = 1u32 << (zone_shift - 12);
        let own: Vec<Group> =
            uber.system_groups.iter().chain(&uber.log_groups).map(|g| Group::from_entry(g, zone_rows)).collect();
        // a first space with just the pool's own groups, enough to read the pool tree
        let first_members: Vec<Arc<Member>> = members
            .iter()
            .map(|(entry, device)| {
                let mut entry = entry.clone();
                // the size of an absent member stands in the tree; until then the zones that are named exist
                if entry.size_bytes == 0 {
                    let places = own.iter().flat_map(|g| g.columns.read().clone());
                    let places = places.flat_map(|c| std::iter::once(c.place).chain(c.previous));
                    let end = places.filter(|p| p.device == entry.index).map(|p| u64::from(p.zone) + 1).max();
                    let zones = end.unwrap_or(0).min(u64::from(layout::zone_count(1 << 50, zone_shift)));
                    entry.size_bytes = layout::DATA_START + layout::TAIL_BYTES + (zones << zone_shift);
                }
                Arc::new(Member::new(&entry, device.clone()))
            })
            .collect();
        let first = Arc::new(Space::new(geometry, zone_shift, first_members, own)?);
        for g in uber.system_groups.iter().chain(&uber.log_groups) {
            let serves = |device| first.member(device).is_some_and(|m| m.in_service());
            // as for writes: what only a previous place has whole is not here without it
            let here = |c: &&ColumnEntry| match c.previous {
                Some(previous) => serves(previous.device) || (!c.stale && serves(c.place.device)),
                None => serves(c.place.device),
            };
            let out = g.columns.len() - g.columns.iter().filter(here).count();
            if out > usize::from(g.parity) {
                fail!(
                    Degraded,
                    "pool '{}': {missing} of {listed} devices are missing or out of date, and {out} of them hold the same \
                     metadata; connect more of them and import again",
                    label.pool_name
                );
            }
        }
        let (root, _) = Root::decode(&uber.root)?;
        let reader = crate::dataset::nodes::Nodes::new(
            Arc::new(crate::record::store::RecordStore::new(first.clone(), 16 << 20)),
            Class::System,
            16 << 20,
        );
        let mut groups: Vec<Group> = Vec::new();
        let mut datasets: Vec<DatasetEntry> = Vec::new();
        let mut damaged: Vec<((u64, u64), String)> = Vec::new();
        let mut jobs: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut blobs: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut cursor = tree::Cursor::new(&reader, &root, Key::MIN, Key::MAX);
        while let Some((key, value)) = cursor.next()? {
            match key.kind {
                kind::DEVICE => {
                    let stored = DeviceEntry::decode(&value)?;
                    if let Some((entry, device)) = members.get_mut(usize::from(stored.index)) {
                        entry.size_bytes = stored.size_bytes;
                        entry.read_errors = stored.read_errors;
                        entry.write_errors = stored.write_errors;
                        entry.checksum_errors = stored.checksum_errors;
                        entry.repaired = stored.repaired;
                        if entry.path.is_empty() {
                            entry.path = stored.path;
                        }
                        if entry.message.is_empty() && device.is_none() {
                            entry.message = stored.message;
                        }
                    }
                }
                kind::DATASET => datasets.push(DatasetEntry::decode(&value)?),
                kind::GROUP => {
                    let entry = GroupEntry::decode(&mut crate::bytes::Reader::new(&value, "block group"))?;
                    groups.push(Group::from_entry(&entry, zone_rows));
                }
                kind::DAMAGE => {
                    damaged.push(((key.object, key.offset), String::from_utf8_lossy(&value).into_owned()));
                }
                kind::JOB => jobs.push((key.offset, value.to_vec())),
                kind::BLOB => blobs.push((key.offset, value.to_vec())),
                _ => {}
            }
        }
        for g in uber.system_groups.iter().chain(&uber.log_groups) {
            groups.push(Group::from_entry(g, zone_rows));
        }
        let final_members: Vec<Arc<Member>> =
            members.iter().map(|(entry, device)| Arc::new(Member::new(entry, device.clone()))).collect();
        let space = Arc::new(Space::new(geometry, zone_shift, final_members, groups)?);
        install_system_rows(&space, &reader, &root)?;
        let mut log_segments = Vec::new();
        for g in &uber.log_groups {
            log_segments.push(space.group(g.id)?);
        }
        let pool = Arc::new(Pool::assemble(Parts {
            name: label.pool_name.clone(),
            id: label.pool_id,
            created_ns: label.created_ns,
            env: env.clone(),
            options,
            space,
            log_segments,
            log_start: uber.log,
            txg: uber.txg,
            generation: uber.generation + 1,
            root,
        }));
        if !pool.options.read_only {
            // before anything is written: what cannot be written later must not begin
            for group in pool.space.groups() {
                if let Err(e) = pool.records.check_writable(&group) {
                    fail!(
                        Degraded,
                        "pool '{}': too few of its devices are here: {e}; connect more of them",
                        label.pool_name
                    );
                }
            }
        }
        pool.install_bitmap_loader();
        pool.damaged.lock().extend(damaged);
        pool.jobs.restore(jobs);
        pool.blobs.restore(&blobs)?;
        for entry in &datasets {
            if let Err(e) = pool.attach_dataset(entry) {
                pool.abandon();
                return Err(e);
            }
        }
        pool.update_claims()?;
        Ok(pool)
    }

    /// Makes the new generation durable, replays the log, and commits.
    fn become_writable(self: &Arc<Self>, uber: &Uberblock, candidates: &[Candidate]) -> Result<()> {
        self.complete_uberblock(uber, candidates)?;
        {
            // the import counter first: nothing is written before it is durable
            let mut state = self.commit_state.lock();
            let (txg, ()) = self.gate.close(|_| ());
            self.write_uberblock(txg, state.generation, &self.root.load(), uber.log, false)?;
            self.committed.store(txg, std::sync::atomic::Ordering::Release);
            state.replaying = Some(uber.log);
        }
        let mut entries = 0u64;
        self.replaying.store(true, std::sync::atomic::Ordering::Release);
        let replayed = self.log.replay(uber.txg, |bytes| {
            let entry = Entry::decode(bytes)?;
            if entry.txg > uber.log.base_txg {
                entries += 1;
                self.replay_entry(entry)?;
            }
            if self.dirty_bytes() >= self.options.dirty_bytes_max() {
                self.commit()?;
            }
            self.make_room_for_rests(true)
        })?;
        if replayed.blocks > 0 {
            tracing::info!(pool = %self.name, blocks = replayed.blocks, entries, "intent log replayed");
        }
        if let Some(missing) = replayed.missing {
            let text = format!(
                "no device has the commit of transaction group {missing}, which was durable once: devices lost what they had \
                 acknowledged; the pool is as of group {}, and newer changes are gone",
                uber.txg
            );
            tracing::error!(pool = %self.name, "{text}");
            self.warnings.lock().push(text);
        }
        for dataset in self.datasets() {
            dataset.resume_orphans()?;
        }
        {
            let mut state = self.commit_state.lock();
            self.log.restart(state.generation);
            state.previous_mark = self.log.mark(0).position;
            state.replaying = None;
        }
        self.commit()?;
        self.replaying.store(false, std::sync::atomic::Ordering::Release);
        self.rejoin(candidates)?;
        for c in candidates.iter().filter(|c| c.damaged_labels > 0) {
            let Some(member) = self.space.members().into_iter().find(|m| m.device_id == c.label.device_id) else {
                continue;
            };
            if !member.in_service() {
                continue;
            }
            let (n, path) = (c.damaged_labels, c.path().display());
            // one of its labels can be read, or it would be no candidate: the others can wait for the next import
            self.warnings.lock().push(match write_label(&c.device, &c.label) {
                Ok(()) => format!("{n} damaged label(s) of {path} rewritten"),
                Err(e) => {
                    member.count(&member.write_errors);
                    format!("{n} damaged label(s) of {path} could not be rewritten: {e}; 'pool replace' the device if that stays so")
                }
            });
        }
        Ok(())
    }

    /// Gives the uberblock to members in service that lack it. It lists them, so they hold all it refers to. Without this, a
    /// crash in the next one could leave members two groups apart, and that is the sign of one that missed something.
    fn complete_uberblock(&self, uber: &Uberblock, candidates: &[Candidate]) -> Result<()> {
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        for member in self.space.members() {
            let Some(device) = member.device() else { continue };
            let has_it = |c: &Candidate| {
                c.uberblocks.first().is_some_and(|u| (u.generation, u.txg) == (uber.generation, uber.txg))
            };
            if candidates.iter().any(|c| c.label.device_id == member.device_id && has_it(c)) {
                continue;
            }
            let copy = Uberblock { device_id: member.device_id, ..uber.clone() };
            let slices = vec![BufSlice::whole(Arc::new(AlignedBuf::from_slice(&copy.encode()?)))];
            batch.push(&device, Request::Write { offset: layout::slot_offset(uber.txg), slices, durable: true });
            owners.push(member);
        }
        for (outcome, member) in batch.wait(WRITE_DEADLINE).into_iter().zip(owners) {
            let reason = match outcome {
                Outcome::Done(_) => continue,
                Outcome::Failed(error) => format!("uberblock write failed: {error}"),
                Outcome::TimedOut => "the uberblock was not taken in time".to_owned(),
            };
            member.count(&member.write_errors);
            member.fail(&reason);
        }
        Ok(())
    }

    /// Members that are here but missed something come back, to be rebuilt; all but those the administrator took out, and
    /// those that another took the place of.
    fn rejoin(&self, candidates: &[Candidate]) -> Result<()> {
        let mut any = false;
        for member in self.space.members() {
            if member.state() != MemberState::Faulted {
                continue;
            }
            let Some(c) = candidates.iter().find(|c| c.label.device_id == member.device_id) else { continue };
            any = true;
            if self.gave_way(member.index) {
                member.set_state(MemberState::Removed, "failed while it was being replaced");
                continue;
            }
            tracing::warn!(pool = %self.name, device = %c.path().display(), "was absent or failed; it is rebuilt before it counts");
            self.mark_stale(member.index);
            member.set_device(Some(c.device.clone()));
            member.set_state(MemberState::Rebuilding, "was absent or failed; being rebuilt");
        }
        if any { self.commit() } else { Ok(()) }
    }

    fn replay_entry(&self, entry: Entry) -> Result<()> {
        let Some(dataset) = self.datasets.read().get(&entry.dataset).cloned() else {
            // a dataset destroyed since: its destruction is in the root
            return Ok(());
        };
        let hold = self.gate.hold();
        let txg = hold.txg();
        match entry.action {
            Action::Items(changes) => {
                let open = dataset.items.open();
                for change in changes {
                    dataset.note_object(change.key.object);
                    let Some(value) = change.value else {
                        self.account_items(open.delete(change.key));
                        continue;
                    };
                    let value = if change.keep_content_fields {
                        let old = dataset.items.get(change.key)?;
                        self.merge_content_fields(old.as_deref(), &value)
                    } else {
                        value
                    };
                    self.account_items(open.put(change.key, Arc::from(value)));
                }
            }
            Action::Write { object, offset, data } => {
                dataset.note_object(object.id);
                dataset.objects.write(txg, object, offset, &data)?;
            }
            Action::Punch { object, start, end } => dataset.objects.punch(txg, object, start..end)?,
        }
        Ok(())
    }

    /// Bitmaps come from the committed pool tree.
    pub(crate) fn install_bitmap_loader(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        let named = pool.clone();
        self.records.set_describe(move |dataset, object| match named.upgrade() {
            Some(pool) => pool.describe_object(dataset, object),
            None => format!("object {object} of dataset {dataset}"),
        });
        self.space.set_bitmap_loader(move |group| {
            let Some(pool) = pool.upgrade() else { fail!(Suspended, "the pool is closed") };
            let mut bitmap = Bitmap::new(group.zone_rows());
            // a rebuild loads bitmaps while commits go on
            let _pin = pool.space.epoch.pin();
            let root = pool.root.load_full();
            for chunk in 0..group.chunks() {
                if let Some(bytes) = tree::get(&*pool.system, &root, bitmap_key(group.id, chunk))?
                    && !bitmap.load_chunk(chunk, CHUNK_ROWS, &bytes)
                {
                    fail!(Corrupt, "the bitmap of block group {} does not fit it", group.id);
                }
            }
            if bitmap.count_ones() != group.used_rows() {
                fail!(
                    Corrupt,
                    "block group {}: {} rows are marked, its entry says {}",
                    group.id,
                    bitmap.count_ones(),
                    group.used_rows()
                );
            }
            Ok(bitmap)
        });
    }

    /// Puts a dataset in place.
    pub(crate) fn attach_dataset(self: &Arc<Self>, entry: &DatasetEntry) -> Result<Arc<Dataset>> {
        let (root, _) = Root::decode(&entry.root)?;
        self.tree_nodes.fetch_add(root.nodes, std::sync::atomic::Ordering::Relaxed);
        let items = Arc::new(DatasetItems::new(root, self.meta.clone(), self.space.epoch.clone()));
        let io = Arc::new(super::pool_io::PoolIo::new(self, entry.content, entry.reserved));
        let objects = Objects::new(io, items.clone());
        let host: Arc<dyn Host> = self.clone();
        let dataset = Arc::new(Dataset::new(entry, items, objects, host));
        *dataset.stored.lock() = Vec::new();
        self.datasets.write().insert(entry.id, dataset.clone());
        Ok(dataset)
    }
}

/// Marks the rows of system groups that the pool tree's nodes take.
fn install_system_rows(space: &Space, reader: &crate::dataset::nodes::Nodes, root: &Root) -> Result<()> {
    struct Collect(Vec<Pointer>);
    impl Visitor for Collect {
        fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
            self.0.push(place.pointer.clone());
            Ok(if place.level == 0 { Step::Over } else { Step::Into })
        }
    }
    let mut all = Collect(Vec::new());
    tree::walk(reader, root, Key::MIN, &mut all)?;
    let mut maps: BTreeMap<u32, Bitmap> = BTreeMap::new();
    for pointer in all.0 {
        let map = maps.entry(pointer.group).or_insert_with(|| Bitmap::new(space.zone_rows()));
        if !map.change_run(pointer.row, NODE_ROWS, true) {
            fail!(Corrupt, "two nodes of the pool tree lie at row {} of block group {}", pointer.row, pointer.group);
        }
    }
    for group in space.groups() {
        match group.class {
            Class::System => {
                group.install_rows(maps.remove(&group.id).unwrap_or_else(|| Bitmap::new(space.zone_rows())))
            }
            Class::Log => group.install_rows(Bitmap::new(space.zone_rows())),
            Class::Data | Class::Meta => {}
        }
    }
    match maps.keys().next() {
        Some(id) => Err(Error::new(ErrorKind::Corrupt, format!("the pool tree has nodes in block group {id}"))),
        None => Ok(()),
    }
}
