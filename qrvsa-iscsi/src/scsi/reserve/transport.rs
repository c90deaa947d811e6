//! iSCSI TransportIDs (SPC-4 7.6.4.6).

use super::PortPair;
use crate::scsi::bytes::{be16, byte, len16};

/// An initiator as named by a TransportID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Initiator {
    pub name: String,
    /// `None`: all ports of the initiator that are known.
    pub isid: Option<[u8; 6]>,
}

/// The TransportID of a registered port.
pub(crate) fn encode(port: &PortPair) -> Vec<u8> {
    let isid: String = port.isid.iter().map(|b| format!("{b:02x}")).collect();
    let mut name = format!("{},i,0x{isid}", port.initiator).into_bytes();
    name.push(0);
    name.resize(name.len().next_multiple_of(4).max(20), 0);
    let mut out = vec![0x45, 0];
    out.extend(len16(name.len()));
    out.extend(name);
    out
}

/// The TransportID at the front of `bytes`, and its length; `None`: it is none.
pub(crate) fn decode(bytes: &[u8]) -> Option<(Initiator, usize)> {
    let front = byte(bytes, 0);
    let length = usize::from(be16(bytes, 2));
    if front & 0x3f != 0x05 || length < 20 || !length.is_multiple_of(4) {
        return None;
    }
    let text = bytes.get(4..4 + length)?;
    let end = text.iter().position(|b| *b == 0)?;
    let text = std::str::from_utf8(text.get(..end)?).ok()?;
    let initiator = match front >> 6 {
        0 => Initiator { name: name(text)?, isid: None },
        1 => {
            let (before, isid) = text.rsplit_once(",i,0x")?;
            Initiator { name: name(before)?, isid: Some(parse_isid(isid)?) }
        }
        _ => return None,
    };
    Some((initiator, 4 + length))
}

fn name(text: &str) -> Option<String> {
    let good = !text.is_empty() && text.len() <= 223 && text.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    good.then(|| text.to_ascii_lowercase())
}

fn parse_isid(hex: &str) -> Option<[u8; 6]> {
    if hex.len() > 12 || hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let [_, _, isid @ ..] = u64::from_str_radix(hex, 16).ok()?.to_be_bytes();
    Some(isid)
}
