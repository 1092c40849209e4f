//! The system calls that neither std nor rustix offers, one thin function each, and the one place
//! where a process is cloned.
//!
//! Everything here may run in the cloned child, so nothing here allocates, locks or panics. Calls
//! go through `libc::syscall`, which does no more than set `errno` of the calling thread.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::{Errno, Result};

use crate::execute::{self, Circumstances};
use crate::plan::Plan;

/// Turns the result of `libc::syscall` into a `Result`.
fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result < 0 {
        // An `io::Error` made from `errno` holds just the number.
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}

/// The number of a file descriptor that a plan names.
///
/// The plan is compiled and the child cloned while the [`Command`](crate::Command) that owns the
/// descriptor is borrowed; from then on the child has a copy of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanFd(RawFd);

impl PlanFd {
    pub(crate) fn of(fd: &impl AsFd) -> Self {
        Self(fd.as_fd().as_raw_fd())
    }

    pub(crate) fn number(self) -> RawFd {
        self.0
    }

    /// To be called in the child only.
    pub(crate) fn in_child(&self) -> BorrowedFd<'_> {
        // SAFETY: the number was valid in the parent when the child was cloned (see the type),
        // and the child, which is the only one to call this, closes none of the plan's.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

/// Strings as `execve` takes them.
#[derive(Debug)]
pub(crate) struct CStringArray {
    /// Into `_strings`, and a null pointer at the end.
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        // The heap buffers to which these point stay where they are when `strings` moves, and
        // `strings` is never changed.
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            pointers,
            _strings: strings,
        }
    }
}

// SAFETY: the pointers lead to the value's own, never changing heap buffers.
unsafe impl Send for CStringArray {}

// SAFETY: as for Send; nothing is changed through a shared reference.
unsafe impl Sync for CStringArray {}

const CLONE_PIDFD: u32 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The `struct clone_args` of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The parent's view of a process that was cloned.
pub(crate) struct Cloned {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// Whether it was born in the cgroup.
    pub(crate) in_cgroup: bool,
    /// By `clone`, because there is no `clone3`.
    pub(crate) classic: bool,
}

/// Clones a process that runs `plan` and nothing else.
///
/// The child is a copy of this process with the calling thread only. Other threads may have held
/// locks, that of the allocator among them, which is why the child never leaves
/// [`crate::execute::run`].
pub(crate) fn clone_child(
    plan: &Plan,
    namespaces: u32,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned> {
    // A handler of this process must not run in the child: it could do anything.
    let mask = SignalMask::block_all()?;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: u64::from(namespaces | CLONE_PIDFD) | CLONE_CLEAR_SIGHAND,
        pidfd: ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        ..CloneArgs::default()
    };
    let mut handlers_cleared = true;
    let mut in_cgroup = false;
    let mut result = Err(Errno::NOSYS);
    if let Some(cgroup) = cgroup {
        let flags = args.flags;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
        result = clone3(&args);
        in_cgroup = result.is_ok();
        if result.is_err() {
            // A v1 directory, a kernel before 5.7, or a refusal: the caller moves the process
            // and reports what is wrong with the cgroup, if anything is.
            args.flags = flags;
            args.cgroup = 0;
        }
    }
    if result.is_err() {
        result = clone3(&args);
    }
    if matches!(result, Err(Errno::NOSYS | Errno::PERM)) {
        // Seccomp filters of older container engines know clone, not clone3.
        handlers_cleared = false;
        result = clone(
            u64::from(namespaces | CLONE_PIDFD | libc::SIGCHLD.unsigned_abs()),
            &mut pidfd,
        );
    }
    match result {
        Ok(0) => execute::run(
            plan,
            Circumstances {
                handlers_cleared,
                parent_sleeps: false,
            },
        ),
        Ok(pid) => {
            drop(mask);
            // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned {
                pid,
                pidfd,
                in_cgroup,
                classic: !handlers_cleared,
            })
        }
        Err(errno) => Err(errno),
    }
}

/// A stack for a child, with a page below it that nobody can touch.
struct Stack {
    bottom: *mut libc::c_void,
}

impl Stack {
    /// What the deepest operation takes is about a tenth of this.
    const SIZE: usize = 256 * 1024;
    const GUARD: usize = 64 * 1024;

    fn new() -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let bottom = unsafe { libc::mmap(ptr::null_mut(), Self::SIZE, protection, flags, -1, 0) };
        if bottom == libc::MAP_FAILED {
            return Err(Errno::NOMEM);
        }
        let stack = Self { bottom };
        // SAFETY: the pages are part of the mapping above, and nothing is in them yet.
        let result = unsafe { libc::mprotect(bottom, Self::GUARD, libc::PROT_NONE) };
        check(result.into())?;
        Ok(stack)
    }

    fn top(&self) -> *mut libc::c_void {
        self.bottom.wrapping_byte_add(Self::SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and the child that ran on it has its own
        // memory or has ended when the value is dropped.
        unsafe {
            libc::munmap(self.bottom, Self::SIZE);
        }
    }
}

extern "C" fn run_in_shared_memory(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone_sharing` passes a pointer to a plan that lives until the child has executed
    // or ended, because the parent sleeps that long.
    let plan = unsafe { &*plan.cast_const().cast::<Plan>() };
    execute::run(
        plan,
        Circumstances {
            handlers_cleared: false,
            parent_sleeps: true,
        },
    )
}

/// Clones a process that runs `plan` in this process's memory, on a stack of its own, and returns
/// when it has executed the program or ended (`CLONE_VM | CLONE_VFORK`). No page table is copied,
/// so it takes as long for a large parent as for a small one.
///
/// The plan must be one that [`may_share_memory`](Plan::may_share_memory).
pub(crate) fn clone_sharing(plan: &Plan, namespaces: u32) -> Result<Cloned> {
    let mask = SignalMask::block_all()?;
    let stack = Stack::new()?;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::SIGCHLD
        | (CLONE_PIDFD | namespaces).cast_signed();
    // SAFETY: the stack is a mapping of its own that outlives the child's use of it: this thread
    // sleeps until the child has left our memory. In it the child runs nothing but the executor,
    // which allocates nothing, takes no lock and writes to its own stack and to `errno` of this
    // sleeping thread only. Signals are blocked in both, so no handler runs in the child.
    let pid = unsafe {
        libc::clone(
            run_in_shared_memory,
            stack.top(),
            flags,
            ptr::from_ref(plan).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let pid = u32::try_from(check(pid.into())?).unwrap_or(0);
    drop(mask);
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned {
        pid,
        pidfd,
        in_cgroup: false,
        classic: false,
    })
}

/// Clones again in the child, after it joined namespaces. Returns 0 in the new process, which is
/// a child of this process's parent.
pub(crate) fn clone_sibling(namespaces: u32, cgroup: Option<BorrowedFd<'_>>) -> Result<u32> {
    let mut args = CloneArgs {
        flags: u64::from(namespaces) | CLONE_PARENT,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        let flags = args.flags;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
        if let Ok(pid) = clone3(&args) {
            return Ok(pid);
        }
        args.flags = flags;
        args.cgroup = 0;
    }
    match clone3(&args) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut unused = -1;
            clone(u64::from(namespaces) | CLONE_PARENT, &mut unused)
        }
        result => result,
    }
}

/// Clones in the child, as `fork` does: returns 0 in the new process.
pub(crate) fn clone_below() -> Result<u32> {
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        ..CloneArgs::default()
    };
    match clone3(&args) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut unused = -1;
            clone(args.exit_signal, &mut unused)
        }
        result => result,
    }
}

/// Waits for any signal, all of which are blocked. Its number, and whether a process sent it; the
/// others come from the kernel.
pub(crate) fn wait_for_signal() -> Result<(i32, bool)> {
    let all = u64::MAX;
    // SAFETY: all zeros is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers lead to a living integer of the size given and a living siginfo; there
    // need be no time limit.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const all,
            &raw mut info,
            ptr::null::<libc::timespec>(),
            size_of::<u64>(),
        )
    };
    check(result)?;
    Ok((info.si_signo, info.si_code <= 0))
}

/// Writes over the memory of the calling process at `address`, in a child that does not use what is
/// there. Nothing happens where there is no such memory.
pub(crate) fn overwrite_own_memory(address: usize, bytes: &[u8]) {
    let from = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let to = libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: bytes.len(),
    };
    let own = rustix::process::getpid().as_raw_pid();
    // SAFETY: the kernel reads the living slice, and writes where the caller says that nothing is
    // that this process uses; an address that is not mapped is an error.
    unsafe {
        libc::syscall(
            libc::SYS_process_vm_writev,
            own,
            &raw const from,
            1,
            &raw const to,
            1,
            0,
        );
    }
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn kill(process: rustix::process::Pid, signal: i32) {
    // SAFETY: the call takes numbers. When the process has just ended there is nothing to signal.
    unsafe {
        libc::syscall(libc::SYS_kill, process.as_raw_pid(), signal);
    }
}

fn clone3(args: &CloneArgs) -> Result<u32> {
    // SAFETY: `args` is a `clone_args` of the size given, and its pidfd pointer, where set, leads
    // to a living integer. Without CLONE_VM the child gets copies of memory and stack, as with
    // fork; our callers let it run code only that does not depend on other threads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(args),
            size_of::<CloneArgs>(),
        )
    };
    check(result).map(|pid| u32::try_from(pid).unwrap_or(0))
}

fn clone(flags: u64, pidfd: &mut RawFd) -> Result<u32> {
    // SAFETY: as for clone3; the third argument of the system call is the place of the pidfd on
    // every architecture that has CLONE_PIDFD, and the others may be null with these flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            ptr::null::<u8>(),
            ptr::from_mut(pidfd),
            ptr::null::<u8>(),
            ptr::null::<u8>(),
        )
    };
    check(result).map(|pid| u32::try_from(pid).unwrap_or(0))
}

/// The signal mask of this thread as it was; restored on drop.
struct SignalMask(u64);

impl SignalMask {
    fn block_all() -> Result<Self> {
        set_signal_mask(u64::MAX).map(Self)
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // Restoring a mask that the kernel gave us cannot fail.
        let _ = set_signal_mask(self.0);
    }
}

/// Sets the signal mask of this thread, glibc's internal signals included; returns the old one.
pub(crate) fn set_signal_mask(mask: u64) -> Result<u64> {
    let mut old = 0_u64;
    // SAFETY: both pointers lead to living integers of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&mask),
            ptr::from_mut(&mut old),
            size_of::<u64>(),
        )
    };
    check(result).map(|_| old)
}

/// Gives every signal that has a handler its default action, and SIGPIPE too, which Rust programs
/// ignore; other ignored signals stay ignored, as after `execve`.
pub(crate) fn reset_signal_handlers(handlers_cleared: bool) -> Result<()> {
    if !handlers_cleared {
        for signal in 1..=64 {
            // SAFETY: all zeros is a valid sigaction.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer leads to a living sigaction. The call fails for the numbers
            // that glibc keeps for itself, whose handlers execve resets anyway.
            let known = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } == 0;
            if known && action.sa_sigaction != libc::SIG_IGN && action.sa_sigaction != libc::SIG_DFL
            {
                default_action(signal)?;
            }
        }
    }
    default_action(libc::SIGPIPE)
}

pub(crate) fn default_action(signal: i32) -> Result<()> {
    // SAFETY: all zeros is a valid sigaction: SIG_DFL without flags.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer leads to a living sigaction that installs no code.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    check(result.into()).map(drop)
}

pub(crate) fn execve(path: &CStr, args: &CStringArray, env: &CStringArray) -> Errno {
    // SAFETY: the path is a C string and the arrays are null-terminated arrays of C strings, all
    // living across the call.
    unsafe {
        libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr());
    }
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Ends the child at once, without handlers of the parent's copy running.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(status) }
}

pub(crate) fn close_range(first: u32, last: u32, cloexec: bool) -> Result<()> {
    let flags: u32 = if cloexec { 4 } else { 0 };
    // SAFETY: the call takes numbers. That the descriptors are not used afterwards is for the
    // caller to see to: the child keeps those of the plan and owns no others.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(result).map(drop)
}

/// Closes everything, in a child that uses no descriptor any more.
pub(crate) fn close_all() {
    if close_range(0, u32::MAX, false).is_err() {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        for fd in 0..limit.unwrap_or(1 << 20).min(1 << 20) {
            close(fd.try_into().unwrap_or(RawFd::MAX));
        }
    }
}

/// Closes one number; used where `close_range` is missing.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: as for close_range.
    unsafe {
        libc::close(fd);
    }
}

/// Puts a copy of `fd` at `number`, to be kept across `execve`.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: the call takes numbers; what was at `number` is not ours (the plan keeps its own
    // descriptors above every number that it fills).
    let result = unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, 0) };
    check(result).map(drop)
}

/// A copy of `fd` at `floor` or above, closed by `execve`.
pub(crate) fn dup_above(fd: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, floor).map_err(Into::into)
}

/// Whether `number` is open and stays so across `execve`; an error tells that it does not.
pub(crate) fn is_inheritable(number: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers and reads a flag; a number that is not open is `EBADF`.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other(format!(
            "descriptor {number} is this process's own (FD_CLOEXEC), it was not given to it"
        )));
    }
    Ok(())
}

/// `setns` with an nsfs descriptor or a pidfd.
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: u32) -> Result<()> {
    // SAFETY: the call takes numbers; it changes the calling child only.
    let result = unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), kind) };
    check(result).map(drop)
}

pub(crate) fn unshare(namespaces: u32) -> Result<()> {
    // SAFETY: the call takes a number; without CLONE_FILES and CLONE_VM no resource that Rust
    // knows of is concerned.
    let result = unsafe { libc::syscall(libc::SYS_unshare, namespaces) };
    check(result).map(drop)
}

/// The `CLONE_NEW…` bit of the namespace behind `fd`; `ENOTTY` where it is none.
#[doc(alias = "NS_GET_NSTYPE")]
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> Result<u32> {
    const NS_GET_NSTYPE: u32 = 0xb703;
    // SAFETY: this ioctl takes no argument.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), NS_GET_NSTYPE, 0) };
    check(result).map(|kind| u32::try_from(kind).unwrap_or(0))
}

/// The `struct mount_attr` of Linux 5.12.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

/// `mount_setattr` on the mount behind `mount` itself.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attr: &MountAttr,
) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, and `attr` a `mount_attr` of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// `mount(2)` with what rustix leaves out: any flags, and no source or type.
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<()> {
    let pointer = |string: Option<&CStr>| string.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or leads to a C string that lives across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount,
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data),
        )
    };
    check(result).map(drop)
}

/// The current directory, into `buffer`; without the NUL.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Result<&[u8]> {
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let result = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    let length = usize::try_from(check(result)?).unwrap_or(0);
    buffer
        .get(..length.saturating_sub(1))
        .ok_or(Errno::OVERFLOW)
}

/// Brings the interface `lo` up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    const IFF_UP: libc::c_short = 1;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed() as c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the living ifreq.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &raw mut request,
        )
    };
    check(result)?;
    // SAFETY: the call above has filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | IFF_UP;
    // SAFETY: SIOCSIFFLAGS reads name and flags of the living ifreq.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioctl,
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    check(result).map(drop)
}

/// One instruction of classic BPF.
pub(crate) type Instruction = libc::sock_filter;

/// Installs a seccomp filter on the calling thread; with the flag for a listener its descriptor.
pub(crate) fn seccomp(
    program: &[Instruction],
    flags: u32,
    listener: bool,
) -> Result<Option<OwnedFd>> {
    const NEW_LISTENER: u32 = 8;
    let flags = if listener {
        flags | NEW_LISTENER
    } else {
        flags
    };
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` describes the living slice, from which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    let fd = check(result)?;
    if !listener {
        return Ok(None);
    }
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel has just made the descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The `struct sched_attr` of Linux 3.14.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    let attr = SchedAttr {
        // SCHED_ATTR_SIZE_VER0, the size of the struct above.
        size: 48,
        ..*attr
    };
    // SAFETY: the pointer leads to a living `sched_attr` whose size it tells.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    check(result).map(drop)
}

pub(crate) fn ioprio_set(priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: u32 = 1;
    // SAFETY: the call takes numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    check(result).map(drop)
}

/// Restricts the calling thread to the CPUs whose bits are set.
pub(crate) fn sched_setaffinity(cpus: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(cpus),
            cpus.as_ptr(),
        )
    };
    check(result).map(drop)
}

pub(crate) fn set_mempolicy(mode: u32, nodes: &[u64]) -> Result<()> {
    // One more than the highest bit; the kernel takes one off.
    let bits = if nodes.is_empty() {
        0
    } else {
        nodes.len() * 64 + 1
    };
    // SAFETY: the kernel reads as many bits as the slice has, or nothing when there are none.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), bits) };
    check(result).map(drop)
}

pub(crate) fn personality(persona: u32) -> Result<()> {
    // SAFETY: the call takes a number.
    let result = unsafe { libc::syscall(libc::SYS_personality, persona) };
    check(result).map(drop)
}

/// Joins a session keyring of this name, which is made if needed.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<()> {
    // SAFETY: the name is a C string.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )
    };
    check(result).map(drop)
}

/// Makes the terminal the controlling one of the calling session leader.
#[doc(alias = "TIOCSCTTY")]
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the call takes numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_ioctl, terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(result).map(drop)
}

/// A process that ended: how, by the encoding of `wait(2)`, and what it used.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) usage: libc::rusage,
}

/// Reaps the process behind `pidfd`; `None` when it has not ended and `block` is not set. With
/// `changes` that it was stopped or goes on is told, too.
pub(crate) fn wait_pidfd(
    pidfd: BorrowedFd<'_>,
    block: bool,
    changes: bool,
) -> Result<Option<Ended>> {
    let mut options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    if changes {
        options |= libc::WSTOPPED | libc::WCONTINUED;
    }
    // SAFETY: all zeros is a valid siginfo, in which the pid tells that nothing was found.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers lead to a living siginfo and a living rusage.
    let result = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            options,
            &raw mut usage,
        )
    };
    check(result)?;
    // SAFETY: the call fills in this member, or leaves the zero.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: with a pid the call has filled in this member too.
    let status = unsafe { info.si_status() };
    Ok(Some(Ended {
        status: match info.si_code {
            libc::CLD_EXITED => (status & 0xff) << 8,
            libc::CLD_DUMPED => status | 0x80,
            libc::CLD_STOPPED | libc::CLD_TRAPPED => (status & 0xff) << 8 | 0x7f,
            libc::CLD_CONTINUED => 0xffff,
            _ => status,
        },
        usage,
    }))
}

pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers and a null pointer, which stands for "as kill(2) would".
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result)?;
    Ok(())
}
