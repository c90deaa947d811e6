//! A VHDX file as the storage of a logical unit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use qrvsa_core::ErrorKind;
use qrvsa_core::vhdx::{ExtentKind, Files, Image};
use qrvsa_iscsi::backing::{Backing, Extent, Failure, FailureKind, Result, Space};

/// Allocations become durable after that long, flush or not.
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// An open image. It is closed in order when the last user lets go of it.
pub struct VhdxBacking {
    path: PathBuf,
    image: Arc<Image>,
    /// The thread that commits, and what ends it when it is dropped; none for an image that is only read.
    committer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl VhdxBacking {
    /// Opens an image and its parents among these files.
    ///
    /// # Errors
    /// As [`Image::open_in`].
    pub fn open(files: &dyn Files, path: &Path, read_only: bool) -> qrvsa_core::Result<VhdxBacking> {
        Self::open_committing(files, path, read_only, COMMIT_AFTER)
    }

    fn open_committing(
        files: &dyn Files,
        path: &Path,
        read_only: bool,
        after: Duration,
    ) -> qrvsa_core::Result<VhdxBacking> {
        let image = Image::open_in(files, path, !read_only)?;
        let mut committer = None;
        if !read_only {
            let (stop, stopped) = mpsc::channel();
            let (image, shown) = (image.clone(), path.to_owned());
            let thread = std::thread::Builder::new()
                .name("qrvsa-vhdx-lun".into())
                .spawn(move || commit_in_time(&image, &shown, after, &stopped))
                .map_err(|e| {
                    let what = format!("{}: no thread", path.display());
                    qrvsa_core::Error::new(ErrorKind::Io, what).with_source(e)
                })?;
            committer = Some((stop, thread));
        }
        Ok(VhdxBacking { path: path.to_owned(), image, committer })
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

/// Commits what nobody flushes, when its oldest part is `after` old, until the sender is gone.
fn commit_in_time(image: &Image, path: &Path, after: Duration, stopped: &Receiver<()>) {
    let mut wait = after;
    while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        let age = image.uncommitted_ns().map(Duration::from_nanos);
        wait = after;
        match age.map(|age| after.saturating_sub(age)) {
            Some(Duration::ZERO) => {
                // A failure ends all changes of the image: the next write says so.
                if let Err(e) = image.flush() {
                    tracing::error!("{}: allocations could not be made durable: {e}", path.display());
                }
            }
            Some(left) => wait = left,
            None => {}
        }
    }
}

impl Drop for VhdxBacking {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.committer.take() {
            drop(stop);
            let _ = thread.join();
        }
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
        let available_bytes = self.image.file().host_space().map_or(0, |space| space.free_bytes);
        Space { allocated_bytes: self.image.file_length(), available_bytes }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use qrvsa_core::vhdx::{CreateOptions, HostFiles, create};

    #[test]
    fn a_write_that_nobody_flushes_becomes_durable() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a.vhdx"), dir.path().join("copy.vhdx"));
        create(&path, &CreateOptions { block_size: 1 << 20, ..CreateOptions::dynamic(8 << 20) }).unwrap();
        let backing = VhdxBacking::open_committing(&HostFiles, &path, false, Duration::from_millis(20)).unwrap();
        backing.write(3 << 20, &[0x5a; 4096], false).unwrap();
        // What a crash would leave: the file as it is, the image still open.
        let survives = || {
            std::fs::copy(&path, &copy).unwrap();
            let mut found = [0; 4096];
            Image::open(&copy, false).and_then(|image| image.read(3 << 20, &mut found)).is_ok() && found == [0x5a; 4096]
        };
        let start = Instant::now();
        while !survives() {
            assert!(start.elapsed() < Duration::from_secs(60), "the block was never committed");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(backing);
        assert!(Image::open(&path, false).is_ok(), "the thread is gone, and the image closed");
    }
}
