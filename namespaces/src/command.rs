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

    /// A last barrier that outlives this process: right before it executes the program, the
    /// process waits until it can read a byte from `fd`. It ends when it reads the end instead.
    ///
    /// With a FIFO opened for reading *and* writing, so that it has no end, whoever may write to
    /// it can let the program run. See [`Starting::leave`].
    pub fn exec_gate(&mut self, fd: impl AsFd) -> &mut Self {
        self.gate = self.duplicate(fd);
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

    pub(crate) fn duplicate(&mut self, fd: impl AsFd) -> Option<OwnedFd> {
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
