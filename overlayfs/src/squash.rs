//! One tree in place of several layers.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::changes::Upper;
use crate::copy::{CopyOptions, Form, Writer};
use crate::diagnose::is_within;
use crate::error::{Error, Result, Role};
use crate::layer::open_directory;
use crate::lookup::{INDEX, Layers};
use crate::merged::Merged;
use crate::staging::Staging;

/// What a squashed layer will stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing: it is the bottom layer, and needs no marks.
    Nothing,
    /// Other layers, of which it must say what it deletes, replaces and moves.
    Layers,
}

impl From<Below> for Form {
    fn from(below: Below) -> Self {
        match below {
            Below::Nothing => Form::Bottom,
            Below::Layers => Form::Layer,
        }
    }
}

impl Merged {
    /// Copies the merged tree out to `target`, as `cp -a` would copy it from a mount.
    ///
    /// The copy has no marks of overlayfs. Extents are shared where the filesystem can,
    /// holes stay holes, and hard links stay together. The tree is made beside `target`
    /// and appears there in one step; what a killed process leaves is removed by the next
    /// call for the same target.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], with `EEXIST` if there is something at `target` and
    /// [`CopyOptions::replace`] is not set; [`Error::TargetBusy`] while another process
    /// writes there.
    #[doc(alias = "cp")]
    pub fn flatten(&self, target: impl AsRef<Path>, options: CopyOptions) -> Result<()> {
        write(&self.layers, target.as_ref(), Form::Plain, options, None)
    }

    /// Writes the layers as one layer that means the same over any layers below.
    ///
    /// With [`Below::Layers`], whiteouts, opaque directories and redirects that concern layers below stay, and so
    /// do metacopies whose contents are below.
    ///
    /// `target` may be one of the layers if [`CopyOptions::replace`] is set: it is then
    /// replaced in one step. A stack that has both the squashed layer and those that went
    /// into it still shows the same, as long as they have no redirects.
    ///
    /// # Errors
    ///
    /// As [`flatten`](Merged::flatten).
    pub fn squash(
        &self,
        target: impl AsRef<Path>,
        below: Below,
        options: CopyOptions,
    ) -> Result<()> {
        write(&self.layers, target.as_ref(), below.into(), options, None)
    }
}

impl Upper {
    /// A file that has another name in a layer further down cannot be changed there by a
    /// change of the topmost lower layer.
    fn refuse_shared_names(&self) -> Result<()> {
        for entry in self.merged.walk() {
            let node = entry?.node;
            if let [copy, original, ..] = &node.stack[..]
                && copy.layer == INDEX
                && original.layer > 1
            {
                return Err(Error::SharedWithLowerLayer { path: node.path });
            }
        }
        Ok(())
    }

    /// Replaces the topmost lower layer, `lower`, by itself with the upper layer's changes.
    ///
    /// Files that are not changed are not copied: they get a second name in the new tree
    /// while the old one is still there. The change is made in one step. Afterwards the
    /// upper layer says nothing new and is to be discarded; with redirects in it, it must
    /// not be mounted over the new layer.
    ///
    /// # Errors
    ///
    /// [`Error::SharedWithLowerLayer`] for a hard link that was copied up with `index=on` and
    /// has a name further down, [`Error::NotTheTopLayer`] if `lower` is another directory than the topmost lower
    /// layer; otherwise as [`Merged::flatten`].
    pub fn commit(&self, lower: impl AsRef<Path>, options: CopyOptions) -> Result<()> {
        let lower = lower.as_ref();
        let layers = &self.merged.layers;
        let directory = open_directory(lower, Role::Lower)?;
        let top = &layers.roots[1];
        if crate::legacy::identity(directory.as_fd()).ok() != top.identity() {
            return Err(Error::NotTheTopLayer {
                path: lower.to_owned(),
                top: top.name(Path::new("")),
            });
        }
        let below = if layers.roots.len() == 2 {
            Below::Nothing
        } else {
            Below::Layers
        };
        if below == Below::Layers && layers.index.as_ref().is_some_and(|index| !index.is_empty()) {
            self.refuse_shared_names()?;
        }
        let pair = layers.topmost(2)?;
        write(&pair, lower, below.into(), options.replace(true), Some(1))
    }
}

fn write(
    layers: &Layers,
    target: &Path,
    form: Form,
    options: CopyOptions,
    share_from: Option<usize>,
) -> Result<()> {
    let staging = Staging::beside(target)?;
    let tree = staging.tree()?;
    for root in &layers.roots {
        if is_within(tree.as_fd(), root.as_fd()) {
            return Err(Error::LayersOverlap {
                inner_role: Role::Target,
                inner: target.to_owned(),
                outer_role: Role::Lower,
                outer: root.name(Path::new("")),
            });
        }
    }
    let mut writer = Writer::new(layers, tree, form, options)?;
    if let Some(layer) = share_from {
        writer = writer.sharing_from(layer);
    }
    writer.tree(layers.top()?, PathBuf::new())?;
    staging.publish(options)
}
