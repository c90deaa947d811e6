//! Big-endian fields of foreign bytes. What lies beyond the end reads as zero, as SPC has it for a parameter list that was cut short;
//! who must tell the difference checks the length first.

pub(crate) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([byte(bytes, at), byte(bytes, at.saturating_add(1))])
}

pub(crate) fn be24(bytes: &[u8], at: usize) -> u32 {
    u32::from(byte(bytes, at)) << 16 | u32::from(be16(bytes, at.saturating_add(1)))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at.saturating_add(2)))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at.saturating_add(4)))
}

/// `text` in a field of `width`, filled with blanks; what is not printable ASCII becomes a blank (SPC-4 4.4.1).
pub(crate) fn put_ascii(out: &mut Vec<u8>, text: &str, width: usize) {
    let printable = text.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b' ' });
    out.extend(printable.chain(std::iter::repeat(b' ')).take(width));
}

/// Length of a list in a field of 16 bits; the lists of this crate are bounded well below.
pub(crate) fn len16(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// Length of a list in a field of 32 bits.
pub(crate) fn len32(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// `value`, or the largest that 32 bits hold.
pub(crate) fn clamp32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
