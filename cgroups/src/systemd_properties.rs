//! Limits as properties of systemd's units.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::device::DeviceNumber;
use crate::limits::Limits;
use crate::max::Max;
use crate::set::IdSet;

/// The value of a unit's property, in the types that D-Bus has for them.
///
/// Which property takes which is in the manual `org.freedesktop.systemd1(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PropertyValue {
    /// `b`.
    Bool(bool),
    /// `i`.
    I32(i32),
    /// `u`.
    U32(u32),
    /// `t`; what is infinite is [`u64::MAX`].
    U64(u64),
    /// `s`.
    String(String),
    /// `as`.
    Strings(Vec<String>),
    /// `au`.
    U32s(Vec<u32>),
    /// `ay`.
    Bytes(Vec<u8>),
    /// `a(st)`: a number for each device.
    Devices(Vec<(String, u64)>),
}

/// What systemd takes for no limit.
const INFINITY: u64 = u64::MAX;

/// The properties that say what `limits` say, as far as systemd has words for it. It has none for
/// huge pages, RDMA, scalar resources, utilisation clamps, bursts, partitions, the OOM group and
/// the network controllers of v1, and leaves their files alone.
pub(crate) fn of_limits(limits: &Limits) -> Vec<(&'static str, PropertyValue)> {
    let mut all = Vec::new();
    let mut number = |name, value| all.push((name, PropertyValue::U64(value)));
    if let Some(max) = limits.cpu_max {
        // Rounded up, so that the kernel's quota, which systemd rounds down, is the one meant.
        let per_second = max.map(|quota| {
            let (quota, period) = (quota.quota().as_micros(), quota.period().as_micros());
            u64::try_from((quota * 1_000_000).div_ceil(period.max(1))).unwrap_or(INFINITY)
        });
        let period = max.map(|quota| micros(quota.period()));
        number("CPUQuotaPerSecUSec", per_second.limit().unwrap_or(INFINITY));
        number("CPUQuotaPeriodUSec", period.limit().unwrap_or(INFINITY));
    }
    match (limits.cpu_idle, limits.cpu_weight) {
        // Its name for it is a weight of 0; systemd 252.
        (Some(true), _) => number("CPUWeight", 0),
        (_, Some(weight)) => number("CPUWeight", weight.get().into()),
        _ => {}
    }
    for (name, limit) in [
        ("MemoryMin", limits.memory_min),
        ("MemoryLow", limits.memory_low),
        ("MemoryHigh", limits.memory_high),
        ("MemoryMax", limits.memory_max),
        ("MemorySwapMax", limits.memory_swap_max),
        // MemoryZSwapMax came with systemd 253; an older one would refuse the whole unit.
    ] {
        if let Some(limit) = limit {
            number(name, limit.map(Bytes::get).limit().unwrap_or(INFINITY));
        }
    }
    if let Some(max) = limits.pids_max {
        number("TasksMax", max.limit().unwrap_or(INFINITY));
    }
    if let Some(weight) = limits.io_weight {
        number("IOWeight", weight.get().into());
    }
    for (name, ids) in [
        ("AllowedCPUs", &limits.cpuset_cpus),
        ("AllowedMemoryNodes", &limits.cpuset_mems),
    ] {
        if let Some(ids) = ids {
            all.push((name, PropertyValue::Bytes(bitmask(ids))));
        }
    }
    if let Some(devices) = &limits.io_max {
        let each = |value: fn(&crate::io::IoMax) -> Max<u64>| {
            by_device(devices, |max| value(max).limit().unwrap_or(INFINITY))
        };
        all.extend([
            (
                "IOReadBandwidthMax",
                each(|max| max.read_bytes.map(Bytes::get)),
            ),
            (
                "IOWriteBandwidthMax",
                each(|max| max.written_bytes.map(Bytes::get)),
            ),
            ("IOReadIOPSMax", each(|max| max.reads.map(u64::from))),
            ("IOWriteIOPSMax", each(|max| max.writes.map(u64::from))),
        ]);
    }
    if let Some(devices) = &limits.io_latency {
        let targets = by_device(devices, |target| {
            target.map(micros).limit().unwrap_or(INFINITY)
        });
        all.push(("IODeviceLatencyTargetUSec", targets));
    }
    all
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(INFINITY)
}

fn by_device<T>(devices: &BTreeMap<DeviceNumber, T>, value: impl Fn(&T) -> u64) -> PropertyValue {
    let named = devices.iter().map(|(device, limit)| {
        // udev's link for every device by its number.
        (format!("/dev/block/{device}"), value(limit))
    });
    PropertyValue::Devices(named.collect())
}

/// A bit for each member, the lowest first.
fn bitmask(ids: &IdSet) -> Vec<u8> {
    let mut mask = Vec::new();
    for id in ids.iter() {
        let byte = id as usize / 8;
        if mask.len() <= byte {
            mask.resize(byte + 1, 0);
        }
        mask[byte] |= 1 << (id % 8);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{CpuQuota, Weight};

    fn property(limits: &Limits, name: &str) -> Option<PropertyValue> {
        let found = of_limits(limits).into_iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| value)
    }

    #[test]
    fn sets_are_bits() {
        assert_eq!(bitmask(&IdSet::new()), []);
        assert_eq!(bitmask(&"0-1,8".parse().expect("valid")), [0b11, 1]);
    }

    #[test]
    fn every_quota_survives_systemds_rounding() {
        for (quota, period) in [
            (1_000, 3_000),
            (33_333, 100_000),
            (1_000, 999_999),
            (7_001, 7_003),
        ] {
            let limits =
                Limits::new().cpu_max(CpuQuota::from_micros(quota, period).expect("in range"));
            let Some(PropertyValue::U64(per_second)) = property(&limits, "CPUQuotaPerSecUSec")
            else {
                panic!("no quota");
            };
            assert_eq!(per_second * period / 1_000_000, quota);
        }
    }

    #[test]
    fn no_limit_is_infinity() {
        let limits = Limits::new()
            .memory_max(Max::Unlimited)
            .pids_max(Max::Unlimited);
        let infinity = Some(PropertyValue::U64(u64::MAX));
        assert_eq!(property(&limits, "MemoryMax"), infinity);
        assert_eq!(property(&limits, "TasksMax"), infinity);
        assert_eq!(property(&limits, "MemoryHigh"), None);
    }

    #[test]
    fn an_idle_group_has_no_weight() {
        let limits = Limits::new().cpu_weight(Weight::MAX).cpu_idle(true);
        assert_eq!(property(&limits, "CPUWeight"), Some(PropertyValue::U64(0)));
    }
}
