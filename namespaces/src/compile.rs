//! From a [`Command`] to a [`Plan`].

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::compile_check::check;
use crate::compile_fds::Fds;
use crate::compile_filesystem::filesystem;
use crate::compile_joins::{entered, joins};
use crate::compile_process::{
    environment, process, programs, scheduling, seccomp, session, sysctls, time_offsets,
};
use crate::init::own_arguments;
use crate::plan::{Op, Plan};
use crate::sys::CStringArray;
use crate::{Barrier, Command, Error, IdMap, Namespace, UserMapping};

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

pub(crate) fn c_string(what: &'static str, value: &OsStr) -> Result<CString, Error> {
    CString::new(value.as_bytes()).map_err(|_| Error::NulByte {
        what,
        value: value.to_owned(),
    })
}
