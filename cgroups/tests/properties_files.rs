//! Laws of the parsers of whole files: what is printed in the kernel's form reads as what was
//! printed, and no text makes one panic.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cgroups::{
    Bytes, Controller, Controllers, Counters, CpuQuota, DeviceNumber, GroupType, IoMax, IoStats,
    Keyed, LatencyTarget, Max, Membership, Memberships, MountEntry, MountTable, Partition, Percent,
    Pressure, ProcessIds, RdmaMax, RdmaStats, Stall, Version, Weight,
};
use proptest::prelude::*;

fn controllers() -> impl Strategy<Value = Controllers> {
    prop::sample::subsequence(Controller::ALL, 1..4).prop_map(|some| some.into_iter().collect())
}

/// v1's words for a set, as mount options and `/proc/<pid>/cgroup` have them.
fn v1_names(controllers: Controllers) -> String {
    let name = |controller: Controller| match controller {
        Controller::Io => "blkio".to_owned(),
        other => other.to_string(),
    };
    controllers.iter().map(name).collect::<Vec<_>>().join(",")
}

/// With what the kernel must escape in `mountinfo`.
fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec("[a-z .:é\t\\\\]{1,8}([a-z\r]| \\(deleted\\))", 0..3)
        .prop_map(|parts| PathBuf::from(format!("/{}", parts.join("/"))))
}

fn escaped(path: &std::path::Path) -> String {
    let escape = |c: char| match c {
        ' ' => "\\040".to_owned(),
        '\t' => "\\011".to_owned(),
        '\\' => "\\134".to_owned(),
        other => other.to_string(),
    };
    path.to_string_lossy().chars().map(escape).collect()
}

fn mount() -> impl Strategy<Value = MountEntry> {
    let v1 = prop::option::of(controllers());
    (any::<(u16, u16)>(), path(), path(), v1).prop_map(|(device, root, mount_point, v1)| {
        MountEntry {
            device: (device.0.into(), device.1.into()),
            root,
            mount_point,
            version: v1.map_or(Version::V2, |_| Version::V1),
            controllers: v1.unwrap_or(Controllers::EMPTY),
        }
    })
}

fn mount_line(mount: &MountEntry, optional: usize) -> String {
    let (kind, options) = match mount.version {
        Version::V1 => ("cgroup", format!("rw,{}", v1_names(mount.controllers))),
        Version::V2 => ("cgroup2", "rw,nsdelegate".to_owned()),
    };
    let (root, point) = (escaped(&mount.root), escaped(&mount.mount_point));
    let (major, minor) = mount.device;
    let shared = " shared:1".repeat(optional);
    format!("31 23 {major}:{minor} {root} {point} rw,nosuid{shared} - {kind} none {options}\n")
}

fn counters() -> impl Strategy<Value = BTreeMap<String, u64>> {
    prop::collection::btree_map("[a-z_.0-9]{1,12}", any::<u64>(), 0..20)
}

/// What is printed in the kernel's form reads as what was printed.
fn survives<T>(file: &T) -> Result<(), TestCaseError>
where
    T: Display + FromStr<Err: Debug> + PartialEq + Debug,
{
    let text = file.to_string();
    let read = text.parse::<T>();
    prop_assert!(read.is_ok(), "{:?}: {:?}", text, read);
    prop_assert_eq!(&read.expect("checked"), file, "by way of {:?}", text);
    Ok(())
}

/// A text that reads is printed as the same text.
fn is_kept<T>(text: &str) -> Result<(), TestCaseError>
where
    T: Display + FromStr<Err: Debug>,
{
    let read = text.parse::<T>().map(|file| file.to_string());
    prop_assert!(
        matches!(&read, Ok(printed) if printed == text),
        "{:?}: {:?}",
        text,
        read
    );
    Ok(())
}

fn max<T: Debug + Clone + 'static>(
    limit: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Max<T>> {
    prop_oneof![1 => Just(Max::Unlimited), 4 => limit.prop_map(Max::At)].boxed()
}

fn by_device<V: Debug>(
    value: impl Strategy<Value = V>,
) -> impl Strategy<Value = Keyed<DeviceNumber, V>> {
    let device = any::<(u16, u16)>().prop_map(|(a, b)| DeviceNumber::new(a.into(), b.into()));
    prop::collection::btree_map(device, value, 0..6).prop_map(Keyed)
}

fn by_name<V: Debug>(value: impl Strategy<Value = V>) -> impl Strategy<Value = Keyed<String, V>> {
    prop::collection::btree_map("[a-z][a-z0-9_]{0,8}", value, 0..6).prop_map(Keyed)
}

fn io_max() -> impl Strategy<Value = IoMax> {
    let bytes = || max(any::<u64>().prop_map(Bytes::new));
    let operations = || max(any::<u32>());
    (bytes(), bytes(), operations(), operations()).prop_map(|(rb, wb, r, w)| {
        IoMax::UNLIMITED
            .read_bytes(rb)
            .written_bytes(wb)
            .reads(r)
            .writes(w)
    })
}

fn stall() -> impl Strategy<Value = Stall> {
    let percent =
        || (0..=10_000_u16).prop_map(|share| Percent::from_hundredths(share).expect("in range"));
    (percent(), percent(), percent(), any::<u64>()).prop_map(|(avg10, avg60, avg300, total)| {
        Stall {
            avg10,
            avg60,
            avg300,
            total: Duration::from_micros(total),
        }
    })
}

#[test]
fn words_read_as_they_were_printed() {
    for kind in ["domain", "domain threaded", "domain invalid", "threaded"] {
        is_kept::<GroupType>(kind).expect("a type of group");
    }
    for partition in ["member", "root", "isolated"] {
        is_kept::<Partition>(partition).expect("a partition");
    }
    for controller in Controller::ALL {
        survives(controller).expect("a controller");
    }
}

proptest! {
    #[test]
    fn processes_read_as_they_were_printed(ids in prop::collection::vec(any::<u32>(), 0..50)) {
        survives(&ProcessIds(ids))?;
    }

    #[test]
    fn limits_of_devices_read_as_they_were_printed(
        io_max in by_device(io_max()),
        latency in by_device(max(any::<u64>().prop_map(Duration::from_micros)).prop_map(LatencyTarget)),
        throttle in by_device(any::<u64>()),
    ) {
        survives(&io_max)?;
        survives(&latency)?;
        survives(&throttle)?;
    }

    #[test]
    fn limits_of_resources_read_as_they_were_printed(
        weights in by_name((1..=10_000_u16).prop_map(|weight| Weight::new(weight).expect("in range"))),
        rdma in by_name((max(any::<u32>()), max(any::<u32>()))),
        misc in by_name(max(any::<u64>())),
        priorities in by_name(any::<u32>()),
    ) {
        survives(&weights)?;
        survives(&misc)?;
        survives(&priorities)?;
        let rdma = rdma.0.into_iter().map(|(name, (handles, objects))| {
            let mut max = RdmaMax::UNLIMITED;
            (max.handles, max.objects) = (handles, objects);
            (name, max)
        });
        survives(&Keyed(rdma.collect()))?;
    }

    #[test]
    fn rdma_in_use_is_kept(held in prop::collection::btree_map("[a-z]{1,6}[0-9]", any::<(u32, u32)>(), 0..4)) {
        let line = |(name, (handles, objects)): (&String, &(u32, u32))| {
            format!("{name} hca_handle={handles} hca_object={objects}\n")
        };
        is_kept::<Keyed<String, RdmaStats>>(&held.iter().map(line).collect::<String>())?;
    }

    #[test]
    fn quotas_read_as_they_were_printed(
        (quota, period) in (1_000..10_000_000_u64, 1_000..=1_000_000_u64),
    ) {
        let micros = Duration::from_micros;
        let quota = CpuQuota::new(micros(quota), micros(period)).expect("in range");
        survives(&quota)?;
        prop_assert_eq!(CpuQuota::parse_max(&format!("{quota}\n")), Ok(Max::At(quota)));
        prop_assert_eq!(CpuQuota::parse_max(&format!("max {period}\n")), Ok(Max::Unlimited));
    }

    #[test]
    fn pressure_reads_as_it_was_printed(some in prop::option::of(stall()), full in prop::option::of(stall())) {
        let mut pressure = Pressure::default();
        (pressure.some, pressure.full) = (some, full);
        survives(&pressure)?;
    }

    #[test]
    fn what_v1_has_in_two_files_is_what_v2_has_in_one(
        devices in prop::collection::btree_map(any::<(u16, u8)>(), prop::collection::vec(any::<u64>(), 6), 0..5),
    ) {
        // As the kernel prints them: every operation that it knows, and their sum.
        let file = |at: [usize; 3]| {
            let mut text = String::new();
            for ((major, minor), numbers) in &devices {
                let [read, write, discard] = at.map(|at| numbers[at]);
                for (what, number) in
                    [("Read", read), ("Write", write), ("Sync", 7), ("Async", 8), ("Discard", discard), ("Total", 9)]
                {
                    writeln!(text, "{major}:{minor} {what} {number}").expect("written");
                }
            }
            text + "Total 9\n"
        };
        let read = IoStats::from_v1(&file([0, 1, 4]), &file([2, 3, 5])).expect("the kernel's form");
        let mut v2 = String::new();
        for ((major, minor), numbers) in &devices {
            write!(v2, "{major}:{minor}").expect("written");
            for (key, number) in ["rbytes", "wbytes", "rios", "wios", "dbytes", "dios"].iter().zip(numbers) {
                write!(v2, " {key}={number}").expect("written");
            }
            v2.push('\n');
        }
        prop_assert_eq!(read.to_string(), v2);
    }

    #[test]
    fn mount_tables_read_as_they_were_printed(
        mounts in prop::collection::vec((mount(), 0..3_usize), 0..6),
    ) {
        let mut text = String::from("24 30 0:22 / /proc rw,relatime shared:13 - proc proc rw\n");
        for (mount, optional) in &mounts {
            text.push_str(&mount_line(mount, *optional));
        }
        let expected = mounts.into_iter().map(|(mount, _)| mount).collect();
        prop_assert_eq!(text.parse(), Ok(MountTable(expected)));
    }

    #[test]
    fn memberships_read_as_they_were_printed(
        v1 in prop::collection::vec((controllers(), path()), 0..5),
        v2 in prop::option::of(path()),
    ) {
        let mut text = String::new();
        let mut expected = Vec::new();
        for (index, (controllers, path)) in v1.into_iter().enumerate() {
            let names = v1_names(controllers);
            writeln!(text, "{}:{names}:{}", index + 1, path.display()).expect("written");
            expected.push(Membership { version: Version::V1, controllers, path });
        }
        if let Some(path) = v2 {
            writeln!(text, "0::{}", path.display()).expect("written");
            let controllers = Controllers::EMPTY;
            expected.push(Membership { version: Version::V2, controllers, path });
        }
        prop_assert_eq!(text.parse(), Ok(Memberships(expected)));
    }

    #[test]
    fn counters_keep_every_line(map in counters()) {
        let mut text = String::new();
        for (key, value) in &map {
            writeln!(text, "{key} {value}").expect("written");
        }
        let read: Counters = text.parse().expect("a key and a number in each line");
        prop_assert_eq!(read.to_string(), text);
        let entries = read.iter().map(|(key, value)| (key.to_owned(), value));
        prop_assert_eq!(entries.collect::<BTreeMap<_, _>>(), map);
    }

    #[test]
    fn block_devices_keep_every_word(
        lines in prop::collection::btree_map(
            any::<(u16, u8)>(),
            (prop::collection::vec(any::<u64>(), 6), prop::collection::vec("cost\\.[a-z]{1,5}=[0-9.a-z]{1,6}", 0..3)),
            0..5,
        ),
    ) {
        let mut text = String::new();
        for ((major, minor), (numbers, others)) in &lines {
            let keys = ["rbytes", "wbytes", "rios", "wios", "dbytes", "dios"];
            write!(text, "{major}:{minor}").expect("written");
            for (key, number) in keys.iter().zip(numbers) {
                write!(text, " {key}={number}").expect("written");
            }
            for other in others {
                write!(text, " {other}").expect("written");
            }
            text.push('\n');
        }
        let read: IoStats = text.parse().expect("the kernel's form");
        prop_assert_eq!(read.to_string(), text);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "(?s)([a-z0-9:/=. ,\\\\-]|\n|.){0,120}") {
        if let Ok(pressure) = text.parse::<Pressure>() {
            prop_assert_eq!(pressure.to_string().parse(), Ok(pressure));
        }
        if let Ok(stats) = text.parse::<IoStats>() {
            prop_assert_eq!(stats.to_string().parse(), Ok(stats));
        }
        let _ = IoStats::from_v1(&text, &text);
        let _ = CpuQuota::parse_max(&text);
        let _ = text.parse::<ProcessIds>();
        let _ = text.parse::<Keyed<DeviceNumber, IoMax>>();
        let _ = text.parse::<Keyed<String, Max<u64>>>();
        let _ = text.parse::<Counters>();
        let _ = text.parse::<MountTable>();
        let _ = text.parse::<Memberships>();
    }
}
