//! `SEEK_DATA` and `SEEK_HOLE`. A file without holes answers from its size alone.

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::fs::filesystem::FileSystem;
use crate::fs::inode::{FLAG_HAS_HOLES, FLAG_INLINE, Inode};
use crate::fs::ops::Ino;
use crate::fs::store::Store;

impl<S: Store> FileSystem<S> {
    fn load_for_seek(&self, ino: Ino, offset: u64) -> Result<Inode> {
        let inode = self.load(ino)?;
        if !inode.is_regular() {
            return Err(Error::posix(Errno::EINVAL));
        }
        if offset >= inode.size {
            return Err(Error::posix(Errno::ENXIO));
        }
        Ok(inode)
    }

    pub(crate) fn find_data(&self, ino: Ino, offset: u64) -> Result<u64> {
        let _held = self.locks.shared(ino);
        let inode = self.load_for_seek(ino, offset)?;
        if inode.has(FLAG_INLINE) || !inode.has(FLAG_HAS_HOLES) {
            return Ok(offset);
        }
        let next = self.store.next_data(inode.object(ino), offset)?;
        next.filter(|&at| at < inode.size).ok_or(Error::posix(Errno::ENXIO))
    }

    pub(crate) fn find_hole(&self, ino: Ino, offset: u64) -> Result<u64> {
        let _held = self.locks.shared(ino);
        let inode = self.load_for_seek(ino, offset)?;
        if inode.has(FLAG_INLINE) || !inode.has(FLAG_HAS_HOLES) {
            return Ok(inode.size);
        }
        Ok(self.store.next_hole(inode.object(ino), offset)?.min(inode.size))
    }
}
