//! A file that takes its name only when it is whole. What had the name before stays until then, and is locked meanwhile, so
//! that nothing is taken away from somebody who uses it.

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{AccessFlags, access};

use super::file::{HostFile, ImageFile, io_error, sync_directory_of};
use crate::error::{Error, ErrorKind, Result};

/// Longest name of a file, bytes.
const NAME_BYTES_MAX: usize = 255;

/// What is to get a name.
pub(super) struct Replacement {
    /// The name, without links if something has it.
    target: PathBuf,
    /// What has the name now, locked.
    old: Option<(HostFile, Metadata)>,
    /// Whoever has the name may be replaced.
    force: bool,
    /// Where the new file grows; removed if it is left there.
    unfinished: PathBuf,
    made: bool,
}

impl Replacement {
    /// Looks at the name. With `force`, a file that has it is locked; a link to nothing gives way itself.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsForce`] if something has the name and `force` is not given; [`ErrorKind::Busy`] if that is in use;
    /// [`ErrorKind::NotFound`] if there is no such directory; what the system says.
    pub fn prepare(target: &Path, force: bool) -> Result<Replacement> {
        let failed = |e| io_error(target, "cannot make", e);
        let mut target = target.to_path_buf();
        let mut old = None;
        if target.symlink_metadata().is_ok() {
            if !force {
                return Err(exists(&target));
            }
            if target.exists() {
                target = std::fs::canonicalize(&target).map_err(failed)?;
                let file = HostFile::open(&target, true)?;
                let metadata = std::fs::metadata(&target).map_err(failed)?;
                old = Some((file, metadata));
            }
        }
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !directory.is_dir() {
            let (name, directory) = (target.display(), directory.display());
            crate::fail!(NotFound, "{name} cannot be made: there is no directory {directory}");
        }
        if let Err(errno) = access(directory, AccessFlags::W_OK | AccessFlags::X_OK) {
            return Err(io_error(&target, "cannot make", errno.into()));
        }
        let Some(name) = target.file_name() else {
            crate::fail!(Invalid, "{} is no name of a file", target.display());
        };
        let end = format!(".{}.unfinished", std::process::id());
        let kept = name.as_bytes().len().min(NAME_BYTES_MAX.saturating_sub(end.len() + 1));
        let start = String::from_utf8_lossy(name.as_bytes().get(..kept).unwrap_or_default()).replace('\u{fffd}', "_");
        let unfinished = target.with_file_name(format!(".{start}{end}"));
        Ok(Replacement { target, old, force, unfinished, made: false })
    }

    /// Makes the new file, empty and locked, with the owner and the mode of the one that it replaces.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(&mut self) -> Result<HostFile> {
        let file = HostFile::create_as(&self.unfinished, &self.target)?;
        self.made = true;
        if let Some((_, old)) = &self.old {
            let new = std::fs::metadata(&self.unfinished).map_err(|e| io_error(&self.target, "cannot create", e))?;
            let other = |new: u32, old: u32| (new != old).then_some(old);
            let (user, group) = (other(new.uid(), old.uid()), other(new.gid(), old.gid()));
            if (user.is_some() || group.is_some()) && std::os::unix::fs::chown(&self.unfinished, user, group).is_err() {
                let (path, user, group) = (self.target.display(), old.uid(), old.gid());
                crate::fail!(
                    Invalid,
                    "{path} belongs to user {user} and group {group}, which a new file of yours cannot; remove it first"
                );
            }
            let mode = std::fs::Permissions::from_mode(old.mode() & 0o777);
            std::fs::set_permissions(&self.unfinished, mode).map_err(|e| io_error(&self.target, "cannot create", e))?;
        }
        Ok(file)
    }

    /// Gives the file, which is whole and durable, its name, durably.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsForce`] if something got the name meanwhile; [`ErrorKind::Busy`] if it is another than the one that
    /// was locked; what the system says.
    pub fn finish(mut self) -> Result<()> {
        let failed = |target: &Path, e| io_error(target, "cannot name", e);
        match &self.old {
            Some((old, _)) => {
                let now = self.target.symlink_metadata().ok().map(|now| (now.dev(), now.ino()));
                if now != Some(old.identity()) {
                    crate::fail!(Busy, "{} was replaced by something else meanwhile", self.target.display());
                }
                std::fs::rename(&self.unfinished, &self.target).map_err(|e| failed(&self.target, e))?;
            }
            None if self.force && self.target.is_symlink() && !self.target.exists() => {
                std::fs::rename(&self.unfinished, &self.target).map_err(|e| failed(&self.target, e))?;
            }
            None => self.name_new()?,
        }
        self.made = false;
        sync_directory_of(&self.target).map_err(|e| failed(&self.target, e))
    }

    /// Gives it a name that nothing has.
    fn name_new(&self) -> Result<()> {
        let (from, to) = (&self.unfinished, &self.target);
        let named = match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // A filesystem that does not know the flag. A second name takes none away either.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                std::fs::hard_link(from, to).and_then(|()| std::fs::remove_file(from))
            }
            other => other.map_err(Into::into),
        };
        named.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => exists(to),
            _ => io_error(to, "cannot name", e),
        })
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(&self.unfinished);
        }
    }
}

fn exists(target: &Path) -> Error {
    Error::new(ErrorKind::NeedsForce, format!("{} exists and would be overwritten", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let all = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = all.collect();
        names.sort();
        names
    }

    #[test]
    fn what_gets_the_name_meanwhile_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new.raw");
        for force in [false, true] {
            let mut new = Replacement::prepare(&target, force).unwrap();
            drop(new.create().unwrap());
            std::fs::write(&target, b"precious").unwrap();
            assert_eq!(new.finish().unwrap_err().kind(), ErrorKind::NeedsForce);
            assert_eq!(std::fs::read(&target).unwrap(), b"precious");
            assert_eq!(names(dir.path()), ["new.raw"]);
            std::fs::remove_file(&target).unwrap();
        }
        // The one that was to be replaced made way for another.
        std::fs::write(&target, b"old").unwrap();
        let mut new = Replacement::prepare(&target, true).unwrap();
        drop(new.create().unwrap());
        std::fs::remove_file(&target).unwrap();
        std::fs::write(&target, b"precious").unwrap();
        assert_eq!(new.finish().unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn links_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(Replacement::prepare(&link, false).err().unwrap().kind(), ErrorKind::NeedsForce);
        std::fs::write(&file, b"old").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let mut new = Replacement::prepare(&link, true).unwrap();
        drop(new.create().unwrap());
        assert_eq!(Replacement::prepare(&file, true).err().unwrap().kind(), ErrorKind::Busy, "locked to the end");
        new.finish().unwrap();
        assert!(link.is_symlink(), "the link still leads to the file");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (0, 0o640));
        // A link to nothing holds nothing.
        std::fs::remove_file(&file).unwrap();
        let mut new = Replacement::prepare(&link, true).unwrap();
        drop(new.create().unwrap());
        new.finish().unwrap();
        assert!(!link.is_symlink());
        assert_eq!(names(dir.path()), ["link"]);
    }

    #[test]
    fn long_names_and_missing_directories() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("\u{e4}".repeat(127));
        let mut new = Replacement::prepare(&long, false).unwrap();
        drop(new.create().unwrap());
        new.finish().unwrap();
        assert!(long.exists());
        let error = Replacement::prepare(&dir.path().join("no/where.raw"), false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("no directory"), "{error}");
    }
}
