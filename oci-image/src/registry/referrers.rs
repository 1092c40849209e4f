//! What refers to a manifest: signatures, bills of materials, attestations.
//!
//! A registry of the distribution specification 1.1 keeps track of that. In an older one, a tag made of the digest
//! leads to an index of them, which clients keep up to date.

use std::sync::Arc;

use ureq::http::Method;

use super::endpoint::scope;
use super::http::Request;
use super::push::Target;
use super::{Registry, url};
use crate::artifact::{self, Artifact, fallback_tag};
use crate::blob::Blobs;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::document::{Document, ManifestOrIndex};
use crate::error::{Error, Result};
use crate::manifest::Index;
use crate::media_type::MediaType;
use crate::reference::Reference;

impl Registry {
    /// What refers to the manifest `digest` in the repository of `name`, of all types or of one.
    ///
    /// # Errors
    ///
    /// See [`Registry`].
    pub fn referrers(
        &self,
        name: &Reference,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let list = || {
            let found = match self.ask_referrers(name, digest, artifact_type)? {
                Some(found) => found,
                None => self
                    .fallback_index(name, digest)?
                    .map(|index| index.manifests.clone())
                    .unwrap_or_default(),
            };
            Ok(found
                .into_iter()
                .filter(|found| {
                    artifact_type.is_none() || found.artifact_type.as_deref() == artifact_type
                })
                .collect())
        };
        list().map_err(|error: Error| error.in_image(&name.to_string()))
    }

    /// The content that is no image and has the name `name`, which mostly ends in a digest that was found by
    /// [`Registry::referrers`].
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::UnsupportedMediaType`] when it is an index.
    pub fn artifact(&self, name: &Reference) -> Result<Artifact> {
        let context = name.to_string();
        let open = || {
            let remote = self.remote(name)?;
            let (descriptor, bytes) =
                self.fetch(&remote, &super::place_of(name), name.digest(), None)?;
            match ManifestOrIndex::parse(descriptor, bytes)? {
                ManifestOrIndex::Manifest(manifest) => Ok(Artifact::new(
                    context.clone(),
                    *manifest,
                    Arc::new(Blobs::Registry(Arc::new(remote))),
                )),
                ManifestOrIndex::Index(index) => Err(Error::UnsupportedMediaType {
                    digest: index.digest().clone(),
                    found: index.descriptor().media_type.clone(),
                    expected: "a manifest",
                }),
            }
        };
        open().map_err(|error| error.in_image(&context))
    }

    /// Pushes `artifact` as `name`, its blobs first. When it has a subject it is found by [`Registry::referrers`]
    /// afterwards.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; what is wrong with the blobs; [`Error::BadValue`] when `name` has another digest.
    pub fn push_artifact(&self, artifact: &Artifact, name: &Reference) -> Result<()> {
        let manifest = artifact.manifest();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            self.push_blob(name, blob, || artifact.blob(blob))?;
        }
        self.push_document(name, manifest)
    }

    /// Asks the registry itself; nothing when it does not keep track.
    fn ask_referrers(
        &self,
        name: &Reference,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>> {
        let endpoint = self.endpoint(name.registry())?;
        let mut first = endpoint.url(name.repository(), &format!("referrers/{digest}"));
        if let Some(artifact_type) = artifact_type {
            first = url::with_query(&first, "artifactType", artifact_type);
        }
        let scopes = [scope(name.repository(), "pull")];
        // The specification has 404; others stand for "no such address", too.
        let absent = [400, 404, 405];
        let request = |address| {
            Request::new("list what refers to an image in", Method::GET, address)
                .header("accept", MediaType::OCI_INDEX)
        };
        let items = |index: Index| index.manifests;
        self.pages(&endpoint, first, &scopes, &absent, request, items)
    }

    fn fallback_index(&self, name: &Reference, digest: &Digest) -> Result<Option<Document<Index>>> {
        let endpoint = self.endpoint(name.registry())?;
        let tag = fallback_tag(digest);
        match self.fetch_from(&endpoint, name.repository(), &tag, None, None) {
            Ok((descriptor, bytes)) => match ManifestOrIndex::parse(descriptor, bytes)? {
                ManifestOrIndex::Index(index) => Ok(Some(*index)),
                // Somebody's tag that looks like ours.
                ManifestOrIndex::Manifest(_) => Ok(None),
            },
            Err(Error::NoSuchImage { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds a manifest that was pushed to the index of what refers to its subject, if it has one.
    pub(super) fn note_referrer(
        &self,
        target: &Target<'_>,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<()> {
        let Some((subject, entry)) = artifact::referrer(descriptor, bytes.to_vec())? else {
            return Ok(());
        };
        let name: Reference = format!(
            "{}/{}@{}",
            target.endpoint.registry, target.repository, subject.digest
        )
        .parse()?;
        if self.ask_referrers(&name, &subject.digest, None)?.is_some() {
            // It keeps track, though it did not say so.
            return Ok(());
        }
        let mut index = match self.fallback_index(&name, &subject.digest)? {
            Some(index) => (*index).clone(),
            None => Index {
                schema_version: 2,
                media_type: Some(MediaType::new(MediaType::OCI_INDEX)),
                artifact_type: None,
                manifests: Vec::new(),
                subject: None,
                annotations: std::collections::BTreeMap::new(),
                other: serde_json::Map::new(),
            },
        };
        if index
            .manifests
            .iter()
            .any(|known| known.digest == entry.digest)
        {
            return Ok(());
        }
        index.manifests.push(entry);
        let document = Document::new(MediaType::OCI_INDEX, index)?;
        target
            .document(
                &fallback_tag(&subject.digest),
                document.descriptor(),
                document.bytes(),
            )
            .map(drop)
    }
}
