//! Reading a tree: one item, a range, or item by item.

use std::sync::Arc;

use crate::error::Result;

use super::{Key, Node, NodeStore, Root, Value, read_checked, read_root};

/// The value of an item.
///
/// # Errors
/// As [`NodeStore::read_node`]; `Corrupt` when nodes do not fit together.
pub fn get<S: NodeStore + ?Sized>(store: &S, root: &Root, key: Key) -> Result<Option<Value>> {
    let Some(mut node) = read_root(store, root)? else { return Ok(None) };
    while !node.is_leaf() {
        let i = node.route(key);
        if node.key(i) > key {
            return Ok(None);
        }
        node = read_checked(store, node.pointer(i), node.level() - 1, Some(node.key(i)))?;
    }
    Ok(node.find(key).map(|i| Value::from(node.value(i))))
}

/// At most `limit` items with `from <= key <= to`, ascending.
///
/// # Errors
/// As [`get`].
pub fn scan<S: NodeStore + ?Sized>(
    store: &S,
    root: &Root,
    from: Key,
    to: Key,
    limit: usize,
) -> Result<Vec<(Key, Value)>> {
    let mut cursor = Cursor::new(store, root, from, to);
    let mut items = Vec::new();
    while items.len() < limit
        && let Some(item) = cursor.next()?
    {
        items.push(item);
    }
    Ok(items)
}

/// Goes through a range of a tree in ascending order. Reads a node only when an item in it is asked for. After an error
/// the same call may be repeated.
pub struct Cursor<'a, S: NodeStore + ?Sized> {
    store: &'a S,
    root: &'a Root,
    to: Key,
    position: Position,
    /// The internal nodes from the root down, each with the child taken.
    path: Vec<(Arc<Node>, usize)>,
}

enum Position {
    /// Before the first item at or after this key.
    Seek(Key),
    /// At an item of a leaf (or just behind its last one).
    At(Arc<Node>, usize),
    End,
}

impl<'a, S: NodeStore + ?Sized> Cursor<'a, S> {
    /// A cursor over `from <= key <= to`. Reads nothing yet.
    pub fn new(store: &'a S, root: &'a Root, from: Key, to: Key) -> Cursor<'a, S> {
        let position = if from <= to { Position::Seek(from) } else { Position::End };
        Cursor { store, root, to, position, path: Vec::new() }
    }

    /// The item the cursor stands at, or `None` at the end of the range.
    ///
    /// # Errors
    /// As [`get`].
    pub fn peek(&mut self) -> Result<Option<(Key, &[u8])>> {
        loop {
            match &self.position {
                Position::End => return Ok(None),
                Position::Seek(key) => {
                    let key = *key;
                    self.seek(key)?;
                }
                Position::At(leaf, i) if *i == leaf.len() => self.position = self.behind_leaf(),
                Position::At(leaf, i) if leaf.key(*i) > self.to => self.position = Position::End,
                Position::At(..) => break,
            }
        }
        match &self.position {
            Position::At(leaf, i) => Ok(Some((leaf.key(*i), leaf.value(*i)))),
            _ => Ok(None),
        }
    }

    /// Steps over the item the last [`Cursor::peek`] returned.
    pub fn advance(&mut self) {
        if let Position::At(leaf, i) = &mut self.position
            && *i < leaf.len()
        {
            *i += 1;
        }
    }

    /// The next item.
    ///
    /// # Errors
    /// As [`get`].
    #[allow(clippy::should_implement_trait, reason = "an iterator of results would not end after an error")]
    pub fn next(&mut self) -> Result<Option<(Key, Value)>> {
        let item = self.peek()?.map(|(key, value)| (key, Value::from(value)));
        self.advance();
        Ok(item)
    }

    /// Where to go on when a leaf is used up: the first key of the next one, which its ancestors know.
    fn behind_leaf(&self) -> Position {
        let next = self.path.iter().rev().find(|(node, i)| i + 1 < node.len()).map(|(node, i)| node.key(i + 1));
        match next {
            Some(key) if key <= self.to => Position::Seek(key),
            _ => Position::End,
        }
    }

    /// Goes to the first item at or after `key`, from the lowest node of the path that leads there.
    fn seek(&mut self, key: Key) -> Result<()> {
        // An ancestor serves if the key is below the end of the child taken in each node above it; nodes whose later
        // children may hold the key stay.
        while let Some((node, i)) = self.path.last()
            && i + 1 == node.len()
        {
            self.path.pop();
        }
        let mut node = match self.path.pop() {
            Some((node, _)) => node,
            None => match read_root(self.store, self.root)? {
                Some(node) => node,
                None => {
                    self.position = Position::End;
                    return Ok(());
                }
            },
        };
        while !node.is_leaf() {
            let i = node.route(key);
            let child = read_checked(self.store, node.pointer(i), node.level() - 1, Some(node.key(i)));
            match child {
                Ok(child) => {
                    self.path.push((node, i));
                    node = child;
                }
                Err(error) => {
                    self.path.clear();
                    return Err(error);
                }
            }
        }
        let i = node.lower_bound(0, key);
        self.position = Position::At(node, i);
        Ok(())
    }
}
