//! The work directory: prepared, and used by one mount at a time.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use rustix::fs::{
    Access, AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, accessat, fgetxattr, flock,
    openat,
};
use rustix::io::Errno;
use rustix::mount::{fsconfig_create, fsconfig_set_string};

use crate::error::{Error, Result, Role};
use crate::fsconfig;
use crate::layer::{Opened, fd_path};
use crate::options::Marks;
use crate::overlay::{Overlay, Pair, Stack};

/// Held while an overlay is being mounted, so that two callers who want the same work
/// directory do not both find it free.
pub(crate) struct Prepared(Option<Lock>);

/// The work directory, locked.
struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just starting has the
        // descriptor too until it executes its program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// For the same reason an overlay that was just unmounted may still be there for a moment.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(2);

impl Prepared {
    /// Checks, once the overlay is mounted and has made something in the work directory, that the
    /// filesystem gives the types of entries. Where it does not, the kernel lists whiteouts as
    /// files, and says so in its log alone.
    pub(crate) fn verify(&self, stack: &Stack<'_>) -> Result<()> {
        let (Some(Lock(directory)), Some(pair)) = (&self.0, &stack.upper) else {
            return Ok(());
        };
        let fail = |source| Error::io("read the work directory", &pair.work.path, source);
        for entry in Dir::read_from(directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            // The entries for the directory itself have a type on any filesystem.
            if entry.file_name() == c"work" && entry.file_type() == FileType::Unknown {
                return Err(Error::UnsuitableUpper {
                    upper: pair.upper.path.clone(),
                    missing: "file types in its directory entries (d_type)",
                });
            }
        }
        Ok(())
    }
}

/// Checks the work directory, what its filesystem can hold, and that no mount uses it or the upper
/// layer.
pub(crate) fn prepare(overlay: &Overlay, stack: &Stack<'_>) -> Result<Prepared> {
    let Some(pair) = &stack.upper else {
        return Ok(Prepared(None));
    };
    let work = &pair.work;
    let directory = openat(
        work.as_fd(),
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| Error::io("read the work directory", &work.path, source))?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(in_use(pair)),
        Err(source) => return Err(Error::io("lock the work directory", &work.path, source)),
    }
    let lock = Lock(directory);
    if (!overlay.tolerates_missing_xattrs || overlay.options.needs_xattrs())
        && let Some(missing) = missing_xattrs(&lock.0, stack.options.mark_names())
    {
        return Err(Error::UnsuitableUpper {
            upper: pair.upper.path.clone(),
            missing,
        });
    }
    let mut was_used = false;
    let entries = Dir::read_from(&lock.0)
        .map_err(|source| Error::io("read the work directory", &work.path, source))?;
    for entry in entries {
        let entry =
            entry.map_err(|source| Error::io("read the work directory", &work.path, source))?;
        let name = entry.file_name().to_bytes();
        // What earlier mounts left, and the one that is there has made; the kernel cleans it.
        was_used |= name == b"work";
        if !matches!(name, b"." | b".." | b"work" | b"index") {
            return Err(Error::WorkNotEmpty {
                work: work.path.clone(),
                entry: OsStr::from_bytes(name).into(),
            });
        }
    }
    // The kernel makes something in the work directory of every mount, so one that has
    // nothing is not in use. An upper layer does not tell.
    let mut tries = 0;
    while !overlay.exclusive && (is_used(stack, &pair.upper) || (was_used && is_used(stack, work)))
    {
        tries += 1;
        if tries == TRIES {
            return Err(in_use(pair));
        }
        thread::sleep(PAUSE);
    }
    Ok(Prepared(Some(lock)))
}

/// What the filesystem lacks, if it cannot hold the marks: the kernel would mount it all the same and
/// say so in its log alone.
fn missing_xattrs(directory: &OwnedFd, marks: Marks) -> Option<&'static str> {
    let (name, missing) = match marks {
        Marks::Trusted => (c"trusted.overlay.opaque", "extended attributes"),
        Marks::User => (
            c"user.overlay.opaque",
            "extended attributes for ordinary users (tmpfs has them since Linux 6.6)",
        ),
    };
    (fgetxattr(directory, name, &mut [0_u8; 1]) == Err(Errno::OPNOTSUPP)).then_some(missing)
}

pub(crate) fn in_use(pair: &Pair<'_>) -> Error {
    Error::UpperInUse {
        upper: pair.upper.path.clone(),
        work: pair.work.path.clone(),
    }
}

/// Whether a mounted overlay writes to `directory`, in whatever namespace.
///
/// With `index=off`, the usual setting, the kernel only warns about a second mount over an
/// upper layer. With `index=on` it refuses it, and says so before it looks at the work
/// directory. So it is asked for a mount with `index=on` that cannot succeed, because upper
/// and work are the same directory: `EBUSY` comes from a directory in use, `EINVAL` from a
/// free one. Nothing is written in either case, but to the kernel's log.
fn is_used(stack: &Stack<'_>, directory: &Opened<'_>) -> bool {
    let Some(Ok(lower)) = stack.lowers.first().map(|lower| lower.open(Role::Lower)) else {
        return false;
    };
    let Ok(fs) = fsconfig::open() else {
        return false;
    };
    let name = fd_path(directory.as_fd());
    let lower = fd_path(lower.as_fd());
    let set = [
        ("lowerdir", &lower),
        ("upperdir", &name),
        ("workdir", &name),
    ]
    .into_iter()
    .all(|(key, value)| fsconfig_set_string(&fs, key, value.as_path()).is_ok());
    set && fsconfig_set_string(&fs, "index", "on").is_ok()
        && fsconfig_create(&fs) == Err(Errno::BUSY)
}

/// The error for a volatile mount that was not unmounted cleanly, if there was one.
pub(crate) fn volatile_leftover(work: &Opened<'_>) -> Option<Error> {
    accessat(
        work.as_fd(),
        c"work/incompat/volatile",
        Access::EXISTS,
        AtFlags::empty(),
    )
    .is_ok()
    .then(|| Error::VolatileLeftover {
        work: work.path.clone(),
    })
}
