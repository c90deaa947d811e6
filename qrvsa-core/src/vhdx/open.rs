//! Opening an image: header, log, regions, metadata, parents; each believed only after it was checked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::file::{Files, HostFiles, ImageFile, io_error};
use super::format::{
    FileIdentifier, Guid, HEADER_BYTES, HEADER_OFFSETS, HEADER_SECTION_BYTES, Header, METADATA_TABLE_BYTES, Metadata,
    ParentLocator, REGION_TABLE_BYTES, REGION_TABLE_OFFSETS, RawHeader, RawMetadataTable, RawRegionTable, RegionTable,
    choose_header,
};
use super::gate::Gates;
use super::image::{Image, Shape};
use super::journal::Journal;
use super::overlay::ReplayedFile;
use super::pages::BitmapPages;
use super::parents::{self, parent_candidates};
use super::replay::{self, ActiveLog};
use super::stripes::StripedLock;
use super::write::Allocation;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Longest chain of parents.
const CHAIN_MAX: usize = 256;

impl Image {
    /// Opens an image and its parents; those for reading only.
    ///
    /// For reading, a log that was left behind is replayed in memory; for writing, in the file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the file or a parent is missing; [`ErrorKind::Busy`] if it or a parent is in use;
    /// [`ErrorKind::Corrupt`] if it is damaged, is no VHDX file, or a parent was changed; [`ErrorKind::Unsupported`] for
    /// what this program does not know; [`ErrorKind::Io`].
    pub fn open(path: &Path, write: bool) -> Result<Arc<Image>> {
        Self::open_in(&HostFiles, path, write)
    }

    /// Opens an image and its parents, as [`Image::open`] does, among these files.
    ///
    /// # Errors
    /// As for [`Image::open`].
    pub fn open_in(files: &dyn Files, path: &Path, write: bool) -> Result<Arc<Image>> {
        open_chain(files, path, write, &Environment::system(), &mut Vec::new())
    }

    /// Opens an image in any file; `find_parent` gets the locator of a differencing one.
    ///
    /// # Errors
    /// As for [`Image::open`], and those of `find_parent`.
    pub fn load(
        file: Arc<dyn ImageFile>,
        write: bool,
        env: &Environment,
        find_parent: impl FnOnce(&ParentLocator) -> Result<Arc<Image>>,
    ) -> Result<Arc<Image>> {
        let (mut current, mut header) = read_headers(&*file)?;
        check_log_place(&*file, &header)?;
        let log = replay::active_log(&*file, &header)?;
        // Judged as the log makes it, before a byte is written: what is refused stays as it is.
        let seen: Arc<dyn ImageFile> = match &log {
            None => file.clone(),
            Some(log) => {
                let failed = |e| io_error(file.path(), "cannot read", e);
                Arc::new(ReplayedFile::new(file.clone(), log.changes.clone(), log.length_min).map_err(failed)?)
            }
        };
        let examined = |e| io_error(file.path(), "cannot examine", e);
        let regions = read_regions(&*seen, &header, seen.length().map_err(examined)?)?;
        let metadata = read_metadata(&*seen, &regions)?;
        let shape = Shape::new(metadata.disk, regions);
        let path = file.path().display();
        if shape.layout.bytes() > u64::from(shape.regions.bat.length) {
            let (needs, has) = (shape.layout.bytes(), shape.regions.bat.length);
            crate::fail!(Corrupt, "{path}: the block allocation table needs {needs} bytes, but its region has {has}");
        }
        let parent = match &metadata.locator {
            Some(locator) => {
                let parent = find_parent(locator)?;
                check_parent(&path, &metadata, locator, &parent)?;
                Some(parent)
            }
            None => None,
        };
        let file = match log {
            Some(log) if write => {
                (current, header) = replay_into(&*file, header, current, &log, env)?;
                file
            }
            _ => seen,
        };
        let length = file.length().map_err(|e| io_error(file.path(), "cannot examine", e))?;
        Ok(Arc::new(Image {
            env: env.clone(),
            writable: write,
            shape: StripedLock::new(shape),
            metadata: RwLock::new(metadata),
            bitmaps: BitmapPages::default(),
            gates: Gates::new(),
            journal: Mutex::new(Journal::new(header, current, length)),
            space: Mutex::new(Allocation::default()),
            parent,
            file_length: AtomicU64::new(length),
            modified: AtomicU8::new(0),
            broken: AtomicBool::new(false),
            commits_started: AtomicU64::new(0),
            commits_done: AtomicU64::new(0),
            file,
        }))
    }
}

/// Reads identifier and headers; the index of the current header.
fn read_headers(file: &dyn ImageFile) -> Result<(usize, Header)> {
    let failed = |e| io_error(file.path(), "cannot read", e);
    let path = file.path().display();
    let mut bytes = vec![0; FileIdentifier::BYTES];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    if FileIdentifier::decode(&bytes).is_none() {
        crate::fail!(Corrupt, "{path} is no VHDX file");
    }
    let length = file.length().map_err(failed)?;
    if length < HEADER_SECTION_BYTES {
        crate::fail!(Corrupt, "{path} was cut off: it has {length} bytes, less than its headers need");
    }
    let mut raw = Vec::with_capacity(2);
    for offset in HEADER_OFFSETS {
        let mut bytes = vec![0; HEADER_BYTES];
        file.read_at(&mut bytes, offset).map_err(failed)?;
        raw.push(RawHeader::decode(&bytes));
    }
    let [first, second] = [raw.remove(0), raw.remove(0)];
    let raw = [first, second];
    let named = |e: Error| Error::new(e.kind(), format!("{path}: {e}"));
    let current = choose_header(&raw).map_err(named)?;
    let header = raw[current].validate().map_err(named)?;
    Ok((current, header))
}

/// The log of a file must lie in it, behind the header section.
fn check_log_place(file: &dyn ImageFile, header: &Header) -> Result<()> {
    let length = file.length().map_err(|e| io_error(file.path(), "cannot examine", e))?;
    let end = header.log_offset.saturating_add(u64::from(header.log_length));
    if end > length {
        let path = file.path().display();
        crate::fail!(Corrupt, "{path} was cut off: its log should end at {end}, but the file ends at {length}");
    }
    Ok(())
}

/// Makes the changes of a log in the file. The header says first that the file changes, at last that the log is empty.
fn replay_into(
    file: &dyn ImageFile,
    header: Header,
    current: usize,
    log: &ActiveLog,
    env: &Environment,
) -> Result<(usize, Header)> {
    let path = file.path().display();
    tracing::info!(%path, entries = log.entries, "replaying the log of an image that was not closed");
    let length = file.length().map_err(|e| io_error(file.path(), "cannot examine", e))?;
    // Whoever opened this log and was killed may have left the other header to a flush.
    file.flush().map_err(|e| io_error(file.path(), "cannot flush", e))?;
    let mut journal = Journal::new(header, current, length);
    let guid = Guid::random(env.random_u128());
    journal.update_header(file, |header| header.file_write_guid = guid)?;
    replay::apply(file, log)?;
    journal.close_log(file)?;
    // After two updates of both headers the same one is the current one again.
    Ok((current, journal.header().clone()))
}

fn read_regions(file: &dyn ImageFile, header: &Header, length: u64) -> Result<RegionTable> {
    let path = file.path().display();
    let mut error = None;
    for offset in REGION_TABLE_OFFSETS {
        let mut bytes = vec![0; REGION_TABLE_BYTES];
        file.read_at(&mut bytes, offset).map_err(|e| io_error(file.path(), "cannot read", e))?;
        let raw = RawRegionTable::decode(&bytes);
        match raw.validate() {
            Ok(table) => {
                let log = (header.log_offset, header.log_offset.saturating_add(u64::from(header.log_length)));
                let others = table.others.iter().map(|o| o.region);
                for region in [table.bat, table.metadata].into_iter().chain(others) {
                    if region.offset < log.1 && log.0 < region.end() {
                        crate::fail!(Corrupt, "{path}: the region at {} overlaps the log", region.offset);
                    }
                    if region.end() > length {
                        let end = region.end();
                        crate::fail!(
                            Corrupt,
                            "{path} was cut off: a region should end at {end}, but the file ends at {length}"
                        );
                    }
                }
                return Ok(table);
            }
            Err(e) => {
                error.get_or_insert(e);
                // The second stands in for one that was not written whole, not for one that forbids to open the file.
                if raw.is_intact() {
                    break;
                }
            }
        }
    }
    let error = error.unwrap_or_else(|| Error::new(ErrorKind::Corrupt, "region table: missing"));
    Err(Error::new(error.kind(), format!("{path}: {error}")))
}

fn read_metadata(file: &dyn ImageFile, regions: &RegionTable) -> Result<Metadata> {
    let failed = |e| io_error(file.path(), "cannot read the metadata of", e);
    let region = regions.metadata;
    let named = |e: Error| Error::new(e.kind(), format!("{}: {e}", file.path().display()));
    let mut bytes = vec![0; METADATA_TABLE_BYTES];
    file.read_at(&mut bytes, region.offset).map_err(failed)?;
    let table = RawMetadataTable::decode(&bytes).validate(region.length).map_err(named)?;
    let read = |entry: &super::format::ItemEntry| {
        // At most 1 MiB, as the table was validated.
        let mut bytes = vec![0; entry.length as usize];
        file.read_at(&mut bytes, region.offset + u64::from(entry.offset)).map_err(failed)?;
        Ok(bytes)
    };
    Metadata::load(&table, read).map_err(named)
}

fn check_parent(
    path: &std::path::Display<'_>,
    metadata: &Metadata,
    locator: &ParentLocator,
    parent: &Image,
) -> Result<()> {
    let (guid, at) = (parent.data_write_guid(), parent.file.path().display());
    if guid != locator.linkage() && Some(guid) != locator.linkage2() {
        crate::fail!(
            Corrupt,
            "{path}: its parent {at} was changed since (it is {guid} now, and was {}); what this image holds no longer fits",
            locator.linkage()
        );
    }
    let (own, theirs) = (metadata.disk.logical_sector, parent.disk().logical_sector);
    if own != theirs {
        crate::fail!(Corrupt, "{path} has sectors of {own} bytes, but its parent {at} of {theirs}");
    }
    Ok(())
}

/// Opens an image and its parents; `seen` holds the files of the children.
fn open_chain(
    files: &dyn Files,
    path: &Path,
    write: bool,
    env: &Environment,
    seen: &mut Vec<(u64, u64)>,
) -> Result<Arc<Image>> {
    if seen.len() >= CHAIN_MAX {
        crate::fail!(Unsupported, "{}: its chain of parents is longer than {CHAIN_MAX}", path.display());
    }
    // Before the lock is asked for: a child that is its own parent holds it.
    if files.identity(path).is_some_and(|identity| seen.contains(&identity)) {
        crate::fail!(Corrupt, "{} is among its own parents", path.display());
    }
    let file = files.open(path, write)?;
    seen.push(file.identity());
    let opened = Image::load(file, write, env, |locator| find_parent(files, path, locator, env, seen));
    seen.pop();
    opened
}

fn find_parent(
    files: &dyn Files,
    child: &Path,
    locator: &ParentLocator,
    env: &Environment,
    seen: &mut Vec<(u64, u64)>,
) -> Result<Arc<Image>> {
    let found =
        parents::search(parent_candidates(child, locator), |place| match open_chain(files, place, false, env, seen) {
            Ok(parent) => {
                let fits = locator.names(parent.data_write_guid());
                Some(Ok((parent, fits)))
            }
            Err(e) if e.kind() == ErrorKind::NotFound && files.identity(place).is_none() => None,
            Err(e) => Some(Err(e)),
        });
    parents::only_fitting(found, child, locator).map(|(_, parent)| parent)
}

/// The `DataWriteGuid` of what is in a file, without a lock and without its parents.
///
/// # Errors
/// As for [`Image::open`].
pub(super) fn data_write_guid(file: &dyn ImageFile) -> Result<Guid> {
    read_headers(file).map(|(_, header)| header.data_write_guid)
}
