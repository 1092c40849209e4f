//! Unpacking layers into directories.

use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::below::{Below, Place};
use crate::error::{Error, Result};
use crate::extract::Extractor;
use crate::image::{Image, Layer};
use crate::limits::Limits;
use crate::ownership::Ownership;
use crate::report::UnpackReport;
use crate::tar_reader::TarReader;
use crate::whiteout::Whiteouts;

/// What becomes of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Devices {
    /// They are made; needs `CAP_MKNOD` in the initial user namespace.
    Create,
    /// They are left out, and the [`UnpackReport`] names them.
    Skip,
}

/// What becomes of extended attributes that the filesystem or the kernel refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Xattrs {
    /// They are left out, and the [`UnpackReport`] names them.
    Lenient,
    /// They are an error.
    Strict,
}

/// How a layer is unpacked.
///
/// ```
/// use oci_image::{Devices, Ownership, UnpackOptions, Whiteouts};
///
/// // For a user who has only one id, and overlayfs mounted in a user namespace:
/// let options = UnpackOptions::new(Whiteouts::OverlayUser)
///     .ownership(Ownership::Squash { uid: 1000, gid: 1000 })
///     .devices(Devices::Skip);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    pub(crate) whiteouts: Whiteouts,
    pub(crate) ownership: Ownership,
    pub(crate) devices: Devices,
    pub(crate) xattrs: Xattrs,
    pub(crate) parallel: usize,
    pub(crate) below: Below,
}

impl UnpackOptions {
    /// Owners are kept, devices are made, attributes that are refused are left out.
    pub fn new(whiteouts: Whiteouts) -> UnpackOptions {
        UnpackOptions {
            whiteouts,
            ownership: Ownership::Keep,
            devices: Devices::Create,
            xattrs: Xattrs::Lenient,
            parallel: 2,
            below: Below::default(),
        }
    }

    /// Who owns what is unpacked.
    pub fn ownership(mut self, ownership: Ownership) -> UnpackOptions {
        self.ownership = ownership;
        self
    }

    /// What becomes of device nodes.
    pub fn devices(mut self, devices: Devices) -> UnpackOptions {
        self.devices = devices;
        self
    }

    /// What becomes of attributes that are refused.
    pub fn xattrs(mut self, xattrs: Xattrs) -> UnpackOptions {
        self.xattrs = xattrs;
        self
    }

    /// How many layers are unpacked at a time where each has a directory of its own. One takes up to three processors,
    /// and up to 12 MiB of memory. Default 2.
    pub fn parallel(mut self, layers: usize) -> UnpackOptions {
        self.parallel = layers.max(1);
        self
    }

    /// The directories of the layers below, topmost first.
    ///
    /// They are used where a layer relies on what is below it, when each layer has a directory of its own: a directory
    /// that the layer does not list but puts something in takes over owner, mode and time from below (overlayfs would
    /// otherwise show the new ones), and a hard link to a file below gets a copy of that file to link to.
    ///
    /// [`Image::unpack_layers`] and [`Store`](crate::Store) see to that themselves.
    pub fn below(mut self, layers: impl IntoIterator<Item = Arc<OwnedFd>>) -> UnpackOptions {
        self.below = Below::new(
            layers
                .into_iter()
                .map(|layer| Arc::new(Place::filled(layer))),
        );
        self
    }

    /// Tells apart options that give different results.
    pub(crate) fn fingerprint(&self) -> String {
        format!(
            "{:?} {:?} {:?} {:?}",
            self.whiteouts, self.ownership, self.devices, self.xattrs
        )
    }
}

/// Unpacks tar streams that are not part of an [`Image`].
#[derive(Clone, Debug)]
pub struct Unpacker {
    options: UnpackOptions,
    limits: Limits,
}

impl Unpacker {
    /// An unpacker with `options`, within `limits`.
    pub fn new(options: UnpackOptions, limits: Limits) -> Unpacker {
        Unpacker { options, limits }
    }

    /// Unpacks the uncompressed tar stream `archive` into the directory `dir`, and reads it to its end.
    ///
    /// # Errors
    ///
    /// What is wrong with the archive, with the entry's name in [`Error::InEntry`]. What was unpacked before stays in
    /// the directory, which should then be thrown away.
    #[doc(alias = "openat2")]
    pub fn unpack(&self, archive: impl BufRead, dir: impl AsFd) -> Result<UnpackReport> {
        let mut reader = TarReader::new(archive, &self.limits);
        let mut extractor = Extractor::new(dir.as_fd(), &self.options, &self.limits)?;
        while let Some(entry) = reader.next_entry()? {
            extractor
                .entry(&entry, &mut reader)
                .map_err(|error| error.in_entry(&entry.path, entry.offset))?;
        }
        let report = extractor.finish()?;
        // The digests of a layer cover what follows the archive's end, too.
        io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(|source| {
            Error::from_io(source, |source| Error::Stream {
                operation: "read the archive",
                source,
            })
        })?;
        Ok(report)
    }
}

impl Layer<'_> {
    /// Verifies the layer and unpacks it into the directory `dir`, in one pass.
    ///
    /// # Errors
    ///
    /// A layer that is damaged or was tampered with is noticed by its end at the latest; what was unpacked before stays
    /// in the directory, which must then not be used. Errors name the image, the layer and the entry.
    pub fn unpack(&self, dir: impl AsFd, options: &UnpackOptions) -> Result<UnpackReport> {
        let unpack = || {
            let reader = self.open_to_unpack()?;
            Unpacker::new(options.clone(), self.image().limits().clone()).unpack(reader, dir)
        };
        unpack().map_err(|error| self.in_context(error))
    }
}

impl Image {
    /// Verifies all layers and unpacks them one over the other into the directory `dir`, whiteouts carried out
    /// ([`Whiteouts::Apply`], whatever `options` says).
    ///
    /// # Errors
    ///
    /// As for [`Layer::unpack`].
    pub fn unpack_flat(&self, dir: impl AsFd, options: &UnpackOptions) -> Result<UnpackReport> {
        let options = UnpackOptions {
            whiteouts: Whiteouts::Apply,
            below: Below::default(),
            ..options.clone()
        };
        let mut report = UnpackReport::default();
        for layer in self.layers() {
            report.add(layer.unpack(dir.as_fd(), &options)?);
        }
        Ok(report)
    }
}
