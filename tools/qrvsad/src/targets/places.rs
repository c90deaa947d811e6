//! Which file a path leads to, when it lies in a filesystem that this daemon mounts, or will mount: found by a walk below FUSE from
//! the directory on which it is mounted, or should be (at the start of the daemon, after an `umount`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Components, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use qrvsa_api::names::FsName;
use qrvsa_core::fs::ops::ROOT_INO;
use qrvsa_core::{Result, fail};
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::host::MountTable;

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
    engine: &'a dyn Engine,
    roots: Vec<Root>,
    /// What is mounted where, as the kernel has it.
    table: MountTable,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file in a filesystem of ours.
    Inside(Inside),
    /// Nothing, in a filesystem of ours.
    Nothing,
    /// Somewhere else, or nowhere.
    Outside,
}

/// Where a walk goes on.
enum Walked {
    At(Found),
    /// Another path to resolve.
    Path(PathBuf),
}

impl<'a> Places<'a> {
    /// The places of filesystems mounted at `roots`.
    pub fn new(engine: &'a dyn Engine, roots: Vec<Root>) -> Places<'a> {
        Places { engine, roots, table: MountTable::read() }
    }

    /// The engine.
    pub fn engine(&self) -> &'a dyn Engine {
        self.engine
    }

    /// What is at a path. The kernel is asked about directories outside of our mounts only: a question to a mount of ours
    /// would be one to this process, which could then not be killed before it answers itself.
    ///
    /// # Errors
    /// Its pool is not imported; it is the file of a volume; what reading directories fails with.
    pub fn find(&self, path: &Path) -> Result<Found> {
        let Ok(mut path) = std::path::absolute(path) else { return Ok(Found::Outside) };
        for _ in 0..LINKS_MAX {
            match self.step(&path)? {
                Walked::At(found) => return Ok(found),
                Walked::Path(next) => path = next,
            }
        }
        fail!(Invalid, "{}: too many symbolic links", path.display())
    }

    /// Follows a path to its end, or to the first symbolic link.
    fn step(&self, path: &Path) -> Result<Walked> {
        let mut done = PathBuf::from("/");
        let mut rest = path.components();
        while let Some(component) = rest.next() {
            match component {
                Component::Normal(name) => done.push(name),
                Component::ParentDir => {
                    done.pop();
                    continue;
                }
                _ => continue,
            }
            if let Some((root, top)) = self.root_at(&done) {
                return self.walk(root, &top, done, rest);
            }
            // What is no link, or is not there, the next component or whoever opens it finds out.
            if let Ok(target) = std::fs::read_link(&done) {
                done.pop();
                return Ok(Walked::Path(done.join(target).join(rest.as_path())));
            }
        }
        Ok(Walked::At(Found::Outside))
    }

    /// The filesystem of ours that begins at a directory, and which directory of it that is: a bind mount may show a part.
    fn root_at(&self, at: &Path) -> Option<(&Root, PathBuf)> {
        match self.table.topmost(at) {
            Some(mount) => {
                let device = mount.ours?;
                let root = self.roots.iter().find(|root| root.serves && self.table.device(&root.at) == Some(device))?;
                Some((root, mount.top.clone()))
            }
            None => self.roots.iter().find(|root| !root.serves && root.at == at).map(|root| (root, "/".into())),
        }
    }

    /// Walks on inside a filesystem, from the directory `top` of it, which is `done` for everybody else.
    fn walk(&self, root: &Root, top: &Path, mut done: PathBuf, mut rest: Components<'_>) -> Result<Walked> {
        let ops = self.engine.open_fs(&root.fs)?;
        let look = |at: u64, name: &OsStr| match ops.lookup(at, name.as_bytes()) {
            Ok(attr) => Ok(Some(attr)),
            Err(e) if matches!(e.errno(), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(e),
        };
        let mut way = vec![ROOT_INO];
        for component in top.components() {
            if let Component::Normal(name) = component {
                let Some(attr) = look(way.last().copied().unwrap_or(ROOT_INO), name)? else {
                    return Ok(Walked::At(Found::Nothing));
                };
                way = vec![attr.ino];
            }
        }
        while let Some(component) = rest.next() {
            let name = match component {
                Component::ParentDir => {
                    done.pop();
                    way.pop();
                    if way.is_empty() {
                        return Ok(Walked::Path(done.join(rest.as_path())));
                    }
                    continue;
                }
                Component::Normal(name) => name,
                _ => continue,
            };
            let Some(attr) = look(way.last().copied().unwrap_or(ROOT_INO), name)? else {
                return Ok(Walked::At(Found::Nothing));
            };
            if attr.mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() {
                let target = PathBuf::from(OsString::from_vec(ops.readlink(attr.ino)?));
                return Ok(Walked::Path(done.join(target).join(rest.as_path())));
            }
            done.push(name);
            if self.table.topmost(&done).is_some() {
                // something is mounted on it
                return match self.root_at(&done) {
                    Some((root, top)) => self.walk(root, &top, done, rest),
                    None => Ok(Walked::At(Found::Outside)),
                };
            }
            way.push(attr.ino);
        }
        self.inside(root, way.last().copied().unwrap_or(ROOT_INO)).map(|file| Walked::At(Found::Inside(file)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineOptions;
    use crate::engine_core::CoreEngine;
    use qrvsa_api::{CreateFs, CreatePool, DeviceSpec};
    use qrvsa_core::fs::ops::{Caller, NewNode};
    use std::time::Duration;

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

    /// A pool with `/vms/disk` and links, and in its other filesystem `/f`.
    fn engine(dir: &Path) -> CoreEngine {
        let engine = CoreEngine::new(EngineOptions {
            memory_limit_bytes: 64 << 20,
            sync_interval: Duration::from_secs(60),
            scrub_rate_bytes_per_s: None,
        });
        let device = DeviceSpec { path: dir.join("member"), size_bytes: Some(256 << 20), vhdx: false };
        let request = CreatePool { name: "tank".into(), devices: vec![device], geometry: None, force: false };
        engine.create_pool(&request).unwrap();
        engine.fs_create("tank", &CreateFs { name: "inner".into(), properties: Vec::new() }).unwrap();
        let node = |mode: u32| NewNode { mode, umask: 0, rdev: 0 };
        let top = engine.open_fs(&"tank".parse().unwrap()).unwrap();
        let vms = top.mknod(CALLER, ROOT_INO, b"vms", node(SFlag::S_IFDIR.bits() | 0o755)).unwrap().ino;
        top.mknod(CALLER, vms, b"disk", node(SFlag::S_IFREG.bits() | 0o644)).unwrap();
        top.symlink(CALLER, vms, b"near", b"./disk").unwrap();
        top.symlink(CALLER, ROOT_INO, b"far", dir.join("mnt/vms").as_os_str().as_bytes()).unwrap();
        top.symlink(CALLER, ROOT_INO, b"loop", b"loop").unwrap();
        top.symlink(CALLER, ROOT_INO, b"out", b"../elsewhere").unwrap();
        let inner = engine.open_fs(&"tank/inner".parse().unwrap()).unwrap();
        inner.mknod(CALLER, ROOT_INO, b"f", node(SFlag::S_IFREG.bits() | 0o644)).unwrap();
        engine
    }

    fn inside(found: Result<Found>) -> (String, PathBuf) {
        match found.unwrap() {
            Found::Inside(file) => (file.fs.to_string(), file.path),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_are_found_without_their_mount() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let engine = engine(&dir);
        let root = |at: &str, fs: &str| Root { at: dir.join(at), fs: fs.parse().unwrap(), serves: false };
        let places = Places::new(&engine, vec![root("mnt", "tank"), root("other", "tank/inner")]);
        std::fs::write(dir.join("elsewhere"), b"x").unwrap();
        std::os::unix::fs::symlink("mnt/vms", dir.join("link")).unwrap();
        let find = |path: &str| places.find(&dir.join(path));
        let disk = ("tank".to_owned(), PathBuf::from("vms/disk"));
        for path in [
            "mnt/vms/disk",
            "./mnt/vms/../vms/./disk",
            "mnt/vms/near",
            "mnt/far/disk",
            "link/disk",
            "link/near",
            "other/../mnt/vms/disk",
        ] {
            assert_eq!(inside(find(path)), disk, "{path}");
        }
        assert_eq!(inside(find("other/f")), ("tank/inner".to_owned(), PathBuf::from("f")));
        for path in ["mnt/none", "mnt/vms/disk/below", "link/none"] {
            assert_eq!(find(path).unwrap(), Found::Nothing, "{path}");
        }
        for path in ["elsewhere", "mnt/out", "nowhere/at/all", "mnt/../elsewhere"] {
            assert_eq!(find(path).unwrap(), Found::Outside, "{path}");
        }
        assert!(find("mnt/loop").unwrap_err().to_string().contains("too many symbolic links"));
        // one that has the name of another that was there before is another file
        let Found::Inside(file) = find("other/f").unwrap() else { panic!("it was there") };
        assert!(file.id.ends_with(&format!("-{}", file.ino)));
        engine.export("tank").unwrap();
        assert!(find("mnt/vms/disk").unwrap_err().to_string().contains("not imported"));
    }
}
