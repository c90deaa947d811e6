//! Merging: what a differencing image holds goes into its parent.
//!
//! The child learns the identity that the parent is about to get before the parent changes, so that it fits its parent at
//! every moment: before, while and after. Until the end, the child still has all it had: reading it over the half-written
//! parent gives the same as before. An interrupted merge is simply done again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImageFile;
use super::file::{Files, HostFile, HostFiles};
use super::format::ParentLocator;
use super::image::Image;
use super::locate::locator_writes;
use super::open::data_write_guid;
use super::parents::{self, parent_candidates};
use super::status::ExtentKind;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

const PIECE: u64 = 1 << 20;

/// What a merge did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The parent.
    pub parent: PathBuf,
    /// Bytes of data that went into it.
    pub data_bytes: u64,
    /// Bytes of it that were made zero.
    pub zero_bytes: u64,
    /// Size of its disk before, bytes.
    pub size_before: u64,
    /// Size of its disk now, bytes.
    pub size_after: u64,
}

/// Merges the image at `child` into its parent; `on_progress` gets bytes of the disk done and in all.
///
/// # Errors
/// [`ErrorKind::Invalid`] if it has no parent; else as for [`Image::open`] and [`Image::write`]. The child is as good as
/// before after any error.
pub fn merge(child: &Path, dry_run: bool, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Merged> {
    let env = Environment::system();
    let file: Arc<dyn ImageFile> = Arc::new(HostFile::open(child, !dry_run)?);
    let image = Image::load(file, !dry_run, &env, |locator| find_parent(child, locator, !dry_run))?;
    merge_image(&image, dry_run, on_progress)
}

/// Merges an open image into its parent, which is open for writing, too, and closes both.
///
/// # Errors
/// As for [`merge`].
pub fn merge_image(image: &Image, dry_run: bool, on_progress: &mut dyn FnMut(u64, u64)) -> Result<Merged> {
    let Some(parent) = image.parent() else {
        crate::fail!(Invalid, "{} has no parent into which it could be merged", image.file().path().display());
    };
    let (size, before) = (image.size(), parent.size());
    let mut merged = Merged {
        parent: parent.file().path().to_owned(),
        data_bytes: 0,
        zero_bytes: 0,
        size_before: before,
        size_after: size,
    };
    let locator = image.metadata().locator;
    let locator = locator.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the image has lost its parent locator"))?;
    let becomes = image.random_guid();
    if !dry_run {
        let current = parent.data_write_guid();
        image.set_locator(locator.clone().with_linkage(current).with_linkage2(Some(becomes)))?;
        parent.begin_change_as(true, becomes)?;
        if size > before {
            parent.resize(size, true)?;
        }
    }
    copy_own(image, parent, dry_run, &mut merged, on_progress)?;
    if !dry_run {
        if size < before {
            parent.resize(size, true)?;
        }
        parent.flush()?;
        parent.close()?;
        image.set_locator(locator.with_linkage(becomes).with_linkage2(None))?;
        image.close()?;
    }
    Ok(merged)
}

/// Writes what the child itself says into the parent.
fn copy_own(
    image: &Image,
    parent: &Image,
    dry_run: bool,
    merged: &mut Merged,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let size = image.size();
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    while at < size {
        let extent = image.status(at)?;
        // A run of zeros may be as long as the disk; it is trimmed in one go.
        match extent.kind {
            ExtentKind::Parent => {}
            ExtentKind::Zero => {
                merged.zero_bytes += extent.length;
                if !dry_run {
                    parent.trim(at, extent.length)?;
                }
            }
            ExtentKind::Data { .. } => {
                merged.data_bytes += extent.length;
                let mut done = 0;
                while done < extent.length && !dry_run {
                    let len = PIECE.min(extent.length - done);
                    let Some(piece) = usize::try_from(len).ok().and_then(|len| buf.get_mut(..len)) else { break };
                    image.read(at + done, piece)?;
                    parent.write(at + done, piece)?;
                    done += len;
                    on_progress(at + done, size);
                }
            }
        }
        at += extent.length.max(1);
        on_progress(at.min(size), size);
    }
    Ok(())
}

/// The parent, for writing. It is told by its header: a file that is not the parent is not even locked.
fn find_parent(child: &Path, locator: &ParentLocator, write: bool) -> Result<Arc<Image>> {
    let own = HostFiles.identity(child);
    let found = parents::search(parent_candidates(child, locator), |place| {
        let identity = HostFiles.identity(place)?;
        let look = || {
            if Some(identity) == own {
                crate::fail!(Corrupt, "{} is its own parent", child.display());
            }
            if !std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file()) {
                crate::fail!(Invalid, "{} is not a regular file", place.display());
            }
            data_write_guid(&HostFile::look(place)?).map(|guid| ((), locator.names(guid)))
        };
        Some(look())
    });
    let (place, ()) = parents::only_fitting(found, child, locator)?;
    Image::open(&place, write)
}

impl Image {
    /// Writes another parent locator into the metadata, durably.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it has no room; else as for [`Image::flush`].
    pub fn set_locator(&self, locator: ParentLocator) -> Result<()> {
        self.begin_change(false)?;
        let shape = self.shape.read();
        let mut journal = self.journal.lock();
        self.commit_with(&mut journal, Vec::new())?;
        let writes = locator_writes(&*self.file, shape.regions.metadata, &locator)?;
        let mut changes = Vec::new();
        for (offset, sector) in super::repair::sectors_of(&*self.file, &writes)? {
            changes.push(super::format::log::Change::Data { offset, sector });
        }
        self.commit_with(&mut journal, changes)?;
        self.metadata.write().locator = Some(locator);
        Ok(())
    }
}
