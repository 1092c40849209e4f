//! Laws of the types, and random limits on real groups.

mod support;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use cgroups::{
    Bytes, Controller, CpuQuota, DeviceNumber, Error, IdSet, IoMax, Knob, Limits, Max, Partition,
    Percent, RdmaMax, Weight,
};
use proptest::prelude::*;
use support::Scratch;

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    config
}

/// What is printed reads as what was printed.
fn survives<T>(value: &T) -> Result<(), TestCaseError>
where
    T: Display + FromStr<Err: Debug> + PartialEq + Debug,
{
    let text = value.to_string();
    match text.parse::<T>() {
        Ok(read) => prop_assert_eq!(&read, value, "by way of {:?}", text),
        Err(error) => prop_assert!(false, "{:?} does not read: {:?}", text, error),
    }
    Ok(())
}

/// What reads is printed as something that reads the same; nothing makes the parser panic.
fn is_stable<T>(text: &str) -> Result<(), TestCaseError>
where
    T: Display + FromStr<Err: Debug> + PartialEq + Debug,
{
    match text.parse::<T>() {
        Ok(value) => survives(&value),
        Err(_) => Ok(()),
    }
}

fn max<T: Debug + Clone + 'static>(
    limit: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Max<T>> {
    prop_oneof![1 => Just(Max::Unlimited), 4 => limit.prop_map(Max::At)].boxed()
}

fn weight() -> impl Strategy<Value = Weight> {
    (1..=10_000_u16).prop_map(|weight| Weight::new(weight).expect("in range"))
}

fn quota() -> impl Strategy<Value = CpuQuota> {
    (1_000..2_000_000_u64, 1_000..=1_000_000_u64).prop_map(|(quota, period)| {
        let micros = std::time::Duration::from_micros;
        CpuQuota::new(micros(quota), micros(period)).expect("in range")
    })
}

fn io_max() -> impl Strategy<Value = IoMax> {
    let bytes = || max((1..=u64::MAX).prop_map(Bytes::new));
    let operations = || max(1..u32::MAX);
    (bytes(), bytes(), operations(), operations()).prop_map(|(rb, wb, r, w)| {
        IoMax::UNLIMITED
            .read_bytes(rb)
            .written_bytes(wb)
            .reads(r)
            .writes(w)
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn quantities_survive_printing(
        bytes in any::<u64>(),
        limit in max(any::<u64>().prop_map(Bytes::new)),
        shift in 0..64_u32,
        weight in weight(),
        quota in quota(),
        hundredths in 0..=10_000_u16,
        ids in prop::collection::btree_set(0..512_u32, 0..40),
        (major, minor) in any::<(u32, u32)>(),
        io in io_max(),
        (handles, objects) in (max(any::<u32>()), max(any::<u32>())),
    ) {
        survives(&Bytes::new(bytes))?;
        survives(&Bytes::new(bytes >> shift << shift))?;
        survives(&limit)?;
        survives(&weight)?;
        survives(&quota)?;
        survives(&Max::At(quota))?;
        survives(&Percent::from_hundredths(hundredths).expect("in range"))?;
        survives(&ids.into_iter().collect::<IdSet>())?;
        survives(&DeviceNumber::new(major, minor))?;
        survives(&io)?;
        let mut rdma = RdmaMax::UNLIMITED;
        rdma.handles = handles;
        rdma.objects = objects;
        survives(&rdma)?;
    }

    #[test]
    fn any_text_is_read_or_refused(
        text in "[0-9a-zA-Z.:=, +-]{0,24}",
        wild in any::<String>(),
    ) {
        for text in [&text, &wild] {
            is_stable::<Bytes>(text)?;
            is_stable::<Max<Bytes>>(text)?;
            is_stable::<CpuQuota>(text)?;
            is_stable::<Weight>(text)?;
            is_stable::<Percent>(text)?;
            is_stable::<IdSet>(text)?;
            is_stable::<DeviceNumber>(text)?;
            is_stable::<IoMax>(text)?;
            is_stable::<RdmaMax>(text)?;
            is_stable::<Partition>(text)?;
            is_stable::<Controller>(text)?;
        }
    }

    #[test]
    fn conversions_of_weights_keep_the_order(a in weight(), b in weight()) {
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(low.to_shares() <= high.to_shares());
        prop_assert!(low.to_blkio() <= high.to_blkio());
        prop_assert_eq!(Weight::from_shares(a.to_shares()), a);
        prop_assert_eq!(Weight::from_blkio(a.to_blkio()).to_blkio(), a.to_blkio());
        if low != high {
            prop_assert!(low.to_shares() < high.to_shares());
        }
    }

    #[test]
    fn cpus_become_the_nearest_quota(cpus in 0.001..1024.0_f64) {
        let quota = CpuQuota::cpus(cpus).expect("in range");
        // Half a microsecond in the shorter of the two periods.
        prop_assert!((quota.as_cpus() - cpus).abs() <= 0.000_005_1);
    }
}

/// Limits that every layout has, each present or not.
fn limits() -> impl Strategy<Value = Limits> {
    let option = prop::option::of::<BoxedStrategy<_>>;
    let bytes = max(((1_u64 << 20)..(1 << 40)).prop_map(Bytes::new));
    let swap = max((0..(1_u64 << 40)).prop_map(Bytes::new));
    (
        prop::option::of(weight()),
        prop::option::of(max(quota())),
        option(bytes),
        prop::option::of(swap),
        prop::option::of(max(1..4_000_000_u64)),
    )
        .prop_map(|(weight, quota, memory, swap, pids)| {
            let mut limits = Limits::new();
            limits.cpu_weight = weight;
            limits.cpu_max = quota;
            limits.memory_max = memory;
            limits.memory_swap_max = swap;
            limits.pids_max = pids;
            limits
        })
}

/// A group that v2 has not given the controller yet shows nothing, and has never been limited.
fn agree<T: PartialEq + Debug>(
    now: Option<T>,
    expected: Option<T>,
    untouched: T,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(now.unwrap_or(untouched), expected.expect("always set"));
    Ok(())
}

/// What the kernel makes of a limit in bytes: whole pages.
fn pages(limit: Option<Max<Bytes>>) -> Option<Max<Bytes>> {
    limit.map(|limit| limit.map(Bytes::page_aligned))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    #[ignore = "needs root"]
    fn random_limits_read_back_equal_or_change_nothing(
        sequence in prop::collection::vec(limits(), 1..4),
    ) {
        let scratch = Scratch::new();
        let mut expected = Limits::new()
            .cpu_weight(Weight::DEFAULT)
            .cpu_max(Max::Unlimited)
            .memory_max(Max::Unlimited)
            .pids_max(Max::Unlimited);
        for limits in sequence {
            match scratch.apply(&limits) {
                Ok(()) => {
                    expected.cpu_weight = limits.cpu_weight.or(expected.cpu_weight);
                    expected.cpu_max = limits.cpu_max.or(expected.cpu_max);
                    expected.memory_max = pages(limits.memory_max).or(expected.memory_max);
                    expected.pids_max = limits.pids_max.or(expected.pids_max);
                    if limits.memory_swap_max.is_some() {
                        let now = scratch.limits().expect("readable");
                        prop_assert_eq!(now.memory_swap_max, pages(limits.memory_swap_max));
                    }
                }
                // v1 cannot limit swap without memory, and no kernel without swap accounting.
                Err(Error::Unsupported { knob: Knob::MemorySwapMax, .. }) => {
                    prop_assert!(limits.memory_swap_max.is_some());
                }
                Err(error) => prop_assert!(false, "{}: {:?}", error, limits),
            }
            let now = scratch.limits().expect("readable");
            agree(now.cpu_weight, expected.cpu_weight, Weight::DEFAULT)?;
            agree(now.cpu_max, expected.cpu_max, Max::Unlimited)?;
            agree(now.memory_max, expected.memory_max, Max::Unlimited)?;
            agree(now.pids_max, expected.pids_max, Max::Unlimited)?;
        }
        // What was read, of whatever controller, can be set and changes nothing.
        let now = scratch.limits().expect("readable");
        if let Err(error) = scratch.apply(&now) {
            prop_assert!(false, "{}: {:?}", error, now);
        }
        prop_assert_eq!(scratch.limits().expect("readable"), now);
    }

    #[test]
    #[ignore = "needs root"]
    fn random_io_limits_read_back_equal(
        first in io_max(),
        second in io_max(),
        weight in weight(),
    ) {
        let scratch = Scratch::new();
        let device = support::block_device();
        for max in [first, second, IoMax::UNLIMITED] {
            let mut limits = Limits::new();
            limits.io_max = Some(BTreeMap::from([(device, max)]));
            scratch.apply(&limits).expect("the device is there");
            let now = scratch.limits().expect("readable").io_max.unwrap_or_default();
            let seen = now.get(&device).copied().unwrap_or_default();
            prop_assert_eq!(seen, max);
        }
        match scratch.apply(&Limits::new().io_weight(weight)) {
            Ok(()) => {
                let now = scratch.limits().expect("readable").io_weight;
                prop_assert_eq!(now.map(Weight::to_blkio), Some(weight.to_blkio()));
            }
            Err(Error::Unsupported { knob: Knob::IoWeight, .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
