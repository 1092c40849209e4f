//! The only unsafe code of this crate.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;

/// Makes the child write itself into these `cgroup.procs` files between `fork` and `exec`.
pub(crate) fn enter_before_exec(command: &mut Command, files: Vec<OwnedFd>) {
    let enter = move || {
        for file in &files {
            // "0" is whoever writes.
            rustix::io::write(file, b"0").map_err(io::Error::from)?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child of a process that may have other threads, so it must
    // be async-signal-safe. It only iterates over memory that was allocated before the fork and
    // makes write(2) calls; the errors are plain numbers (`io::Error::from_raw_os_error`), which
    // neither allocate nor lock.
    unsafe {
        command.pre_exec(enter);
    }
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// A part of `union bpf_attr`: plain numbers without padding, in which pointers are `u64`.
///
/// # Safety
///
/// Every pointer in an implementation that is passed to [`bpf`] must be valid for what the
/// command does with it, for the time of the call.
unsafe trait BpfAttributes {}

#[repr(C)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}
// SAFETY: only made in `load_device_program`, where both pointers outlive the call.
unsafe impl BpfAttributes for LoadAttributes {}

#[repr(C)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}
// SAFETY: it holds no pointer.
unsafe impl BpfAttributes for AttachAttributes {}

#[repr(C)]
struct IdAttributes {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}
// SAFETY: it holds no pointer.
unsafe impl BpfAttributes for IdAttributes {}

#[repr(C)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}
// SAFETY: only made in `program_name`, with a pointer to a buffer of `info_len` bytes.
unsafe impl BpfAttributes for InfoAttributes {}

#[repr(C)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}
// SAFETY: only made in `device_programs`, with a pointer to a buffer of `prog_cnt` numbers.
unsafe impl BpfAttributes for QueryAttributes {}

fn bpf<T: BpfAttributes>(command: libc::c_long, attributes: &mut T) -> Result<i32, Errno> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is exclusively borrowed memory of `size` initialised bytes, of which
    // the kernel reads all and writes none beyond; what its pointers lead to is valid by the
    // contract of `BpfAttributes`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    // The call gives a descriptor, 0 or -1.
    i32::try_from(result)
        .ok()
        .filter(|&result| result >= 0)
        .ok_or_else(last_error)
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the callers pass what a successful bpf(2) call has just returned, a new descriptor
    // that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // Never negative.
    fd.as_raw_fd().cast_unsigned()
}

/// `BPF_PROG_LOAD` of a `BPF_PROG_TYPE_CGROUP_DEVICE` program. Linux 4.15.
pub(crate) fn load_device_program(instructions: &[u64], name: [u8; 16]) -> Result<OwnedFd, Errno> {
    let license = c"Dual MIT/GPL";
    let mut attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: name,
    };
    bpf(BPF_PROG_LOAD, &mut attributes).map(owned)
}

/// `BPF_PROG_ATTACH`, in the place of `previous` if there is one. Linux 5.6.
pub(crate) fn attach_device_program(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    previous: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attributes = AttachAttributes {
        target_fd: number(group),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | previous.map_or(0, |_| BPF_F_REPLACE),
        replace_bpf_fd: previous.map_or(0, number),
    };
    bpf(BPF_PROG_ATTACH, &mut attributes).map(drop)
}

/// `BPF_PROG_DETACH`. Linux 4.15.
pub(crate) fn detach_device_program(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut attributes = AttachAttributes {
        target_fd: number(group),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attributes).map(drop)
}

/// `BPF_PROG_QUERY`: the ids of the device programs that are attached to the group itself, in the
/// order in which they were.
pub(crate) fn device_programs(group: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    // The kernel admits 64 in one group.
    let mut ids = vec![0_u32; 64];
    let mut attributes = QueryAttributes {
        target_fd: number(group),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.prog_cnt as usize);
    Ok(ids)
}

/// `BPF_PROG_GET_FD_BY_ID`. Linux 4.13.
pub(crate) fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = IdAttributes {
        prog_id: id,
        next_id: 0,
        open_flags: 0,
    };
    bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes).map(owned)
}

/// The name in `BPF_OBJ_GET_INFO_BY_FD`'s `struct bpf_prog_info`.
pub(crate) fn program_name(program: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    const NAME_AT: usize = 64;
    const SIZE: usize = 80;
    // Numbers, so that the buffer is aligned as the struct is.
    let mut info = [0_u64; SIZE / 8];
    let mut attributes = InfoAttributes {
        bpf_fd: number(program),
        info_len: 80,
        info: info.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let mut name = [0; 16];
    for (chunk, word) in name.chunks_exact_mut(8).zip(&info[NAME_AT / 8..]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ok(name)
}
