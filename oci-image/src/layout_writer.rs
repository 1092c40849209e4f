//! Writing images into an OCI layout directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::artifact::{self, ArtifactBuilder};
use crate::config::{HistoryEntry, ImageConfig};
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::ingest;
use crate::layer_writer::{LayerWriter, PackOptions, PackedLayer};
use crate::layout;
use crate::limits::Limits;
use crate::manifest::{Index, Manifest};
use crate::media_type::MediaType;
use crate::pack::Entry;
use crate::parallel::side_by_side;
use crate::platform::Platform;

/// An image that is being put together: its configuration and its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBuilder {
    config: ImageConfig,
    layers: Vec<PackedLayer>,
    annotations: BTreeMap<String, String>,
}

impl ImageBuilder {
    /// An image without layers for `platform`.
    pub fn new(platform: &Platform) -> ImageBuilder {
        ImageBuilder::from_config(ImageConfig::new(platform))
    }

    /// An image with a configuration of which the layers do not count.
    pub fn from_config(mut config: ImageConfig) -> ImageBuilder {
        config.rootfs.diff_ids.clear();
        ImageBuilder {
            config,
            layers: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: PackedLayer, created_by: impl Into<String>) -> ImageBuilder {
        self.config.history.push(HistoryEntry {
            created: self.config.created.clone(),
            created_by: Some(created_by.into()),
            ..HistoryEntry::default()
        });
        self.layers.push(layer);
        self
    }

    /// When the image was made, in seconds since 1970. Comes before [`ImageBuilder::layer`] if the history is to say
    /// so, too.
    pub fn created(mut self, seconds: i64) -> ImageBuilder {
        self.config.created = Some(rfc3339(seconds));
        self
    }

    /// The first words of the command line.
    pub fn entrypoint<S: Into<String>>(
        mut self,
        words: impl IntoIterator<Item = S>,
    ) -> ImageBuilder {
        self.config.config.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// The words after the entrypoint, unless the caller gives others.
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> ImageBuilder {
        self.config.config.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> ImageBuilder {
        self.config
            .config
            .env
            .push(format!("{}={}", name.as_ref(), value.as_ref()));
        self
    }

    /// The working directory.
    pub fn working_dir(mut self, path: impl Into<String>) -> ImageBuilder {
        self.config.config.working_dir = path.into();
        self
    }

    /// The user, as in [`UserSpec`](crate::UserSpec).
    pub fn user(mut self, user: impl Into<String>) -> ImageBuilder {
        self.config.config.user = user.into();
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> ImageBuilder {
        self.config.config.labels.insert(key.into(), value.into());
        self
    }

    /// Offers a port, such as `80/tcp`.
    pub fn expose(mut self, port: impl Into<String>) -> ImageBuilder {
        self.config
            .config
            .exposed_ports
            .insert(port.into(), Value::Object(serde_json::Map::new()));
        self
    }

    /// Adds an annotation to the manifest.
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> ImageBuilder {
        self.annotations.insert(key.into(), value.into());
        self
    }
}

/// Writes images into an OCI layout directory.
///
/// Each file is written under another name, synced and renamed, and the index comes last: whoever reads the layout
/// meanwhile, or after a crash, sees whole images only.
#[derive(Debug)]
pub struct LayoutWriter {
    path: PathBuf,
    index: Index,
    /// Where blobs are put together that may be broken off; without it they begin anew.
    ingest: Option<PathBuf>,
}

impl LayoutWriter {
    /// Opens the layout in the directory `path`, or makes one there.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], or what is wrong with a layout that is there already.
    pub fn open(path: impl AsRef<Path>) -> Result<LayoutWriter> {
        let path = path.as_ref();
        let blobs = path.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_error("make the directory", &blobs))?;
        let marker = path.join(layout::MARKER);
        if path.join(layout::INDEX).exists() {
            let index = layout::read_directory(path, &Limits::default())?;
            return Ok(LayoutWriter {
                path: path.to_owned(),
                index: (*index).clone(),
                ingest: None,
            });
        }
        let version = format!(r#"{{"imageLayoutVersion":"{}"}}"#, layout::VERSION);
        replace(path, &marker, version.as_bytes())?;
        let writer = LayoutWriter {
            path: path.to_owned(),
            index: Index {
                schema_version: 2,
                media_type: Some(MediaType::new(MediaType::OCI_INDEX)),
                artifact_type: None,
                manifests: Vec::new(),
                subject: None,
                annotations: BTreeMap::new(),
                other: serde_json::Map::new(),
            },
            ingest: None,
        };
        writer.write_index()?;
        Ok(writer)
    }

    /// Puts blobs together in `directory`, which is on the same file system, and goes on with what is there of them.
    pub(crate) fn ingest(mut self, directory: PathBuf) -> LayoutWriter {
        self.ingest = Some(directory);
        self
    }

    /// Writes a layer of `entries`, in their order.
    ///
    /// # Errors
    ///
    /// As for [`LayerWriter::append`].
    pub fn layer(
        &self,
        entries: impl IntoIterator<Item = Result<Entry>>,
        options: &PackOptions,
    ) -> Result<PackedLayer> {
        let directory = self.path.join("blobs/sha256");
        let failed = |source| Error::Io {
            operation: "write a blob in",
            path: directory.clone(),
            source,
        };
        let temporary = Temporary::new(&directory);
        let file = File::create_new(&temporary.path).map_err(failed)?;
        let mut writer =
            LayerWriter::new(BufWriter::with_capacity(128 << 10, file), options.clone())?;
        writer.append_all(entries)?;
        let (layer, out) = writer.finish()?;
        let file = out
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        temporary.rename(&self.blob_path(&layer.descriptor.digest))?;
        Ok(layer)
    }

    /// Writes the documents of an image whose layers are in the layout, under `name` if it is to have one (in place of
    /// an image that had the name before).
    ///
    /// # Errors
    ///
    /// [`Error::MissingBlob`] for a layer that is not in the layout, [`Error::Io`] when writing fails.
    pub fn image(&mut self, name: Option<&str>, image: ImageBuilder) -> Result<Document<Manifest>> {
        let ImageBuilder {
            mut config,
            layers,
            annotations,
        } = image;
        self.check_blobs(layers.iter().map(|layer| &layer.descriptor))?;
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let platform = config.platform();
        let config = Document::new(MediaType::OCI_CONFIG, config)?;
        self.write_blob(&config)?;
        let manifest = Document::new(
            MediaType::OCI_MANIFEST,
            Manifest {
                schema_version: 2,
                media_type: Some(MediaType::new(MediaType::OCI_MANIFEST)),
                artifact_type: None,
                config: config.descriptor().clone(),
                layers: layers.into_iter().map(|layer| layer.descriptor).collect(),
                subject: None,
                annotations,
                other: serde_json::Map::new(),
            },
        )?;
        self.write_blob(&manifest)?;
        let mut descriptor = manifest.descriptor().clone();
        descriptor.platform = Some(platform);
        self.add_to_index(descriptor, name)?;
        Ok(manifest)
    }

    /// Writes a blob of any kind, such as one of an artifact.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when writing fails, [`Error::Stream`] when reading does.
    pub fn blob(
        &self,
        media_type: impl Into<MediaType>,
        mut contents: impl Read,
    ) -> Result<Descriptor> {
        let directory = self.path.join("blobs/sha256");
        let failed = io_error("write a blob in", &directory);
        let temporary = Temporary::new(&directory);
        let mut file = File::create_new(&temporary.path).map_err(&failed)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; 128 << 10];
        let mut size = 0;
        loop {
            let n = match contents.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(Error::from_io(source, |source| Error::Stream {
                        operation: "read the contents of a blob",
                        source,
                    }));
                }
            };
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(&failed)?;
            size += n as u64;
        }
        file.sync_all().map_err(&failed)?;
        let descriptor = Descriptor::new(media_type, hasher.finish(), size);
        temporary.rename(&self.blob_path(&descriptor.digest))?;
        Ok(descriptor)
    }

    /// Writes the manifest of content that is no image and whose blobs are in the layout, under `name` if it is to
    /// have one. [`Source::referrers`](crate::Source::referrers) finds it by its subject.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBlob`] for a blob that is not in the layout, [`Error::Io`] when writing fails.
    pub fn artifact(
        &mut self,
        name: Option<&str>,
        artifact: ArtifactBuilder,
    ) -> Result<Document<Manifest>> {
        let manifest = artifact.manifest()?;
        self.blob(MediaType::OCI_EMPTY, artifact::EMPTY)?;
        self.check_blobs(manifest.layers.iter())?;
        self.write_blob(&manifest)?;
        let mut descriptor = manifest.descriptor().clone();
        // Whoever looks for an image passes over it.
        descriptor.artifact_type.clone_from(&manifest.artifact_type);
        self.add_to_index(descriptor, name)?;
        Ok(manifest)
    }

    fn check_blobs<'a>(&self, mut blobs: impl Iterator<Item = &'a Descriptor>) -> Result<()> {
        blobs.try_for_each(|blob| {
            let place = self.blob_path(&blob.digest);
            if place.exists() {
                return Ok(());
            }
            Err(Error::MissingBlob {
                digest: blob.digest.clone(),
                place,
            })
        })
    }

    /// Copies an image into the layout, under `name` if it is to have one. Its documents stay byte for byte what they
    /// are; every blob is verified, and one that is in the layout with the right size is not copied again.
    ///
    /// # Errors
    ///
    /// What is wrong with the image, or [`Error::Io`] when writing fails.
    pub fn copy(&mut self, image: &Image, name: Option<&str>) -> Result<()> {
        self.copy_blobs(image)?;
        self.add_image_to_index(image, name)
    }

    pub(crate) fn copy_blobs(&self, image: &Image) -> Result<()> {
        let mut seen = BTreeSet::new();
        let layers: Vec<Layer<'_>> = image
            .layers()
            .filter(|layer| seen.insert(&layer.descriptor().digest))
            .collect();
        side_by_side(image.parallel(), &layers, |layer| {
            self.copy_blob(image, layer.descriptor())
                .map_err(|error| layer.in_context(error))
        })?;
        self.write_blob(image.config())?;
        self.write_blob(image.manifest())
    }

    pub(crate) fn add_image_to_index(&mut self, image: &Image, name: Option<&str>) -> Result<()> {
        let mut descriptor = image.manifest().descriptor().clone();
        descriptor.annotations.clear();
        descriptor.platform = Some(image.config().platform());
        self.add_to_index(descriptor, name)
    }

    pub(crate) fn manifests(&self) -> Vec<Descriptor> {
        self.index.manifests.clone()
    }

    /// Takes `name` out of the index; says whether it was there.
    pub(crate) fn remove_from_index(&mut self, name: &str) -> Result<bool> {
        let before = self.index.manifests.len();
        self.index.manifests.retain(|known| {
            known
                .annotations
                .get(Descriptor::REF_NAME)
                .map(String::as_str)
                != Some(name)
        });
        let removed = self.index.manifests.len() < before;
        if removed {
            self.write_index()?;
        }
        Ok(removed)
    }

    pub(crate) fn drop_from_index(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.index.manifests.retain(|known| known != descriptor);
        self.write_index()
    }

    fn copy_blob(&self, image: &Image, descriptor: &Descriptor) -> Result<()> {
        let path = self.blob_path(&descriptor.digest);
        if ingest::is_present(&path, descriptor) {
            return Ok(());
        }
        let directory = self.make_blob_directory(&descriptor.digest)?;
        if let Some(ingest) = &self.ingest {
            return ingest::blob(ingest, image, descriptor, &path);
        }
        let failed = io_error("write", &path);
        let temporary = Temporary::new(&directory);
        let mut file = File::create_new(&temporary.path).map_err(&failed)?;
        let mut blob = image.blob(descriptor)?;
        std::io::copy(&mut blob, &mut file).map_err(|source| Error::from_io(source, &failed))?;
        file.sync_all().map_err(&failed)?;
        temporary.rename(&path)
    }

    fn make_blob_directory(&self, digest: &Digest) -> Result<PathBuf> {
        let directory = self.path.join("blobs").join(digest.algorithm().as_str());
        fs::create_dir_all(&directory).map_err(io_error("make the directory", &directory))?;
        Ok(directory)
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path
            .join("blobs")
            .join(digest.algorithm().as_str())
            .join(digest.hex())
    }

    fn add_to_index(&mut self, mut descriptor: Descriptor, name: Option<&str>) -> Result<()> {
        if let Some(name) = name {
            descriptor
                .annotations
                .insert(Descriptor::REF_NAME.to_owned(), name.to_owned());
        }
        self.index.manifests.retain(|known| {
            let known_name = known
                .annotations
                .get(Descriptor::REF_NAME)
                .map(String::as_str);
            known_name != name || (name.is_none() && known.digest != descriptor.digest)
        });
        self.index.manifests.push(descriptor);
        self.write_index()
    }

    fn write_blob<T>(&self, document: &Document<T>) -> Result<()> {
        replace(
            &self.make_blob_directory(document.digest())?,
            &self.blob_path(document.digest()),
            document.bytes(),
        )
    }

    fn write_index(&self) -> Result<()> {
        let bytes = serde_json::to_vec(&self.index).map_err(|source| Error::Json {
            document: layout::INDEX.to_owned(),
            source,
        })?;
        replace(&self.path, &self.path.join(layout::INDEX), &bytes)
    }
}

pub(crate) fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// A file that is removed unless it is renamed.
pub(crate) struct Temporary {
    pub(crate) path: PathBuf,
}

impl Temporary {
    pub(crate) fn new(directory: &Path) -> Temporary {
        use std::hash::{BuildHasher, Hasher};
        // Unpredictable enough not to meet another writer's; `create_new` refuses if it does.
        let random = std::hash::RandomState::new().build_hasher().finish();
        Temporary {
            path: directory.join(format!(".tmp-{}-{random:016x}", std::process::id())),
        }
    }

    /// Its name, for something that is not removed.
    pub(crate) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }

    pub(crate) fn rename(self, to: &Path) -> Result<()> {
        rename_durably(&self.path, to)
    }
}

/// Renames, so that it is not undone by a loss of power.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io_error("rename a new file to", to))?;
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", directory))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed or never made: both are fine. What cannot be removed is rubbish that a later collection finds.
        if fs::remove_file(&self.path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::IsADirectory)
        {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Writes a whole file under another name and renames it.
pub(crate) fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = Temporary::new(directory);
    let failed = io_error("write", path);
    let mut file = File::create_new(&temporary.path).map_err(&failed)?;
    file.write_all(bytes).map_err(&failed)?;
    file.sync_all().map_err(&failed)?;
    temporary.rename(path)
}

/// Seconds since 1970 as RFC 3339 text in UTC.
fn rfc3339(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    // Days since 0000-03-01, in eras of 400 years; years begin in March so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
