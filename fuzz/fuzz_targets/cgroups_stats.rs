//! The files of statistics.

#![no_main]

use cgroups::{Counters, IoStats, Pressure};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(counters) = text.parse::<Counters>() {
        assert_eq!(counters.iter().count(), text.lines().count());
        assert_eq!(counters.to_string(), text);
    }
    if let Ok(pressure) = text.parse::<Pressure>() {
        let printed = pressure.to_string();
        assert_eq!(printed.parse::<Pressure>(), Ok(pressure));
    }
    if let Ok(stats) = text.parse::<IoStats>() {
        assert!(stats.devices.len() <= text.lines().count());
        assert_eq!(stats.to_string().parse::<IoStats>(), Ok(stats));
    }
});
