//! Limits and quantities as data.

#![cfg(feature = "serde")]

use std::collections::BTreeMap;
use std::time::Duration;

use cgroups::{
    Access, Bytes, CpuQuota, DeviceNumber, DeviceRules, Devices, IdSet, IoMax, Limits, Max, Weight,
};

#[test]
fn limits_survive_json() {
    let mut limits = Limits::new()
        .memory_max(Bytes::mib(64))
        .pids_max(Max::Unlimited)
        .cpu_max(CpuQuota::cpus(1.5).expect("in range"))
        .cpu_weight(Weight::MAX)
        .cpuset_cpus(IdSet::from(0..=3));
    let disk = DeviceNumber::new(8, 0);
    limits.io_max = Some(BTreeMap::from([(disk, IoMax::UNLIMITED.reads(100))]));
    limits.io_latency = Some(BTreeMap::from([(disk, Duration::from_millis(5).into())]));
    let json = serde_json::to_string(&limits).expect("written");
    assert!(
        !json.contains("memory_high"),
        "what is not set is left out: {json}"
    );
    let read: Limits = serde_json::from_str(&json).expect("read");
    assert_eq!(read, limits);
}

#[test]
fn what_the_types_forbid_is_refused() {
    for json in [
        r#"{"cpu_weight": 0}"#,
        r#"{"cpu_weight": 10001}"#,
        r#"{"cpu_max": {"At": [1, 100000]}}"#,
        r#"{"cpuset_cpus": "3-1"}"#,
        r#"{"memory_maximum": "Unlimited"}"#,
    ] {
        assert!(serde_json::from_str::<Limits>(json).is_err(), "{json}");
    }
}

#[test]
fn device_rules_survive_json() {
    let null = Devices::char(DeviceNumber::new(1, 3));
    let rules = DeviceRules::deny_all().allow(null, Access::READ | Access::WRITE);
    let json = serde_json::to_string(&rules).expect("written");
    for bits in ["8", "255"] {
        let error = serde_json::from_str::<Access>(bits).expect_err("no such access");
        assert!(error.to_string().contains("0 to 7"), "{error}");
    }
    assert_eq!(
        serde_json::from_str::<DeviceRules>(&json).expect("read"),
        rules
    );
}
