//! The deep part of a check: every column of every record is read and verified, and nothing is changed.
//!
//! As in a scrub the walk goes tree by tree in key order, and pins only a slice at a time: it may take hours, in which space
//! comes back. So it sees each record as it is when it comes to it.

use std::sync::Arc;

use super::Pool;
use super::check::{CheckReport, Watch};
use super::commit::POOL_TREE;
use crate::error::{Error, Result};
use crate::object::KIND_EXTENT;
use crate::record::context::with_object;
use crate::record::pointer::Pointer;
use crate::tree::{Key, Node, Place, Step, Visitor};

/// Bytes verified under one pin.
const SLICE_BYTES: u64 = 8 << 20;
/// Time under one pin, nanoseconds.
const SLICE_NS: u64 = 250_000_000;

struct Slice<'a> {
    pool: &'a Pool,
    report: &'a mut CheckReport,
    owner: u64,
    from: Key,
    began_ns: u64,
    bytes: u64,
    /// Something was verified, if only as not to be had.
    begun: bool,
    /// Key to go on with.
    next: Option<Key>,
}

impl Slice<'_> {
    /// Whether the slice ends before `key`. What it begins with is never put off.
    fn ends_before(&mut self, key: Key) -> bool {
        let took = self.pool.env.clock.monotonic_ns().saturating_sub(self.began_ns);
        let ends = key > self.from && self.begun && (self.bytes >= SLICE_BYTES || took >= SLICE_NS);
        if ends {
            self.next = Some(key);
        }
        ends
    }

    fn verify(&mut self, object: u64, pointer: &Pointer, what: &str) {
        self.begun = true;
        match with_object(self.owner, object, || self.pool.records.verify(pointer, false)) {
            Ok(verdict) => {
                self.bytes += verdict.bytes;
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

impl Visitor for Slice<'_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        if place.level == 0 && self.ends_before(place.first_key) {
            return Ok(Step::Stop);
        }
        // what began before the slice was verified with an earlier one
        if place.first_key >= self.from {
            self.verify(0, place.pointer, &format!("a node of tree {} at level {}", self.owner, place.level));
        }
        Ok(Step::Into)
    }

    fn node(&mut self, place: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        if place.level > 0 || self.owner == POOL_TREE {
            return Ok(Step::Into);
        }
        for (key, value) in node.items() {
            if key.kind != KIND_EXTENT || key < self.from {
                continue;
            }
            if self.ends_before(key) {
                return Ok(Step::Stop);
            }
            let what = format!("extent {} of object {} of tree {}", key.offset, key.object, self.owner);
            // what is no pointer was met before, when structures were compared
            if let Ok((pointer, _)) = Pointer::decode(value) {
                self.verify(key.object, &pointer, &what);
            }
        }
        Ok(Step::Into)
    }

    fn failed(&mut self, place: &Place<'_>, error: Error) -> Result<()> {
        let text = format!("a node of tree {} at level {}: {error}", self.owner, place.level);
        // unless it was met before
        if !self.report.problems.contains(&text) {
            self.report.problem(text);
        }
        Ok(())
    }
}

impl Pool {
    /// Verifies everything there is, or until `watch` has it end.
    pub(super) fn check_contents(&self, watch: &Watch<'_>, report: &mut CheckReport) -> Result<()> {
        let (mut owner, mut from) = (POOL_TREE, Key::MIN);
        loop {
            let began_ns = self.env.clock.monotonic_ns();
            let mut slice = Slice { pool: self, report, owner, from, began_ns, bytes: 0, begun: false, next: None };
            {
                let _pin = self.space.epoch.pin();
                self.walk_tree(owner, from, &mut slice)?;
            }
            watch.verified.set(watch.verified.get() + slice.bytes);
            (owner, from) = match (slice.next, self.tree_after(owner)) {
                (Some(key), _) => (owner, key),
                (None, Some(tree)) => (tree, Key::MIN),
                (None, None) => return Ok(()),
            };
            if !watch.goes_on() {
                return Ok(());
            }
        }
    }
}
