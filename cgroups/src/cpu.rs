//! Processor time: how much at most, and which share under contention.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ParseError};
use crate::max::Max;

/// The kernel's bounds, in microseconds: `min_cfs_quota_period`, `max_cfs_quota_period`.
const MIN_US: u64 = 1_000;
const MAX_PERIOD_US: u64 = 1_000_000;
/// `max_cfs_runtime`: above it the kernel's fixed-point ratio would overflow.
const MAX_QUOTA_US: u64 = (1 << 44) - 1;
/// What the kernel gives a new group.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// So much processor time in every period, in all processors together.
///
/// A quota that is larger than its period lets a group use more than one processor.
///
/// Bounds of the kernel: both at least 1 ms, the period at most 1 s. The kernel counts in
/// microseconds, so anything finer is dropped.
#[doc(alias = "cpu.max")]
#[doc(alias = "cpu.cfs_quota_us")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "(u64, u64)", into = "(u64, u64)"))]
pub struct CpuQuota {
    quota_us: u64,
    period_us: u64,
}

impl CpuQuota {
    /// So much time in each period.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] when one is outside the kernel's bounds.
    pub fn new(quota: Duration, period: Duration) -> Result<Self, Error> {
        let us = |value: Duration| u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        Self::from_micros(us(quota), us(period))
    }

    /// So many processors, whole or in part, in the kernel's usual period of 100 ms. Shares so
    /// small that their quota would fall below the kernel's minimum get a longer period.
    ///
    /// ```
    /// use cgroups::CpuQuota;
    /// use std::time::Duration;
    ///
    /// let quota = CpuQuota::cpus(1.5)?;
    /// assert_eq!(quota.quota(), Duration::from_millis(150));
    /// assert_eq!(quota.period(), Duration::from_millis(100));
    /// # Ok::<(), cgroups::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] when `cpus` is not a number, below 0.001 or beyond what the kernel
    /// can count.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    pub fn cpus(cpus: f64) -> Result<Self, Error> {
        let in_range = cpus.is_finite() && cpus >= 0.001;
        let period_us = if !in_range || cpus * DEFAULT_PERIOD_US as f64 >= MIN_US as f64 {
            DEFAULT_PERIOD_US
        } else {
            MAX_PERIOD_US
        };
        // A float above u64::MAX becomes u64::MAX, which the check below refuses.
        let quota_us = (cpus * period_us as f64).round() as u64;
        if !in_range || quota_us > MAX_QUOTA_US {
            return Err(Error::OutOfRange {
                what: "number of CPUs",
                value: cpus.to_string(),
                min: "0.001",
                max: "175921860",
            });
        }
        Self::from_micros(quota_us, period_us)
    }

    pub(crate) fn from_micros(quota_us: u64, period_us: u64) -> Result<Self, Error> {
        if !(MIN_US..=MAX_PERIOD_US).contains(&period_us) {
            return Err(Error::OutOfRange {
                what: "CPU period",
                value: format!("{period_us}us"),
                min: "1ms",
                max: "1s",
            });
        }
        if !(MIN_US..=MAX_QUOTA_US).contains(&quota_us) {
            return Err(Error::OutOfRange {
                what: "CPU quota",
                value: format!("{quota_us}us"),
                min: "1ms",
                max: "17592186s",
            });
        }
        Ok(Self {
            quota_us,
            period_us,
        })
    }

    /// Reads the content of `cpu.max`, where no limit has a period too: `max 100000`.
    ///
    /// # Errors
    ///
    /// [`ParseError`] for anything else.
    pub fn parse_max(text: &str) -> Result<Max<Self>, ParseError> {
        match text.trim_end().split_once(' ') {
            Some(("max", period)) if period.parse::<u64>().is_ok() => Ok(Max::Unlimited),
            _ => text.parse().map(Max::At),
        }
    }

    /// The time that may be used in each period.
    pub fn quota(self) -> Duration {
        Duration::from_micros(self.quota_us)
    }

    /// The length of a period.
    pub fn period(self) -> Duration {
        Duration::from_micros(self.period_us)
    }

    /// How many processors that is.
    #[allow(clippy::cast_precision_loss)]
    pub fn as_cpus(self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }
}

impl fmt::Display for CpuQuota {
    /// Microseconds, as `cpu.max` has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota_us, self.period_us)
    }
}

impl FromStr for CpuQuota {
    type Err = ParseError;

    /// Reads the content of `cpu.max` that has a limit: quota and period in microseconds.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("a quota and a period in microseconds", text);
        let (quota, period) = text.trim_end().split_once(' ').ok_or_else(fail)?;
        let number = |text: &str| text.parse().map_err(|_| fail());
        Self::from_micros(number(quota)?, number(period)?).map_err(|_| fail())
    }
}

#[cfg(feature = "serde")]
impl From<CpuQuota> for (u64, u64) {
    fn from(quota: CpuQuota) -> Self {
        (quota.quota_us, quota.period_us)
    }
}

#[cfg(feature = "serde")]
impl TryFrom<(u64, u64)> for CpuQuota {
    type Error = Error;

    fn try_from((quota, period): (u64, u64)) -> Result<Self, Error> {
        Self::from_micros(quota, period)
    }
}

/// The share of processor time that a group gets under contention, beside its siblings:
/// 1 to 10000, 100 unless set.
///
/// On v1 it is `cpu.shares`, by the formula that the kernel itself uses for v2:
/// `shares = weight × 1024 ÷ 100`, rounded to nearest. Every weight survives the way there and
/// back; shares above 102400, which no weight reaches, read as 10000.
#[doc(alias = "cpu.weight")]
#[doc(alias = "cpu.shares")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u16", into = "u16"))]
pub struct Weight(u16);

impl Weight {
    /// The smallest weight.
    pub const MIN: Self = Self(1);
    /// What a new group has.
    pub const DEFAULT: Self = Self(100);
    /// The largest weight.
    pub const MAX: Self = Self(10_000);

    /// The weight with this value.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] outside 1 to 10000.
    pub fn new(weight: u16) -> Result<Self, Error> {
        if (Self::MIN.0..=Self::MAX.0).contains(&weight) {
            Ok(Self(weight))
        } else {
            Err(Error::OutOfRange {
                what: "weight",
                value: weight.to_string(),
                min: "1",
                max: "10000",
            })
        }
    }

    /// The value, 1 to 10000.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The value of v1's `cpu.shares` that the scheduler treats alike.
    pub fn to_shares(self) -> u64 {
        (u64::from(self.0) * 1024 + 50) / 100
    }

    /// The weight that the scheduler treats as it does `shares`; the nearest one where there is
    /// none.
    pub fn from_shares(shares: u64) -> Self {
        let weight = shares.saturating_mul(100).saturating_add(512) / 1024;
        Self(u16::try_from(weight.clamp(1, 10_000)).unwrap_or(10_000))
    }

    /// The value of v1's `blkio.bfq.weight` (1 to 1000) for this weight of `io.weight`.
    ///
    /// Both scales have 100 for a new group. Up to 100 they are alike; above, v2's 9900 steps are
    /// laid over v1's 900: `100 + (weight − 100) ÷ 11`. Neighbouring weights above 100 may
    /// become one.
    pub fn to_blkio(self) -> u16 {
        match self.0 {
            low @ 0..=100 => low,
            high => 100 + (high - 100) / 11,
        }
    }

    /// The weight of `io.weight` for a value of `blkio.bfq.weight`: the smallest one that
    /// [`Weight::to_blkio`] would turn into it.
    pub fn from_blkio(weight: u16) -> Self {
        match weight {
            low @ 0..=100 => Self(low.max(1)),
            high => Self(100 + (high.min(1000) - 100) * 11),
        }
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Weight {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse()
            .ok()
            .and_then(|weight| Self::new(weight).ok())
            .ok_or_else(|| ParseError::new("a weight from 1 to 10000", text))
    }
}

#[cfg(feature = "serde")]
impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

#[cfg(feature = "serde")]
impl TryFrom<u16> for Weight {
    type Error = Error;

    fn try_from(weight: u16) -> Result<Self, Error> {
        Self::new(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_survives_shares() {
        for weight in 1..=10_000 {
            assert_eq!(
                Weight::from_shares(Weight(weight).to_shares()),
                Weight(weight)
            );
        }
        assert_eq!(Weight::DEFAULT.to_shares(), 1024);
        assert_eq!(Weight::from_shares(2), Weight::MIN);
        assert_eq!(Weight::from_shares(262_144), Weight::MAX);
    }

    #[test]
    fn weights_of_block_devices_keep_their_order() {
        let converted: Vec<_> = (1..=10_000).map(|w| Weight(w).to_blkio()).collect();
        assert!(converted.is_sorted());
        assert_eq!((converted[0], converted[9_999]), (1, 1000));
        for weight in 1..=1000 {
            assert_eq!(Weight::from_blkio(weight).to_blkio(), weight);
        }
    }

    #[test]
    fn small_shares_of_a_cpu_get_a_longer_period() {
        let quota = CpuQuota::cpus(0.005).expect("within bounds");
        assert_eq!((quota.quota_us, quota.period_us), (5_000, 1_000_000));
        for cpus in [0.0, -1.0, 0.0001, f64::NAN, f64::INFINITY, 1e18] {
            assert!(CpuQuota::cpus(cpus).is_err(), "{cpus} was accepted");
        }
    }
}
