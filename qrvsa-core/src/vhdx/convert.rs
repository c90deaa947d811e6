//! Copying the contents of a disk between VHDX images, raw files, block devices, and disks of other kinds ([`SourceDisk`],
//! [`TargetDisk`]). What is a hole or zero on one side is not read, and takes no space on the other.
//!
//! A new file is written under another name and gets its own only when it is whole and durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::FallocateFlags;

use super::check::FileSource;
use super::check::source::Source;
use super::create::{create_in, refuse_impossible};
use super::file::{HostFile, ImageFile, io_error};
use super::foreign::refuse_foreign;
use super::format::Guid;
use super::replace::Replacement;
use super::{CreateOptions, Image};
use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};

/// Bytes read at once.
const PIECE: u64 = 1 << 20;
/// Zeros inside data are left out in units of so many bytes.
const GRAIN: usize = 64 << 10;

/// A disk of another kind, to be read.
pub trait SourceDisk {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Logical sector of the disk, if it says so.
    fn logical_sector(&self) -> Option<u32>;

    /// How far that goes on which is at `at`, in bytes (at least 1), and whether it is data; otherwise it is zeros.
    ///
    /// # Errors
    /// The disk's own.
    fn extent(&self, at: u64) -> Result<(u64, bool)>;

    /// Fills `buf` from `at`, all of it inside the disk.
    ///
    /// # Errors
    /// The disk's own.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()>;
}

/// A disk of another kind, to be written: in order, each byte at most once.
pub trait TargetDisk {
    /// Zeros inside data are left out in units of so many bytes.
    fn grain(&self) -> usize {
        GRAIN
    }

    /// Writes.
    ///
    /// # Errors
    /// The disk's own.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Makes a run zero.
    ///
    /// # Errors
    /// The disk's own.
    fn zero(&mut self, at: u64, length: u64) -> Result<()>;

    /// Makes everything durable.
    ///
    /// # Errors
    /// The disk's own.
    fn finish(&mut self) -> Result<()>;
}

/// Hears how far a conversion is, bytes of the disk done and in all; ends it with an error.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// What is read.
pub enum ConvertSource {
    /// An image, with its parents.
    Image(Arc<Image>),
    /// A file or block device, byte for byte.
    Raw {
        /// The file.
        file: File,
        /// Its name.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Something else.
    Disk(Box<dyn SourceDisk>),
}

/// What is made.
#[derive(Clone, Debug)]
pub enum ConvertTarget {
    /// A VHDX image; the size of `options` is that of the source.
    Vhdx(CreateOptions),
    /// A raw file, or the contents of a block device.
    Raw,
}

/// What a conversion did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written: those that are not zero.
    pub written_bytes: u64,
}

impl ConvertSource {
    /// Opens an image if `path` holds one and `raw` is not set; otherwise the bytes themselves.
    ///
    /// # Errors
    /// As for [`Image::open`]; [`ErrorKind::Unsupported`] for an image of another format, unless `raw` is set; what the system
    /// says.
    pub fn open(path: &Path, raw: bool) -> Result<ConvertSource> {
        let failed = |e| io_error(path, "cannot open", e);
        // A pipe must not block, and is refused below.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            crate::fail!(Invalid, "{} is neither a file nor a block device", path.display());
        }
        let mut start = [0; 8];
        let whole = file.read_exact_at(&mut start, 0).is_ok();
        if kind.is_file() && whole && &start == b"vhdxfile" && !raw {
            return Image::open(path, false).map(ConvertSource::Image);
        }
        let size = raw_size(&file).map_err(failed)?;
        if !raw {
            refuse_foreign(&file, path, size)?;
        }
        Ok(ConvertSource::Raw { file, path: path.to_owned(), size })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            ConvertSource::Image(image) => image.size(),
            ConvertSource::Raw { size, .. } => *size,
            ConvertSource::Disk(disk) => disk.size(),
        }
    }

    /// Logical sector of the disk, if it says so.
    #[must_use]
    pub fn logical_sector(&self) -> Option<u32> {
        match self {
            ConvertSource::Image(image) => Some(image.disk().logical_sector),
            ConvertSource::Raw { .. } => None,
            ConvertSource::Disk(disk) => disk.logical_sector(),
        }
    }

    /// How far that goes on which is at `at`, and whether it is data.
    fn extent(&self, at: u64) -> Result<(u64, bool)> {
        match self {
            ConvertSource::Image(image) => image.extent(at).map(|extent| (extent.length, extent.data.is_some())),
            ConvertSource::Raw { file, size, .. } => {
                let data = FileSource::with_length(file, *size).next_data(at);
                Ok(match data {
                    Some(run) if run.start <= at => (run.end.max(at + 1) - at, true),
                    Some(run) => (run.start - at, false),
                    None => (*size - at, false),
                })
            }
            ConvertSource::Disk(disk) => disk.extent(at),
        }
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            ConvertSource::Image(image) => image.read(at, buf),
            ConvertSource::Raw { file, path, .. } => {
                file.read_exact_at(buf, at).map_err(|e| io_error(path, "cannot read", e))
            }
            ConvertSource::Disk(disk) => disk.read(at, buf),
        }
    }
}

/// Bytes of a file or block device.
fn raw_size(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

/// Something that is written.
enum Sink {
    Image(Arc<Image>),
    /// A new file: reads as zeros where nothing is written.
    File {
        file: HostFile,
        path: PathBuf,
    },
    Device {
        file: File,
        path: PathBuf,
    },
}

impl TargetDisk for Sink {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Sink::Image(image) => write_whole(image, at, bytes),
            Sink::File { file, path } => file.write_at(bytes, at).map_err(|e| io_error(path, "cannot write", e)),
            Sink::Device { file, path } => file.write_all_at(bytes, at).map_err(|e| io_error(path, "cannot write", e)),
        }
    }

    /// On new files and images it is.
    fn zero(&mut self, at: u64, length: u64) -> Result<()> {
        let Sink::Device { file, path } = &*self else { return Ok(()) };
        let number = |n: u64| i64::try_from(n).map_err(|_| nix::errno::Errno::EFBIG);
        let zeroed = number(at).and_then(|at| {
            nix::fcntl::fallocate(
                file,
                FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                at,
                number(length)?,
            )
        });
        if zeroed.is_ok() {
            return Ok(());
        }
        let zeros = vec![0; PIECE as usize];
        let mut done = 0;
        while done < length {
            let len = usize::try_from(PIECE.min(length - done)).unwrap_or(0);
            let piece = zeros.get(..len).unwrap_or(&zeros);
            file.write_all_at(piece, at + done).map_err(|e| io_error(path, "cannot write", e))?;
            done += len as u64;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self {
            Sink::Image(image) => image.flush().and_then(|()| image.close()),
            Sink::File { file, path } => file.flush().map_err(|e| io_error(path, "cannot flush", e)),
            Sink::Device { file, path } => file.sync_all().map_err(|e| io_error(path, "cannot flush", e)),
        }
    }
}

/// Copies `source` into `target`: a new file; with `force`, one that exists, or a block device. With `dry_run`, reads only
/// where data is, and writes nothing.
///
/// # Errors
/// [`ErrorKind::NeedsForce`] if there is something; [`ErrorKind::Busy`] if that is in use; [`ErrorKind::NoSpace`]; as for [`Image::read`]; what `on_progress` gives.
/// A file that exists is locked, and replaced only after success, by one of the same owner and mode; a block device holds a
/// part of the disk.
pub fn convert(
    source: &ConvertSource,
    target: &Path,
    kind: &ConvertTarget,
    force: bool,
    dry_run: bool,
    on_progress: Progress<'_>,
) -> Result<Converted> {
    let existing = std::fs::metadata(target).ok();
    let device = existing.as_ref().is_some_and(|m| m.file_type().is_block_device());
    if let Some(found) = &existing {
        if !device && !found.is_file() {
            crate::fail!(Invalid, "{} is neither a file nor a block device", target.display());
        }
        if is_source(source, found) {
            crate::fail!(Invalid, "{} would be copied onto itself", target.display());
        }
        if device && !force && !dry_run {
            let what = format!("{} exists and would be overwritten", target.display());
            return Err(Error::new(ErrorKind::NeedsForce, what));
        }
    }
    if device {
        let mut sink = open_device(source, target, kind)?;
        return convert_to(source, (!dry_run).then_some(&mut sink as &mut dyn TargetDisk), on_progress);
    }
    // What is there stays until the new one is whole.
    let mut new = Replacement::prepare(target, force || dry_run)?;
    if let ConvertTarget::Vhdx(options) = kind {
        refuse_impossible(target, &options.disk(false, Guid::NIL))?;
    }
    if dry_run {
        // Nobody is kept waiting for a lock that is not needed.
        drop(new);
        return convert_to(source, None, on_progress);
    }
    let file = new.create()?;
    let mut sink = match kind {
        ConvertTarget::Vhdx(options) => Sink::Image(create_in(Arc::new(file), options, &Environment::system())?),
        ConvertTarget::Raw => {
            file.set_length(source.size()).map_err(|e| io_error(file.path(), "cannot create", e))?;
            let path = file.path().to_owned();
            Sink::File { file, path }
        }
    };
    let done = convert_to(source, Some(&mut sink), on_progress)?;
    drop(sink);
    new.finish()?;
    Ok(done)
}

fn is_source(source: &ConvertSource, found: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    match source {
        ConvertSource::Image(image) => {
            let mut all = Some(image);
            while let Some(image) = all {
                if image.file().identity() == (found.dev(), found.ino()) {
                    return true;
                }
                all = image.parent();
            }
            false
        }
        ConvertSource::Raw { file, .. } => {
            file.metadata().is_ok_and(|m| (m.dev(), m.ino()) == (found.dev(), found.ino()))
        }
        ConvertSource::Disk(_) => false,
    }
}

fn open_device(source: &ConvertSource, target: &Path, kind: &ConvertTarget) -> Result<Sink> {
    let failed = |e| io_error(target, "cannot open", e);
    if !matches!(kind, ConvertTarget::Raw) {
        crate::fail!(Invalid, "{} is a block device: only raw contents can be written to it", target.display());
    }
    // Nobody may have it mounted.
    let file = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(target).map_err(failed)?;
    let size = raw_size(&file).map_err(failed)?;
    if size < source.size() {
        crate::fail!(NoSpace, "{} has {size} bytes, the disk {}", target.display(), source.size());
    }
    Ok(Sink::Device { file, path: target.to_owned() })
}

/// Copies `source` into a disk that reads as zeros where nothing is written, or is told so by [`TargetDisk::zero`], and makes
/// it durable. Without one, reads only.
///
/// # Errors
/// Those of both sides, and what `on_progress` gives; the target holds a part of the disk then.
pub fn convert_to(
    source: &ConvertSource,
    mut target: Option<&mut dyn TargetDisk>,
    on_progress: Progress<'_>,
) -> Result<Converted> {
    let size = source.size();
    let mut done = Converted { size, ..Converted::default() };
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    on_progress(0, size)?;
    while at < size {
        let (length, data) = source.extent(at)?;
        let end = at.saturating_add(length.max(1)).min(size);
        if !data {
            if let Some(target) = &mut target {
                target.zero(at, end - at)?;
            }
            at = end;
            on_progress(at, size)?;
            continue;
        }
        while at < end {
            // Pieces end at whole ones, so that they suit the records of a target.
            let len = usize::try_from((PIECE - at % PIECE).min(end - at)).unwrap_or(0);
            let Some(piece) = buf.get_mut(..len) else { break };
            source.read(at, piece)?;
            done.read_bytes += len as u64;
            done.written_bytes += write_piece(target.as_deref_mut(), at, piece)?;
            at += len as u64;
            on_progress(at, size)?;
        }
    }
    if let Some(target) = target {
        target.finish()?;
    }
    Ok(done)
}

/// Writes what is not zero; bytes written.
fn write_piece(mut target: Option<&mut (dyn TargetDisk + '_)>, at: u64, piece: &[u8]) -> Result<u64> {
    let grain = target.as_ref().map_or(GRAIN, |target| target.grain().max(1));
    let mut written = 0;
    let mut start = 0;
    // Neighbouring grains with data go out in one write.
    while let Some(rest) = piece.get(start..).filter(|rest| !rest.is_empty()) {
        let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
        let first_zero = rest.chunks(grain).next().is_some_and(zero);
        let run: usize = rest.chunks(grain).take_while(|bytes| zero(bytes) == first_zero).map(<[u8]>::len).sum();
        let (place, bytes) = (at + start as u64, rest.get(..run).unwrap_or(rest));
        match &mut target {
            Some(target) if first_zero => target.zero(place, run as u64)?,
            Some(target) => target.write(place, bytes)?,
            None => {}
        }
        if !first_zero {
            written += run as u64;
        }
        start += run;
    }
    Ok(written)
}

/// Writes to an image in whole sectors: a raw file may end inside one.
fn write_whole(image: &Image, at: u64, bytes: &[u8]) -> Result<()> {
    let sector = image.disk().logical_sector as usize;
    if bytes.len().is_multiple_of(sector) {
        return image.write(at, bytes);
    }
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(sector), 0);
    image.write(at, &padded)
}
