//! Which system calls a thread of a jailed machine may make: those of its work, and of those that do many
//! things only these. Any other ends the process.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::error::Error;

/// System call numbers of x86-64, by their names in `asm/unistd_64.h`.
pub(crate) mod call {
    macro_rules! calls {
        ($($name:ident $number:literal)*) => { $(pub(crate) const $name: i64 = $number;)* };
    }
    calls! {
        READ 0 WRITE 1 CLOSE 3 FSTAT 5 POLL 7 LSEEK 8 MMAP 9 MPROTECT 10 MUNMAP 11 BRK 12
        RT_SIGACTION 13 RT_SIGPROCMASK 14 RT_SIGRETURN 15 IOCTL 16 PREAD64 17 PWRITE64 18 READV 19
        WRITEV 20 SCHED_YIELD 24 MREMAP 25 MINCORE 27 MADVISE 28 NANOSLEEP 35 GETPID 39 SOCKET 41
        CONNECT 42 SENDTO 44 RECVFROM 45 SHUTDOWN 48 SETSOCKOPT 54 EXIT 60 FCNTL 72 FSYNC 74
        FDATASYNC 75 FTRUNCATE 77 SIGALTSTACK 131 GETTID 186 FUTEX 202 GETDENTS64 217
        RESTART_SYSCALL 219 TIMER_CREATE 222 TIMER_SETTIME 223 TIMER_DELETE 226 CLOCK_GETTIME 228
        CLOCK_NANOSLEEP 230 EXIT_GROUP 231 TGKILL 234 OPENAT 257 MKDIRAT 258 NEWFSTATAT 262
        UNLINKAT 263 PPOLL 271 FALLOCATE 285 ACCEPT4 288 PREADV 295 PWRITEV 296 RENAMEAT2 316 GETRANDOM 318
        COPY_FILE_RANGE 326 STATX 332 RSEQ 334
    }
}

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Runs a vCPU.
    Processor,
    /// Runs a vCPU that gdb has.
    #[cfg(feature = "gdb")]
    Debugged,
    /// Serves a virtio device, which needs these beside what all devices do.
    Device(&'static [i64]),
    /// Passes on what comes on standard input.
    Input,
    /// Waits for signals.
    Signals,
    /// Speaks with the clients of the control socket.
    Control,
    /// Waits for what happens, saves snapshots, and ends the machine.
    Main,
}

/// What every thread needs to allocate, to wait for others, to be interrupted (a signal's handler sends
/// through a socket), and to end.
const COMMON: [i64; 30] = [
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
    call::NANOSLEEP,
    call::GETPID,
    call::GETTID,
    call::SENDTO,
    call::FUTEX,
    call::EXIT,
    call::EXIT_GROUP,
    call::SIGALTSTACK,
    call::CLOCK_GETTIME,
    call::CLOCK_NANOSLEEP,
    call::TGKILL,
    call::GETRANDOM,
    call::RESTART_SYSCALL,
    call::RSEQ,
    call::POLL,
    call::PPOLL,
    // Builds for debugging look whether a file descriptor is open before they close it.
    call::FCNTL,
];

const AF_UNIX: u64 = 1;
const PROT_EXEC: u64 = 4;
const F_GETFD: u64 = 1;
const F_GETFL: u64 = 3;
const F_DUPFD_CLOEXEC: u64 = 1030;
/// The second byte of KVM's requests to a device, and the mask for it.
const KVM_REQUESTS: (u64, u64) = (0xae00, 0xff00);
/// TCGETS to TCSETSF, and the same with any speed (TCGETS2 to TCSETSF2): reading and setting a
/// terminal's modes, but not typing into it.
const TERMINAL_MODES: [u64; 8] = [
    0x5401,
    0x5402,
    0x5403,
    0x5404,
    0x802c_542a,
    0x402c_542b,
    0x402c_542c,
    0x402c_542d,
];
const FIONBIO: u64 = 0x5421;
const FICLONE: u64 = 0x4004_9409;

impl Work {
    fn calls(self) -> &'static [i64] {
        match self {
            Self::Processor => &[
                call::IOCTL,
                call::TIMER_CREATE,
                call::TIMER_SETTIME,
                call::TIMER_DELETE,
            ],
            #[cfg(feature = "gdb")]
            Self::Debugged => &[
                call::IOCTL,
                call::TIMER_CREATE,
                call::TIMER_SETTIME,
                call::TIMER_DELETE,
                call::RECVFROM,
                call::SETSOCKOPT,
            ],
            Self::Device(calls) => calls,
            Self::Input => &[],
            Self::Signals => &[call::RECVFROM],
            Self::Control => &[
                call::ACCEPT4,
                call::RECVFROM,
                call::SETSOCKOPT,
                call::SHUTDOWN,
            ],
            Self::Main => &[
                call::IOCTL,
                call::LSEEK,
                call::PREAD64,
                call::PWRITE64,
                call::FSTAT,
                call::STATX,
                call::NEWFSTATAT,
                call::MINCORE,
                call::FSYNC,
                call::FTRUNCATE,
                call::COPY_FILE_RANGE,
                // That of a vCPU that gdb had.
                call::TIMER_DELETE,
                // Snapshots: below the directory that was handed in, there being no other.
                call::OPENAT,
                call::GETDENTS64,
                call::MKDIRAT,
                call::UNLINKAT,
                call::RENAMEAT2,
            ],
        }
    }

    /// What may be asked of a call that does many things; none for the others.
    fn rules(self, number: i64) -> Result<Vec<SeccompRule>, seccompiler::Error> {
        let requests = |values: &[u64]| values.iter().map(|v| (1, Eq, *v)).collect();
        let (mask, kvm) = (MaskedEq(KVM_REQUESTS.1), KVM_REQUESTS.0);
        let conditions: Vec<(u8, _, u64)> = match (number, self) {
            (call::MMAP | call::MPROTECT, _) => vec![(2, MaskedEq(PROT_EXEC), 0)],
            (call::SOCKET, _) => vec![(0, Eq, AF_UNIX)],
            (call::FCNTL, _) => requests(&[F_GETFD, F_GETFL, F_DUPFD_CLOEXEC]),
            (call::IOCTL, Self::Processor) => vec![(1, mask, kvm)],
            #[cfg(feature = "gdb")]
            (call::IOCTL, Self::Debugged) => vec![(1, mask, kvm), (1, Eq, FIONBIO)],
            (call::IOCTL, Self::Main) => {
                let mut all: Vec<_> = requests(&TERMINAL_MODES);
                all.extend([(1, mask, kvm), (1, Eq, FICLONE)]);
                all
            }
            (call::IOCTL, _) => requests(&[FIONBIO]),
            _ => Vec::new(),
        };
        let rule = |(argument, operator, value)| {
            let condition = SeccompCondition::new(argument, Dword, operator, value)?;
            SeccompRule::new(vec![condition])
        };
        let rules: Result<Vec<_>, seccompiler::BackendError> =
            conditions.into_iter().map(rule).collect();
        Ok(rules?)
    }

    fn program(self) -> Result<BpfProgram, seccompiler::Error> {
        let rules: BTreeMap<i64, Vec<_>> = COMMON
            .iter()
            .chain(self.calls())
            .map(|number| Ok((*number, self.rules(*number)?)))
            .collect::<Result<_, seccompiler::Error>>()?;
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
