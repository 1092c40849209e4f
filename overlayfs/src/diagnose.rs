//! Why a mount failed.
//!
//! The kernel says `EINVAL` and writes the reason, if at all, into a log that only
//! administrators read. So the directories are examined here, after a failure only, with
//! the same questions that the kernel asks.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxFlags, fstatfs, fstatvfs, openat, statx,
};
use rustix::io::Errno;

use crate::error::{Error, Role, Step};
use crate::layer::{Opened, fd_path};
use crate::legacy::identity;
use crate::options::Word;
use crate::overlay::{Overlay, Pair, Stack};
use crate::{features, workdir};

/// A mount that failed, before the reason is known.
pub(crate) enum Failure {
    /// The reason is known already.
    Known(Error),
    /// What the kernel said.
    Kernel {
        step: Step,
        log: Vec<String>,
        source: Errno,
    },
}

impl Failure {
    pub(crate) fn new(step: Step, source: impl Into<std::io::Error>) -> Self {
        let source: std::io::Error = source.into();
        match Errno::from_io_error(&source) {
            Some(source) => Failure::Kernel {
                step,
                log: Vec::new(),
                source,
            },
            None => Failure::Known(Error::Mount {
                step,
                log: Vec::new(),
                source,
            }),
        }
    }
}

const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// Finds the reason of a failed mount.
pub(crate) fn explain(overlay: &Overlay, stack: &Stack<'_>, failure: Failure) -> Error {
    let (step, log, source) = match failure {
        Failure::Known(error) => return error,
        Failure::Kernel { step, log, source } => (step, log, source),
    };
    let told = log.clone();
    let reason = match (step, source) {
        (Step::Configure(key), Errno::INVAL) if !is_directory(key) => {
            unsupported_word(overlay, key)
        }
        (Step::Configure("datadir+"), Errno::INVAL) => Some(Error::Unsupported {
            feature: "data-only layers",
            since: "6.8",
        }),
        (_, Errno::PERM | Errno::ACCESS) => Some(Error::NotPermitted {
            step,
            source: source.into(),
        }),
        (_, Errno::NODEV) if step == Step::Open => Some(Error::Unsupported {
            feature: "overlayfs itself (modprobe overlay)",
            since: "3.18",
        }),
        (_, Errno::BUSY) => stack.upper.as_ref().map(workdir::in_use),
        _ => None,
    };
    if let Some(error) = reason.or_else(|| stack.upper.as_ref().and_then(upper_and_work)) {
        return error;
    }
    let parts = parts(overlay, stack);
    overlapping(&parts)
        .or_else(|| stack.upper.as_ref().and_then(unsuitable_upper))
        .or_else(|| {
            (source == Errno::INVAL)
                .then(|| beyond_the_kernel(&parts, stack, &stack.options.words()))?
        })
        .or_else(|| {
            let (role, path) = (source == Errno::INVAL)
                .then(|| features::first_unsuitable(overlay))
                .flatten()?;
            Some(Error::UnsuitableLayer {
                role,
                path,
                log: told,
            })
        })
        .unwrap_or(Error::Mount {
            step,
            log,
            source: source.into(),
        })
}

fn is_directory(key: &str) -> bool {
    matches!(key, "lowerdir+" | "datadir+" | "upperdir" | "workdir")
}

fn unsupported_word(overlay: &Overlay, key: &'static str) -> Option<Error> {
    let word = overlay
        .options
        .words()
        .into_iter()
        .find(|word| word.key == key)?;
    Some(Error::Unsupported {
        feature: key,
        since: word.since,
    })
}

fn upper_and_work(pair: &Pair<'_>) -> Option<Error> {
    let Pair { upper, work } = pair;
    if is_within(upper.as_fd(), work.as_fd()) || is_within(work.as_fd(), upper.as_fd()) {
        return Some(Error::UpperAndWorkOverlap {
            upper: upper.path.clone(),
            work: work.path.clone(),
        });
    }
    if mount_id(upper.as_fd()) != mount_id(work.as_fd()) {
        return Some(Error::DifferentFilesystems {
            upper: upper.path.clone(),
            work: work.path.clone(),
        });
    }
    let read_only =
        fstatvfs(upper.as_fd()).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    if read_only {
        return Some(Error::ReadOnlyUpper {
            upper: upper.path.clone(),
        });
    }
    workdir::volatile_leftover(work)
}

/// A layer for the examination, with its role.
struct Part<'a> {
    role: Role,
    layer: Opened<'a>,
}

/// Every layer, in the order in which the kernel looks at them. Those that cannot be opened
/// are left out: opening them was no problem before.
fn parts<'a>(overlay: &'a Overlay, stack: &Stack<'a>) -> Vec<Part<'a>> {
    let upper = overlay
        .upper
        .iter()
        .flat_map(|(upper, work)| [(Role::Upper, upper), (Role::Work, work)]);
    let lowers = stack.lowers.iter().map(|layer| (Role::Lower, *layer));
    let data = stack.data.iter().map(|layer| (Role::DataOnly, *layer));
    upper
        .chain(lowers)
        .chain(data)
        .filter_map(|(role, layer)| {
            Some(Part {
                role,
                layer: layer.open(role).ok()?,
            })
        })
        .collect()
}

fn overlapping(parts: &[Part<'_>]) -> Option<Error> {
    let known: Vec<_> = parts
        .iter()
        .map(|part| identity(part.layer.as_fd()).ok())
        .collect();
    for (place, inner) in parts.iter().enumerate() {
        for around in ancestors(inner.layer.as_fd()) {
            let found = known
                .iter()
                .enumerate()
                .find(|(other, id)| *other != place && **id == Some(around));
            let Some((other, _)) = found else { continue };
            let outer = &parts[other];
            // A lower layer around the upper one is allowed, if unwise.
            if outer.role == Role::Lower && matches!(inner.role, Role::Upper | Role::Work) {
                continue;
            }
            return Some(Error::LayersOverlap {
                inner_role: inner.role,
                inner: inner.layer.path.clone(),
                outer_role: outer.role,
                outer: outer.layer.path.clone(),
            });
        }
    }
    None
}

fn unsuitable_upper(pair: &Pair<'_>) -> Option<Error> {
    let work = fd_path(pair.work.as_fd());
    let missing = |missing| {
        Some(Error::UnsuitableUpper {
            upper: pair.upper.path.clone(),
            missing,
        })
    };
    if is_overlay(pair.upper.as_fd()) {
        return missing("layer of its own, being an overlay itself");
    }
    let temporary = openat(
        CWD,
        &work,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR,
    );
    if temporary.is_err() {
        return missing("unnamed files (O_TMPFILE)");
    }
    None
}

/// Reasons that only a kernel which says `EINVAL` and nothing else leaves to be found.
fn beyond_the_kernel(parts: &[Part<'_>], stack: &Stack<'_>, words: &[Word]) -> Option<Error> {
    if let Some(part) = parts.iter().find(|part| is_overlay(part.layer.as_fd())) {
        return Some(Error::TooDeeplyStacked {
            path: part.layer.path.clone(),
        });
    }
    if parts
        .iter()
        .any(|part| part.layer.given.is_none() && is_detached(part.layer.as_fd()))
    {
        return Some(Error::Unsupported {
            feature: "detached mounts as layers",
            since: "6.15",
        });
    }
    if let Some(word) = features::first_unknown(words) {
        return Some(Error::Unsupported {
            feature: word.key,
            since: word.since,
        });
    }
    let has = |key| words.iter().any(|word| word.key == key);
    if has("userxattr") && has("verity") {
        // Allowed since Linux 6.16.
        return Some(Error::ConflictingOptions {
            first: "userxattr",
            second: "verity",
        });
    }
    (!stack.data.is_empty() && !features::takes_data_only()).then_some(Error::Unsupported {
        feature: "data-only layers",
        since: "6.8",
    })
}

/// Whether a descriptor belongs to a mount that is attached nowhere in this namespace.
fn is_detached(fd: BorrowedFd<'_>) -> bool {
    let (Some((id, _)), Ok(table)) = (
        mount_id(fd),
        std::fs::read_to_string("/proc/thread-self/mountinfo"),
    ) else {
        return false;
    };
    let id = id.to_string();
    !table
        .lines()
        .any(|line| line.split(' ').next() == Some(&id))
}

fn is_overlay(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.f_type == OVERLAYFS_MAGIC)
}

/// Whether `inner` is `outer` or lies below it.
pub(crate) fn is_within(inner: BorrowedFd<'_>, outer: BorrowedFd<'_>) -> bool {
    let Ok(outer) = identity(outer) else {
        return false;
    };
    ancestors(inner).contains(&outer)
}

/// A directory and those around it, up to the root.
fn ancestors(start: BorrowedFd<'_>) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at: Option<OwnedFd> = None;
    loop {
        let here = at.as_ref().map_or(start, AsFd::as_fd);
        match identity(here) {
            Ok(id) if found.last() != Some(&id) => found.push(id),
            _ => return found,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(here, Path::new(".."), flags, Mode::empty()) {
            Ok(parent) => at = Some(parent),
            Err(_) => return found,
        }
    }
}

pub(crate) fn mount_id(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    Some((
        stat.stx_mnt_id,
        u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
    ))
}
