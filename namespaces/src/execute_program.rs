//! Executing the program. The rules of [`crate::execute`] hold here too.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::plan::Plan;
use crate::protocol::{Call, Failure};
use crate::sys;

/// Fails as `execve` will when there is no program to be executed.
pub(crate) fn find_program(plan: &Plan) -> Result<(), Failure> {
    use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, statat};
    let mut found = Errno::NOENT;
    for program in &plan.programs {
        let program = program.as_c_str();
        let result = statat(CWD, program, AtFlags::empty()).and_then(|stat| {
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Err(Errno::ACCESS);
            }
            accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS)
        });
        match result {
            // A seccomp filter of the program's may refuse to look; execve will tell.
            Ok(()) | Err(Errno::NOSYS | Errno::PERM) => return Ok(()),
            Err(Errno::ACCESS) => found = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(Failure::of(Call::Execve)(found))
}

/// Executes the program; waits a little while it is open for writing. A file that this process
/// has just written may, for a moment, still be open in a process that another thread cloned.
fn execute_when_written(plan: &Plan, program: &CStr) -> Errno {
    let mut pause = rustix::thread::Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    loop {
        let errno = sys::execve(program, &plan.args, &plan.env);
        // A quarter of a second in all.
        if errno != Errno::TXTBSY || pause.tv_nsec > 128_000_000 {
            return errno;
        }
        // An interrupted sleep is a shorter one.
        let _ = rustix::thread::nanosleep(&pause);
        pause.tv_nsec *= 2;
    }
}

pub(crate) fn execute(plan: &Plan) -> Errno {
    // Everything is blocked since before the clone; the program starts with an empty mask.
    if let Err(errno) = sys::set_signal_mask(0) {
        return errno;
    }
    let mut denied = false;
    let mut last = Errno::NOENT;
    for program in &plan.programs {
        last = execute_when_written(plan, program);
        match last {
            Errno::ACCESS => denied = true,
            Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::NODEV | Errno::TIMEDOUT => {}
            errno => return errno,
        }
    }
    if denied { Errno::ACCESS } else { last }
}
