//! Check: walks everything a committed state refers to, and compares every structure with every other.
//!
//! It works on one root, pinned, while the pool goes on: nothing the root refers to is reused meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Pool;
use super::commit::POOL_TREE;
use crate::dataset::nodes::Nodes;
use crate::error::{Error, Result};
use crate::fs::store::ItemSource;
use crate::item::{ObjectRef, Value};
use crate::object::{Items, KIND_EXTENT, Objects};
use crate::pool::bitmap::Bitmap;
use crate::pool::format::entries::{
    CHUNK_ROWS, Class, Content, DatasetEntry, GROUP_OBJECT_BASE, GroupEntry, ZoneRef, bitmap_key, kind,
};
use crate::pool::space::NODE_ROWS;
use crate::record::context::with_object;
use crate::record::pointer::Pointer;
use crate::tree::{self, Key, Node, NodeStore, Place, Root, Step, Visitor};

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
    fn problem(&mut self, text: String) {
        self.problem_count += 1;
        if self.problems.len() < 1000 {
            self.problems.push(text);
        }
    }
}

struct Usages<'a> {
    pool: &'a Pool,
    groups: &'a BTreeMap<u32, GroupEntry>,
    seen: BTreeMap<u32, Bitmap>,
    report: CheckReport,
    deep: bool,
    owner: u64,
    progress: &'a mut dyn FnMut(u64) -> bool,
    stopped: bool,
}

impl Usages<'_> {
    fn mark(&mut self, pointer: &Pointer, what: &str) {
        let Some(group) = self.groups.get(&pointer.group) else {
            self.report.problem(format!("{what} lies in block group {}, which does not exist", pointer.group));
            return;
        };
        if group.width != pointer.width || group.parity != pointer.parity {
            self.report.problem(format!("{what}: geometry differs from block group {}", group.id));
        }
        let rows = if group.class == Class::Data { pointer.rows() } else { NODE_ROWS };
        let zone_rows = self.pool.space.zone_rows();
        let map = self.seen.entry(pointer.group).or_insert_with(|| Bitmap::new(zone_rows));
        if !map.change_run(pointer.row, rows, true) {
            self.report.problem(format!(
                "{what}: rows {}+{rows} of block group {} are referred to twice or do not exist",
                pointer.row, pointer.group
            ));
        }
    }

    fn verify(&mut self, object: u64, pointer: &Pointer, what: &str) -> Step {
        if self.deep && !self.stopped {
            self.verify_record(object, pointer, what);
        }
        self.stopped = self.stopped || !(self.progress)(self.report.bytes_verified);
        if self.stopped { Step::Stop } else { Step::Into }
    }

    fn verify_record(&mut self, object: u64, pointer: &Pointer, what: &str) {
        match with_object(self.owner, object, || self.pool.records.verify(pointer, false)) {
            Ok(verdict) => {
                self.report.bytes_verified += verdict.bytes;
                if verdict.lost > 0 {
                    self.report.problem(format!("{what}: {} units are damaged beyond repair", verdict.lost));
                } else if verdict.unanswered > 0 {
                    let units = verdict.unanswered;
                    self.report.problem(format!(
                        "{what}: too few devices have answered for {units} units in time; check again when they do"
                    ));
                } else if verdict.errors > 0 {
                    self.report.problem(format!("{what}: {} units are wrong; a scrub repairs them", verdict.errors));
                }
            }
            Err(e) => self.report.problem(format!("{what}: {e}")),
        }
    }
}

impl Visitor for Usages<'_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        let what = format!("a node of tree {} at level {}", self.owner, place.level);
        self.mark(place.pointer, &what);
        self.report.nodes += 1;
        Ok(self.verify(0, place.pointer, &what))
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
            let what = || format!("extent {} of object {} of tree {}", key.offset, key.object, self.owner);
            match Pointer::decode(value) {
                Ok((pointer, _)) => {
                    let what = what();
                    self.mark(&pointer, &what);
                    if self.verify(key.object, &pointer, &what) == Step::Stop {
                        return Ok(Step::Stop);
                    }
                }
                Err(e) => {
                    let what = what();
                    self.report.problem(format!("{what}: {e}"));
                }
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
    /// Checks the newest committed state. `deep` reads and verifies every byte. `progress` is told bytes verified; when it
    /// returns false, the check ends soon, and its report says so.
    ///
    /// # Errors
    /// When the check itself cannot go on; inconsistencies are in the report.
    pub fn check(&self, deep: bool, progress: &mut dyn FnMut(u64) -> bool) -> Result<CheckReport> {
        if !self.options.read_only {
            use crate::dataset::Host;
            self.commit_now()?;
        }
        let _pin = self.space.epoch.pin();
        let (root, system_groups) = {
            // root and system groups of the same commit
            let _state = self.commit_state.lock();
            let groups: Vec<GroupEntry> = self
                .space
                .groups()
                .iter()
                .filter(|g| matches!(g.class, Class::System | Class::Log))
                .map(|g| g.entry())
                .collect();
            (self.root.load_full(), groups)
        };
        let mut report = CheckReport::default();
        let mut groups: BTreeMap<u32, GroupEntry> = system_groups.into_iter().map(|g| (g.id, g)).collect();
        let mut datasets: Vec<DatasetEntry> = Vec::new();
        let mut cursor = tree::Cursor::new(&*self.system, &root, Key::MIN, Key::MAX);
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
        let mut usages = Usages {
            pool: self,
            groups: &groups,
            seen: BTreeMap::new(),
            report,
            deep,
            owner: POOL_TREE,
            progress,
            stopped: false,
        };
        tree::walk(&*self.system as &dyn NodeStore, &root, Key::MIN, &mut usages)?;
        for dataset in &datasets {
            if usages.stopped {
                break;
            }
            usages.owner = dataset.id;
            let (root, _) = Root::decode(&dataset.root)?;
            tree::walk(&*self.meta as &dyn NodeStore, &root, Key::MIN, &mut usages)?;
        }
        let Usages { seen, mut report, progress, stopped, .. } = usages;
        let stop = |mut report: CheckReport| {
            report.unfinished = Some("it was stopped".to_owned());
            Ok(report)
        };
        if stopped {
            return stop(report);
        }
        self.check_bitmaps(&root, &groups, &seen, &mut report)?;
        let structural = |report: &mut crate::engine::check::CheckReport, nodes: &Nodes, root: &Root, id: u64| {
            for p in tree::verify(nodes, root, &mut |owner| owner == id).problems {
                report.problem(format!("tree {id}: {}", p.what));
            }
        };
        structural(&mut report, &self.system, &root, POOL_TREE);
        for dataset in &datasets {
            if !progress(report.bytes_verified) {
                return stop(report);
            }
            let (root, _) = Root::decode(&dataset.root)?;
            structural(&mut report, &self.meta, &root, dataset.id);
            let items = Arc::new(FrozenItems { nodes: self.meta.clone(), root, hash_seed: dataset.hash_seed });
            let contents =
                Objects::new(Arc::new(super::pool_io::PoolIo::new(self, dataset.content, false)), items.clone());
            let frozen = Frozen { items, contents };
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
                if let Some(bytes) = tree::get(&*self.system, root, bitmap_key(group.id, chunk))?
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
struct Frozen {
    items: Arc<FrozenItems>,
    contents: Objects,
}

struct FrozenItems {
    nodes: Arc<Nodes>,
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

impl ItemSource for Frozen {
    fn get(&self, key: Key) -> Result<Option<Value>> {
        self.items.get(key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.items.scan(from, to, limit)
    }

    fn hash_seed(&self) -> u64 {
        self.items.hash_seed
    }

    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.contents.read(object, offset, buf)
    }

    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        self.contents.next_data(object, offset)
    }

    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        self.contents.next_hole(object, offset)
    }
}
