//! What the running kernel's overlayfs can do, found by trying.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_fd, fsmount, fsopen, move_mount, open_tree,
};

use crate::diagnose::Failure;
use crate::error::{Error, Result, Role, Step};
use crate::fsconfig;
use crate::layer::Layer;
use crate::legacy::{PRIVATE_TARGET, on_private_thread};
use crate::options::{
    Fsync, Index, Marks, Metacopy, NfsExport, Options, RedirectDir, Uuid, Verity, Word, Xino,
};
use crate::overlay::Overlay;

/// What the running kernel's overlayfs can do for this process.
///
/// Versions tell little: features are switched off in configurations, ported to older
/// kernels, and refused in user namespaces. So each one is tried, on a tmpfs that is
/// attached nowhere and gone afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own"
)]
pub struct Features {
    /// An overlay can be mounted at all.
    pub mount: bool,
    /// Layers are handed over one at a time (`lowerdir+`, Linux 6.5).
    pub single_layers: bool,
    /// Layers are handed over as descriptors (Linux 6.13).
    pub layers_by_descriptor: bool,
    /// A detached mount can be a layer (Linux 6.15).
    pub detached_layers: bool,
    /// Data-only layers (`datadir+`, Linux 6.8).
    pub data_only_layers: bool,
    /// [`RedirectDir::On`] (Linux 4.10).
    pub redirect_dir: bool,
    /// [`Metacopy::On`] (Linux 4.19).
    pub metacopy: bool,
    /// [`Index::On`] (Linux 4.13).
    pub index: bool,
    /// [`Xino::On`] (Linux 4.17).
    pub xino: bool,
    /// [`NfsExport::On`] (Linux 4.16).
    pub nfs_export: bool,
    /// [`Fsync::Volatile`] (Linux 5.10).
    pub volatile: bool,
    /// [`Fsync::Strict`] (Linux 7.0 and 6.18.21).
    pub fsync_strict: bool,
    /// [`Marks::User`] (Linux 5.11).
    pub user_marks: bool,
    /// [`Uuid::Off`] (Linux 5.8).
    pub uuid_off: bool,
    /// The other values of [`Uuid`] (Linux 6.6).
    pub uuid: bool,
    /// [`Verity::On`] (Linux 6.6). That the filesystem of the contents has fs-verity is
    /// another matter.
    pub verity: bool,
}

impl Features {
    /// Tries everything.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] if the process may not mount, so that nothing can be tried.
    pub fn probe() -> Result<Self> {
        let single_layers = fsconfig::takes_single_layers()?;
        on_ground(|ground| {
            let plain = Options::new();
            let redirects = plain.clone().redirect_dir(RedirectDir::On);
            let indexed = plain.clone().index(Index::On);
            Features {
                mount: ground.takes(plain.clone()),
                single_layers,
                layers_by_descriptor: ground.takes_descriptors(),
                detached_layers: ground.takes_detached(),
                data_only_layers: ground.takes_data_only(),
                redirect_dir: ground.takes(redirects.clone()),
                metacopy: ground.takes(redirects.metacopy(Metacopy::On)),
                nfs_export: ground.takes(indexed.clone().nfs_export(NfsExport::On)),
                index: ground.takes(indexed),
                xino: ground.takes(plain.clone().xino(Xino::On)),
                volatile: ground.takes(plain.clone().fsync(Fsync::Volatile)),
                fsync_strict: ground.takes(plain.clone().fsync(Fsync::Strict)),
                user_marks: ground.takes(plain.clone().marks(Marks::User)),
                uuid_off: ground.takes(plain.clone().uuid(Uuid::Off)),
                uuid: ground.takes(plain.clone().uuid(Uuid::On)),
                verity: ground.takes(plain.verity(Verity::On)),
            }
        })
    }
}

/// The first of the options that this kernel does not take, each tried by itself.
pub(crate) fn first_unknown(words: &[Word]) -> Option<Word> {
    on_ground(|ground| {
        words.iter().copied().find(|word| {
            let overlay = ground.overlay(Options::new());
            overlay.try_mount_with(&[*word]).is_err()
        })
    })
    .ok()
    .flatten()
}

/// Whether this kernel takes data-only layers.
pub(crate) fn takes_data_only() -> bool {
    on_ground(Ground::takes_data_only).unwrap_or(false)
}

/// The first of the lower layers that the kernel refuses whatever it is stacked with.
pub(crate) fn first_unsuitable(overlay: &Overlay) -> Option<(Role, PathBuf)> {
    let lowers = overlay.lowers.iter().map(|layer| (Role::Lower, layer));
    let data = overlay.data.iter().map(|layer| (Role::DataOnly, layer));
    on_ground(|ground| {
        lowers.chain(data).find_map(|(role, layer)| {
            let opened = layer.open_again(role).ok()?;
            let alone = Overlay::bottom_up([opened.path.as_path()])
                .upper(ground.directory(), ground.directory());
            let refused = matches!(
                alone.try_mount_with(&[]),
                Err(Failure::Kernel { source, .. }) if source == rustix::io::Errno::INVAL
            );
            refused.then_some((role, opened.path))
        })
    })
    .ok()
    .flatten()
}

/// A tmpfs with room for experiments, in a mount namespace of its own.
struct Ground {
    used: AtomicU32,
}

fn on_ground<T: Send>(work: impl FnOnce(&Ground) -> T + Send) -> Result<T> {
    let prepared = on_private_thread(|| {
        let attach = || {
            let fs = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&fs)?;
            let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            move_mount(
                &mount,
                c"",
                CWD,
                PRIVATE_TARGET,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        attach().map_err(|source| Failure::new(Step::Attach, source))?;
        Ok(work(&Ground {
            used: AtomicU32::new(0),
        }))
    });
    prepared.map_err(|failure| match failure {
        Failure::Known(error) => error,
        Failure::Kernel { step, source, .. } if source == rustix::io::Errno::PERM => {
            Error::NotPermitted {
                step,
                source: source.into(),
            }
        }
        Failure::Kernel { step, log, source } => Error::Mount {
            step,
            log,
            source: source.into(),
        },
    })
}

impl Ground {
    /// A new empty directory.
    fn directory(&self) -> PathBuf {
        let number = self.used.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("{PRIVATE_TARGET}/{number}"));
        // Mounting tells if that did not work.
        let _ = std::fs::create_dir(&path);
        path
    }

    fn overlay(&self, options: Options) -> Overlay {
        Overlay::bottom_up([self.directory()])
            .upper(self.directory(), self.directory())
            .options(options)
    }

    fn takes(&self, options: Options) -> bool {
        let overlay = self.overlay(options);
        let words = overlay.options.words();
        overlay.try_mount_with(&words).is_ok()
    }

    fn takes_data_only(&self) -> bool {
        let options = Options::new()
            .redirect_dir(RedirectDir::On)
            .metacopy(Metacopy::On);
        let overlay = self.overlay(options).data_only(self.directory());
        let words = overlay.options.words();
        overlay.try_mount_with(&words).is_ok()
    }

    fn clone_of_directory(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, self.directory(), flags)
    }

    fn takes_detached(&self) -> bool {
        let Ok(lower) = self.clone_of_directory() else {
            return false;
        };
        let overlay =
            Overlay::bottom_up([Layer::from(lower)]).upper(self.directory(), self.directory());
        let words = overlay.options.words();
        overlay.try_mount_with(&words).is_ok()
    }

    fn takes_descriptors(&self) -> bool {
        let (Ok(fs), Ok(directory)) = (
            fsconfig::open(),
            crate::layer::open_directory(&self.directory(), Role::Lower),
        ) else {
            return false;
        };
        fsconfig_set_fd(&fs, c"lowerdir+", directory.as_fd()).is_ok()
    }
}
