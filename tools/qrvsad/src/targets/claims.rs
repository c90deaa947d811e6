//! Files and block devices outside of our pools as the storage of logical units, claimed as pools and the VHDX tools claim theirs:
//! by `flock` a file, by `O_EXCL` a block device, which the kernel then lets nobody mount. What one has, the others refuse.
//!
//! **Sharing.** All units of this daemon on one file have one claim: several targets may serve the same disk, as with tgt. The claim
//! is as strong as the strongest of them has needed, until the last is gone. Units that only read let others read: their claim on a
//! file is a shared one, and it may be behind a loop device. A block device can only be had alone, so they do not claim it: a CD
//! may be mounted as well.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, fstatfs};
use parking_lot::Mutex;
use qrvsa_api::ApiError;
use qrvsa_core::device::refuse_if_used;
use qrvsa_iscsi::backing::{FileBacking, FileOptions};

use super::Result;
use crate::error::from_core;

/// Who ends lets go of a file a moment later, and system programs look into devices for a moment.
const RETRY: Duration = Duration::from_millis(20);
const RETRIES: u32 = 25;

/// Which file it is, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Id {
    /// A block device: its number.
    Block(u64),
    /// A regular file: its filesystem and inode.
    File(u64, u64),
    /// Nothing that can be storage.
    Other,
}

impl Id {
    fn of(metadata: &Metadata) -> Id {
        let kind = metadata.file_type();
        if kind.is_block_device() {
            Id::Block(metadata.rdev())
        } else if kind.is_file() {
            Id::File(metadata.dev(), metadata.ino())
        } else {
            Id::Other
        }
    }
}

/// What this daemon's units have claimed.
#[derive(Default)]
pub struct FileClaims(Mutex<BTreeMap<Id, Weak<Claim>>>);

/// The claim on a file, by all units that stand on it.
struct Claim {
    id: Id,
    held: Mutex<Option<Held>>,
}

/// A descriptor that holds the claim.
struct Held {
    file: File,
    /// Others may not even read.
    alone: bool,
}

impl FileClaims {
    /// Opens storage, claimed until it is dropped.
    ///
    /// # Errors
    /// `NotFound` for what is not there or cannot be opened; `Busy` for what somebody else uses.
    pub fn open(&self, path: &Path, options: FileOptions) -> Result<FileBacking> {
        let found = std::fs::metadata(path).map_err(|e| cannot_use(path, &e))?;
        let id = Id::of(&found);
        let claim = match id {
            Id::Other => None,
            Id::Block(_) if options.read_only => None,
            _ => Some(self.claim(id)),
        };
        if let Some(claim) = &claim {
            claim.hold(path, !options.read_only)?;
        }
        let backing = FileBacking::open(path, options).map_err(no_storage)?;
        if Id::of(&backing.metadata().map_err(|e| cannot_use(path, &e))?) != id {
            return Err(replaced(path));
        }
        Ok(match claim {
            Some(claim) => backing.holding(claim),
            None => backing,
        })
    }

    /// The claim on a file, which may hold nothing yet.
    fn claim(&self, id: Id) -> Arc<Claim> {
        let mut all = self.0.lock();
        all.retain(|_, claim| claim.strong_count() > 0);
        if let Some(claim) = all.get(&id).and_then(Weak::upgrade) {
            return claim;
        }
        let claim = Arc::new(Claim { id, held: Mutex::new(None) });
        all.insert(id, Arc::downgrade(&claim));
        claim
    }
}

impl Claim {
    /// Makes sure that nobody else writes the file, nor, for `write`, uses it at all.
    fn hold(&self, path: &Path, write: bool) -> Result<()> {
        let mut held = self.held.lock();
        if held.as_ref().is_some_and(|held| held.alone || !write) {
            return Ok(());
        }
        // What the readers among our own units share is no reason not to have it alone.
        if let Some(shared) = &*held {
            let _ = shared.file.unlock();
        }
        match take(path, self.id, write) {
            Ok(file) => {
                *held = Some(Held { file, alone: write });
                Ok(())
            }
            Err(e) => {
                if let Some(shared) = &*held
                    && let Err(lost) = shared.file.try_lock_shared()
                {
                    tracing::warn!("{}: LUNs that read it have lost their lock on it: {lost}", path.display());
                }
                Err(e)
            }
        }
    }
}

/// Opens and claims what has to be the file `id`.
fn take(path: &Path, id: Id, write: bool) -> Result<File> {
    let block = matches!(id, Id::Block(_));
    let claim = if block { OFlag::O_EXCL } else { OFlag::empty() };
    let mut options = File::options();
    // Some network filesystems give an exclusive lock only to who can write.
    options.read(true).write(write && !block).custom_flags((OFlag::O_NONBLOCK | claim).bits());
    for retries in (0..=RETRIES).rev() {
        let claimed = match options.open(path) {
            Ok(file) if block || lock(&file, path, write) => Some(file),
            Ok(_) => None,
            Err(e) if block && e.raw_os_error() == Some(Errno::EBUSY as i32) => None,
            Err(e) => return Err(cannot_use(path, &e)),
        };
        if let Some(file) = claimed {
            if Id::of(&file.metadata().map_err(|e| cannot_use(path, &e))?) != id {
                return Err(replaced(path));
            }
            if write {
                refuse_if_used(path, &file).map_err(|e| from_core(&e))?;
            }
            return Ok(file);
        }
        // Say where it is mounted, if that is the reason.
        if block && let Ok(file) = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
            refuse_if_used(path, &file).map_err(|e| from_core(&e))?;
        }
        if retries > 0 {
            std::thread::sleep(RETRY);
        }
    }
    Err(ApiError::busy(format!("{} is in use by a pool or another program", path.display()))
        .with_hint("end what uses it (`qrvsa pool status` shows the devices of pools), or name another"))
}

/// Locks a file. `false`: somebody else has it.
fn lock(file: &File, path: &Path, write: bool) -> bool {
    // There a lock keeps out also who has the file open twice, as a unit does.
    const CIFS: [FsType; 2] = [FsType(0xff53_4d42), FsType(0xfe53_4d42)];
    if fstatfs(file).is_ok_and(|fs| CIFS.contains(&fs.filesystem_type())) {
        tracing::warn!("{}: on this network filesystem other programs cannot be kept from it", path.display());
        return true;
    }
    match if write { file.try_lock() } else { file.try_lock_shared() } {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(e)) => {
            tracing::warn!("{}: it cannot be locked ({e}), so other programs are not kept from it", path.display());
            true
        }
    }
}

fn no_storage(why: String) -> ApiError {
    ApiError::not_found(format!("cannot use {why}")).with_hint("name an existing file or block device")
}

fn cannot_use(path: &Path, error: &std::io::Error) -> ApiError {
    no_storage(format!("{}: {error}", path.display()))
}

fn replaced(path: &Path) -> ApiError {
    ApiError::busy(format!("{} was replaced while it was opened", path.display())).with_hint("try again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use qrvsa_api::ErrorKind;
    use qrvsa_core::device::{self, OpenOptions};
    use std::path::PathBuf;

    const WRITE: FileOptions = FileOptions { read_only: false, direct: false, thin: false };
    const READ: FileOptions = FileOptions { read_only: true, direct: false, thin: false };

    fn disk(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    fn refused(claims: &FileClaims, path: &Path, options: FileOptions) -> ErrorKind {
        match claims.open(path, options) {
            Ok(_) => panic!("{} must not open", path.display()),
            Err(e) => e.kind,
        }
    }

    /// As a pool would have it.
    fn member(path: &Path) -> qrvsa_core::Result<Arc<dyn device::Device>> {
        device::open(path, OpenOptions { create_size: None, exclusive: true, read_only: false })
    }

    #[test]
    fn units_share_what_they_keep_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (disk(&dir, "disk"), dir.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let claims = FileClaims::default();
        let first = claims.open(&path, WRITE).unwrap();
        let second = claims.open(&link, WRITE).unwrap();
        let reader = claims.open(&path, READ).unwrap();
        let kept = || member(&path).err().map(|e| e.kind()) == Some(qrvsa_core::ErrorKind::Busy);
        assert!(kept());
        drop(first);
        assert!(kept());
        drop(second);
        assert!(kept());
        drop(reader);
        let theirs = member(&path).unwrap();
        assert_eq!(refused(&claims, &path, WRITE), ErrorKind::Busy);
        assert_eq!(refused(&claims, &link, READ), ErrorKind::Busy);
        drop(theirs);
        claims.open(&path, WRITE).unwrap();
        claims.open(&disk(&dir, "other"), WRITE).unwrap();
        assert!(claims.0.lock().len() <= 1, "what nobody uses is forgotten");
    }

    #[test]
    fn units_that_read_let_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(&dir, "disk");
        let claims = FileClaims::default();
        let reader = claims.open(&path, READ).unwrap();
        let theirs = File::open(&path).unwrap();
        theirs.try_lock_shared().unwrap();
        assert_eq!(refused(&claims, &path, WRITE), ErrorKind::Busy);
        theirs.unlock().unwrap();
        // a failure to have it alone costs the reader nothing
        assert!(theirs.try_lock().is_err());
        theirs.try_lock_shared().unwrap();
        theirs.unlock().unwrap();
        let writer = claims.open(&path, WRITE).unwrap();
        assert!(theirs.try_lock_shared().is_err());
        drop(reader);
        assert!(theirs.try_lock_shared().is_err());
        drop(writer);
        theirs.try_lock().unwrap();
    }

    #[test]
    fn what_is_no_storage_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let claims = FileClaims::default();
        for path in [dir.path(), dir.path().join("none").as_path(), Path::new("/dev/null")] {
            assert_eq!(refused(&claims, path, WRITE), ErrorKind::NotFound);
            assert_eq!(refused(&claims, path, READ), ErrorKind::NotFound);
        }
    }
}
