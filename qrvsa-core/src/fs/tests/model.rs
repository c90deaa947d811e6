//! A plain filesystem to compare with: maps and vectors, no cleverness, written from the manual pages.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::fs::ops::RenameMode;

pub(super) type Id = usize;
type Outcome<T> = Result<T, Errno>;

#[derive(Clone, Debug)]
pub(super) enum Kind {
    File(Vec<u8>),
    Dir { entries: BTreeMap<Vec<u8>, Id>, parent: Id },
    Symlink(Vec<u8>),
    Fifo,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) opens: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Node 0 is the root. Nodes are never removed from the vector.
pub(super) struct Model {
    pub(super) nodes: Vec<Node>,
}

fn new_node(kind: Kind, mode: u32) -> Node {
    let nlink = if matches!(kind, Kind::Dir { .. }) { 2 } else { 1 };
    Node { kind, mode, nlink, opens: 0, xattrs: BTreeMap::new() }
}

impl Model {
    pub(super) fn new() -> Model {
        Model { nodes: vec![new_node(Kind::Dir { entries: BTreeMap::new(), parent: 0 }, 0o755)] }
    }

    pub(super) fn is_dir(&self, id: Id) -> bool {
        matches!(self.nodes[id].kind, Kind::Dir { .. })
    }

    /// The node, unless it is gone for good.
    pub(super) fn node(&mut self, id: Id) -> Outcome<&mut Node> {
        let node = &mut self.nodes[id];
        if node.nlink == 0 && node.opens == 0 { Err(Errno::ENOENT) } else { Ok(node) }
    }

    fn entries(&mut self, dir: Id) -> Outcome<&mut BTreeMap<Vec<u8>, Id>> {
        match &mut self.node(dir)?.kind {
            Kind::Dir { entries, .. } => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Entries of a directory that is not removed.
    fn live(&mut self, dir: Id) -> Outcome<&mut BTreeMap<Vec<u8>, Id>> {
        self.entries(dir)?;
        if self.nodes[dir].nlink == 0 {
            return Err(Errno::ENOENT);
        }
        self.entries(dir)
    }

    pub(super) fn lookup(&mut self, dir: Id, name: &[u8]) -> Outcome<Id> {
        self.entries(dir)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub(super) fn make(&mut self, dir: Id, name: &[u8], kind: Kind, mode: u32) -> Outcome<Id> {
        let id = self.nodes.len();
        let entries = self.live(dir)?;
        if entries.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        entries.insert(name.to_vec(), id);
        let kind = match kind {
            Kind::Dir { entries, .. } => {
                self.nodes[dir].nlink += 1;
                Kind::Dir { entries, parent: dir }
            }
            kind => kind,
        };
        self.nodes.push(new_node(kind, mode));
        Ok(id)
    }

    pub(super) fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> Outcome<()> {
        if self.live(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let node = self.node(id)?;
        if matches!(node.kind, Kind::Dir { .. }) {
            return Err(Errno::EPERM);
        }
        if node.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        node.nlink += 1;
        self.live(dir)?.insert(name.to_vec(), id);
        Ok(())
    }

    pub(super) fn unlink(&mut self, dir: Id, name: &[u8]) -> Outcome<()> {
        let id = self.lookup(dir, name)?;
        if self.is_dir(id) {
            return Err(Errno::EISDIR);
        }
        self.live(dir)?.remove(name);
        self.nodes[id].nlink -= 1;
        Ok(())
    }

    pub(super) fn rmdir(&mut self, dir: Id, name: &[u8]) -> Outcome<()> {
        let id = self.lookup(dir, name)?;
        if !self.entries(id)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.live(dir)?.remove(name);
        self.nodes[id].nlink = 0;
        self.nodes[dir].nlink -= 1;
        Ok(())
    }

    fn is_under(&self, mut at: Id, above: Id) -> bool {
        loop {
            if at == above {
                return true;
            }
            match self.nodes[at].kind {
                Kind::Dir { parent, .. } if at != 0 => at = parent,
                _ => return false,
            }
        }
    }

    pub(super) fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), mode: RenameMode) -> Outcome<()> {
        let source = self.lookup(from.0, from.1)?;
        let target = match self.lookup(to.0, to.1) {
            Ok(id) => Some(id),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        self.live(from.0)?;
        self.live(to.0)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_dir(source) && self.is_under(to.0, source) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target {
            if mode == RenameMode::Exchange {
                if self.is_dir(target) && self.is_under(from.0, target) {
                    return Err(Errno::EINVAL);
                }
                if source != target {
                    self.set_entry(from, Some(target));
                    self.set_entry(to, Some(source));
                }
                return Ok(());
            }
            if target == from.0 {
                return Err(Errno::ENOTEMPTY);
            }
            if source == target {
                return Ok(());
            }
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) => {
                    if !self.entries(target)?.is_empty() {
                        return Err(Errno::ENOTEMPTY);
                    }
                    self.nodes[target].nlink = 0;
                }
                (false, false) => self.nodes[target].nlink -= 1,
            }
        }
        self.set_entry(from, None);
        self.set_entry(to, Some(source));
        Ok(())
    }

    /// Sets or removes a name, and what a directory's place means for parents and link counts.
    fn set_entry(&mut self, (dir, name): (Id, &[u8]), id: Option<Id>) {
        let Kind::Dir { entries, .. } = &mut self.nodes[dir].kind else { panic!("not a directory") };
        let old = match id {
            Some(id) => entries.insert(name.to_vec(), id),
            None => entries.remove(name),
        };
        if old.is_some_and(|old| self.is_dir(old)) {
            self.nodes[dir].nlink -= 1;
        }
        if let Some(id) = id
            && let Kind::Dir { parent, .. } = &mut self.nodes[id].kind
        {
            *parent = dir;
            self.nodes[dir].nlink += 1;
        }
    }

    pub(super) fn open(&mut self, id: Id) -> Outcome<()> {
        self.node(id)?.opens += 1;
        Ok(())
    }

    pub(super) fn bytes(&mut self, id: Id) -> Outcome<&mut Vec<u8>> {
        match &mut self.node(id)?.kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Dir { .. } => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn write(&mut self, id: Id, offset: Option<usize>, data: &[u8]) -> Outcome<usize> {
        let bytes = self.bytes(id)?;
        if data.is_empty() {
            return Ok(0);
        }
        let offset = offset.unwrap_or(bytes.len());
        if bytes.len() < offset + data.len() {
            bytes.resize(offset + data.len(), 0);
        }
        bytes[offset..offset + data.len()].copy_from_slice(data);
        Ok(data.len())
    }

    pub(super) fn allocate(&mut self, id: Id, offset: usize, len: usize, zero: bool, keep: bool) -> Outcome<()> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let bytes = self.bytes(id).map_err(|e| if e == Errno::EINVAL { Errno::ENODEV } else { e })?;
        let old = bytes.len();
        if zero && offset < old {
            bytes[offset..old.min(offset + len)].fill(0);
        }
        if !keep && old < offset + len {
            bytes.resize(offset + len, 0);
        }
        Ok(())
    }

    pub(super) fn copy(&mut self, from: (Id, usize), to: (Id, usize), len: usize) -> Outcome<usize> {
        let source = self.bytes(from.0)?.clone();
        self.bytes(to.0)?;
        let len = len.min(source.len().saturating_sub(from.1));
        if from.0 == to.0 && from.1 < to.1 + len && to.1 < from.1 + len {
            return Err(Errno::EINVAL);
        }
        if len > 0 {
            self.write(to.0, Some(to.1), &source[from.1..from.1 + len])?;
        }
        Ok(len)
    }
}
