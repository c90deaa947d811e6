//! Files of this daemon's own filesystems as the storage of logical units, opened below FUSE: through its mount, the daemon
//! would wait for itself. Parents of a VHDX file are opened the same way wherever they lie.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_core::vhdx::{Files, HostFile, HostFiles, ImageFile};
use qrvsa_core::{Error, ErrorKind, Result, fail};
use qrvsa_iscsi::backing::{self, Backing, Extent, Failure, FailureKind, Space};

use super::places::{Found, Inside, Places};
use crate::engine::Engine;

/// A file that was claimed before its unit is opened, while its filesystem was not mounted yet.
pub type Held = Arc<dyn ImageFile>;

/// The files a unit may stand on.
pub struct Below<'a> {
    /// Where they are.
    pub places: Places<'a>,
    /// The unit's own file, if it lies inside, and its path now.
    pub own: Option<(&'a Inside, PathBuf)>,
    /// The same, if it is claimed already.
    pub held: Mutex<Option<Held>>,
    /// Who uses them, in a few words.
    pub user: String,
}

impl Below<'_> {
    /// The unit's own file.
    ///
    /// # Errors
    /// It is in use, or is gone.
    pub fn open_own(&self, own: &Inside, write: bool) -> Result<Arc<dyn ImageFile>> {
        match self.held.lock().take() {
            Some(held) => Ok(held),
            None => open(&self.places, own, write, &self.user),
        }
    }

    fn find(&self, path: &Path) -> Result<Found> {
        match &self.own {
            Some((own, at)) if at == path => Ok(Found::Inside((*own).clone())),
            _ => self.places.find(path),
        }
    }
}

/// Claims a file.
///
/// # Errors
/// It is in use, or is gone.
pub fn open(places: &Places<'_>, file: &Inside, write: bool, user: &str) -> Result<Arc<dyn ImageFile>> {
    let facts = places.engine().file_facts(&file.fs, file.ino).map_err(|e| match e.errno() {
        nix::errno::Errno::ENOENT if !matches!(e.kind(), ErrorKind::NotFound) => gone(file),
        _ => e,
    })?;
    if facts.id != file.id {
        return Err(gone(file));
    }
    let path = file.root.join(facts.path.as_ref().unwrap_or(&file.path));
    places.engine().open_file(&file.fs, file.ino, write, user, &path)
}

/// Where a file is now: a directory above it may have another name than when it was given to the unit.
pub fn path_now(engine: &dyn Engine, file: &Inside) -> PathBuf {
    let facts = engine.file_facts(&file.fs, file.ino).ok();
    file.root.join(facts.and_then(|facts| facts.path).as_ref().unwrap_or(&file.path))
}

fn gone(file: &Inside) -> Error {
    let (path, fs) = (file.path.display(), &file.fs);
    Error::new(ErrorKind::NotFound, format!("the file {path} of filesystem {fs} was removed; remove the LUN too"))
}

impl Files for Below<'_> {
    fn identity(&self, path: &Path) -> Option<(u64, u64)> {
        match self.find(path) {
            Ok(Found::Inside(file)) => {
                self.places.engine().file_facts(&file.fs, file.ino).ok().map(|facts| facts.identity)
            }
            Ok(Found::Outside) => HostFiles.identity(path),
            Ok(Found::Nothing) => None,
            // something is there, or may be
            Err(_) => Some((u64::MAX, u64::MAX)),
        }
    }

    fn open(&self, path: &Path, write: bool) -> Result<Arc<dyn ImageFile>> {
        match self.find(path)? {
            Found::Inside(file) if self.own.as_ref().is_some_and(|(own, _)| own.id == file.id) => {
                self.open_own(&file, write)
            }
            Found::Inside(file) => open(&self.places, &file, write, &self.user),
            Found::Nothing => fail!(NotFound, "{} does not exist", path.display()),
            Found::Outside => {
                crate::host::refuse_own_mounts(path)?;
                Ok(Arc::new(HostFile::open(path, write)?))
            }
        }
    }
}

/// A plain file inside as storage.
pub struct PlainBelow {
    file: Arc<dyn ImageFile>,
    size_bytes: u64,
    read_only: bool,
    thin: bool,
}

impl PlainBelow {
    /// The storage; its size is that of the file now, which nobody else can change.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(file: Arc<dyn ImageFile>, read_only: bool, thin: bool) -> Result<PlainBelow> {
        let Ok(size_bytes) = file.length() else { fail!(Io, "{} cannot be examined", file.path().display()) };
        Ok(PlainBelow { file, size_bytes, read_only, thin })
    }

    fn failure(&self, error: &std::io::Error, offset: u64, otherwise: FailureKind) -> Failure {
        Failure {
            kind: kind_of(error).unwrap_or(otherwise),
            text: format!("{}: {error}", self.file.path().display()),
            offset: Some(offset),
        }
    }

    fn zero(&self, offset: u64, bytes: u64) -> backing::Result<()> {
        self.file.zero(offset, bytes, true).map_err(|e| self.failure(&e, offset, FailureKind::Unwritable))
    }
}

/// What a system error of a file inside means, if it means more than that reading or writing failed.
fn kind_of(error: &std::io::Error) -> Option<FailureKind> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(Error::kind);
    match (error.raw_os_error(), inner) {
        (_, Some(ErrorKind::Suspended | ErrorKind::Degraded)) => Some(FailureKind::Gone),
        (Some(number), _) if number == nix::errno::Errno::ENOSPC as i32 => Some(FailureKind::NoSpace),
        (Some(number), _) if number == nix::errno::Errno::EROFS as i32 => Some(FailureKind::ReadOnly),
        _ => None,
    }
}

impl Backing for PlainBelow {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn thin(&self) -> bool {
        self.thin
    }

    fn preferred_bytes(&self) -> u32 {
        4096
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> backing::Result<()> {
        self.file.read_at(buf, offset).map_err(|e| self.failure(&e, offset, FailureKind::Unreadable))
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> backing::Result<()> {
        self.file.write_at(data, offset).map_err(|e| self.failure(&e, offset, FailureKind::Unwritable))?;
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> backing::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.file.flush().map_err(|e| self.failure(&e, 0, FailureKind::Unwritable))
    }

    fn unmap(&self, offset: u64, bytes: u64) -> backing::Result<()> {
        self.zero(offset, bytes)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> backing::Result<()> {
        // The pool never overwrites in place: space that zeroes keep would be no use to the next write.
        self.zero(offset, bytes)
    }

    fn extent(&self, offset: u64, bytes_max: u64) -> backing::Result<Extent> {
        let failed = |e: std::io::Error| self.failure(&e, offset, FailureKind::Unreadable);
        let end = offset.saturating_add(bytes_max).min(self.size_bytes);
        let data = self.file.next_data(offset).map_err(failed)?.unwrap_or(end).min(end);
        if data > offset {
            return Ok(Extent { bytes: data - offset, mapped: false });
        }
        let hole = self.file.next_hole(offset).map_err(failed)?.min(end);
        Ok(Extent { bytes: hole.saturating_sub(offset).max(1), mapped: true })
    }

    fn space(&self) -> Space {
        self.file.host_space().map_or_else(
            |_| Space::default(),
            |space| Space { allocated_bytes: space.taken_bytes, available_bytes: space.free_bytes },
        )
    }
}
