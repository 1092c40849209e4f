//! Mounting through `fsopen`, one layer at a time.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::diagnose::Failure;
use crate::error::{Error, Result, Role, Step};
use crate::layer::{Opened, fd_path};
use crate::options::Word;
use crate::overlay::{Overlay, Stack};

/// The longest string that `fsconfig` takes, without its final NUL.
const MAX_STRING: usize = 255;

/// Whether overlayfs reads its options itself (Linux 6.5) and so knows `lowerdir+`.
///
/// Older kernels collect whatever they are told into one page and read it when the mount
/// is made, so an option that cannot exist tells the two apart.
pub(crate) fn takes_single_layers() -> Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let fs = match open() {
        Ok(fs) => fs,
        // A kernel or a seccomp filter without fsopen; the classic way may still work.
        Err(Errno::NOSYS) => return Ok(false),
        Err(source) => return Err(refused(Step::Open, source)),
    };
    let known = fsconfig_set_string(&fs, c"cofferdam", c"").is_err();
    Ok(*KNOWN.get_or_init(|| known))
}

fn refused(step: Step, source: Errno) -> Error {
    match source {
        Errno::PERM | Errno::ACCESS => Error::NotPermitted {
            step,
            source: source.into(),
        },
        Errno::NODEV => Error::Unsupported {
            feature: "overlayfs itself (modprobe overlay)",
            since: "3.18",
        },
        _ => Error::Mount {
            step,
            log: Vec::new(),
            source: source.into(),
        },
    }
}

pub(crate) fn open() -> rustix::io::Result<OwnedFd> {
    fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)
}

/// Makes the mount that `overlay` describes, detached.
pub(crate) fn mount(
    overlay: &Overlay,
    stack: &Stack<'_>,
    words: &[Word],
) -> Result<OwnedFd, Failure> {
    let fs = open().map_err(|source| Failure::new(Step::Open, source))?;
    let fail = |step, source: Errno| Failure::Kernel {
        step,
        log: read_log(fs.as_fd()),
        source,
    };
    fsconfig_set_string(&fs, c"source", overlay.source.as_str())
        .map_err(|source| fail(Step::Configure("source"), source))?;
    for word in words {
        let set = match word.value {
            None => fsconfig_set_flag(&fs, word.key),
            Some(value) => fsconfig_set_string(&fs, word.key, value),
        };
        set.map_err(|source| fail(Step::Configure(word.key), source))?;
    }
    let mut by_descriptor = true;
    let mut add = |key: &'static CStr, name: &'static str, layer: &Opened<'_>| {
        set_directory(fs.as_fd(), key, layer, &mut by_descriptor)
            .map_err(|source| fail(Step::Configure(name), source))
    };
    if let Some(pair) = &stack.upper {
        add(c"upperdir", "upperdir", &pair.upper)?;
        add(c"workdir", "workdir", &pair.work)?;
    }
    for layer in &stack.lowers {
        add(
            c"lowerdir+",
            "lowerdir+",
            &layer.open(Role::Lower).map_err(Failure::Known)?,
        )?;
    }
    for layer in &stack.data {
        add(
            c"datadir+",
            "datadir+",
            &layer.open(Role::DataOnly).map_err(Failure::Known)?,
        )?;
    }
    fsconfig_create(&fs).map_err(|source| fail(Step::Create, source))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, overlay.attributes)
        .map_err(|source| fail(Step::Mount, source))
}

/// Hands over a directory by descriptor (Linux 6.13), else by a name.
pub(crate) fn set_directory(
    fs: BorrowedFd<'_>,
    key: &CStr,
    layer: &Opened<'_>,
    by_descriptor: &mut bool,
) -> rustix::io::Result<()> {
    if *by_descriptor {
        match fsconfig_set_fd(fs, key, layer.as_fd()) {
            Ok(()) => return Ok(()),
            // EBADF is Linux 6.13, which wants a descriptor that is open for reading. The
            // third is the kernel's, when it looks up the path to show in the mount table.
            Err(Errno::INVAL | Errno::BADF | Errno::NAMETOOLONG) => {}
            Err(other) => return Err(other),
        }
    }
    fsconfig_set_string(fs, key, short_name(layer).as_path())?;
    *by_descriptor = false;
    Ok(())
}

/// A name that `fsconfig` takes and that means the directory: its path if that is plain,
/// because the mount table shows it, else the descriptor's.
fn short_name(layer: &Opened<'_>) -> PathBuf {
    match layer.given {
        Some(path) if is_plain(path) && path.as_os_str().len() <= MAX_STRING => path.to_owned(),
        _ => fd_path(layer.as_fd()),
    }
}

/// Whether a path means the same everywhere and has nothing that overlayfs would unescape.
pub(crate) fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && !path
            .as_os_str()
            .as_bytes()
            .iter()
            .any(|byte| b"\\:,\n".contains(byte))
}

/// What the kernel wrote into the log of a configuration, a line each.
pub(crate) fn read_log(fs: BorrowedFd<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = [0_u8; 4096];
    while let Ok(length) = rustix::io::read(fs, &mut line) {
        // The level ("e ") is of no use to a reader of an error.
        let text = String::from_utf8_lossy(&line[..length]);
        let text = text.trim_end();
        lines.push(text.get(2..).unwrap_or(text).to_owned());
    }
    lines
}
