//! Sense data (SPC-4 4.5): what a CHECK CONDITION says.

use crate::backing::{Failure, FailureKind};

/// GOOD.
pub(crate) const GOOD: u8 = 0x00;
/// CHECK CONDITION.
pub(crate) const CHECK_CONDITION: u8 = 0x02;
/// BUSY.
pub(crate) const BUSY: u8 = 0x08;
/// RESERVATION CONFLICT.
pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;

/// One report of what went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    pub key: u8,
    pub asc: u8,
    pub ascq: u8,
    /// INFORMATION: an LBA or an offset.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION.
    pub command: Option<u32>,
    /// SENSE KEY SPECIFIC: a field pointer or progress.
    pub specific: Option<[u8; 3]>,
}

impl Sense {
    pub(crate) const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, command: None, specific: None }
    }

    pub(crate) const NONE: Self = Self::new(0, 0, 0);
    pub(crate) const INVALID_OPCODE: Self = Self::new(5, 0x20, 0x00);
    pub(crate) const LBA_OUT_OF_RANGE: Self = Self::new(5, 0x21, 0x00);
    pub(crate) const NO_SUCH_UNIT: Self = Self::new(5, 0x25, 0x00);
    pub(crate) const INVALID_PARAMETER: Self = Self::new(5, 0x26, 0x00);
    pub(crate) const PARAMETER_LENGTH: Self = Self::new(5, 0x1a, 0x00);
    pub(crate) const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0x00);
    pub(crate) const MISCOMPARE: Self = Self::new(0x0e, 0x1d, 0x00);
    pub(crate) const NO_MEDIUM: Self = Self::new(2, 0x3a, 0x00);
    pub(crate) const NOT_READY: Self = Self::new(2, 0x04, 0x00);
    /// MANUAL INTERVENTION REQUIRED: initiators need not wait for it.
    pub(crate) const UNAVAILABLE: Self = Self::new(2, 0x04, 0x03);
    pub(crate) const SHORT_DATA: Self = Self::new(5, 0x0e, 0x03);

    /// INVALID FIELD IN CDB with a pointer to a byte, and to the highest bit of the field.
    pub(crate) const fn cdb_field(byte: u16, bit: u8) -> Self {
        let [high, low] = byte.to_be_bytes();
        Self { specific: Some([0xc8 | (bit & 7), high, low]), ..Self::new(5, 0x24, 0x00) }
    }

    /// INVALID FIELD IN PARAMETER LIST with a pointer to a byte.
    pub(crate) fn parameter_field(byte: usize) -> Self {
        let [high, low] = u16::try_from(byte).unwrap_or(u16::MAX).to_be_bytes();
        Self { specific: Some([0x80, high, low]), ..Self::INVALID_PARAMETER }
    }

    /// The same with this INFORMATION.
    pub(crate) const fn at(self, information: u64) -> Self {
        Self { information: Some(information), ..self }
    }

    /// The same with a progress indication, in 65536ths.
    pub(crate) const fn progress(self, done: u16) -> Self {
        let [high, low] = done.to_be_bytes();
        Self { specific: Some([0x80, high, low]), ..self }
    }

    /// What the failure of a backing means.
    pub(crate) fn of_failure(failure: &Failure, block_bytes: u32) -> Self {
        let plain = match failure.kind {
            FailureKind::NoSpace => Self::new(7, 0x27, 0x07),
            FailureKind::Unreadable => Self::new(3, 0x11, 0x00),
            FailureKind::Unwritable => Self::new(3, 0x0c, 0x00),
            FailureKind::ReadOnly => Self::WRITE_PROTECTED,
            FailureKind::Gone => Self::NOT_READY,
        };
        match failure.offset {
            Some(offset) => plain.at(offset / u64::from(block_bytes.max(1))),
            None => plain,
        }
    }

    /// The bytes, in descriptor or fixed format.
    pub(crate) fn encode(&self, descriptors: bool) -> Vec<u8> {
        if descriptors { self.encode_descriptors() } else { self.encode_fixed() }
    }

    fn encode_fixed(&self) -> Vec<u8> {
        let mut out = vec![0u8; 18];
        let information = self.information.and_then(|i| u32::try_from(i).ok());
        out[0] = if information.is_some() { 0xf0 } else { 0x70 };
        out[2] = self.key;
        out[3..7].copy_from_slice(&information.unwrap_or(0).to_be_bytes());
        out[7] = 10;
        out[8..12].copy_from_slice(&self.command.unwrap_or(0).to_be_bytes());
        out[12] = self.asc;
        out[13] = self.ascq;
        out[15..18].copy_from_slice(&self.specific.unwrap_or_default());
        out
    }

    fn encode_descriptors(&self) -> Vec<u8> {
        let mut out = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            out.extend([0x00, 0x0a, 0x80, 0x00]);
            out.extend(information.to_be_bytes());
        }
        if let Some(command) = self.command {
            out.extend([0x01, 0x0a, 0x00, 0x00, 0, 0, 0, 0]);
            out.extend(command.to_be_bytes());
        }
        if let Some(specific) = self.specific {
            out.extend([0x02, 0x06, 0x00, 0x00]);
            out.extend(specific);
            out.push(0);
        }
        out[7] = u8::try_from(out.len() - 8).unwrap_or(u8::MAX);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_information_field_is_valid_only_in_descriptors() {
        let sense = Sense::MISCOMPARE.at(1 << 40);
        assert_eq!(sense.encode(false)[0], 0x70, "the fixed format has 32 bits");
        let long = sense.encode(true);
        assert_eq!(long[..8], [0x72, 0x0e, 0x1d, 0, 0, 0, 0, 12]);
        assert_eq!(long[12..20], (1u64 << 40).to_be_bytes());
        assert_eq!(Sense::MISCOMPARE.at(7).encode(false)[..7], [0xf0, 0, 0x0e, 0, 0, 0, 7]);
    }

    #[test]
    fn field_pointers_name_byte_and_bit() {
        let fixed = Sense::cdb_field(1, 7).encode(false);
        assert_eq!(fixed[15..18], [0xcf, 0, 1]);
        let long = Sense::parameter_field(300).encode(true);
        assert_eq!(long[8..16], [2, 6, 0, 0, 0x80, 1, 44, 0]);
    }
}
