//! The label: which pool and which member a device is. Written at creation and replacement only.

use super::layout::{self, LABEL_BYTES};
use super::{FORMAT_VERSION, KNOWN_INCOMPATIBLE, open, seal};
use crate::bytes::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 8] = b"QRVSALBL";

/// Longest pool name in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A validated label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The pool's identity.
    pub pool_id: u128,
    /// The member's identity.
    pub device_id: u128,
    /// The member's number in the pool.
    pub index: u16,
    /// Data columns.
    pub data: u8,
    /// Parity columns.
    pub parity: u8,
    /// Zone size, log2 of bytes.
    pub zone_shift: u8,
    /// Bytes of the device that the pool uses.
    pub size_bytes: u64,
    /// Creation of the pool, nanoseconds since the epoch.
    pub created_ns: i64,
    /// Features without which the pool cannot be read.
    pub incompatible: u64,
    /// Features without which the pool cannot be written.
    pub readonly_compatible: u64,
    /// The pool's name.
    pub pool_name: String,
}

impl Label {
    /// The label's block.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(MAGIC).u32(FORMAT_VERSION).u32(0);
        w.u64(self.incompatible).u64(self.readonly_compatible).u64(0);
        w.u128(self.pool_id).u128(self.device_id).u16(self.index);
        w.u8(self.data).u8(self.parity).u8(self.zone_shift);
        w.u64(self.size_bytes).i64(self.created_ns);
        w.u64(layout::RING_OFFSET)
            .u32(layout::RING_SLOTS as u32)
            .u32(layout::SLOT_BYTES as u32)
            .u64(layout::DATA_START);
        w.short_bytes(self.pool_name.as_bytes());
        seal(w.finish(), LABEL_BYTES)
    }

    /// Validates a label block read from a device of `device_bytes`.
    ///
    /// # Errors
    /// `NotFound` when there is no label at all, `Corrupt` when there is a broken one, `Unsupported` for newer formats.
    pub fn decode(block: &[u8], device_bytes: u64) -> Result<Label> {
        if block.get(..8) != Some(MAGIC.as_slice()) {
            return Err(Error::new(ErrorKind::NotFound, "no QRVSA label"));
        }
        let mut r = Reader::new(open(block, "label")?, "label");
        r.raw(8)?;
        let version = r.u32()?;
        if version != FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "label format {version} is not known here (this program knows {FORMAT_VERSION}); use a newer version"
                ),
            ));
        }
        r.u32()?;
        let (incompatible, readonly_compatible, _) = (r.u64()?, r.u64()?, r.u64()?);
        if incompatible & !KNOWN_INCOMPATIBLE != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the pool uses features {incompatible:#x} that this version cannot read; use a newer version"),
            ));
        }
        let (pool_id, device_id, index) = (r.u128()?, r.u128()?, r.u16()?);
        let (data, parity, zone_shift) = (r.u8()?, r.u8()?, r.u8()?);
        let (size_bytes, created_ns) = (r.u64()?, r.i64()?);
        let geometry = (r.u64()?, r.u32()?, r.u32()?, r.u64()?);
        let pool_name = r.short_string()?;
        if pool_name.len() > NAME_BYTES_MAX {
            return Err(r.bad("its pool name is too long"));
        }
        if data == 0 || usize::from(data) + usize::from(parity) > 255 {
            return Err(r.bad("impossible geometry"));
        }
        if !(layout::ZONE_SHIFT_MIN..=layout::ZONE_SHIFT_MAX).contains(&zone_shift) {
            return Err(r.bad("impossible zone size"));
        }
        if size_bytes > device_bytes || size_bytes < layout::DEVICE_BYTES_MIN || size_bytes % 4096 != 0 {
            return Err(r.bad(&format!("it describes {size_bytes} bytes, the device has {device_bytes}")));
        }
        if geometry != (layout::RING_OFFSET, layout::RING_SLOTS as u32, layout::SLOT_BYTES as u32, layout::DATA_START) {
            return Err(r.bad("unknown layout"));
        }
        Ok(Label {
            pool_id,
            device_id,
            index,
            data,
            parity,
            zone_shift,
            size_bytes,
            created_ns,
            incompatible,
            readonly_compatible,
            pool_name,
        })
    }

    /// Whether this version may write the pool.
    pub fn writable(&self) -> bool {
        self.readonly_compatible & !super::KNOWN_READONLY_COMPATIBLE == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_pool_has_is_refused() {
        let named = |bytes: usize| Label {
            pool_id: 1,
            device_id: 2,
            index: 0,
            data: 2,
            parity: 1,
            zone_shift: layout::ZONE_SHIFT_MIN,
            size_bytes: 1 << 30,
            created_ns: 0,
            incompatible: 0,
            readonly_compatible: 0,
            pool_name: "n".repeat(bytes),
        };
        let longest = named(NAME_BYTES_MAX);
        assert_eq!(Label::decode(&longest.encode(), 1 << 30).unwrap(), longest);
        let error = Label::decode(&named(NAME_BYTES_MAX + 1).encode(), 1 << 30).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
