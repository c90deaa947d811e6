//! Making images. A new file gets its headers last: until then, it is no VHDX file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{HostFile, ImageFile, io_error, sync_directory_of};
use super::format::{
    BatEntry, BatLayout, DiskParameters, FileIdentifier, Guid, HEADER_OFFSETS, Header, MIB, Metadata, ParentLocator,
    PayloadState, REGION_TABLE_OFFSETS, Region, RegionTable,
};
use super::image::Image;
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the log of a new image.
const LOG_BYTES: u32 = 1 << 20;
/// Block size of a new dynamic or fixed image, bytes.
pub const BLOCK_SIZE_DEFAULT: u32 = 32 << 20;
/// Block size of a new differencing image, bytes.
pub const BLOCK_SIZE_DIFFERENCING: u32 = 2 << 20;

/// What kind of image to make.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of the disk, a multiple of the logical sector.
    pub size: u64,
    /// All blocks present from the start.
    pub fixed: bool,
    /// Bytes of a block, a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
}

impl CreateOptions {
    /// A dynamic image with sectors of 512 bytes on physical ones of 4096, in blocks of 32 MiB.
    pub fn dynamic(size: u64) -> CreateOptions {
        CreateOptions { size, fixed: false, block_size: BLOCK_SIZE_DEFAULT, logical_sector: 512, physical_sector: 4096 }
    }

    pub(super) fn disk(&self, has_parent: bool, disk_id: Guid) -> DiskParameters {
        DiskParameters {
            block_size: self.block_size,
            leave_allocated: self.fixed,
            has_parent,
            disk_size: self.size,
            disk_id,
            logical_sector: self.logical_sector,
            physical_sector: self.physical_sector,
        }
    }
}

/// Makes a dynamic or fixed image in a new file.
///
/// # Errors
/// [`ErrorKind::Exists`]; [`ErrorKind::Invalid`] for a disk that cannot be; [`ErrorKind::NoSpace`] for a fixed image larger
/// than what is free: nothing is left behind; [`ErrorKind::Io`].
pub fn create(path: &Path, options: &CreateOptions) -> Result<()> {
    let env = Environment::system();
    let metadata = Metadata { disk: options.disk(false, Guid::random(env.random_u128())), locator: None };
    make(path, &metadata, &env)
}

/// Makes a differencing image over `parent` in a new file. Sizes of the disk and its sectors are the parent's.
///
/// # Errors
/// As for [`create`], and as for [`Image::open`] of the parent.
pub fn create_differencing(path: &Path, parent: &Path, block_size: u32) -> Result<()> {
    let env = Environment::system();
    let base = Image::open(parent, false)?;
    let locator = locator_to(path, parent, base.data_write_guid())?;
    let disk = DiskParameters { block_size, leave_allocated: false, has_parent: true, ..base.disk() };
    make(path, &Metadata { disk, locator: Some(locator) }, &env)
}

/// A locator in `child` for `parent`: relative where the child's directory is known, and absolute.
///
/// # Errors
/// [`ErrorKind::Invalid`] for paths that are not text, or with a backslash in a name; what the system says.
pub fn locator_to(child: &Path, parent: &Path, linkage: Guid) -> Result<ParentLocator> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(|e| io_error(path, "cannot find", e));
    let parent = std::fs::canonicalize(parent).map_err(|e| io_error(parent, "cannot find", e))?;
    let child = absolute(child)?;
    let directory = child.parent().unwrap_or(Path::new("/"));
    let directory = std::fs::canonicalize(directory).map_err(|e| io_error(directory, "cannot find", e))?;
    let relative = relative_path(&directory, &parent);
    let text = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_string()),
        None => Err(Error::new(ErrorKind::Invalid, format!("{} is not UTF-8", path.display()))),
    };
    // Backslashes as Windows writes them; a slash is no part of a name there or here.
    let relative = text(&relative)?;
    if relative.contains('\\') {
        let parent = parent.display();
        crate::fail!(Invalid, "{parent} cannot be named in an image: a backslash separates names there; rename it");
    }
    let relative = relative.replace('/', "\\");
    let relative = if relative.starts_with("..") { relative } else { format!(".\\{relative}") };
    Ok(ParentLocator::new(
        linkage,
        [("relative_path", relative.as_str()), ("absolute_win32_path", text(&parent)?.as_str())],
    ))
}

/// The way from a directory to a file, both absolute and without links.
fn relative_path(directory: &Path, file: &Path) -> PathBuf {
    let mut from = directory.components().peekable();
    let mut to = file.components().peekable();
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    from.map(|_| Path::new("..")).collect::<PathBuf>().join(to.collect::<PathBuf>())
}

fn make(path: &Path, metadata: &Metadata, env: &Environment) -> Result<()> {
    refuse_impossible(path, &metadata.disk)?;
    let file = HostFile::create(path)?;
    let made = format(&file, metadata, env)
        .and_then(|()| sync_directory_of(path).map_err(|e| io_error(path, "cannot create", e)));
    if made.is_err() {
        // Nobody has seen the file; that it cannot be removed matters less than that it cannot be made.
        let _ = std::fs::remove_file(path);
    }
    made
}

pub(super) fn refuse_impossible(path: &Path, disk: &DiskParameters) -> Result<()> {
    match disk.problems().first() {
        Some(problem) => {
            Err(Error::new(ErrorKind::Invalid, format!("{} cannot be made: {}", path.display(), problem.what)))
        }
        None => Ok(()),
    }
}

/// Writes a new image into an empty file.
///
/// # Errors
/// [`ErrorKind::NoSpace`], [`ErrorKind::Io`].
pub fn format(file: &dyn ImageFile, metadata: &Metadata, env: &Environment) -> Result<()> {
    let failed = |e| io_error(file.path(), "cannot create", e);
    let disk = &metadata.disk;
    refuse_impossible(file.path(), disk)?;
    let layout = BatLayout::new(disk);
    let log_offset = MIB;
    let metadata_region = Region { offset: log_offset + u64::from(LOG_BYTES), length: MIB as u32 };
    // At most 514 MiB.
    let bat_bytes = layout.bytes().next_multiple_of(MIB).max(MIB) as u32;
    let bat = Region { offset: metadata_region.end(), length: bat_bytes };
    let first_block = bat.end();
    let present = if disk.leave_allocated { layout.payload_blocks } else { 0 };
    let length = first_block + present * layout.block_size;
    file.set_length(length).map_err(failed)?;
    if present > 0 {
        file.reserve(first_block, present * layout.block_size).map_err(failed)?;
        write_full_table(file, &layout, bat.offset, first_block).map_err(failed)?;
    }
    let bytes = metadata.encode();
    if bytes.len() as u64 > u64::from(metadata_region.length) {
        crate::fail!(Invalid, "{}: the paths to its parent are too long", file.path().display());
    }
    file.write_at(&bytes, metadata_region.offset).map_err(failed)?;
    let table = RegionTable { bat, metadata: metadata_region, others: Vec::new() }.encode();
    for offset in REGION_TABLE_OFFSETS {
        file.write_at(&table, offset).map_err(failed)?;
    }
    file.flush().map_err(failed)?;
    let header = Header {
        sequence: 1,
        file_write_guid: Guid::random(env.random_u128()),
        data_write_guid: Guid::random(env.random_u128()),
        log_guid: Guid::NIL,
        log_version: 0,
        version: 1,
        log_length: LOG_BYTES,
        log_offset,
    };
    for (i, offset) in HEADER_OFFSETS.into_iter().enumerate() {
        let header = Header { sequence: 1 + i as u64, ..header.clone() };
        file.write_at(&header.encode(), offset).map_err(failed)?;
    }
    let creator = concat!("QRVSA ", env!("CARGO_PKG_VERSION")).to_string();
    file.write_at(&FileIdentifier { creator }.encode(), 0).map_err(failed)?;
    file.flush().map_err(failed)
}

/// The table of a fixed image: block after block.
fn write_full_table(file: &dyn ImageFile, layout: &BatLayout, offset: u64, first_block: u64) -> std::io::Result<()> {
    const BLOCKS: u64 = 1 << 17;
    let mut block = 0;
    while block < layout.payload_blocks {
        let count = BLOCKS.min(layout.payload_blocks - block);
        let first = layout.payload_index(block);
        let entries = layout.payload_index(block + count - 1) + 1 - first;
        let mut bytes = vec![0; entries as usize * 8];
        for b in block..block + count {
            let at = (layout.payload_index(b) - first) as usize * 8;
            let entry = BatEntry::payload(PayloadState::FullyPresent, first_block + b * layout.block_size);
            bytes[at..at + 8].copy_from_slice(&entry.0.to_le_bytes());
        }
        file.write_at(&bytes, offset + first * 8)?;
        block += count;
    }
    Ok(())
}

/// Makes an image in any file and opens it for writing.
///
/// # Errors
/// As for [`create`].
pub fn create_in(file: Arc<dyn ImageFile>, options: &CreateOptions, env: &Environment) -> Result<Arc<Image>> {
    let metadata = Metadata { disk: options.disk(false, Guid::random(env.random_u128())), locator: None };
    format(&*file, &metadata, env)?;
    Image::load(file, true, env, |locator| Err(locator.not_found(Path::new("the image"))))
}
