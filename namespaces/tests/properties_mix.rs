//! Random mixes of new, joined and kept namespaces, random ids, and what random settings of them come
//! to: what `/proc` shows of the process is what was asked for.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;

use common::{Rootfs, container, failing, stdout};
use namespaces::{
    Command, IdMap, IdRange, IoPriority, Mount, Namespace, NamespaceId, Scheduler, Stdio,
    TimeOffset, UserMapping,
};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Kept,
    New,
    ByFd,
    ByPath,
    ByPidfd,
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        2 => Just(How::Kept),
        2 => Just(How::New),
        1 => Just(How::ByFd),
        1 => Just(How::ByPath),
        1 => Just(How::ByPidfd),
    ]
}

/// A way for each kind. What belongs to another user namespace is joined by those only who join
/// that as well.
fn mix() -> impl Strategy<Value = BTreeMap<Namespace, How>> {
    prop::collection::vec(how(), Namespace::ALL.len()).prop_map(|ways| {
        let joins_user = !matches!(ways[0], How::Kept | How::New);
        Namespace::ALL
            .into_iter()
            .zip(ways)
            .map(|(kind, way)| match (kind, way) {
                (Namespace::User, How::Kept) => (kind, How::New),
                (_, How::ByFd | How::ByPath | How::ByPidfd) if !joins_user => (kind, How::New),
                _ => (kind, way),
            })
            .collect()
    })
}

/// A program that lives until its standard input is closed, and tells nothing.
fn waiting() -> Command {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command
}

fn ids(pid: u32) -> BTreeMap<Namespace, NamespaceId> {
    let all = NamespaceId::all_of_process(pid).expect("its namespaces");
    Namespace::ALL.into_iter().zip(all).collect()
}

/// The fields behind `key:` in a file of lines such as `Uid: 0 0 0 0`.
fn numbers(text: &str, key: &str) -> Vec<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let fields = line.unwrap_or_default().split_whitespace();
    fields
        .map(|field| field.parse().expect("a number"))
        .collect()
}

#[derive(Debug, Clone)]
struct Users {
    mapped: bool,
    first: u32,
    second: u32,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Users {
    /// Two ranges, one behind the other inside and apart outside.
    fn map(&self) -> IdMap {
        let first = IdRange {
            inside: 0,
            outside: 100_000,
            count: self.first,
        };
        let second = IdRange {
            inside: self.first,
            outside: 300_000,
            count: self.second,
        };
        IdMap::ranges([first, second])
    }

    fn outside(&self, id: u32) -> u32 {
        match (self.mapped, id.checked_sub(self.first)) {
            (false, _) => id,
            (true, None) => 100_000 + id,
            (true, Some(beyond)) => 300_000 + beyond,
        }
    }
}

fn users() -> impl Strategy<Value = Users> {
    (any::<bool>(), 1_u32..1_000, 1_u32..1_000).prop_flat_map(|(mapped, first, second)| {
        let id = || 0..first + second;
        (id(), id(), prop::collection::vec(id(), 0..5)).prop_map(move |(uid, gid, groups)| Users {
            mapped,
            first,
            second,
            uid,
            gid,
            groups,
        })
    })
}

#[derive(Debug, Clone)]
struct Settings {
    offsets: Option<[(i64, u32); 2]>,
    scheduler: Option<Scheduler>,
    io_priority: Option<IoPriority>,
    filter: bool,
    port: Option<u16>,
    domain: Option<String>,
}

fn settings() -> impl Strategy<Value = Settings> {
    let offset = || (0..1_000_000_i64, 0..1_000_000_000_u32);
    let scheduler = prop_oneof![
        Just(Scheduler::Normal),
        Just(Scheduler::Batch),
        Just(Scheduler::Idle)
    ];
    let io_priority = prop_oneof![
        (0..8_u8).prop_map(IoPriority::BestEffort),
        Just(IoPriority::Idle)
    ];
    (
        prop::option::of([offset(), offset()]),
        prop::option::of(scheduler),
        prop::option::of(io_priority),
        any::<bool>(),
        // Below the ports that are given out.
        prop::option::of(0..30_000_u16),
        prop::option::of("[a-z.]{1,64}"),
    )
        .prop_map(
            |(offsets, scheduler, io_priority, filter, port, domain)| Settings {
                offsets,
                scheduler,
                io_priority,
                filter,
                port,
                domain,
            },
        )
}

/// A line for each setting.
const PROBE: &str = "
    tr -s ' \\n' ' ' </proc/self/timens_offsets; echo
    cat /proc/self/stat
    busybox ionice
    hostname other && echo set || echo refused
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start
    cat /proc/sys/kernel/domainname
";

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 24;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn namespaces_are_new_joined_or_kept(mix in mix()) {
        let mut other = waiting();
        other
            .unshare(Namespace::ALL)
            .user_namespace(UserMapping::CallerAsRoot);
        let other = other.spawn().expect("spawn");
        let mut command = waiting();
        for (kind, how) in &mix {
            let path = format!("/proc/{}/ns/{}", other.pid(), kind.proc_name());
            match how {
                How::Kept => continue,
                How::New => command.unshare([*kind]),
                How::ByFd => command.join(*kind, File::open(path).expect("open")),
                How::ByPath => command.join_path(*kind, path),
                How::ByPidfd => command.join(*kind, other.as_fd()),
            };
        }
        if mix[&Namespace::User] == How::New {
            command.user_namespace(UserMapping::CallerAsRoot);
        }
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let (ours, theirs) = (ids(std::process::id()), ids(other.pid()));
        for (kind, seen) in ids(child.pid()) {
            let known = [seen == ours[&kind], seen == theirs[&kind]];
            let expected = match mix[&kind] {
                How::Kept => [true, false],
                How::New => [false, false],
                How::ByFd | How::ByPath | How::ByPidfd => [false, true],
            };
            prop_assert_eq!(known, expected, "{}", kind);
        }
    }

    #[test]
    fn settings_are_seen(plan in settings()) {
        let rootfs = Rootfs::new();
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/tr")).expect("link");
        let mut command = container(&rootfs, PROBE);
        command.mount(Mount::proc("/proc"));
        if let Some([monotonic, boottime]) = plan.offsets {
            let offset = |(seconds, nanoseconds)| TimeOffset { seconds, nanoseconds };
            command
                .unshare([Namespace::Time])
                .time_offsets(offset(monotonic), offset(boottime));
        }
        if let Some(scheduler) = plan.scheduler {
            command.scheduler(scheduler);
        }
        if let Some(priority) = plan.io_priority {
            command.io_priority(priority);
        }
        if plan.filter {
            command.seccomp(failing(libc::SYS_sethostname, libc::EXDEV));
        }
        if let Some(port) = plan.port {
            command.sysctl("net.ipv4.ip_unprivileged_port_start", port.to_string());
        }
        if let Some(domain) = &plan.domain {
            command.domainname(domain);
        }
        let text = stdout(&mut command);
        let [offsets, stat, io_priority, named, port, domain] = text.lines().collect::<Vec<_>>()[..]
        else {
            return Err(TestCaseError::fail(text));
        };
        if let Some([monotonic, boottime]) = plan.offsets {
            let expected = format!(
                "monotonic {} {} boottime {} {}",
                monotonic.0, monotonic.1, boottime.0, boottime.1
            );
            prop_assert_eq!(offsets.trim(), expected);
        }
        if let Some(scheduler) = plan.scheduler {
            // The policy is the 41st field, and the third is the first behind the name.
            let policy = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(38));
            let expected = match scheduler {
                Scheduler::Batch => "3",
                Scheduler::Idle => "5",
                _ => "0",
            };
            prop_assert_eq!(policy, Some(expected));
        }
        match plan.io_priority {
            Some(IoPriority::BestEffort(level)) => {
                prop_assert_eq!(io_priority, format!("best-effort: prio {level}"));
            }
            Some(_) => prop_assert_eq!(io_priority, "idle"),
            None => {}
        }
        prop_assert_eq!(named, if plan.filter { "refused" } else { "set" });
        if let Some(expected) = plan.port {
            prop_assert_eq!(port, expected.to_string());
        }
        if let Some(expected) = plan.domain {
            prop_assert_eq!(domain, expected);
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn users_are_those_outside_that_they_are_mapped_to(plan in users()) {
        let mut command = waiting();
        if plan.mapped {
            let (uids, gids) = (plan.map(), plan.map());
            command.user_namespace(UserMapping::Exact { uids, gids });
        }
        command
            .uid(plan.uid)
            .gid(plan.gid)
            .groups(plan.groups.iter().copied());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).expect("read");
        prop_assert_eq!(numbers(&status, "Uid:"), [plan.outside(plan.uid); 4]);
        prop_assert_eq!(numbers(&status, "Gid:"), [plan.outside(plan.gid); 4]);
        let mut groups: Vec<u32> = plan.groups.iter().map(|id| plan.outside(*id)).collect();
        groups.sort_unstable();
        prop_assert_eq!(numbers(&status, "Groups:"), groups);
    }
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
