//! Random mixes of new, joined and kept namespaces, random ids, and what random settings of them come
//! to: what `/proc` shows of the process is what was asked for.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Rootfs, container, failing, stdout};
use namespaces::{
    Command, IdMap, IdRange, IoPriority, MemoryPolicy, Mount, Namespace, NamespaceId, Scheduler,
    Stdio, TerminalSize, TimeOffset, UserMapping,
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
    keyring: Option<String>,
    /// With how `/proc` shows it.
    memory: Option<(MemoryPolicy, &'static str)>,
    terminal: Option<TerminalSize>,
}

/// How many keyrings there were.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Policies that a machine with a single node has, too.
fn memory_policy() -> impl Strategy<Value = (MemoryPolicy, &'static str)> {
    let policies = vec![
        (0, 0, &[][..], "default"),
        (1, 0, &[0][..], "prefer:0"),
        (2, 0, &[0], "bind:0"),
        (2, 1 << 15, &[0], "bind=static:0"),
        (3, 0, &[0], "interleave:0"),
        (4, 0, &[], "local"),
    ];
    prop::sample::select(policies).prop_map(|(mode, flags, nodes, shown)| {
        let nodes = nodes.to_vec();
        (MemoryPolicy { mode, flags, nodes }, shown)
    })
}

/// From two on: busybox takes a single row or column for a terminal that does not know its size.
fn terminal() -> impl Strategy<Value = TerminalSize> {
    (2..1_000_u16, 2..1_000_u16).prop_map(|(rows, columns)| TerminalSize { rows, columns })
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
        prop::option::of("cofferdam-[a-z]{1,40}"),
        prop::option::of(memory_policy()),
        prop::option::of(terminal()),
    )
        .prop_map(
            |(offsets, scheduler, io_priority, filter, port, domain, keyring, memory, terminal)| {
                Settings {
                    offsets,
                    scheduler,
                    io_priority,
                    filter,
                    port,
                    domain,
                    keyring,
                    memory,
                    terminal,
                }
            },
        )
}

/// What only root may ask for.
fn real_time() -> impl Strategy<Value = Scheduler> {
    let deadline = (1..5_u64, 0..5_u64, 0..90_u64).prop_map(|(runtime, slack, more)| {
        const MILLISECOND: u64 = 1_000_000;
        Scheduler::Deadline {
            runtime: runtime * MILLISECOND,
            deadline: (10 + slack) * MILLISECOND,
            period: (15 + slack + more) * MILLISECOND,
        }
    });
    prop_oneof![
        (1..=99_u32).prop_map(|priority| Scheduler::Fifo { priority }),
        (1..=99_u32).prop_map(|priority| Scheduler::RoundRobin { priority }),
        deadline,
    ]
}

/// A line for each setting.
const PROBE: &str = "
    tr -s ' \\n' ' ' </proc/self/timens_offsets; echo
    cat /proc/self/stat
    busybox ionice
    hostname other 2>/dev/null && echo set || echo refused
    cat /proc/sys/net/ipv4/ip_unprivileged_port_start
    cat /proc/sys/kernel/domainname
    read -r address policy rest </proc/self/numa_maps; echo $policy
    test -t 0 && busybox stty size || echo none
    test -t 0 && readlink /proc/self/fd/0 || echo none
    grep -c \"$KEYRING\" /proc/keys || true
";

/// What the program says, to its terminal if it has one.
fn said(command: &mut Command, terminal: bool) -> String {
    if !terminal {
        return stdout(command);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => panic!("{error}"),
    };
    let mut terminal = File::from(child.terminal.take().expect("a terminal"));
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    // The end of a terminal is an error.
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    let status = child.wait().expect("wait");
    let text = String::from_utf8(text).expect("text").replace('\r', "");
    assert!(status.success(), "{status}: {text}");
    text
}

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
        command.mounts(Mount::standard());
        // Those of programs that have ended stay for a while.
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let keyring = plan.keyring.as_ref();
        let keyring = keyring.map(|name| format!("{name}.{}.{unique}.", std::process::id()));
        command.env("KEYRING", keyring.as_deref().unwrap_or("cofferdam-none"));
        if let Some(name) = &keyring {
            command.session_keyring(name);
        }
        if let Some((policy, _)) = &plan.memory {
            command.memory_policy(policy.clone());
        }
        if let Some(size) = plan.terminal {
            command.terminal(size);
        }
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
        let text = said(&mut command, plan.terminal.is_some());
        let [
            offsets,
            stat,
            io_priority,
            named,
            port,
            domain,
            memory,
            size,
            terminal,
            keys,
        ] = text.lines().collect::<Vec<_>>()[..]
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
        if let Some((_, expected)) = plan.memory {
            prop_assert_eq!(memory, expected);
        }
        let expected = match plan.terminal {
            Some(at) => [format!("{} {}", at.rows, at.columns), "/dev/pts/0".to_owned()],
            None => ["none".to_owned(), "none".to_owned()],
        };
        prop_assert_eq!([size, terminal], expected);
        prop_assert_eq!(keys, if plan.keyring.is_some() { "1" } else { "0" });
    }

    #[test]
    #[ignore = "needs root"]
    fn programs_run_in_real_time(scheduler in real_time()) {
        let mut command = Command::new("cat");
        command.arg("/proc/self/stat").scheduler(scheduler);
        let stat = stdout(&mut command);
        // The priority is the 40th field and the policy the one behind.
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').skip(37).take(2));
        let seen: Vec<&str> = fields.into_iter().flatten().collect();
        let expected = match scheduler {
            Scheduler::Fifo { priority } => [priority.to_string(), "1".to_owned()],
            Scheduler::RoundRobin { priority } => [priority.to_string(), "2".to_owned()],
            _ => ["0".to_owned(), "6".to_owned()],
        };
        prop_assert_eq!(seen, expected);
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
