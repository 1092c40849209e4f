//! The controllers beyond cpu, memory and pids, on real groups.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use cgroups::{
    Bytes, Controller, CpuQuota, DeviceNumber, Error, IdSet, IoMax, Knob, Limits, Max, Partition,
    Percent, RdmaMax, Version, Weight,
};
use support::Scratch;

/// Applies, and checks that it either reads back or is named as missing.
fn apply_or_named(scratch: &Scratch, limits: &Limits, knob: Knob) -> bool {
    match scratch.apply(limits) {
        Ok(()) => true,
        Err(Error::Unsupported { knob: named, .. }) => {
            assert_eq!(named, knob);
            false
        }
        Err(Error::ControllerUnavailable { controller, .. }) => {
            assert_eq!(controller, knob.controller());
            false
        }
        Err(error) => panic!("{knob}: {error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn processors_are_idle_burst_and_clamped() {
    let scratch = Scratch::new();
    let quota = CpuQuota::new(Duration::from_millis(50), Duration::from_millis(200));
    let quota = quota.expect("in range");
    let burst = Limits::new().cpu_max(quota).cpu_max_burst(30_000_u64);
    if apply_or_named(&scratch, &burst, Knob::CpuMaxBurst) {
        assert_eq!(
            scratch.limits().expect("readable").cpu_max_burst,
            Some(30_000)
        );
        // Both at once, to values that each alone would be refused beside the old ones.
        let smaller = CpuQuota::new(Duration::from_millis(10), Duration::from_millis(20));
        let smaller = Limits::new()
            .cpu_max(smaller.expect("in range"))
            .cpu_max_burst(9_000_u64);
        scratch.apply(&smaller).expect("the burst shrinks first");
        scratch.apply(&burst).expect("the quota grows first");
        assert_eq!(scratch.limits().expect("readable").cpu_max, burst.cpu_max);
    }
    let idle = Limits::new().cpu_idle(true);
    if apply_or_named(&scratch, &idle, Knob::CpuIdle) {
        let now = scratch.limits().expect("readable");
        assert_eq!(now.cpu_idle, Some(true));
        assert_eq!(now.cpu_weight, Some(Weight::MIN));
        scratch.apply(&now).expect("what was read can be set");
        let busy = Limits::new()
            .cpu_idle(false)
            .cpu_weight(Weight::new(300).expect("in range"));
        scratch
            .apply(&busy)
            .expect("idleness ends before the weight is set");
        assert_eq!(
            scratch.limits().expect("readable").cpu_weight,
            busy.cpu_weight
        );
    }
    let clamp = Limits::new()
        .cpu_uclamp_min(Percent::from_hundredths(1_250).expect("in range"))
        .cpu_uclamp_max(Max::At(Percent::from_hundredths(5_000).expect("in range")));
    if apply_or_named(&scratch, &clamp, Knob::CpuUclampMin) {
        let now = scratch.limits().expect("readable");
        assert_eq!(now.cpu_uclamp_max, clamp.cpu_uclamp_max);
    }
}

#[test]
#[ignore = "needs root"]
fn a_partition_has_processors_of_its_own() {
    let scratch = Scratch::new();
    // Only a child of a partition can be one, so the scratch group itself is tried; as one of
    // the machine's processors is taken, nothing else may hold that one exclusively.
    let limits = Limits::new()
        .cpuset_cpus(IdSet::from(0))
        .cpuset_partition(Partition::Root);
    let partition = || scratch.limits().expect("readable").cpuset_partition;
    let supported = match scratch.apply(&limits) {
        Ok(()) => {
            assert_eq!(partition(), Some(Partition::Root));
            // Its processors are not its parent's any more, but its own.
            scratch.apply(&limits).expect("the same once more");
            let back = Limits::new().cpuset_partition(Partition::Member);
            scratch.apply(&back).expect("given back");
            true
        }
        // A machine may have no processor to spare.
        Err(Error::Refused { value, .. }) => {
            assert!(value.contains("invalid"), "{value}");
            assert_ne!(partition(), Some(Partition::Root));
            true
        }
        Err(Error::Unsupported { knob, .. }) => {
            assert_eq!(knob, Knob::CpusetPartition);
            false
        }
        Err(error) => panic!("{error}"),
    };
    if supported {
        // The kernel takes it below a group that is none, but makes nothing of it.
        let child = scratch.create("child").expect("created");
        child.enable(Controller::Cpuset).expect("enabled");
        let error = child.apply(&limits).expect_err("the parent is none");
        assert!(error.to_string().contains("invalid"), "{error}");
        let Error::Refused { knob, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(knob, Knob::CpusetPartition);
        let now = child.limits().expect("readable");
        assert_eq!(now.cpuset_partition, Some(Partition::Member));
        assert_eq!(now.cpuset_cpus, Some(IdSet::new()));
        // One that was invalid before is so again.
        let directory = child.directories().next().expect("v2").to_owned();
        std::fs::write(directory.join("cpuset.cpus.partition"), "root").expect("taken");
        let error = child.apply(&limits).expect_err("the parent is none");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn memory_is_protected_and_slowed_where_v2_has_it() {
    let scratch = Scratch::new();
    let limits = Limits::new()
        .memory_min(Bytes::mib(1))
        .memory_low(Bytes::mib(2))
        .memory_high(Bytes::mib(3))
        .memory_oom_group(true);
    if apply_or_named(&scratch, &limits, Knob::MemoryMin) {
        let now = scratch.limits().expect("readable");
        assert_eq!(now.memory_min, limits.memory_min);
        assert_eq!(now.memory_low, limits.memory_low);
        assert_eq!(now.memory_high, limits.memory_high);
        assert_eq!(now.memory_oom_group, Some(true));
    }
    let zswap = Limits::new().memory_zswap_max(Bytes::mib(4));
    if apply_or_named(&scratch, &zswap, Knob::MemoryZswapMax) {
        let now = scratch.limits().expect("readable");
        assert_eq!(now.memory_zswap_max, zswap.memory_zswap_max);
    }
}

#[test]
#[ignore = "needs root"]
fn huge_pages_are_limited_by_size() {
    let scratch = Scratch::new();
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").expect("the machine has some");
    let count = sizes.count() as u64;
    assert!(count > 0);
    let mut limits = Limits::new();
    limits.hugetlb_max = Some(BTreeMap::from([(Bytes::mib(2), Max::At(Bytes::mib(8)))]));
    scratch.apply(&limits).expect("2 MiB pages are there");
    let now = scratch
        .limits()
        .expect("readable")
        .hugetlb_max
        .expect("enabled");
    assert_eq!(now[&Bytes::mib(2)], Max::At(Bytes::mib(8)));
    assert_eq!(now.len() as u64, count);
    limits.hugetlb_max = Some(BTreeMap::from([(Bytes::mib(3), Max::Unlimited)]));
    let error = scratch
        .apply(&limits)
        .expect_err("no machine has 3 MiB pages");
    assert!(
        matches!(
            error,
            Error::Unsupported {
                knob: Knob::HugetlbMax,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_device_that_is_not_there_is_named() {
    let scratch = Scratch::new();
    let mut limits = Limits::new().pids_max(5);
    let nowhere = DeviceNumber::new(4_000, 77);
    let max = IoMax::UNLIMITED.read_bytes(Bytes::mib(1));
    limits.io_max = Some(BTreeMap::from([(nowhere, max)]));
    let error = scratch.apply(&limits).expect_err("no such device");
    assert!(
        matches!(
            error,
            Error::NoSuchDevice {
                knob: Knob::IoMax,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("4000:77"), "{error}");
    let now = scratch.limits().expect("readable");
    assert!(now.pids_max.is_none_or(|max| max == Max::Unlimited));
    let zero = IoMax::UNLIMITED.reads(0);
    limits.io_max = Some(BTreeMap::from([(support::block_device(), zero)]));
    let error = scratch.apply(&limits).expect_err("0 is no limit");
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    for latency in [Duration::from_nanos(999), Duration::MAX] {
        let mut limits = Limits::new();
        limits.io_latency = Some([(support::block_device(), latency.into())].into());
        let error = scratch
            .apply(&limits)
            .expect_err("the kernel cannot count it");
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn names_of_resources_cannot_smuggle_lines_in() {
    let scratch = Scratch::new();
    let mut limits = Limits::new();
    for key in ["", "a b", "a\nb", "a\0"] {
        limits.misc_max = Some(BTreeMap::from([(key.to_owned(), Max::At(1))]));
        match scratch.apply(&limits).expect_err("no such name") {
            Error::InvalidKey {
                knob: Knob::MiscMax,
                ..
            }
            | Error::ControllerUnavailable {
                controller: Controller::Misc,
                ..
            } => {}
            error => panic!("{error}"),
        }
    }
    let mut rdma = Limits::new();
    rdma.rdma_max = Some(BTreeMap::from([(
        "nothing0".to_owned(),
        RdmaMax::UNLIMITED,
    )]));
    match scratch.apply(&rdma).expect_err("no such device") {
        Error::ControllerUnavailable { .. }
        | Error::NoSuchDevice { .. }
        | Error::Refused {
            knob: Knob::RdmaMax,
            ..
        } => {}
        error => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn packets_are_classified_on_v1_only() {
    let scratch = Scratch::new();
    let class = Limits::new().net_cls_classid(0x0010_0001_u32);
    let has_v1 = scratch.hierarchy().version_of(Controller::NetCls) == Some(Version::V1);
    let applied = apply_or_named(&scratch, &class, Knob::NetClsClassid);
    assert_eq!(applied, has_v1);
    if applied {
        let now = scratch.limits().expect("readable");
        assert_eq!(now.net_cls_classid, class.net_cls_classid);
    }
}

/// Runs a program of the lab, which must succeed.
fn run(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let status = std::process::Command::new(program).args(words).status();
    assert!(status.expect("installed").success(), "{line}");
}

/// A device for remote memory over an Ethernet that leads nowhere.
struct Rdma;

impl Rdma {
    const NAME: &str = "rxe0";

    fn new() -> Self {
        run("modprobe -a dummy rdma_rxe");
        run("ip link add cofferdam0 type dummy");
        let made = Self;
        run("ip link set cofferdam0 up");
        run("rdma link add rxe0 type rxe netdev cofferdam0");
        made
    }
}

impl Drop for Rdma {
    fn drop(&mut self) {
        // The device goes with its Ethernet.
        run("ip link delete cofferdam0");
    }
}

#[test]
#[ignore = "needs lab"]
fn a_device_for_remote_memory_is_limited() {
    let _device = Rdma::new();
    let scratch = Scratch::new();
    let of = |handles, objects| {
        let mut max = RdmaMax::UNLIMITED;
        max.handles = handles;
        max.objects = objects;
        let mut limits = Limits::new();
        limits.rdma_max = Some(BTreeMap::from([(Rdma::NAME.to_owned(), max)]));
        limits
    };
    for limits in [
        of(Max::At(2), Max::Unlimited),
        of(Max::Unlimited, Max::At(1_000)),
        of(Max::At(0), Max::At(0)),
    ] {
        scratch.apply(&limits).expect("applied");
        let now = scratch
            .limits()
            .expect("readable")
            .rdma_max
            .expect("enabled");
        assert_eq!(Some(&now), limits.rdma_max.as_ref());
    }
    let used = scratch.rdma_stats().expect("readable").expect("enabled");
    assert_eq!((used[Rdma::NAME].handles, used[Rdma::NAME].objects), (0, 0));
    // One that is not there is told, and what was set before it is undone.
    let before = scratch.limits().expect("readable");
    let mut wrong = of(Max::At(7), Max::At(7)).pids_max(9);
    let missing = (String::from("rxe1"), RdmaMax::UNLIMITED);
    wrong.rdma_max.as_mut().expect("set").extend([missing]);
    scratch.apply(&wrong).expect_err("no such device");
    assert_eq!(scratch.limits().expect("readable"), before);
}
