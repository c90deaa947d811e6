//! The filesystem as it should be: maps and vectors. One tree of what a reader sees, one of what a crash leaves.
//!
//! Nodes carry the inode numbers that the engine gave them, so that states compare node by node.

use std::collections::BTreeMap;
use std::sync::Arc;

/// An inode number.
pub type Ino = u64;
/// The root directory's.
pub const ROOT: Ino = 1;

/// What a node is.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// Contents.
    File(Arc<Vec<u8>>),
    /// Entries.
    Dir(BTreeMap<String, Ino>),
    /// Target.
    Link(String),
}

/// A node.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub body: Body,
    /// Permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Node {
    /// A new node.
    pub fn new(body: Body, mode: u32) -> Node {
        let nlink = if matches!(body, Body::Dir(_)) { 2 } else { 1 };
        Node { body, mode, nlink, xattrs: BTreeMap::new() }
    }
}

/// A whole filesystem.
pub type Tree = BTreeMap<Ino, Node>;

/// All filesystems of a pool, by name.
pub type State = BTreeMap<String, Tree>;

/// A filesystem as seen and as durable.
#[derive(Clone)]
pub struct Model {
    /// What a reader sees.
    pub now: Tree,
    /// What is left after a crash.
    pub durable: Tree,
}

impl Default for Model {
    fn default() -> Model {
        let tree = Tree::from([(ROOT, Node::new(Body::Dir(BTreeMap::new()), 0o755))]);
        Model { now: tree.clone(), durable: tree }
    }
}

impl Model {
    /// What a crash leaves if all names are durable, and contents of these files.
    pub fn synced(&self, file: Option<Ino>) -> Tree {
        let mut tree = self.now.clone();
        for (ino, node) in &mut tree {
            if let Body::File(bytes) = &mut node.body
                && file != Some(*ino)
            {
                *bytes = match self.durable.get(ino).map(|n| &n.body) {
                    Some(Body::File(old)) => old.clone(),
                    _ => Arc::default(),
                };
            }
        }
        tree
    }

    /// Entries of a directory.
    pub fn dir(&mut self, ino: Ino) -> &mut BTreeMap<String, Ino> {
        match self.now.get_mut(&ino).map(|n| &mut n.body) {
            Some(Body::Dir(entries)) => entries,
            _ => panic!("{ino} is not a directory of the model"),
        }
    }

    /// Contents of a file.
    pub fn file(&mut self, ino: Ino) -> &mut Vec<u8> {
        match self.now.get_mut(&ino).map(|n| &mut n.body) {
            Some(Body::File(bytes)) => Arc::make_mut(bytes),
            _ => panic!("{ino} is not a file of the model"),
        }
    }

    /// Contents of a file, to look at.
    pub fn bytes(&self, ino: Ino) -> Arc<Vec<u8>> {
        match self.now.get(&ino).map(|n| &n.body) {
            Some(Body::File(bytes)) => bytes.clone(),
            _ => panic!("{ino} is not a file of the model"),
        }
    }

    /// What a name is.
    pub fn lookup(&self, dir: Ino, name: &str) -> Option<Ino> {
        match self.now.get(&dir).map(|n| &n.body) {
            Some(Body::Dir(entries)) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.now.get(&ino).map(|n| &n.body), Some(Body::Dir(_)))
    }

    /// Adds a node under a name.
    pub fn add(&mut self, dir: Ino, name: &str, ino: Ino, node: Node) {
        if matches!(node.body, Body::Dir(_)) {
            self.node(dir).nlink += 1;
        }
        self.now.insert(ino, node);
        self.dir(dir).insert(name.to_owned(), ino);
    }

    /// A node.
    pub fn node(&mut self, ino: Ino) -> &mut Node {
        self.now.get_mut(&ino).unwrap_or_else(|| panic!("{ino} is not in the model"))
    }

    /// Removes a name, and what it named if that was its last.
    pub fn remove(&mut self, dir: Ino, name: &str) {
        let ino = self.dir(dir).remove(name).expect("the name is there");
        if self.is_dir(ino) {
            self.node(dir).nlink -= 1;
            self.now.remove(&ino);
            return;
        }
        self.node(ino).nlink -= 1;
        if self.node(ino).nlink == 0 {
            self.now.remove(&ino);
        }
    }

    /// Moves a name over another, or exchanges the two.
    pub fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), exchange: bool) {
        let source = self.lookup(from.0, from.1).expect("the source is there");
        let target = self.lookup(to.0, to.1);
        if target == Some(source) {
            return;
        }
        if !exchange && target.is_some() {
            self.remove(to.0, to.1);
        }
        self.set(from, if exchange { target } else { None });
        self.set(to, Some(source));
    }

    fn set(&mut self, (dir, name): (Ino, &str), ino: Option<Ino>) {
        let old = match ino {
            Some(ino) => self.dir(dir).insert(name.to_owned(), ino),
            None => self.dir(dir).remove(name),
        };
        if old.is_some_and(|old| self.is_dir(old)) {
            self.node(dir).nlink -= 1;
        }
        if ino.is_some_and(|ino| self.is_dir(ino)) {
            self.node(dir).nlink += 1;
        }
    }

    /// Whether a directory is another or lies in it.
    pub fn is_within(&self, ino: Ino, above: Ino) -> bool {
        let mut open = vec![above];
        while let Some(at) = open.pop() {
            if at == ino {
                return true;
            }
            if let Some(Body::Dir(entries)) = self.now.get(&at).map(|n| &n.body) {
                open.extend(entries.values().filter(|i| self.is_dir(**i)));
            }
        }
        false
    }
}

/// Where two states differ, in words.
pub fn difference(got: &State, want: &State) -> Option<String> {
    let (a, b): (Vec<&String>, Vec<&String>) = (got.keys().collect(), want.keys().collect());
    if a != b {
        return Some(format!("filesystems {a:?}, not {b:?}"));
    }
    for (name, tree) in got {
        let other = &want[name];
        for (ino, node) in tree {
            match other.get(ino) {
                None => return Some(format!("{name}: inode {ino} should not be there")),
                Some(wanted) if wanted != node => {
                    return Some(format!("{name}: inode {ino}: {}", node_difference(node, wanted)));
                }
                Some(_) => {}
            }
        }
        if let Some(ino) = other.keys().find(|i| !tree.contains_key(i)) {
            return Some(format!("{name}: inode {ino} is missing"));
        }
    }
    None
}

fn node_difference(got: &Node, want: &Node) -> String {
    if got.nlink != want.nlink || got.mode != want.mode {
        return format!("links {} mode {:o}, not {} {:o}", got.nlink, got.mode, want.nlink, want.mode);
    }
    if got.xattrs != want.xattrs {
        return format!("extended attributes {:?}, not {:?}", got.xattrs.keys(), want.xattrs.keys());
    }
    match (&got.body, &want.body) {
        (Body::File(a), Body::File(b)) if a.len() != b.len() => format!("{} bytes, not {}", a.len(), b.len()),
        (Body::File(a), Body::File(b)) => {
            let at = a.iter().zip(b.iter()).position(|(x, y)| x != y).unwrap_or(0);
            format!("{} bytes that differ from byte {at} on", a.len())
        }
        (Body::Dir(a), Body::Dir(b)) => format!("entries {a:?}, not {b:?}"),
        (Body::Link(a), Body::Link(b)) => format!("target {a}, not {b}"),
        _ => "another type".to_owned(),
    }
}
