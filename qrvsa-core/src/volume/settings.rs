//! What a volume is: size, block size, record size, identity. One item of its dataset, byte table in `docs/format.md`.

use crate::bytes::{Reader, Writer};
use crate::error::Result;
use crate::fail;
use crate::item::ObjectRef;
use crate::tree::Key;

/// The object with a volume's contents.
pub const VOLUME_OBJECT: u64 = 1;
/// Kind of the item (1, 1, 0).
const KIND_VOLUME: u8 = 1;
/// Version of the item.
const VERSION: u8 = 1;

/// Record size of a volume when none is asked for, bytes.
pub const RECORD_BYTES_DEFAULT: u32 = 16 << 10;
/// Largest volume: 8 EiB less what the last mebibyte's arithmetic needs.
pub const SIZE_BYTES_MAX: u64 = (1 << 63) - (1 << 20);

/// What a volume is asked to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Bytes, a multiple of the block size.
    pub size_bytes: u64,
    /// Logical block: 512 or 4096 bytes.
    pub block_bytes: u32,
    /// Largest record: a power of two from 4 KiB to 1 MiB.
    pub record_bytes: u32,
    /// Set room for all of it aside.
    pub reserve: bool,
}

/// What a volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// Largest record, bytes.
    pub record_bytes: u32,
    /// Random number that names the volume for good.
    pub id: u128,
}

impl Spec {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check(&self) -> Result<()> {
        if !matches!(self.block_bytes, 512 | 4096) {
            fail!(Invalid, "a block size of {} bytes is not possible; choose 512 or 4096", self.block_bytes);
        }
        if !self.record_bytes.is_power_of_two() || !(4096..=1 << 20).contains(&self.record_bytes) {
            fail!(
                Invalid,
                "a record size of {} bytes is not possible; choose a power of two from 4K to 1M",
                self.record_bytes
            );
        }
        check_size(self.size_bytes, self.block_bytes)
    }
}

/// Checks a size.
pub(crate) fn check_size(size_bytes: u64, block_bytes: u32) -> Result<()> {
    if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX {
        fail!(Invalid, "a volume has at least one block and less than 8 EiB; {size_bytes} bytes are not possible");
    }
    if !size_bytes.is_multiple_of(u64::from(block_bytes)) {
        fail!(Invalid, "the size of {size_bytes} bytes is not a multiple of the block size of {block_bytes} bytes");
    }
    Ok(())
}

/// The key of the item.
pub(crate) fn settings_key() -> Key {
    Key::new(VOLUME_OBJECT, KIND_VOLUME, 0)
}

impl Settings {
    /// The object with the contents.
    pub fn object(&self) -> ObjectRef {
        ObjectRef { id: VOLUME_OBJECT, record_size: self.record_bytes }
    }

    /// Name for SCSI, made from the id: NAA 3h, locally assigned (SPC-4, 7.8.6.6).
    pub fn naa(&self) -> u64 {
        // the upper half of the number, its first four bits replaced
        let high = u64::try_from(self.id >> 64).unwrap_or(0);
        3 << 60 | high & ((1 << 60) - 1)
    }

    /// The item's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION).u8(log2(self.block_bytes)).u8(log2(self.record_bytes)).u8(0).u32(0);
        w.u64(self.size_bytes).u128(self.id);
        w.finish()
    }

    /// Reads the item.
    ///
    /// # Errors
    /// `Corrupt`, `Unsupported`.
    pub fn decode(bytes: &[u8]) -> Result<Settings> {
        let mut r = Reader::new(bytes, "settings of a volume");
        let (version, block, record) = (r.u8()?, r.u8()?, r.u8()?);
        let (flags, more) = (r.u8()?, r.u32()?);
        if version != VERSION || flags != 0 || more != 0 {
            fail!(Unsupported, "the volume has settings of a newer version; use a newer version");
        }
        let (size_bytes, id) = (r.u64()?, r.u128()?);
        if !r.rest().is_empty() || !matches!(block, 9 | 12) || !(12..=20).contains(&record) {
            return Err(r.bad("impossible values"));
        }
        let settings = Settings { size_bytes, block_bytes: 1 << block, record_bytes: 1 << record, id };
        check_size(size_bytes, settings.block_bytes).map_err(|e| r.bad("impossible size").with_source(e))?;
        Ok(settings)
    }
}

fn log2(value: u32) -> u8 {
    // of a u32: at most 31
    value.ilog2() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_hostile_bytes() {
        let settings = Settings { size_bytes: 1 << 50, block_bytes: 4096, record_bytes: 16 << 10, id: 77 };
        let bytes = settings.encode();
        assert_eq!(bytes.len(), 32);
        assert_eq!(Settings::decode(&bytes).unwrap(), settings);
        for i in 0..bytes.len() {
            assert!(Settings::decode(&bytes[..i]).is_err());
            let mut bent = bytes.clone();
            bent[i] ^= 0xff;
            if let Ok(s) = Settings::decode(&bent) {
                // only the identity and a size that is possible too may change unnoticed
                assert_eq!((s.block_bytes, s.record_bytes), (4096, 16 << 10));
            }
        }
        assert!(Settings::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn what_can_be_asked_for() {
        let spec = Spec { size_bytes: 1 << 20, block_bytes: 512, record_bytes: 16 << 10, reserve: false };
        spec.check().unwrap();
        Spec { size_bytes: 1 << 50, ..spec }.check().unwrap();
        Spec { size_bytes: 512, ..spec }.check().unwrap();
        let bad = [
            Spec { size_bytes: 0, ..spec },
            Spec { size_bytes: 513, ..spec },
            Spec { size_bytes: 512, block_bytes: 4096, ..spec },
            Spec { size_bytes: u64::MAX - 4095, ..spec },
            Spec { block_bytes: 1024, ..spec },
            Spec { record_bytes: 2048, ..spec },
            Spec { record_bytes: 2 << 20, ..spec },
            Spec { record_bytes: 24 << 10, ..spec },
        ];
        for spec in bad {
            assert!(spec.check().is_err(), "{spec:?}");
        }
    }
}
