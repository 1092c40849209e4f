//! One image: its manifest, its configuration and its layers.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use crate::blob::{BlobReader, Blobs};
use crate::compression::{Compression, Decoder};
use crate::config::ImageConfig;
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::limits::{Limits, check_bytes};
use crate::manifest::Manifest;
use crate::media_type::{MediaType, Role};
use crate::overlap::Overlapped;
use crate::process::Process;

/// An image whose documents have been read and verified.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    blobs: Arc<Blobs>,
    manifest: Document<Manifest>,
    config: Document<ImageConfig>,
    limits: Limits,
}

impl Image {
    pub(crate) fn new(
        name: String,
        blobs: Arc<Blobs>,
        manifest: Document<Manifest>,
        limits: Limits,
    ) -> Result<Image> {
        let descriptor = manifest.config.clone();
        if descriptor.media_type.role() != Role::Config {
            return Err(Error::UnsupportedMediaType {
                digest: descriptor.digest,
                found: descriptor.media_type,
                expected: MediaType::OCI_CONFIG,
            });
        }
        let bytes = blobs.read_document(&descriptor, limits.document_bytes)?;
        let config = Document::<ImageConfig>::parse(descriptor, bytes)?;
        if config.rootfs.kind != "layers" {
            return Err(Error::BadField {
                document: format!("image configuration {}", config.digest()),
                field: "rootfs.type",
                found: crate::error::excerpt(&config.rootfs.kind),
                expected: "\"layers\"",
            });
        }
        if manifest.layers.len() != config.rootfs.diff_ids.len() {
            return Err(Error::LayerCount {
                layers: manifest.layers.len(),
                diff_ids: config.rootfs.diff_ids.len(),
            });
        }
        for layer in &manifest.layers {
            if layer.media_type.role() != Role::Layer {
                return Err(Error::UnsupportedMediaType {
                    digest: layer.digest.clone(),
                    found: layer.media_type.clone(),
                    expected: "a tar layer, plain or compressed by gzip or zstd",
                });
            }
        }
        Ok(Image {
            name,
            blobs,
            manifest,
            config,
            limits,
        })
    }

    /// What the image was opened as; it stands in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The manifest. For a legacy `docker save` archive it was made from what the archive lists.
    pub fn manifest(&self) -> &Document<Manifest> {
        &self.manifest
    }

    /// The configuration.
    pub fn config(&self) -> &Document<ImageConfig> {
        &self.config
    }

    /// The caps that hold while this image is read.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer<'_>> {
        self.manifest
            .layers
            .iter()
            .zip(&self.config.rootfs.diff_ids)
            .map(|(descriptor, diff_id)| Layer {
                image: self,
                descriptor,
                diff_id,
            })
    }

    /// What a container of this image runs; see [`Process::new`].
    ///
    /// # Errors
    ///
    /// As for [`Process::new`].
    pub fn process(&self, command: &[String]) -> Result<Process> {
        Process::new(&self.config.config, command).map_err(|error| error.in_image(&self.name))
    }

    /// Opens a blob of the image after its first `offset` bytes, which `hasher` has taken in.
    pub(crate) fn resume(
        &self,
        descriptor: &Descriptor,
        hasher: Hasher,
        offset: u64,
    ) -> Result<BlobReader> {
        self.blobs
            .resume(descriptor, hasher, offset)
            .map(|blob| blob.of_image(&self.name))
            .map_err(|error| error.in_image(&self.name))
    }

    /// How many of its blobs are worth reading side by side.
    pub(crate) fn parallel(&self) -> usize {
        self.blobs.parallel()
    }

    /// The registry and the repository that it comes from.
    #[cfg(feature = "registry")]
    pub(crate) fn home(&self) -> Option<(&str, &str)> {
        match self.blobs.as_ref() {
            Blobs::Registry(remote) => remote.home(),
            _ => None,
        }
    }

    /// Opens a blob of the image, such as a layer as it is stored.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBlob`], [`Error::Truncated`], [`Error::Oversized`] or [`Error::Io`].
    pub fn blob(&self, descriptor: &Descriptor) -> Result<BlobReader> {
        self.blobs
            .open(descriptor)
            .map(|blob| blob.of_image(&self.name))
            .map_err(|error| error.in_image(&self.name))
    }
}

/// A layer of an image.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    image: &'a Image,
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
}

impl<'a> Layer<'a> {
    /// The blob as it is stored.
    pub fn descriptor(&self) -> &'a Descriptor {
        self.descriptor
    }

    /// The digest of the uncompressed layer.
    pub fn diff_id(&self) -> &'a Digest {
        self.diff_id
    }

    /// The image to which the layer belongs.
    pub fn image(&self) -> &'a Image {
        self.image
    }

    /// The uncompressed layer as a stream that verifies itself.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBlob`], [`Error::Truncated`], [`Error::Oversized`] or [`Error::Io`].
    pub fn open(&self) -> Result<LayerReader> {
        let open = || {
            let mut reader = LayerReader::new(self.inflater()?, self.diff_id);
            reader.context = Some((self.image.name.clone(), self.descriptor.digest.clone()));
            Ok(reader)
        };
        open().map_err(|error| self.in_context(error))
    }

    fn inflater(&self) -> Result<Inflater> {
        let blob = self.image.blobs.open(self.descriptor)?;
        Inflater::new(blob, &self.image.limits)
    }

    /// The same as [`Layer::open`], with threads that read ahead if the layer is large enough; what goes wrong is
    /// told without the image and the layer.
    pub(crate) fn open_to_unpack(&self) -> Result<Box<dyn BufRead>> {
        let inflater = self.inflater()?;
        if self.descriptor.size < OVERLAP_FROM {
            return Ok(Box::new(LayerReader::new(inflater, self.diff_id)));
        }
        Ok(Box::new(Overlapped::start(inflater, self.diff_id)?))
    }

    pub(crate) fn in_context(&self, error: Error) -> Error {
        in_context(error, &self.image.name, &self.descriptor.digest)
    }
}

fn in_context(error: Error, image: &str, layer: &Digest) -> Error {
    match error {
        Error::InImage { image, cause } => cause.in_layer(layer).in_image(&image),
        error => error.in_layer(layer).in_image(image),
    }
}

const BUFFER: usize = 256 << 10;

/// Below this size, threads cost more than they save; in bytes of the blob as it is stored.
const OVERLAP_FROM: u64 = 512 << 10;

/// The inflated bytes of a blob; the blob is verified before the end is reported.
pub(crate) struct Inflater {
    decoder: Decoder<BufReader<BlobReader>>,
    limits: Limits,
    read: u64,
}

impl Inflater {
    fn new(blob: BlobReader, limits: &Limits) -> Result<Inflater> {
        Ok(Inflater {
            decoder: Decoder::new(BufReader::with_capacity(BUFFER, blob), limits)?,
            limits: limits.clone(),
            read: 0,
        })
    }

    /// Like [`Read::read`], which cannot carry typed errors.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = loop {
            match self.decoder.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.decoder.failed(error, self.read, &self.limits)),
                Ok(n) => break n,
            }
        };
        self.read += n as u64;
        check_bytes(
            "the uncompressed layer",
            self.read,
            self.limits.layer_bytes,
            "layer_bytes",
        )?;
        if n == 0 {
            // The blob's own check happens at its end, which the decoder need not have touched.
            let blob = self.decoder.get_mut();
            io::copy(blob, &mut io::sink()).map_err(|source| {
                Error::from_io(source, |source| Error::Stream {
                    operation: "read a blob",
                    source,
                })
            })?;
        }
        Ok(n)
    }
}

/// The uncompressed bytes of a layer.
///
/// Whoever has read to the end without an error has read the right bytes: the blob's size and digest and the
/// uncompressed digest are compared before the end is reported.
pub struct LayerReader {
    inflater: Inflater,
    hasher: Option<Hasher>,
    diff_id: Digest,
    /// The image and the layer that errors name.
    context: Option<(String, Digest)>,
    buffer: Box<[u8]>,
    /// What of `buffer` is valid and not consumed.
    start: usize,
    end: usize,
}

impl LayerReader {
    fn new(inflater: Inflater, diff_id: &Digest) -> LayerReader {
        LayerReader {
            inflater,
            hasher: Some(Hasher::new(diff_id.algorithm())),
            diff_id: diff_id.clone(),
            context: None,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
        }
    }

    /// How the layer is compressed, told by its bytes.
    pub fn compression(&self) -> Compression {
        self.inflater.decoder.compression()
    }

    fn fill(&mut self) -> Result<()> {
        let Some(hasher) = &mut self.hasher else {
            return Ok(());
        };
        let n = self.inflater.read(&mut self.buffer)?;
        self.start = 0;
        self.end = n;
        if n > 0 {
            hasher.update(&self.buffer[..n]);
            return Ok(());
        }
        if let Some(hasher) = self.hasher.take() {
            let found = hasher.finish();
            if found != self.diff_id {
                return Err(Error::DigestMismatch {
                    what: "the uncompressed layer",
                    expected: self.diff_id.clone(),
                    found,
                });
            }
        }
        Ok(())
    }
}

impl BufRead for LayerReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.fill()
                .map_err(|error| match &self.context {
                    Some((image, layer)) => in_context(error, image, layer),
                    None => error,
                })
                .map_err(Error::into_io)?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
}

impl Read for LayerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl std::fmt::Debug for LayerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerReader")
            .field("compression", &self.compression())
            .field("diff_id", &self.diff_id)
            .field("read", &self.inflater.read)
            .finish_non_exhaustive()
    }
}
