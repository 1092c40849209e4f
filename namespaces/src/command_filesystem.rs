//! The settings of a [`Command`] that are about the files that the program sees.

use std::path::Path;

use crate::{Command, Device, Mount, Propagation, Root};

impl Command {
    /// The new `/`, a directory or a detached mount. The old root is gone for the program.
    /// Needs [`Namespace::Mount`](crate::Namespace::Mount).
    #[doc(alias = "pivot_root")]
    pub fn root(&mut self, root: impl Into<Root>) -> &mut Self {
        self.root = Some(root.into());
        self
    }

    /// Whether the root itself is read-only; mounts in it are not touched.
    pub fn root_read_only(&mut self, read_only: bool) -> &mut Self {
        self.root_read_only = read_only;
        self
    }

    /// Whether the root and everything that is mounted in it are read-only from the start, before
    /// any mount is made in it: targets must exist then. Needs Linux 5.12.
    pub fn root_tree_read_only(&mut self, read_only: bool) -> &mut Self {
        self.root_tree_read_only = read_only;
        self
    }

    /// The propagation of the mounts of a new mount namespace; private by default.
    #[doc(alias = "rootfsPropagation")]
    pub fn root_propagation(&mut self, propagation: Propagation) -> &mut Self {
        self.root_propagation = propagation;
        self
    }

    /// Adds a mount, after those added before. Needs [`Namespace::Mount`](crate::Namespace::Mount).
    pub fn mount(&mut self, mount: Mount) -> &mut Self {
        self.mounts.push(mount);
        self
    }

    /// Adds mounts in order, for instance [`Mount::standard`].
    pub fn mounts(&mut self, mounts: impl IntoIterator<Item = Mount>) -> &mut Self {
        self.mounts.extend(mounts);
        self
    }

    /// Hides these paths of the new root after all mounts are made: a file behind `/dev/null`, a
    /// directory behind an empty read-only tmpfs. What does not exist is skipped.
    pub fn masked_paths(&mut self, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> &mut Self {
        self.masked
            .extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Makes these paths of the new root read-only after all mounts are made. What does not exist
    /// is skipped.
    pub fn read_only_paths(
        &mut self,
        paths: impl IntoIterator<Item = impl AsRef<Path>>,
    ) -> &mut Self {
        self.read_only
            .extend(paths.into_iter().map(|path| path.as_ref().to_owned()));
        self
    }

    /// Makes device nodes after all mounts are made.
    pub fn devices(&mut self, devices: impl IntoIterator<Item = Device>) -> &mut Self {
        self.devices.extend(devices);
        self
    }

    /// Makes a symbolic link at `path` of the new root that leads to `target`, after all mounts are
    /// made. What is there already stays. Needs [`Namespace::Mount`](crate::Namespace::Mount).
    #[doc(alias = "symlink")]
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &mut Self {
        self.links
            .push((path.as_ref().to_owned(), target.as_ref().to_owned()));
        self
    }
}
