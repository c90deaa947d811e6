//! One command on its way through a unit: what handlers get and what they answer.

use std::cell::Cell;
use std::sync::Arc;

use super::Nexus;
use super::bytes::{be16, be24, be32, be64};
use super::limits;
use super::ranges::Hold;
use super::sense::{self, Sense};
use super::table::{Access, Entry};
use super::unit::{Shape, Unit};
use super::units::TargetUnits;
use crate::backing::{Failure, Part};

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// CHECK CONDITION with this.
    Sense(Sense),
    /// This status, without sense data.
    Status(u8),
    /// It cannot be done without waiting, and waiting is not allowed here.
    Wait,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

/// Data for the initiator, or why there are none.
pub(crate) type Outcome = Result<Vec<u8>, Refusal>;

/// A command and where it runs.
pub(crate) struct Call<'a> {
    pub units: &'a TargetUnits,
    pub unit: &'a Arc<Unit>,
    pub shape: &'a Shape,
    pub nexus: &'a Arc<Nexus>,
    pub task_tag: u32,
    pub entry: &'a Entry,
    pub cdb: &'a [u8; 16],
    pub data: &'a [u8],
    /// Bytes that the initiator means to send.
    pub expected: u64,
    /// Must not wait.
    pub now: bool,
    /// Data for the initiator behind what the handler returns, that is sent from where it lies.
    pub lent: &'a Cell<Vec<Part>>,
}

/// Blocks that a CDB names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub lba: u64,
    pub count: u64,
}

impl Blocks {
    /// Whether a block is in both.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.lba < other.lba.saturating_add(other.count) && other.lba < self.lba.saturating_add(self.count)
    }

    /// From a CDB of a read, write, verify and their like, by the group of its operation code.
    pub(crate) fn of(cdb: &[u8; 16]) -> Self {
        match cdb[0] >> 5 {
            0 => Self {
                lba: u64::from(be24(cdb, 1) & 0x1f_ffff),
                count: if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) },
            },
            1 | 2 => Self { lba: u64::from(be32(cdb, 2)), count: u64::from(be16(cdb, 7)) },
            5 => Self { lba: u64::from(be32(cdb, 2)), count: u64::from(be32(cdb, 6)) },
            _ => Self { lba: be64(cdb, 2), count: u64::from(be32(cdb, 10)) },
        }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn block(&self) -> u64 {
        u64::from(self.shape.block)
    }

    /// Sense data for a failed backing; says so in the log.
    pub(crate) fn failed(&self, failure: &Failure) -> Refusal {
        tracing::warn!("{} LUN {}: {failure}", self.units.name(), self.unit.lun);
        Sense::of_failure(failure, self.shape.block).into()
    }

    pub(crate) fn write_protected(&self) -> bool {
        self.shape.read_only || self.unit.pages.read().write_protect()
    }

    /// Blocks within the capacity.
    pub(crate) fn check_range(&self, blocks: Blocks) -> Result<(), Refusal> {
        let capacity = self.unit.notice_size(self.shape);
        match blocks.lba.checked_add(blocks.count) {
            Some(end) if end <= capacity => Ok(()),
            _ => Err(Sense::LBA_OUT_OF_RANGE.into()),
        }
    }

    /// Blocks within the capacity, of which so many pass through memory.
    pub(crate) fn check_transfer(&self, blocks: Blocks) -> Result<(), Refusal> {
        self.check_range(blocks)?;
        if blocks.count * self.block() > limits::TRANSFER_BYTES_MAX {
            return Err(self.length_field().into());
        }
        Ok(())
    }

    /// INVALID FIELD IN CDB that points at the transfer length.
    pub(crate) fn length_field(&self) -> Sense {
        Sense::cdb_field(
            match self.cdb[0] >> 5 {
                0 => 4,
                1 | 2 => 7,
                5 => 6,
                _ => 10,
            },
            7,
        )
    }

    /// Protection information is not there to be checked (SBC-3 4.21).
    pub(crate) fn check_protect(&self) -> Result<(), Refusal> {
        if self.cdb[1] & 0xe0 != 0 { Err(Sense::cdb_field(1, 7).into()) } else { Ok(()) }
    }

    /// Takes hold of the blocks. A preemption that ended before this is seen; one that comes later waits for the hold to end.
    pub(crate) fn hold(&self, blocks: Blocks, exclusive: bool) -> Result<Hold<'a>, Refusal> {
        let end = blocks.lba + blocks.count;
        let hold = if self.now {
            if exclusive {
                return Err(Refusal::Wait);
            }
            self.unit.ranges.try_enter(blocks.lba, end).ok_or(Refusal::Wait)?
        } else {
            self.unit.ranges.enter(blocks.lba, end, exclusive)
        };
        self.check_reservation()?;
        if matches!(self.entry.access, Access::Write) {
            // a sanitizing that began in between may not be written over
            self.unit.readiness(self.shape)?;
        }
        Ok(hold)
    }

    pub(crate) fn check_reservation(&self) -> Result<(), Refusal> {
        if self.unit.reservations.allow(self.nexus, self.entry.access, self.cdb) {
            Ok(())
        } else {
            Err(Refusal::Status(sense::RESERVATION_CONFLICT))
        }
    }

    /// The data-out that belongs to `blocks`: whole blocks, fewer than named if the initiator sends fewer (RFC 7143 11.4.5.1).
    pub(crate) fn whole_blocks(&self, blocks: Blocks) -> Result<&'a [u8], Refusal> {
        let wanted = usize::try_from(blocks.count * self.block()).unwrap_or(usize::MAX);
        match self.data.get(..wanted) {
            Some(data) => Ok(data),
            None if (self.data.len() as u64).is_multiple_of(self.block()) => Ok(self.data),
            None => Err(Sense::SHORT_DATA.into()),
        }
    }

    /// Answers with bytes as they lie in the memory of the storage, if they do.
    pub(crate) fn lend(&self, offset: u64, bytes: usize) -> bool {
        if self.now || bytes == 0 {
            return false;
        }
        let Some(parts) = self.shape.backing.lend(offset, bytes) else { return false };
        let whole = parts.iter().map(|part| part.bytes().len()).sum::<usize>() == bytes;
        if whole {
            self.lent.set(parts);
        }
        whole
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refusal> {
        if buf.is_empty() {
            return Ok(());
        }
        let result = if self.now {
            self.shape.backing.read_now(offset, buf).ok_or(Refusal::Wait)?
        } else {
            self.shape.backing.read(offset, buf)
        };
        result.map_err(|f| self.failed(&f))
    }

    /// Whether a write with this FUA bit has to be durable when it completes.
    pub(crate) fn durable(&self, fua: bool) -> bool {
        fua || !self.unit.pages.read().write_cache()
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8], durable: bool) -> Result<(), Refusal> {
        if data.is_empty() {
            return Ok(());
        }
        self.shape.backing.write(offset, data, durable).map_err(|f| self.failed(&f))?;
        self.unit.threshold.wrote(self.unit, self.shape, data.len() as u64);
        Ok(())
    }
}
