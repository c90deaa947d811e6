//! A pool volume as the storage of a logical unit.

use std::sync::Arc;

use qrvsa_api::names::FsName;
use qrvsa_core::ErrorKind;
use qrvsa_core::volume::{ATOMIC_BYTES_MAX, Sharing, Volume};
use qrvsa_iscsi::backing::{Backing, Extent, Failure, FailureKind, Part, Result, Space};

/// A volume, and its name for the log.
pub struct VolumeBacking {
    name: FsName,
    volume: Arc<Volume>,
    /// Held as long as the unit serves.
    _sharing: Sharing,
}

impl VolumeBacking {
    /// The backing of an open volume.
    ///
    /// # Errors
    /// `Busy` while the volume is being filled.
    pub fn new(name: FsName, volume: Arc<Volume>) -> qrvsa_core::Result<VolumeBacking> {
        let sharing = volume.share()?;
        Ok(VolumeBacking { name, volume, _sharing: sharing })
    }

    fn failure(&self, error: &qrvsa_core::Error, offset: u64, reading: bool) -> Failure {
        let kind = match error.kind() {
            ErrorKind::NoSpace => FailureKind::NoSpace,
            ErrorKind::ReadOnly => FailureKind::ReadOnly,
            ErrorKind::Suspended | ErrorKind::Degraded => FailureKind::Gone,
            _ if reading => FailureKind::Unreadable,
            _ => FailureKind::Unwritable,
        };
        Failure { kind, text: format!("volume {}: {error}", self.name), offset: Some(offset) }
    }
}

impl Backing for VolumeBacking {
    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.volume.read_only()
    }

    fn thin(&self) -> bool {
        !self.volume.reserved()
    }

    fn preferred_bytes(&self) -> u32 {
        self.volume.record_bytes()
    }

    fn identity(&self) -> Option<u128> {
        Some(self.volume.id())
    }

    fn lend(&self, offset: u64, bytes: usize) -> Option<Vec<Part>> {
        // an error comes up again when it is read
        let parts = self.volume.lend(offset, bytes).ok()??;
        let part = |slice: qrvsa_core::buf::BufSlice| {
            let (bytes, range) = slice.into_parts();
            Part::new(bytes, range)
        };
        Some(parts.into_iter().map(part).collect())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.volume.read(offset, buf).map_err(|e| self.failure(&e, offset, true))
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.volume.write(offset, data, durable).map_err(|e| self.failure(&e, offset, false))
    }

    fn write_atomic(&self, offset: u64, data: &[u8], durable: bool) -> Result<()> {
        self.volume.write_atomic(offset, data, durable).map_err(|e| self.failure(&e, offset, false))
    }

    fn atomic_bytes_max(&self) -> u64 {
        ATOMIC_BYTES_MAX
    }

    fn flush(&self) -> Result<()> {
        self.volume.flush().map_err(|e| self.failure(&e, 0, false))
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        self.volume.discard(offset, bytes).map_err(|e| self.failure(&e, offset, false))
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<()> {
        // A thin volume keeps no space for zeroes; a reserved one has it in any case.
        self.unmap(offset, bytes)
    }

    fn extent(&self, offset: u64, bytes_max: u64) -> Result<Extent> {
        let failed = |e: qrvsa_core::Error| self.failure(&e, offset, true);
        let end = offset.saturating_add(bytes_max).min(self.size_bytes());
        let data = self.volume.next_data(offset).map_err(failed)?;
        if data == Some(offset) {
            let hole = self.volume.next_hole(offset).map_err(failed)?.min(end);
            return Ok(Extent { bytes: hole.saturating_sub(offset).max(1), mapped: true });
        }
        let data = data.unwrap_or(end).min(end);
        Ok(Extent { bytes: data.saturating_sub(offset).max(1), mapped: false })
    }

    fn space(&self) -> Space {
        let usage = self.volume.usage().ok();
        Space {
            allocated_bytes: usage.as_ref().map_or(0, |usage| usage.allocated_bytes),
            available_bytes: usage.map_or(0, |usage| usage.available_bytes),
        }
    }
}
