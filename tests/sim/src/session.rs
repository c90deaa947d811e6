//! A pool that is open, its filesystems, and operations on them that the model follows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::errno::Errno;
use qrvsa_core::dataset::Dataset;
use qrvsa_core::engine::Pool;
use qrvsa_core::fs::ops::{AllocateMode, Caller, NewNode, Operations, RenameMode, SetAttr, XattrMode};
use qrvsa_core::fs::{FileSystem, Options as FsOptions};
use qrvsa_core::pool::format::entries::Content;
use qrvsa_core::volume::Volume;
use qrvsa_core::{Error, ErrorKind, Result};

use crate::model::{Body, Ino, Model, Node, ROOT, State, Tree};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// An operation of a workload. Names are chosen so that it makes sense when it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes an empty file.
    Create(Ino, String),
    /// Makes a directory.
    Mkdir(Ino, String),
    /// Makes a symbolic link.
    Symlink(Ino, String, String),
    /// Makes another name.
    Link(Ino, Ino, String),
    /// Removes a name.
    Unlink(Ino, String),
    /// Removes an empty directory.
    Rmdir(Ino, String),
    /// Renames, or exchanges.
    Rename((Ino, String), (Ino, String), bool),
    /// Writes so many bytes drawn from a seed at an offset.
    Write(Ino, u64, usize, u64),
    /// Sets the size.
    Truncate(Ino, u64),
    /// Punches a hole.
    Punch(Ino, u64, u64),
    /// Copies from a file and offset to another, so many bytes.
    Copy((Ino, u64), (Ino, u64), u64),
    /// Sets the mode.
    Chmod(Ino, u32),
    /// Sets an attribute to so many bytes drawn from a seed.
    SetXattr(Ino, String, usize, u64),
    /// Removes an attribute.
    RemoveXattr(Ino, String),
    /// Reads a whole file and compares it.
    Read(Ino),
    /// Makes a file, or a directory, durable.
    Fsync(Ino),
    /// Makes everything durable.
    Commit,
}

/// So many bytes, different for each seed and place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        bytes.extend_from_slice(&z.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An open pool.
pub struct Session {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Its filesystems, by name.
    pub filesystems: BTreeMap<String, Arc<FileSystem<Dataset>>>,
    /// Its volumes, by name.
    pub volumes: BTreeMap<String, Arc<Volume>>,
}

impl Session {
    /// Opens all filesystems and volumes of a pool.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(pool: Arc<Pool>) -> Result<Session> {
        let (mut filesystems, mut volumes) = (BTreeMap::new(), BTreeMap::new());
        for dataset in pool.datasets() {
            let name = dataset.name();
            if dataset.content() == Content::Volume {
                volumes.insert(name.clone(), pool.open_volume(&name)?);
                continue;
            }
            filesystems.insert(name, Arc::new(FileSystem::open(dataset, FsOptions::default())?));
        }
        Ok(Session { pool, filesystems, volumes })
    }

    /// All bytes of a volume.
    ///
    /// # Errors
    /// Those of the volume.
    pub fn read_volume(&self, name: &str) -> Result<Vec<u8>> {
        let volume = &self.volumes[name];
        let mut bytes = vec![0xee; volume.size_bytes() as usize];
        volume.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// All bytes of all volumes.
    ///
    /// # Errors
    /// The first error of a read.
    pub fn read_volumes(&self) -> Result<crate::volumes::Contents> {
        self.volumes.keys().map(|name| Ok((name.clone(), self.read_volume(name)?))).collect()
    }

    /// Lets go of everything, as a crash does.
    pub fn abandon(self) {
        self.pool.abandon();
    }

    /// Runs an operation; the model follows if it succeeds.
    ///
    /// # Errors
    /// Those of the filesystem; the model is then as it was. `Corrupt` if a read returned other bytes than the model has.
    pub fn run(&self, fs: &str, model: &mut Model, action: &Action) -> Result<()> {
        let fs = &self.filesystems[fs];
        match action {
            Action::Create(dir, name) => {
                let new = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, rdev: 0 };
                let ino = fs.mknod(CALLER, *dir, name.as_bytes(), new)?.ino;
                model.add(*dir, name, ino, Node::new(Body::File(Arc::default()), 0o644));
            }
            Action::Mkdir(dir, name) => {
                let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, rdev: 0 };
                let ino = fs.mknod(CALLER, *dir, name.as_bytes(), new)?.ino;
                model.add(*dir, name, ino, Node::new(Body::Dir(BTreeMap::new()), 0o755));
            }
            Action::Symlink(dir, name, target) => {
                let ino = fs.symlink(CALLER, *dir, name.as_bytes(), target.as_bytes())?.ino;
                model.add(*dir, name, ino, Node::new(Body::Link(target.clone()), 0o777));
            }
            Action::Link(ino, dir, name) => {
                fs.link(*ino, *dir, name.as_bytes())?;
                model.node(*ino).nlink += 1;
                model.dir(*dir).insert(name.clone(), *ino);
            }
            Action::Unlink(dir, name) => {
                fs.unlink(*dir, name.as_bytes())?;
                model.remove(*dir, name);
            }
            Action::Rmdir(dir, name) => {
                fs.rmdir(*dir, name.as_bytes())?;
                model.remove(*dir, name);
            }
            Action::Rename(from, to, exchange) => {
                let mode = if *exchange { RenameMode::Exchange } else { RenameMode::Replace };
                fs.rename(CALLER, (from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), mode)?;
                model.rename((from.0, &from.1), (to.0, &to.1), *exchange);
            }
            Action::Write(ino, offset, len, seed) => {
                let data = pattern(*seed, *len);
                let done = fs.write(*ino, *offset, &data, false, false)?;
                let bytes = model.file(*ino);
                let (from, to) = (*offset as usize, *offset as usize + done);
                bytes.resize(bytes.len().max(to), 0);
                bytes[from..to].copy_from_slice(&data[..done]);
            }
            Action::Truncate(ino, size) => {
                fs.setattr(CALLER, *ino, SetAttr { size: Some(*size), ..SetAttr::default() })?;
                model.file(*ino).resize(*size as usize, 0);
            }
            Action::Punch(ino, from, to) => {
                fs.fallocate(CALLER, *ino, AllocateMode::PunchHole, *from..*to)?;
                let bytes = model.file(*ino);
                let end = (*to as usize).min(bytes.len());
                if (*from as usize) < end {
                    bytes[*from as usize..end].fill(0);
                }
            }
            Action::Copy(from, to, len) => {
                let done = fs.copy_range(*from, *to, *len)? as usize;
                let source = model.bytes(from.0)[from.1 as usize..][..done].to_vec();
                if done > 0 {
                    let bytes = model.file(to.0);
                    let (a, b) = (to.1 as usize, to.1 as usize + done);
                    bytes.resize(bytes.len().max(b), 0);
                    bytes[a..b].copy_from_slice(&source);
                }
            }
            Action::Chmod(ino, mode) => {
                fs.setattr(CALLER, *ino, SetAttr { mode: Some(*mode), ..SetAttr::default() })?;
                model.node(*ino).mode = *mode;
            }
            Action::SetXattr(ino, name, len, seed) => {
                let value = pattern(*seed, *len);
                fs.setxattr(CALLER, *ino, name.as_bytes(), &value, XattrMode::Set)?;
                model.node(*ino).xattrs.insert(name.clone(), value);
            }
            Action::RemoveXattr(ino, name) => {
                fs.removexattr(CALLER, *ino, name.as_bytes())?;
                model.node(*ino).xattrs.remove(name);
            }
            Action::Read(ino) => {
                let got = contents(fs, *ino)?;
                let want = model.bytes(*ino);
                if got != *want {
                    let differ = |(_, (a, b)): &(usize, (&u8, &u8))| a != b;
                    let wrong: Vec<usize> =
                        got.iter().zip(want.iter()).enumerate().filter(differ).map(|d| d.0).collect();
                    let text = format!(
                        "inode {ino}: a read returned wrong bytes: {} of {}, {} differ, from {:?} to {:?}, zeros there: {}",
                        got.len(),
                        want.len(),
                        wrong.len(),
                        wrong.first(),
                        wrong.last(),
                        wrong.iter().all(|i| got[*i] == 0)
                    );
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
            }
            Action::Fsync(ino) => fs.fsync(*ino, false)?,
            Action::Commit => self.pool.commit()?,
        }
        Ok(())
    }

    /// Everything that can be read, of all filesystems.
    ///
    /// # Errors
    /// The first error of a read.
    pub fn dump(&self) -> Result<State> {
        self.filesystems.iter().map(|(name, fs)| Ok((name.clone(), dump(fs)?))).collect()
    }
}

/// All bytes of a file.
///
/// # Errors
/// Those of the filesystem.
pub fn contents(fs: &FileSystem<Dataset>, ino: Ino) -> Result<Vec<u8>> {
    let size = fs.getattr(ino)?.size as usize;
    let mut bytes = vec![0xee; size + 1];
    let len = fs.read(ino, 0, &mut bytes)?;
    bytes.truncate(len);
    if len != size {
        return Err(Error::new(ErrorKind::Corrupt, format!("inode {ino}: {len} bytes of {size} were read")));
    }
    Ok(bytes)
}

/// The files that have a name, as far as directories can be read.
pub fn reachable(fs: &FileSystem<Dataset>) -> BTreeSet<Ino> {
    let (mut files, mut seen, mut open) = (BTreeSet::new(), BTreeSet::new(), vec![ROOT]);
    while let Some(dir) = open.pop() {
        if !seen.insert(dir) {
            continue;
        }
        // an unreadable directory is left out
        let _ = fs.readdir(dir, 0, false, &mut |e| {
            match e.file_type & libc::S_IFMT {
                libc::S_IFDIR => open.push(e.ino),
                libc::S_IFREG => drop(files.insert(e.ino)),
                _ => {}
            }
            true
        });
    }
    files
}

fn dump(fs: &FileSystem<Dataset>) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![ROOT];
    while let Some(ino) = open.pop() {
        if tree.contains_key(&ino) {
            continue;
        }
        let attr = fs.getattr(ino)?;
        let body = match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => {
                let mut entries = BTreeMap::new();
                fs.readdir(ino, 0, false, &mut |e| {
                    if e.name != b"." && e.name != b".." {
                        entries.insert(String::from_utf8_lossy(&e.name).into_owned(), e.ino);
                    }
                    true
                })?;
                for (name, child) in &entries {
                    let found = fs.lookup(ino, name.as_bytes())?.ino;
                    if found != *child {
                        let text = format!("inode {ino}: '{name}' is listed as {child} and found as {found}");
                        return Err(Error::new(ErrorKind::Corrupt, text));
                    }
                }
                open.extend(entries.values());
                Body::Dir(entries)
            }
            libc::S_IFLNK => Body::Link(String::from_utf8_lossy(&fs.readlink(ino)?).into_owned()),
            _ => Body::File(Arc::new(contents(fs, ino)?)),
        };
        let mut xattrs = BTreeMap::new();
        for name in fs.listxattr(ino)? {
            let value = fs.getxattr(ino, &name)?;
            xattrs.insert(String::from_utf8_lossy(&name).into_owned(), value);
        }
        tree.insert(ino, Node { body, mode: attr.mode & 0o7777, nlink: attr.nlink, xattrs });
    }
    Ok(tree)
}

/// Whether an error says that the pool is full.
pub fn is_full(error: &Error) -> bool {
    error.errno() == Errno::ENOSPC
}
