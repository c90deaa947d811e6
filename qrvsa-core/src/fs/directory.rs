//! Reading directories: lookup, listing, and the way between paths and inodes.
//!
//! None of these waits for a writer (see `locks`): a name and the inode it stands for are read consistently without a
//! lock, and a listing reads pages of entries that exist when the page is read.

use std::ops::RangeInclusive;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::dirent::{self, Dirent, INDEX_FIRST, KIND_DIRINDEX, dirindex_key, validate_name};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, SIZE_MAX, inode_key};
use crate::fs::ops::{Attr, DirEntry, Ino, ROOT_INO, StatFs};
use crate::fs::store::Store;
use crate::tree::Key;

/// Entries read at once while listing.
const PAGE: usize = 256;
/// Deepest directory that is walked upwards. Linux paths end at 4096 bytes; relative calls can go deeper.
pub(crate) const DEPTH_MAX: usize = 1 << 20;
/// Deepest path that is spelled out.
const PATH_DEPTH_MAX: usize = 4096;

impl<S: Store> FileSystem<S> {
    /// The entry of a name, without a lock. `ENOTDIR` and `ENOENT` for a bad parent.
    pub(crate) fn peek(&self, parent: Ino, name: &[u8]) -> Result<Option<Dirent>> {
        let found = match self.store.get(self.dirent_key(parent, name))? {
            Some(value) => dirent::decode_bucket(&value)?.into_iter().find(|e| e.name == name),
            None => None,
        };
        if found.is_none() && !self.load(parent)?.is_dir() {
            return Err(Error::posix(Errno::ENOTDIR));
        }
        Ok(found)
    }

    pub(crate) fn lookup_attr(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let (ino, inode) = match name {
            b"." | b".." => {
                let dir = self.load(parent)?;
                if !dir.is_dir() {
                    return Err(Error::posix(Errno::ENOTDIR));
                }
                if name == b"." { (parent, dir) } else { (dir.parent, self.load(dir.parent)?) }
            }
            _ => {
                validate_name(name)?;
                self.locks.consistent(parent, || -> Result<(Ino, Inode)> {
                    let entry = self.peek(parent, name)?.ok_or(Error::posix(Errno::ENOENT))?;
                    Ok((entry.ino, self.load(entry.ino)?))
                })?
            }
        };
        self.attr_of(ino, &inode)
    }

    /// Lists the entries after one cookie up to another. `touch`: updates the access time if it is due. An inode that cannot
    /// be read costs its entry the attributes, and hides no other; unless it is in use, when it fails the listing.
    pub(crate) fn list_dir(
        &self,
        ino: Ino,
        cookies: RangeInclusive<u64>,
        plus: bool,
        touch: bool,
        emit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<()> {
        let (cookie, end) = cookies.into_inner();
        let dir = self.load(ino)?;
        if !dir.is_dir() {
            return Err(Error::posix(Errno::ENOTDIR));
        }
        if dir.nlink == 0 {
            return Ok(());
        }
        if touch {
            self.touch(ino, &dir);
        }
        for (at, name, target) in [(1, &b"."[..], ino), (2, &b".."[..], dir.parent)] {
            if cookie < at {
                let attr =
                    if plus { self.load(target).and_then(|inode| self.attr_of(target, &inode)).ok() } else { None };
                let entry = DirEntry { ino: target, cookie: at, file_type: libc::S_IFDIR, name: name.to_vec(), attr };
                if !emit(&entry) {
                    return Ok(());
                }
            }
        }
        let Some(mut next) = cookie.max(INDEX_FIRST - 1).checked_add(1).filter(|&n| n <= SIZE_MAX) else {
            return Ok(());
        };
        let last = Key::new(ino, KIND_DIRINDEX, end);
        while next <= end {
            let page = self.store.scan(dirindex_key(ino, next), last, PAGE)?;
            let full = page.len() >= PAGE;
            for (key, value) in page {
                next = key.offset.saturating_add(1);
                let Some(entry) = self.list_entry(key, &value, plus)? else { continue };
                if !emit(&entry) {
                    return Ok(());
                }
            }
            if !full {
                break;
            }
        }
        Ok(())
    }

    /// The entry to show for a DIRINDEX item; `None` when it went away since.
    fn list_entry(&self, key: Key, value: &[u8], plus: bool) -> Result<Option<DirEntry>> {
        let mut entry = dirent::decode_index(key.offset, value)?;
        let mut attr = None;
        if plus {
            let found = self.locks.consistent(key.object, || -> Result<Option<(Dirent, Result<Inode>)>> {
                let Some(value) = self.store.get(key)? else { return Ok(None) };
                let entry = dirent::decode_index(key.offset, &value)?;
                let inode = self.load(entry.ino);
                Ok(Some((entry, inode)))
            })?;
            let Some((current, inode)) = found else { return Ok(None) };
            attr = match inode.and_then(|inode| self.attr_of(current.ino, &inode)) {
                Ok(attr) => Some(attr),
                // Shown without attributes, the kernel would drop the name it knows, and unmount what is mounted below it.
                Err(error) if self.open_files.is_open(current.ino) => return Err(error),
                Err(_) => None,
            };
            entry = current;
        }
        Ok(Some(DirEntry { ino: entry.ino, cookie: entry.index, file_type: entry.file_type, name: entry.name, attr }))
    }

    pub(crate) fn space(&self) -> StatFs {
        let usage = self.store.usage();
        let unit = 4096;
        StatFs {
            frsize: 4096,
            blocks: usage.total_bytes / unit,
            bfree: usage.free_bytes / unit,
            bavail: usage.available_bytes / unit,
            files: usage.total_bytes / unit,
            ffree: usage.available_bytes / unit,
            namelen: dirent::NAME_MAX as u32,
        }
    }

    /// Whether `candidate` is `dir` or a directory above it. The caller holds `topology`.
    pub(crate) fn is_ancestor(&self, candidate: Ino, dir: Ino) -> Result<bool> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == candidate {
                return Ok(true);
            }
            if at == ROOT_INO || at == 0 {
                return Ok(false);
            }
            at = self.load(at)?.parent;
        }
        Err(Error::posix(Errno::ELOOP))
    }

    /// See [`path_of`].
    pub fn path_of(&self, ino: Ino) -> Option<Vec<u8>> {
        path_of(&*self.store, ino)
    }

    /// The inode of a path from the root. Symbolic links are not followed.
    ///
    /// # Errors
    /// Those of `lookup`.
    pub fn resolve(&self, path: &[u8]) -> Result<Ino> {
        let mut at = ROOT_INO;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            at = self.lookup_attr(at, name)?.ino;
        }
        Ok(at)
    }
}

/// A path of an inode from the root, starting with `/`, for people: names may change meanwhile. `None` when it is not
/// known (a deleted inode, or a file whose remembered name was removed).
pub fn path_of<S: Store>(store: &S, ino: Ino) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    let mut at = ino;
    while at != ROOT_INO {
        if names.len() >= PATH_DEPTH_MAX {
            return None;
        }
        let inode = Inode::decode(&store.get(inode_key(at)).ok()??).ok()?;
        let value = store.get(dirindex_key(inode.parent, inode.parent_index)).ok()??;
        let entry = dirent::decode_index(inode.parent_index, &value).ok()?;
        if entry.ino != at {
            return None;
        }
        names.push(entry.name);
        at = inode.parent;
    }
    if names.is_empty() {
        return Some(b"/".to_vec());
    }
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Some(path)
}
