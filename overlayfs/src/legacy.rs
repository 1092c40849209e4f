//! Mounting through one page of options, for kernels before 6.5.
//!
//! The page is too small for the paths of many layers. A thread of its own therefore makes
//! `/proc/thread-self/fd` its current directory, in which every layer has a name of a few
//! digits. The same thread has a mount namespace of its own, so that the mount is never
//! seen by others before it is taken out of there as a detached one.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::thread;

use rustix::fs::{CWD, fstat};
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, open_tree, unmount,
};

use crate::diagnose::Failure;
use crate::error::{Error, Role, Step};
use crate::fsconfig::is_plain;
use crate::layer::{Layer, Opened, name_of, open_directory};
use crate::options::Word;
use crate::overlay::{Overlay, Stack};
use crate::sys;

/// What the kernel reads of the options of `mount(2)`, without the final NUL.
const PAGE: usize = 4095;

/// A directory that exists wherever procfs does; only ever covered in a private namespace.
pub(crate) const PRIVATE_TARGET: &str = "/proc/fs";

/// The layers by which the page names them, all open at the same time.
struct Named<'a> {
    lowers: Vec<Opened<'a>>,
    data: Vec<Opened<'a>>,
    upper: Option<(Opened<'a>, Opened<'a>)>,
}

/// Makes the mount in a private namespace and takes it out of there.
pub(crate) fn mount_detached(
    overlay: &Overlay,
    stack: &Stack<'_>,
    words: &[Word],
) -> Result<OwnedFd, Failure> {
    on_private_thread(|| {
        // Descriptors opened before belong to the old namespace, whose mounts the kernel
        // refuses as layers here.
        let named = Named::open(overlay, stack, Layer::open_again).map_err(Failure::Known)?;
        let data = options(&named, words)?;
        enter_descriptors()?;
        mount(
            overlay.source.as_str(),
            PRIVATE_TARGET,
            "overlay",
            flags(overlay),
            data.as_c_str(),
        )
        .map_err(|source| Failure::new(Step::Classic, source))?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, PRIVATE_TARGET, clone).map_err(|source| Failure::new(Step::Detach, source))
    })
}

/// Makes the mount directly on `target`.
pub(crate) fn mount_onto(
    overlay: &Overlay,
    stack: &Stack<'_>,
    target: &OwnedFd,
    words: &[Word],
) -> Result<(), Failure> {
    on_own_thread(|| {
        sys::unshare_directory().map_err(|source| Failure::new(Step::Unshare, source))?;
        let named = Named::open(overlay, stack, Layer::open).map_err(Failure::Known)?;
        let data = options(&named, words)?;
        enter_descriptors()?;
        let target = target.as_raw_fd().to_string();
        mount(
            overlay.source.as_str(),
            target,
            "overlay",
            flags(overlay),
            data.as_c_str(),
        )
        .map_err(|source| Failure::new(Step::Classic, source))
    })
}

/// Works in a thread with a mount namespace of its own, which nothing propagates out of.
pub(crate) fn on_private_thread<T: Send>(
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    on_own_thread(|| {
        sys::unshare_mounts().map_err(|source| Failure::new(Step::Unshare, source))?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .map_err(|source| Failure::new(Step::Unshare, source))?;
        let result = work();
        // The namespace holds copies of all mounts, also of overlays that others are about
        // to unmount. Left to the end of the thread they would be given up some time later,
        // and their upper layers would be in use until then.
        let _ = unmount("/", UnmountFlags::DETACH);
        result
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("overlayfs".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| Failure::new(Step::Unshare, source))?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn enter_descriptors() -> Result<(), Failure> {
    // `/proc/self` rather than the thread's own directory: threads share descriptors, and
    // the name is older.
    rustix::process::chdir("/proc/self/fd").map_err(|source| Failure::new(Step::Classic, source))
}

fn flags(overlay: &Overlay) -> MountFlags {
    let pairs = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
    ];
    pairs
        .into_iter()
        .filter(|(attribute, _)| overlay.attributes.contains(*attribute))
        .fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// The options as one string: with the layers' paths if they fit, else with the numbers of
/// their descriptors, which are names in the directory that [`enter_descriptors`] enters.
fn options(named: &Named<'_>, words: &[Word]) -> Result<CString, Failure> {
    let page = match page(named, words, true) {
        Some(with_paths) if with_paths.len() <= PAGE => with_paths,
        _ => page(named, words, false).unwrap_or_default(),
    };
    if page.len() > PAGE {
        return Err(Failure::Known(Error::OptionsTooLong {
            lowers: named.lowers.len(),
            bytes: page.len(),
            max: PAGE,
        }));
    }
    CString::new(page).map_err(|source| Failure::new(Step::Classic, source))
}

/// The page of options; none if a path has no place in it.
fn page(named: &Named<'_>, words: &[Word], with_paths: bool) -> Option<Vec<u8>> {
    let name = |layer: &Opened<'_>| match layer.given {
        Some(path) if with_paths => is_plain(path).then(|| path.as_os_str().as_bytes().to_vec()),
        None if with_paths => None,
        _ => Some(layer.as_fd().as_raw_fd().to_string().into_bytes()),
    };
    let mut page = b"lowerdir=".to_vec();
    for (place, layer) in named.lowers.iter().enumerate() {
        if place > 0 {
            page.push(b':');
        }
        page.extend(name(layer)?);
    }
    for layer in &named.data {
        page.extend(b"::");
        page.extend(name(layer)?);
    }
    if let Some((upper, work)) = &named.upper {
        page.extend(b",upperdir=");
        page.extend(name(upper)?);
        page.extend(b",workdir=");
        page.extend(name(work)?);
    }
    for word in words {
        page.push(b',');
        page.extend(word.key.as_bytes());
        if let Some(value) = word.value {
            page.push(b'=');
            page.extend(value.as_bytes());
        }
    }
    Some(page)
}

impl<'a> Named<'a> {
    fn open(
        overlay: &'a Overlay,
        stack: &Stack<'a>,
        open: impl Fn(&'a Layer, Role) -> Result<Opened<'a>, Error>,
    ) -> Result<Self, Error> {
        let all = |layers: &[&'a Layer], role| {
            layers
                .iter()
                .map(|layer| open(layer, role))
                .collect::<Result<Vec<_>, Error>>()
        };
        Ok(Named {
            lowers: all(&stack.lowers, Role::Lower)?,
            data: all(&stack.data, Role::DataOnly)?,
            upper: match &overlay.upper {
                None => None,
                Some((upper, work)) => Some((open(upper, Role::Upper)?, open(work, Role::Work)?)),
            },
        })
    }
}

impl Layer {
    /// Opens the same directory in the mount namespace that the thread is in now.
    pub(crate) fn open_again(&self, role: Role) -> Result<Opened<'_>, Error> {
        let before = self.open(role)?;
        if before.given.is_some() {
            return Ok(before);
        }
        let unsupported = || Error::Unsupported {
            feature: "detached mounts as layers",
            since: "6.15",
        };
        let path = name_of(before.as_fd());
        let now = open_directory(&path, role).map_err(|_| unsupported())?;
        match (identity(before.as_fd()), identity(now.as_fd())) {
            (Ok(before), Ok(now)) if before == now => {}
            _ => return Err(unsupported()),
        }
        Ok(Opened::owned(now, path, None))
    }
}

/// What tells one directory from every other one.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> rustix::io::Result<(u64, u64)> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}
