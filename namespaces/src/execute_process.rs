//! What the child does to itself: namespaces, ids, capabilities, descriptors. The rules of
//! [`crate::execute`] hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, RawFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{Gid, Uid};

use crate::execute::State;
use crate::fallback::{Fallbacks, Taken};
use crate::plan::JoinTime;
use crate::private_proc::{open_proc, write_proc};
use crate::protocol::{Call, Failure};
use crate::sys::{self, PlanFd};
use crate::{Capability, Namespace};

pub(crate) fn close_fds(ranges: &[(u32, u32)], taken: &Taken) -> Result<(), Failure> {
    for (first, last) in ranges {
        match sys::close_range(*first, *last, false) {
            Ok(()) => {}
            Err(Errno::NOSYS | Errno::PERM) => {
                taken.note(Fallbacks::CLOSE_ONE_BY_ONE);
                // A seccomp filter that does not know the call. Beyond the soft limit there may
                // be descriptors only if it was lowered after they were opened.
                let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
                    .current
                    .unwrap_or(1 << 20)
                    .min(1 << 20);
                let end = u64::from(*last).saturating_add(1).min(limit);
                for fd in u64::from(*first)..end {
                    // Below 2^20 by the line above.
                    sys::close(fd.try_into().unwrap_or(RawFd::MAX));
                }
            }
            Err(errno) => {
                return Err(Failure {
                    call: Call::CloseRange,
                    errno,
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn join(
    state: &mut State,
    fd: PlanFd,
    kind: Namespace,
    when: JoinTime,
) -> Result<(), Failure> {
    if when == JoinTime::AfterUser && state.put_off & kind.flag() == 0 {
        return Ok(());
    }
    match sys::setns(fd.in_child(), kind.flag()) {
        Err(Errno::PERM) if when == JoinTime::BeforeUser => {
            state.put_off |= kind.flag();
            Ok(())
        }
        result => result.map_err(Failure::of(Call::Setns)),
    }
}

pub(crate) fn new_time(offsets: Option<&CStr>, state: &State) -> Result<(), Failure> {
    let taken = &state.taken;
    sys::unshare(Namespace::Time.flag()).map_err(Failure::of(Call::Unshare))?;
    if let Some(offsets) = offsets {
        write_proc(c"self/timens_offsets", offsets.to_bytes(), taken)?;
    }
    if state.memory_lent {
        // Whoever shares memory cannot enter it; execve does: see `Plan::may_share_memory`.
        return Ok(());
    }
    let link = open_proc(c"self/ns/time_for_children", false, taken)?;
    sys::setns(link.as_fd(), Namespace::Time.flag()).map_err(Failure::of(Call::Setns))
}

pub(crate) fn become_root() -> Result<(), Failure> {
    set_gid(Gid::ROOT)?;
    set_uid(Uid::ROOT)
}

pub(crate) fn set_gid(gid: Gid) -> Result<(), Failure> {
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(Failure::of(Call::Setresgid))
}

pub(crate) fn set_uid(uid: Uid) -> Result<(), Failure> {
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(Failure::of(Call::Setresuid))
}

/// Without a mask: no bit is masked while things are made for the program. With `u32::MAX`: the
/// caller's own mask again.
pub(crate) fn set_umask(state: &mut State, mask: Option<u32>) {
    let new = match mask {
        None => Mode::empty(),
        Some(u32::MAX) => state.umask.unwrap_or(Mode::from_bits_retain(0o022)),
        Some(mask) => Mode::from_bits_retain(mask),
    };
    let old = rustix::process::umask(new);
    if mask.is_none() {
        state.umask = Some(old);
    }
}

pub(crate) fn enter_directory(path: &CStr) -> Result<(), Failure> {
    rustix::process::chdir(path).map_err(Failure::of(Call::Chdir))?;
    // A directory outside the root has a path that begins with "(unreachable)" (CVE-2024-21626).
    let mut buffer = [0_u8; 4096];
    let path = sys::getcwd(&mut buffer).map_err(Failure::of(Call::Getcwd))?;
    if path.first() == Some(&b'/') {
        Ok(())
    } else {
        Err(Failure {
            call: Call::Getcwd,
            errno: Errno::XDEV,
        })
    }
}

fn kernel_set(capability: Capability) -> rustix::thread::CapabilitySet {
    rustix::thread::CapabilitySet::from_bits_retain(1 << capability as u8)
}

pub(crate) fn limit_bounding(dropped: &[Capability]) -> Result<(), Failure> {
    for capability in dropped {
        match rustix::thread::remove_capability_from_bounding_set(kernel_set(*capability)) {
            // A capability newer than the kernel.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => {
                return Err(Failure {
                    call: Call::Prctl,
                    errno,
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn set_ambient(ambient: &[Capability]) -> Result<(), Failure> {
    rustix::thread::clear_ambient_capability_set().map_err(Failure::of(Call::Prctl))?;
    for capability in ambient {
        rustix::thread::configure_capability_in_ambient_set(kernel_set(*capability), true)
            .map_err(Failure::of(Call::Prctl))?;
    }
    Ok(())
}

pub(crate) fn place_fds(placed: &[(PlanFd, RawFd)]) -> Result<(), Failure> {
    for (fd, number) in placed {
        sys::dup_to(fd.in_child(), *number).map_err(Failure::of(Call::Dup3))?;
    }
    Ok(())
}
