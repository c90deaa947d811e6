//! Sizes, times and durations as text, the same in every table, log line and configuration file.

use std::time::Duration;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A size in binary units with three or four significant digits: `0 B`, `512 B`, `4.00 KiB`, `1.50 TiB`, `1000 GiB`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut divisor = 1u64;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 {
        return format!("{bytes} B");
    }
    // Hundredths, rounded down: a pool never looks larger or freer than it is.
    let hundredths = u128::from(bytes) * 100 / u128::from(divisor);
    match hundredths {
        0..1_000 => format!("{}.{:02} {name}", hundredths / 100, hundredths % 100),
        1_000..10_000 => format!("{}.{} {name}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{} {name}", hundredths / 100),
    }
}

/// A rate: `120 MiB/s`.
#[must_use]
pub fn format_rate(bytes_per_s: u64) -> String {
    format!("{}/s", format_bytes(bytes_per_s))
}

/// Reads a size: a number, with a fraction if there is a unit, and a unit `B`, `K`, `M`, `G`, `T`, `P`, `E`, with `iB` or
/// `B` after it or not, in any case. `64T` and `64TiB` are binary, `64TB` is decimal, as disks are sold. `None` when it is not a
/// size or does not fit.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split)?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let factor: u128 = match unit.as_str() {
        "" | "b" => 1,
        _ => {
            let mut chars = unit.chars();
            let power = 1 + u32::try_from("kmgtpe".find(chars.next()?)?).ok()?;
            match chars.as_str() {
                "" | "ib" => 1 << (10 * power),
                "b" => 1000u128.pow(power),
                _ => return None,
            }
        }
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if factor > 1 && !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    if whole.is_empty() || fraction.len() > 12 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let mut bytes = u128::from(whole) * factor;
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().ok()?;
        bytes += digits * factor / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    }
    u64::try_from(bytes).ok()
}

/// A duration in its two largest units: `45s`, `3m05s`, `2h07m`, `4d11h`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let s = duration.as_secs();
    let (days, hours, minutes, seconds) = (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60);
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m{seconds:02}s")
    } else {
        format!("{seconds}s")
    }
}

/// A time in UTC: `2025-03-01 04:05:06 UTC`, from seconds since the epoch.
#[must_use]
pub fn format_time(unix_s: i64) -> String {
    let days = unix_s.div_euclid(86_400);
    let second_of_day = unix_s.rem_euclid(86_400);
    // Days since 0000-03-01, in eras of 400 years of March-based months: leap days fall at the end of a year.
    let shifted = i128::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second_of_day / 3_600,
        second_of_day / 60 % 60,
        second_of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_print() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (1023 << 30, "1023 GiB"),
            (1 << 40, "1.00 TiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    #[test]
    fn sizes_parse() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("4k", Some(4096)),
            ("4 KiB", Some(4096)),
            ("1.5G", Some(3 << 29)),
            ("2TiB", Some(2 << 40)),
            ("2TB", Some(2_000_000_000_000)),
            ("1.5kb", Some(1500)),
            ("18EB", Some(18_000_000_000_000_000_000)),
            ("19EB", None),
            ("512b", Some(512)),
            ("16E", None),
            ("15E", Some(15 << 60)),
            ("", None),
            ("G", None),
            (".5G", None),
            ("1.G", None),
            ("1.5", None),
            ("1x", None),
            ("1GiBs", None),
            ("-1", None),
            ("1e3", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn durations_and_times_print() {
        for (s, text) in [(0, "0s"), (59, "59s"), (185, "3m05s"), (7_620, "2h07m"), (385_200, "4d11h")] {
            assert_eq!(format_duration(Duration::from_secs(s)), text);
        }
        for (s, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_210_096, "2024-02-29 12:34:56 UTC"),
            (4_102_444_799, "2099-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(format_time(s), text);
        }
        let _ = format_time(i64::MAX);
        let _ = format_time(i64::MIN);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_close(bytes: u64) {
            let read = parse_bytes(&format_bytes(bytes)).unwrap();
            prop_assert!(read <= bytes);
            prop_assert!(bytes - read <= bytes / 100 + 1);
        }

        #[test]
        fn parsing_never_panics(text in ".*") {
            let _ = parse_bytes(&text);
        }
    }
}
