//! A VHDX file as the storage of a logical unit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qrvsa_core::ErrorKind;
use qrvsa_core::vhdx::{ExtentKind, Image};
use qrvsa_iscsi::backing::{Backing, Extent, Failure, FailureKind, Result, Space};

/// An open image. It is closed in order when the last user lets go of it.
pub struct VhdxBacking {
    path: PathBuf,
    image: Arc<Image>,
}

impl VhdxBacking {
    /// Opens an image and its parents.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open(path: &Path, read_only: bool) -> qrvsa_core::Result<VhdxBacking> {
        Ok(VhdxBacking { path: path.to_owned(), image: Image::open(path, !read_only)? })
    }

    /// Logical sector, bytes.
    pub fn block_bytes(&self) -> u32 {
        self.image.disk().logical_sector
    }

    fn failure(&self, error: &qrvsa_core::Error, offset: u64, reading: bool) -> Failure {
        let kind = match error.kind() {
            ErrorKind::NoSpace => FailureKind::NoSpace,
            ErrorKind::ReadOnly => FailureKind::ReadOnly,
            _ if reading => FailureKind::Unreadable,
            _ => FailureKind::Unwritable,
        };
        Failure { kind, text: format!("{}: {error}", self.path.display()), offset: Some(offset) }
    }
}

impl Drop for VhdxBacking {
    fn drop(&mut self) {
        if self.image.is_writable()
            && let Err(e) = self.image.close()
        {
            tracing::error!(
                "{} was not closed in order: {e}; its log is replayed when it is opened again",
                self.path.display()
            );
        }
    }
}

impl Backing for VhdxBacking {
    fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    fn read_only(&self) -> bool {
        !self.image.is_writable()
    }

    fn thin(&self) -> bool {
        !self.image.disk().leave_allocated
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.image.read(offset, buf).map_err(|e| self.failure(&e, offset, true))
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.image.write(offset, data).map_err(|e| self.failure(&e, offset, false))?;
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        if self.read_only() {
            return Ok(());
        }
        self.image.flush().map_err(|e| self.failure(&e, 0, false))
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        self.image.trim(offset, bytes).map_err(|e| self.failure(&e, offset, false))
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        // A fixed image keeps its space; one that grows has none to keep for zeroes.
        self.unmap(offset, bytes)
    }

    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent> {
        let found = self.image.status(offset).map_err(|e| self.failure(&e, offset, true))?;
        let mapped = match found.kind {
            ExtentKind::Zero => false,
            // What the parent has counts: it is not known to be zero.
            ExtentKind::Data { .. } | ExtentKind::Parent => true,
        };
        Ok(Extent { bytes: found.length.min(bytes_max).max(1), mapped })
    }

    fn space(&self) -> Space {
        let available_bytes = nix::sys::statvfs::statvfs(self.path.as_path())
            .map_or(0, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()));
        Space { allocated_bytes: self.image.file_length(), available_bytes }
    }
}
