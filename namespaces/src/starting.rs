//! A process that is made and has not executed the program yet.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::child::{Child, reap};
use crate::compile::{Compiled, compile};
use crate::plan::Plan;
use crate::protocol::{Call, RECORD, Record, passed, until};
use crate::{Command, Error, Fallbacks, IdMapping, Namespace, StepError, UserMapping, subid, sys};

/// Where a process can be made to wait for its parent between `clone` and `execve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Barrier {
    /// Everything is mounted in the new root; `/` still is the old one. Only reached by a process
    /// with a new mount namespace.
    Mounted,
    /// Everything is done but the seccomp filter and `execve`: `/`, users and capabilities are
    /// the new ones.
    Ready,
}

/// A process that exists in its namespaces and waits; made by [`Command::start`].
///
/// Dropping it kills and reaps the process, and its namespaces and mounts go with it.
#[derive(Debug)]
#[must_use = "dropping it kills the new process"]
pub struct Starting {
    /// Taken when the process has executed the program.
    child: Option<Child>,
    pid: u32,
    channel: UnixStream,
    /// The process runs without waiting for a word.
    running: bool,
    /// What the process uses of this one's memory.
    lent: Option<sys::Lent>,
    /// The number of the last barrier at which the process waited.
    reached: u8,
    plan: Arc<Plan>,
    program: std::ffi::OsString,
    searched: Vec<std::path::PathBuf>,
    id_mapping: Option<IdMapping>,
    kill_on_drop: bool,
    /// Whether the process waits at a gate in the end.
    gated: bool,
}

impl Starting {
    /// The pid as the caller sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The ids of the new user namespace, if one was asked for; also tells when fewer ids than
    /// wanted could be mapped.
    pub fn id_mapping(&self) -> Option<&IdMapping> {
        self.id_mapping.as_ref()
    }

    /// Lets the process run until `barrier`, and returns when it waits there. Nothing happens when
    /// it has got that far already; without the barrier it waits at the next.
    ///
    /// # Errors
    ///
    /// When a step failed; the error names it, and the process is gone.
    pub fn advance(&mut self, barrier: Barrier) -> Result<(), Error> {
        let wanted = match barrier {
            Barrier::Mounted => until::MOUNTED,
            Barrier::Ready => until::READY,
        };
        if self.reached >= wanted {
            return Ok(());
        }
        self.run_until(wanted)
    }

    fn run_until(&mut self, wanted: u8) -> Result<(), Error> {
        self.send(wanted)?;
        match self.receive()? {
            Some(Record::Waiting { at, .. }) => {
                self.reached = at;
                Ok(())
            }
            Some(record) => Err(self.failed(record)),
            None => Err(self.died()),
        }
    }

    /// The second-best ways that have been taken so far.
    pub fn fallbacks(&self) -> Fallbacks {
        self.child
            .as_ref()
            .map_or(Fallbacks::empty(), Child::fallbacks)
    }

    /// Takes the master of the program's terminal, when one was asked for and the process has
    /// got to the barrier [`Mounted`](Barrier::Mounted) or beyond.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.child.as_mut()?.terminal.take()
    }

    /// Takes the fd with the notifications of the seccomp filter, when it was asked for and the
    /// process has got that far: to the barrier [`Ready`](Barrier::Ready). One that is not taken
    /// here comes with the [`Child`].
    pub fn take_seccomp_listener(&mut self) -> Option<OwnedFd> {
        self.child.as_mut()?.seccomp_listener.take()
    }

    /// Lets the process run to its [gate](Command::exec_gate) and returns when it waits there.
    /// It can then outlive this process.
    ///
    /// What goes wrong behind the gate is only told by the exit status: 127 when the program is
    /// not found, 126 when it cannot be executed, 125 for anything else.
    ///
    /// # Errors
    ///
    /// When there is no gate, or a step up to it failed.
    pub fn leave(mut self) -> Result<Child, Error> {
        if !self.gated {
            return Err(Error::Invalid {
                setting: "leave",
                problem: "the process has no gate to wait at; give one with Command::exec_gate",
            });
        }
        self.run_until(until::GATE)?;
        self.into_child()
    }

    /// Lets the process run and execute the program.
    ///
    /// # Errors
    ///
    /// When a step up to and including `execve` failed; the error names it, and the process is
    /// gone. [`Error::NotFound`] and [`Error::NotExecutable`] tell of the program itself.
    pub fn exec(mut self) -> Result<Child, Error> {
        if !self.running {
            self.send(until::EXEC)?;
        }
        let mut executing = false;
        loop {
            match self.receive()? {
                Some(Record::Executing { .. }) => executing = true,
                // At the gate, which somebody else will open.
                Some(Record::Waiting { .. }) => {}
                Some(record) => return Err(self.failed(record)),
                // execve has closed the child's end.
                None if executing => break,
                None => return Err(self.died()),
            }
        }
        self.into_child()
    }

    fn into_child(mut self) -> Result<Child, Error> {
        self.take_back();
        match self.child.take() {
            Some(mut child) => {
                child.set_kill_on_drop(self.kill_on_drop);
                Ok(child)
            }
            None => Err(self.died()),
        }
    }

    fn send(&mut self, word: u8) -> Result<(), Error> {
        match self.channel.write_all(&[word]) {
            Ok(()) => Ok(()),
            // The child has ended; what it said before is still there to be read.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(Error::io("write to the new process")(error)),
        }
    }

    /// The next record that is not about a descriptor; those are kept for the caller.
    fn receive(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let (record, fd) = receive(&self.channel)?;
            let Some(child) = &mut self.child else {
                return Ok(record);
            };
            match record {
                Some(Record::Passed { what }) => match what {
                    passed::TERMINAL => child.terminal = fd,
                    passed::LISTENER => child.seccomp_listener = fd,
                    _ => {}
                },
                Some(Record::Waiting { fallbacks, .. } | Record::Executing { fallbacks }) => {
                    child.add_fallbacks(fallbacks);
                    return Ok(record);
                }
                _ => return Ok(record),
            }
        }
    }

    fn failed(&mut self, record: Record) -> Error {
        let status = self.end();
        match record {
            Record::Failed {
                step,
                failure,
                file_exists,
            } => {
                let index = usize::try_from(step).unwrap_or(usize::MAX);
                let source = io::Error::from(failure.errno);
                let errno = failure.errno.raw_os_error();
                if failure.call == Call::Execve {
                    return self.exec_error(source, file_exists);
                }
                let (step, detail) = self.plan.describe(index);
                Error::Step(StepError {
                    step,
                    detail,
                    target: self.plan.target(index).map(Into::into),
                    operation: failure.call.name(),
                    undone: (0..index).map(|done| self.plan.describe(done).1).collect(),
                    total: self.plan.ops.len(),
                    source,
                    hint: self.plan.hint(index, errno),
                })
            }
            // Out of turn: the child speaks this module's language only.
            Record::Waiting { .. }
            | Record::Passed { .. }
            | Record::Cloned { .. }
            | Record::Executing { .. } => died(status),
        }
    }

    fn exec_error(&self, source: io::Error, file_exists: bool) -> Error {
        let program = self.program.clone();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Error::NotFound {
                program,
                searched: self.searched.clone(),
                interpreter: file_exists,
                source,
            },
            _ => Error::NotExecutable { program, source },
        }
    }

    fn died(&mut self) -> Error {
        died(self.end())
    }

    /// Kills and reaps the process.
    fn end(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        // A process that ended by itself keeps its status.
        let _ = child.kill();
        let status = child.wait().ok();
        self.take_back();
        status
    }

    /// Frees what the process has used of this one's memory.
    fn take_back(&mut self) {
        if let Some(lent) = self.lent.take() {
            lent.take_back(self.channel.as_fd());
        }
    }
}

fn died(status: Option<ExitStatus>) -> Error {
    Error::Died {
        status: status.unwrap_or_default(),
    }
}

/// One record and the descriptor that came with it; no record at the end.
fn receive(channel: &UnixStream) -> Result<(Option<Record>, Option<OwnedFd>), Error> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = [0_u8; RECORD];
    let mut filled = 0;
    let mut fd = None;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(
            channel,
            &mut [IoSliceMut::new(rest)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            // The end, also when the child left our last word unread.
            Ok(received) if received.bytes == 0 => return Ok((None, None)),
            Err(Errno::CONNRESET) => return Ok((None, None)),
            Ok(received) => filled += received.bytes,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("read from the new process")(errno.into())),
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.last().or(fd);
            }
        }
    }
    Ok((Record::decode(bytes), fd))
}

/// The pidfd.
impl AsFd for Starting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.child {
            Some(child) => child.as_fd(),
            None => self.channel.as_fd(),
        }
    }
}

pub(crate) fn start(command: &mut Command) -> Result<Starting, Error> {
    make(command, false)
}

/// Starts the program without a stop on the way.
pub(crate) fn spawn(command: &mut Command) -> Result<Child, Error> {
    make(command, true)?.exec()
}

/// Makes the process; with `run` it may have run already when this returns.
fn make(command: &mut Command, run: bool) -> Result<Starting, Error> {
    if let Some(error) = command.deferred.take() {
        return Err(error);
    }
    let mapping = command
        .user_mapping
        .clone()
        .unwrap_or(UserMapping::CallerAsRoot);
    subid::check(&mapping)?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("make a socket pair"))?;
    let compiled = compile(command, theirs.into())?;
    let cgroup = command.cgroup.as_ref().map(AsFd::as_fd);
    let Compiled {
        plan,
        clone_flags,
        two_stages,
        new_user,
        searched,
        pipes,
        held,
    } = compiled;
    let plan = Arc::new(plan);
    // Writing its OOM score would write that of everybody who shares its memory. And whoever is
    // told to wait may have visitors in its namespaces, who must not find our memory there.
    let lend = run && command.oom_score_adj.is_none() && plan.may_share_memory();
    // Its ids are mapped while it waits.
    let sleep = !new_user;
    let lent = lend.then(|| sys::clone_lending(&plan, clone_flags, cgroup, sleep));
    let (cloned, running) = match lent {
        Some(Ok(cloned)) => (Ok(cloned), sleep),
        // As a copy it may work: a cgroup can be of v1, or a filter know nothing better.
        _ => (
            sys::clone_child(&plan, clone_flags, cgroup.filter(|_| !two_stages)),
            false,
        ),
    };
    let cloned = cloned.map_err(|errno| Error::Clone {
        namespaces: Namespace::ALL
            .into_iter()
            .filter(|kind| clone_flags & kind.flag() != 0)
            .collect(),
        source: errno.into(),
    })?;
    // The child's ends of the socket and of pipes are its own now; ours would keep them open.
    drop(held);
    let mut child = Child::new(cloned.pid, cloned.pidfd, true);
    let [stdin, stdout, stderr] = pipes;
    child.stdin = stdin.map(Into::into);
    child.stdout = stdout.map(Into::into);
    child.stderr = stderr.map(Into::into);
    let mut starting = Starting {
        pid: child.pid(),
        child: Some(child),
        channel: ours,
        reached: 0,
        running,
        lent: cloned.lent,
        plan,
        program: command.program.clone(),
        searched,
        id_mapping: None,
        kill_on_drop: command.kill_on_drop,
        gated: command.gate.is_some(),
    };
    if two_stages {
        starting.second_stage()?;
    }
    let cgroup = cgroup.filter(|_| !cloned.in_cgroup);
    if let Some(child) = &mut starting.child {
        if cloned.classic {
            child.add_fallbacks(Fallbacks::CLONE);
        }
        if cgroup.is_some() && !two_stages {
            child.add_fallbacks(Fallbacks::CGROUP_MOVED);
        }
    }
    let mapping = new_user.then_some(&mapping);
    if let Err(error) = starting.prepare(cgroup, command.oom_score_adj, mapping) {
        // The child may have failed before; then that is what there is to tell.
        starting.end();
        return Err(match starting.receive() {
            Ok(Some(record @ Record::Failed { .. })) => starting.failed(record),
            _ => error,
        });
    }
    Ok(starting)
}

impl Starting {
    /// Does what the process cannot do for itself, while it waits.
    fn prepare(
        &mut self,
        cgroup: Option<BorrowedFd<'_>>,
        oom_score_adj: Option<i16>,
        mapping: Option<&UserMapping>,
    ) -> Result<(), Error> {
        if let Some(cgroup) = cgroup {
            attach(self.pid, cgroup)?;
        }
        if let Some(score) = oom_score_adj {
            let path = format!("/proc/{}/oom_score_adj", self.pid);
            std::fs::write(&path, score.to_string())
                .map_err(Error::io_path("set the OOM score in", path))?;
        }
        if let Some(mapping) = mapping {
            self.id_mapping = Some(subid::write(self.pid, mapping)?);
        }
        Ok(())
    }

    /// Takes over from the process that joined namespaces the one that it cloned inside.
    fn second_stage(&mut self) -> Result<(), Error> {
        let mut failure = None;
        let pid = loop {
            match self.receive()? {
                Some(Record::Cloned { pid }) => break pid,
                // Of the second one, perhaps, before the first has told of it.
                Some(record) if failure.is_none() => failure = Some(record),
                _ => {
                    return Err(match failure {
                        Some(record) => self.failed(record),
                        None => self.died(),
                    });
                }
            }
        };
        // It is our child, so the pid is its own until we reap it.
        let pidfd = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|errno| Error::io("open a pidfd of the new process")(errno.into()))?;
        if let Some(first) = &mut self.child {
            first.replace_process(pid, pidfd)?;
        }
        self.pid = pid;
        match failure {
            Some(record) => Err(self.failed(record)),
            None => Ok(()),
        }
    }
}

/// Moves the process into a cgroup through the directory, for v1 and for kernels before 5.7.
fn attach(pid: u32, cgroup: BorrowedFd<'_>) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let file = rustix::fs::openat(
            cgroup,
            c"cgroup.procs",
            rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        std::fs::File::from(file).write_all(pid.to_string().as_bytes())
    };
    write().map_err(|source| Error::Cgroup { pid, source })
}

impl Child {
    /// Waits for the process that is held so far and holds another instead.
    fn replace_process(&mut self, pid: u32, pidfd: OwnedFd) -> Result<(), Error> {
        while reap(self.as_fd(), true)?.is_none() {}
        self.set_process(pid, pidfd);
        Ok(())
    }
}
