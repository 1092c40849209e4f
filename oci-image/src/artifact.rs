//! Content that is no image: signatures, bills of materials, charts, and what refers to what.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::blob::{BlobReader, Blobs};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, ManifestOrIndex};
use crate::error::{Error, Result, excerpt};
use crate::manifest::Manifest;
use crate::media_type::MediaType;

/// The contents of the empty configuration, as the image specification has it.
pub(crate) const EMPTY: &[u8] = b"{}";

/// A manifest that is being put together for content that is no image: typed blobs, and perhaps the manifest to which
/// they refer.
///
/// ```
/// use oci_image::{ArtifactBuilder, LayoutWriter, Source};
///
/// # let scratch = tempfile::tempdir()?;
/// # let path = scratch.path();
/// # let mut layout = LayoutWriter::open(path)?;
/// # let image = oci_image::ImageBuilder::new(&oci_image::Platform::host());
/// let image = layout.image(Some("latest"), image)?;
/// let blob = layout.blob("application/spdx+json", &br#"{"spdxVersion": "SPDX-2.3"}"#[..])?;
/// let bill = ArtifactBuilder::new("application/spdx+json")
///     .subject(image.descriptor().clone())
///     .blob(blob);
/// layout.artifact(None, bill)?;
///
/// let source = Source::open(path)?;
/// let [found] = source.referrers(image.digest(), None)?.try_into().unwrap();
/// let bill = source.artifact(&found)?;
/// let mut text = String::new();
/// std::io::Read::read_to_string(&mut bill.blob(&bill.manifest().layers[0])?, &mut text)?;
/// assert!(text.contains("SPDX-2.3"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactBuilder {
    artifact_type: String,
    subject: Option<Descriptor>,
    blobs: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl ArtifactBuilder {
    /// An artifact without blobs. Its type is a media type of its own, such as `application/spdx+json`.
    pub fn new(artifact_type: impl Into<String>) -> ArtifactBuilder {
        ArtifactBuilder {
            artifact_type: artifact_type.into(),
            subject: None,
            blobs: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// The manifest to which it refers, such as the image that it signs.
    pub fn subject(mut self, subject: Descriptor) -> ArtifactBuilder {
        // Where the subject stood in an index is not part of what it is.
        self.subject = Some(Descriptor::new(
            subject.media_type,
            subject.digest,
            subject.size,
        ));
        self
    }

    /// Adds a blob.
    pub fn blob(mut self, blob: Descriptor) -> ArtifactBuilder {
        self.blobs.push(blob);
        self
    }

    /// Adds an annotation, which is also told by whoever lists what refers to the subject.
    pub fn annotation(
        mut self,
        key: impl Into<String>,
        value: impl Into<String>,
    ) -> ArtifactBuilder {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// The manifest. Its configuration, and its only blob if there are no others, is [`ArtifactBuilder::empty`].
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] when the type is no media type.
    pub fn manifest(self) -> Result<Document<Manifest>> {
        let parts = self.artifact_type.split_once('/');
        if parts.is_none_or(|(kind, name)| kind.is_empty() || name.is_empty()) {
            return Err(Error::BadValue {
                what: "type of an artifact",
                text: excerpt(&self.artifact_type),
                reason: "give a media type, such as application/spdx+json",
            });
        }
        let layers = if self.blobs.is_empty() {
            vec![ArtifactBuilder::empty()]
        } else {
            self.blobs
        };
        Document::new(
            MediaType::OCI_MANIFEST,
            Manifest {
                schema_version: 2,
                media_type: Some(MediaType::new(MediaType::OCI_MANIFEST)),
                artifact_type: Some(self.artifact_type),
                config: ArtifactBuilder::empty(),
                layers,
                subject: self.subject,
                annotations: self.annotations,
                other: serde_json::Map::new(),
            },
        )
    }

    /// The descriptor of the empty blob `{}`, which stands where the specification wants a blob and there is none.
    pub fn empty() -> Descriptor {
        Descriptor::of(MediaType::OCI_EMPTY, EMPTY)
    }
}

/// A manifest of content that is no image, and its blobs.
#[derive(Clone, Debug)]
pub struct Artifact {
    name: String,
    manifest: Document<Manifest>,
    blobs: Arc<Blobs>,
}

impl Artifact {
    pub(crate) fn new(name: String, manifest: Document<Manifest>, blobs: Arc<Blobs>) -> Artifact {
        Artifact {
            name,
            manifest,
            blobs,
        }
    }

    /// The manifest; its `layers` are the blobs.
    pub fn manifest(&self) -> &Document<Manifest> {
        &self.manifest
    }

    /// What kind of content it is: the manifest's own type, or that of its configuration.
    pub fn artifact_type(&self) -> &str {
        type_of(&self.manifest)
    }

    /// Opens one of the blobs.
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

fn type_of(manifest: &Manifest) -> &str {
    manifest
        .artifact_type
        .as_deref()
        .unwrap_or_else(|| manifest.config.media_type.as_str())
}

/// To what a manifest or an index refers, and how it stands in a list of what refers to that.
pub(crate) fn referrer(
    descriptor: &Descriptor,
    bytes: Vec<u8>,
) -> Result<Option<(Descriptor, Descriptor)>> {
    let mut entry = Descriptor::new(
        descriptor.media_type.clone(),
        descriptor.digest.clone(),
        descriptor.size,
    );
    let subject = match ManifestOrIndex::parse(descriptor.clone(), bytes)? {
        ManifestOrIndex::Manifest(manifest) => {
            entry.artifact_type = Some(type_of(&manifest).to_owned());
            entry.annotations = manifest.annotations.clone();
            manifest.subject.clone()
        }
        ManifestOrIndex::Index(index) => {
            entry.artifact_type.clone_from(&index.artifact_type);
            entry.annotations = index.annotations.clone();
            index.subject.clone()
        }
    };
    Ok(subject.map(|subject| (subject, entry)))
}

/// The tag under which an index of what refers to `digest` is kept where nobody keeps track.
pub(crate) fn fallback_tag(digest: &Digest) -> String {
    let mut tag = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
    // A tag has up to 128 characters.
    tag.truncate(128);
    tag
}
