//! Checking a filesystem's items against each other.
//!
//! One walk over all items in key order. What belongs to one inode is checked as it comes; what ties inodes together
//! (link counts, parents, reachability) is gathered in memory, some 100 bytes per inode, and checked at the end. Nothing
//! is repaired.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::error::{ErrorKind, Result};
use crate::fs::acl::{self, Acl};
use crate::fs::contents::round_up;
use crate::fs::dirent::{self, Dirent, KIND_DIRENT, KIND_DIRINDEX, name_hash};
use crate::fs::inode::{
    FLAG_HAS_ACCESS_ACL, FLAG_HAS_CAPABILITY, FLAG_HAS_DEFAULT_ACL, FLAG_HAS_HOLES, FLAG_INLINE, Inode, KIND_INLINE,
    KIND_INODE,
};
use crate::fs::ops::{Ino, ROOT_INO};
use crate::fs::store::{ItemSource, KIND_ORPHAN, RESERVED_KIND_MIN};
use crate::fs::xattr::{self, KIND_XATTR, KIND_XATTR_CHUNK, Xattr};
use crate::tree::Key;

const PAGE: usize = 512;

/// What a check saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCounts {
    /// Inodes of all types.
    pub inodes: u64,
    /// Of them directories.
    pub directories: u64,
    /// Names.
    pub entries: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Deleted inodes that wait to be reaped.
    pub orphans: u64,
    /// Things found wrong; each was reported.
    pub problems: u64,
}

/// What is kept of an inode until the end.
struct Seen {
    file_type: u32,
    nlink: u32,
    parent: Ino,
    parent_index: u64,
    names: u64,
    subdirs: u64,
    /// The last directory and index that named it; for a directory the only one.
    named_by: (Ino, u64),
    primary_found: bool,
}

/// What is gathered of the inode whose items are being read.
#[derive(Default)]
struct Current {
    ino: Ino,
    inode: Option<Inode>,
    inline_len: Option<u64>,
    xattrs: Vec<Xattr>,
    chunks: BTreeMap<u64, usize>,
    by_name: BTreeMap<Vec<u8>, Dirent>,
    by_index: BTreeMap<u64, Dirent>,
}

struct Check<'c, S: ItemSource> {
    store: &'c S,
    hash_mask: u64,
    report: &'c mut dyn FnMut(String),
    counts: CheckCounts,
    seen: HashMap<Ino, Seen>,
    /// (inode, directory, index, type) of each name.
    names: Vec<(Ino, Ino, u64, u32)>,
    orphans: BTreeSet<Ino>,
}

/// Checks everything this layer keeps in a dataset: item formats; names by hash and by index against each other; link
/// counts, types and parents against names; that each inode can be reached from the root or is listed as an orphan;
/// contents against size and flags; extended attributes against their chunks. Reports each problem as a sentence.
///
/// Nothing may change meanwhile.
///
/// # Errors
/// Those of the store. Damage is reported, not returned.
pub fn check<S: ItemSource>(store: &S, report: &mut dyn FnMut(String)) -> Result<CheckCounts> {
    check_with_mask(store, u64::MAX, report)
}

pub(crate) fn check_with_mask<S: ItemSource>(
    store: &S,
    hash_mask: u64,
    report: &mut dyn FnMut(String),
) -> Result<CheckCounts> {
    let mut check = Check {
        store,
        hash_mask,
        report,
        counts: CheckCounts::default(),
        seen: HashMap::new(),
        names: Vec::new(),
        orphans: BTreeSet::new(),
    };
    check.walk()?;
    check.finish();
    Ok(check.counts)
}

impl<S: ItemSource> Check<'_, S> {
    fn problem(&mut self, text: String) {
        self.counts.problems += 1;
        (self.report)(text);
    }

    fn walk(&mut self) -> Result<()> {
        let mut from = Key::MIN;
        let mut current = Current::default();
        loop {
            let page = self.store.scan(from, Key::MAX, PAGE)?;
            let next = page.last().and_then(|(key, _)| key.successor());
            let full = page.len() >= PAGE;
            for (key, value) in page {
                if key.object != current.ino {
                    let done = std::mem::take(&mut current);
                    self.inode_done(done)?;
                    current.ino = key.object;
                }
                if key.object == 0 {
                    self.dataset_item(key, &value);
                } else if key.kind < RESERVED_KIND_MIN {
                    self.item(&mut current, key, &value)?;
                }
            }
            match next {
                Some(next) if full => from = next,
                _ => break,
            }
        }
        self.inode_done(current)
    }

    fn dataset_item(&mut self, key: Key, value: &[u8]) {
        match key.kind {
            KIND_ORPHAN => {
                if value.len() != 4 {
                    self.problem(format!("orphan item of inode {} has {} bytes", key.offset, value.len()));
                }
                self.orphans.insert(key.offset);
            }
            1 if key.offset == 0 => {}
            kind if kind >= RESERVED_KIND_MIN => {}
            kind => self.problem(format!("unknown item of the dataset: kind {kind}, offset {}", key.offset)),
        }
    }

    fn item(&mut self, current: &mut Current, key: Key, value: &[u8]) -> Result<()> {
        let ino = key.object;
        match key.kind {
            KIND_INODE if key.offset == 0 => match Inode::decode(value) {
                Ok(inode) => current.inode = Some(inode),
                Err(e) => self.problem(format!("inode {ino}: {e}")),
            },
            KIND_INLINE if key.offset == 0 => current.inline_len = Some(value.len() as u64),
            KIND_XATTR => match xattr::decode_bucket(value) {
                Ok(bucket) => {
                    for x in bucket {
                        if name_hash(self.store.hash_seed(), &x.name) & self.hash_mask != key.offset {
                            self.problem(format!("inode {ino}: extended attribute under a wrong hash"));
                        }
                        current.xattrs.push(x);
                    }
                }
                Err(e) => self.problem(format!("inode {ino}: {e}")),
            },
            KIND_XATTR_CHUNK => {
                current.chunks.insert(key.offset, value.len());
            }
            KIND_DIRENT => match dirent::decode_bucket(value) {
                Ok(bucket) => {
                    for entry in bucket {
                        if name_hash(self.store.hash_seed(), &entry.name) & self.hash_mask != key.offset {
                            self.problem(format!("directory {ino}: name {} under a wrong hash", text(&entry.name)));
                        }
                        if let Some(other) = current.by_name.insert(entry.name.clone(), entry) {
                            self.problem(format!("directory {ino}: name {} twice", text(&other.name)));
                        }
                    }
                }
                Err(e) => self.problem(format!("directory {ino}: {e}")),
            },
            KIND_DIRINDEX => match dirent::decode_index(key.offset, value) {
                Ok(entry) => {
                    current.by_index.insert(key.offset, entry);
                }
                Err(e) => self.problem(format!("directory {ino}, index {}: {e}", key.offset)),
            },
            kind => self.problem(format!("inode {ino}: unknown item of kind {kind}, offset {}", key.offset)),
        }
        Ok(())
    }

    fn inode_done(&mut self, current: Current) -> Result<()> {
        let ino = current.ino;
        let Some(inode) = &current.inode else {
            // Reaping an orphan may take its inode before the rest.
            if ino != 0 && current.has_items() && !self.orphans.contains(&ino) {
                self.problem(format!("inode {ino}: items without an inode"));
            }
            return Ok(());
        };
        self.counts.inodes += 1;
        if inode.nlink > 0 || !self.orphans.contains(&ino) {
            self.check_contents(ino, inode, current.inline_len)?;
            self.check_xattrs(&current, inode);
        }
        if inode.is_dir() {
            self.counts.directories += 1;
            self.check_directory(&current, inode);
        } else if !current.by_name.is_empty() || !current.by_index.is_empty() {
            self.problem(format!("inode {ino}: directory entries in what is no directory"));
        }
        self.seen.insert(
            ino,
            Seen {
                file_type: inode.file_type(),
                nlink: inode.nlink,
                parent: inode.parent,
                parent_index: inode.parent_index,
                names: 0,
                subdirs: 0,
                named_by: (0, 0),
                primary_found: false,
            },
        );
        Ok(())
    }

    fn check_contents(&mut self, ino: Ino, inode: &Inode, inline_len: Option<u64>) -> Result<()> {
        let expected = if inode.has(FLAG_INLINE) && inode.size > 0 { Some(inode.size) } else { None };
        if inline_len != expected {
            self.problem(format!("inode {ino}: inline item of {inline_len:?} bytes instead of {expected:?}"));
        }
        if !inode.is_regular() {
            return Ok(());
        }
        let object = inode.object(ino);
        if inode.has(FLAG_INLINE) {
            return Ok(());
        }
        if let Some(at) = self.store.next_data(object, round_up(inode.size))? {
            self.problem(format!("inode {ino}: data at {at}, beyond its size of {}", inode.size));
        }
        let hole = self.store.next_hole(object, 0)?;
        if !inode.has(FLAG_HAS_HOLES) && hole < inode.size {
            self.problem(format!("inode {ino}: a hole at {hole} that its flags deny"));
        }
        let tail = inode.size % crate::fs::inode::BLOCK;
        if tail > 0 {
            let mut rest = vec![0; (crate::fs::inode::BLOCK - tail) as usize];
            match self.store.read(object, inode.size, &mut rest) {
                Ok(()) if rest.iter().any(|&b| b != 0) => {
                    self.problem(format!("inode {ino}: its last block is not zero beyond the size of {}", inode.size));
                }
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::Io | ErrorKind::Corrupt) => {
                    self.problem(format!("inode {ino}: its last block cannot be read: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn check_xattrs(&mut self, current: &Current, inode: &Inode) {
        let ino = current.ino;
        let mut names = BTreeSet::new();
        let mut bytes = 0u64;
        let mut flags = 0;
        let mut chunks = current.chunks.clone();
        for x in &current.xattrs {
            self.counts.xattrs += 1;
            bytes += x.name.len() as u64 + 1;
            if !names.insert(&x.name) {
                self.problem(format!("inode {ino}: extended attribute {} twice", text(&x.name)));
            }
            for number in x.place.chunks() {
                if chunks.remove(&number) != Some(x.place.chunk_len(number)) || number >= inode.xattr_next_chunk.into()
                {
                    self.problem(format!("inode {ino}: chunk {number} of {} is missing or wrong", text(&x.name)));
                }
            }
            flags |= match x.name.as_slice() {
                acl::XATTR_ACCESS => FLAG_HAS_ACCESS_ACL,
                acl::XATTR_DEFAULT => FLAG_HAS_DEFAULT_ACL,
                b"security.capability" => FLAG_HAS_CAPABILITY,
                _ => 0,
            };
            if let (true, xattr::Place::Here(value)) = (x.name.starts_with(b"system."), &x.place) {
                match Acl::decode(value) {
                    Ok(Some(acl)) => {
                        if x.name == acl::XATTR_ACCESS && acl.permission_bits() != inode.mode & 0o777 {
                            self.problem(format!("inode {ino}: its access ACL and its mode differ"));
                        }
                    }
                    _ => self.problem(format!("inode {ino}: {} is not valid", text(&x.name))),
                }
            }
        }
        if !chunks.is_empty() {
            self.problem(format!("inode {ino}: {} chunks of no extended attribute", chunks.len()));
        }
        if bytes != u64::from(inode.xattr_names_bytes) {
            self.problem(format!("inode {ino}: names of {bytes} bytes, {} noted", inode.xattr_names_bytes));
        }
        let noted = inode.flags & (FLAG_HAS_ACCESS_ACL | FLAG_HAS_DEFAULT_ACL | FLAG_HAS_CAPABILITY);
        if flags != noted {
            self.problem(format!("inode {ino}: flags {noted:#x} for extended attributes, {flags:#x} expected"));
        }
    }

    fn check_directory(&mut self, current: &Current, inode: &Inode) {
        let ino = current.ino;
        for entry in current.by_name.values() {
            self.counts.entries += 1;
            if current.by_index.get(&entry.index) != Some(entry) {
                self.problem(format!(
                    "directory {ino}: name {} is not at its index {}",
                    text(&entry.name),
                    entry.index
                ));
            }
            if entry.index >= inode.next_index {
                self.problem(format!("directory {ino}: index {} is not below the next one", entry.index));
            }
            self.names.push((entry.ino, ino, entry.index, entry.file_type));
        }
        for entry in current.by_index.values() {
            if current.by_name.get(&entry.name).is_none_or(|e| e.index != entry.index) {
                self.problem(format!("directory {ino}: index {} has no name {}", entry.index, text(&entry.name)));
            }
        }
        if current.by_name.len() as u64 != inode.entries {
            self.problem(format!("directory {ino}: {} names, {} noted", current.by_name.len(), inode.entries));
        }
    }

    fn finish(&mut self) {
        for (ino, dir, index, file_type) in std::mem::take(&mut self.names) {
            if file_type == libc::S_IFDIR
                && let Some(parent) = self.seen.get_mut(&dir)
            {
                parent.subdirs += 1;
            }
            match self.seen.get_mut(&ino) {
                None => self.problem(format!("directory {dir}, index {index}: inode {ino} does not exist")),
                Some(seen) => {
                    seen.names += 1;
                    seen.named_by = (dir, index);
                    seen.primary_found |= (seen.parent, seen.parent_index) == (dir, index);
                    if seen.file_type != file_type {
                        self.problem(format!("directory {dir}, index {index}: wrong type of inode {ino}"));
                    }
                }
            }
        }
        match self.seen.get(&ROOT_INO) {
            Some(root) if root.file_type == libc::S_IFDIR && root.names == 0 && root.parent == ROOT_INO => {}
            Some(_) => self.problem("the root is not a directory, or has a name or another parent".to_string()),
            None => self.problem("there is no root directory".to_string()),
        }
        let mut inos: Vec<Ino> = self.seen.keys().copied().collect();
        inos.sort_unstable();
        for &ino in &inos {
            self.check_links(ino);
        }
        self.check_reachable(&inos);
        let orphans = std::mem::take(&mut self.orphans);
        for ino in orphans {
            self.counts.orphans += 1;
            // An orphan without an inode is one whose reaping was interrupted.
            if self.seen.get(&ino).is_some_and(|seen| seen.nlink > 0) {
                self.problem(format!("inode {ino}: listed as an orphan, but has links"));
            }
        }
    }

    fn check_links(&mut self, ino: Ino) {
        let Some(seen) = self.seen.get(&ino) else { return };
        let is_dir = seen.file_type == libc::S_IFDIR;
        let expected = match (is_dir, seen.names, ino == ROOT_INO) {
            (true, _, true) => 2 + seen.subdirs,
            (true, 0, _) => 0,
            (true, ..) => 2 + seen.subdirs,
            (false, names, _) => names,
        };
        let mut problems = Vec::new();
        if u64::from(seen.nlink) != expected {
            problems.push(format!("inode {ino}: {} links, {expected} expected", seen.nlink));
        }
        if is_dir && seen.names > 1 {
            problems.push(format!("directory {ino}: {} names", seen.names));
        }
        if seen.nlink == 0 && !self.orphans.contains(&ino) {
            problems.push(format!("inode {ino}: no links, and not listed as an orphan"));
        }
        let needs_primary = is_dir && ino != ROOT_INO && seen.nlink > 0;
        let wrong_primary = ino != ROOT_INO && seen.parent != 0 && !seen.primary_found;
        if wrong_primary || (needs_primary && !seen.primary_found) {
            problems.push(format!(
                "inode {ino}: remembers directory {} index {}, but is named by {:?}",
                seen.parent, seen.parent_index, seen.named_by
            ));
        }
        for text in problems {
            self.problem(text);
        }
    }

    /// Directories form a tree: each leads up to the root (or to an orphan, which is empty).
    fn check_reachable(&mut self, inos: &[Ino]) {
        let mut good: BTreeSet<Ino> = BTreeSet::from([ROOT_INO]);
        for &ino in inos {
            let mut path = BTreeSet::new();
            let mut at = ino;
            let reached = loop {
                if good.contains(&at) {
                    break true;
                }
                match self.seen.get(&at) {
                    Some(seen) if seen.file_type == libc::S_IFDIR && seen.nlink > 0 => {
                        if !path.insert(at) {
                            break false;
                        }
                        at = seen.named_by.0;
                    }
                    // Files are named by directories, which are checked themselves.
                    other => break other.is_some(),
                }
            };
            if reached {
                good.extend(path);
            } else {
                self.problem(format!("directory {ino}: cannot be reached from the root"));
            }
        }
    }
}

impl Current {
    fn has_items(&self) -> bool {
        self.inline_len.is_some()
            || !self.xattrs.is_empty()
            || !self.chunks.is_empty()
            || !self.by_name.is_empty()
            || !self.by_index.is_empty()
    }
}

fn text(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}
