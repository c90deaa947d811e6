//! The pool's on-disk structures: pure codecs, no I/O. Byte tables stand in `docs/format.md`.

pub mod entries;
pub mod label;
pub mod layout;
pub mod uberblock;

use crate::error::{Error, ErrorKind, Result};
use crate::record::checksum::checksum;

/// Format version of labels and uberblocks.
pub const FORMAT_VERSION: u32 = 1;

/// Incompatible features this version knows (none exist yet; compression, encryption and clones will each take a bit).
pub const KNOWN_INCOMPATIBLE: u64 = 0;
/// Features this version does not need to know to read a pool, but to write it.
pub const KNOWN_READONLY_COMPATIBLE: u64 = 0;

/// Seals a block: pads with zeros to `len` and puts the checksum of all but the last eight bytes there.
///
/// # Panics
/// If the content does not leave room for the checksum; the callers bound it.
pub(crate) fn seal(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    assert!(bytes.len() + 8 <= len, "structure of {} bytes does not fit its block of {len}", bytes.len());
    bytes.resize(len - 8, 0);
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Opens a sealed block: the content without the checksum.
pub(crate) fn open<'a>(block: &'a [u8], what: &'static str) -> Result<&'a [u8]> {
    let Some((content, sum)) = block.split_last_chunk::<8>() else {
        return Err(Error::new(ErrorKind::Corrupt, format!("{what}: cut short")));
    };
    if checksum(content) != u64::from_le_bytes(*sum) {
        return Err(Error::new(ErrorKind::Corrupt, format!("{what}: checksum mismatch")));
    }
    Ok(content)
}
