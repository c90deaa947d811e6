//! Numbers as tgt's command line reads them: C's rules, base by prefix, and whatever follows the digits is not looked at.

/// Why a number was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberError {
    /// No number, or one beyond 64 bits.
    Invalid,
    /// Not within the bounds.
    OutOfRange,
}

/// Reads a number of at most `max`: blanks, a sign, then decimal, `0x` hexadecimal or `0` octal digits. The number of all
/// ones, which is also what -1 gives, is invalid; other negative numbers wrap around.
///
/// # Errors
/// See [`NumberError`].
pub fn parse(text: &str, max: u64) -> Result<u64, NumberError> {
    let text = text.trim_start();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, base) = match hex {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (rest, 16),
        _ if text.starts_with('0') => (text, 8),
        _ => (text, 10),
    };
    let digits: Vec<u64> = digits.chars().map_while(|c| c.to_digit(base).map(u64::from)).collect();
    if digits.is_empty() {
        return Err(NumberError::Invalid);
    }
    let mut value: u64 = 0;
    for digit in digits {
        value = value.checked_mul(u64::from(base)).and_then(|v| v.checked_add(digit)).ok_or(NumberError::Invalid)?;
    }
    if negative {
        value = value.wrapping_neg();
    }
    match value {
        u64::MAX => Err(NumberError::Invalid),
        value if value > max => Err(NumberError::OutOfRange),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_tgt_reads_them() {
        for (text, max, wanted) in [
            ("0", 9, Ok(0)),
            (" 5", 9, Ok(5)),
            ("5x", 9, Ok(5)),
            ("0x10", 99, Ok(16)),
            ("010", 99, Ok(8)),
            ("0x", 99, Ok(0)),
            ("+7", 9, Ok(7)),
            ("", 9, Err(NumberError::Invalid)),
            ("abc", 9, Err(NumberError::Invalid)),
            ("-1", 9, Err(NumberError::Invalid)),
            ("-5", u64::MAX, Ok(u64::MAX - 4)),
            ("-5", 9, Err(NumberError::OutOfRange)),
            ("10", 9, Err(NumberError::OutOfRange)),
            ("18446744073709551615", u64::MAX, Err(NumberError::Invalid)),
            ("0xfffffffffffffffff", u64::MAX, Err(NumberError::Invalid)),
        ] {
            assert_eq!(parse(text, max), wanted, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*", max: u64) {
            if let Ok(value) = parse(&text, max) {
                prop_assert!(value <= max);
            }
        }

        #[test]
        fn decimal_numbers_round_trip(value in 0..u64::MAX) {
            prop_assert_eq!(parse(&value.to_string(), u64::MAX), Ok(value));
        }
    }
}
