//! The container's root filesystem: the image's layers, unpacked, under a writable layer.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use oci_image::{Devices, Image, Ownership, SkipReason, UnpackOptions, Unpacker, Whiteouts};
use overlayfs::{Fsync, Marks, Options, Overlay, Upper};

use crate::privilege::{self, Privilege};
use crate::report::Change;
use crate::rundir::RunDir;
use crate::signals::Signals;

/// Directories on which every container has something mounted. They are there also when the image
/// has none, below everything else, so that they do not count as changes of the container.
const MOUNT_POINTS: [&str; 3] = ["proc", "sys", "dev"];

/// The image's layers in directories, lowest first.
pub(crate) struct Rootfs<'a> {
    dir: &'a RunDir,
    lowers: Vec<PathBuf>,
    not_unpacked: Vec<String>,
}

impl<'a> Rootfs<'a> {
    /// Verifies and unpacks the image into the run's directory, until a signal comes.
    pub(crate) fn unpack(
        image: &Image,
        dir: &'a RunDir,
        privilege: Privilege,
        signals: &mut Signals,
    ) -> Result<Self> {
        let mount_points = dir.layer(0);
        for name in MOUNT_POINTS {
            DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(mount_points.join(name))
                .with_context(|| format!("cannot make {}", mount_points.join(name).display()))?;
        }
        let mut lowers = vec![mount_points];
        let mut below: Vec<Arc<OwnedFd>> = Vec::new();
        let mut not_unpacked = Vec::new();
        let options = options(privilege)?;
        for (index, layer) in image.layers().enumerate() {
            let path = dir.layer(index + 1);
            let opened = DirBuilder::new()
                .mode(0o755)
                .create(&path)
                .and_then(|()| File::open(&path));
            let opened = opened.with_context(|| format!("cannot make {}", path.display()))?;
            let reader = Interruptible {
                reader: layer.open()?,
                signals,
            };
            let unpacker = Unpacker::new(
                options.clone().below(below.iter().rev().cloned()),
                image.limits().clone(),
            );
            let report = unpacker.unpack(reader, &opened).with_context(|| {
                format!(
                    "cannot unpack layer {} of {}",
                    layer.descriptor().digest,
                    image.name()
                )
            })?;
            if report.opaque_root {
                lowers.truncate(1);
                below.clear();
            }
            lowers.push(path);
            below.push(Arc::new(opened.into()));
            not_unpacked.extend(
                report
                    .skipped
                    .into_iter()
                    .map(|skipped| match skipped.reason {
                        SkipReason::Device { major, minor } => {
                            format!("{}: device {major}:{minor} needs root", skipped.entry)
                        }
                        reason => format!("{}: {reason:?}", skipped.entry),
                    }),
            );
            if report.skipped_more > 0 {
                not_unpacked.push(format!("and {} more", report.skipped_more));
            }
        }
        if let Some(top) = below.last() {
            // The writable layer's own directory is what the container sees as `/`.
            like(&dir.upper(), top).context("cannot prepare the writable layer")?;
        }
        Ok(Self {
            dir,
            lowers,
            not_unpacked,
        })
    }

    /// Entries of the image that could not be made here, and why.
    pub(crate) fn take_not_unpacked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.not_unpacked)
    }

    /// Mounts the layers with the writable one on top, without attaching the mount anywhere: it
    /// goes away with its last user, whatever happens to this process.
    pub(crate) fn mount(&self) -> Result<OwnedFd> {
        let overlay = || {
            Overlay::bottom_up(self.lowers.iter().map(PathBuf::as_path))
                .upper(self.dir.upper().as_path(), self.dir.work().as_path())
                // Nothing of it outlives the run, so nothing needs to reach the disk: an honest
                // overlay would sync the whole filesystem below when it is unmounted.
                .options(
                    Options::new()
                        .marks(Marks::of_this_process())
                        .fsync(Fsync::Volatile),
                )
                // Both were just made for this run, whose lock is held.
                .exclusive()
                .source("cofferdam")
        };
        let mounted = match overlay().mount_detached() {
            // Most programs never notice.
            Err(error @ overlayfs::Error::UnsuitableUpper { .. }) => {
                let mounted = overlay().tolerate_missing_xattrs().mount_detached();
                if mounted.is_ok() {
                    eprintln!(
                        "cofferdam: directories of the image cannot be replaced inside: {error}"
                    );
                }
                mounted
            }
            mounted => mounted,
        };
        mounted.context("cannot mount the container's root filesystem")
    }

    /// What the writable layer changes in the layers below it.
    pub(crate) fn changes(&self) -> Result<Vec<Change>> {
        let upper = Upper::over_bottom_up(
            self.lowers.iter().map(PathBuf::as_path),
            self.dir.upper().as_path(),
        )
        .context("cannot read what the container changed")?;
        upper
            .changes()
            .map(|change| {
                let change = change.context("cannot read what the container changed")?;
                Ok(Change {
                    kind: change.letter(),
                    path: format!("/{}", change.path.display()),
                })
            })
            .collect()
    }
}

fn options(privilege: Privilege) -> Result<UnpackOptions> {
    Ok(match privilege {
        Privilege::Root => UnpackOptions::new(Whiteouts::Overlay),
        Privilege::User => {
            let options = UnpackOptions::new(Whiteouts::OverlayUser).devices(Devices::Skip);
            if privilege::has_one_id_only()? {
                options.ownership(Ownership::Squash { uid: 0, gid: 0 })
            } else {
                options
            }
        }
    })
}

/// Gives a directory the owner and mode of another one.
fn like(directory: &Path, other: &OwnedFd) -> io::Result<()> {
    let metadata = File::from(other.try_clone()?).metadata()?;
    chown(directory, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(directory, metadata.permissions())
}

/// A reader that ends with an error when a signal has come.
struct Interruptible<'a, R> {
    reader: R,
    signals: &'a mut Signals,
}

impl<R: BufRead> BufRead for Interruptible<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.signals.take().next().is_some() {
            return Err(io::Error::other("interrupted"));
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

impl<R: BufRead> Read for Interruptible<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}
