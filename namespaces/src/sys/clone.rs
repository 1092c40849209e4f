//! Cloning processes: as copies, and into the memory of this one.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use syscalls::Sysno;

use super::{check, set_signal_mask};
use crate::execute::{self, Circumstances};
use crate::plan::Plan;

const CLONE_VM: u32 = 0x100;
const CLONE_VFORK: u32 = 0x4000;
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
    /// What it uses of this process's memory.
    pub(crate) lent: Option<Lent>,
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
                ..Circumstances::default()
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
                lent: None,
            })
        }
        Err(errno) => Err(errno),
    }
}

/// A stack that nobody uses: for who spawns one program after another, making a stack, touching its
/// pages for the first time and taking it away on all processors would be a part of the work.
static SPARE: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());

/// A stack for a child, with a page below it that nobody can touch.
struct Stack {
    bottom: *mut libc::c_void,
}

impl Stack {
    /// What the deepest operation takes is about a tenth of this.
    const SIZE: usize = 256 * 1024;
    const GUARD: usize = 64 * 1024;

    /// The spare one, or a new one.
    fn new() -> Result<Self> {
        let spare = SPARE.swap(ptr::null_mut(), Ordering::Acquire);
        if !spare.is_null() {
            return Ok(Self { bottom: spare });
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let bottom = unsafe { libc::mmap(ptr::null_mut(), Self::SIZE, protection, flags, -1, 0) };
        if bottom == libc::MAP_FAILED {
            return Err(Errno::NOMEM);
        }
        // SAFETY: the pages are part of the mapping above, and nothing is in them yet.
        if unsafe { libc::mprotect(bottom, Self::GUARD, libc::PROT_NONE) } != 0 {
            // SAFETY: the mapping above, which nobody has seen.
            unsafe { libc::munmap(bottom, Self::SIZE) };
            return Err(Errno::NOMEM);
        }
        Ok(Self { bottom })
    }

    fn top(&self) -> *mut libc::c_void {
        self.bottom.wrapping_byte_add(Self::SIZE)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // The child that ran on it has its own memory or has ended: see `Lent`.
        let kept = SPARE.compare_exchange(
            ptr::null_mut(),
            self.bottom,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if kept.is_err() {
            // SAFETY: the mapping is this value's own, and nobody runs on it.
            unsafe {
                libc::munmap(self.bottom, Self::SIZE);
            }
        }
    }
}

/// What a child begins with in the memory of its parent.
struct Start {
    plan: Arc<Plan>,
    circumstances: Circumstances,
}

/// What a child uses of its parent's memory. It is not freed unless by [`Lent::take_back`].
pub(crate) struct Lent(ManuallyDrop<(Stack, Box<Start>)>);

impl fmt::Debug for Lent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Lent")
    }
}

// SAFETY: whoever frees a mapping and a plan need not be the thread that made them; a plan is Send
// and Sync, which `Arc` asks for where it is cloned.
unsafe impl Send for Lent {}

// SAFETY: nothing is done through a shared reference.
unsafe impl Sync for Lent {}

impl Lent {
    /// Frees it if the child has left the memory; for that the other end of `channel`, the child's
    /// and nobody else's, must be closed. Otherwise it stays for good: too much is better than too
    /// little.
    pub(crate) fn take_back(self, channel: BorrowedFd<'_>) {
        let mut ends = [PollFd::from_borrowed_fd(channel, PollFlags::empty())];
        let at_once = rustix::event::Timespec::default();
        let closed = rustix::event::poll(&mut ends, Some(&at_once)).is_ok()
            && ends
                .iter()
                .all(|end| end.revents().contains(PollFlags::HUP));
        if closed {
            // The child never closes its end itself: the kernel does so in `execve` and at its end,
            // and in both cases leaves the memory first.
            drop(ManuallyDrop::into_inner(self.0));
        }
    }
}

extern "C" fn run_in_lent_memory(start: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone_lending` passes a pointer to a `Start` that lives until the child has left
    // the memory, see `Lent`; nothing changes it.
    let start = unsafe { &*start.cast_const().cast::<Start>() };
    execute::run(&start.plan, start.circumstances)
}

/// Clones a process that runs `plan` in this process's memory, on a stack of its own (`CLONE_VM`).
/// No page table is copied, so it takes as long for a large parent as for a small one.
///
/// With `sleep` this returns when the child has executed the program or ended (`CLONE_VFORK`);
/// otherwise while it runs, and what it uses is lent to it.
///
/// The plan must be one that [`may_share_memory`](Plan::may_share_memory).
pub(crate) fn clone_lending(
    plan: &Arc<Plan>,
    namespaces: u32,
    cgroup: Option<BorrowedFd<'_>>,
    sleep: bool,
) -> Result<Cloned> {
    if !sleep && !calls_leave_errno_alone() {
        return Err(Errno::NOSYS);
    }
    let mask = SignalMask::block_all()?;
    let stack = Stack::new()?;
    let mut start = Box::new(Start {
        plan: Arc::clone(plan),
        circumstances: Circumstances {
            handlers_cleared: true,
            parent_sleeps: sleep,
            memory_lent: true,
        },
    });
    let mut pidfd: RawFd = -1;
    let wait = if sleep { CLONE_VFORK } else { 0 };
    let flags = namespaces | CLONE_PIDFD | CLONE_VM | wait;
    let args = CloneArgs {
        flags: u64::from(flags) | CLONE_CLEAR_SIGHAND | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD.unsigned_abs().into(),
        stack: stack.bottom.expose_provenance() as u64,
        stack_size: Stack::SIZE as u64,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd().unsigned_abs().into()),
        ..CloneArgs::default()
    };
    // SAFETY: the stack and what the child is given are its own until it has left our memory: this
    // thread sleeps until then, or `Lent` keeps them. In our memory the child runs nothing but the
    // executor, which allocates nothing, takes no lock, and writes to its own stack only; to
    // `errno`, too, if anything did, but then this thread sleeps (see the check above). Signals are
    // blocked in it, so no handler runs there.
    let mut result = unsafe { clone3_onto_stack(&args, ptr::from_ref(&*start).cast()) };
    let mut classic = false;
    if cgroup.is_none() && matches!(result, Err(Errno::NOSYS | Errno::PERM)) {
        classic = true;
        start.circumstances.handlers_cleared = false;
        // SAFETY: as above.
        let pid = unsafe {
            libc::clone(
                run_in_lent_memory,
                stack.top(),
                (flags | libc::SIGCHLD.unsigned_abs()).cast_signed(),
                ptr::from_ref(&*start).cast_mut().cast(),
                &raw mut pidfd,
            )
        };
        result = u32::try_from(pid).map_err(|_| last_errno());
    }
    drop(mask);
    let pid = result?;
    // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD).
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let lent = (!sleep).then(|| Lent(ManuallyDrop::new((stack, start))));
    Ok(Cloned {
        pid,
        pidfd,
        in_cgroup: cgroup.is_some(),
        classic,
        lent,
    })
}

/// `clone3` whose child goes on in [`run_in_lent_memory`], on the stack that `args` names.
///
/// # Safety
///
/// The child shares this process's memory; `start` must lead to a [`Start`], and that and the stack
/// must live, untouched by others, for as long as it does so.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_onto_stack(args: &CloneArgs, start: *const libc::c_void) -> Result<u32> {
    let result: i64;
    // SAFETY: in the caller the kernel changes rax, rcx and r11 only, and the asm nothing but
    // these. The child begins with a copy of the registers and the new stack, from which it calls
    // a function that does not return.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r8") start,
            in("r9") run_in_lent_memory as extern "C" fn(*mut libc::c_void) -> libc::c_int,
            out("rcx") _,
            out("r11") _,
        );
    }
    pid_or_errno(result)
}

/// As for x86-64.
///
/// # Safety
///
/// As for x86-64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_onto_stack(args: &CloneArgs, start: *const libc::c_void) -> Result<u32> {
    let bits: u64;
    // SAFETY: as for x86-64; the kernel changes x0 only.
    unsafe {
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x9",
            "blr x10",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") ptr::from_ref(args).expose_provenance() as u64 => bits,
            in("x1") size_of::<CloneArgs>(),
            in("x9") start,
            in("x10") run_in_lent_memory as extern "C" fn(*mut libc::c_void) -> libc::c_int,
        );
    }
    pid_or_errno(bits.cast_signed())
}

/// Elsewhere `clone` does it.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3_onto_stack(_: &CloneArgs, _: *const libc::c_void) -> Result<u32> {
    Err(Errno::NOSYS)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn pid_or_errno(result: i64) -> Result<u32> {
    u32::try_from(result).map_err(|_| {
        let errno = i32::try_from(result.unsigned_abs());
        Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))
    })
}

fn last_errno() -> Errno {
    // An `io::Error` made from `errno` holds just the number.
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Whether what makes the executor's system calls leaves `errno` alone. Ours do. Those of rustix
/// do so unless somebody else in the build has switched it over to the C library, by its feature
/// `use-libc` for all.
fn calls_leave_errno_alone() -> bool {
    static ALONE: OnceLock<bool> = OnceLock::new();
    *ALONE.get_or_init(|| {
        // SAFETY: the call takes nothing and gives the place of this thread's `errno`.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the place is this thread's own, and any number is valid there.
        unsafe { errno.write(0) };
        let failed = rustix::fs::openat(CWD, c"", OFlags::PATH, Mode::empty()).is_err();
        failed && io::Error::last_os_error().raw_os_error() == Some(0)
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

fn clone3(args: &CloneArgs) -> Result<u32> {
    // SAFETY: `args` is a `clone_args` of the size given, and its pidfd pointer, where set, leads
    // to a living integer. Without CLONE_VM the child gets copies of memory and stack, as with
    // fork; our callers let it run code only that does not depend on other threads.
    let result = unsafe { syscall!(Sysno::clone3, ptr::from_ref(args), size_of::<CloneArgs>(),) };
    check(result).map(|pid| u32::try_from(pid).unwrap_or(0))
}

fn clone(flags: u64, pidfd: &mut RawFd) -> Result<u32> {
    // SAFETY: as for clone3; the third argument of the system call is the place of the pidfd on
    // every architecture that has CLONE_PIDFD, and the others may be null with these flags.
    let result = unsafe {
        syscall!(
            Sysno::clone,
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
