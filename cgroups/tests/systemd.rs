//! Scopes and slices of systemd, where it is process 1.

#![cfg(feature = "systemd")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cgroups::{
    Bytes, CpuQuota, Error, Hierarchy, IdSet, Limits, Max, PropertyValue, Systemd, TransientUnit,
    Weight,
};
use support::{Running, unique};

/// A unit that is stopped when the test ends.
struct Unit(String);

impl Unit {
    fn named(suffix: &str) -> Self {
        Self(format!("{}{suffix}", unique()))
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        match Systemd::system().stop(&self.0) {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) if std::thread::panicking() => eprintln!("{error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What systemctl says of a unit.
fn shown(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl")
        .args(["show", "--value", "--property", property, unit])
        .output()
        .expect("systemctl runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
#[ignore = "needs systemd"]
fn a_scope_has_its_process_its_slice_and_its_limits() {
    let name = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let mut limits = Limits::new()
        .cpu_weight(Weight::new(77).expect("in range"))
        .cpu_max(CpuQuota::cpus(0.33333).expect("in range"))
        .cpuset_cpus(IdSet::from(0))
        .memory_low(Bytes::mib(4))
        .memory_high(Bytes::mib(60))
        .memory_max(Bytes::mib(64))
        .memory_swap_max(Bytes::ZERO)
        .pids_max(33);
    // These it has no property for.
    limits = limits.memory_oom_group(true).cpu_max_burst(1_000_u64);
    limits.hugetlb_max = Some(BTreeMap::from([(Bytes::mib(2), Bytes::mib(6).into())]));
    let unit = TransientUnit::scope(&name.0, process.pid())
        .expect("a good name")
        .description("a test of cofferdam-cgroups")
        .in_slice("cofferdam-test.slice")
        .expect("a good name")
        .limits(limits.clone())
        .delegate()
        .property("TimeoutStopUSec", PropertyValue::U64(1_000_000));
    let group = Systemd::system().start(&unit).expect("started");

    assert_eq!(group.processes().expect("read"), [process.pid()]);
    let path = Path::new("cofferdam.slice/cofferdam-test.slice").join(&name.0);
    assert_eq!(group.path(), path);
    let read = group.limits().expect("read");
    assert_eq!(read.cpu_weight, limits.cpu_weight);
    assert_eq!(read.cpu_max, limits.cpu_max);
    assert_eq!(read.cpuset_cpus, limits.cpuset_cpus);
    assert_eq!(read.memory_low, limits.memory_low);
    assert_eq!(read.memory_high, limits.memory_high);
    assert_eq!(read.memory_max, limits.memory_max);
    assert_eq!(read.pids_max, limits.pids_max);
    assert_eq!(read.memory_oom_group, limits.memory_oom_group);
    assert_eq!(read.cpu_max_burst, limits.cpu_max_burst);
    assert_eq!(
        read.hugetlb_max
            .and_then(|max| max.get(&Bytes::mib(2)).copied()),
        Some(Max::At(Bytes::mib(6)))
    );

    // And systemd itself knows.
    assert_eq!(shown(&name.0, "Description"), "a test of cofferdam-cgroups");
    assert_eq!(shown(&name.0, "MemoryMax"), (64 << 20).to_string());
    assert_eq!(shown(&name.0, "TasksMax"), "33");
    assert_eq!(shown(&name.0, "CPUWeight"), "77");
    assert_eq!(shown(&name.0, "AllowedCPUs"), "0");
    assert_eq!(shown(&name.0, "Delegate"), "yes");
    assert_eq!(shown(&name.0, "TimeoutStopUSec"), "1s");

    // It keeps what it has no word for when it reads everything anew.
    let reload = Command::new("systemctl").arg("daemon-reload").status();
    assert!(reload.expect("systemctl runs").success());
    let read = group.limits().expect("read");
    assert_eq!(read.cpu_max_burst, limits.cpu_max_burst);
    assert_eq!(read.pids_max, limits.pids_max);
}

#[test]
#[ignore = "needs systemd"]
fn a_delegated_scope_can_be_nested_in() {
    let name = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let unit = TransientUnit::scope(&name.0, process.pid())
        .expect("a good name")
        .delegate();
    let group = Systemd::system().start(&unit).expect("started");
    // Processes live in leaves only.
    let leaf = group.create("leaf").expect("created");
    leaf.attach(process.pid()).expect("moved");
    leaf.apply(&Limits::new().pids_max(7).memory_max(Bytes::mib(50)))
        .expect("every controller is delegated");
    let reload = Command::new("systemctl").arg("daemon-reload").status();
    assert!(reload.expect("systemctl runs").success());
    assert_eq!(leaf.limits().expect("read").pids_max, Some(Max::At(7)));
    assert_eq!(leaf.processes().expect("read"), [process.pid()]);
}

#[test]
#[ignore = "needs systemd"]
fn limits_of_a_running_unit_change() {
    let name = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let systemd = Systemd::system();
    let unit = TransientUnit::scope(&name.0, process.pid())
        .expect("a good name")
        .limits(Limits::new().memory_max(Bytes::mib(64)).pids_max(10));
    systemd.start(&unit).expect("started");
    let changed = Limits::new().pids_max(20).memory_oom_group(true);
    systemd.update(&name.0, &changed).expect("changed");

    let group = systemd.cgroup(&name.0).expect("it runs");
    let read = group.limits().expect("read");
    assert_eq!(read.pids_max, Some(Max::At(20)));
    assert_eq!(read.memory_oom_group, Some(true));
    assert_eq!(read.memory_max, Some(Max::At(Bytes::mib(64))));
    assert_eq!(shown(&name.0, "TasksMax"), "20");

    // Processors that no machine has: systemd takes them, the kernel does not, so they go.
    let impossible = Limits::new().pids_max(30).cpuset_cpus(IdSet::from(4000));
    let error = systemd.update(&name.0, &impossible).expect_err("refused");
    assert!(matches!(error, Error::NotInMachine { .. }), "{error}");
    assert_eq!(shown(&name.0, "TasksMax"), "20");
    assert_eq!(group.limits().expect("read").pids_max, Some(Max::At(20)));
}

#[test]
#[ignore = "needs systemd"]
fn a_limit_that_cannot_be_had_leaves_no_unit_and_the_process_where_it_was() {
    let name = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let hierarchy = Hierarchy::detect().expect("mounted");
    let before = hierarchy.of_process(process.pid()).expect("it runs");
    let unit = TransientUnit::scope(&name.0, process.pid())
        .expect("a good name")
        .limits(Limits::new().pids_max(5).net_cls_classid(1_u32));
    let error = Systemd::system()
        .start(&unit)
        .expect_err("v2 has no net_cls");
    assert!(
        matches!(error, Error::ControllerUnavailable { .. }),
        "{error}"
    );
    let after = hierarchy.of_process(process.pid()).expect("it still runs");
    assert_eq!(after.path(), before.path());
    let gone = Systemd::system().cgroup(&name.0).expect_err("stopped");
    assert!(matches!(gone, Error::NotFound { .. }), "{gone}");
}

#[test]
#[ignore = "needs systemd"]
fn slices_hold_scopes() {
    let slice = Unit::named(".slice");
    // Dashes are levels.
    let slice = Unit(slice.0.replace('-', "_"));
    let systemd = Systemd::system();
    let unit = TransientUnit::slice(&slice.0)
        .expect("a good name")
        .limits(Limits::new().pids_max(50));
    let group = systemd.start(&unit).expect("started");
    assert_eq!(group.limits().expect("read").pids_max, Some(Max::At(50)));

    let scope = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let unit = TransientUnit::scope(&scope.0, process.pid())
        .and_then(|unit| unit.in_slice(&slice.0))
        .expect("good names");
    let inner = systemd.start(&unit).expect("started");
    assert_eq!(inner.path(), group.path().join(&scope.0));
    assert_eq!(
        group.pids_stats().expect("read").map(|pids| pids.current),
        Some(1)
    );
    // A slice takes with it what it holds.
    systemd.stop(&slice.0).expect("stopped");
    assert!(!inner.exists() && !group.exists());
}

#[test]
#[ignore = "needs systemd"]
fn what_systemd_refuses_is_told_apart() {
    let systemd = Systemd::system();
    let version = systemd.version().expect("it answers");
    assert!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "{version}"
    );

    let name = Unit::named(".scope");
    let process = Running::outside("exec sleep 100");
    let unit = TransientUnit::scope(&name.0, process.pid()).expect("a good name");
    systemd.start(&unit).expect("started");
    let error = systemd.start(&unit).expect_err("it exists");
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");

    let error = systemd
        .stop("cofferdam-nothing.scope")
        .expect_err("unknown");
    assert!(matches!(error, Error::NotFound { .. }), "{error}");

    let other = Unit::named(".scope");
    let unit = TransientUnit::scope(&other.0, process.pid())
        .expect("a good name")
        .property("NoSuchProperty", PropertyValue::Bool(true));
    let error = systemd.start(&unit).expect_err("unknown property");
    let Error::UnitRefused { message, .. } = &error else {
        panic!("{error}");
    };
    assert!(message.contains("NoSuchProperty"), "{error}");

    let unit = TransientUnit::scope(&other.0, u32::MAX >> 2).expect("a good name");
    let error = systemd.start(&unit).expect_err("no such process");
    assert!(matches!(error, Error::NoSuchProcess { .. }), "{error}");

    // By way of the bus, as an ordinary user would, the machine's systemd says no.
    let unit = TransientUnit::scope(&other.0, process.pid()).expect("a good name");
    let error = support::as_nobody(|| Systemd::system().start(&unit)).expect_err("not allowed");
    assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
}

#[test]
#[ignore = "needs systemd"]
fn a_scope_ends_with_its_last_process() {
    let name = Unit::named(".scope");
    let systemd = Systemd::system();
    let process = Running::outside("exec sleep 100");
    let unit = TransientUnit::scope(&name.0, process.pid()).expect("a good name");
    let group = systemd.start(&unit).expect("started");
    group.kill().expect("killed");
    drop(process);
    match group.wait_empty(Duration::from_secs(20)) {
        // Removing it is systemd's own business.
        Ok(()) | Err(Error::Vanished { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    // systemd hears of it by itself; to stop what has gone meanwhile is told apart.
    match systemd.stop(&name.0) {
        Ok(()) | Err(Error::NotFound { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    assert!(systemd.cgroup(&name.0).is_err());
}
