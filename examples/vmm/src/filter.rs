//! Which system calls a thread of a jailed machine may make: those of its work. Any other ends the
//! process.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::error::Error;

/// System call numbers of x86-64, by their names in `asm/unistd_64.h`.
mod call {
    macro_rules! calls {
        ($($name:ident $number:literal)*) => { $(pub(super) const $name: i64 = $number;)* };
    }
    calls! {
        READ 0 WRITE 1 CLOSE 3 FSTAT 5 POLL 7 LSEEK 8 MMAP 9 MPROTECT 10 MUNMAP 11 BRK 12
        RT_SIGACTION 13 RT_SIGPROCMASK 14 RT_SIGRETURN 15 IOCTL 16 PREAD64 17 PWRITE64 18 READV 19
        WRITEV 20 SCHED_YIELD 24 MREMAP 25 MINCORE 27 MADVISE 28 NANOSLEEP 35 GETPID 39 SOCKET 41
        CONNECT 42 ACCEPT 43 SENDTO 44 RECVFROM 45 SHUTDOWN 48 SETSOCKOPT 54 CLONE 56 EXIT 60
        FCNTL 72 FSYNC 74 FDATASYNC 75 SIGALTSTACK 131 PRCTL 157 GETTID 186 FUTEX 202
        SCHED_GETAFFINITY 204 TIMER_CREATE 222 TIMER_SETTIME 223 TIMER_DELETE 226 CLOCK_GETTIME 228
        CLOCK_NANOSLEEP 230 EXIT_GROUP 231 TGKILL 234 PPOLL 271 SET_ROBUST_LIST 273 FALLOCATE 285
        ACCEPT4 288 EVENTFD2 290 SECCOMP 317 GETRANDOM 318 STATX 332 RESTART_SYSCALL 219 RSEQ 334
        CLONE3 435 UNLINK 87
    }
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Runs a vCPU.
    Processor,
    /// Serves a virtio device.
    Device,
    /// Waits for what happens, and answers the control socket.
    Main,
}

/// What every thread needs to allocate, to wait for others, to be interrupted, and to end.
const COMMON: [i64; 24] = [
    call::READ,
    call::WRITE,
    call::CLOSE,
    call::MMAP,
    call::MPROTECT,
    call::MUNMAP,
    call::MREMAP,
    call::BRK,
    call::RT_SIGACTION,
    call::RT_SIGPROCMASK,
    call::RT_SIGRETURN,
    call::SCHED_YIELD,
    call::MADVISE,
    call::GETPID,
    call::GETTID,
    call::FUTEX,
    call::EXIT,
    call::EXIT_GROUP,
    call::SIGALTSTACK,
    call::CLOCK_GETTIME,
    call::CLOCK_NANOSLEEP,
    call::TGKILL,
    call::RESTART_SYSCALL,
    call::RSEQ,
];

impl Work {
    fn calls(self) -> &'static [i64] {
        match self {
            Self::Processor => &[
                call::IOCTL,
                call::TIMER_CREATE,
                call::TIMER_SETTIME,
                call::TIMER_DELETE,
            ],
            Self::Device => &[
                call::POLL,
                call::PPOLL,
                call::LSEEK,
                call::READV,
                call::WRITEV,
                call::PREAD64,
                call::PWRITE64,
                call::FDATASYNC,
                call::FALLOCATE,
                call::GETRANDOM,
                call::SOCKET,
                call::CONNECT,
                call::ACCEPT,
                call::ACCEPT4,
                call::SENDTO,
                call::RECVFROM,
                call::SHUTDOWN,
                call::FCNTL,
                // To set a socket to not block.
                call::IOCTL,
            ],
            Self::Main => &[
                call::IOCTL,
                call::POLL,
                call::PPOLL,
                call::LSEEK,
                call::FSTAT,
                call::STATX,
                call::MINCORE,
                call::FCNTL,
                call::SENDTO,
                call::RECVFROM,
                call::CLONE,
                call::CLONE3,
                call::SET_ROBUST_LIST,
                call::SCHED_GETAFFINITY,
                call::PRCTL,
                call::SECCOMP,
                call::GETRANDOM,
                call::NANOSLEEP,
                call::FSYNC,
                call::EVENTFD2,
                call::SETSOCKOPT,
                call::UNLINK,
            ],
        }
    }

    fn program(self) -> Result<BpfProgram, seccompiler::Error> {
        let rules: BTreeMap<i64, Vec<_>> = COMMON
            .iter()
            .chain(self.calls())
            .map(|number| (*number, Vec::new()))
            .collect();
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )?;
        Ok(filter.try_into()?)
    }

    /// Holds the calling thread, and those that it starts, to this work.
    pub(crate) fn hold(self) -> Result<(), Error> {
        self.program()
            .and_then(|program| seccompiler::apply_filter(&program))
            .map_err(|e| Error::Jail {
                what: format!("cannot filter system calls: {e}"),
            })
    }
}
