//! What the child does: one operation of the plan after the other.
//!
//! The child is a copy of one thread of a process that may have many. Whatever the others held at
//! that moment, it holds forever: the allocator's lock, a mutex of the standard library. So the
//! code here and in the modules that it calls does nothing but system calls on what the plan has
//! ready. It does not allocate, lock, or panic, and it never returns.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::devices;
use crate::execute_process::{
    become_root, close_fds, enter_directory, join, limit_bounding, new_time, place_fds,
    set_ambient, set_gid, set_uid, set_umask,
};
use crate::execute_program::{execute, find_program};
use crate::fallback::Taken;
use crate::filesystem;
use crate::init;
use crate::inside::{Make, make_link, open_target};
use crate::new_root;
use crate::plan::{Op, Plan};
use crate::private_proc::write_proc;
use crate::protocol::{Call, Failure, Record, passed, until};
use crate::sys::{self, PlanFd};
use crate::{Barrier, DeviceKind};

/// The status of a child that could not execute the program. The parent knows more from the
/// record; this is for a parent that is gone.
const FAILED: i32 = 125;

const NOT_EXECUTABLE: i32 = 126;

const NOT_FOUND: i32 = 127;

/// What changes while the plan is executed.
pub(crate) struct State {
    /// The mount that is or will be `/`.
    pub(crate) root: Option<OwnedFd>,
    /// How far the parent lets the child run.
    until: u8,
    /// The namespaces that were not joined yet for lack of rights.
    pub(crate) put_off: u32,
    /// The file mode mask of the caller.
    pub(crate) umask: Option<Mode>,
    /// The working directory could not be entered as this user.
    directory_put_off: bool,
    /// The slave of the new terminal.
    terminal: Option<OwnedFd>,
    handlers_cleared: bool,
    pub(crate) memory_lent: bool,
    /// The second-best ways that were taken.
    pub(crate) taken: Taken,
}

impl State {
    fn waiting(&self, at: u8) -> Record {
        Record::Waiting {
            at,
            fallbacks: self.taken.all(),
        }
    }
}

/// How the child was cloned.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Circumstances {
    /// The signal handlers of the parent are gone already.
    pub(crate) handlers_cleared: bool,
    /// The parent sleeps until the program is executed: there is nobody to wait for.
    pub(crate) parent_sleeps: bool,
    /// The child runs in the memory of its parent.
    pub(crate) memory_lent: bool,
}

/// Runs the plan in the child.
pub(crate) fn run(plan: &Plan, circumstances: Circumstances) -> ! {
    let mut state = State {
        root: None,
        until: if circumstances.parent_sleeps {
            until::EXEC
        } else {
            0
        },
        put_off: 0,
        umask: None,
        directory_put_off: false,
        terminal: None,
        handlers_cleared: circumstances.handlers_cleared,
        memory_lent: circumstances.memory_lent,
        taken: Taken::default(),
    };
    for (step, op) in (0_u32..).zip(&plan.ops) {
        if let Err(failure) = perform(plan, op, &mut state) {
            fail(plan, step, failure);
        }
    }
    sys::exit(FAILED)
}

fn fail(plan: &Plan, step: u32, failure: Failure) -> ! {
    let exec = failure.call == Call::Execve;
    let file_exists = exec
        && plan.programs.iter().any(|program| {
            rustix::fs::access(program.as_c_str(), rustix::fs::Access::EXISTS).is_ok()
        });
    // When the parent is gone nobody is told; the exit status remains.
    let _ = tell(
        plan,
        Record::Failed {
            step,
            failure,
            file_exists,
        },
    );
    sys::exit(match failure.errno {
        Errno::NOENT | Errno::NOTDIR if exec => NOT_FOUND,
        _ if exec => NOT_EXECUTABLE,
        _ => FAILED,
    })
}

fn tell(plan: &Plan, record: Record) -> Result<(), Failure> {
    // A record is shorter than what a socket takes at once.
    let record = record.encode();
    let channel = plan.channel.in_child();
    match rustix::net::send(channel, &record, rustix::net::SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(errno @ (Errno::PIPE | Errno::CONNRESET)) => Err(Failure::of(Call::Sendto)(errno)),
        // A seccomp filter of the caller's, which is sure to allow the more common call.
        Err(_) => rustix::io::write(channel, &record)
            .map(drop)
            .map_err(Failure::of(Call::Write)),
    }
}

/// Waits for the parent's next word. The child ends silently when the parent is gone: there is
/// nobody left who wanted it.
fn listen(plan: &Plan, state: &mut State) -> Result<(), Failure> {
    let mut word = [0_u8];
    loop {
        match rustix::io::read(plan.channel.in_child(), &mut word) {
            Ok(0) => sys::exit(FAILED),
            Ok(_) => {
                let [until] = word;
                state.until = until;
                return Ok(());
            }
            Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure {
                    call: Call::Read,
                    errno,
                });
            }
        }
    }
}

fn perform(plan: &Plan, op: &Op, state: &mut State) -> Result<(), Failure> {
    match op {
        Op::CloseFds(ranges) => close_fds(ranges, &state.taken),
        Op::HideMemory => {
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
                .map_err(Failure::of(Call::Prctl))
        }
        Op::Join { fd, kind, when } => join(state, *fd, *kind, *when),
        Op::Enter { process, flags } => {
            sys::setns(process.in_child(), *flags).map_err(Failure::of(Call::Setns))
        }
        Op::EnterRoot(root) => new_root::change_root(root.in_child()),
        Op::ChangeRoot => new_root::change_root(root(state)?),
        Op::OpenRoot(path) => {
            state.root = Some(filesystem::open_source(
                path,
                rustix::fs::OFlags::DIRECTORY,
            )?);
            Ok(())
        }
        Op::CloneAgain { namespaces, cgroup } => {
            let cgroup = cgroup.as_ref().map(PlanFd::in_child);
            match sys::clone_sibling(*namespaces, cgroup) {
                Ok(0) => Ok(()),
                Ok(pid) => {
                    tell(plan, Record::Cloned { pid })?;
                    sys::exit(0)
                }
                Err(errno) => Err(Failure {
                    call: Call::Clone,
                    errno,
                }),
            }
        }
        Op::Created if state.until > 0 => Ok(()),
        Op::Created => listen(plan, state),
        Op::Pause(barrier) => {
            let number = match barrier {
                Barrier::Mounted => until::MOUNTED,
                Barrier::Ready => until::READY,
            };
            if state.until > number {
                return Ok(());
            }
            tell(plan, state.waiting(number))?;
            listen(plan, state)
        }
        Op::Unshare(kind) => sys::unshare(kind.flag()).map_err(Failure::of(Call::Unshare)),
        Op::NewTime { offsets } => new_time(offsets.as_deref(), state),
        Op::BecomeRoot { tolerant } => match become_root() {
            Err(failure) if *tolerant && failure.errno == Errno::INVAL => Ok(()),
            result => result,
        },
        Op::LoopbackUp => {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
            let socket = socket_with(
                AddressFamily::INET,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(Failure::of(Call::Socket))?;
            sys::loopback_up(socket.as_fd()).map_err(Failure::of(Call::Ioctl))
        }
        Op::Hostname(name) => {
            rustix::system::sethostname(name.as_bytes()).map_err(Failure::of(Call::Sethostname))
        }
        Op::Domainname(name) => {
            rustix::system::setdomainname(name.as_bytes()).map_err(Failure::of(Call::Setdomainname))
        }
        Op::Propagate { flag } | Op::RootPropagation { flag } => {
            sys::mount(None, c"/", None, flag | libc::MS_REC, None)
                .map_err(Failure::of(Call::Mount))
        }
        Op::AttachRootPath(path) => {
            state.root = Some(new_root::attach_root_path(path, &state.taken)?);
            Ok(())
        }
        Op::AttachRootMount(fd) => {
            state.root = Some(new_root::attach_root_mount(fd.in_child())?);
            Ok(())
        }
        Op::StayInRoot => {
            state.root = Some(new_root::open_root()?);
            Ok(())
        }
        Op::MountFilesystem {
            kind,
            name,
            options,
            data,
            attributes,
            or_bind,
            copy_up,
            target,
            propagation,
        } => filesystem::mount_new(
            root(state)?,
            &filesystem::NewFilesystem {
                kind,
                name,
                options,
                data,
                or_bind: or_bind.as_deref(),
                copy_up: *copy_up,
            },
            attributes,
            target,
            *propagation,
            &state.taken,
        ),
        Op::MountBind {
            source,
            recursive,
            attributes,
            target,
            propagation,
        } => filesystem::mount_bind(
            root(state)?,
            (source, *recursive),
            attributes,
            target,
            *propagation,
            &state.taken,
        ),
        Op::MountDetached {
            fd,
            attributes,
            target,
            propagation,
        } => filesystem::mount_detached(
            root(state)?,
            fd.in_child(),
            attributes,
            target,
            *propagation,
            &state.taken,
        ),
        Op::ChangeMount {
            options,
            attributes,
            target,
            propagation,
        } => filesystem::change_mount(
            root(state)?,
            options,
            attributes,
            target,
            *propagation,
            &state.taken,
        ),
        Op::FillDev { target, nodes } => {
            devices::fill_dev(root(state)?, target, *nodes, &state.taken)
        }
        Op::Link { target, to } => make_link(root(state)?, target, to),
        Op::ReadOnlyMount(path) => filesystem::read_only_mount(root(state)?, path, &state.taken),
        Op::Mask(path) => filesystem::mask(root(state)?, path, &state.taken),
        Op::ReadOnlyPath(path) => filesystem::read_only_path(root(state)?, path, &state.taken),
        Op::ReadOnlyRoot { recursive } => {
            new_root::read_only_root(root(state)?, *recursive, &state.taken)
        }
        Op::PivotRoot => new_root::pivot_root(root(state)?),
        Op::NewSession => rustix::process::setsid()
            .map(drop)
            .map_err(Failure::of(Call::Setsid)),
        Op::Rlimit(resource, limit) => {
            rustix::process::setrlimit(*resource, *limit).map_err(Failure::of(Call::Setrlimit))
        }
        Op::Umask(mask) => {
            set_umask(state, *mask);
            Ok(())
        }
        Op::CreateDirectory(target) => open_target(root(state)?, target, Make::Directory).map(drop),
        Op::EnterDirectory { path, again } => match enter_directory(path) {
            Err(failure) if *again && failure.errno == Errno::ACCESS => {
                state.directory_put_off = true;
                Ok(())
            }
            result => result,
        },
        Op::EnterDirectoryAgain(path) if state.directory_put_off => enter_directory(path),
        Op::EnterDirectoryAgain(_) => Ok(()),
        Op::LimitBounding(dropped) => limit_bounding(dropped),
        Op::KeepCapabilities => {
            rustix::thread::set_keep_capabilities(true).map_err(Failure::of(Call::Prctl))
        }
        Op::Groups { groups, implied } => match rustix::thread::set_thread_groups(groups) {
            Err(Errno::PERM) if *implied => Ok(()),
            result => result.map_err(Failure::of(Call::Setgroups)),
        },
        Op::Gid(gid) => set_gid(*gid),
        Op::Uid(uid) => set_uid(*uid),
        Op::Capabilities { sets, ambient } => {
            rustix::thread::set_capabilities(None, *sets).map_err(Failure::of(Call::Capset))?;
            set_ambient(ambient)
        }
        Op::PlaceFds(placed) => place_fds(placed),
        Op::DieWithParent => die_with_parent(plan),
        Op::NoNewPrivs => rustix::thread::set_no_new_privs(true).map_err(Failure::of(Call::Prctl)),
        Op::ResetSignals => {
            sys::reset_signal_handlers(state.handlers_cleared)
                .map_err(Failure::of(Call::Sigaction))?;
            // From here on only the filter and execve are left to fail; the parent takes the
            // end of the socket for success. One that left at the gate is not told.
            let fallbacks = state.taken.all();
            let _ = tell(plan, Record::Executing { fallbacks });
            Ok(())
        }
        Op::Seccomp {
            program,
            flags,
            listener,
        } => match sys::seccomp(program, *flags, *listener) {
            Ok(None) => Ok(()),
            Ok(Some(fd)) => pass(plan, passed::LISTENER, fd.as_fd()),
            Err(errno) => Err(Failure::of(Call::Seccomp)(errno)),
        },
        Op::Terminal { size, console, uid } => {
            let size = (size.rows, size.columns);
            let (master, slave) =
                devices::make_terminal(root(state)?, console, size, *uid, &state.taken)?;
            state.terminal = Some(slave);
            pass(plan, passed::TERMINAL, master.as_fd())
        }
        Op::TakeTerminal => {
            let terminal = state.terminal.as_ref().ok_or(Failure {
                call: Call::Ioctl,
                errno: Errno::NOTTY,
            })?;
            sys::set_controlling_terminal(terminal.as_fd()).map_err(Failure::of(Call::Ioctl))?;
            (0..3).try_for_each(|number| {
                sys::dup_to(terminal.as_fd(), number).map_err(Failure::of(Call::Dup3))
            })
        }
        Op::Device {
            target,
            outside,
            kind,
            number,
            mode,
            owner,
            nodes,
        } => devices::make_node(
            root(state)?,
            target,
            &devices::Node {
                outside,
                kind: match kind {
                    DeviceKind::Character => rustix::fs::FileType::CharacterDevice,
                    DeviceKind::Block => rustix::fs::FileType::BlockDevice,
                    DeviceKind::Fifo => rustix::fs::FileType::Fifo,
                },
                number: *number,
                mode: *mode,
                owner: *owner,
                nodes: *nodes,
            },
            &state.taken,
        ),
        Op::WriteProc { path, value, .. } => write_proc(path, value, &state.taken),
        Op::Scheduler(attr) => sys::sched_setattr(attr).map_err(Failure::of(Call::SchedSetattr)),
        Op::Nice(nice) => rustix::process::setpriority_process(None, *nice)
            .map_err(Failure::of(Call::Setpriority)),
        Op::IoPriority(priority) => {
            sys::ioprio_set(*priority).map_err(Failure::of(Call::IoprioSet))
        }
        Op::Affinity(cpus) => {
            sys::sched_setaffinity(cpus).map_err(Failure::of(Call::SchedSetaffinity))
        }
        Op::MemoryPolicy { mode, nodes } => {
            sys::set_mempolicy(*mode, nodes).map_err(Failure::of(Call::SetMempolicy))
        }
        Op::Personality(persona) => {
            sys::personality(*persona).map_err(Failure::of(Call::Personality))
        }
        Op::Keyring(name) => sys::join_session_keyring(name).map_err(Failure::of(Call::Keyctl)),
        Op::Gate(fd) => gate(plan, state, fd.in_child()),
        Op::Init {
            subreaper,
            arguments,
        } => init::go_on_below(*subreaper, arguments),
        Op::Exec => Err(Failure {
            call: Call::Execve,
            errno: execute(plan),
        }),
    }
}

fn root(state: &State) -> Result<BorrowedFd<'_>, Failure> {
    // Every plan attaches the root before it uses it.
    state.root.as_ref().map(AsFd::as_fd).ok_or(Failure {
        call: Call::Openat,
        errno: Errno::BADF,
    })
}

fn die_with_parent(plan: &Plan) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Failure::of(Call::Prctl))?;
    // The parent may have ended just before; then its end of the socket is closed.
    let mut byte = [0_u8];
    match rustix::net::recv(
        plan.channel.in_child(),
        &mut byte,
        rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT,
    ) {
        Ok((0, _)) => sys::exit(FAILED),
        _ => Ok(()),
    }
}

/// Passes a descriptor to the parent.
fn pass(plan: &Plan, what: u8, fd: BorrowedFd<'_>) -> Result<(), Failure> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let record = Record::Passed { what }.encode();
    sendmsg(
        plan.channel.in_child(),
        &[IoSlice::new(&record)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
    .map_err(Failure::of(Call::Sendmsg))
}

/// Waits until somebody lets the process through. The parent may leave meanwhile.
fn gate(plan: &Plan, state: &State, fd: BorrowedFd<'_>) -> Result<(), Failure> {
    if state.until <= until::GATE {
        // The parent is about to leave: what can be told now is told now.
        find_program(plan)?;
        tell(plan, state.waiting(until::GATE))?;
    }
    let mut byte = [0_u8];
    loop {
        match rustix::io::read(fd, &mut byte) {
            Ok(0) => sys::exit(FAILED),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::of(Call::Read)(errno)),
        }
    }
}
