//! The builder of an overlay.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;

use crate::diagnose::Failure;
use crate::error::{Error, Result, Role};
use crate::layer::{Layer, Opened};
use crate::mounted::{self, Mounted};
use crate::options::{Options, Word};
use crate::{diagnose, fsconfig, legacy, workdir};

/// How many lower layers the kernel stacks at most, data-only layers included.
pub const MAX_LOWER_LAYERS: usize = 500;

/// How the layers reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// The first of the following that the kernel has.
    #[default]
    Auto,
    /// `fsopen` and one `fsconfig` for each layer (Linux 6.5). No limit on the length of names.
    PerLayer,
    /// One page of options through `mount(2)` in a mount namespace of its own, out of which
    /// the mount is then taken (Linux 5.2). Layers have short names there, so 500 fit.
    OnePage,
    /// As `OnePage`, directly onto the target. It cannot make a detached mount.
    Classic,
}

/// A stack of directories to be mounted as one.
///
/// The order is always spelt out: layers are given bottom up, as images list them, and
/// [`above`](Overlay::above) puts one more on top.
///
/// ```no_run
/// # fn main() -> overlayfs::Result<()> {
/// let merged = overlayfs::Overlay::bottom_up(["/layers/debian", "/layers/app"])
///     .upper("/run/box/upper", "/run/box/work")
///     .mount("/run/box/merged")?;
/// // … use /run/box/merged …
/// merged.close()
/// # }
/// ```
#[derive(Debug)]
#[doc(alias = "overlay")]
pub struct Overlay {
    /// Bottom first.
    pub(crate) lowers: Vec<Layer>,
    /// Bottom first; all of them below `lowers`.
    pub(crate) data: Vec<Layer>,
    pub(crate) upper: Option<(Layer, Layer)>,
    pub(crate) options: Options,
    pub(crate) attributes: MountAttrFlags,
    pub(crate) source: String,
    pub(crate) exclusive: bool,
    pub(crate) tolerates_missing_xattrs: bool,
    interface: Interface,
}

/// The layers of an overlay that is being mounted, topmost first, as the kernel wants them.
///
/// Lower layers are opened where they are needed and closed again, so that many of them do
/// not run into the limit on descriptors.
pub(crate) struct Stack<'a> {
    pub(crate) lowers: Vec<&'a Layer>,
    pub(crate) data: Vec<&'a Layer>,
    pub(crate) upper: Option<Pair<'a>>,
    /// With the marks settled, which costs system calls to find.
    pub(crate) options: Options,
}

pub(crate) struct Pair<'a> {
    pub(crate) upper: Opened<'a>,
    pub(crate) work: Opened<'a>,
}

impl Overlay {
    /// Starts with lower layers, the bottom one first.
    pub fn bottom_up<L: Into<Layer>>(layers: impl IntoIterator<Item = L>) -> Self {
        Overlay {
            lowers: layers.into_iter().map(Into::into).collect(),
            data: Vec::new(),
            upper: None,
            options: Options::new(),
            attributes: MountAttrFlags::empty(),
            source: "overlay".to_owned(),
            exclusive: false,
            tolerates_missing_xattrs: false,
            interface: Interface::Auto,
        }
    }

    /// Puts one more lower layer on top of those given so far.
    pub fn above(mut self, layer: impl Into<Layer>) -> Self {
        self.lowers.push(layer.into());
        self
    }

    /// Adds a data-only layer, on top of the data-only layers given so far and below all
    /// others. Nothing in it is visible but the contents that a metacopy above points to.
    ///
    /// Linux 6.8; see "Data-only lower layers" in the kernel's documentation of overlayfs.
    #[doc(alias = "datadir+")]
    pub fn data_only(mut self, layer: impl Into<Layer>) -> Self {
        self.data.push(layer.into());
        self
    }

    /// Makes the overlay writable: changes go to `upper`. `work` is an empty directory on
    /// the same mount, for the kernel alone.
    #[doc(alias = "upperdir")]
    #[doc(alias = "workdir")]
    pub fn upper(mut self, upper: impl Into<Layer>, work: impl Into<Layer>) -> Self {
        self.upper = Some((upper.into(), work.into()));
        self
    }

    /// Sets the options of overlayfs.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Makes the mount read-only, also where there is an upper layer.
    #[doc(alias = "MOUNT_ATTR_RDONLY")]
    pub fn read_only(mut self) -> Self {
        self.attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        self
    }

    /// Ignores set-user-id bits and file capabilities in the mount.
    #[doc(alias = "MOUNT_ATTR_NOSUID")]
    pub fn no_set_user_id(mut self) -> Self {
        self.attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID;
        self
    }

    /// Makes device nodes in the mount inert.
    #[doc(alias = "MOUNT_ATTR_NODEV")]
    pub fn no_devices(mut self) -> Self {
        self.attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
        self
    }

    /// The name that the mount table shows as the source; `overlay` unless set. The kernel takes
    /// at most 255 bytes.
    pub fn source(mut self, name: impl Into<String>) -> Self {
        self.source = name.into();
        self
    }

    /// Vouches that no mounted overlay uses the upper layer or the work directory.
    ///
    /// Otherwise the kernel is asked whether one does. Asking takes several times as long as mounting:
    /// the kernel has to make half of an overlay to find out, and says in its log (`dmesg`)
    /// that the other half was not to be had.
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Accepts an upper layer on a filesystem without extended attributes.
    ///
    /// Otherwise that is [`Error::UnsuitableUpper`]: the kernel would mount it, with options that
    /// it cannot honour silently switched off. In such a mount a directory cannot be made where one
    /// of a lower layer was removed (`EIO`). Still refused are options that were asked for and
    /// need the attributes.
    pub fn tolerate_missing_xattrs(mut self) -> Self {
        self.tolerates_missing_xattrs = true;
        self
    }

    /// Sets how the layers reach the kernel. Only needed where [`Interface::Auto`] is wrong.
    pub fn interface(mut self, interface: Interface) -> Self {
        self.interface = interface;
        self
    }

    /// Mounts the overlay on `target` and returns a guard that unmounts it.
    ///
    /// # Errors
    ///
    /// Each mistake in the layers has a variant of its own in [`Error`].
    pub fn mount(&self, target: impl AsRef<Path>) -> Result<Mounted> {
        let target = target.as_ref();
        let directory = crate::layer::open_directory(target, Role::Target)?;
        if self.interface == Interface::Classic {
            return self.mount_classic(target, &directory);
        }
        match self.mount_detached() {
            Ok(mount) => mounted::attach_to(mount, target, &directory),
            // Neither the new mount API nor a namespace to take the mount out of.
            Err(error) if self.interface == Interface::Auto && error.lacks_mount_api() => {
                self.mount_classic(target, &directory)
            }
            Err(error) => Err(error),
        }
    }

    fn mount_classic(&self, target: &Path, directory: &OwnedFd) -> Result<Mounted> {
        let stack = self.open()?;
        let work = workdir::prepare(self, &stack)?;
        legacy::mount_onto(self, &stack, directory, &stack.options.words())
            .map_err(|failure| diagnose::explain(self, &stack, failure))?;
        let mounted = mounted::adopt(target, directory)?;
        work.verify(&stack)?;
        Ok(mounted)
    }

    /// Mounts the overlay without attaching it anywhere.
    ///
    /// The mount is reachable through the descriptor alone (`openat` works relative to it)
    /// and goes away with its last descriptor, so that nothing is left behind by a process
    /// that is killed. [`attach`](crate::attach) or `move_mount(2)` puts it somewhere.
    ///
    /// # Errors
    ///
    /// Each mistake in the layers has a variant of its own in [`Error`].
    #[doc(alias = "fsmount")]
    pub fn mount_detached(&self) -> Result<OwnedFd> {
        let stack = self.open()?;
        let work = workdir::prepare(self, &stack)?;
        let mount = self
            .try_mount(&stack, &stack.options.words())
            .map_err(|failure| diagnose::explain(self, &stack, failure))?;
        work.verify(&stack)?;
        Ok(mount)
    }

    fn try_mount(&self, stack: &Stack<'_>, words: &[Word]) -> Result<OwnedFd, Failure> {
        let per_layer = match self.interface {
            Interface::Auto => fsconfig::takes_single_layers().map_err(Failure::Known)?,
            Interface::PerLayer => true,
            Interface::OnePage => false,
            Interface::Classic => {
                return Err(Failure::Known(Error::ConflictingOptions {
                    first: "the classic interface",
                    second: "a detached mount",
                }));
            }
        };
        if per_layer {
            fsconfig::mount(self, stack, words)
        } else {
            legacy::mount_detached(self, stack, words)
        }
    }

    /// Mounts with these options, for the sake of whether it works.
    pub(crate) fn try_mount_with(&self, words: &[Word]) -> Result<OwnedFd, Failure> {
        let stack = self.open().map_err(Failure::Known)?;
        self.try_mount(&stack, words)
    }

    fn open(&self) -> Result<Stack<'_>> {
        let lowers = self.lowers.len() + self.data.len();
        if lowers > MAX_LOWER_LAYERS {
            return Err(Error::TooManyLayers {
                lowers,
                max: MAX_LOWER_LAYERS,
            });
        }
        if self.lowers.is_empty() && !self.data.is_empty() {
            return Err(Error::OnlyDataLayers);
        }
        if lowers == 0 || (lowers == 1 && self.upper.is_none()) {
            return Err(Error::TooFewLayers { lowers });
        }
        let options = self.options.clone().marks(self.options.mark_names());
        options.check(self.upper.is_some())?;
        let upper = match &self.upper {
            None => None,
            Some((upper, work)) => Some(Pair {
                upper: upper.open(Role::Upper)?,
                work: work.open(Role::Work)?,
            }),
        };
        Ok(Stack {
            lowers: self.lowers.iter().rev().collect(),
            data: self.data.iter().rev().collect(),
            upper,
            options,
        })
    }
}
