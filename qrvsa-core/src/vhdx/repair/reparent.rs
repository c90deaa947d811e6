//! Telling a differencing image where its parent is now; it may be one that does not open, because the parent is gone.

use std::path::Path;

use super::super::check::fix::diagnose;
use super::super::check::walk::METADATA_GUID;
use super::super::check::{ImageSource, codes};
use super::super::format::log::Change;
use super::super::format::{Guid, ItemEntry, METADATA_TABLE_BYTES, Metadata, RawMetadataTable, Region};
use super::super::locate::locator_writes;
use super::super::{HostFile, Image, ImageFile, io_error, locator_to};
use super::edit::Edit;
use super::{blocked, sectors_of};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// What a change of the parent did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reparented {
    /// The paths that the image names now: key and value.
    pub paths: Vec<(String, String)>,
    /// Identity of the parent.
    pub linkage: Guid,
    /// The parent is not the one that the image was made for.
    pub forced: bool,
}

/// Writes the place of `parent` into the image at `child`. A log that was left behind is replayed first.
///
/// # Errors
/// [`ErrorKind::NeedsForce`] if the parent is another, or was changed, and `force` is not given;
/// [`ErrorKind::Invalid`] if `child` has no parent, is its own or has other sectors; else as for [`Image::open`].
pub fn reparent(child: &Path, parent: &Path, force: bool) -> Result<Reparented> {
    let env = Environment::system();
    let base = Image::open(parent, false)?;
    let own = {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(child).map_err(|e| io_error(child, "cannot open", e))?;
        (metadata.dev(), metadata.ino())
    };
    let mut above = Some(&base);
    while let Some(image) = above {
        if image.file().identity() == own {
            crate::fail!(Invalid, "{} would become its own parent: nothing was changed", child.display());
        }
        above = image.parent();
    }
    let file = HostFile::open(child, true)?;
    let mut found = diagnose(&ImageSource(&file), &mut |_, _| {})?;
    if blocked(&found.examined.report) {
        crate::fail!(Corrupt, "{} is damaged; `qrvsa vhdx check` shows where", child.display());
    }
    if found.examined.report.has(codes::LOG_DIRTY.code) {
        Edit::new(&file, &env, &found)?.replay(&found)?;
        found = diagnose(&ImageSource(&file), &mut |_, _| {})?;
    }
    let (region, metadata) = read_metadata(&file)?;
    let Some(old) = metadata.locator else {
        crate::fail!(Invalid, "{} has no parent: it is no differencing image", child.display());
    };
    if metadata.disk.logical_sector != base.disk().logical_sector {
        let (own, theirs) = (metadata.disk.logical_sector, base.disk().logical_sector);
        crate::fail!(Invalid, "{} has sectors of {own} bytes, its parent cannot have {theirs}", child.display());
    }
    let linkage = base.data_write_guid();
    let fits = linkage == old.linkage() || Some(linkage) == old.linkage2();
    if !fits && !force {
        let what = format!(
            "{} is not the parent that {} was made for, or was changed since (it is {linkage}, wanted is {})",
            parent.display(),
            child.display(),
            old.linkage()
        );
        return Err(Error::new(ErrorKind::NeedsForce, what));
    }
    let locator = locator_to(child, parent, linkage)?;
    let sectors = sectors_of(&file, &locator_writes(&file, region, &locator)?)?;
    let changes: Vec<Change> = sectors.into_iter().map(|(offset, sector)| Change::Data { offset, sector }).collect();
    let mut edit = Edit::new(&file, &env, &found)?;
    // Over another parent, the disk is another one: children of this image must notice.
    if fits {
        edit.begin()?
    } else {
        edit.begin_contents()?
    }
    edit.logged(&changes)?;
    let paths = locator.paths().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Reparented { paths, linkage, forced: !fits })
}

/// The metadata of an image whose parent does not matter.
fn read_metadata(file: &dyn ImageFile) -> Result<(Region, Metadata)> {
    let source = ImageSource(file);
    let mut walk = super::super::check::walk::Walk::new(&source);
    let failed = |e| io_error(file.path(), "cannot read the metadata of", e);
    walk.region_tables()?;
    let range = walk.region(&METADATA_GUID);
    let range = range.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the metadata region cannot be found"))?;
    let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
    let region = Region { offset: range.start, length };
    let mut bytes = vec![0; METADATA_TABLE_BYTES];
    file.read_at(&mut bytes, region.offset).map_err(failed)?;
    let table = RawMetadataTable::decode(&bytes).validate(length)?;
    let metadata = Metadata::load(&table, |entry: &ItemEntry| {
        let mut bytes = vec![0; usize::try_from(entry.length).unwrap_or(0)];
        file.read_at(&mut bytes, region.offset + u64::from(entry.offset)).map_err(failed)?;
        Ok(bytes)
    })?;
    Ok((region, metadata))
}
