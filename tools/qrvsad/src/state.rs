//! What must survive a restart or a power cut: which pools are imported and which mounts should exist.
//!
//! One JSON file in the state directory, replaced as a whole: written beside, synced, renamed over, directory synced. A
//! reader sees the old or the new file, never a part. A file that is not understood is kept under another name and
//! reported, and the daemon starts without pools: they are still there, `pool import` finds them.
//!
//! Other small files that must survive ([`StateDir::write`]) are kept the same way beside it.
//!
//! The state directory has one owner at a time, kept by a lock on a file in it that the kernel drops with the process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use qrvsa_api::names::{FsName, check_name};
use serde::{Deserialize, Serialize};

const FILE: &str = "state.json";
const VERSION: u32 = 1;

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistent {
    /// Pools that are imported, or should be.
    #[serde(default)]
    pub pools: Vec<PersistentPool>,
    /// Mounts that should exist.
    #[serde(default)]
    pub mounts: Vec<PersistentMount>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentPool {
    /// Name.
    pub name: String,
    /// Id as hexadecimal digits; empty when never known.
    #[serde(default)]
    pub id: String,
    /// Where its devices were last seen.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentMount {
    /// What.
    pub source: FsName,
    /// Where.
    pub mountpoint: PathBuf,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    #[serde(flatten)]
    state: Persistent,
}

/// A state directory that this process owns.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl StateDir {
    /// Makes the directory if it is missing, and takes it.
    ///
    /// # Errors
    /// One line for people: another daemon owns it, or it cannot be made.
    pub fn open(path: &Path) -> Result<StateDir, String> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| format!("cannot make the state directory {}: {e}", path.display()))?;
        let path =
            path.canonicalize().map_err(|e| format!("cannot find the state directory {}: {e}", path.display()))?;
        match crate::host::lock_file(&path.join("lock"))? {
            Some(lock) => Ok(StateDir { path, _lock: lock }),
            None => Err(format!(
                "another qrvsad uses the state directory {}: stop it, or name another directory with --state",
                path.display()
            )),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state. A damaged file is put aside, with a message in the log.
    ///
    /// # Errors
    /// The file cannot be read, or is from a newer version, which is left as it is.
    pub fn load(&self) -> Result<Persistent, String> {
        let path = self.path.join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Persistent::default()),
            Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
        };
        let problem = match serde_json::from_slice::<Document>(&bytes) {
            Ok(document) if document.version == VERSION => match document.state.check() {
                Ok(()) => return Ok(document.state),
                Err(problem) => problem,
            },
            Ok(document) => return Err(newer(&path, document.version)),
            Err(e) => {
                #[derive(Deserialize)]
                struct Version {
                    version: u32,
                }
                match serde_json::from_slice::<Version>(&bytes) {
                    Ok(v) if v.version > VERSION => return Err(newer(&path, v.version)),
                    _ => e.to_string(),
                }
            }
        };
        let aside = self.put_aside(FILE).map_err(|e| format!("cannot put {} aside: {e}", path.display()))?;
        tracing::error!(
            "{} is damaged ({problem}); kept as {}. Starting without pools: `qrvsa pool import` finds them, mounts must \
             be made again",
            path.display(),
            aside.display()
        );
        Ok(Persistent::default())
    }

    /// Replaces the state; durable on return.
    ///
    /// # Errors
    /// Which step failed. The old state is in place then.
    pub fn save(&self, state: &Persistent) -> io::Result<()> {
        let document = Document { version: VERSION, state: state.clone() };
        let mut bytes = serde_json::to_vec_pretty(&document)?;
        bytes.push(b'\n');
        self.write(FILE, &bytes)
    }

    /// Replaces a file in the directory, mode 0600; durable on return. `name` is a plain file name of the caller's making.
    ///
    /// # Errors
    /// Which step failed. The old file is in place then.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Reads a file of [`StateDir::write`]; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Puts a file aside that is not understood; returns where it is now.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn put_aside(&self, name: &str) -> io::Result<PathBuf> {
        let aside = self.path.join(format!("{name}.damaged"));
        std::fs::rename(self.path.join(name), &aside)?;
        Ok(aside)
    }
}

fn newer(path: &Path, version: u32) -> String {
    format!(
        "{} has version {version}, this program knows version {VERSION}: run the newer qrvsad, or move the file away",
        path.display()
    )
}

impl Persistent {
    /// What the rest of the daemon relies on.
    fn check(&self) -> Result<(), String> {
        for pool in &self.pools {
            check_name("pool", &pool.name).map_err(|e| e.message)?;
        }
        match self.mounts.iter().find(|mount| !mount.mountpoint.is_absolute()) {
            Some(mount) => Err(format!("mount point {} is not absolute", mount.mountpoint.display())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Persistent {
        Persistent {
            pools: vec![PersistentPool { name: "tank".into(), id: "ab".into(), devices: vec!["/dev/sda".into()] }],
            mounts: vec![PersistentMount {
                source: "tank/home".parse().unwrap(),
                mountpoint: "/home".into(),
                options: vec!["ro".into()],
            }],
        }
    }

    #[test]
    fn saves_and_loads() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("deep/er")).unwrap();
        assert_eq!(state.load().unwrap(), Persistent::default());
        state.save(&sample()).unwrap();
        assert_eq!(state.load().unwrap(), sample());
        state.save(&Persistent::default()).unwrap();
        assert_eq!(state.load().unwrap(), Persistent::default());
    }

    #[test]
    fn has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(StateDir::open(dir.path()).unwrap_err().contains("another qrvsad"));
        drop(state);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn an_interrupted_save_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.save(&sample()).unwrap();
        std::fs::write(dir.path().join("state.json.new"), b"{\"version\":1,\"po").unwrap();
        assert_eq!(state.load().unwrap(), sample());
        state.save(&sample()).unwrap();
        assert!(!dir.path().join("state.json.new").exists());
    }

    #[test]
    fn damage_is_put_aside_and_newer_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = dir.path().join(FILE);
        for bad in [
            &b""[..],
            b"{",
            b"[]",
            b"{\"version\":0}x",
            b"{\"version\":1,\"pools\":[{\"name\":\"../x\"}]}",
            b"{\"version\":1,\"mounts\":[{\"source\":\"a\",\"mountpoint\":\"b\"}]}",
            b"{\"version\":1,\"mounts\":[{\"source\":\"a/b/c\",\"mountpoint\":\"/b\"}]}",
        ] {
            std::fs::write(&file, bad).unwrap();
            assert_eq!(state.load().unwrap(), Persistent::default());
            assert!(!file.exists());
            assert_eq!(std::fs::read(dir.path().join("state.json.damaged")).unwrap(), bad);
        }
        for newer in [&b"{\"version\":2}"[..], b"{\"version\":7,\"pools\":{}}"] {
            std::fs::write(&file, newer).unwrap();
            assert!(state.load().unwrap_err().contains("newer"));
            assert!(file.exists());
        }
    }
}
