//! The file type identifier (2.2.1), at the start of the file.

use super::fields::{has_at, put, utf16_units};

/// The first eight bytes of every VHDX file.
pub const SIGNATURE: &[u8; 8] = b"vhdxfile";
const CREATOR_OFFSET: usize = 8;
const CREATOR_BYTES: usize = 512;
const BYTES: usize = CREATOR_OFFSET + CREATOR_BYTES;

/// Who made the file. For people; nothing depends on it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileIdentifier {
    /// Name and version of the program.
    pub creator: String,
}

impl FileIdentifier {
    /// Bytes that are looked at and written.
    pub const BYTES: usize = BYTES;

    /// Reads the identifier; `None` if this is no VHDX file.
    pub fn decode(bytes: &[u8]) -> Option<FileIdentifier> {
        if !has_at(bytes, 0, SIGNATURE) {
            return None;
        }
        let end = BYTES.min(bytes.len());
        let units = utf16_units(bytes.get(CREATOR_OFFSET..end).unwrap_or(&[]));
        let text = units.split(|unit| *unit == 0).next().unwrap_or(&[]);
        Some(FileIdentifier { creator: String::from_utf16_lossy(text) })
    }

    /// The bytes; a creator longer than 255 units is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        put(&mut bytes, 0, SIGNATURE);
        for (i, unit) in self.creator.encode_utf16().take(CREATOR_BYTES / 2 - 1).enumerate() {
            put(&mut bytes, CREATOR_OFFSET + 2 * i, &unit.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creator_survives() {
        let me = FileIdentifier { creator: "QRVSA 0.1 é".into() };
        assert_eq!(FileIdentifier::decode(&me.encode()), Some(me));
        let long = FileIdentifier { creator: "x".repeat(1000) };
        assert_eq!(FileIdentifier::decode(&long.encode()).unwrap().creator.len(), 255);
        assert_eq!(FileIdentifier::decode(b"vhdxfile"), Some(FileIdentifier::default()));
        assert_eq!(FileIdentifier::decode(b"conectix"), None);
        assert_eq!(FileIdentifier::decode(b""), None);
    }
}
