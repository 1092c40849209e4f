//! Laws of the parsers of whole files: what is printed in the kernel's form reads as what was
//! printed, and no text makes one panic.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use cgroups::{
    Controller, Controllers, Counters, IoStats, Membership, Memberships, MountEntry, MountTable,
    Pressure, Version,
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
    prop::collection::vec("[a-z .:é\t\\\\]{1,8}[a-z]", 0..3)
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

proptest! {
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
        let _ = text.parse::<Counters>();
        let _ = text.parse::<MountTable>();
        let _ = text.parse::<Memberships>();
    }
}
