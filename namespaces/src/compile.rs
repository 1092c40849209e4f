//! From a [`Command`] to a [`Plan`].

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::command::Join;
use crate::compile_filesystem::filesystem;
use crate::compile_process::{
    environment, process, programs, scheduling, seccomp, session, sysctls, time_offsets,
};
use crate::init::own_arguments;
use crate::plan::{JoinTime, Op, Plan};
use crate::stdio::Kind;
use crate::sys::{self, CStringArray, PlanFd};
use crate::{
    Barrier, Command, Error, IdMap, Mount, Namespace, NamespaceId, Origin, Root, UserMapping,
};

/// A plan with what the parent needs besides.
pub(crate) struct Compiled {
    pub(crate) plan: Plan,
    /// The namespaces that the first `clone` makes.
    pub(crate) clone_flags: u32,
    /// Whether the child clones again after joining.
    pub(crate) two_stages: bool,
    /// Whether the process to run the program has a new user namespace.
    pub(crate) new_user: bool,
    /// The directories of `PATH` when the program was given without a slash.
    pub(crate) searched: Vec<PathBuf>,
    /// The caller's ends of pipes: stdin, stdout, stderr.
    pub(crate) pipes: [Option<OwnedFd>; 3],
    /// Descriptors that must live until the child is cloned, and not longer.
    pub(crate) held: Vec<OwnedFd>,
}

/// Compiles `command`; `channel` is the child's end of the socket.
pub(crate) fn compile(command: &Command, channel: OwnedFd) -> Result<Compiled, Error> {
    check(command)?;
    let mut fds = Fds::new(command, channel)?;
    let mut ops = Vec::new();

    let mut joined = Vec::new();
    let entered = match &command.entered {
        Some(process) => Some(entered(command, process.as_fd(), &mut fds)?),
        None => None,
    };
    let entered_kinds = entered.as_ref().map_or(0, |entered| entered.flags);
    for (kind, join) in &command.joined {
        joined.push((*kind, fds.namespace(*kind, join)?));
    }
    let cgroup = match &command.cgroup {
        Some(fd) => Some(fds.hold(fd.as_fd())?),
        None => None,
    };
    // The cgroup namespace is made where the process is at last; the time namespace must get
    // its offsets before anybody enters it.
    let mut clone_flags = command
        .new
        .iter()
        .filter(|kind| !matches!(kind, Namespace::Cgroup | Namespace::Time))
        .fold(0, |flags, kind| flags | kind.flag());

    let joins_any = !joined.is_empty() || entered.is_some();
    let two_stages = joined
        .iter()
        .any(|(kind, _)| matches!(kind, Namespace::User | Namespace::Pid))
        || entered_kinds & (Namespace::User.flag() | Namespace::Pid.flag()) != 0
        || (joins_any && clone_flags != 0);
    joins(&mut ops, &joined, entered.as_ref());
    if two_stages {
        ops.push(Op::CloneAgain {
            namespaces: clone_flags,
            cgroup,
        });
        clone_flags = 0;
    }
    ops.push(Op::Created);

    let has = |kind| command.new.contains(&kind);
    let new_user = has(Namespace::User);
    let in_user = new_user
        || command.joined.contains_key(&Namespace::User)
        || entered_kinds & Namespace::User.flag() != 0;
    if has(Namespace::Cgroup) {
        ops.push(Op::Unshare(Namespace::Cgroup));
    }
    if has(Namespace::Time) {
        // Before a change of ids, which would make the files of /proc/self root's.
        ops.push(Op::NewTime {
            offsets: time_offsets(command)?,
        });
    }
    if in_user {
        // Id 0 may be unmapped when the caller names another user.
        ops.push(Op::BecomeRoot {
            tolerant: !new_user || command.uid.is_some(),
        });
    }
    scheduling(command, &mut ops)?;
    if let Some(name) = &command.session_keyring {
        ops.push(Op::Keyring(c_string("session keyring", name)?));
    }
    if command.loopback_up {
        ops.push(Op::LoopbackUp);
    }
    if let Some(name) = &command.hostname {
        ops.push(Op::Hostname(c_string("hostname", name)?));
    }
    if let Some(name) = &command.domainname {
        ops.push(Op::Domainname(c_string("domain name", name)?));
    }
    sysctls(command, &mut ops)?;
    filesystem(command, &mut ops, &mut fds, in_user)?;
    process(command, &mut ops, in_user)?;

    let (placed, pipes) = fds.stdio(command)?;
    if !placed.is_empty() {
        ops.push(Op::PlaceFds(placed));
    }
    if command.die_with_parent {
        ops.push(Op::DieWithParent);
    }
    if command.no_new_privs {
        ops.push(Op::NoNewPrivs);
    }
    // The program, and execve itself, may need answers: whoever gives them has the listener before.
    let early = command.seccomp_listener;
    if command.no_new_privs && early {
        seccomp(command, &mut ops)?;
    }
    ops.push(Op::Pause(Barrier::Ready));
    if let Some(gate) = &command.gate {
        ops.push(Op::Gate(fds.hold(gate.as_fd())?));
    }
    if command.init {
        ops.push(Op::Init {
            subreaper: !has(Namespace::Pid),
            arguments: own_arguments(),
        });
        session(command, &mut ops);
    }
    ops.push(Op::ResetSignals);
    if command.no_new_privs && !early {
        seccomp(command, &mut ops)?;
    }
    ops.push(Op::Exec);
    ops.insert(0, Op::CloseFds(fds.ranges_to_close()));

    let env = environment(command)?;
    let (programs, searched) = programs(command)?;
    let mut args = vec![c_string(
        "argument",
        command.arg0.as_ref().unwrap_or(&command.program),
    )?];
    for arg in &command.args {
        args.push(c_string("argument", arg)?);
    }
    Ok(Compiled {
        plan: Plan {
            ops,
            channel: fds.channel,
            programs,
            args: CStringArray::new(args),
            env: CStringArray::new(env),
            changes_users: changes_users(command),
        },
        clone_flags,
        two_stages,
        new_user,
        searched,
        pipes,
        held: fds.held,
    })
}

/// Whether the process becomes a user or a group that, seen by the caller, is not the caller's own.
fn changes_users(command: &Command) -> bool {
    let new = command.new.contains(&Namespace::User);
    if !new && command.uid.is_none() && command.gid.is_none() {
        return false;
    }
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let (uids, gids) = match &command.user_mapping {
        _ if !new => (IdMap::identity(), IdMap::identity()),
        Some(UserMapping::Exact { uids, gids }) => (uids.clone(), gids.clone()),
        _ => (IdMap::single(0, uid), IdMap::single(0, gid)),
    };
    let stays = |map: &IdMap, wanted: Option<u32>, own: u32| {
        // Of a new user namespace it becomes root first, if there is one.
        let root = new.then(|| map.to_outside(0)).flatten();
        let last = wanted.map(|id| map.to_outside(id).unwrap_or(u32::MAX));
        root.into_iter().chain(last).all(|id| id == own)
    };
    !stays(&uids, command.uid, uid) || !stays(&gids, command.gid, gid)
}

/// Refuses settings that contradict each other.
fn check(command: &Command) -> Result<(), Error> {
    let new = |kind| command.new.contains(&kind);
    let invalid = |setting, problem| Err(Error::Invalid { setting, problem });
    for kind in command.joined.keys() {
        if new(*kind) {
            return invalid(
                "namespaces",
                "one kind is both joined and new; choose one of the two",
            );
        }
    }
    let own = |kind| new(kind) || command.joined.contains_key(&kind) || command.entered.is_some();
    let joins_mount = command.joined.contains_key(&Namespace::Mount);
    let shares_root = command.root.as_ref().is_some_and(Root::is_shared);
    if shares_root && (new(Namespace::Mount) || joins_mount) {
        return invalid(
            "root",
            "it is a shared one and there is a mount namespace; give one with Root::path",
        );
    }
    if !new(Namespace::Mount) && !joins_mount && !shares_root && command.root.is_some() {
        return invalid(
            "root",
            "it needs a mount namespace; unshare Namespace::Mount, join one, or see Root::shared",
        );
    }
    if !new(Namespace::Mount) && command.root.is_none() {
        if !command.mounts.is_empty() {
            return invalid(
                "mounts",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
        if !command.devices.is_empty() || !command.links.is_empty() {
            return invalid(
                "devices and links",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
        if !command.masked.is_empty() || !command.read_only.is_empty() || command.root_read_only {
            return invalid(
                "masked and read-only paths",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
    }
    let covers_root = |path: &Path| {
        !path
            .components()
            .any(|part| matches!(part, Component::Normal(_)))
    };
    if command
        .mounts
        .iter()
        .map(Mount::target)
        .chain(command.masked.iter().map(PathBuf::as_path))
        .chain(command.read_only.iter().map(PathBuf::as_path))
        .any(covers_root)
    {
        return invalid(
            "mounts",
            "a target is / itself; give what is to be there with Command::root",
        );
    }
    if (command.root_read_only || command.root_tree_read_only) && command.root.is_none() {
        return invalid(
            "read-only root",
            "it needs a new root; give one with Command::root",
        );
    }
    if (command.hostname.is_some() || command.domainname.is_some()) && !own(Namespace::Uts) {
        return invalid(
            "hostname",
            "it would change the caller's; unshare Namespace::Uts",
        );
    }
    if [&command.hostname, &command.domainname]
        .into_iter()
        .flatten()
        .any(|name| name.len() > 64)
    {
        return invalid("hostname", "it is longer than 64 bytes; shorten it");
    }
    if command.time_offsets.iter().any(Option::is_some) && !new(Namespace::Time) {
        return invalid(
            "time offsets",
            "they need a new time namespace; unshare Namespace::Time",
        );
    }
    if command.terminal.is_some()
        && (command.stdin.is_some() || command.stdout.is_some() || command.stderr.is_some())
    {
        return invalid(
            "terminal",
            "it takes the place of the three streams; do not set them too",
        );
    }
    if command.seccomp.is_none() && (command.seccomp_listener || command.seccomp_flags != 0) {
        return invalid(
            "seccomp",
            "flags and listener need a filter; give one with Command::seccomp",
        );
    }
    if command.loopback_up && !own(Namespace::Net) {
        return invalid(
            "loopback",
            "it needs a network namespace; unshare Namespace::Net",
        );
    }
    if command
        .kept
        .iter()
        .any(|number| command.fds.contains_key(number))
    {
        return invalid(
            "file descriptors",
            "one number is both kept and given; choose one of the two",
        );
    }
    if command
        .fds
        .keys()
        .chain(&command.kept)
        .any(|number| *number < 3)
    {
        return invalid(
            "file descriptors",
            "numbers 0, 1 and 2 are set with stdin, stdout and stderr",
        );
    }
    if command.umask.is_some_and(|mask| mask > 0o777) {
        return invalid(
            "umask",
            "it is larger than 0o777; give permission bits only",
        );
    }
    Ok(())
}

/// The file descriptors of a plan: out of the way of the numbers at which the program sees any,
/// and known, so that all others can be closed.
pub(crate) struct Fds {
    /// The first number that the program is not given.
    floor: RawFd,
    channel: PlanFd,
    held: Vec<OwnedFd>,
    kept: Vec<RawFd>,
}

impl Fds {
    fn new(command: &Command, channel: OwnedFd) -> Result<Self, Error> {
        let floor = command
            .fds
            .keys()
            .next_back()
            .into_iter()
            .chain(command.kept.iter().next_back())
            .max()
            .map_or(3, |highest| highest.saturating_add(1));
        let mut fds = Self {
            floor,
            channel: PlanFd::of(&channel),
            held: Vec::new(),
            kept: vec![0, 1, 2],
        };
        for number in &command.kept {
            sys::is_inheritable(*number).map_err(Error::io("keep a file descriptor"))?;
            fds.kept.push(*number);
        }
        fds.channel = fds.take(channel)?;
        Ok(fds)
    }

    /// Plans with a descriptor of the caller.
    pub(crate) fn hold(&mut self, fd: BorrowedFd<'_>) -> Result<PlanFd, Error> {
        let fd =
            sys::dup_above(fd, self.floor).map_err(Error::io("duplicate a file descriptor"))?;
        self.take(fd)
    }

    /// Plans with a descriptor made for the plan.
    fn take(&mut self, fd: OwnedFd) -> Result<PlanFd, Error> {
        let planned = PlanFd::of(&fd);
        if planned.number() < self.floor {
            return self.hold(fd.as_fd());
        }
        self.kept.push(planned.number());
        self.held.push(fd);
        Ok(planned)
    }

    fn namespace(&mut self, kind: Namespace, join: &Join) -> Result<PlanFd, Error> {
        let (fd, origin) = match join {
            Join::Fd(fd) => (self.hold(fd.as_fd())?, Origin::Fd(PlanFd::of(fd).number())),
            Join::Path(path) => {
                let file = std::fs::File::open(path)
                    .map_err(Error::io_path("open the namespace", path))?;
                (self.take(file.into())?, Origin::Path(path.clone()))
            }
        };
        // The descriptor has just been put there.
        let Some(held) = self.held.last() else {
            return Ok(fd);
        };
        let found = match sys::namespace_type(held.as_fd()) {
            Ok(flag) => Namespace::from_flag(flag),
            Err(_) if is_pidfd(held.as_fd()) => Some(kind),
            Err(_) => None,
        };
        if found != Some(kind) {
            return Err(Error::NotThatNamespace {
                wanted: kind,
                origin,
                found,
            });
        }
        Ok(fd)
    }

    /// What goes where before `execve`, and the caller's ends of pipes.
    #[expect(clippy::type_complexity, reason = "one caller takes it apart at once")]
    fn stdio(
        &mut self,
        command: &Command,
    ) -> Result<(Vec<(PlanFd, RawFd)>, [Option<OwnedFd>; 3]), Error> {
        let mut placed = Vec::new();
        let mut pipes = [None, None, None];
        let streams = [&command.stdin, &command.stdout, &command.stderr];
        for ((number, stream), pipe) in (0..).zip(streams).zip(&mut pipes) {
            let fd = match stream.as_ref().map(|stream| &stream.0) {
                None | Some(Kind::Inherit) => continue,
                Some(Kind::Null) => {
                    let null = std::fs::File::options()
                        .read(true)
                        .write(true)
                        .open("/dev/null")
                        .map_err(Error::io_path("open", "/dev/null"))?;
                    self.take(null.into())?
                }
                Some(Kind::Piped) => {
                    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                        .map_err(|errno| Error::io("make a pipe")(errno.into()))?;
                    let (ours, theirs) = if number == 0 {
                        (write, read)
                    } else {
                        (read, write)
                    };
                    *pipe = Some(ours);
                    self.take(theirs)?
                }
                Some(Kind::Fd(fd)) => self.hold(fd.as_fd())?,
            };
            placed.push((fd, number));
        }
        for (number, fd) in &command.fds {
            placed.push((self.hold(fd.as_fd())?, *number));
        }
        Ok((placed, pipes))
    }

    /// All numbers between those of the plan.
    fn ranges_to_close(&self) -> Vec<(u32, u32)> {
        let mut kept: Vec<u32> = self
            .kept
            .iter()
            .filter_map(|fd| u32::try_from(*fd).ok())
            .collect();
        kept.sort_unstable();
        let mut ranges = Vec::new();
        let mut first = 0;
        for fd in kept {
            if fd > first {
                ranges.push((first, fd - 1));
            }
            first = fd + 1;
        }
        ranges.push((first, u32::MAX));
        ranges
    }
}

fn is_pidfd(fd: BorrowedFd<'_>) -> bool {
    // Signal 0 checks without sending; ESRCH is the answer of a pidfd of a process that ended.
    match sys::pidfd_send_signal(fd, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::EBADF),
    }
}

/// The process that is entered.
struct Entered {
    process: PlanFd,
    flags: u32,
    root: Option<PlanFd>,
}

/// What of the process behind the pidfd is not the caller's already.
fn entered(command: &Command, process: BorrowedFd<'_>, fds: &mut Fds) -> Result<Entered, Error> {
    let pid = pid_of(process)?;
    let taken = |kind| command.new.contains(&kind) || command.joined.contains_key(&kind);
    let mut flags = 0;
    for kind in Namespace::ALL {
        if !taken(kind)
            && let Some(own) = NamespaceId::of_this_thread_if_known(kind)?
            && NamespaceId::of_process(pid, kind)? != own
        {
            flags |= kind.flag();
        }
    }
    let path = PathBuf::from(format!("/proc/{pid}/root"));
    let root = rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let root =
        root.map_err(|errno| Error::io_path("open the root directory", path)(errno.into()))?;
    let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let look = Error::io("look at a root directory");
    let (theirs, ours) = match (rustix::fs::fstat(&root), rustix::fs::stat(c"/")) {
        (Ok(theirs), Ok(ours)) => (place(theirs), place(ours)),
        (Err(errno), _) | (_, Err(errno)) => return Err(look(errno.into())),
    };
    let moves = flags & Namespace::Mount.flag() != 0 || theirs != ours;
    // In another mount namespace the directory would not be in a mount of the program's.
    let root = if moves && !taken(Namespace::Mount) {
        Some(fds.take(root)?)
    } else {
        None
    };
    // All the above was of that process only if it still is there.
    pid_of(process)?;
    Ok(Entered {
        process: fds.hold(process)?,
        flags,
        root,
    })
}

/// The pid behind a pidfd, as the caller sees it.
fn pid_of(process: BorrowedFd<'_>) -> Result<u32, Error> {
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text =
        std::fs::read_to_string(&path).map_err(Error::io_path("look at the process of", path))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    match pid.map(|pid| pid.trim().parse::<i64>()) {
        Some(Ok(pid @ 1..)) if is_pidfd(process) => {
            u32::try_from(pid).map_err(|_| Error::Invalid {
                setting: "enter",
                problem: "the kernel gave a pid that is none",
            })
        }
        Some(_) => Err(Error::Invalid {
            setting: "enter",
            problem: "the process has ended, or is not in the pid namespace of this one",
        }),
        None => Err(Error::Invalid {
            setting: "enter",
            problem: "the descriptor is not a pidfd; give a Child, a Process or a Starting",
        }),
    }
}

fn joins(ops: &mut Vec<Op>, joined: &[(Namespace, PlanFd)], entered: Option<&Entered>) {
    if joined.is_empty() && entered.is_none() {
        return;
    }
    ops.push(Op::HideMemory);
    let join = |(kind, fd): &(Namespace, PlanFd), when| Op::Join {
        fd: *fd,
        kind: *kind,
        when,
    };
    let user = joined.iter().find(|(kind, _)| *kind == Namespace::User);
    let others = joined.iter().filter(|(kind, _)| *kind != Namespace::User);
    let enters_user = entered.is_some_and(|entered| entered.flags & Namespace::User.flag() != 0);
    let times: &[JoinTime] = if user.is_some() || enters_user {
        // Other namespaces may be owned by the joined user namespace or by an outer one: try with
        // the caller's rights first, and again with the new ones.
        &[JoinTime::BeforeUser, JoinTime::AfterUser]
    } else {
        &[JoinTime::Now]
    };
    for when in times {
        if *when == JoinTime::AfterUser {
            ops.extend(user.map(|user| join(user, JoinTime::Now)));
            ops.extend(entered.filter(|_| enters_user).and_then(enter));
        }
        ops.extend(others.clone().map(|other| join(other, *when)));
    }
    if let Some(entered) = entered {
        if !enters_user {
            ops.extend(enter(entered));
        }
        ops.extend(entered.root.map(Op::EnterRoot));
    }
}

fn enter(entered: &Entered) -> Option<Op> {
    (entered.flags != 0).then_some(Op::Enter {
        process: entered.process,
        flags: entered.flags,
    })
}

pub(crate) fn c_string(what: &'static str, value: &OsStr) -> Result<CString, Error> {
    CString::new(value.as_bytes()).map_err(|_| Error::NulByte {
        what,
        value: value.to_owned(),
    })
}
