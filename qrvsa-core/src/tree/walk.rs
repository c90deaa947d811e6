//! Visiting every node of a tree, in key order, parents before children.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::record::pointer::Pointer;

use super::{Key, Node, NodeStore, Root, read_checked};

/// Where a node stands in its tree.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The pointer to the node.
    pub pointer: &'a Pointer,
    /// The node's level, 0 for a leaf.
    pub level: u8,
    /// The key the parent lists the node under; [`Key::MIN`] for the root.
    pub first_key: Key,
    /// The key from which on items belong to the next node; `None` if there is none.
    pub end: Option<Key>,
    /// The node that lists this one; `None` for the root.
    pub parent: Option<&'a Node>,
}

/// What to do about a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Go on: read the node, visit its children.
    Into,
    /// Leave out the node and everything below it.
    Over,
    /// End the walk.
    Stop,
}

/// What [`walk`] calls.
pub trait Visitor {
    /// A pointer was found; called before anything is read. Return [`Step::Over`] at level 0 to leave leaves unread, or
    /// by the pointer's birth to leave out what has not changed since a snapshot.
    ///
    /// # Errors
    /// End the walk.
    fn enter(&mut self, place: &Place<'_>) -> Result<Step>;

    /// A node was read; its children come next.
    ///
    /// # Errors
    /// End the walk.
    fn node(&mut self, place: &Place<'_>, node: &Arc<Node>) -> Result<Step> {
        let _ = (place, node);
        Ok(Step::Into)
    }

    /// A node could not be read, or is not what its parent means.
    ///
    /// # Errors
    /// End the walk (as by default); `Ok` goes on with the next node.
    fn failed(&mut self, place: &Place<'_>, error: Error) -> Result<()> {
        let _ = place;
        Err(error)
    }
}

/// Visits the nodes that may hold keys at or after `from` (and so all of their ancestors). To resume a walk that was
/// stopped, start again at the first key of the last leaf visited.
///
/// # Errors
/// What the visitor returns.
pub fn walk<S: NodeStore + ?Sized>(store: &S, root: &Root, from: Key, visitor: &mut dyn Visitor) -> Result<()> {
    if let (Some(pointer), Some(level)) = (&root.pointer, root.height.checked_sub(1)) {
        let place = Place { pointer, level, first_key: Key::MIN, end: None, parent: None };
        visit(store, &place, from, visitor)?;
    }
    Ok(())
}

/// Visits a node and those below it; returns [`Step::Stop`] when the walk shall end. The depth is at most
/// [`LEVEL_MAX`](super::node::LEVEL_MAX), since the level falls with each call.
fn visit<S: NodeStore + ?Sized>(store: &S, place: &Place<'_>, from: Key, visitor: &mut dyn Visitor) -> Result<Step> {
    match visitor.enter(place)? {
        Step::Into => {}
        other => return Ok(other),
    }
    let first = place.parent.map(|_| place.first_key);
    let node = match read_checked(store, place.pointer, place.level, first) {
        Ok(node) => node,
        Err(error) => {
            visitor.failed(place, error)?;
            return Ok(Step::Over);
        }
    };
    match visitor.node(place, &node)? {
        Step::Into if node.is_leaf() => return Ok(Step::Into),
        Step::Into => {}
        other => return Ok(other),
    }
    for i in node.route(from)..node.len() {
        let end = if i + 1 < node.len() { Some(node.key(i + 1)) } else { place.end };
        let child = Place {
            pointer: node.pointer(i),
            level: node.level() - 1,
            first_key: node.key(i),
            end,
            parent: Some(&node),
        };
        if visit(store, &child, from, visitor)? == Step::Stop {
            return Ok(Step::Stop);
        }
    }
    Ok(Step::Into)
}
