//! Checking that the nodes of a tree fit together.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::record::pointer::Pointer;

use super::{Key, Node, NodeStore, Place, Root, Step, Visitor, walk};

/// One thing that is wrong with a tree.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The node, or `None` for the tree as a whole.
    pub pointer: Option<Pointer>,
    /// The first key of the damaged range.
    pub first_key: Key,
    /// What is wrong.
    pub what: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// The first [`PROBLEMS_MAX`] problems.
    pub problems: Vec<Problem>,
    /// All problems, including those not listed.
    pub problem_count: u64,
    /// Nodes read.
    pub nodes: u64,
    /// Items in leaves.
    pub items: u64,
    /// Bytes in use in all nodes, without padding.
    pub used_bytes: u64,
}

/// Problems listed in a report.
pub const PROBLEMS_MAX: usize = 1000;

/// Reads a whole tree and checks what [`Node::parse`] cannot see: levels, key order across nodes, the key each node is
/// listed under, births (a node's is the pointer's and not above the parent's), owners, and the counts in the root.
/// `owner_is_known` tells which trees may have written a node (a clone shares nodes with its origin).
///
/// Damage is reported, not returned as an error; what lies below an unreadable node is left out.
pub fn verify<S: NodeStore + ?Sized>(
    store: &S,
    root: &Root,
    owner_is_known: &mut dyn FnMut(u64) -> bool,
) -> VerifyReport {
    let mut check = Check { report: VerifyReport::default(), owner_is_known, unreadable: false };
    walk(store, root, Key::MIN, &mut check).expect("the visitor returns no errors");
    let Check { mut report, unreadable, .. } = check;
    if root.pointer.is_some() != (root.height > 0) {
        report.add(None, Key::MIN, format!("the root has height {} but pointer {:?}", root.height, root.pointer));
    }
    if !unreadable && (report.items, report.nodes) != (root.items, root.nodes) {
        let what = format!(
            "the root counts {} items in {} nodes, there are {} in {}",
            root.items, root.nodes, report.items, report.nodes
        );
        report.add(None, Key::MIN, what);
    }
    report
}

impl VerifyReport {
    fn add(&mut self, pointer: Option<&Pointer>, first_key: Key, what: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { pointer: pointer.cloned(), first_key, what });
        }
    }
}

struct Check<'a> {
    report: VerifyReport,
    owner_is_known: &'a mut dyn FnMut(u64) -> bool,
    unreadable: bool,
}

impl Visitor for Check<'_> {
    fn enter(&mut self, place: &Place<'_>) -> Result<Step> {
        if let Some(parent) = place.parent
            && place.pointer.birth > parent.birth()
        {
            let what = format!("born in {}, after its parent ({})", place.pointer.birth, parent.birth());
            self.report.add(Some(place.pointer), place.first_key, what);
        }
        Ok(Step::Into)
    }

    fn node(&mut self, place: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        self.report.nodes += 1;
        self.report.used_bytes += node.used_bytes() as u64;
        let mut problem = |what| self.report.add(Some(place.pointer), place.first_key, what);
        if node.birth() != place.pointer.birth {
            problem(format!("born in {}, its pointer says {}", node.birth(), place.pointer.birth));
        }
        if !(self.owner_is_known)(node.owner()) {
            problem(format!("written by tree {}, which has no part in this one", node.owner()));
        }
        if let Some(end) = place.end
            && node.last_key() >= end
        {
            problem(format!("holds {:?}, the next node begins at {end:?}", node.last_key()));
        }
        if place.parent.is_none() && !node.is_leaf() && node.len() < 2 {
            problem("the root node has a single child".to_owned());
        }
        if node.is_leaf() {
            self.report.items += node.len() as u64;
        }
        Ok(Step::Into)
    }

    fn failed(&mut self, place: &Place<'_>, error: Error) -> Result<()> {
        self.unreadable = true;
        self.report.add(Some(place.pointer), place.first_key, error.to_string());
        Ok(())
    }
}
