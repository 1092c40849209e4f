//! Writing images into a tar file: the layout of OCI, or what `docker load` has always read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use serde::Serialize;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::docker_archive;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layout;
use crate::manifest::Index;
use crate::media_type::MediaType;
use crate::reference::Reference;
use crate::tar_header::{BLOCK, Header};

/// Regular files in a tar stream; each name is written once.
struct Files<W> {
    out: W,
    written: BTreeSet<String>,
}

impl<W: Write> Files<W> {
    fn new(out: W) -> Files<W> {
        Files {
            out,
            written: BTreeSet::new(),
        }
    }

    /// Writes `size` bytes of `contents`, unless there is such a file already.
    fn file(
        &mut self,
        name: String,
        size: u64,
        contents: impl FnOnce() -> Result<Box<dyn Read>>,
    ) -> Result<()> {
        if self.written.contains(&name) {
            return Ok(());
        }
        let mut contents = contents()?;
        let mut records = Vec::new();
        let mut header = Header::new(b'0');
        // The names are short and ASCII; only a size may need a record.
        header.name(name.as_bytes(), &mut records);
        header.octal(100..108, 0o644);
        header.size(size, &mut records);
        if !records.is_empty() {
            let mut extended = Header::new(b'x');
            let length = records.len() as u64;
            extended.name(b"PaxHeaders/0", &mut Vec::new());
            extended.octal(100..108, 0o644);
            extended.size(length, &mut Vec::new());
            self.write(&extended.finish())?;
            self.write(&records)?;
            self.pad(length)?;
        }
        self.write(&header.finish())?;
        let written = io::copy(&mut contents, &mut self.out)
            .map_err(|source| Error::from_io(source, failed))?;
        if written != size {
            return Err(Error::Truncated {
                what: name,
                expected: size,
                found: written,
            });
        }
        self.pad(size)?;
        self.written.insert(name);
        Ok(())
    }

    fn bytes(&mut self, name: String, bytes: Vec<u8>) -> Result<()> {
        self.file(name, bytes.len() as u64, || {
            Ok(Box::new(io::Cursor::new(bytes)))
        })
    }

    fn finish(mut self) -> Result<W> {
        self.write(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(failed)?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(failed)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        match usize::try_from(size % BLOCK as u64).unwrap_or(0) {
            0 => Ok(()),
            over => self.write(&[0; BLOCK][over..]),
        }
    }
}

fn failed(source: io::Error) -> Error {
    Error::Stream {
        operation: "write the archive",
        source,
    }
}

fn json(document: &str, value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Json {
        document: document.to_owned(),
        source,
    })
}

/// Writes an OCI archive: a layout in a tar file. The same images give the same bytes.
pub struct OciArchiveWriter<W> {
    files: Files<W>,
    index: Index,
}

impl<W: Write> OciArchiveWriter<W> {
    /// Writes to `out`, which had better be buffered.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when writing fails.
    pub fn new(out: W) -> Result<OciArchiveWriter<W>> {
        let mut files = Files::new(out);
        let version = format!(r#"{{"imageLayoutVersion":"{}"}}"#, layout::VERSION);
        files.bytes(layout::MARKER.to_owned(), version.into_bytes())?;
        Ok(OciArchiveWriter {
            files,
            index: Index {
                schema_version: 2,
                media_type: Some(MediaType::new(MediaType::OCI_INDEX)),
                artifact_type: None,
                manifests: Vec::new(),
                subject: None,
                annotations: BTreeMap::new(),
                other: serde_json::Map::new(),
            },
        })
    }

    /// Adds an image, its documents byte for byte as they are; every blob is verified.
    ///
    /// # Errors
    ///
    /// What is wrong with the image, or [`Error::Stream`] when writing fails.
    pub fn image(&mut self, image: &Image, name: Option<&str>) -> Result<()> {
        let blob =
            |digest: &Digest| format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        for layer in image.layers() {
            let descriptor = layer.descriptor();
            self.files
                .file(blob(&descriptor.digest), descriptor.size, || {
                    Ok(Box::new(image.blob(descriptor)?))
                })
                .map_err(|error| layer.in_context(error))?;
        }
        self.files.bytes(
            blob(image.config().digest()),
            image.config().bytes().to_vec(),
        )?;
        self.files.bytes(
            blob(image.manifest().digest()),
            image.manifest().bytes().to_vec(),
        )?;
        let mut descriptor = image.manifest().descriptor().clone();
        descriptor.annotations.clear();
        descriptor.platform = Some(image.config().platform());
        if let Some(name) = name {
            descriptor
                .annotations
                .insert(Descriptor::REF_NAME.to_owned(), name.to_owned());
        }
        self.index.manifests.push(descriptor);
        Ok(())
    }

    /// Ends the archive and gives back where it was written.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when writing fails.
    pub fn finish(mut self) -> Result<W> {
        let index = json(layout::INDEX, &self.index)?;
        self.files.bytes(layout::INDEX.to_owned(), index)?;
        self.files.finish()
    }
}

impl<W> std::fmt::Debug for OciArchiveWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OciArchiveWriter")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Writes an archive that every `docker load` reads: layers uncompressed, and a `manifest.json` with names. The same
/// images give the same bytes.
///
/// Such an archive has no place for a manifest, so its digest is lost; the configuration keeps its own.
pub struct DockerArchiveWriter<W> {
    files: Files<W>,
    items: Vec<Item>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl<W: Write> DockerArchiveWriter<W> {
    /// Writes to `out`, which had better be buffered.
    pub fn new(out: W) -> DockerArchiveWriter<W> {
        DockerArchiveWriter {
            files: Files::new(out),
            items: Vec::new(),
        }
    }

    /// Adds an image under `names`, of which the tags count; every layer is verified. Each layer is inflated twice,
    /// as its size must be known before it is written.
    ///
    /// # Errors
    ///
    /// What is wrong with the image, or [`Error::Stream`] when writing fails.
    pub fn image(&mut self, image: &Image, names: &[Reference]) -> Result<()> {
        let mut layers = Vec::with_capacity(image.layers().len());
        for layer in image.layers() {
            let name = format!("{}.tar", layer.diff_id().hex());
            if !self.files.written.contains(&name) {
                let size = io::copy(&mut layer.open()?, &mut io::sink())
                    .map_err(|source| layer.in_context(Error::from_io(source, failed)))?;
                self.files
                    .file(name.clone(), size, || Ok(Box::new(layer.open()?)))
                    .map_err(|error| layer.in_context(error))?;
            }
            layers.push(name);
        }
        let config = format!("{}.json", image.config().digest().hex());
        self.files
            .bytes(config.clone(), image.config().bytes().to_vec())?;
        self.items.push(Item {
            config,
            repo_tags: names
                .iter()
                .filter(|name| name.tag().is_some() && name.digest().is_none())
                .map(Reference::familiar)
                .collect(),
            layers,
        });
        Ok(())
    }

    /// Ends the archive and gives back where it was written.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when writing fails.
    pub fn finish(mut self) -> Result<W> {
        let manifest = json(docker_archive::MANIFEST, &self.items)?;
        self.files
            .bytes(docker_archive::MANIFEST.to_owned(), manifest)?;
        self.files.finish()
    }
}

impl<W> std::fmt::Debug for DockerArchiveWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerArchiveWriter")
            .field("images", &self.items.len())
            .finish_non_exhaustive()
    }
}
