//! When and how long to wait before a request is tried again.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

/// Waits grow no longer than this by themselves.
const LONGEST: Duration = Duration::from_secs(30);

/// Whether a request with this answer may succeed later.
pub(crate) fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// The wait after the attempt with this number, from 1: `first`, doubled each time, and between half of that and all
/// of it by chance, so that many clients do not come back at once.
pub(crate) fn backoff(first: Duration, attempt: u32) -> Duration {
    let most = first
        .saturating_mul(1 << attempt.saturating_sub(1).min(16))
        .min(LONGEST);
    let random = std::hash::RandomState::new().build_hasher().finish();
    let part = u32::try_from(random % 1000).unwrap_or(0);
    most / 2 + most / 2 * part / 1000
}

/// The wait that a `Retry-After` header asks for: seconds, or a date.
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(header).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let first = Duration::from_millis(100);
        for (attempt, most) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (20, 30_000),
            (u32::MAX, 30_000),
        ] {
            let wait = backoff(first, attempt);
            let most = Duration::from_millis(most);
            assert!(wait >= most / 2 && wait <= most, "{attempt}: {wait:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_470);
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(retry_after(" 7 ", now), seconds(7));
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now),
            seconds(10)
        );
        assert_eq!(
            retry_after("Fri, 21 Oct 2005 07:28:00 GMT", now),
            seconds(0)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }
}
