//! Values of `HEALTHCHECK`: spans of time in Go's notation.

/// Nanoseconds of a span such as `1m30s` or `1.5h`.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|end| *end > 0 && *end <= 30)?;
        let (number, more) = rest.split_at(end);
        let (unit, more) = [
            ("ns", 1),
            ("us", 1_000),
            ("µs", 1_000),
            ("μs", 1_000),
            ("ms", 1_000_000),
            ("s", 1_000_000_000),
            ("m", 60_000_000_000),
            ("h", 3_600_000_000_000_i128),
        ]
        .into_iter()
        .find_map(|(name, unit)| Some((unit, more.strip_prefix(name)?)))?;
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().ok()?
        };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let part: String = part.chars().take(15).collect();
        if !part.is_empty() {
            let scale = 10_i128.pow(u32::try_from(part.len()).ok()?);
            total += part.parse::<i128>().ok()? * unit / scale;
        }
        rest = more;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn spans_of_time() {
        for (text, expected) in [
            ("0", Some(0)),
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            ("1ms", Some(1_000_000)),
            ("-1s", Some(-1_000_000_000)),
            ("", None),
            ("1", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("9999999999999999h", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
