//! Which file a path leads to, when it lies in a filesystem that this daemon mounts: found by the mount that serves it, or, while
//! that is not there (at the start of the daemon, after an `umount`), by the directory it is mounted on and a walk below FUSE.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use qrvsa_api::names::FsName;
use qrvsa_core::fs::ops::ROOT_INO;
use qrvsa_core::{Result, fail};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::host;

/// Most symbolic links of one path, as the kernel has it.
const LINKS_MAX: usize = 40;
/// Inode numbers from here on are those of the files in `.volumes`.
const VOLUME_FILES: u64 = 1 << 63;

/// A directory on which a filesystem is mounted, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The directory.
    pub at: PathBuf,
    /// The filesystem.
    pub fs: FsName,
    /// Whether it is mounted now.
    pub serves: bool,
}

/// A file inside a filesystem of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// The filesystem.
    pub fs: FsName,
    /// Inode number; never used for another file.
    pub ino: u64,
    /// Names the file for good, so that one of another pool or filesystem with the same name is not taken for it.
    pub id: String,
    /// Where the filesystem was mounted when the file was named.
    pub root: PathBuf,
    /// Its path there, then.
    pub path: PathBuf,
}

/// Where paths are looked up.
pub struct Places<'a> {
    /// The filesystems.
    pub engine: &'a dyn Engine,
    /// Where they are mounted.
    pub roots: Vec<Root>,
}

/// How far a walk came.
enum Walked {
    File(u64),
    /// The path goes on from here.
    Path(PathBuf),
    Nothing,
}

impl Places<'_> {
    /// The file at a path; `None` when it lies elsewhere, or nothing is there.
    ///
    /// # Errors
    /// Its pool is not imported; it is the file of a volume; what reading directories fails with.
    pub fn find(&self, path: &Path) -> Result<Option<Inside>> {
        let Ok(mut path) = std::path::absolute(path) else { return Ok(None) };
        if let Some((root, ino)) = self.served(&path) {
            return self.inside(root, ino).map(Some);
        }
        for _ in 0..LINKS_MAX {
            let below = self.roots.iter().filter(|root| path.starts_with(&root.at));
            let Some(root) = below.max_by_key(|root| root.at.as_os_str().len()) else { return Ok(None) };
            match self.walk(root, &path)? {
                Walked::File(ino) => return self.inside(root, ino).map(Some),
                Walked::Path(next) => path = next,
                Walked::Nothing => return Ok(None),
            }
        }
        fail!(Invalid, "{}: too many symbolic links", path.display())
    }

    /// What a mount that serves says of a path.
    fn served(&self, path: &Path) -> Option<(&Root, u64)> {
        let metadata = std::fs::metadata(path).ok()?;
        let devices = host::mount_devices();
        let serves = |root: &&Root| {
            root.serves && devices.iter().any(|(at, device)| *at == root.at && *device == metadata.dev())
        };
        Some((self.roots.iter().find(serves)?, metadata.ino()))
    }

    fn walk(&self, root: &Root, path: &Path) -> Result<Walked> {
        let ops = self.engine.open_fs(&root.fs)?;
        let (mut at, mut done) = (ROOT_INO, root.at.clone());
        let mut rest = path.strip_prefix(&root.at).unwrap_or(path).components();
        while let Some(component) = rest.next() {
            let name = match component {
                Component::ParentDir if at == ROOT_INO => {
                    return Ok(Walked::Path(root.at.parent().unwrap_or(&root.at).join(rest.as_path())));
                }
                Component::ParentDir => "..".as_ref(),
                Component::Normal(name) => name,
                _ => continue,
            };
            let attr = match ops.lookup(at, name.as_bytes()) {
                Ok(attr) => attr,
                Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR) => return Ok(Walked::Nothing),
                Err(e) => return Err(e),
            };
            if attr.mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() {
                let target = PathBuf::from(OsString::from_vec(ops.readlink(attr.ino)?));
                return Ok(Walked::Path(done.join(target).join(rest.as_path())));
            }
            at = attr.ino;
            match component {
                Component::ParentDir => drop(done.pop()),
                _ => done.push(name),
            }
        }
        Ok(Walked::File(at))
    }

    fn inside(&self, root: &Root, ino: u64) -> Result<Inside> {
        if ino >= VOLUME_FILES {
            fail!(Invalid, "the files in .volumes are volumes themselves; serve the volume with --volume");
        }
        let facts = self.engine.file_facts(&root.fs, ino)?;
        let path = facts.path.unwrap_or_default();
        Ok(Inside { fs: root.fs.clone(), ino, id: facts.id, root: root.at.clone(), path })
    }
}
