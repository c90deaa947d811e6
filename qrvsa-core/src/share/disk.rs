//! A file of a filesystem as a disk: opened below the front end, so that the process that serves a mount can use files that
//! lie in it. Through the mount it would wait for itself.
//!
//! The file is claimed for as long as it is open; [`crate::fs::claims`] says what that keeps out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::device::HostSpace;
use crate::error::{Error, Result};
use crate::fs::FileSystem;
use crate::fs::contents::Kill;
use crate::fs::ops::{AllocateMode, Caller, Ino, Operations, SetAttr};
use crate::fs::store::Store;
use crate::vhdx::ImageFile;

/// On whose behalf contents are changed.
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// A claimed file. Dropping it ends the claim.
pub struct DiskFile<S: Store> {
    fs: Arc<FileSystem<S>>,
    ino: Ino,
    write: bool,
    who: Arc<str>,
    path: PathBuf,
    identity: (u64, u64),
}

impl<S: Store> DiskFile<S> {
    /// Claims a file for `who`, a few words for people, and makes durable what it holds and that it is there. `path` is what
    /// it is called, `filesystem` a number that no other filesystem has.
    ///
    /// # Errors
    /// As for [`FileSystem::claim`]; what making it durable fails with.
    pub fn open(
        fs: Arc<FileSystem<S>>,
        ino: Ino,
        write: bool,
        who: &str,
        path: PathBuf,
        filesystem: u64,
    ) -> Result<DiskFile<S>> {
        let who: Arc<str> = Arc::from(who);
        let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", path.display()));
        fs.claim(ino, write, &who).map_err(named)?;
        let file = DiskFile { fs, ino, write, who, path, identity: (filesystem, ino) };
        if !file.fs.store().read_only() {
            file.fs.sync_inode(ino)?;
        }
        Ok(file)
    }

    fn may_write(&self) -> io::Result<()> {
        if self.write { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EROFS)) }
    }

    fn fallocate(&self, mode: AllocateMode, offset: u64, length: u64) -> io::Result<()> {
        self.may_write()?;
        if length == 0 {
            return Ok(());
        }
        let end = offset.checked_add(length).ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        self.fs.allocate(CALLER, self.ino, mode, offset..end).map_err(system_error)
    }
}

impl<S: Store> Drop for DiskFile<S> {
    fn drop(&mut self) {
        self.fs.unclaim(self.ino, self.write, &self.who);
    }
}

/// As a system error; with the sentence, where the number alone does not say it all.
fn system_error(error: Error) -> io::Error {
    let number = error.errno() as i32;
    match number {
        libc::EIO => io::Error::other(error),
        _ => io::Error::from_raw_os_error(number),
    }
}

impl<S: Store> ImageFile for DiskFile<S> {
    fn path(&self) -> &Path {
        &self.path
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.fs.load(self.ino).map_err(system_error)?.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.fs.read_contents(self.ino, at, rest, true).map_err(system_error)? {
                0 => {
                    rest.fill(0);
                    return Ok(());
                }
                n => done += n,
            }
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.may_write()?;
        let mut done = 0;
        // a write that fails in its middle says how far it came, and the next one why
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            match self.fs.write_contents(self.ino, at, rest, false, Kill::Capability).map_err(system_error)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => done += n,
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.fs.sync_inode(self.ino).map_err(system_error)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.may_write()?;
        let change = SetAttr { size: Some(length), ..SetAttr::default() };
        self.fs.change_attributes(CALLER, self.ino, change, true).map_err(system_error)?;
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _release: bool) -> io::Result<()> {
        // a pool that never overwrites keeps no space for a file
        self.fallocate(AllocateMode::PunchHole, offset, length)
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        self.fallocate(AllocateMode::Allocate { keep_size: true }, offset, length)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match self.fs.find_data(self.ino, offset) {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.errno() as i32 == libc::ENXIO => Ok(None),
            Err(e) => Err(system_error(e)),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        match self.fs.find_hole(self.ino, offset) {
            Ok(found) => Ok(found),
            Err(e) if e.errno() as i32 == libc::ENXIO => Ok(self.length()?.max(offset)),
            Err(e) => Err(system_error(e)),
        }
    }

    fn identity(&self) -> (u64, u64) {
        self.identity
    }

    fn host_space(&self) -> io::Result<HostSpace> {
        let attr = self.fs.getattr(self.ino).map_err(system_error)?;
        let space = Operations::statfs(&*self.fs).map_err(system_error)?;
        Ok(HostSpace {
            taken_bytes: attr.blocks.saturating_mul(512),
            free_bytes: space.bavail.saturating_mul(u64::from(space.frsize)),
        })
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::ErrorKind;
    use crate::fs::mem_store::MemStore;
    use crate::fs::ops::{NewNode, ROOT_INO, RenameMode};
    use crate::fs::{FormatOptions, Options};
    use crate::vhdx::{CreateOptions, Files, HostFiles, Image, create};

    const NODE: NewNode = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, rdev: 0 };

    fn filesystem() -> Arc<FileSystem<MemStore>> {
        let store = Arc::new(MemStore::new());
        FileSystem::format(&*store, FormatOptions::default()).unwrap();
        Arc::new(FileSystem::open(store, Options::default()).unwrap())
    }

    fn file(fs: &FileSystem<MemStore>, name: &[u8], contents: &[u8]) -> Ino {
        let (attr, _) = fs.create(CALLER, ROOT_INO, name, NODE, true, false).unwrap();
        fs.begin_writing(attr.ino).unwrap();
        fs.write(attr.ino, 0, contents, false, false).unwrap();
        fs.end_writing(attr.ino);
        fs.release(attr.ino);
        attr.ino
    }

    fn disk(fs: &Arc<FileSystem<MemStore>>, ino: Ino, write: bool) -> Result<DiskFile<MemStore>> {
        DiskFile::open(fs.clone(), ino, write, "LUN 1", PathBuf::from("/t/disk"), 7)
    }

    fn errno<T>(result: Result<T>) -> Errno {
        result.map(|_| ()).expect_err("refused").errno()
    }

    #[test]
    fn bytes_lengths_and_holes() {
        let fs = filesystem();
        let ino = file(&fs, b"disk", b"");
        let disk = disk(&fs, ino, true).unwrap();
        disk.set_length(3 << 20).unwrap();
        disk.write_at(&[5; 8192], 1 << 20).unwrap();
        disk.flush().unwrap();
        assert_eq!(disk.length().unwrap(), 3 << 20);
        assert_eq!(disk.next_data(0).unwrap(), Some(1 << 20));
        assert_eq!(disk.next_hole(1 << 20).unwrap(), (1 << 20) + 8192);
        let mut seen = [1; 8];
        disk.read_at(&mut seen, (1 << 20) - 4).unwrap();
        assert_eq!(seen, [0, 0, 0, 0, 5, 5, 5, 5]);
        disk.read_at(&mut seen, (3 << 20) - 4).unwrap();
        assert_eq!(seen, [0; 8], "zeros beyond the end");
        disk.zero(1 << 20, 8192, true).unwrap();
        assert_eq!(disk.next_data(0).unwrap(), None);
        assert_eq!(disk.next_hole(4 << 20).unwrap(), 4 << 20);
        assert!(disk.host_space().unwrap().free_bytes > 0);
        // the front end sees the same
        disk.write_at(b"word", 4096).unwrap();
        let mut word = [0; 4];
        fs.read(ino, 4096, &mut word).unwrap();
        assert_eq!(&word, b"word");
    }

    #[test]
    fn a_claim_to_write_keeps_others_out_and_ends() {
        let fs = filesystem();
        let ino = file(&fs, b"disk", b"contents");
        let other = file(&fs, b"other", b"x");
        let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = told.clone();
        fs.on_change(Arc::new(move |ino| log.lock().push(ino)));
        assert!(fs.may_cache(ino) && fs.may_keep(ino));
        let claimed = disk(&fs, ino, true).unwrap();
        assert_eq!(*told.lock(), [ino]);
        assert!(!fs.may_cache(ino) && fs.changes_below(ino) && !fs.may_keep(ino) && fs.may_cache(other));
        assert_eq!(fs.getxattr(ino, crate::fs::claims::XATTR_IN_USE).unwrap(), b"LUN 1");

        let cut = SetAttr { size: Some(1), ..SetAttr::default() };
        assert_eq!(errno(fs.begin_writing(ino)), Errno::ETXTBSY);
        assert_eq!(errno(fs.open(CALLER, ino, true)), Errno::ETXTBSY);
        assert_eq!(errno(fs.create(CALLER, ROOT_INO, b"disk", NODE, false, true)), Errno::ETXTBSY);
        assert_eq!(errno(fs.setattr(CALLER, ino, cut)), Errno::ETXTBSY);
        assert_eq!(errno(fs.write(ino, 0, b"x", false, false)), Errno::ETXTBSY);
        assert_eq!(errno(fs.fallocate(CALLER, ino, AllocateMode::PunchHole, 0..4)), Errno::ETXTBSY);
        assert_eq!(errno(fs.copy_range((other, 0), (ino, 0), 1)), Errno::ETXTBSY);
        assert_eq!(errno(fs.unlink(ROOT_INO, b"disk")), Errno::EBUSY);
        let (from, to) = ((ROOT_INO, &b"disk"[..]), (ROOT_INO, &b"other"[..]));
        for (a, b, mode) in [
            (from, (ROOT_INO, &b"new"[..]), RenameMode::Replace),
            (to, from, RenameMode::Replace),
            (to, from, RenameMode::Exchange),
        ] {
            assert_eq!(errno(fs.rename(CALLER, a, b, mode)), Errno::EBUSY);
        }
        let refused = disk(&fs, ino, false).map(|_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("in use by LUN 1"), "{refused}");
        // reading, and what does not touch contents, goes on
        fs.open(CALLER, ino, false).unwrap();
        fs.release(ino);
        fs.setattr(CALLER, ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();

        drop(claimed);
        assert!(fs.may_cache(ino) && !fs.may_keep(ino), "what was remembered before may be old");
        assert!(fs.claimed_by().is_none() && fs.getxattr(ino, crate::fs::claims::XATTR_IN_USE).is_err());
        fs.begin_writing(ino).unwrap();
        fs.end_writing(ino);
        fs.unlink(ROOT_INO, b"disk").unwrap();
        assert_eq!(disk(&fs, ino, true).map(|_| ()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn opens_keep_a_claim_out() {
        let fs = filesystem();
        let ino = file(&fs, b"disk", b"contents");
        fs.open(CALLER, ino, false).unwrap();
        let busy = disk(&fs, ino, true).map(|_| ()).unwrap_err();
        assert!(busy.kind() == ErrorKind::Busy && busy.to_string().contains("open through its mount"), "{busy}");
        let parent = disk(&fs, ino, false).unwrap();
        let second = disk(&fs, ino, false).unwrap();
        assert!(fs.may_cache(ino), "it stays as it is");
        assert_eq!(errno(fs.begin_writing(ino)), Errno::ETXTBSY);
        assert!(parent.write_at(b"x", 0).is_err() && parent.zero(0, 1, true).is_err());
        drop((parent, second));
        fs.begin_writing(ino).unwrap();
        fs.release(ino);
        assert_eq!(disk(&fs, ino, false).map(|_| ()).unwrap_err().kind(), ErrorKind::Busy);
        // somebody who is just closing it is waited for
        let closing = fs.clone();
        let thread = std::thread::spawn(move || closing.end_writing(ino));
        assert!(disk(&fs, ino, true).is_ok());
        thread.join().unwrap();
        assert_eq!(disk(&fs, ROOT_INO, false).map(|_| ()).unwrap_err().kind(), ErrorKind::Invalid);
    }

    /// Files of the filesystem by name, under `/t`.
    struct Below(Arc<FileSystem<MemStore>>);

    impl Files for Below {
        fn identity(&self, path: &Path) -> Option<(u64, u64)> {
            let name = path.file_name()?.as_encoded_bytes();
            self.0.lookup(ROOT_INO, name).ok().map(|attr| (7, attr.ino))
        }

        fn open(&self, path: &Path, write: bool) -> Result<Arc<dyn ImageFile>> {
            let Some((_, ino)) = self.identity(path) else {
                crate::fail!(NotFound, "{} does not exist", path.display())
            };
            let file = DiskFile::open(self.0.clone(), ino, write, "LUN 1", path.to_owned(), 7)?;
            Ok(Arc::new(file))
        }
    }

    #[test]
    fn a_chain_of_images_opens_below() {
        let dir = tempfile::tempdir().unwrap();
        let host = |name: &str| dir.path().join(name);
        create(&host("base.vhdx"), &CreateOptions { block_size: 1 << 20, ..CreateOptions::dynamic(8 << 20) }).unwrap();
        let base = Image::open(&host("base.vhdx"), true).unwrap();
        base.write(0, &[1; 4096]).unwrap();
        base.close().unwrap();
        drop(base);
        crate::vhdx::create_differencing(&host("child.vhdx"), &host("base.vhdx"), 1 << 20).unwrap();
        let fs = filesystem();
        for name in ["base.vhdx", "child.vhdx"] {
            file(&fs, name.as_bytes(), &std::fs::read(host(name)).unwrap());
        }
        let below = Below(fs.clone());
        let (base, child) = (Path::new("/t/base.vhdx"), Path::new("/t/child.vhdx"));
        let image = Image::open_in(&below, child, true).unwrap();
        image.write(4096, &[2; 4096]).unwrap();
        let mut seen = [0; 8192];
        image.read(0, &mut seen).unwrap();
        assert!(seen[..4096] == [1; 4096] && seen[4096..] == [2; 4096]);
        // the parent is claimed to read
        let ino = below.identity(base).unwrap().1;
        assert_eq!(errno(fs.begin_writing(ino)), Errno::ETXTBSY);
        assert_eq!(errno(fs.unlink(ROOT_INO, b"base.vhdx")), Errno::EBUSY);
        assert_eq!(Image::open_in(&below, base, true).unwrap_err().kind(), ErrorKind::Busy);
        image.close().unwrap();
        drop(image);
        assert!(fs.claimed_by().is_none());
        fs.unlink(ROOT_INO, b"base.vhdx").unwrap();
        let orphan = Image::open_in(&below, child, false).unwrap_err();
        assert!(orphan.to_string().contains("base.vhdx"), "{orphan}");
        assert!(HostFiles.identity(&host("base.vhdx")).is_some());
    }
}
