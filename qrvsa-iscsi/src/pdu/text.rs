//! Text of logins and text requests (RFC 7143 6.1): `key=value` pairs with a NUL after each, and numbers in them.

/// Longest key in bytes.
const KEY_BYTES_MAX: usize = 63;
/// Longest value taken, bytes; binary values of CHAP need more than the usual 255.
const VALUE_BYTES_MAX: usize = 8192;
/// Most pairs in one text.
const PAIRS_MAX: usize = 256;

/// Splits a text into its pairs. `None`: it is malformed.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for part in bytes.split(|b| *b == 0) {
        if part.is_empty() {
            continue;
        }
        let text = std::str::from_utf8(part).ok()?;
        let (key, value) = text.split_once('=')?;
        let key_ok = (1..=KEY_BYTES_MAX).contains(&key.len())
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b".-+@_/#".contains(&b));
        if !key_ok || value.len() > VALUE_BYTES_MAX || pairs.len() == PAIRS_MAX {
            return None;
        }
        pairs.push((key.to_string(), value.to_string()));
    }
    Some(pairs)
}

/// Appends a pair.
pub fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A number, decimal or hexadecimal with `0x`.
#[must_use]
pub fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => value.parse().ok(),
        None => None,
    }
}

/// A binary value: `0x` and hexadecimal digits, or `0b` and base64.
#[must_use]
pub fn binary(value: &str) -> Option<Vec<u8>> {
    let (kind, digits) = (value.get(..2)?, value.get(2..)?);
    if digits.is_empty() {
        return None;
    }
    match kind {
        "0x" | "0X" => {
            let mut out = Vec::with_capacity(digits.len() / 2 + 1);
            let mut half = (digits.len() % 2 == 1).then_some(0u8);
            for c in digits.chars() {
                let digit = u8::try_from(c.to_digit(16)?).ok()?;
                match half.take() {
                    Some(high) => out.push(high << 4 | digit),
                    None => half = Some(digit),
                }
            }
            Some(out)
        }
        "0b" | "0B" => base64(digits),
        _ => None,
    }
}

fn base64(digits: &str) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0u32);
    let body = digits.trim_end_matches('=');
    if digits.len() - body.len() > 2 || !digits.len().is_multiple_of(4) {
        return None;
    }
    for c in body.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    Some(out)
}

/// `0x` and the bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("0x"), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_and_their_errors() {
        assert_eq!(parse(b"A=1\0B=\0").unwrap(), [("A".into(), "1".into()), ("B".into(), String::new())]);
        assert_eq!(parse(b"A=x=y").unwrap(), [("A".into(), "x=y".into())]);
        assert_eq!(parse(b"").unwrap(), []);
        let long = [&[b'k'; 64][..], b"=1\0"].concat();
        for bad in [&b"A\0"[..], b"=1\0", b"A b=1\0", b"A=\xff\0", &long] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number("8192"), Some(8192));
        assert_eq!(number("0x10"), Some(16));
        for bad in ["", "-1", "+1", "0x", "1x", "99999999999999999999"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn binaries() {
        assert_eq!(binary("0x0aFF"), Some(vec![10, 255]));
        assert_eq!(binary("0xaff"), Some(vec![10, 255]));
        assert_eq!(binary("0bCv8="), Some(vec![10, 255]));
        for bad in ["0x", "0b", "12", "0xzz", "0bC", "0b====", "é1"] {
            assert_eq!(binary(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn total(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC*") {
            let _ = parse(&bytes);
            let _ = (number(&text), binary(&text));
        }

        #[test]
        fn hex_comes_back(bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            prop_assert_eq!(binary(&hex(&bytes)), Some(bytes));
        }

        #[test]
        fn pairs_come_back(pairs in proptest::collection::vec(("[A-Za-z][A-Za-z0-9_.-]{0,20}", "[ -~]{0,40}"), 0..20)) {
            let mut bytes = Vec::new();
            for (key, value) in &pairs {
                push(&mut bytes, key, value);
            }
            prop_assert_eq!(parse(&bytes), Some(pairs));
        }
    }
}
