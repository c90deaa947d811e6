//! Storage that keeps nothing: reads are zero, writes go nowhere. Shows what everything above it costs.

use super::{Backing, Extent, Result, Space};

/// A unit of a size and without content.
#[derive(Debug)]
pub struct NullBacking {
    size_bytes: u64,
}

impl NullBacking {
    /// Of so many bytes.
    #[must_use]
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes }
    }
}

impl Backing for NullBacking {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        false
    }

    fn thin(&self) -> bool {
        true
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<()>> {
        Some(self.read(offset, buf))
    }

    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8], _durable: bool) -> Result<()> {
        Ok(())
    }

    fn write_atomic(&self, _offset: u64, _data: &[u8], _durable: bool) -> Result<()> {
        Ok(())
    }

    fn atomic_bytes_max(&self) -> u64 {
        1 << 20
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn unmap(&self, _offset: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _bytes: u64) -> Result<()> {
        Ok(())
    }

    fn extent(&self, _offset: u64, bytes_max: u64) -> Result<Extent> {
        Ok(Extent { bytes: bytes_max, mapped: false })
    }

    fn space(&self) -> Space {
        Space { allocated_bytes: 0, available_bytes: self.size_bytes }
    }
}
