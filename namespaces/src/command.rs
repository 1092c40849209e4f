//! A program to be started, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use crate::{
    Capabilities, Child, Device, Error, IoPriority, Limit, MemoryPolicy, Mount, Namespace,
    Propagation, Resource, Root, Scheduler, SecurityLabel, Starting, Stdio, TerminalSize,
    TimeOffset, UserMapping,
};

/// A program to be started in any mix of namespaces.
///
/// It reads like [`std::process::Command`]; everything set here is data, compiled into a plan
/// before the new process exists. [`spawn`](Self::spawn) does it all; [`start`](Self::start) stops
/// where the namespaces exist and nothing else is done, so that the caller can act first.
///
/// The order in which settings are made does not matter, except among [mounts](Self::mount).
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own, set by a method of its name"
)]
pub struct Command {
    pub(crate) program: OsString,
    pub(crate) arg0: Option<OsString>,
    pub(crate) args: Vec<OsString>,
    pub(crate) env_clear: bool,
    pub(crate) env: BTreeMap<OsString, Option<OsString>>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) create_current_dir: bool,
    pub(crate) stdin: Option<Stdio>,
    pub(crate) stdout: Option<Stdio>,
    pub(crate) stderr: Option<Stdio>,
    pub(crate) fds: BTreeMap<RawFd, OwnedFd>,
    pub(crate) kept: BTreeSet<RawFd>,
    pub(crate) new: Vec<Namespace>,
    pub(crate) joined: BTreeMap<Namespace, Join>,
    pub(crate) entered: Option<OwnedFd>,
    pub(crate) init: bool,
    pub(crate) user_mapping: Option<UserMapping>,
    pub(crate) loopback_up: bool,
    pub(crate) root: Option<Root>,
    pub(crate) root_read_only: bool,
    pub(crate) root_tree_read_only: bool,
    pub(crate) root_propagation: Propagation,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) hostname: Option<OsString>,
    pub(crate) domainname: Option<OsString>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) no_new_privs: bool,
    pub(crate) rlimits: BTreeMap<Resource, Limit>,
    pub(crate) umask: Option<u32>,
    pub(crate) seccomp: Option<Vec<u8>>,
    pub(crate) seccomp_flags: u32,
    pub(crate) seccomp_listener: bool,
    pub(crate) time_offsets: [Option<TimeOffset>; 2],
    pub(crate) devices: Vec<Device>,
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    pub(crate) sysctls: BTreeMap<OsString, OsString>,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) gate: Option<OwnedFd>,
    pub(crate) oom_score_adj: Option<i16>,
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) scheduler_flags: u64,
    pub(crate) nice: Option<i8>,
    pub(crate) io_priority: Option<IoPriority>,
    pub(crate) cpu_affinity: Option<Vec<u32>>,
    pub(crate) memory_policy: Option<MemoryPolicy>,
    pub(crate) personality: Option<u32>,
    pub(crate) session_keyring: Option<OsString>,
    pub(crate) security_label: Option<SecurityLabel>,
    pub(crate) cgroup: Option<OwnedFd>,
    pub(crate) new_session: bool,
    pub(crate) die_with_parent: bool,
    pub(crate) kill_on_drop: bool,
    /// The first thing that a builder method could not do; `start` reports it.
    pub(crate) deferred: Option<Error>,
}

/// A namespace to be joined.
#[derive(Debug)]
pub(crate) enum Join {
    Fd(OwnedFd),
    Path(PathBuf),
}

impl Command {
    /// A command for `program` with this process's environment, directory and streams, and no
    /// namespace of its own.
    ///
    /// A name without a slash is looked up inside the new root, in the `PATH` of the new
    /// environment (`/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` without one).
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arg0: None,
            args: Vec::new(),
            env_clear: false,
            env: BTreeMap::new(),
            current_dir: None,
            create_current_dir: false,
            stdin: None,
            stdout: None,
            stderr: None,
            fds: BTreeMap::new(),
            kept: BTreeSet::new(),
            new: Vec::new(),
            joined: BTreeMap::new(),
            entered: None,
            init: false,
            user_mapping: None,
            loopback_up: false,
            root: None,
            root_read_only: false,
            root_tree_read_only: false,
            root_propagation: Propagation::Private,
            mounts: Vec::new(),
            masked: Vec::new(),
            read_only: Vec::new(),
            hostname: None,
            domainname: None,
            uid: None,
            gid: None,
            groups: None,
            capabilities: None,
            no_new_privs: false,
            rlimits: BTreeMap::new(),
            umask: None,
            seccomp: None,
            seccomp_flags: 0,
            seccomp_listener: false,
            time_offsets: [None, None],
            devices: Vec::new(),
            links: Vec::new(),
            sysctls: BTreeMap::new(),
            terminal: None,
            gate: None,
            oom_score_adj: None,
            scheduler: None,
            scheduler_flags: 0,
            nice: None,
            io_priority: None,
            cpu_affinity: None,
            memory_policy: None,
            personality: None,
            session_keyring: None,
            security_label: None,
            cgroup: None,
            new_session: false,
            die_with_parent: false,
            kill_on_drop: false,
            deferred: None,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// What the program sees as its own name; the program as given by default.
    pub fn arg0(&mut self, arg0: impl AsRef<OsStr>) -> &mut Self {
        self.arg0 = Some(arg0.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env
            .insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    pub fn envs(
        &mut self,
        variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> &mut Self {
        for (key, value) in variables {
            self.env(key, value);
        }
        self
    }

    /// Takes an environment variable away.
    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(key.as_ref().to_owned(), None);
        self
    }

    /// Starts from an empty environment; forgets what was set before.
    pub fn env_clear(&mut self) -> &mut Self {
        self.env_clear = true;
        self.env.clear();
        self
    }

    /// The working directory, inside the new root. `/` by default when there is a new root, else
    /// this process's own.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Self {
        self.current_dir = Some(directory.as_ref().to_owned());
        self
    }

    /// Whether a working directory that is missing is made, with mode 0755. Off by default.
    pub fn create_current_dir(&mut self, create: bool) -> &mut Self {
        self.create_current_dir = create;
        self
    }

    /// The standard input.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// The standard output.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// The standard error.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// Gives the program `fd` under the number `number`, from 3 on. Every other file descriptor
    /// of this process is closed in the program.
    pub fn fd(&mut self, number: RawFd, fd: impl Into<OwnedFd>) -> &mut Self {
        self.fds.insert(number, fd.into());
        self
    }

    /// Leaves the descriptor `number` of this process, from 3 on, to the program as it is: for
    /// programs that were themselves given descriptors by number, as by `sd_listen_fds(3)`.
    pub fn keep_fd(&mut self, number: RawFd) -> &mut Self {
        self.kept.insert(number);
        self
    }

    /// Gives the program new namespaces.
    ///
    /// Without privilege [`Namespace::User`] must be among them; see
    /// [`user_namespace`](Self::user_namespace) for its ids.
    #[doc(alias = "clone3")]
    pub fn unshare(&mut self, namespaces: impl IntoIterator<Item = Namespace>) -> &mut Self {
        for namespace in namespaces {
            if !self.new.contains(&namespace) {
                self.new.push(namespace);
            }
        }
        self
    }

    /// Joins an existing namespace: `namespace` is an fd of `/proc/PID/ns/…` or a pidfd of a
    /// process in it (Linux 5.8).
    #[doc(alias = "setns")]
    pub fn join(&mut self, kind: Namespace, namespace: impl AsFd) -> &mut Self {
        match self.duplicate(namespace) {
            Some(fd) => self.joined.insert(kind, Join::Fd(fd)),
            None => None,
        };
        self
    }

    /// Joins an existing namespace by the path of its file: `/proc/PID/ns/…` or where it is
    /// bind-mounted.
    ///
    /// With a joined mount namespace, [`root`](Self::root) and mounts are made in it: for everybody
    /// who is in it, with paths as they are seen there.
    pub fn join_path(&mut self, kind: Namespace, path: impl AsRef<Path>) -> &mut Self {
        self.joined
            .insert(kind, Join::Path(path.as_ref().to_owned()));
        self
    }

    /// Starts the program where another process is: in all its namespaces that are not those of
    /// this process already, and with its root directory. `process` is a pidfd, as a [`Child`], a
    /// [`Process`](crate::Process) or a [`Starting`] lends one. This is what `docker exec` does.
    ///
    /// A kind that is [new](Self::unshare) or [joined](Self::join) is not taken from the process.
    /// In its user namespace the program is root unless [`uid`](Self::uid) says otherwise. Of a
    /// process that waits at [`Barrier::Mounted`](crate::Barrier::Mounted) the root directory still
    /// is the old one, so that a program of the host can be run among the new mounts.
    ///
    /// The namespaces are entered in one system call. Linux 5.8.
    #[doc(alias = "setns")]
    #[doc(alias = "nsenter")]
    pub fn enter(&mut self, process: impl AsFd) -> &mut Self {
        self.entered = self.duplicate(process);
        self
    }

    /// Puts a tiny init between this process and the program: it waits for every process that
    /// loses its parent, passes the signals that processes send it on to the program, and ends when
    /// the program does, with its status, or with 128 and the number of the signal that ended it.
    ///
    /// In a new pid namespace it is PID 1, and everything in the namespace ends with it; the
    /// program, which is PID 2 then, needs to know nothing about orphans and default actions of
    /// signals. Elsewhere it is what `PR_SET_CHILD_SUBREAPER` of `prctl(2)` makes. [`Child`] and
    /// [`Starting`] are about the init.
    ///
    /// The init has users, capabilities and limits of the program. It is a copy of this process
    /// that closes all descriptors, shows other arguments and cannot be looked into; see
    /// [`protect_own_executable`](crate::protect_own_executable) for what it is executed from.
    /// A seccomp filter that is installed without [`no_new_privs`](Self::no_new_privs) is over the
    /// init, too, and must allow it to wait, to signal and to end.
    #[doc(alias = "PR_SET_CHILD_SUBREAPER")]
    #[doc(alias = "tini")]
    pub fn init(&mut self, init: bool) -> &mut Self {
        self.init = init;
        self
    }

    /// Gives the program a new user namespace with these ids. The program is root in it unless
    /// [`uid`](Self::uid) says otherwise.
    pub fn user_namespace(&mut self, mapping: UserMapping) -> &mut Self {
        self.user_mapping = Some(mapping);
        self.unshare([Namespace::User])
    }

    /// Brings `lo` up in the network namespace.
    #[doc(alias = "IFF_UP")]
    pub fn loopback_up(&mut self, up: bool) -> &mut Self {
        self.loopback_up = up;
        self
    }

    /// The new `/`, a directory or a detached mount. The old root is gone for the program.
    /// Needs [`Namespace::Mount`].
    #[doc(alias = "pivot_root")]
    pub fn root(&mut self, root: impl Into<Root>) -> &mut Self {
        self.root = Some(root.into());
        self
    }

    /// Whether the root itself is read-only; mounts in it are not touched.
    pub fn root_read_only(&mut self, read_only: bool) -> &mut Self {
        self.root_read_only = read_only;
        self
    }

    /// Whether the root and everything that is mounted in it are read-only from the start, before
    /// any mount is made in it: targets must exist then. Needs Linux 5.12.
    pub fn root_tree_read_only(&mut self, read_only: bool) -> &mut Self {
        self.root_tree_read_only = read_only;
        self
    }

    /// The propagation of the mounts of a new mount namespace; private by default.
    #[doc(alias = "rootfsPropagation")]
    pub fn root_propagation(&mut self, propagation: Propagation) -> &mut Self {
        self.root_propagation = propagation;
        self
    }

    /// Adds a mount, after those added before. Needs [`Namespace::Mount`].
    pub fn mount(&mut self, mount: Mount) -> &mut Self {
        self.mounts.push(mount);
        self
    }

    /// Adds mounts in order, for instance [`Mount::standard`].
    pub fn mounts(&mut self, mounts: impl IntoIterator<Item = Mount>) -> &mut Self {
        self.mounts.extend(mounts);
        self
    }

    /// Hides these paths of the new root after all mounts are made: a file behind `/dev/null`, a
    /// directory behind an empty read-only tmpfs. What does not exist is skipped.
    pub fn masked_paths(&mut self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> &mut Self {
        self.masked
            .extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Makes these paths of the new root read-only after all mounts are made. What does not exist
    /// is skipped.
    pub fn read_only_paths(
        &mut self,
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
    ) -> &mut Self {
        self.read_only
            .extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// The hostname; needs [`Namespace::Uts`]. At most 64 bytes.
    #[doc(alias = "sethostname")]
    pub fn hostname(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.hostname = Some(name.as_ref().to_owned());
        self
    }

    /// The NIS domain name; needs [`Namespace::Uts`]. At most 64 bytes.
    #[doc(alias = "setdomainname")]
    pub fn domainname(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.domainname = Some(name.as_ref().to_owned());
        self
    }

    /// The user id, as seen inside the user namespace.
    pub fn uid(&mut self, uid: u32) -> &mut Self {
        self.uid = Some(uid);
        self
    }

    /// The group id, as seen inside the user namespace.
    pub fn gid(&mut self, gid: u32) -> &mut Self {
        self.gid = Some(gid);
        self
    }

    /// The supplementary groups. When not given, a change of the user id or a new user namespace
    /// drops them all where that is allowed.
    #[doc(alias = "setgroups")]
    pub fn groups(&mut self, groups: impl IntoIterator<Item = u32>) -> &mut Self {
        self.groups = Some(groups.into_iter().collect());
        self
    }

    /// The capability sets. When not given, those of this process stay, and root of a new user
    /// namespace has all.
    pub fn capabilities(&mut self, capabilities: Capabilities) -> &mut Self {
        self.capabilities = Some(capabilities);
        self
    }

    /// Whether `execve` never gives privileges: set-user-id bits and file capabilities are
    /// without effect. Off by default.
    #[doc(alias = "PR_SET_NO_NEW_PRIVS")]
    pub fn no_new_privs(&mut self, on: bool) -> &mut Self {
        self.no_new_privs = on;
        self
    }

    /// Sets a resource limit.
    #[doc(alias = "setrlimit")]
    pub fn rlimit(&mut self, resource: Resource, limit: Limit) -> &mut Self {
        self.rlimits.insert(resource, limit);
        self
    }

    /// The file mode creation mask; this process's own by default.
    pub fn umask(&mut self, mask: u32) -> &mut Self {
        self.umask = Some(mask);
        self
    }

    /// A seccomp filter: the bytes of an array of `struct sock_filter`, as libseccomp's
    /// `seccomp_export_bpf` writes them, see `seccomp(2)`. It must allow `execve` and `write`.
    ///
    /// With [`no_new_privs`](Self::no_new_privs) it is installed last. Without, it needs
    /// `CAP_SYS_ADMIN`, and is installed before users and capabilities change: it must then allow
    /// the calls that do so. With a [listener](Self::seccomp_listener) it is installed before the
    /// barrier [`Ready`](crate::Barrier::Ready), because the program may need answers at once.
    #[doc(alias = "SECCOMP_SET_MODE_FILTER")]
    pub fn seccomp(&mut self, program: impl Into<Vec<u8>>) -> &mut Self {
        self.seccomp = Some(program.into());
        self
    }

    /// Flags of the seccomp filter: `SECCOMP_FILTER_FLAG_…` of `seccomp(2)`, such as 2 for
    /// `LOG` and 4 for `SPEC_ALLOW`.
    pub fn seccomp_flags(&mut self, flags: u32) -> &mut Self {
        self.seccomp_flags = flags;
        self
    }

    /// Whether the filter's notifications are wanted: their fd can be
    /// [taken](Starting::take_seccomp_listener) at the barrier [`Ready`](crate::Barrier::Ready), or
    /// comes with the [`Child`](Child::seccomp_listener). The filter must allow `sendmsg`,
    /// `sendto`, `read` and `rt_sigaction`, which are called before `execve`. Linux 5.0.
    #[doc(alias = "SECCOMP_FILTER_FLAG_NEW_LISTENER")]
    pub fn seccomp_listener(&mut self, wanted: bool) -> &mut Self {
        self.seccomp_listener = wanted;
        self
    }

    /// How far the monotonic and the boot-time clock of a new [`Namespace::Time`] are ahead of
    /// the caller's.
    #[doc(alias = "timens_offsets")]
    pub fn time_offsets(&mut self, monotonic: TimeOffset, boottime: TimeOffset) -> &mut Self {
        self.time_offsets = [Some(monotonic), Some(boottime)];
        self
    }

    /// Makes device nodes after all mounts are made.
    pub fn devices(&mut self, devices: impl IntoIterator<Item = Device>) -> &mut Self {
        self.devices.extend(devices);
        self
    }

    /// Makes a symbolic link at `path` of the new root that leads to `target`, after all mounts are
    /// made. What is there already stays. Needs [`Namespace::Mount`].
    #[doc(alias = "symlink")]
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &mut Self {
        self.links
            .push((path.as_ref().to_owned(), target.as_ref().to_owned()));
        self
    }

    /// Sets a kernel parameter of the new namespaces, such as `net.ipv4.ip_forward`. Slashes
    /// separate where a name has dots in it.
    ///
    /// It is written through a `/proc` that nobody else sees, whatever is mounted there
    /// (CVE-2019-16884).
    #[doc(alias = "/proc/sys")]
    pub fn sysctl(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.sysctls
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Gives the program a new session with a new terminal of this size, in place of the three
    /// streams. Its other end comes with the [`Child`](Child::terminal).
    ///
    /// The terminal belongs to the devpts of the new root, which must be mounted on `/dev/pts`;
    /// there it also is `/dev/console`.
    #[doc(alias = "pty")]
    #[doc(alias = "openpty")]
    pub fn terminal(&mut self, size: TerminalSize) -> &mut Self {
        self.terminal = Some(size);
        self
    }

    /// A last barrier that outlives this process: right before it executes the program, the
    /// process waits until it can read a byte from `fd`. It ends when it reads the end instead.
    ///
    /// With a FIFO opened for reading *and* writing, so that it has no end, whoever may write to
    /// it can let the program run. See [`Starting::leave`].
    pub fn exec_gate(&mut self, fd: impl AsFd) -> &mut Self {
        self.gate = self.duplicate(fd);
        self
    }

    /// How likely the program is to be killed when memory is short: -1000 (never) to 1000.
    /// Lowering it needs `CAP_SYS_RESOURCE`.
    pub fn oom_score_adj(&mut self, score: i16) -> &mut Self {
        self.oom_score_adj = Some(score);
        self
    }

    /// The scheduling policy.
    #[doc(alias = "sched_setattr")]
    pub fn scheduler(&mut self, scheduler: Scheduler) -> &mut Self {
        self.scheduler = Some(scheduler);
        self
    }

    /// The `SCHED_FLAG_…` bits that go with [`scheduler`](Self::scheduler), without which they mean
    /// nothing: 1 is the default policy for children, 2 is for deadline tasks to take time that
    /// others leave. See `sched_setattr(2)`.
    #[doc(alias = "SCHED_FLAG_RESET_ON_FORK")]
    pub fn scheduler_flags(&mut self, flags: u64) -> &mut Self {
        self.scheduler_flags = flags;
        self
    }

    /// The nice value, -20 (first) to 19.
    #[doc(alias = "setpriority")]
    pub fn nice(&mut self, nice: i8) -> &mut Self {
        self.nice = Some(nice);
        self
    }

    /// The I/O priority.
    #[doc(alias = "ioprio_set")]
    pub fn io_priority(&mut self, priority: IoPriority) -> &mut Self {
        self.io_priority = Some(priority);
        self
    }

    /// The CPUs on which it may run, by number from 0; up to 1023.
    #[doc(alias = "sched_setaffinity")]
    pub fn cpu_affinity(&mut self, cpus: impl IntoIterator<Item = u32>) -> &mut Self {
        self.cpu_affinity = Some(cpus.into_iter().collect());
        self
    }

    /// The NUMA memory policy.
    #[doc(alias = "set_mempolicy")]
    pub fn memory_policy(&mut self, policy: MemoryPolicy) -> &mut Self {
        self.memory_policy = Some(policy);
        self
    }

    /// The execution domain, such as 8 for `PER_LINUX32`, see `personality(2)`.
    pub fn personality(&mut self, persona: u32) -> &mut Self {
        self.personality = Some(persona);
        self
    }

    /// Gives the program a new session keyring of this name, see `session-keyring(7)`.
    #[doc(alias = "KEYCTL_JOIN_SESSION_KEYRING")]
    pub fn session_keyring(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.session_keyring = Some(name.as_ref().to_owned());
        self
    }

    /// The label of a security module that the program runs under.
    #[doc(alias = "selinux")]
    #[doc(alias = "apparmor")]
    pub fn security_label(&mut self, label: SecurityLabel) -> &mut Self {
        self.security_label = Some(label);
        self
    }

    /// The cgroup in which the process is born: an fd of its directory.
    ///
    /// With cgroup v2 and Linux 5.7 the process never is anywhere else; otherwise it is moved
    /// there before it passes its first barrier.
    #[doc(alias = "CLONE_INTO_CGROUP")]
    pub fn cgroup(&mut self, directory: impl AsFd) -> &mut Self {
        self.cgroup = self.duplicate(directory);
        self
    }

    /// Whether the program leads a new session, without controlling terminal. Off by default.
    #[doc(alias = "setsid")]
    pub fn new_session(&mut self, new: bool) -> &mut Self {
        self.new_session = new;
        self
    }

    /// Whether the program is killed when the *thread* that started it ends.
    ///
    /// The kernel forgets this when the program executes a set-user-id file or changes its user.
    #[doc(alias = "PR_SET_PDEATHSIG")]
    pub fn die_with_parent(&mut self, die: bool) -> &mut Self {
        self.die_with_parent = die;
        self
    }

    /// Whether dropping the [`Child`] kills and reaps it. Off by default, as in std.
    pub fn kill_on_drop(&mut self, kill: bool) -> &mut Self {
        self.kill_on_drop = kill;
        self
    }

    /// Makes the process with its namespaces and id maps, and leaves it waiting.
    ///
    /// The caller can now act on it by its pid: attach it to a cgroup, move network devices.
    /// Then [`Starting::exec`] lets it run; dropping [`Starting`] kills it.
    ///
    /// # Errors
    ///
    /// When settings contradict each other, when the process cannot be made, or when a step
    /// before its first barrier failed. Nothing is left of it then.
    pub fn start(&mut self) -> Result<Starting, Error> {
        crate::starting::start(self)
    }

    /// Starts the program and returns once it is executed.
    ///
    /// # Errors
    ///
    /// When any step up to and including `execve` failed; the error names the step. Nothing is
    /// left of the process then.
    pub fn spawn(&mut self) -> Result<Child, Error> {
        crate::starting::spawn(self)
    }

    /// Starts the program and waits for it.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn status(&mut self) -> Result<std::process::ExitStatus, Error> {
        self.spawn()?.wait()
    }

    /// Starts the program, collects its output and waits for it. Streams that were not set are
    /// piped, as in std; the standard input is `/dev/null` then.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), and when its output cannot be read.
    pub fn output(&mut self) -> Result<std::process::Output, Error> {
        self.stdin.get_or_insert_with(Stdio::null);
        self.stdout.get_or_insert_with(Stdio::piped);
        self.stderr.get_or_insert_with(Stdio::piped);
        self.spawn()?.wait_with_output()
    }

    fn duplicate(&mut self, fd: impl AsFd) -> Option<OwnedFd> {
        match fd.as_fd().try_clone_to_owned() {
            Ok(fd) => Some(fd),
            Err(source) => {
                self.defer(source);
                None
            }
        }
    }

    fn defer(&mut self, source: io::Error) {
        self.deferred.get_or_insert(Error::Io {
            operation: "duplicate a file descriptor",
            path: None,
            source,
        });
    }
}
