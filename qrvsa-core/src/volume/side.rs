//! A second object beside a volume's contents, for a face of the volume that has bytes of its own: the headers and the log
//! of the VHDX file as which it is shown. Blocks of 4 KiB that were written are there, all others are not.

use std::ops::Range;

use super::{Volume, WAITS_FOR_SPACE};
use crate::error::Result;
use crate::fail;
use crate::fs::store::Store;
use crate::item::{Intent, ObjectRef};

/// The object with the blocks.
pub(super) const SIDE_OBJECT: u64 = 2;
/// Bytes of a block.
pub(crate) const SIDE_BLOCK: u64 = 4096;
/// Blocks lie below this, bytes.
pub(super) const SIDE_BYTES_MAX: u64 = 4 << 20;

const OBJECT: ObjectRef = ObjectRef { id: SIDE_OBJECT, record_size: 4096 };

impl Volume {
    /// Overwrites the parts of `buf`, which stands for the bytes from `offset` on, of which there are blocks.
    pub(crate) fn read_side(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        while let Some(data) = Store::next_data(&*self.dataset, OBJECT, at)?.filter(|data| *data < end) {
            let hole = Store::next_hole(&*self.dataset, OBJECT, data)?.min(end);
            let part = usize::try_from(data - offset).unwrap_or(0)..usize::try_from(hole - offset).unwrap_or(0);
            let Some(part) = buf.get_mut(part) else { return Ok(()) };
            Store::read(&*self.dataset, OBJECT, data, part)?;
            at = hole;
        }
        Ok(())
    }

    /// Writes whole blocks.
    pub(crate) fn write_side(&self, offset: u64, data: &[u8]) -> Result<()> {
        let range: Range<u64> = offset..offset + data.len() as u64;
        if !offset.is_multiple_of(SIDE_BLOCK) || !range.end.is_multiple_of(SIDE_BLOCK) || range.end > SIDE_BYTES_MAX {
            fail!(Invalid, "{} bytes at {offset} are not whole blocks of the face of a volume", data.len());
        }
        let _held = self.locks.shared(0..1);
        self.inside(0, 0)?;
        let tx = self.dataset.begin(if self.reserved() { Intent::Claimed } else { Intent::Grow })?;
        Store::write(&*self.dataset, &tx, OBJECT, offset, data)
    }

    /// Forgets the blocks of a range of whole blocks.
    pub(crate) fn forget_side(&self, range: Range<u64>) -> Result<()> {
        let _held = self.locks.shared(0..1);
        self.inside(0, 0)?;
        self.when_there_is_room(WAITS_FOR_SPACE, || {
            let tx = self.dataset.begin(Intent::Shrink)?;
            Store::punch(&*self.dataset, &tx, OBJECT, range.clone())
        })
    }

    /// Makes the blocks durable.
    pub(crate) fn flush_side(&self) -> Result<()> {
        let ticket = self.dataset.log_object(OBJECT, &[])?;
        self.dataset.wait_durable(ticket)
    }
}
