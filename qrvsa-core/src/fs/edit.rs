//! Gathering the item changes of one operation before its transaction begins.
//!
//! An [`Edit`] loads inodes and directory buckets at most once each, so an operation in which the same directory, inode or
//! bucket plays several parts (a rename within one directory, two names with one hash) changes one copy. Everything that
//! can fail happens while editing; [`Edit::finish`] gives a list of puts that is then applied as a whole, so a failed
//! operation leaves nothing behind.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::dirent::{self, Dirent, KIND_DIRENT, dirindex_key};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{Inode, LINK_MAX, inode_key};
use crate::fs::ops::Ino;
use crate::fs::store::{KIND_ORPHAN, Log, Store};
use crate::tree::Key;

/// Item changes in the order they are applied; `None` deletes.
pub(crate) type Puts = Vec<(Key, Option<Vec<u8>>, Log)>;

struct EditedInode {
    ino: Ino,
    inode: Inode,
    is_new: bool,
}

/// The changes of one operation, being gathered under the exclusive locks of all inodes in it.
pub(crate) struct Edit<'a, S: Store> {
    fs: &'a FileSystem<S>,
    inodes: Vec<EditedInode>,
    buckets: Vec<(Key, Vec<Dirent>)>,
    items: Puts,
}

/// How changes of an existing inode's item are logged, other than changes of contents.
pub(crate) fn attribute_log(inode: &Inode) -> Log {
    if inode.is_regular() { Log::KeepContentFields } else { Log::Always }
}

impl<'a, S: Store> Edit<'a, S> {
    pub(crate) fn new(fs: &'a FileSystem<S>) -> Edit<'a, S> {
        Edit { fs, inodes: Vec::with_capacity(4), buckets: Vec::with_capacity(2), items: Vec::with_capacity(6) }
    }

    /// The inode to look at and change; `ENOENT` when there is none.
    pub(crate) fn inode(&mut self, ino: Ino) -> Result<&mut Inode> {
        let at = match self.inodes.iter().position(|e| e.ino == ino) {
            Some(at) => at,
            None => {
                let inode = self.fs.load(ino)?;
                self.inodes.push(EditedInode { ino, inode, is_new: false });
                self.inodes.len() - 1
            }
        };
        Ok(&mut self.inodes[at].inode)
    }

    /// The directory to change the entries of: `ENOTDIR` when it is none, `ENOENT` when it was removed.
    pub(crate) fn live_dir(&mut self, ino: Ino) -> Result<&mut Inode> {
        let dir = self.inode(ino)?;
        if !dir.is_dir() {
            return Err(Error::posix(Errno::ENOTDIR));
        }
        if dir.nlink == 0 {
            return Err(Error::posix(Errno::ENOENT));
        }
        Ok(dir)
    }

    /// Adds an inode that does not exist yet.
    pub(crate) fn insert_inode(&mut self, ino: Ino, inode: Inode) {
        self.inodes.push(EditedInode { ino, inode, is_new: true });
    }

    /// Adds another item change, applied before everything else.
    pub(crate) fn put(&mut self, key: Key, value: Option<Vec<u8>>, log: Log) {
        self.items.push((key, value, log));
    }

    /// The other item changes so far.
    pub(crate) fn items_mut(&mut self) -> &mut Puts {
        &mut self.items
    }

    fn bucket(&mut self, dir: Ino, name: &[u8]) -> Result<&mut Vec<Dirent>> {
        let key = self.fs.dirent_key(dir, name);
        debug_assert_eq!(key.kind, KIND_DIRENT);
        let at = match self.buckets.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                let entries = match self.fs.store.get(key)? {
                    Some(value) => dirent::decode_bucket(&value)?,
                    None => Vec::new(),
                };
                self.buckets.push((key, entries));
                self.buckets.len() - 1
            }
        };
        Ok(&mut self.buckets[at].1)
    }

    /// The entry of a name.
    pub(crate) fn find(&mut self, dir: Ino, name: &[u8]) -> Result<Option<Dirent>> {
        Ok(self.bucket(dir, name)?.iter().find(|e| e.name == name).cloned())
    }

    /// Adds an entry under a new index, which it returns. The name is not there yet.
    pub(crate) fn add_entry(&mut self, dir: Ino, name: &[u8], ino: Ino, file_type: u32) -> Result<u64> {
        let parent = self.live_dir(dir)?;
        let index = parent.next_index;
        if index >= i64::MAX as u64 - 1 {
            return Err(Error::posix(Errno::ENOSPC));
        }
        parent.next_index += 1;
        parent.entries += 1;
        self.bucket(dir, name)?.push(Dirent { index, ino, file_type, name: name.to_vec() });
        self.put(dirindex_key(dir, index), Some(dirent::encode_index(ino, file_type, name)), Log::Always);
        Ok(index)
    }

    /// Lets an existing entry name another inode, in its place.
    pub(crate) fn replace_entry(&mut self, dir: Ino, name: &[u8], ino: Ino, file_type: u32) -> Result<u64> {
        let entry = self.bucket(dir, name)?.iter_mut().find(|e| e.name == name).ok_or(Error::posix(Errno::ENOENT))?;
        entry.ino = ino;
        entry.file_type = file_type;
        let index = entry.index;
        self.put(dirindex_key(dir, index), Some(dirent::encode_index(ino, file_type, name)), Log::Always);
        Ok(index)
    }

    /// Gives an entry another name, which is not there yet, in its place. Returns its index.
    pub(crate) fn rename_entry(&mut self, dir: Ino, name: &[u8], new_name: &[u8]) -> Result<u64> {
        let bucket = self.bucket(dir, name)?;
        let at = bucket.iter().position(|e| e.name == name).ok_or(Error::posix(Errno::ENOENT))?;
        let mut entry = bucket.remove(at);
        entry.name = new_name.to_vec();
        let (index, value) = (entry.index, dirent::encode_index(entry.ino, entry.file_type, new_name));
        self.bucket(dir, new_name)?.push(entry);
        self.put(dirindex_key(dir, index), Some(value), Log::Always);
        Ok(index)
    }

    /// Removes an entry.
    pub(crate) fn remove_entry(&mut self, dir: Ino, name: &[u8]) -> Result<Dirent> {
        let bucket = self.bucket(dir, name)?;
        let at = bucket.iter().position(|e| e.name == name).ok_or(Error::posix(Errno::ENOENT))?;
        let entry = bucket.remove(at);
        let parent = self.inode(dir)?;
        parent.entries = parent.entries.saturating_sub(1);
        self.put(dirindex_key(dir, entry.index), None, Log::Always);
        Ok(entry)
    }

    /// Counts one more subdirectory or link.
    pub(crate) fn add_link(&mut self, ino: Ino) -> Result<()> {
        let inode = self.inode(ino)?;
        if inode.nlink >= LINK_MAX {
            return Err(Error::posix(Errno::EMLINK));
        }
        inode.nlink += 1;
        Ok(())
    }

    /// Takes the name `entry` of `dir` off its inode, which becomes an orphan when that was the last (or it is a
    /// directory, which has one name). Returns whether it did.
    pub(crate) fn drop_link(&mut self, dir: Ino, entry: &Dirent, now_ns: i64) -> Result<bool> {
        let inode = self.inode(entry.ino)?;
        inode.ctime_ns = now_ns;
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink.saturating_sub(1) };
        if inode.nlink == 0 {
            inode.parent = 0;
            inode.parent_index = 0;
            let record_size = inode.record_size;
            self.put(Key::new(0, KIND_ORPHAN, entry.ino), Some(record_size.to_le_bytes().to_vec()), Log::Always);
            return Ok(true);
        }
        if inode.parent == dir && inode.parent_index == entry.index {
            inode.parent = 0;
            inode.parent_index = 0;
        }
        Ok(false)
    }

    /// The changes: new and changed inodes and other items first, then names in the order they were touched, so that a
    /// name never stands for an inode that is not there.
    ///
    /// # Errors
    /// `ENOSPC` when too many names share a hash.
    pub(crate) fn finish(self) -> Result<Puts> {
        let mut puts = self.items;
        for edited in &self.inodes {
            let log = if edited.is_new { Log::Always } else { attribute_log(&edited.inode) };
            puts.push((inode_key(edited.ino), Some(edited.inode.encode().to_vec()), log));
        }
        for (key, entries) in &self.buckets {
            let value = if entries.is_empty() { None } else { Some(dirent::encode_bucket(entries)?) };
            puts.push((*key, value, Log::Always));
        }
        Ok(puts)
    }
}
