//! Every mistake has an error of its own, on each of the kernel's interfaces.

mod common;

use std::fs;

use common::Scratch;
use overlayfs::{
    Error, Features, Fsync, Index, Interface, MAX_LOWER_LAYERS, Marks, Metacopy, Mounted,
    NfsExport, Options, Overlay, RedirectDir, Role, Verity,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const INTERFACES: [Interface; 2] = [Interface::Auto, Interface::OnePage];

struct Case {
    scratch: Scratch,
}

impl Case {
    fn new() -> Self {
        let scratch = Scratch::new();
        for name in ["base", "upper", "work", "merged"] {
            scratch.dir(name);
        }
        Case { scratch }
    }

    fn error(&self, lower: &[&str], upper: &str, work: &str, interface: Interface) -> Error {
        let lower = lower.iter().map(|name| self.scratch.path(name));
        Overlay::bottom_up(lower)
            .upper(self.scratch.path(upper), self.scratch.path(work))
            .interface(interface)
            .mount(self.scratch.path("merged"))
            .map(drop)
            .unwrap_err()
    }
}

#[test]
#[ignore = "needs root"]
fn missing_directories_are_named_with_their_role() {
    for interface in INTERFACES {
        let case = Case::new();
        let roles = [
            (
                case.error(&["none"], "upper", "work", interface),
                Role::Lower,
            ),
            (
                case.error(&["base"], "none", "work", interface),
                Role::Upper,
            ),
            (
                case.error(&["base"], "upper", "none", interface),
                Role::Work,
            ),
        ];
        for (error, expected) in roles {
            assert!(error.to_string().contains("none"), "{error}");
            assert!(
                matches!(error, Error::OpenDirectory { role, .. } if role == expected),
                "{error}"
            );
        }
        case.scratch.write("file", "");
        let error = case.error(&["file"], "upper", "work", interface);
        assert!(
            matches!(
                error,
                Error::OpenDirectory {
                    role: Role::Lower,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_missing_target_is_named() {
    let case = Case::new();
    let error = Overlay::bottom_up([case.scratch.path("base")])
        .upper(case.scratch.path("upper"), case.scratch.path("work"))
        .mount(case.scratch.path("nowhere"))
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::OpenDirectory {
                role: Role::Target,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn upper_and_work_must_not_overlap() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.dir("upper/work");
        case.scratch.dir("outer/upper");
        for (upper, work) in [
            ("upper", "upper"),
            ("upper", "upper/work"),
            ("outer/upper", "outer"),
        ] {
            let error = case.error(&["base"], upper, work, interface);
            // A work directory around the upper layer is not empty either.
            let fits = matches!(error, Error::UpperAndWorkOverlap { .. })
                || (work == "outer" && matches!(error, Error::WorkNotEmpty { .. }));
            assert!(fits, "{upper} {work}: {error}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn upper_and_work_must_be_on_one_mount() {
    for interface in INTERFACES {
        let case = Case::new();
        let other = Scratch::new();
        let error = Overlay::bottom_up([case.scratch.path("base")])
            .upper(case.scratch.path("upper"), other.dir("work"))
            .interface(interface)
            .mount(case.scratch.path("merged"))
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, Error::DifferentFilesystems { .. }),
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn the_work_directory_must_be_empty() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.write("work/mine", "precious");
        let error = case.error(&["base"], "upper", "work", interface);
        assert!(
            matches!(&error, Error::WorkNotEmpty { entry, .. } if entry.ends_with("mine")),
            "{error}"
        );
        assert_eq!(
            fs::read_to_string(case.scratch.path("work/mine")).unwrap(),
            "precious"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn what_an_earlier_mount_left_in_the_work_directory_is_no_mistake() {
    let case = Case::new();
    for _ in 0..2 {
        Overlay::bottom_up([case.scratch.path("base")])
            .upper(case.scratch.path("upper"), case.scratch.path("work"))
            .mount(case.scratch.path("merged"))
            .unwrap()
            .close()
            .unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn layers_must_not_lie_in_each_other() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.dir("upper/inner");
        let error = case.error(&["upper/inner"], "upper", "work", interface);
        assert!(
            matches!(
                error,
                Error::LayersOverlap {
                    inner_role: Role::Lower,
                    outer_role: Role::Upper,
                    ..
                }
            ),
            "{error}"
        );
        let error = case.error(&["base", "base"], "upper", "work", interface);
        assert!(matches!(error, Error::LayersOverlap { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_second_mount_over_one_upper_or_work_is_refused() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.dir("upper2");
        case.scratch.dir("work2");
        let overlay = |upper: &str, work: &str| {
            Overlay::bottom_up([case.scratch.path("base")])
                .upper(case.scratch.path(upper), case.scratch.path(work))
                .interface(interface)
                .mount_detached()
        };
        let first = overlay("upper", "work").unwrap();
        fs::write(common::fd_path(&first).join("file"), "").unwrap();
        for (upper, work) in [("upper", "work"), ("upper", "work2"), ("upper2", "work")] {
            let error = overlay(upper, work).map(drop).unwrap_err();
            assert!(
                matches!(error, Error::UpperInUse { .. }),
                "{upper} {work}: {error}"
            );
        }
        drop(first);
        overlay("upper", "work").unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn an_upper_in_use_is_refused_also_while_nothing_is_in_it() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.dir("work2");
        let overlay = |work: &str| {
            Overlay::bottom_up([case.scratch.path("base")])
                .upper(case.scratch.path("upper"), case.scratch.path(work))
                .interface(interface)
        };
        let first = overlay("work").mount_detached().unwrap();
        let error = overlay("work2").mount_detached().map(drop).unwrap_err();
        assert!(matches!(error, Error::UpperInUse { .. }), "{error}");
        // The kernel would not mind.
        overlay("work2").exclusive().mount_detached().unwrap();
        drop(first);
    }
}

#[test]
#[ignore = "needs root"]
fn too_few_and_too_many_layers_are_counted() {
    let case = Case::new();
    let base = case.scratch.path("base");
    let few = Overlay::bottom_up([&base])
        .mount(case.scratch.path("merged"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(few, Error::TooFewLayers { lowers: 1 }), "{few}");
    let many = Overlay::bottom_up(vec![&base; MAX_LOWER_LAYERS + 1])
        .mount(case.scratch.path("merged"))
        .map(drop)
        .unwrap_err();
    assert!(
        matches!(
            many,
            Error::TooManyLayers {
                lowers: 501,
                max: 500
            }
        ),
        "{many}"
    );
    let data = Overlay::bottom_up(Vec::<&str>::new())
        .data_only(&base)
        .mount(case.scratch.path("merged"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(data, Error::OnlyDataLayers), "{data}");
}

#[test]
#[ignore = "needs root"]
fn options_that_exclude_each_other_are_named() {
    let case = Case::new();
    let cases = [
        (
            Options::new()
                .metacopy(Metacopy::On)
                .nfs_export(NfsExport::On),
            "metacopy=on",
        ),
        (
            Options::new().marks(Marks::User).metacopy(Metacopy::On),
            "userxattr",
        ),
        (
            Options::new()
                .marks(Marks::User)
                .redirect_dir(RedirectDir::On),
            "userxattr",
        ),
        (
            Options::new()
                .metacopy(Metacopy::On)
                .redirect_dir(RedirectDir::NoFollow),
            "metacopy=on",
        ),
        (
            Options::new().nfs_export(NfsExport::On).index(Index::Off),
            "nfs_export=on",
        ),
        (
            Options::new()
                .metacopy(Metacopy::Off)
                .verity(Verity::Require),
            "metacopy=off",
        ),
    ];
    for (options, word) in cases {
        let error = Overlay::bottom_up([case.scratch.path("base")])
            .upper(case.scratch.path("upper"), case.scratch.path("work"))
            .options(options)
            .mount(case.scratch.path("merged"))
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, Error::ConflictingOptions { first, .. } if first == word),
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_volatile_upper_that_was_not_unmounted_is_recognised() {
    for interface in INTERFACES {
        let case = Case::new();
        case.scratch.dir("work/work/incompat/volatile");
        let error = case.error(&["base"], "upper", "work", interface);
        assert!(matches!(error, Error::VolatileLeftover { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_volatile_upper_that_was_unmounted_must_be_confirmed() {
    let case = Case::new();
    let overlay = Overlay::bottom_up([case.scratch.path("base")])
        .upper(case.scratch.path("upper"), case.scratch.path("work"))
        .options(Options::new().fsync(Fsync::Volatile));
    overlay
        .mount(case.scratch.path("merged"))
        .unwrap()
        .close()
        .unwrap();
    // The kernel leaves its mark also after a clean unmount.
    let error = overlay
        .mount(case.scratch.path("merged"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::VolatileLeftover { .. }), "{error}");
}

#[test]
#[ignore = "needs root"]
fn an_upper_on_an_overlay_is_unsuitable() {
    for interface in INTERFACES {
        let case = Case::new();
        let outer = Overlay::bottom_up([case.scratch.path("base")])
            .upper(case.scratch.path("upper"), case.scratch.path("work"))
            .mount(case.scratch.path("merged"))
            .unwrap();
        let base = case.scratch.dir("base2");
        fs::create_dir(outer.target().join("upper")).unwrap();
        fs::create_dir(outer.target().join("work")).unwrap();
        let error = Overlay::bottom_up([base])
            .upper(outer.target().join("upper"), outer.target().join("work"))
            .interface(interface)
            .mount_detached()
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, Error::UnsuitableUpper { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn overlays_over_overlays_end_at_the_kernels_depth() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        let mut lower = scratch.dir("base");
        let mut mounts = Vec::new();
        let error = loop {
            let level = mounts.len();
            let made = Overlay::bottom_up([&lower])
                .upper(
                    scratch.dir(&format!("upper{level}")),
                    scratch.dir(&format!("work{level}")),
                )
                .interface(interface)
                .mount(scratch.dir(&format!("merged{level}")));
            match made {
                Ok(mounted) => {
                    lower = mounted.target().to_owned();
                    mounts.push(mounted);
                }
                Err(error) => break error,
            }
            assert!(mounts.len() < 10);
        };
        assert_eq!(mounts.len(), 2);
        assert!(matches!(error, Error::TooDeeplyStacked { .. }), "{error}");
        while let Some(mounted) = mounts.pop() {
            mounted.close().unwrap();
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_read_only_upper_is_named() {
    for interface in INTERFACES {
        let case = Case::new();
        rustix::mount::mount_remount(
            case.scratch.path(""),
            rustix::mount::MountFlags::RDONLY,
            c"",
        )
        .unwrap();
        let error = case.error(&["base"], "upper", "work", interface);
        assert!(matches!(error, Error::ReadOnlyUpper { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_layer_that_the_kernel_refuses_is_named_with_the_kernels_reason() {
    for interface in INTERFACES {
        let case = Case::new();
        // Its names are compared by rules of its own.
        let error = Overlay::bottom_up([case.scratch.path("base")])
            .above("/proc/sys/kernel")
            .upper(case.scratch.path("upper"), case.scratch.path("work"))
            .interface(interface)
            .mount(case.scratch.path("merged"))
            .map(drop)
            .unwrap_err();
        let Error::UnsuitableLayer { role, path, log } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(
            (*role, path.to_str()),
            (Role::Lower, Some("/proc/sys/kernel"))
        );
        // Before 6.5 the kernel says it to all the world only.
        let has_log = interface == Interface::Auto && Features::probe().unwrap().single_layers;
        assert_eq!(log.is_empty(), !has_log, "{error}");
        assert_eq!(
            error.to_string().contains("not supported"),
            has_log,
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn an_upper_without_extended_attributes_is_unsuitable() {
    for interface in INTERFACES {
        let case = Case::new();
        let ramfs = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&ramfs).unwrap();
        let ramfs = fsmount(
            &ramfs,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        );
        let plain = overlayfs::attach(ramfs.unwrap(), case.scratch.dir("plain")).unwrap();
        let error = case.error(
            &["base"],
            &dir(&plain, "upper"),
            &dir(&plain, "work"),
            interface,
        );
        assert!(
            error.to_string().contains("has no extended attributes"),
            "{error}"
        );
        let overlay = Overlay::bottom_up([case.scratch.path("base")])
            .upper(plain.target().join("upper"), plain.target().join("work"))
            .interface(interface)
            .tolerate_missing_xattrs();
        overlay.mount_detached().unwrap();
        // What the kernel would silently leave out is refused all the same.
        let error = overlay
            .options(Options::new().metacopy(Metacopy::On))
            .mount_detached()
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, Error::UnsuitableUpper { .. }), "{error}");
        plain.close().unwrap();
    }
}

/// Makes a directory in a mount inside the scratch directory, and names it as seen from there.
fn dir(mounted: &Mounted, name: &str) -> String {
    fs::create_dir_all(mounted.target().join(name)).unwrap();
    let place = mounted.target().file_name().unwrap().to_string_lossy();
    format!("{place}/{name}")
}
