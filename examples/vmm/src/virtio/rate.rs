//! Limits on bytes and operations in a time: two buckets that fill steadily.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much a device may do. Absent is without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rate {
    /// Bytes in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_second: Option<u64>,
    /// Requests or packets in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operations_per_second: Option<u64>,
}

/// Tokens that come in at `rate` a second, and of which a second's worth is kept at most.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    /// What there is, in billionths; below zero after a request larger than the bucket.
    level: i128,
    filled: Instant,
}

const UNIT: i128 = 1_000_000_000;

impl Bucket {
    fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate: rate.max(1),
            level: i128::from(rate.max(1)) * UNIT,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        let came =
            i128::try_from(passed).unwrap_or(i128::MAX / UNIT / UNIT) * i128::from(self.rate);
        self.level = (self.level + came).min(i128::from(self.rate) * UNIT);
        self.filled = now;
    }

    /// How long until there is something again.
    fn wait(&self) -> Option<Duration> {
        if self.level > 0 {
            return None;
        }
        let nanos = (1 - self.level).div_euclid(i128::from(self.rate)) + 1;
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    fn take(&mut self, n: u64) {
        self.level -= i128::from(n) * UNIT;
    }
}

/// Holds a device to its [`Rate`].
#[derive(Debug)]
pub(crate) struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        let now = Instant::now();
        let bucket = |rate: Option<u64>| rate.map(|r| Bucket::new(r, now));
        Self {
            bytes: bucket(rate.bytes_per_second),
            operations: bucket(rate.operations_per_second),
        }
    }

    /// Takes one operation of so many bytes, or says how long to wait for it.
    ///
    /// A request that is larger than what is there is let through, and the next ones wait for it.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), Duration> {
        self.take_at(bytes, Instant::now())
    }

    fn take_at(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut buckets = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let mut wait = None;
        for (bucket, _) in &mut buckets {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait());
            }
        }
        if let Some(time) = wait {
            return Err(time);
        }
        for (bucket, n) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(n);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However requests come, no more passes in a time than the rate, a second's worth to begin
        /// with, and one request that overdraws; and whoever waits as told gets through.
        #[test]
        fn the_rate_holds(rate in 1u64..1 << 40, sizes in prop::collection::vec(0u64..1 << 30, 1..50)) {
            let start = Instant::now();
            let mut limiter = Limiter::new(Rate { bytes_per_second: Some(rate), operations_per_second: None });
            let (mut now, mut passed, mut largest) = (start, 0u128, 0u128);
            for size in sizes {
                if let Err(time) = limiter.take_at(size, now) {
                    now += time;
                    prop_assert!(limiter.take_at(size, now).is_ok());
                }
                passed += u128::from(size);
                largest = largest.max(size.into());
                let allowed = u128::from(rate) * (now - start).as_nanos() / 1_000_000_000;
                prop_assert!(passed <= allowed + u128::from(rate) + largest + 1);
            }
        }
    }

    #[test]
    fn operations_count_too() {
        let now = Instant::now();
        let rate = Rate {
            bytes_per_second: None,
            operations_per_second: Some(2),
        };
        let mut limiter = Limiter::new(rate);
        limiter.operations.as_mut().unwrap().filled = now;
        assert!(limiter.take_at(1 << 40, now).is_ok());
        assert!(limiter.take_at(0, now).is_ok());
        let wait = limiter.take_at(0, now).unwrap_err();
        assert!(wait <= Duration::from_millis(501), "{wait:?}");
        assert!(limiter.take_at(0, now + wait).is_ok());
    }
}
