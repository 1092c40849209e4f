//! Creating, finding and removing groups.

mod support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cgroups::{Controller, DeviceRules, Error, Hierarchy, Layout, Resource, Threshold, Version};
use support::{Scratch, unique};

#[test]
fn the_layout_is_what_is_mounted() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let v2 = mounts.contains(" - cgroup2 ");
    let v1 = hierarchy
        .controllers()
        .iter()
        .any(|controller| hierarchy.version_of(controller) == Some(Version::V1));
    let expected = match (v2, v1) {
        (true, true) => Layout::Hybrid,
        (true, false) => Layout::Unified,
        (false, _) => Layout::Legacy,
    };
    assert_eq!(hierarchy.layout(), expected);
    assert_eq!(hierarchy.unified_mount_point().is_some(), v2);
    for controller in hierarchy.controllers().iter() {
        let mount = hierarchy.mount_point_of(controller).expect("it is mounted");
        assert!(mount.join("cgroup.procs").exists(), "{}", mount.display());
    }
}

#[test]
fn the_own_group_lists_this_process() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let own = hierarchy.own().expect("this process has a group");
    let pids = own.processes().expect("readable");
    assert!(pids.contains(&std::process::id()));
    assert!(matches!(
        hierarchy.of_process(u32::MAX),
        Err(Error::NoSuchProcess { pid: u32::MAX })
    ));
}

#[test]
#[ignore = "needs root"]
fn a_group_exists_in_every_hierarchy_and_goes_from_all() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let name = unique();
    let group = hierarchy.create(&name).expect("created").guard();
    assert_eq!(group.path(), Path::new(&name));
    let directories: Vec<PathBuf> = group.directories().map(Path::to_owned).collect();
    for controller in hierarchy.controllers().iter() {
        let mount = hierarchy.mount_point_of(controller).expect("it is mounted");
        assert!(directories.contains(&mount.join(&name)), "{controller}");
    }
    assert!(directories.iter().all(|directory| directory.is_dir()));
    assert!(group.exists());
    group.close().expect("removed");
    assert!(directories.iter().all(|directory| !directory.exists()));
    assert!(matches!(hierarchy.open(&name), Err(Error::NotFound { .. })));
}

#[test]
#[ignore = "needs root"]
fn a_second_creation_is_refused_and_harms_nothing() {
    let scratch = Scratch::new();
    let hierarchy = scratch.hierarchy();
    let error = hierarchy.create(scratch.path()).expect_err("it exists");
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert!(scratch.exists());
    // One directory alone is enough for a refusal, and the others are taken back.
    let name = unique();
    let one = hierarchy
        .mount_point_of(Controller::Pids)
        .expect("every kernel here has it")
        .join(&name);
    std::fs::create_dir(&one).expect("created by hand");
    let error = hierarchy.create(&name).expect_err("one is there");
    let left = hierarchy.open(&name).expect("the one by hand");
    let directories: Vec<_> = left.directories().map(Path::to_owned).collect();
    left.remove().expect("removed");
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(directories, [one]);
}

#[test]
#[ignore = "needs root"]
fn groups_nest_and_list_their_children() {
    let scratch = Scratch::new();
    assert!(scratch.children().expect("readable").is_empty());
    let deep = scratch.create("b/c/d").expect("with its parents");
    scratch.create("a").expect("created");
    let names = scratch.children().expect("readable");
    assert_eq!(names, [PathBuf::from("a"), PathBuf::from("b")]);
    assert_eq!(deep.path(), scratch.path().join("b/c/d"));
    let same = scratch.open_or_create("b/c").expect("opened");
    assert_eq!(same.children().expect("readable"), [PathBuf::from("d")]);
    assert!(!same.remove_if_unused().expect("asked"));
    scratch
        .open("b")
        .expect("opened")
        .remove()
        .expect("recursively");
    assert!(!deep.exists());
    assert_eq!(scratch.children().expect("readable"), [PathBuf::from("a")]);
    assert!(
        scratch
            .open("a")
            .expect("opened")
            .remove_if_unused()
            .expect("asked")
    );
}

#[test]
#[ignore = "needs root"]
fn a_process_is_found_under_names_that_read_like_others() {
    let scratch = Scratch::new();
    for name in [
        &b"a"[..],
        b"a\r",
        b"a (deleted)",
        b"\xff",
        "\u{fffd}".as_bytes(),
    ] {
        let group = scratch.create(OsStr::from_bytes(name)).expect("created");
        let child = support::Running::in_group(&group, "exec sleep 100");
        let found = scratch.hierarchy().of_process(child.pid()).expect("found");
        assert_eq!(found.path(), group.path());
        let all = group.directories().collect::<Vec<_>>();
        assert_eq!(found.directories().collect::<Vec<_>>(), all);
        group.attach(child.pid()).expect("it is there already");
    }
}

#[test]
#[ignore = "needs root"]
fn the_kernels_files_are_no_groups() {
    let scratch = Scratch::new();
    for name in ["cgroup.procs", "tasks"] {
        let error = scratch.open(name).expect_err("a file at most");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_deep_tree_is_removed_without_recursion() {
    let scratch = Scratch::new();
    let path: PathBuf = (0..100).map(|depth| depth.to_string()).collect();
    scratch.create(&path).expect("created");
    scratch.remove().expect("removed");
    assert!(!scratch.exists());
    scratch.remove().expect("removing what is gone is fine");
}

#[test]
#[ignore = "needs root"]
fn a_guard_removes_unless_kept() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let name = unique();
    drop(hierarchy.create(&name).expect("created").guard());
    assert!(hierarchy.open(&name).is_err());
    let kept = hierarchy.create(&name).expect("created").guard().keep();
    assert!(hierarchy.open(&name).is_ok());
    kept.remove().expect("removed");
}

#[test]
#[ignore = "needs root"]
fn a_removed_group_is_vanished_and_its_successor_is_another() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let name = unique();
    let old = hierarchy.create(&name).expect("created");
    old.remove().expect("removed");
    let new = hierarchy.create(&name).expect("created anew").guard();
    let error = old.processes().expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    let error = old.create("child").expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    let error = old
        .apply(&cgroups::Limits::new().pids_max(3))
        .expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    let threshold = Threshold {
        full: false,
        stall: Duration::from_millis(100),
        window: Duration::from_secs(2),
    };
    let pid = std::process::id();
    let results = [
        ("limits", old.limits().map(drop)),
        ("children", old.children().map(drop)),
        ("threads", old.threads().map(drop)),
        ("usable_controllers", old.usable_controllers().map(drop)),
        ("effective_cpus", old.effective_cpus().map(drop)),
        ("is_populated", old.is_populated().map(drop)),
        ("wait_empty", old.wait_empty(Duration::ZERO)),
        ("attach", old.attach(pid)),
        ("attach_thread", old.attach_thread(pid)),
        ("spawn", old.spawn(Command::new("true")).map(drop)),
        ("kill", old.kill()),
        ("freeze", old.freeze()),
        ("thaw", old.thaw()),
        ("is_frozen", old.is_frozen().map(drop)),
        ("wait_frozen", old.wait_frozen(Duration::ZERO)),
        ("delegate", old.delegate(0, 0)),
        ("group_type", old.group_type().map(drop)),
        ("make_threaded", old.make_threaded()),
        ("set_devices", old.set_devices(&DeviceRules::allow_all())),
        ("memory_stats", old.memory_stats().map(drop)),
        ("memory_counters", old.memory_counters().map(drop)),
        ("pids_stats", old.pids_stats().map(drop)),
        ("cpu_stats", old.cpu_stats().map(drop)),
        ("cpu_counters", old.cpu_counters().map(drop)),
        ("io_stats", old.io_stats().map(drop)),
        ("hugetlb_stats", old.hugetlb_stats().map(drop)),
        ("group_counters", old.group_counters().map(drop)),
        ("pressure", old.pressure(Resource::Cpu).map(drop)),
        (
            "pressure_trigger",
            old.pressure_trigger(Resource::Cpu, threshold).map(drop),
        ),
        ("watch_memory", old.watch_memory().map(drop)),
        ("watch_pids", old.watch_pids().map(drop)),
        ("watch_state", old.watch_state().map(drop)),
    ];
    for (call, result) in results {
        let told = matches!(result, Err(Error::Vanished { .. }));
        assert!(told, "{call}: {result:?}");
    }
    old.remove().expect("gone already");
    assert!(new.exists(), "the old handle must not touch the new group");
    new.close().expect("removed");
}

#[test]
#[ignore = "needs root"]
fn too_many_groups_is_told_apart() {
    let scratch = Scratch::new();
    let Some(mount) = scratch.hierarchy().unified_mount_point() else {
        panic!("v2 is mounted on every machine that these tests are for");
    };
    let file = mount.join(scratch.path()).join("cgroup.max.descendants");
    std::fs::write(file, "1").expect("written");
    let error = scratch.create("a/b").expect_err("two are too many");
    assert!(matches!(error, Error::TooManyGroups { .. }), "{error}");
    assert!(scratch.children().expect("readable").is_empty());
}

#[test]
#[ignore = "needs root"]
fn racing_on_one_name_has_one_winner_and_leaves_nothing() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let parent = unique();
    for round in 0..20 {
        let name = format!("{parent}/{round}");
        let won = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| hierarchy.create(&name)))
                .collect();
            racers
                .into_iter()
                .filter_map(|racer| match racer.join().expect("no panic") {
                    Ok(group) => Some(group),
                    Err(Error::AlreadyExists { .. }) => None,
                    Err(error) => panic!("{error}"),
                })
                .count()
        });
        assert!(won <= 1, "{won} creators of one group");
    }
    hierarchy
        .open(&parent)
        .expect("made by the first")
        .remove()
        .expect("removed");
}

/// One of two processes that make, use and take away the same group without knowing of each
/// other. Whatever happens to one because of the other has an error of its own.
#[test]
#[ignore = "needs root"]
fn two_processes_race_on_one_group() {
    const ROUNDS: usize = 60;
    const NAME: &str = "COFFERDAM_TEST_RACE";
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    if let Some(name) = std::env::var_os(NAME) {
        for _ in 0..ROUNDS {
            match live(&hierarchy, Path::new(&name)) {
                Ok(())
                | Err(
                    Error::AlreadyExists { .. }
                    | Error::NotFound { .. }
                    | Error::Vanished { .. }
                    | Error::Busy { .. }
                    // On several hierarchies the other one may be half through.
                    | Error::ControllerUnavailable { .. },
                ) => {}
                // The program that starts inside says it by its own error.
                Err(Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound
                        || source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        return;
    }
    let parent = Scratch::new();
    let name = parent.path().join("contested");
    let racers: Vec<_> = (0..2)
        .map(|_| {
            Command::new(std::env::current_exe().expect("this program"))
                .args([
                    "--exact",
                    "two_processes_race_on_one_group",
                    "--include-ignored",
                ])
                .env(NAME, &name)
                .stdout(Stdio::piped())
                .spawn()
                .expect("started")
        })
        .collect();
    for racer in racers {
        let output = racer.wait_with_output().expect("waited");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
    // Whatever the two have left, one alone gets through.
    live(&hierarchy, &name).expect("nobody is in the way");
    assert_eq!(parent.children().expect("readable"), [] as [PathBuf; 0]);
}

fn live(hierarchy: &Hierarchy, name: &Path) -> Result<(), Error> {
    let group = hierarchy.root()?.open_or_create(name)?;
    group.apply(&cgroups::Limits::new().pids_max(50))?;
    let mut command = Command::new("sleep");
    command.arg("100").stdin(Stdio::null());
    let mut child = group.spawn(command)?;
    let ended = group.kill().and_then(|()| group.remove());
    // If the other one has removed the group from under us, nobody has killed it.
    let _ = child.kill();
    child.wait().expect("waited");
    ended
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_is_told_about_delegation() {
    let scratch = Scratch::new();
    support::as_nobody(|| {
        let error = scratch.create("child").expect_err("not ours");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let error = scratch
            .create_where_permitted("child")
            .expect_err("not ours");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let limits = cgroups::Limits::new().pids_max(5);
        let error = scratch.apply(&limits).expect_err("not ours");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let error = scratch.remove().expect_err("not ours");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
    });
    assert!(scratch.exists());
    assert!(scratch.children().expect("readable").is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_user_with_a_part_of_the_hierarchies_gets_groups_there() {
    let scratch = Scratch::new();
    let pids = scratch
        .hierarchy()
        .mount_point_of(Controller::Pids)
        .expect("every kernel here has it")
        .join(scratch.path());
    std::os::unix::fs::chown(&pids, Some(support::NOBODY), None).expect("chown");
    let several = scratch.directories().count() > 1;
    support::as_nobody(|| {
        let child = scratch
            .create_where_permitted("child")
            .expect("one is ours");
        assert_eq!(
            child.directories().collect::<Vec<_>>(),
            [pids.join("child")]
        );
        if several {
            let error = scratch.create("other").expect_err("not all are ours");
            assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        }
        assert_eq!(
            scratch.children().expect("readable"),
            [PathBuf::from("child")]
        );
    });
}
