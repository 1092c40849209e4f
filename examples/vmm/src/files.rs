//! What the host gives a machine: files, interfaces and sockets, opened before the guest runs.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::config::{Disk, Machine, Network, Vsock};
use crate::error::Error;
use crate::virtio::net::open_tap;

/// Everything that a machine needs from the host beside `/dev/kvm`, open.
#[derive(Debug)]
pub(crate) struct Files {
    /// The kernel and the initial RAM disk, of a machine that is booted and not restored.
    pub(crate) kernel: Option<File>,
    pub(crate) initrd: Option<File>,
    pub(crate) disks: Vec<File>,
    pub(crate) taps: Vec<OwnedFd>,
    pub(crate) console: Option<File>,
    pub(crate) vsock: Option<UnixListener>,
}

impl Files {
    /// Opens all that a machine needs to be booted.
    pub(crate) fn for_boot(machine: &Machine) -> Result<Self, Error> {
        let kernel = File::open(&machine.kernel).map_err(|source| Error::ReadKernel {
            path: machine.kernel.clone(),
            source,
        })?;
        let open = |path: &std::path::PathBuf| {
            File::open(path).map_err(|source| Error::ReadInitrd {
                path: path.clone(),
                source,
            })
        };
        Ok(Self {
            kernel: Some(kernel),
            initrd: machine.initrd.as_ref().map(open).transpose()?,
            ..Self::for_restore(machine)?
        })
    }

    /// Opens what a machine needs that is in memory already.
    pub(crate) fn for_restore(machine: &Machine) -> Result<Self, Error> {
        let console = |path: &std::path::PathBuf| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })
        };
        Ok(Self {
            kernel: None,
            initrd: None,
            disks: machine.disks.iter().map(disk).collect::<Result<_, _>>()?,
            taps: if crate::jail::is_inside() {
                crate::jail::taps()?
            } else {
                machine.networks.iter().map(tap).collect::<Result<_, _>>()?
            },
            console: machine.console.as_ref().map(console).transpose()?,
            vsock: machine.vsock.as_ref().map(listen).transpose()?,
        })
    }
}

/// Opens a disk and locks it: a disk that is written has one machine, one that is read any number.
fn disk(disk: &Disk) -> Result<File, Error> {
    let error = |source| Error::OpenDisk {
        path: disk.path.clone(),
        read_only: disk.read_only,
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(!disk.read_only)
        .open(&disk.path)
        .map_err(error)?;
    let locked = if disk.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DiskInUse {
            path: disk.path.clone(),
        }),
        Err(TryLockError::Error(e)) => Err(error(e)),
    }
}

pub(crate) fn tap(network: &Network) -> Result<OwnedFd, Error> {
    let name = &network.tap;
    let error = |source: io::Error| Error::OpenTap {
        name: name.clone(),
        source,
    };
    // It would be made otherwise, and be of no use: nobody has given it an address.
    if !Path::new("/sys/class/net").join(name).exists() {
        return Err(error(io::ErrorKind::NotFound.into()));
    }
    open_tap(name).map_err(error)
}

/// Listens on the vsock's Unix socket. One that a machine left behind, and that nobody listens on, is
/// replaced.
fn listen(vsock: &Vsock) -> Result<UnixListener, Error> {
    let path = &vsock.socket;
    let listener = bind(path).map_err(|source| Error::Socket {
        path: path.clone(),
        source,
    })?;
    Ok(listener)
}

/// Makes a Unix socket that listens and does not block.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            use std::os::unix::fs::FileTypeExt as _;
            let stale = std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            let socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if !stale || !socket {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}
