//! A store of images and unpacked layers that several processes share and that survives a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::below::Place;
use crate::blob::Blobs;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, ManifestOrIndex};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::ingest;
use crate::layout;
use crate::layout_writer::{LayoutWriter, Temporary, replace};
use crate::limits::Limits;
use crate::manifest::Manifest;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::report::UnpackReport;
use crate::rootdir;
use crate::side_by_side::{self, Job};
use crate::source::Source;
use crate::unpack::UnpackOptions;

/// A directory of images, by content.
///
/// It is an OCI layout that other tools can read, with unpacked layers beside it. Documents stay byte for byte what they
/// are, so an image that a registry has in Docker's schema 2 is in the layout as such; tools that look for OCI's media
/// types alone, as skopeo does, pass it over.
///
/// ```text
/// oci-layout, index.json, blobs/   the images; a name in the index keeps an image
/// layers/OPTIONS/CHAIN-ID/         unpacked layers, by how they were unpacked
/// leases/                          files that living processes hold locked; each keeps an image
/// pins/                            files that keep an image until they are removed
/// ingest/                          blobs that have not come as a whole yet; adding again goes on with them
/// tmp/                             what is being made
/// lock, lock.index
/// ```
///
/// What is made appears by a rename after it is on disk, so a process that is killed, or a machine that loses power,
/// leaves whole things and rubbish in `tmp/`, never half a thing under its name. Whatever is added is added under a
/// shared lock, and [`Store::collect`] removes under an exclusive one.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    limits: Limits,
}

/// How long a blob that did not come as a whole is kept to go on with.
const FORGET: Duration = Duration::from_hours(24);

/// Keeps an image and its unpacked layers from being collected, for as long as it lives; it ends with the process
/// at the latest.
#[derive(Debug)]
pub struct Lease {
    path: PathBuf,
    /// Locked; the kernel lets go of it when the process ends, however it ends.
    _file: File,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If it cannot be removed now, the next collection does, as nobody holds it.
        let _ = fs::remove_file(&self.path);
    }
}

/// An image in a [`Store`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredImage {
    /// Its name; a manifest without a name is there until the next collection.
    pub name: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// The unpacked layers of an image.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unpacked {
    /// The directories to be stacked, lowest first. Layers that are hidden as a whole are not among them.
    pub layers: Vec<PathBuf>,
    /// What was unpacked now; layers that were there already do not count.
    pub report: UnpackReport,
    /// Keeps the directories.
    pub lease: Lease,
}

/// What [`Store::collect`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub bytes: u64,
    /// Unpacked layers.
    pub layers: u64,
    /// Leases of processes that are gone.
    pub leases: u64,
}

fn failed<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

impl Store {
    /// Opens the store in the directory `path`, or makes one there that only its owner may enter.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what is wrong with the layout that is there.
    pub fn open(path: impl AsRef<Path>) -> Result<Store> {
        let path = path.as_ref();
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private
            .create(path)
            .map_err(failed("make the store", path))?;
        // The directory may have been made by somebody else, with other rights.
        let mode = fs::metadata(path)
            .map_err(failed("look at the store", path))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(failed("close the store to others", path))?;
        }
        for part in ["ingest", "layers", "leases", "pins", "tmp"] {
            let part = path.join(part);
            private
                .create(&part)
                .map_err(failed("make the directory", &part))?;
        }
        let store = Store {
            path: path.to_owned(),
            limits: Limits::default(),
        };
        let _index = store.lock("lock.index", true)?;
        LayoutWriter::open(path)?;
        Ok(store)
    }

    /// The caps that hold for images in the store.
    pub fn limits(mut self, limits: Limits) -> Store {
        self.limits = limits;
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self, name: &str, exclusive: bool) -> Result<File> {
        let path = self.path.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open the lock", &path))?;
        if exclusive {
            file.lock()
        } else {
            file.lock_shared()
        }
        .map_err(failed("lock", &path))?;
        Ok(file)
    }

    /// Adds `image` under `name`, in the place of an image that had the name before. Blobs that are there already
    /// are not copied, and of one that is there in part the rest is, so adding goes on where it was broken off.
    ///
    /// # Errors
    ///
    /// What is wrong with the image, or [`Error::Io`] when writing fails.
    pub fn add(&self, image: &Image, name: &Reference) -> Result<Image> {
        let _adding = self.lock("lock", false)?;
        LayoutWriter::open(&self.path)?
            .ingest(self.path.join("ingest"))
            .copy_blobs(image)?;
        let _index = self.lock("lock.index", true)?;
        LayoutWriter::open(&self.path)?.add_image_to_index(image, Some(&name.to_string()))?;
        self.by_digest(image.manifest().descriptor(), &name.to_string())
    }

    /// The image `name`, for the platform that fits `platform` best.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchImage`], and what is wrong with the image.
    pub fn image(&self, name: &Reference, platform: &Platform) -> Result<Image> {
        let image = Source::open_with(&self.path, self.limits.clone())?
            .image(Some(&name.to_string()), platform);
        image.map_err(|error| error.in_image(&name.to_string()))
    }

    /// All images, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// What is wrong with the index.
    pub fn images(&self) -> Result<Vec<StoredImage>> {
        let index = layout::read_directory(&self.path, &self.limits)?;
        Ok(index
            .manifests
            .iter()
            .map(|descriptor| StoredImage {
                name: descriptor.annotations.get(Descriptor::REF_NAME).cloned(),
                digest: descriptor.digest.clone(),
            })
            .collect())
    }

    /// Gives `image`, which is in the store, one more name.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBlob`] when the image is not in the store, or [`Error::Io`].
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<()> {
        self.add(image, name).map(drop)
    }

    /// Takes a name away; says whether there was an image of that name. The image goes with the next
    /// [`Store::collect`], unless something else keeps it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what is wrong with the index.
    pub fn remove(&self, name: &Reference) -> Result<bool> {
        let _index = self.lock("lock.index", true)?;
        LayoutWriter::open(&self.path)?.remove_from_index(&name.to_string())
    }

    fn by_digest(&self, descriptor: &Descriptor, name: &str) -> Result<Image> {
        let blobs = Arc::new(Blobs::Directory(self.path.clone()));
        let open = || {
            let manifest = read_manifest(&blobs, descriptor, &self.limits)?;
            Image::new(
                name.to_owned(),
                Arc::clone(&blobs),
                manifest,
                self.limits.clone(),
            )
        };
        open().map_err(|error| error.in_image(name))
    }

    /// Keeps `image` while the lease lives.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the lease cannot be written.
    pub fn lease(&self, image: &Image) -> Result<Lease> {
        let _adding = self.lock("lock", false)?;
        self.write_lease(image)
    }

    fn write_lease(&self, image: &Image) -> Result<Lease> {
        let path = Temporary::new(&self.path.join("leases")).keep();
        let mut file = File::create_new(&path).map_err(failed("make the lease", &path))?;
        file.lock().map_err(failed("lock", &path))?;
        let lease = Lease {
            path,
            _file: file.try_clone().map_err(failed("lock", &self.path))?,
        };
        file.write_all(&root_of(image)?)
            .map_err(failed("write the lease", &lease.path))?;
        Ok(lease)
    }

    /// Keeps `image` until [`Store::unpin`], also when no process lives; `name` is the caller's own, such as that of a
    /// container.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] for a name that is no file name, [`Error::Io`] when writing fails.
    pub fn pin(&self, name: &str, image: &Image) -> Result<()> {
        let _adding = self.lock("lock", false)?;
        replace(
            &self.path.join("tmp"),
            &self.pin_path(name)?,
            &root_of(image)?,
        )
    }

    /// Ends what [`Store::pin`] began; says whether there was such a pin.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] for a name that is no file name, [`Error::Io`] when it cannot be removed.
    pub fn unpin(&self, name: &str) -> Result<bool> {
        let path = self.pin_path(name)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn pin_path(&self, name: &str) -> Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if name.is_empty() || name.starts_with('.') || name.len() > 128 || !name.bytes().all(plain)
        {
            return Err(Error::BadValue {
                what: "pin",
                text: crate::error::excerpt(name),
                reason: "use up to 128 letters, digits, _, - and ., not starting with a .",
            });
        }
        Ok(self.path.join("pins").join(name))
    }

    /// Unpacks the layers of `image` that are not unpacked in the way of `options` yet, each into a directory of its
    /// own.
    ///
    /// # Errors
    ///
    /// As for [`Layer::unpack`](crate::Layer::unpack).
    pub fn unpack(&self, image: &Image, options: &UnpackOptions) -> Result<Unpacked> {
        let _adding = self.lock("lock", false)?;
        let lease = self.write_lease(image)?;
        // The same layer unpacked for another user is another directory.
        let kind = Digest::sha256(options.fingerprint().as_bytes());
        let base = self.path.join("layers").join(&kind.hex()[..16]);
        fs::create_dir_all(&base).map_err(failed("make the directory", &base))?;
        let mut places = Vec::with_capacity(image.layers().len());
        let mut jobs = Vec::new();
        // By number, the directory in which a layer is made, and its name when it is there. They are kept until all
        // is done, as the layers above may look into them.
        let mut making = BTreeMap::new();
        let names: Vec<PathBuf> = image
            .config()
            .chain_ids()
            .iter()
            .map(|chain_id| base.join(chain_id.hex()))
            .collect();
        for (number, (layer, name)) in image.layers().zip(&names).enumerate() {
            places.push(Arc::new(if name.is_dir() {
                Place::filled(Arc::new(open_directory(name)?))
            } else {
                let temporary = Temporary::new(&self.path.join("tmp"));
                fs::create_dir(&temporary.path)
                    .map_err(failed("make the directory", &temporary.path))?;
                let directory = Arc::new(open_directory(&temporary.path)?);
                jobs.push(Job { layer, number });
                making.insert(number, temporary);
                Place::empty(directory)
            }));
        }
        let report = side_by_side::unpack(&jobs, &places, options, |job| {
            let (from, to) = (&making[&job.number].path, &names[job.number]);
            // Everything must be on disk before the name says that it is there.
            rustix::fs::syncfs(places[job.number].directory())
                .map_err(|errno| failed("sync", from)(errno.into()))?;
            match fs::rename(from, to) {
                Ok(()) => sync_directory(&base),
                // Somebody else was faster, with the same result.
                Err(_) if to.is_dir() => Ok(()),
                Err(error) => Err(failed("rename a layer to", to)(error)),
            }
        })?;
        let opaque = |place: &Arc<Place>| crate::below::is_opaque(&place.directory());
        let first = places.iter().rposition(opaque).unwrap_or(0);
        Ok(Unpacked {
            layers: names[first..].to_vec(),
            report,
            lease,
        })
    }

    /// Removes what no name, lease or pin keeps: blobs, unpacked layers, leases of processes that are gone, and what
    /// was left unfinished. Waits until nobody is adding.
    ///
    /// # Errors
    ///
    /// When the documents of an image that is kept cannot be read, nothing is removed; see [`Store::repair`].
    pub fn collect(&self) -> Result<Collected> {
        let _alone = self.lock("lock", true)?;
        let mut collected = Collected::default();
        let mut roots: Vec<Descriptor> = layout::read_directory(&self.path, &self.limits)?
            .manifests
            .clone();
        for path in list(&self.path.join("pins"))? {
            roots.push(read_root(&path)?);
        }
        for path in list(&self.path.join("leases"))? {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if file.try_lock().is_ok() {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                collected.leases += 1;
            } else {
                roots.push(read_root(&path)?);
            }
        }
        let blobs = Blobs::Directory(self.path.clone());
        let (mut kept_blobs, mut kept_chains) = (BTreeSet::new(), BTreeSet::new());
        for root in roots {
            let manifest = read_manifest(&blobs, &root, &self.limits)?;
            kept_blobs.insert(root.digest.clone());
            kept_blobs.insert(manifest.config.digest.clone());
            kept_blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
            let config = blobs.read_document(&manifest.config, self.limits.document_bytes)?;
            let config =
                Document::<crate::config::ImageConfig>::parse(manifest.config.clone(), config)?;
            kept_chains.extend(config.chain_ids().iter().map(|id| id.hex().to_owned()));
        }
        for directory in list(&self.path.join("blobs"))? {
            let algorithm = directory
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            for path in list(&directory)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let keep = format!("{algorithm}:{name}")
                    .parse()
                    .is_ok_and(|digest: Digest| kept_blobs.contains(&digest));
                if !keep {
                    collected.bytes +=
                        fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                    collected.blobs += 1;
                }
            }
        }
        for kind in list(&self.path.join("layers"))? {
            for path in list(&kind)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if !kept_chains.contains(name.as_ref()) {
                    // Away from its name first: half a layer must not look like one.
                    let doomed = Temporary::new(&self.path.join("tmp")).keep();
                    fs::rename(&path, &doomed).map_err(failed("remove", &path))?;
                    collected.layers += 1;
                }
            }
        }
        ingest::forget(&self.path.join("ingest"), FORGET)?;
        let tmp = self.path.join("tmp");
        let directory = open_directory(&tmp)?;
        rootdir::remove_contents(&directory, &|_, _| false)
            .map_err(|errno| failed("empty", &tmp)(errno.into()))?;
        Ok(collected)
    }

    /// Reads all images again, every byte, and tells what is wrong with them.
    ///
    /// # Errors
    ///
    /// Only when the index itself cannot be read.
    pub fn verify(&self) -> Result<Vec<Error>> {
        let _adding = self.lock("lock", false)?;
        let index = layout::read_directory(&self.path, &self.limits)?;
        Ok(index
            .manifests
            .iter()
            .filter_map(|descriptor| self.check(descriptor).err())
            .collect())
    }

    /// Removes the blobs that are damaged and the names of the images that need them, which can then be added again.
    /// Returns these names.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what is wrong with the index.
    pub fn repair(&self) -> Result<Vec<String>> {
        let _alone = self.lock("lock", true)?;
        let _index = self.lock("lock.index", true)?;
        let mut writer = LayoutWriter::open(&self.path)?;
        let mut names = Vec::new();
        for descriptor in writer.manifests() {
            let Err(error) = self.check(&descriptor) else {
                continue;
            };
            let blob = match (error.cause(), &error) {
                (Error::DigestMismatch { expected, .. }, _) => Some(expected.clone()),
                (Error::Oversized { digest, .. }, _) => Some(digest.clone()),
                (Error::Truncated { .. }, Error::InImage { cause, .. }) => match cause.as_ref() {
                    Error::InLayer { layer, .. } => Some(layer.clone()),
                    _ => None,
                },
                _ => None,
            };
            if let Some(digest) = blob {
                let path = writer.blob_path(&digest);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed("remove", &path)(error));
                    }
                    _ => {}
                }
            }
            names.extend(descriptor.annotations.get(Descriptor::REF_NAME).cloned());
            writer.drop_from_index(&descriptor)?;
        }
        Ok(names)
    }

    fn check(&self, descriptor: &Descriptor) -> Result<()> {
        let name = descriptor
            .annotations
            .get(Descriptor::REF_NAME)
            .cloned()
            .unwrap_or_else(|| descriptor.digest.to_string());
        let image = self.by_digest(descriptor, &name)?;
        for layer in image.layers() {
            let mut blob = image
                .blob(layer.descriptor())
                .map_err(|error| layer.in_context(error))?;
            io::copy(&mut blob, &mut io::sink()).map_err(|source| {
                layer.in_context(Error::from_io(source, |source| Error::Stream {
                    operation: "read a blob",
                    source,
                }))
            })?;
        }
        Ok(())
    }
}

fn read_manifest(
    blobs: &Blobs,
    descriptor: &Descriptor,
    limits: &Limits,
) -> Result<Document<Manifest>> {
    let bytes = blobs.read_document(descriptor, limits.document_bytes)?;
    match ManifestOrIndex::parse(descriptor.clone(), bytes)? {
        ManifestOrIndex::Manifest(manifest) => Ok(*manifest),
        ManifestOrIndex::Index(index) => Err(Error::UnsupportedMediaType {
            digest: index.digest().clone(),
            found: index.descriptor().media_type.clone(),
            expected: "an image manifest, as the store holds no indexes",
        }),
    }
}

/// What a lease or a pin holds: the descriptor of a manifest.
fn root_of(image: &Image) -> Result<Vec<u8>> {
    serde_json::to_vec(image.manifest().descriptor()).map_err(|source| Error::Json {
        document: "a lease".to_owned(),
        source,
    })
}

fn read_root(path: &Path) -> Result<Descriptor> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .map_err(failed("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        document: path.display().to_string(),
        source,
    })
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    };
    read().map_err(failed("read", directory))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let file = File::open(path).map_err(failed("open", path))?;
    Ok(file.into())
}

fn sync_directory(path: &Path) -> Result<()> {
    let directory = open_directory(path)?;
    rustix::fs::fsync(directory.as_fd()).map_err(|errno| failed("sync", path)(errno.into()))
}
