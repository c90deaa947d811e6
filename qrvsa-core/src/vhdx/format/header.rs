//! The two headers (2.2.2): which one is current, where the log lies.

use super::fields::{checksum_with_hole, guid_at, has_at, put, u16_at, u32_at, u64_at};
use super::guid::Guid;
use super::problem::Problem;
use super::{HEADER_BYTES, MIB};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: &[u8; 4] = b"head";
const CHECKSUM_AT: usize = 4;
/// The one version of the format.
const VERSION: u16 = 1;

/// The values of a header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The higher one of two headers is current.
    pub sequence: u64,
    /// Changes before the file is modified in any way.
    pub file_write_guid: Guid,
    /// Changes before what the disk's user sees is modified.
    pub data_write_guid: Guid,
    /// Names the entries of the log that count; nil: the log is empty.
    pub log_guid: Guid,
    /// Version of the log's format; 0.
    pub log_version: u16,
    /// Version of the format; 1.
    pub version: u16,
    /// Bytes of the log, a multiple of 1 MiB.
    pub log_length: u32,
    /// File offset of the log, a multiple of 1 MiB.
    pub log_offset: u64,
}

/// A header as found: its values, not to be believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawHeader {
    /// What the fields say.
    pub claimed: Header,
    signature: bool,
    checksum: bool,
}

impl Header {
    /// The 4 KiB with the checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write_guid.bytes());
        put(&mut bytes, 32, &self.data_write_guid.bytes());
        put(&mut bytes, 48, &self.log_guid.bytes());
        put(&mut bytes, 64, &self.log_version.to_le_bytes());
        put(&mut bytes, 66, &self.version.to_le_bytes());
        put(&mut bytes, 68, &self.log_length.to_le_bytes());
        put(&mut bytes, 72, &self.log_offset.to_le_bytes());
        let checksum = checksum_with_hole(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }
}

impl RawHeader {
    /// Reads the first 4 KiB of a header.
    pub fn decode(bytes: &[u8]) -> RawHeader {
        let bytes = bytes.get(..HEADER_BYTES).unwrap_or(bytes);
        let claimed = Header {
            sequence: u64_at(bytes, 8),
            file_write_guid: guid_at(bytes, 16),
            data_write_guid: guid_at(bytes, 32),
            log_guid: guid_at(bytes, 48),
            log_version: u16_at(bytes, 64),
            version: u16_at(bytes, 66),
            log_length: u32_at(bytes, 68),
            log_offset: u64_at(bytes, 72),
        };
        let checksum =
            bytes.len() == HEADER_BYTES && u32_at(bytes, CHECKSUM_AT) == checksum_with_hole(bytes, CHECKSUM_AT);
        RawHeader { claimed, signature: has_at(bytes, 0, MAGIC), checksum }
    }

    /// Whether it was written whole: signature and checksum are right. Only such a header can be the current one.
    pub fn is_intact(&self) -> bool {
        self.signature && self.checksum
    }

    /// Everything that is wrong with it, wherever the log's region may lie.
    pub fn problems(&self) -> Vec<Problem> {
        let header = &self.claimed;
        let mut problems = Vec::new();
        if !self.signature {
            problems.push(Problem::fatal(0, "the signature is not \"head\""));
        }
        if !self.checksum {
            problems.push(Problem::fatal(CHECKSUM_AT as u64, "the checksum is wrong"));
        }
        if !self.is_intact() {
            return problems;
        }
        if header.version != VERSION {
            problems.push(Problem::fatal(66, format!("the format has version {}, not 1", header.version)));
        }
        if header.log_version != 0 {
            let what = format!("the log has version {}, not 0", header.log_version);
            // Without log entries there is nothing to misunderstand (2.2.2).
            let fatal = !header.log_guid.is_nil();
            problems.push(Problem { at: 64, what: what.into(), fatal });
        }
        if !u64::from(header.log_length).is_multiple_of(MIB) || header.log_length == 0 {
            let what = format!("the log's length, {}, is not a positive multiple of 1 MiB", header.log_length);
            problems.push(Problem::fatal(68, what));
        }
        let end = header.log_offset.checked_add(u64::from(header.log_length));
        if !header.log_offset.is_multiple_of(MIB) || header.log_offset < MIB || end.is_none() {
            let what = format!("the log's offset, {}, is not a multiple of 1 MiB from 1 MiB on", header.log_offset);
            problems.push(Problem::fatal(72, what));
        }
        problems
    }

    /// The header, if the engine can work with it.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] with the first problem that forbids it; [`ErrorKind::Unsupported`] for a version not known.
    pub fn validate(&self) -> Result<Header> {
        let header = &self.claimed;
        if self.is_intact() && (header.version != VERSION || header.log_version != 0 && !header.log_guid.is_nil()) {
            let (version, log) = (header.version, header.log_version);
            crate::fail!(Unsupported, "VHDX version {version} with log version {log}; versions 1 and 0 are supported");
        }
        Problem::refuse(self.problems(), "header")?;
        Ok(header.clone())
    }
}

/// Which of two headers (0 or 1) is the current one: the intact one with the higher sequence number; of two equal ones, if
/// they say the same, the first.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if there is none.
pub fn choose_header(headers: &[RawHeader; 2]) -> Result<usize> {
    let [first, second] = headers;
    match (first.is_intact(), second.is_intact()) {
        (true, false) => Ok(0),
        (false, true) => Ok(1),
        (true, true) if first.claimed.sequence > second.claimed.sequence => Ok(0),
        (true, true) if first.claimed.sequence < second.claimed.sequence => Ok(1),
        (true, true) if first.claimed == second.claimed => Ok(0),
        (true, true) => {
            let sequence = first.claimed.sequence;
            Err(Error::new(
                ErrorKind::Corrupt,
                format!("both headers have sequence number {sequence}, but say different things"),
            ))
        }
        (false, false) => Err(Error::new(ErrorKind::Corrupt, "both headers are damaged")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(sequence: u64) -> Header {
        Header {
            sequence,
            file_write_guid: Guid::random(1),
            data_write_guid: Guid::random(2),
            log_guid: Guid::NIL,
            log_version: 0,
            version: 1,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = header(7).encode();
        assert_eq!(RawHeader::decode(&bytes).validate().unwrap(), header(7));
        assert!(RawHeader::decode(&bytes).problems().is_empty());
        for at in [0, 5, 9, 17, 4095] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(RawHeader::decode(&damaged).validate().unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert!(!RawHeader::decode(&bytes[..4095]).is_intact());
    }

    #[test]
    fn values_that_make_no_sense() {
        let problem = |change: fn(&mut Header)| {
            let mut header = header(1);
            change(&mut header);
            RawHeader::decode(&header.encode()).validate().map_err(|e| e.kind())
        };
        assert_eq!(problem(|h| h.version = 2), Err(ErrorKind::Unsupported));
        assert!(problem(|h| h.log_version = 1).is_ok(), "an empty log may have any version");
        assert_eq!(problem(|h| (h.log_version, h.log_guid) = (1, Guid::random(3))), Err(ErrorKind::Unsupported));
        for change in [
            (|h| h.log_length = 0) as fn(&mut Header),
            |h| h.log_length = 4096,
            |h| h.log_offset = 0,
            |h| h.log_offset = (1 << 20) + 512,
            |h| h.log_offset = u64::MAX - (1 << 20) + 1,
        ] {
            assert_eq!(problem(change), Err(ErrorKind::Corrupt));
        }
    }

    #[test]
    fn the_current_header() {
        let raw = |h: &Header| RawHeader::decode(&h.encode());
        let broken = RawHeader::decode(&[]);
        assert_eq!(choose_header(&[raw(&header(1)), raw(&header(2))]).unwrap(), 1);
        assert_eq!(choose_header(&[raw(&header(3)), raw(&header(2))]).unwrap(), 0);
        assert_eq!(choose_header(&[raw(&header(2)), raw(&header(2))]).unwrap(), 0);
        assert_eq!(choose_header(&[broken.clone(), raw(&header(2))]).unwrap(), 1);
        assert_eq!(choose_header(&[raw(&header(2)), broken.clone()]).unwrap(), 0);
        assert!(choose_header(&[broken.clone(), broken]).is_err());
        let other = Header { log_guid: Guid::random(9), ..header(2) };
        assert!(choose_header(&[raw(&header(2)), raw(&other)]).is_err());
    }

    proptest! {
        #[test]
        fn total(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let raw = RawHeader::decode(&bytes);
            let _ = raw.problems();
            prop_assert!(raw.validate().is_err());
        }
    }
}
