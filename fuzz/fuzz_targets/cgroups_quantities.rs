//! Quantities as people and the kernel write them: what is read prints as something that reads
//! the same.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use cgroups::{
    Bytes, Controller, CpuQuota, DeviceNumber, GroupType, IdSet, IoMax, LatencyTarget, Max,
    Partition, Percent, RdmaMax, RdmaStats, Stall, Weight,
};
use libfuzzer_sys::fuzz_target;

fn check<T>(text: &str)
where
    T: Display + FromStr<Err: Debug> + PartialEq + Debug,
{
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        assert_eq!(printed.parse::<T>().expect("what was printed"), value);
    }
}

fuzz_target!(|text: &str| {
    check::<Bytes>(text);
    check::<Max<Bytes>>(text);
    check::<CpuQuota>(text);
    check::<Max<CpuQuota>>(text);
    if let Ok(Max::At(quota)) = CpuQuota::parse_max(text) {
        assert_eq!(CpuQuota::parse_max(&quota.to_string()), Ok(Max::At(quota)));
    }
    check::<Weight>(text);
    check::<Percent>(text);
    check::<IdSet>(text);
    check::<DeviceNumber>(text);
    check::<IoMax>(text);
    check::<LatencyTarget>(text);
    check::<RdmaMax>(text);
    check::<RdmaStats>(text);
    check::<Max<Percent>>(text);
    check::<Stall>(text);
    check::<Partition>(text);
    check::<GroupType>(text);
    check::<Controller>(text);
});
