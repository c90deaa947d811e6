//! Check: walks everything a committed state refers to, and compares every structure with every other.
//!
//! Structures are compared in one committed state, which is held while the pool goes on ([`Hold`]). Where the pool needs the
//! space before all is compared, the check begins again with the state of then, and after some times says that it could not.
//! Contents (deep) are verified piece by piece as they are when it comes to them, in [`super::check_deep`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Pool;
use super::commit::POOL_TREE;
use crate::buf::AlignedBuf;
use crate::dataset::nodes::Nodes;
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::fs::store::ItemSource;
use crate::item::{ObjectRef, Value};
use crate::object::{Items, KIND_EXTENT, Objects};
use crate::pool::bitmap::Bitmap;
use crate::pool::epoch::Pin;
use crate::pool::format::entries::{
    CHUNK_ROWS, Class, Content, DatasetEntry, GROUP_OBJECT_BASE, GroupEntry, ZoneRef, bitmap_key, kind,
};
use crate::pool::space::{Hold, NODE_ROWS};
use crate::record::pointer::Pointer;
use crate::tree::{self, Key, Node, NodeStore, Place, Root, Step, Visitor};

/// So often a check begins before it says that the pool leaves it no state to look at.
const TRIES: u32 = 5;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// What is inconsistent, in words.
    pub problems: Vec<String>,
    /// All problems, also those beyond the list.
    pub problem_count: u64,
    /// Tree nodes read.
    pub nodes: u64,
    /// Extents seen.
    pub extents: u64,
    /// Objects seen by the filesystem check.
    pub objects: u64,
    /// Bytes read and verified (deep).
    pub bytes_verified: u64,
    /// Why the check did not go through everything, if it did not.
    pub unfinished: Option<String>,
}

impl CheckReport {
    pub(super) fn problem(&mut self, text: String) {
        self.problem_count += 1;
        if self.problems.len() < 1000 {
            self.problems.push(text);
        }
    }
}

/// Who waits for the check: is told how far it is, and may end it.
pub(super) struct Watch<'a> {
    progress: RefCell<&'a mut dyn FnMut(u64) -> bool>,
    /// Bytes verified.
    pub(super) verified: Cell<u64>,
    stopped: Arc<AtomicBool>,
}

impl Watch<'_> {
    /// Tells how far the check is; false when it shall end. Nothing is pinned meanwhile: whoever is told may commit.
    pub(super) fn goes_on(&self) -> bool {
        if !self.stopped() && !(self.progress.borrow_mut())(self.verified.get()) {
            self.stopped.store(true, Ordering::Relaxed);
        }
        !self.stopped()
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// The state that is checked, as long as it can be read.
struct Guard {
    hold: Hold,
    stopped: Arc<AtomicBool>,
    /// Somebody was not let in: what was found since says nothing.
    refused: AtomicBool,
}

impl Guard {
    /// Lets in who wants to read something of the state.
    fn enter(&self) -> Result<Pin> {
        if !self.stopped.load(Ordering::Relaxed)
            && let Some(pin) = self.hold.reader()
        {
            return Ok(pin);
        }
        self.refused.store(true, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Busy, "the state that was being checked is not there any more"))
    }
}

/// Nodes of the state that is checked.
struct HeldNodes {
    nodes: Arc<Nodes>,
    guard: Arc<Guard>,
}

impl NodeStore for HeldNodes {
    fn read_node(&self, pointer: &Pointer) -> Result<Arc<Node>> {
        let _pin = self.guard.enter()?;
        self.nodes.read_node(pointer)
    }

    fn write_nodes(&self, _: Vec<AlignedBuf>) -> Result<Vec<Pointer>> {
        fail!(ReadOnly, "a committed state is not changed");
    }

    fn free_node(&self, _: &Pointer) {}
}

struct Usages<'a, 'w> {
    zone_rows: u32,
    groups: &'a BTreeMap<u32, GroupEntry>,
    seen: BTreeMap<u32, Bitmap>,
    report: CheckReport,
    owner: u64,
    watch: &'a Watch<'w>,
}

impl Usages<'_, '_> {
    fn mark(&mut self, pointer: &Pointer, what: &str) {
        let Some(group) = self.groups.get(&pointer.group) else {
            self.report.problem(format!("{what} lies in block group {}, which does not exist", pointer.group));
            return;
        };
        if group.width != pointer.width || group.parity != pointer.parity {
            self.report.problem(format!("{what}: geometry differs from block group {}", group.id));
        }
        let rows = if group.class == Class::Data { pointer.rows() } else { NODE_ROWS };
        let map = self.seen.entry(pointer.group).or_insert_with(|| Bitmap::new(self.zone_rows));
        if !map.change_run(pointer.row, rows, true) {
            self.report.problem(format!(
                "{what}: rows {}+{rows} of block group {} are referred to twice or do not exist",
                pointer.row, pointer.group
            ));
        }
    }
}

impl Visitor for Usages<'_, '_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        if !self.watch.goes_on() {
            return Ok(Step::Stop);
        }
        self.mark(place.pointer, &format!("a node of tree {} at level {}", self.owner, place.level));
        self.report.nodes += 1;
        Ok(Step::Into)
    }

    fn node(&mut self, place: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        if place.level > 0 || self.owner == POOL_TREE {
            return Ok(Step::Into);
        }
        for (key, value) in node.items() {
            if key.kind != KIND_EXTENT {
                continue;
            }
            self.report.extents += 1;
            let what = format!("extent {} of object {} of tree {}", key.offset, key.object, self.owner);
            match Pointer::decode(value) {
                Ok((pointer, _)) => self.mark(&pointer, &what),
                Err(e) => self.report.problem(format!("{what}: {e}")),
            }
        }
        Ok(Step::Into)
    }

    fn failed(&mut self, place: &Place<'_>, error: Error) -> Result<()> {
        self.report.problem(format!("a node of tree {} at level {}: {error}", self.owner, place.level));
        Ok(())
    }
}

impl Pool {
    /// Checks what is committed. `deep` reads and verifies every byte. `progress` is told bytes verified; when it returns
    /// false, the check ends soon. It may change and commit whatever it likes. A report that is not of everything says so.
    ///
    /// # Errors
    /// When the check itself cannot go on; inconsistencies are in the report.
    pub fn check(&self, deep: bool, progress: &mut dyn FnMut(u64) -> bool) -> Result<CheckReport> {
        let watch = Watch {
            progress: RefCell::new(progress),
            verified: Cell::new(0),
            stopped: Arc::new(AtomicBool::new(false)),
        };
        let mut report = CheckReport {
            unfinished: Some(
                "the pool was too full, or changed too fast, to look at one state of it for as long as that takes; make \
                 room, or check again when less is written"
                    .to_owned(),
            ),
            ..CheckReport::default()
        };
        for _ in 0..TRIES {
            if !self.options.read_only {
                use crate::dataset::Host;
                self.commit_now()?;
            }
            let found = self.check_state(&watch)?;
            if found.is_some() || watch.stopped() {
                report = found.unwrap_or_default();
                break;
            }
        }
        if deep && !watch.stopped() {
            self.check_contents(&watch, &mut report)?;
        }
        report.bytes_verified = watch.verified.get();
        if watch.stopped() {
            report.unfinished = Some("it was stopped".to_owned());
        }
        Ok(report)
    }

    /// Compares the structures of one state. `None` when it had to be given up before all was compared.
    fn check_state(&self, watch: &Watch<'_>) -> Result<Option<CheckReport>> {
        let (root, system_groups, guard) = {
            // root and system groups of the same commit
            let _state = self.commit_state.lock();
            let groups: Vec<GroupEntry> = self
                .space
                .groups()
                .iter()
                .filter(|g| matches!(g.class, Class::System | Class::Log))
                .map(|g| g.entry())
                .collect();
            let hold = self.space.hold(self.committed_txg());
            let guard = Guard { hold, stopped: watch.stopped.clone(), refused: AtomicBool::new(false) };
            (self.root.load_full(), groups, Arc::new(guard))
        };
        let found = self.compare(&root, system_groups, &guard, watch);
        if guard.refused.load(Ordering::Relaxed) || watch.stopped() {
            return Ok(None);
        }
        found.map(Some)
    }

    fn compare(
        &self,
        root: &Root,
        system_groups: Vec<GroupEntry>,
        guard: &Arc<Guard>,
        watch: &Watch<'_>,
    ) -> Result<CheckReport> {
        let system = HeldNodes { nodes: self.system.clone(), guard: guard.clone() };
        let meta = Arc::new(HeldNodes { nodes: self.meta.clone(), guard: guard.clone() });
        let mut report = CheckReport::default();
        let mut groups: BTreeMap<u32, GroupEntry> = system_groups.into_iter().map(|g| (g.id, g)).collect();
        let mut datasets: Vec<DatasetEntry> = Vec::new();
        let mut cursor = tree::Cursor::new(&system, root, Key::MIN, Key::MAX);
        while let Some((key, value)) = cursor.next()? {
            match key.kind {
                kind::GROUP => {
                    let entry = GroupEntry::decode(&mut crate::bytes::Reader::new(&value, "block group"))?;
                    if key.object != GROUP_OBJECT_BASE + u64::from(entry.id) {
                        report.problem(format!("block group {} is stored under the key of another", entry.id));
                    }
                    groups.insert(entry.id, entry);
                }
                kind::DATASET => datasets.push(DatasetEntry::decode(&value)?),
                _ => {}
            }
        }
        self.check_zones(&groups, &mut report);
        let zone_rows = self.space.zone_rows();
        let mut usages = Usages { zone_rows, groups: &groups, seen: BTreeMap::new(), report, owner: POOL_TREE, watch };
        tree::walk(&system as &dyn NodeStore, root, Key::MIN, &mut usages)?;
        for dataset in &datasets {
            usages.owner = dataset.id;
            let (root, _) = Root::decode(&dataset.root)?;
            tree::walk(&*meta as &dyn NodeStore, &root, Key::MIN, &mut usages)?;
        }
        let Usages { seen, mut report, .. } = usages;
        self.check_bitmaps(&system, root, &groups, &seen, &mut report)?;
        let structural = |report: &mut CheckReport, nodes: &HeldNodes, root: &Root, id: u64| {
            let mut known = |owner| {
                watch.goes_on();
                owner == id
            };
            for p in tree::verify(nodes, root, &mut known).problems {
                report.problem(format!("tree {id}: {}", p.what));
            }
        };
        structural(&mut report, &system, root, POOL_TREE);
        for dataset in &datasets {
            let (root, _) = Root::decode(&dataset.root)?;
            structural(&mut report, &meta, &root, dataset.id);
            let items = Arc::new(FrozenItems { nodes: meta.clone(), root, hash_seed: dataset.hash_seed });
            let contents =
                Objects::new(Arc::new(super::pool_io::PoolIo::new(self, dataset.content, false)), items.clone());
            let frozen = Frozen { items, contents, guard: guard.clone(), watch };
            let name =
                if dataset.name.is_empty() { self.name.clone() } else { format!("{}/{}", self.name, dataset.name) };
            let mut texts = Vec::new();
            if dataset.destroying {
                // half of its items are gone; what is left is counted above
                continue;
            }
            report.objects += match dataset.content {
                Content::FileSystem => crate::fs::check(&frozen, &mut |text| texts.push(text))?.inodes,
                Content::Volume => crate::volume::check(&frozen, &mut |text| texts.push(text))?,
            };
            for text in texts {
                report.problem(format!("{name}: {text}"));
            }
        }
        Ok(report)
    }

    fn check_zones(&self, groups: &BTreeMap<u32, GroupEntry>, report: &mut CheckReport) {
        let mut owners: BTreeMap<(u16, u32), u32> = BTreeMap::new();
        for group in groups.values() {
            for c in &group.columns {
                for ZoneRef { device, zone } in std::iter::once(c.place).chain(c.previous) {
                    if let Some(other) = owners.insert((device, zone), group.id) {
                        report.problem(format!(
                            "zone {zone} of device {device} is in block groups {other} and {}",
                            group.id
                        ));
                    }
                }
            }
        }
    }

    fn check_bitmaps(
        &self,
        system: &HeldNodes,
        root: &Root,
        groups: &BTreeMap<u32, GroupEntry>,
        seen: &BTreeMap<u32, Bitmap>,
        report: &mut CheckReport,
    ) -> Result<()> {
        let rows = self.space.zone_rows();
        for group in groups.values() {
            if matches!(group.class, Class::System | Class::Log) {
                continue;
            }
            let mut stored = Bitmap::new(rows);
            for chunk in 0..rows.div_ceil(CHUNK_ROWS) {
                if let Some(bytes) = tree::get(system, root, bitmap_key(group.id, chunk))?
                    && !stored.load_chunk(chunk, CHUNK_ROWS, &bytes)
                {
                    report.problem(format!("the bitmap of block group {} does not fit it", group.id));
                }
            }
            let empty = Bitmap::new(rows);
            let used = seen.get(&group.id).unwrap_or(&empty);
            if used != &stored {
                let (mut leaked, mut unmarked) = (0u32, 0u32);
                for row in 0..rows {
                    match (stored.get(row), used.get(row)) {
                        (true, false) => leaked += 1,
                        (false, true) => unmarked += 1,
                        _ => {}
                    }
                }
                report.problem(format!(
                    "block group {}: {leaked} rows are marked but not referred to, {unmarked} are referred to but not marked",
                    group.id
                ));
            }
            if stored.count_ones() != group.used_rows {
                report.problem(format!(
                    "block group {} counts {} rows in use, {} are marked",
                    group.id,
                    group.used_rows,
                    stored.count_ones()
                ));
            }
        }
        Ok(())
    }
}

/// A committed state of a dataset.
struct Frozen<'a, 'w> {
    items: Arc<FrozenItems>,
    contents: Objects,
    guard: Arc<Guard>,
    watch: &'a Watch<'w>,
}

struct FrozenItems {
    nodes: Arc<HeldNodes>,
    root: Root,
    hash_seed: u64,
}

impl Items for FrozenItems {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        tree::get(&*self.nodes, &self.root, key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        tree::scan(&*self.nodes, &self.root, from, to, limit)
    }

    fn put_syncing(&self, _: Key, _: Value) {
        unreachable!("a committed state is not changed");
    }

    fn delete_syncing(&self, _: Key) {
        unreachable!("a committed state is not changed");
    }
}

impl Frozen<'_, '_> {
    fn enter(&self) -> Result<Pin> {
        self.watch.goes_on();
        self.guard.enter()
    }
}

impl ItemSource for Frozen<'_, '_> {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        let _pin = self.enter()?;
        self.items.get(key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        let _pin = self.enter()?;
        self.items.scan(from, to, limit)
    }

    fn hash_seed(&self) -> u64 {
        self.items.hash_seed
    }

    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _pin = self.enter()?;
        self.contents.read(object, offset, buf)
    }

    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        let _pin = self.enter()?;
        self.contents.next_data(object, offset)
    }

    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        let _pin = self.enter()?;
        self.contents.next_hole(object, offset)
    }
}
