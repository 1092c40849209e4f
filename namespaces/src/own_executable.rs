//! Keeping a container's processes from writing to the program that started them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals,
    fstatvfs, memfd_create, open,
};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::Error;
use crate::sys::{self, MountAttr};

const OWN: &str = "/proc/self/exe";
const MOUNT_ATTR_RDONLY: u64 = 1;

/// Sees to it that this process runs from an executable that nobody can write to through
/// `/proc/PID/exe`: where that is not so already, the program is executed again, with the same
/// arguments and environment, from a read-only mount of the same file that is attached nowhere
/// (Linux 5.12, `CAP_SYS_ADMIN`), or else from a sealed copy in memory, see `memfd_create(2)`.
///
/// A program that starts containers as root calls this first in `main`. Without it a malicious
/// image whose command is `/proc/self/exe` can get hold of the program's file on the host, and
/// overwrite it when the program has ended (CVE-2019-5736).
///
/// # Errors
///
/// When the program can neither be opened, mounted, copied nor executed. It has not been changed,
/// and no container should be started.
#[doc(alias = "CVE-2019-5736")]
#[doc(alias = "memfd_create")]
pub fn protect_own_executable() -> Result<(), Error> {
    let own = open(OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("open the own executable"))?;
    if is_protected(&own).map_err(failed("examine the own executable"))? {
        return Ok(());
    }
    let protected = match read_only_mount(&own) {
        Ok(mount) => mount,
        Err(_) => sealed_copy().map_err(failed("copy the own executable to memory"))?,
    };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(format!("/proc/self/fd/{}", protected.as_raw_fd()));
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(failed("execute the own executable again")(
        again.args(arguments).exec(),
    ))
}

fn is_protected(own: &OwnedFd) -> io::Result<bool> {
    // A memfd is on a mount of the kernel's that cannot be remounted; sealed, it cannot be written.
    if let Ok(readable) = File::open(OWN)
        && fcntl_get_seals(&readable).is_ok_and(|seals| seals.contains(SealFlags::WRITE))
    {
        return Ok(true);
    }
    Ok(fstatvfs(own)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn read_only_mount(own: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(own, c"", flags)?;
    let read_only = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_fd(), false, &read_only)?;
    Ok(mount)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 on may be told to refuse a memfd that does not say whether it is executed.
    let copy = memfd_create(c"cofferdam", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create(c"cofferdam", flags))?;
    let mut copy = File::from(copy);
    io::copy(&mut File::open(OWN)?, &mut copy)?;
    fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    // Executing needs a descriptor that nobody has open for writing.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Io {
        operation,
        path: Some(OWN.into()),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_sealed_copy_is_the_program_and_cannot_be_written() {
        let copy = sealed_copy().unwrap();
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(OWN).unwrap());
        let refused = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"x"));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(fcntl_add_seals(&copy, SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    #[ignore = "needs root"]
    fn a_read_only_mount_is_the_program_and_cannot_be_written() {
        let own = open(OWN, OFlags::PATH, Mode::empty()).unwrap();
        let mount = read_only_mount(&own).unwrap();
        assert!(is_protected(&mount).unwrap());
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(OWN).unwrap());
    }
}
