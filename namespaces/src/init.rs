//! The tiny init: what a process does that goes on in a child of its own. The rules of
//! [`crate::execute`] hold here too.

use std::ops::Range;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::protocol::{Call, Failure};
use crate::sys;

/// Where the init ends without a program: as of a program that could not be executed.
const FAILED: i32 = 125;

/// Clones a child, in which this returns; the caller stays behind as its init, and ends with it.
///
/// All signals are blocked, before and afterwards.
pub(crate) fn go_on_below(subreaper: bool, arguments: &Range<usize>) -> Result<(), Failure> {
    if subreaper {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(Failure::of(Call::Prctl))?;
    }
    // Ignoring it would have the kernel reap in our place, and tell nobody.
    sys::default_action(libc::SIGCHLD).map_err(Failure::of(Call::Sigaction))?;
    // The init is a copy of a process of the host: nobody may look into it, or reach its executable
    // (CVE-2019-5736). The program can be looked into again when it is executed.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(Failure::of(Call::Prctl))?;
    let init = rustix::process::getpid();
    match sys::clone_below() {
        Ok(0) => {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(Failure::of(Call::Prctl))?;
            // The init may have ended just before.
            if rustix::process::getppid() == Some(init) {
                Ok(())
            } else {
                sys::exit(FAILED)
            }
        }
        Ok(program) => be_init(program, arguments),
        Err(errno) => Err(Failure::of(Call::Clone)(errno)),
    }
}

fn be_init(program: u32, arguments: &Range<usize>) -> ! {
    // Of these a failure leaves nothing undone for the program.
    sys::close_all();
    let _ = rustix::thread::set_name(c"init");
    forget_arguments(arguments);
    let _ = rustix::process::chdir(c"/");
    let Some(program) = i32::try_from(program).ok().and_then(Pid::from_raw) else {
        sys::exit(FAILED)
    };
    loop {
        reap(program);
        match sys::wait_for_signal() {
            // What a terminal sends, such as SIGINT for Ctrl-C, it sends to the program, too.
            Ok((libc::SIGCHLD, _) | (_, false)) | Err(Errno::INTR) => {}
            // The program may have ended meanwhile; then it is reaped in the next turn.
            Ok((signal, true)) => sys::kill(program, signal),
            Err(_) => sys::exit(FAILED),
        }
    }
}

/// Puts other arguments in the place of the caller's, which may hold what is not for the program.
fn forget_arguments(arguments: &Range<usize>) {
    const CHUNK: usize = 256;
    let mut bytes = [0; CHUNK];
    for (to, from) in bytes.iter_mut().zip(b"init") {
        *to = *from;
    }
    for start in arguments.clone().step_by(CHUNK) {
        let length = arguments.end.saturating_sub(start).min(CHUNK);
        sys::overwrite_own_memory(start, bytes.get(..length).unwrap_or_default());
        bytes = [0; CHUNK];
    }
}

/// Where the arguments of this process are in memory, see `proc_pid_stat(5)`.
pub(crate) fn own_arguments() -> Range<usize> {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let mut fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_ascii_whitespace()
        .skip(45)
        .map(|field| field.parse().unwrap_or(0));
    fields.next().unwrap_or(0)..fields.next().unwrap_or(0)
}

/// Reaps whatever has ended; ends like the program when that has.
fn reap(program: Pid) {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == program => sys::exit(code(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return,
            // It would never know of the program's end.
            Err(_) => sys::exit(FAILED),
        }
    }
}

/// The status that a shell would give.
fn code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(FAILED)
}
