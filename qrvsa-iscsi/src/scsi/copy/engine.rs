//! Moves bytes from one unit to another, in pieces; holes stay holes where both units are thin.

use std::sync::Arc;

use crate::scsi::Nexus;
use crate::scsi::call::{Blocks, Call, Refusal};
use crate::scsi::limits::PIECE_BYTES;
use crate::scsi::sense::{RESERVATION_CONFLICT, Sense};
use crate::scsi::table::Access;
use crate::scsi::unit::{Shape, Unit};

/// A unit that takes part in a copy.
#[derive(Clone)]
pub(super) struct Side {
    pub unit: Arc<Unit>,
    pub shape: Arc<Shape>,
}

impl Side {
    pub(super) fn new(unit: &Arc<Unit>) -> Self {
        Self { unit: unit.clone(), shape: unit.shape_arc() }
    }

    pub(super) fn block(&self) -> u64 {
        u64::from(self.shape.block)
    }

    /// Bytes `at` and on as blocks; whole blocks.
    fn blocks(&self, at: u64, bytes: u64) -> Blocks {
        Blocks { lba: at / self.block(), count: bytes.div_ceil(self.block()) }
    }

    fn check(&self, nexus: &Nexus, access: Access) -> Result<(), Refusal> {
        if !self.unit.reservations.allow(nexus, access, &[0; 16]) {
            return Err(Refusal::Status(RESERVATION_CONFLICT));
        }
        self.unit.readiness(&self.shape)?;
        if access == Access::Write && (self.shape.read_only || self.unit.pages.read().write_protect()) {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        Ok(())
    }

    /// Within the capacity.
    pub(super) fn has(&self, at: u64, bytes: u64) -> bool {
        at.checked_add(bytes).is_some_and(|end| end <= self.shape.blocks() * self.block())
    }

    fn failed(&self, failure: &crate::backing::Failure) -> Refusal {
        tracing::warn!("LUN {}: copying: {failure}", self.unit.lun);
        Sense::of_failure(failure, self.shape.block).into()
    }

    /// Reads a piece; `None` is a hole.
    fn read(&self, call: &Call, at: u64, bytes: u64) -> Result<Option<Vec<u8>>, Refusal> {
        let run = self.blocks(at, bytes);
        let _hold = self.unit.ranges.enter(run.lba, run.lba + run.count, false);
        self.check(call.nexus, Access::Read)?;
        if self.shape.thin {
            let extent = self.shape.backing.extent(at, bytes).map_err(|f| self.failed(&f))?;
            if !extent.mapped && extent.bytes >= bytes {
                return Ok(None);
            }
        }
        let mut buf = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.shape.backing.read(at, &mut buf).map_err(|f| self.failed(&f))?;
        Ok(Some(buf))
    }

    fn write(&self, call: &Call, at: u64, bytes: u64, data: Option<&[u8]>) -> Result<(), Refusal> {
        let run = self.blocks(at, bytes);
        let _hold = self.unit.ranges.enter(run.lba, run.lba + run.count, false);
        self.check(call.nexus, Access::Write)?;
        self.unit.watch.written(run);
        let durable = !self.unit.pages.read().write_cache();
        let backing = &self.shape.backing;
        match data {
            Some(data) => backing.write(at, data, durable),
            None if self.shape.thin => backing.unmap(at, bytes),
            None => backing.write_zeroes(at, bytes),
        }
        .and_then(|()| if durable && data.is_none() { backing.flush() } else { Ok(()) })
        .map_err(|f| self.failed(&f))?;
        self.unit.threshold.wrote(&self.unit, &self.shape, bytes);
        Ok(())
    }

    /// Makes bytes read as zero.
    pub(super) fn clear(&self, call: &Call, at: u64, bytes: u64) -> Result<(), Refusal> {
        self.write(call, at, bytes, None)
    }
}

/// Copies; ranges that overlap on one unit come out as if all had been read first.
pub(super) fn copy(call: &Call, from: &Side, at: u64, to: &Side, to_at: u64, bytes: u64) -> Result<(), Refusal> {
    from.check(call.nexus, Access::Read)?;
    to.check(call.nexus, Access::Write)?;
    let backwards = from.unit.serial == to.unit.serial && to_at > at && to_at - at < bytes;
    let mut done = 0;
    while done < bytes {
        let piece = PIECE_BYTES.min(bytes - done);
        let offset = if backwards { bytes - done - piece } else { done };
        let data = from.read(call, at + offset, piece)?;
        to.write(call, to_at + offset, piece, data.as_deref())?;
        done += piece;
    }
    Ok(())
}
