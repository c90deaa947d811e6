//! Cutting a stream of bytes into PDUs (RFC 7143 11.2): header, additional headers, digests, padding, length limits.

use super::{BHS_BYTES, Bhs, digest, padded};

/// What holds for framing on a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Longest data segment taken, bytes.
    pub data_bytes_max: usize,
}

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The data segment is longer than was declared.
    TooLong(usize),
    /// More additional header than any PDU has.
    AdditionalTooLong(usize),
    /// The header digest does not fit.
    HeaderDigest,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::TooLong(bytes) => write!(f, "a data segment of {bytes} bytes is beyond what was declared"),
            FrameError::AdditionalTooLong(bytes) => write!(f, "additional headers of {bytes} bytes"),
            FrameError::HeaderDigest => f.write_str("the header digest does not fit"),
        }
    }
}

/// Longest additional header segments taken: an extended CDB of 260 bytes and a bidirectional length.
const AHS_BYTES_MAX: usize = 264;

/// A header that was found at the front of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The basic header.
    pub bhs: Bhs,
    /// Bytes from the front of the PDU to its data segment.
    pub data_at: usize,
    /// Length of the data segment.
    pub data_bytes: usize,
    /// Length of the whole PDU with padding and digests.
    pub total: usize,
}

/// Reads the header at the front. `None`: more bytes are needed.
///
/// # Errors
/// The stream cannot go on.
pub fn header(bytes: &[u8], rules: &Rules) -> Result<Option<Header>, FrameError> {
    let Some((front, _)) = bytes.split_first_chunk::<BHS_BYTES>() else { return Ok(None) };
    let bhs = Bhs(*front);
    let ahs = bhs.ahs_bytes();
    if ahs > AHS_BYTES_MAX {
        return Err(FrameError::AdditionalTooLong(ahs));
    }
    let data_bytes = bhs.data_bytes();
    let headers = BHS_BYTES + ahs;
    let data_at = headers + if rules.header_digest { 4 } else { 0 };
    let Some(front) = bytes.get(..data_at) else {
        // A length beyond all measure is found before waiting for the rest.
        return if data_bytes > rules.data_bytes_max { Err(FrameError::TooLong(data_bytes)) } else { Ok(None) };
    };
    if rules.header_digest {
        let (covered, sum) = front.split_at(headers);
        if sum != digest(&[covered]) {
            return Err(FrameError::HeaderDigest);
        }
    }
    if data_bytes > rules.data_bytes_max {
        return Err(FrameError::TooLong(data_bytes));
    }
    let data_digest = if rules.data_digest && data_bytes > 0 { 4 } else { 0 };
    Ok(Some(Header { bhs, data_at, data_bytes, total: data_at + padded(data_bytes) + data_digest }))
}

/// A whole PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// The basic header.
    pub bhs: Bhs,
    /// Additional header segments.
    pub ahs: &'a [u8],
    /// Data segment without padding.
    pub data: &'a [u8],
    /// The data digest fits, or there is none.
    pub data_good: bool,
}

/// The PDU whose header was found, once all of its bytes are there.
#[must_use]
pub fn body<'a>(bytes: &'a [u8], header: &Header, rules: &Rules) -> Option<Pdu<'a>> {
    let whole = bytes.get(..header.total)?;
    let ahs = whole.get(BHS_BYTES..BHS_BYTES + header.bhs.ahs_bytes())?;
    let data = whole.get(header.data_at..header.data_at + header.data_bytes)?;
    let data_good = if rules.data_digest && header.data_bytes > 0 {
        let end = header.data_at + padded(header.data_bytes);
        let (covered, sum) = (whole.get(header.data_at..end)?, whole.get(end..)?);
        sum == digest(&[covered])
    } else {
        true
    };
    Some(Pdu { bhs: header.bhs, ahs, data, data_good })
}

/// For fuzzing: frames all of a stream, and returns how many PDUs it held.
#[must_use]
pub fn scan(mut bytes: &[u8], rules: &Rules) -> usize {
    let mut count = 0;
    while let Ok(Some(found)) = header(bytes, rules) {
        let Some(pdu) = body(bytes, &found, rules) else { break };
        let _ = super::ahs::parse(pdu.ahs);
        count += 1;
        bytes = bytes.get(found.total..).unwrap_or_default();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pdu(data: &[u8], rules: &Rules) -> Vec<u8> {
        let mut bytes = vec![0u8; BHS_BYTES];
        bytes[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        if rules.header_digest {
            let sum = digest(&[&bytes]);
            bytes.extend(sum);
        }
        let at = bytes.len();
        bytes.extend(data);
        bytes.resize(at + padded(data.len()), 0);
        if rules.data_digest && !data.is_empty() {
            let sum = digest(&[&bytes[at..]]);
            bytes.extend(sum);
        }
        bytes
    }

    #[test]
    fn round_trip_with_every_digest() {
        for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
            let rules = Rules { header_digest, data_digest, data_bytes_max: 100 };
            for data in [&b""[..], b"a", b"abcd", &[7; 100]] {
                let bytes = pdu(data, &rules);
                for cut in 0..bytes.len() {
                    if let Some(found) = header(&bytes[..cut], &rules).unwrap() {
                        assert!(body(&bytes[..cut], &found, &rules).is_none());
                    }
                }
                let found = header(&bytes, &rules).unwrap().unwrap();
                assert_eq!(found.total, bytes.len());
                let whole = body(&bytes, &found, &rules).unwrap();
                assert!(whole.data_good);
                assert_eq!(whole.data, data);
            }
        }
    }

    #[test]
    fn flipped_bits_are_seen() {
        let rules = Rules { header_digest: true, data_digest: true, data_bytes_max: 100 };
        let good = pdu(b"hello", &rules);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            let seen = match header(&bad, &rules) {
                Err(_) | Ok(None) => true,
                Ok(Some(found)) => body(&bad, &found, &rules).is_none_or(|p| !p.data_good),
            };
            assert!(seen, "byte {at}");
        }
    }

    #[test]
    fn too_long_is_refused_at_once() {
        let rules = Rules { header_digest: false, data_digest: false, data_bytes_max: 99 };
        let bytes = pdu(&[0; 100], &rules);
        assert_eq!(header(&bytes[..48], &rules), Err(FrameError::TooLong(100)));
    }

    proptest::proptest! {
        #[test]
        fn total(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), digests in 0..4u8) {
            let rules = Rules { header_digest: digests & 1 != 0, data_digest: digests & 2 != 0, data_bytes_max: 64 };
            let _ = scan(&bytes, &rules);
        }
    }
}
