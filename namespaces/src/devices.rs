//! Devices and terminals, made by the child: nodes, or binds of the caller's where nodes cannot be
//! made. The rules of [`crate::execute`] hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::attach::{Place, bind};
use crate::fallback::{Fallbacks, Taken};
use crate::filesystem::open_source;
use crate::inside::{Make, O_PATH, make_in, open_inside, open_parent, open_target};
use crate::plan::{Attributes, Target};
use crate::protocol::{Call, Failure, Result};

/// The devices of a minimal `/dev`: name, path outside, major and minor number.
const DEVICES: [(&CStr, &CStr, u32, u32); 6] = [
    (c"null", c"/dev/null", 1, 3),
    (c"zero", c"/dev/zero", 1, 5),
    (c"full", c"/dev/full", 1, 7),
    (c"random", c"/dev/random", 1, 8),
    (c"urandom", c"/dev/urandom", 1, 9),
    (c"tty", c"/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

/// Makes the devices in the file system that was mounted on `target` just before: the path leads
/// to it, and no longer to what was there.
pub(crate) fn fill_dev(
    root: BorrowedFd<'_>,
    target: &Target,
    nodes: bool,
    taken: &Taken,
) -> Result<()> {
    let dev = open_inside(root, &target.path, O_PATH | OFlags::DIRECTORY)
        .map_err(Failure::of(Call::Openat2))?;
    for (name, outside, major, minor) in DEVICES {
        make_device(dev.as_fd(), name, outside, (major, minor), nodes, taken)?;
    }
    for (to, name) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).map_err(Failure::of(Call::Symlinkat))?;
    }
    Ok(())
}

fn make_device(
    dev: BorrowedFd<'_>,
    name: &CStr,
    outside: &CStr,
    (major, minor): (u32, u32),
    node: bool,
    taken: &Taken,
) -> Result<()> {
    let number = rustix::fs::makedev(major, minor);
    if node {
        let mode = Mode::from_bits_retain(0o666);
        match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, number) {
            Ok(()) => return Ok(()),
            // A device cgroup or an outer user namespace.
            Err(Errno::PERM) => {}
            Err(errno) => return Err(Failure::of(Call::Mknodat)(errno)),
        }
    }
    let target = make_in(dev, name, Make::File)?;
    let device = open_device(outside, FileType::CharacterDevice, number)?;
    let place = Place {
        fd: target.as_fd(),
        root: dev,
        path: name,
    };
    bind_device(device.as_fd(), place, taken)
}

fn bind_device(device: BorrowedFd<'_>, place: Place<'_>, taken: &Taken) -> Result<()> {
    taken.note(Fallbacks::BOUND_DEVICES);
    bind(device, false, &Attributes::default(), place, None, taken)
}

/// A node that the caller asks for.
pub(crate) struct Node<'a> {
    pub(crate) outside: &'a CStr,
    pub(crate) kind: FileType,
    pub(crate) number: (u32, u32),
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) nodes: bool,
}

pub(crate) fn make_node(
    root: BorrowedFd<'_>,
    target: &Target,
    node: &Node<'_>,
    taken: &Taken,
) -> Result<()> {
    let number = rustix::fs::makedev(node.number.0, node.number.1);
    let (_, name) = target
        .components
        .last()
        .ok_or(Failure::of(Call::Mknodat)(Errno::ISDIR))?;
    let parent = open_parent(root, target)?;
    if node.nodes || node.kind == FileType::Fifo {
        let mode = Mode::from_bits_retain(node.mode);
        match rustix::fs::mknodat(&parent, name.as_c_str(), node.kind, mode, number) {
            Ok(()) => return set_owner(parent.as_fd(), name, node.owner),
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(
                    &parent,
                    name.as_c_str(),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )
                .map_err(Failure::of(Call::Fstat))?;
                let same = FileType::from_raw_mode(found.st_mode) == node.kind
                    && (node.kind == FileType::Fifo || found.st_rdev == number);
                return if same {
                    Ok(())
                } else {
                    Err(Failure::of(Call::Mknodat)(Errno::EXIST))
                };
            }
            Err(Errno::PERM) if node.kind != FileType::Fifo => {}
            Err(errno) => return Err(Failure::of(Call::Mknodat)(errno)),
        }
    }
    let device = open_device(node.outside, node.kind, number)?;
    let fd = open_target(root, target, Make::File)?;
    let place = Place {
        fd: fd.as_fd(),
        root,
        path: &target.path,
    };
    bind_device(device.as_fd(), place, taken)
}

fn set_owner(parent: BorrowedFd<'_>, name: &CStr, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    rustix::fs::chownat(
        parent,
        name,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(Failure::of(Call::Chown))
}

/// Makes a terminal in the devpts of the root; binds its slave on `console`. Master and slave.
pub(crate) fn make_terminal(
    root: BorrowedFd<'_>,
    console: &Target,
    (rows, columns): (u16, u16),
    uid: Option<u32>,
    taken: &Taken,
) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;
    // First that it is a devpts, then what only the kernel can have put there: opening a device that
    // an image has in its place could do anything.
    let directory = open_inside(root, c"dev/pts", O_PATH | OFlags::DIRECTORY)
        .map_err(Failure::of(Call::Openat2))?;
    let fs = rustix::fs::fstatfs(&directory).map_err(Failure::of(Call::Fstat))?;
    if fs.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Failure {
            call: Call::Openat2,
            errno: Errno::NODEV,
        });
    }
    let master = rustix::fs::openat2(
        &directory,
        c"ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )
    .map_err(Failure::of(Call::Openat2))?;
    rustix::pty::unlockpt(&master).map_err(Failure::of(Call::Ioctl))?;
    // The other end of this very terminal, whatever is at its path (CVE-2025-52565).
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(Failure::of(Call::Ioctl))?;
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&slave, size).map_err(Failure::of(Call::Ioctl))?;
    if let Some(uid) = uid {
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)
            .map_err(Failure::of(Call::Chown))?;
    }
    if console.create {
        let fd = open_target(root, console, Make::File)?;
        let place = Place {
            fd: fd.as_fd(),
            root,
            path: &console.path,
        };
        let attributes = Attributes::default();
        bind(slave.as_fd(), false, &attributes, place, None, taken)?;
    }
    Ok((master, slave))
}

/// A device of the caller to be bound, having made sure that it is that device
/// (CVE-2025-31133).
pub(crate) fn open_device(path: &CStr, kind: FileType, number: u64) -> Result<OwnedFd> {
    let device = open_source(path, OFlags::NOFOLLOW)?;
    let stat = rustix::fs::fstat(&device).map_err(Failure::of(Call::Fstat))?;
    if FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number {
        Ok(device)
    } else {
        Err(Failure {
            call: Call::Openat,
            errno: Errno::NODEV,
        })
    }
}
