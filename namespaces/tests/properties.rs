//! Random plans: what the program sees is what the plan says.
//!
//! The plan is read twice, once into a [`Command`] and once into what `/proc` must show; a shell
//! inside reports what `/proc` does show. Every case needs a user namespace only, no privilege.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Seek, Write};

use common::Rootfs;
use namespaces::{
    Capabilities, CapabilitySet, Command, Limit, Mount, MountAttributes, Namespace, Resource,
    UserMapping,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
struct Plan {
    namespaces: BTreeSet<Namespace>,
    hostname: Option<String>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    umask: Option<u32>,
    nice: Option<i8>,
    no_new_privs: bool,
    /// Bounding, permitted, effective, inheritable, ambient.
    capabilities: Option<[u64; 5]>,
    limits: BTreeMap<Resource, (u64, u64)>,
    mounts: Vec<(u8, MountAttributes, Content)>,
    masked: BTreeSet<u8>,
    read_only: BTreeSet<u8>,
    root_read_only: bool,
    directory: Option<u8>,
    fds: BTreeMap<i32, String>,
    loopback: bool,
    oom_score_adj: Option<i16>,
    session: bool,
    init: bool,
    one_cpu: bool,
    personality: Option<u32>,
}

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Bound,
    Empty,
    /// What it covers.
    CopiedUp,
}

/// Sets that the kernel takes: each is within what it must be within.
fn capabilities() -> impl Strategy<Value = [u64; 5]> {
    [any::<u64>(); 5].prop_map(|[bounding, permitted, effective, inheritable, ambient]| {
        let bounding = bounding & CapabilitySet::all().bits();
        let permitted = permitted & bounding;
        let inheritable = inheritable & permitted;
        [
            bounding,
            permitted,
            effective & permitted,
            inheritable,
            ambient & inheritable,
        ]
    })
}

/// Limits with which a shell still works.
fn limits() -> impl Strategy<Value = BTreeMap<Resource, (u64, u64)>> {
    let resource = prop_oneof![
        Just((Resource::Core, 0)),
        Just((Resource::OpenFiles, 64)),
        Just((Resource::FileSize, 1 << 20)),
        Just((Resource::Stack, 1 << 20)),
        Just((Resource::PendingSignals, 10)),
        Just((Resource::MessageQueues, 0)),
    ];
    let limit = (resource, 0_u64..1000, 0_u64..1000).prop_map(|((resource, least), soft, more)| {
        (resource, (least + soft, least + soft + more))
    });
    prop::collection::vec(limit, 0..4).prop_map(|limits| limits.into_iter().collect())
}

/// Attributes that a user namespace may set.
fn attributes() -> impl Strategy<Value = MountAttributes> {
    let all = [
        MountAttributes::READ_ONLY,
        MountAttributes::NO_SUID,
        MountAttributes::NO_DEV,
        MountAttributes::NO_EXEC,
    ];
    prop::sample::subsequence(all.to_vec(), 0..=all.len())
        .prop_map(|attributes| attributes.into_iter().collect())
}

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9 ./=*$'\"\\\\-]{0,12}"
}

fn plan() -> impl Strategy<Value = Plan> {
    let namespaces = prop::sample::subsequence(
        vec![
            Namespace::Pid,
            Namespace::Uts,
            Namespace::Ipc,
            Namespace::Net,
            Namespace::Cgroup,
            Namespace::Time,
        ],
        0..=6,
    );
    let small = || prop::collection::btree_set(0_u8..4, 0..3);
    let process = (
        prop::collection::vec(word(), 0..4),
        prop::collection::btree_map("[A-Z]{1,5}_", word(), 0..4),
        prop::option::of(0_u32..0o1000),
        prop::option::of(0_i8..20),
        any::<bool>(),
        prop::option::of(capabilities()),
        limits(),
        prop::collection::btree_map(3_i32..20, "[a-z]{1,8}", 0..4),
        prop::option::of(0_i16..=1000),
        any::<bool>(),
    );
    let more = (
        any::<bool>(),
        any::<bool>(),
        // PER_LINUX32; flags are cleared for a program that gains capabilities.
        prop::option::of(prop_oneof![Just(0), Just(8)]),
    );
    let content = prop_oneof![
        Just(Content::Bound),
        Just(Content::Empty),
        Just(Content::CopiedUp)
    ];
    let filesystem = (
        prop::collection::vec((0_u8..4, attributes(), content), 0..5),
        small(),
        small(),
        any::<bool>(),
        prop::option::of(0_u8..4),
    );
    let names = (namespaces, prop::option::of("[a-z]{1,64}"), any::<bool>());
    (names, process, more, filesystem).prop_map(|(names, process, more, filesystem)| {
        let namespaces: BTreeSet<Namespace> = names.0.into_iter().collect();
        Plan {
            hostname: names.1.filter(|_| namespaces.contains(&Namespace::Uts)),
            loopback: names.2 && namespaces.contains(&Namespace::Net),
            namespaces,
            args: process.0,
            env: process.1,
            umask: process.2,
            nice: process.3,
            no_new_privs: process.4,
            capabilities: process.5.map(|mut sets| {
                if !process.4 {
                    // A program that gains capabilities by execve cannot be looked into.
                    sets[1] = sets[0];
                }
                sets
            }),
            limits: process.6,
            fds: process.7,
            oom_score_adj: process.8,
            session: process.9,
            init: more.0,
            one_cpu: more.1,
            personality: more.2,
            mounts: filesystem.0,
            masked: filesystem.1,
            read_only: filesystem.2,
            root_read_only: filesystem.3,
            directory: filesystem.4,
        }
    })
}

/// What the shell reports, by section.
const PROBE: &str = r#"
echo @@args; for arg in "$0" "$@"; do echo "$arg"; done
echo @@personality; cat /proc/self/personality
echo @@status; cat /proc/self/status
echo @@stat; cat /proc/$$/stat
echo @@limits; cat /proc/$$/limits
echo @@env; env
echo @@mounts; cat /proc/$$/mountinfo
echo @@fds; ls /proc/$$/fd
echo @@cwd; readlink /proc/$$/cwd
echo @@root; readlink /proc/$$/root
echo @@oom; cat /proc/$$/oom_score_adj
echo @@host; hostname
echo @@lo; ip -o link show lo
for kind in user mnt pid uts ipc net cgroup time; do echo @@ns-$kind; readlink /proc/$$/ns/$kind; done
for fd in $FDS; do echo @@fd-$fd; eval "cat <&$fd"; done
for dir in 0 1 2 3; do echo @@files-$dir; ls /m/$dir; done
"#;

fn limit_now(resource: Resource) -> u64 {
    let name = limit_name(resource);
    let text = fs::read_to_string("/proc/self/limits").expect("read");
    let line = text.lines().find(|line| line.starts_with(name));
    let hard = line.and_then(|line| line.get(47..)?.split_whitespace().next());
    hard.expect("a limit").parse().unwrap_or(u64::MAX)
}

fn limit_name(resource: Resource) -> &'static str {
    match resource {
        Resource::Core => "Max core file size",
        Resource::OpenFiles => "Max open files",
        Resource::FileSize => "Max file size",
        Resource::Stack => "Max stack size",
        Resource::PendingSignals => "Max pending signals",
        Resource::MessageQueues => "Max msgqueue size",
        other => panic!("{other:?} is in no plan"),
    }
}

fn command(plan: &Plan, rootfs: &Rootfs, outside: &std::path::Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", PROBE, "zero"])
        .args(&plan.args)
        .env_clear()
        .env("PATH", "/bin")
        .envs(&plan.env)
        .env(
            "FDS",
            plan.fds
                .keys()
                .map(i32::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        )
        .unshare(plan.namespaces.iter().copied())
        .unshare([Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .root(rootfs.path())
        .root_read_only(plan.root_read_only)
        .no_new_privs(plan.no_new_privs)
        .loopback_up(plan.loopback)
        .new_session(plan.session)
        .init(plan.init)
        .masked_paths(plan.masked.iter().map(|path| format!("/masked/{path}")))
        .read_only_paths(plan.read_only.iter().map(|path| format!("/fixed/{path}")));
    if plan.namespaces.contains(&Namespace::Pid) {
        command.mount(Mount::proc("/proc"));
    } else {
        command.mount(Mount::bind("/proc", "/proc"));
    }
    for (target, attributes, content) in &plan.mounts {
        let target = format!("/m/{target}");
        let mount = match content {
            Content::Bound => Mount::bind_single(outside, target),
            Content::Empty => Mount::tmpfs(target),
            Content::CopiedUp => Mount::tmpfs(target).copy_up(true),
        };
        command.mount(mount.attributes(*attributes));
    }
    if plan.one_cpu {
        command.cpu_affinity([0]);
    }
    if let Some(personality) = plan.personality {
        command.personality(personality);
    }
    for (number, text) in &plan.fds {
        let mut file = tempfile::tempfile().expect("a file");
        writeln!(file, "{text}").expect("write");
        file.rewind().expect("rewind");
        command.fd(*number, file);
    }
    for (resource, (soft, hard)) in &plan.limits {
        let most = limit_now(*resource);
        command.rlimit(
            *resource,
            Limit {
                soft: Some(*soft.min(&most)),
                hard: Some(*hard.min(&most)),
            },
        );
    }
    if let Some([bounding, permitted, effective, inheritable, ambient]) = plan
        .capabilities
        .map(|sets| sets.map(CapabilitySet::from_bits))
    {
        command.capabilities(Capabilities {
            bounding,
            effective,
            permitted,
            inheritable,
            ambient,
        });
    }
    if let Some(name) = &plan.hostname {
        command.hostname(name);
    }
    if let Some(mask) = plan.umask {
        command.umask(mask);
    }
    if let Some(nice) = plan.nice {
        command.nice(nice);
    }
    if let Some(score) = plan.oom_score_adj {
        command.oom_score_adj(score);
    }
    if let Some(directory) = plan.directory {
        command.current_dir(format!("/work/{directory}"));
    }
    command
}

fn sections(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        match line.strip_prefix("@@") {
            Some(name) => current = name,
            None => sections.entry(current).or_default().push(line),
        }
    }
    sections
}

fn check(plan: &Plan) -> Result<(), TestCaseError> {
    let rootfs = Rootfs::new();
    for directory in ["proc", "work", "masked", "fixed", "m"] {
        fs::create_dir(rootfs.join(directory)).expect("mkdir");
        for name in ["0", "1", "2", "3"] {
            fs::create_dir(rootfs.join(directory).join(name)).expect("mkdir");
        }
    }
    for directory in 0..4 {
        fs::write(rootfs.join(&format!("m/{directory}/image")), "").expect("write");
    }
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("bound"), "").expect("write");
    // Both can be raised by anybody and lowered by few.
    let nice_now = rustix::process::getpriority_process(None).expect("a nice value");
    let nice_now = i8::try_from(nice_now).expect("a small number");
    let score_now: i16 = fs::read_to_string("/proc/self/oom_score_adj")
        .expect("read")
        .trim()
        .parse()
        .expect("a number");
    let plan = &Plan {
        oom_score_adj: plan.oom_score_adj.map(|score| score.max(score_now)),
        nice: plan.nice.map(|nice| nice.max(nice_now)),
        ..plan.clone()
    };
    let output = match command(plan, &rootfs, outside.path()).output() {
        Ok(output) => output,
        Err(error) => return Err(TestCaseError::fail(error.to_string())),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let seen = sections(&text);
    let section = |name: &str| seen.get(name).cloned().unwrap_or_default();
    let only = |name: &str| section(name).first().copied().unwrap_or_default();

    let mut args = vec!["zero"];
    args.extend(plan.args.iter().map(String::as_str));
    prop_assert_eq!(section("args"), args);

    for (key, value) in &plan.env {
        let variable = format!("{key}={value}");
        prop_assert!(section("env").contains(&&*variable), "{}", variable);
    }

    let status = |key: &str| {
        let line = section("status")
            .into_iter()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
        line.unwrap_or_default().trim()
    };
    let bits = |key: &str| u64::from_str_radix(status(key), 16).unwrap_or(u64::MAX);
    prop_assert_eq!(status("Uid"), "0\t0\t0\t0");
    prop_assert_eq!(status("Gid"), "0\t0\t0\t0");
    prop_assert_eq!(
        status("NoNewPrivs"),
        if plan.no_new_privs { "1" } else { "0" }
    );
    if let Some(mask) = plan.umask {
        prop_assert_eq!(u32::from_str_radix(status("Umask"), 8), Ok(mask));
    }
    let [bounding, permitted, _, inheritable, ambient] = plan.capabilities.unwrap_or([
        CapabilitySet::all().bits(),
        CapabilitySet::all().bits(),
        0,
        0,
        0,
    ]);
    // capabilities(7): root's permitted set after execve, and what no_new_privs takes of it.
    let mut expected = inheritable | bounding;
    if plan.no_new_privs {
        expected &= permitted;
    }
    prop_assert_eq!(bits("CapBnd"), bounding);
    prop_assert_eq!(bits("CapInh"), inheritable);
    prop_assert_eq!(bits("CapPrm"), expected);
    prop_assert_eq!(bits("CapEff"), expected);
    prop_assert_eq!(bits("CapAmb"), ambient);
    prop_assert_eq!(bits("SigBlk"), 0);
    if plan.one_cpu {
        prop_assert_eq!(status("Cpus_allowed_list"), "0");
    }
    if let Some(personality) = plan.personality {
        prop_assert_eq!(only("personality"), format!("{personality:08x}"));
    }

    let stat: Vec<&str> = only("stat")
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').collect())
        .unwrap_or_default();
    if let Some(nice) = plan.nice {
        prop_assert_eq!(stat.get(16).copied(), Some(&*nice.to_string()));
    }
    if plan.session {
        let pid = only("stat").split(' ').next();
        prop_assert_eq!(stat.get(3).copied(), pid);
    }

    for (resource, (soft, hard)) in &plan.limits {
        let most = limit_now(*resource);
        let line = section("limits")
            .into_iter()
            .find(|line| line.starts_with(limit_name(*resource)))
            .unwrap_or_default();
        let values: Vec<&str> = line
            .get(26..)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        prop_assert_eq!(values.first().copied(), Some(&*soft.min(&most).to_string()));
        prop_assert_eq!(values.get(1).copied(), Some(&*hard.min(&most).to_string()));
    }

    prop_assert_eq!(only("root"), "/");
    let directory = plan
        .directory
        .map_or("/".to_owned(), |name| format!("/work/{name}"));
    prop_assert_eq!(only("cwd"), directory);
    if let Some(score) = plan.oom_score_adj {
        prop_assert_eq!(only("oom"), score.to_string());
    }
    if let Some(name) = &plan.hostname {
        prop_assert_eq!(only("host"), name);
    }
    if plan.namespaces.contains(&Namespace::Net) {
        prop_assert_eq!(only("lo").contains(",UP"), plan.loopback, "{}", only("lo"));
    }

    // Three streams, what was given, and nothing else.
    let fds: BTreeSet<i32> = section("fds")
        .iter()
        .filter_map(|fd| fd.parse().ok())
        .collect();
    let given: BTreeSet<i32> = (0..3).chain(plan.fds.keys().copied()).collect();
    // A shell may keep a descriptor of its own, always from 10 on, marked to be closed.
    let extra: Vec<i32> = fds
        .difference(&given)
        .copied()
        .filter(|fd| *fd < 10)
        .collect();
    prop_assert!(extra.is_empty(), "leaked {:?}", extra);
    for (number, text) in &plan.fds {
        prop_assert_eq!(only(&format!("fd-{number}")), text);
    }

    for kind in Namespace::ALL {
        let ours = fs::read_link(format!("/proc/self/ns/{}", kind.proc_name())).expect("read");
        let new =
            matches!(kind, Namespace::User | Namespace::Mount) || plan.namespaces.contains(&kind);
        let theirs = only(&format!("ns-{}", kind.proc_name()));
        prop_assert_eq!(ours.to_str() != Some(theirs), new, "{}", kind);
    }
    if plan.namespaces.contains(&Namespace::Pid) {
        let pid = if plan.init { "2" } else { "1" };
        prop_assert_eq!(only("stat").split(' ').next(), Some(pid));
    }

    mounts(plan, &section("mounts"))?;
    // The last mount on a directory is the one that is seen.
    for directory in 0..4 {
        let mut seen = vec!["image"];
        for (_, _, content) in plan.mounts.iter().filter(|(at, ..)| *at == directory) {
            match content {
                Content::Bound => seen = vec!["bound"],
                Content::Empty => seen.clear(),
                Content::CopiedUp => {}
            }
        }
        let files = section(&format!("files-{directory}"));
        prop_assert_eq!(files, seen);
    }
    Ok(())
}

fn mounts(plan: &Plan, lines: &[&str]) -> Result<(), TestCaseError> {
    // Target, options, file system.
    let seen: Vec<(&str, BTreeSet<&str>, &str)> = lines
        .iter()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            let target = fields.next()?;
            let options = fields.next()?.split(',').collect();
            let kind = line.split(" - ").nth(1)?.split(' ').next()?;
            Some((target, options, kind))
        })
        .collect();
    let root = seen.first().cloned().unwrap_or_default();
    prop_assert_eq!(root.0, "/");
    prop_assert_eq!(root.1.contains("ro"), plan.root_read_only);
    // Nothing of the outside is left.
    for (target, ..) in &seen {
        let known = *target == "/"
            || ["/proc", "/m/", "/masked/", "/fixed/"]
                .iter()
                .any(|start| target.starts_with(start));
        prop_assert!(known, "{} is mounted", target);
    }
    let under = |start: &str| -> Vec<_> {
        seen.iter()
            .filter(|(target, ..)| target.starts_with(start))
            .collect()
    };
    let made = under("/m/");
    prop_assert_eq!(made.len(), plan.mounts.len());
    for (target, attributes, content) in &plan.mounts {
        let bind = *content == Content::Bound;
        let target = format!("/m/{target}");
        let names = [
            (MountAttributes::READ_ONLY, "ro"),
            (MountAttributes::NO_SUID, "nosuid"),
            (MountAttributes::NO_DEV, "nodev"),
            (MountAttributes::NO_EXEC, "noexec"),
        ];
        // Of several on one target any may be this one; each has a match of its own below.
        let found = made.iter().any(|(at, options, kind)| {
            *at == target
                && (bind || *kind == "tmpfs")
                && names.iter().all(|(attribute, name)| {
                    // A bind also has what the mount that it shows has.
                    attributes.contains(*attribute) == options.contains(name)
                        || bind && options.contains(name)
                })
        });
        prop_assert!(found, "{} {:?} {:?}", target, attributes, content);
    }
    let masked = under("/masked/");
    prop_assert_eq!(masked.len(), plan.masked.len());
    for (_, options, kind) in masked {
        prop_assert_eq!((options.contains("ro"), *kind), (true, "tmpfs"));
    }
    let fixed = under("/fixed/");
    prop_assert_eq!(fixed.len(), plan.read_only.len());
    for (_, options, _) in fixed {
        prop_assert!(options.contains("ro"));
    }
    Ok(())
}

/// The default number of cases takes a few seconds; `PROPTEST_CASES` deepens.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 32;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_program_sees_the_plan(plan in plan()) {
        check(&plan)?;
    }
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
