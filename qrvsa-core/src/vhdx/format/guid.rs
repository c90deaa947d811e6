//! GUIDs as VHDX stores and prints them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// A GUID, kept in the order of its bytes in the file: the first three groups little-endian, the rest as printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zero: "none".
    pub const NIL: Guid = Guid([0; 16]);

    /// From the bytes of a file.
    pub const fn from_bytes(bytes: [u8; 16]) -> Guid {
        Guid(bytes)
    }

    /// From the number that its printed digits form.
    pub const fn from_printed(digits: u128) -> Guid {
        let mut bytes = digits.to_be_bytes();
        let mut copy = bytes;
        let order = [3, 2, 1, 0, 5, 4, 7, 6];
        let mut i = 0;
        while i < order.len() {
            copy[i] = bytes[order[i]];
            i += 1;
        }
        bytes = copy;
        Guid(bytes)
    }

    /// A random GUID (version 4) from 128 random bits.
    pub const fn random(bits: u128) -> Guid {
        let digits = bits & !(0xf << 76) | 4 << 76;
        Guid::from_printed(digits & !(0b11 << 62) | 0b10 << 62)
    }

    /// The bytes as they stand in a file.
    pub const fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// Whether all bits are zero.
    pub fn is_nil(&self) -> bool {
        *self == Guid::NIL
    }

    /// The number that the printed digits form.
    fn printed(&self) -> u128 {
        // The order of bytes is its own inverse.
        u128::from_be_bytes(Guid::from_printed(u128::from_be_bytes(self.0)).0)
    }
}

impl fmt::Display for Guid {
    /// Lower case, with hyphens, without braces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.printed();
        let group = |shift: u32, bits: u32| (n >> shift) & ((1 << bits) - 1);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            group(96, 32),
            group(80, 16),
            group(64, 16),
            group(48, 16),
            group(0, 48)
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Guid {
    type Err = Error;

    /// Any case, with or without braces.
    fn from_str(text: &str) -> Result<Guid> {
        let invalid = || Error::new(ErrorKind::Invalid, format!("\"{text}\" is not a GUID"));
        let inner = match (text.strip_prefix('{'), text.strip_suffix('}')) {
            (Some(_), Some(_)) => text.get(1..text.len().saturating_sub(1)).ok_or_else(invalid)?,
            (None, None) => text,
            _ => return Err(invalid()),
        };
        let lengths: Vec<usize> = inner.split('-').map(str::len).collect();
        if lengths != [8, 4, 4, 4, 12] || !inner.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        let digits = u128::from_str_radix(&inner.replace('-', ""), 16).map_err(|_| invalid())?;
        Ok(Guid::from_printed(digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_order_on_disk() {
        let guid: Guid = "{2DC27766-F623-4200-9D64-115E9BFD4A08}".parse().unwrap();
        let bytes = [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
        assert_eq!(guid.bytes(), bytes);
        assert_eq!(guid, Guid::from_printed(0x2DC27766_F623_4200_9D64_115E9BFD4A08));
        assert_eq!(guid.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(guid.to_string().parse::<Guid>().unwrap(), guid);
        assert!(Guid::NIL.is_nil() && !guid.is_nil());
        for bad in ["", "{}", "{", "{2DC27766-F623-4200-9D64-115E9BFD4A08", "2DC27766F62342009D64115E9BFD4A08"] {
            assert!(bad.parse::<Guid>().is_err(), "{bad}");
        }
        assert!("+DC27766-F623-4200-9D64-115E9BFD4A08".parse::<Guid>().is_err());
    }

    #[test]
    fn random_guids_say_so() {
        let text = Guid::random(u128::MAX).to_string();
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(Guid::random(0).to_string(), "00000000-0000-4000-8000-000000000000");
    }
}
