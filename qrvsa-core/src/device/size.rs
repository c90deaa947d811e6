//! Sizes as people write them: `64M`, `4T`, `4TiB` (binary), `4TB` (decimal), `4096`.

use crate::error::{Error, ErrorKind, Result};

/// Parses a size in bytes.
///
/// A unit of one letter (`K M G T P E`) and one ending in `iB` count in powers of 1024, one ending in `B` in powers of
/// 1000; no unit, or `B` alone, means bytes. Case does not matter. A decimal fraction is allowed before a unit
/// (`1.5T`); what remains of a byte is dropped.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything else and for sizes of 16 EiB and more.
pub fn parse_size(text: &str) -> Result<u64> {
    let invalid = || Error::new(ErrorKind::Invalid, format!("\"{text}\" is not a size (examples: 64M, 4TiB, 4TB)"));
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit_bytes(unit.trim()).ok_or_else(invalid)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if unit > 1 => (whole, fraction),
        Some(_) => return Err(invalid()),
        None => (number, ""),
    };
    // 18 digits of fraction are finer than a byte of the largest unit.
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') || fraction.len() > 18 {
        return Err(invalid());
    }
    let mut bytes = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(invalid)?;
    if !fraction.is_empty() {
        let digits = fraction.parse::<u64>().map_err(|_| invalid())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| invalid())?);
        let part = u128::from(digits) * u128::from(unit) / scale;
        bytes = u64::try_from(part).ok().and_then(|part| bytes.checked_add(part)).ok_or_else(invalid)?;
    }
    Ok(bytes)
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_uppercase();
    if unit.is_empty() || unit == "B" {
        return Some(1);
    }
    let power = u32::try_from("KMGTPE".find(unit.chars().next()?)?).ok()? + 1;
    match unit.get(1..)? {
        "" | "IB" => Some(1024u64.pow(power)),
        "B" => Some(1000u64.pow(power)),
        _ => None,
    }
}

/// A size for people: in the largest binary unit that leaves at least 1, with up to two decimals (`1.5 TiB`, `4 KiB`,
/// `512 B`). Rounded to nearest.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let hundredths = |unit: u64| (u128::from(bytes) * 100 + u128::from(unit / 2)) / u128::from(unit);
    // 1023.996 KiB is shown as 1 MiB.
    let chosen = (1..=6u32).rev().zip(UNITS.iter().rev()).find(|(power, _)| hundredths(1024u64.pow(*power)) >= 100);
    let Some((power, name)) = chosen.filter(|_| bytes >= 1024) else { return format!("{bytes} B") };
    let value = hundredths(1024u64.pow(power));
    let (whole, rest) = (value / 100, value % 100);
    match (rest, rest % 10) {
        (0, _) => format!("{whole} {name}"),
        (_, 0) => format!("{whole}.{} {name}", rest / 10),
        _ => format!("{whole}.{rest:02} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_people_write() {
        let good: [(&str, u64); 16] = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64MB", 64_000_000),
            (" 1 KiB ", 1024),
            ("4T", 4 << 40),
            ("4TiB", 4 << 40),
            ("4TB", 4_000_000_000_000),
            ("1.5T", 3 << 39),
            ("0.1KB", 100),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        let bad = [
            "",
            " ",
            "M",
            "-1",
            "+1",
            "1.5",
            "1..5M",
            "1.M",
            ".5M",
            "1MM",
            "1iB",
            "4X",
            "4Ti",
            "16E",
            "20EB",
            "1e6",
            "0x10",
            "18446744073709551616",
            "99999999999999999999T",
            "1.9999999999999999999T",
            "4é",
            "4Té",
        ];
        for text in bad {
            assert_eq!(parse_size(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn sizes_people_read() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            ((1 << 20) + (1 << 14), "1.02 MiB"),
            (4_000_000_000_000, "3.64 TiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn formatted_sizes_parse_to_nearly_themselves(bytes in 0..u64::MAX / 2) {
            let back = parse_size(&format_size(bytes)).unwrap();
            prop_assert!(back.abs_diff(bytes) <= bytes / 100 + 1);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}") {
            let _ = parse_size(&text);
        }
    }
}
