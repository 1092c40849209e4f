//! Numbers in headers.

use super::{tar, until_zero};
use crate::error::{Result, TarProblem, excerpt};

pub(super) fn unsigned(field: &'static str, bytes: &[u8], offset: u64) -> Result<u64> {
    let value = number(field, bytes, offset)?;
    u64::try_from(value).map_err(|_| {
        tar(
            offset,
            TarProblem::Number {
                field,
                text: value.to_string(),
            },
        )
    })
}

/// A number in octal digits, or in GNU's base-256 form with the first bit set.
pub(super) fn number(field: &'static str, bytes: &[u8], offset: u64) -> Result<i64> {
    let wrong = || {
        tar(
            offset,
            TarProblem::Number {
                field,
                text: excerpt(&String::from_utf8_lossy(bytes)),
            },
        )
    };
    match bytes.first() {
        Some(&first) if first & 0x80 != 0 => {
            // Two's complement over all bits but the first. A number that needs the first byte fits no field.
            let negative = match first {
                0x80 => false,
                0xff => true,
                _ => return Err(wrong()),
            };
            let mut value: i64 = if negative { -1 } else { 0 };
            for &byte in &bytes[1..] {
                value = value.checked_mul(256).ok_or_else(wrong)?;
                value |= i64::from(byte);
            }
            Ok(value)
        }
        _ => {
            let digits = until_zero(bytes).trim_ascii();
            // An empty field is zero, as everywhere.
            let mut value: i64 = 0;
            for digit in digits {
                if !(b'0'..=b'7').contains(digit) {
                    return Err(wrong());
                }
                value = value
                    .checked_mul(8)
                    .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                    .ok_or_else(wrong)?;
            }
            Ok(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_forms() {
        assert_eq!(number("x", b"0000644\0", 0).unwrap(), 0o644);
        assert_eq!(number("x", b"    644 ", 0).unwrap(), 0o644);
        assert_eq!(number("x", b"\0\0\0\0", 0).unwrap(), 0);
        assert_eq!(number("x", b"77777777777", 0).unwrap(), 0o77_777_777_777);
        assert_eq!(number("x", &[0x80, 0, 0, 0, 0, 0, 1, 0], 0).unwrap(), 256);
        assert_eq!(number("x", &[0xff; 12], 0).unwrap(), -1);
        assert_eq!(
            number(
                "x",
                &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
                0
            )
            .unwrap(),
            -(1 << 32)
        );
        assert!(number("x", b"0000698\0", 0).is_err());
        assert!(number("x", b"-1\0", 0).is_err());
        assert!(number("x", &[0xbf; 12], 0).is_err());
        assert!(unsigned("x", &[0xff; 12], 0).is_err());
    }
}
