//! A volume of a pool as a side of a conversion. The daemon reads and writes it; see [`qrvsa_api::transfer`].

use std::cell::RefCell;
use std::rc::Rc;

use qrvsa_api::names::FsName;
use qrvsa_api::transfer::{Fill, READ_BYTES_MAX};
use qrvsa_api::{ApiError, ByteRange, Client, CreateVolume, ErrorKind, VolumeInfo};
use qrvsa_core::vhdx::{ConvertSource, Converted, Progress, SourceDisk, TargetDisk, convert_to};
use qrvsa_core::{Error, ErrorKind as CoreKind, Result};

use super::failed;

/// Largest record of a volume that is made, bytes: the daemon's default.
const RECORD_BYTES: u32 = 16 << 10;

/// The daemon's own words, for which the engine's errors have no room.
pub type Words = Rc<RefCell<Option<ApiError>>>;

/// Keeps the daemon's error, and gives one for the engine.
fn keep(words: &Words, error: ApiError) -> Error {
    let core = Error::new(CoreKind::Io, error.message.clone());
    *words.borrow_mut() = Some(error);
    core
}

/// The daemon's error if there was one, else the engine's.
pub fn told(words: &Words, error: &Error) -> ApiError {
    words.borrow_mut().take().unwrap_or_else(|| failed(error))
}

/// A volume that is read.
pub struct Source {
    client: Rc<Client>,
    info: VolumeInfo,
    words: Words,
    /// What was told about the contents last, and from where to where.
    known: RefCell<(std::ops::Range<u64>, Vec<ByteRange>)>,
}

impl Source {
    /// A volume to be read.
    pub fn new(client: Rc<Client>, info: VolumeInfo, words: Words) -> Source {
        Source { client, info, words, known: RefCell::new((0..0, Vec::new())) }
    }
}

impl SourceDisk for Source {
    fn size(&self) -> u64 {
        self.info.size_bytes
    }

    fn logical_sector(&self) -> Option<u32> {
        Some(self.info.block_bytes)
    }

    fn extent(&self, at: u64) -> Result<(u64, bool)> {
        let mut known = self.known.borrow_mut();
        if !known.0.contains(&at) {
            let told = self.client.volume_extents(&self.info.name, at).map_err(|e| keep(&self.words, e))?;
            if told.next_bytes <= at {
                let what = format!("volume {} became smaller while it was read", self.info.name);
                return Err(keep(
                    &self.words,
                    ApiError::new(ErrorKind::Invalid, what).with_hint("repeat the conversion"),
                ));
            }
            *known = (at..told.next_bytes, told.data);
        }
        let (range, runs) = &*known;
        // Runs are in order: the first that does not end before.
        let index = runs.partition_point(|run| run.offset_bytes.saturating_add(run.length_bytes) <= at);
        Ok(match runs.get(index) {
            Some(run) if run.offset_bytes <= at => (run.offset_bytes + run.length_bytes - at, true),
            Some(run) => (run.offset_bytes - at, false),
            None => (range.end - at, false),
        })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        for piece in buf.chunks_mut(usize::try_from(READ_BYTES_MAX).unwrap_or(usize::MAX)) {
            let bytes = self.client.read_volume(&self.info.name, at, piece.len() as u64);
            piece.copy_from_slice(&bytes.map_err(|e| keep(&self.words, e))?);
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// A volume that is filled.
struct Target<'a> {
    fill: Option<Fill<'a>>,
    grain: usize,
    words: Words,
}

impl TargetDisk for Target<'_> {
    fn grain(&self) -> usize {
        self.grain
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let written = self.fill.as_mut().map_or(Ok(()), |fill| fill.write(at, bytes));
        written.map_err(|e| keep(&self.words, e))
    }

    fn zero(&mut self, _at: u64, _length: u64) -> Result<()> {
        // What is not written reads as zeros.
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self.fill.take().map(Fill::finish) {
            Some(Err(e)) => Err(keep(&self.words, e)),
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

/// What is asked of the destination.
pub struct Wanted {
    /// Its name.
    pub name: FsName,
    /// Bytes of the source.
    pub size: u64,
    /// Block of a volume that is made; of one that exists, what it has to have.
    pub block_bytes: Option<u32>,
    /// Block of a volume that is made, if nothing is asked.
    pub block_default: u32,
}

/// What was done.
pub struct Filled {
    /// Bytes.
    pub done: Converted,
    /// The volume was made for it.
    pub created: bool,
}

/// Copies `source` into a volume, which is made if it is not there.
pub fn convert(
    client: &Client,
    source: &ConvertSource,
    words: &Words,
    wanted: &Wanted,
    force: bool,
    dry_run: bool,
    on_progress: Progress<'_>,
) -> std::result::Result<Filled, ApiError> {
    let name = &wanted.name;
    let existing = match client.volume(name) {
        Ok(info) => Some(info),
        Err(e) if e.kind == ErrorKind::NotFound => {
            client.pool(&name.pool)?;
            None
        }
        Err(e) => return Err(e),
    };
    let (info, created) = match existing {
        Some(info) => {
            fits(client, &info, wanted, force || dry_run)?;
            (info, false)
        }
        None => {
            let block = wanted.block_bytes.unwrap_or(wanted.block_default);
            let request = CreateVolume {
                name: name.fs.clone().unwrap_or_default(),
                size_bytes: wanted.size.next_multiple_of(u64::from(block)),
                block_bytes: block,
                record_bytes: RECORD_BYTES,
                reserve: false,
            };
            if dry_run {
                let done = convert_to(source, None, on_progress).map_err(|e| told(words, &e))?;
                return Ok(Filled { done, created: true });
            }
            (client.create_volume(&name.pool, &request)?, true)
        }
    };
    if dry_run {
        let done = convert_to(source, None, on_progress).map_err(|e| told(words, &e))?;
        return Ok(Filled { done, created });
    }
    let grain = usize::try_from(info.record_bytes).unwrap_or(0).clamp(4096, 64 << 10);
    let fill = client.fill_volume(name, force);
    let mut target = Target { fill: Some(fill), grain, words: Rc::clone(words) };
    match convert_to(source, Some(&mut target), on_progress) {
        Ok(done) => Ok(Filled { done, created }),
        Err(e) => {
            if let Some(fill) = target.fill.take() {
                fill.abandon();
            }
            Err(state_after(client, name, created, told(words, &e)))
        }
    }
}

/// Whether a volume that exists can take the disk.
fn fits(client: &Client, info: &VolumeInfo, wanted: &Wanted, force: bool) -> std::result::Result<(), ApiError> {
    let name = &info.name;
    if let Some(block) = wanted.block_bytes.filter(|block| *block != info.block_bytes) {
        let what = format!("volume {name} exists with blocks of {} bytes, not {block}", info.block_bytes);
        return Err(ApiError::invalid(what).with_hint("leave --logical-sector out, or name a new volume"));
    }
    if info.size_bytes < wanted.size {
        let what = format!("volume {name} has {} bytes, the disk {}", info.size_bytes, wanted.size);
        return Err(ApiError::new(ErrorKind::NoSpace, what)
            .with_hint(format!("make it larger with `qrvsa volume resize {name} {}`", wanted.size)));
    }
    if !force && !client.volume_extents(name, 0)?.data.is_empty() {
        let what = format!("volume {name} holds data, which would be overwritten");
        return Err(ApiError::new(ErrorKind::NeedsForce, what));
    }
    Ok(())
}

/// Adds to an error what has become of the destination.
fn state_after(client: &Client, name: &FsName, created: bool, error: ApiError) -> ApiError {
    // Errors of these kinds come before anything is written to a volume that was there.
    let untouched = matches!(error.kind, ErrorKind::NeedsForce | ErrorKind::Busy | ErrorKind::ReadOnly);
    let state = if !created && untouched {
        format!("volume {name} was not changed")
    } else if !created {
        format!("volume {name} holds a part of the disk only, repeat the conversion with --force")
    } else if client.destroy_volume(name, true).is_ok() {
        format!("the new volume {name} was removed again")
    } else {
        format!(
            "the new volume {name} may be there with a part of the disk, remove it with `qrvsa volume destroy {name}`"
        )
    };
    let hint = if error.hint.is_empty() { state } else { format!("{state}; {}", error.hint) };
    ApiError { hint, ..error }
}
