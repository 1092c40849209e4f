//! Files with a line for each process, device or resource: what is read prints as something that
//! reads the same.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use cgroups::{
    DeviceNumber, IoMax, IoStats, Keyed, LatencyTarget, Max, ProcessIds, RdmaMax, RdmaStats, Weight,
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

fuzz_target!(|texts: (&str, &str)| {
    let (text, other) = texts;
    check::<ProcessIds>(text);
    check::<Keyed<DeviceNumber, IoMax>>(text);
    check::<Keyed<DeviceNumber, LatencyTarget>>(text);
    check::<Keyed<DeviceNumber, u64>>(text);
    check::<Keyed<String, Weight>>(text);
    check::<Keyed<String, RdmaMax>>(text);
    check::<Keyed<String, RdmaStats>>(text);
    check::<Keyed<String, Max<u64>>>(text);
    check::<Keyed<String, u32>>(text);
    // v1 splits it in two.
    if let Ok(stats) = IoStats::from_v1(text, other) {
        assert!(stats.devices.len() <= text.lines().count() + other.lines().count());
        assert_eq!(stats.to_string().parse::<IoStats>(), Ok(stats));
    }
});
