//! The settings of a [`Command`] that are about the process itself.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use crate::{
    Capabilities, Command, IoPriority, Limit, MemoryPolicy, Resource, Scheduler, SecurityLabel,
    TerminalSize,
};

impl Command {
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
    /// [taken](crate::Starting::take_seccomp_listener) at the barrier
    /// [`Ready`](crate::Barrier::Ready), or comes with the
    /// [`Child`](crate::Child::seccomp_listener). The filter must allow `sendmsg`, `sendto`, `read`
    /// and `rt_sigaction`, which are called before `execve`. Linux 5.0.
    #[doc(alias = "SECCOMP_FILTER_FLAG_NEW_LISTENER")]
    pub fn seccomp_listener(&mut self, wanted: bool) -> &mut Self {
        self.seccomp_listener = wanted;
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

    /// Gives the program a new session with a new terminal of this size, in place of the three
    /// streams. Its other end comes with the [`Child`](crate::Child::terminal).
    ///
    /// The terminal belongs to the devpts of the new root, which must be mounted on `/dev/pts`;
    /// there it also is `/dev/console`.
    #[doc(alias = "pty")]
    #[doc(alias = "openpty")]
    pub fn terminal(&mut self, size: TerminalSize) -> &mut Self {
        self.terminal = Some(size);
        self
    }
}
