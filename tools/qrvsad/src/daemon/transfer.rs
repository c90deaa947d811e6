//! The contents of volumes, in and out; see [`qrvsa_api::transfer`].
//!
//! Reading takes whatever is there, in use or not. Filling excludes every other writer ([`Volume::alone`]) for as long as the
//! request lasts; memory is one piece, whatever the records claim.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use qrvsa_api::names::FsName;
use qrvsa_api::transfer::{READ_BYTES_MAX, RECORD_HEAD_BYTES, RecordHead};
use qrvsa_api::{ApiError, ByteRange, ErrorKind, VolumeExtents, VolumeFilled};
use qrvsa_core::volume::Volume;

use super::Daemon;
use crate::error::{IntoApi, from_core};

/// Runs with data that one answer tells.
const EXTENTS_MAX: usize = 4096;
/// Bytes written at once; pieces end at multiples of it.
const PIECE_BYTES: u64 = 1 << 20;

/// Bytes of a request, as they come.
pub trait Incoming {
    /// Fills `buf`.
    ///
    /// # Errors
    /// The request ended before.
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), ApiError>;
}

/// Volumes that are being filled.
#[derive(Default)]
pub struct Filling(Mutex<BTreeSet<FsName>>);

/// One of them, until it is dropped.
struct Mark<'a> {
    all: &'a Filling,
    name: &'a FsName,
}

impl Filling {
    fn mark<'a>(&'a self, name: &'a FsName) -> Mark<'a> {
        self.0.lock().insert(name.clone());
        Mark { all: self, name }
    }

    /// Refuses what would take a volume away from whoever fills it.
    ///
    /// # Errors
    /// `Busy`, naming the volume.
    pub fn need_none(&self, concerns: impl Fn(&FsName) -> bool) -> Result<(), ApiError> {
        match self.0.lock().iter().find(|name| concerns(name)) {
            Some(name) => Err(ApiError::busy(format!("volume {name} is being filled by a conversion"))
                .with_hint("wait until that ends, or end it")),
            None => Ok(()),
        }
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(self.name);
    }
}

impl Daemon {
    fn open_volume(&self, name: &FsName) -> Result<Arc<Volume>, ApiError> {
        self.need_imported(&name.pool)?;
        self.engine.open_volume(name).api()
    }

    /// Where a volume holds data, from `offset` on.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` beyond the end, `Io`, `Corrupt`.
    pub fn volume_extents(&self, name: &FsName, offset: u64) -> Result<VolumeExtents, ApiError> {
        let volume = self.open_volume(name)?;
        let size_bytes = volume.size_bytes();
        if offset > size_bytes {
            return Err(beyond(name, offset, 0, size_bytes));
        }
        let mut extents = VolumeExtents { size_bytes, data: Vec::new(), next_bytes: offset };
        while extents.data.len() < EXTENTS_MAX {
            let Some(start) = volume.next_data(extents.next_bytes).api()?.filter(|start| *start < size_bytes) else {
                extents.next_bytes = size_bytes;
                break;
            };
            let end = volume.next_hole(start).api()?.min(size_bytes);
            if end <= start {
                // somebody gave it back between the two looks
                extents.next_bytes = start;
                continue;
            }
            extents.data.push(ByteRange { offset_bytes: start, length_bytes: end - start });
            extents.next_bytes = end;
        }
        Ok(extents)
    }

    /// Bytes of a volume.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` beyond the end or for more than [`READ_BYTES_MAX`], `Io`, `Corrupt`.
    pub fn read_volume(&self, name: &FsName, offset: u64, length: u64) -> Result<Vec<u8>, ApiError> {
        if length > READ_BYTES_MAX {
            return Err(ApiError::invalid(format!("{length} bytes are too many for one request"))
                .with_hint(format!("ask for at most {READ_BYTES_MAX}")));
        }
        let volume = self.open_volume(name)?;
        let size = volume.size_bytes();
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(beyond(name, offset, length, size));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        volume.read(offset, &mut bytes).api()?;
        Ok(bytes)
    }

    /// Fills a volume from the records of a request, and makes it durable.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while somebody else may write to it; `NeedsForce` if it holds data; `Invalid` for a record that makes
    /// no sense; `NoSpace`, `Io`, `Suspended`. After those of writing it holds a part.
    pub fn fill_volume(
        &self,
        name: &FsName,
        force: bool,
        incoming: &mut dyn Incoming,
    ) -> Result<VolumeFilled, ApiError> {
        self.admit_change()?;
        let lock = self.pool_lock(&name.pool);
        let guard = lock.lock();
        let volume = self.open_volume(name)?;
        self.targets.need_unused_volume(name)?;
        let volume = volume.alone().api()?;
        // from here on, an export or destruction of the pool is refused
        let _mark = self.filling.mark(name);
        drop(guard);
        if volume.read_only() {
            return Err(ApiError::new(ErrorKind::ReadOnly, format!("pool {} is read-only", name.pool)));
        }
        if volume.next_data(0).api()?.is_some() {
            if !force {
                let what = format!("volume {name} holds data, which would be overwritten");
                return Err(ApiError::new(ErrorKind::NeedsForce, what));
            }
            volume.clear().api()?;
            // In a full pool the first write finds no room unless a commit has seen what comes back.
            self.engine.sync(&name.pool).api()?;
        }
        let filled = write_records(name, &volume, incoming);
        match &filled {
            Ok(done) => tracing::info!("volume {name} filled, {} bytes of data", done.written_bytes),
            Err(e) => tracing::warn!("volume {name} holds a part only of what it was to be filled with: {e}"),
        }
        filled
    }

    /// Whether requests that last should end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Acquire)
    }
}

fn beyond(name: &FsName, offset: u64, length: u64, size: u64) -> ApiError {
    let what = format!("{length} bytes at {offset} lie beyond the end of volume {name} at {size} bytes");
    ApiError::invalid(what).with_hint("make it larger with `qrvsa volume resize`")
}

fn write_records(name: &FsName, volume: &Volume, incoming: &mut dyn Incoming) -> Result<VolumeFilled, ApiError> {
    let mut done = VolumeFilled::default();
    let mut piece = Vec::new();
    loop {
        let mut head = [0; RECORD_HEAD_BYTES];
        incoming.fill(&mut head)?;
        let RecordHead { offset, length } = RecordHead::decode(head);
        if length == 0 {
            if offset != done.written_bytes {
                let what = format!("{offset} bytes were to be written, {} came", done.written_bytes);
                return Err(ApiError::invalid(what).with_hint("check that `qrvsa` and `qrvsad` have the same version"));
            }
            volume.flush().api()?;
            return Ok(done);
        }
        let size = volume.size_bytes();
        let Some(end) = offset.checked_add(length).filter(|end| *end <= size) else {
            return Err(beyond(name, offset, length, size));
        };
        let mut at = offset;
        while at < end {
            let bytes = (PIECE_BYTES - at % PIECE_BYTES).min(end - at);
            piece.resize(usize::try_from(bytes).unwrap_or(0), 0);
            incoming.fill(&mut piece)?;
            volume.write(at, &piece, false).map_err(|e| from_core(&e))?;
            at += bytes;
            done.written_bytes += bytes;
        }
    }
}
