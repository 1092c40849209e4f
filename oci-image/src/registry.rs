//! Registries: images by name, over HTTP.

mod challenge;
mod credentials;
mod endpoint;
mod http;
mod list;
mod options;
mod progress;
mod pull;
mod push;
mod referrers;
mod retry;
mod url;

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::Method;

use crate::blob::{BlobReader, Blobs};
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::document::{Document, ManifestOrIndex};
use crate::error::{Error, Result, excerpt};
use crate::image::Image;
use crate::manifest::Manifest;
use crate::media_type::MediaType;
use crate::parallel::side_by_side;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::source::MAX_INDEX_DEPTH;

pub use challenge::Challenge;
pub use credentials::Credentials;
use endpoint::{Endpoint, scope};
use http::{Failure, Http, Request};
pub use options::RegistryOptions;
pub use progress::Progress;
pub(crate) use pull::{Download, Remote};
use push::Target;

/// A client of registries, by the OCI distribution specification 1.1.
///
/// One client talks to any number of registries and may be shared by threads; clones share connections and tokens.
/// Everything blocks. What is pulled is an [`Image`] like any other: its documents are here, its layers come when they
/// are read, verified on the way, and are unpacked while they come.
///
/// ```no_run
/// use oci_image::{Platform, Registry, RegistryOptions, Store};
///
/// let registry = Registry::new(RegistryOptions::from_env());
/// let name = "registry.example/team/app:1.2".parse()?;
/// let image = registry.image(&name, &Platform::host())?;
/// Store::open("/var/lib/images")?.add(&image, &name)?;
/// # Ok::<(), oci_image::Error>(())
/// ```
///
/// # Errors
///
/// All functions fail with [`Error::Network`] when the registry cannot be reached, [`Error::Stalled`] when it is too
/// slow, [`Error::Unauthorized`] when it wants to know who asks, [`Error::Credentials`] when that cannot be found out,
/// [`Error::Refused`] for what else it refuses, and [`Error::BadResponse`] when it does not keep to the protocol.
#[derive(Clone, Debug)]
pub struct Registry {
    http: Arc<Http>,
    endpoints: Arc<Mutex<HashMap<String, Arc<Endpoint>>>>,
}

impl Default for Registry {
    /// With the credentials of Docker and Podman: [`RegistryOptions::from_env`].
    fn default() -> Registry {
        Registry::new(RegistryOptions::from_env())
    }
}

impl Registry {
    /// A client with these settings. Nothing is sent yet.
    pub fn new(options: RegistryOptions) -> Registry {
        Registry {
            http: Arc::new(Http::new(options)),
            endpoints: Arc::default(),
        }
    }

    fn endpoint(&self, registry: &str) -> Result<Arc<Endpoint>> {
        let known = || {
            self.endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(endpoint) = known().get(registry) {
            return Ok(Arc::clone(endpoint));
        }
        // Not under the lock: this may have to ask the registry.
        let found = Arc::new(Endpoint::find(&self.http, registry)?);
        Ok(Arc::clone(
            known().entry(registry.to_owned()).or_insert(found),
        ))
    }

    /// The places to pull `name` from.
    fn remote(&self, name: &Reference) -> Result<Remote> {
        let mirrors = self
            .http
            .options
            .settings(name.registry())
            .map_or(&[][..], |host| &host.mirrors);
        let mut places = Vec::with_capacity(mirrors.len() + 1);
        for mirror in mirrors {
            let repository = if mirror.prefix.is_empty() {
                name.repository().to_owned()
            } else {
                format!("{}/{}", mirror.prefix, name.repository())
            };
            // A mirror that cannot be talked to is none.
            if let Ok(endpoint) = self.endpoint(&mirror.registry) {
                places.push((endpoint, repository));
            }
        }
        places.push((
            self.endpoint(name.registry())?,
            name.repository().to_owned(),
        ));
        Ok(Remote {
            http: Arc::clone(&self.http),
            places,
        })
    }

    /// The image `name`; of an image for several platforms the one that fits `platform` best.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; and what can be wrong with the image's documents, such as [`Error::NoPlatform`].
    pub fn image(&self, name: &Reference, platform: &Platform) -> Result<Image> {
        let context = name.to_string();
        let open = || -> Result<Image> {
            let remote = self.remote(name)?;
            let manifest = self.manifest(&remote, name, platform)?;
            Image::new(
                context.clone(),
                Arc::new(Blobs::Registry(Arc::new(remote))),
                manifest,
                self.http.options.limits.clone(),
            )
        };
        open().map_err(|error| error.in_image(&context))
    }

    fn manifest(
        &self,
        remote: &Remote,
        name: &Reference,
        platform: &Platform,
    ) -> Result<Document<Manifest>> {
        let (mut descriptor, mut bytes) =
            self.fetch(remote, &place_of(name), name.digest(), None)?;
        for _ in 0..=MAX_INDEX_DEPTH {
            match ManifestOrIndex::parse(descriptor, bytes)? {
                ManifestOrIndex::Manifest(manifest) => return Ok(*manifest),
                ManifestOrIndex::Index(index) => {
                    let chosen = index.select(platform)?;
                    (descriptor, bytes) = self.fetch(
                        remote,
                        &chosen.digest.to_string(),
                        Some(&chosen.digest),
                        Some(chosen),
                    )?;
                }
            }
        }
        Err(Error::IndexDepth {
            limit: MAX_INDEX_DEPTH,
        })
    }

    /// Fetches a manifest or an index from the first place that has it, and verifies it as far as it is known what it
    /// should be.
    fn fetch(
        &self,
        remote: &Remote,
        place: &str,
        digest: Option<&Digest>,
        expected: Option<&Descriptor>,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let mut last = None;
        for (endpoint, repository) in &remote.places {
            match self.fetch_from(endpoint, repository, place, digest, expected) {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(Error::NoSuchImage {
            wanted: place.to_owned(),
            available: Vec::new(),
        }))
    }

    fn fetch_from(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        place: &str,
        digest: Option<&Digest>,
        expected: Option<&Descriptor>,
    ) -> Result<(Descriptor, Vec<u8>)> {
        let limit = self.http.options.limits.document_bytes;
        let address = endpoint.url(repository, &format!("manifests/{place}"));
        let mut request = Request::new("pull a manifest from", Method::GET, address);
        for media_type in [
            MediaType::OCI_MANIFEST,
            MediaType::OCI_INDEX,
            MediaType::DOCKER_MANIFEST,
            MediaType::DOCKER_INDEX,
        ] {
            request = request.header("accept", media_type);
        }
        endpoint.request(&request, &[scope(repository, "pull")], |mut answer| {
            match answer.status {
                200 => {}
                404 => {
                    return Err(Error::NoSuchImage {
                        wanted: place.to_owned(),
                        available: Vec::new(),
                    }
                    .into());
                }
                _ => return Err(answer.refused(request.operation).into()),
            }
            let bytes = answer.read(request.operation, limit)?;
            let said = answer
                .header("docker-content-digest")
                .and_then(|text| text.parse::<Digest>().ok());
            // By digest it is verified; by tag the registry's own word is compared.
            let wanted = digest.or(said.as_ref());
            let algorithm = wanted.map_or(Algorithm::Sha256, Digest::algorithm);
            let found = Digest::of(algorithm, &bytes);
            if let Some(wanted) = wanted
                && *wanted != found
            {
                return Err(Error::DigestMismatch {
                    what: "the manifest",
                    expected: wanted.clone(),
                    found,
                }
                .into());
            }
            if let Some(expected) = expected
                && expected.size != bytes.len() as u64
            {
                return Err(Error::Truncated {
                    what: format!("manifest {found}"),
                    expected: expected.size,
                    found: bytes.len() as u64,
                }
                .into());
            }
            let media_type = media_type_of(answer.header("content-type"), &bytes);
            let mut descriptor = Descriptor::new(media_type, found, bytes.len() as u64);
            if let Some(expected) = expected {
                if expected.media_type != descriptor.media_type {
                    return Err(Error::MediaTypeMismatch {
                        digest: descriptor.digest,
                        expected: expected.media_type.clone(),
                        found: descriptor.media_type,
                    }
                    .into());
                }
                descriptor = expected.clone();
            }
            Ok((descriptor, bytes))
        })
    }

    /// The manifest or index `name` as it is, also when it is of no image, such as a signature or a bill of materials.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::NoSuchImage`] when there is none.
    pub fn document(&self, name: &Reference) -> Result<Document<Value>> {
        let fetch = || {
            let remote = self.remote(name)?;
            let (descriptor, bytes) = self.fetch(&remote, &place_of(name), name.digest(), None)?;
            // For what it says that it is; a document that could be two things is refused.
            ManifestOrIndex::parse(descriptor.clone(), bytes.clone())?;
            Document::parse(descriptor, bytes)
        };
        fetch().map_err(|error| error.in_image(&name.to_string()))
    }

    /// Opens a blob of the repository of `name`.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::MissingBlob`] when there is none.
    pub fn blob(&self, name: &Reference, descriptor: &Descriptor) -> Result<BlobReader> {
        Blobs::Registry(Arc::new(self.remote(name)?))
            .open(descriptor)
            .map(|blob| blob.of_image(&name.to_string()))
            .map_err(|error| error.in_image(&name.to_string()))
    }

    /// Pushes `image` as `name`. Its documents stay byte for byte what they are. Blobs that are there are not sent;
    /// those that another repository of the registry has, when the image comes from it, are taken over from there.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; what is wrong with the image; [`Error::BadValue`] when `name` has another digest.
    pub fn push(&self, image: &Image, name: &Reference) -> Result<()> {
        let push = || -> Result<()> {
            let manifest = image.manifest();
            check_digest(name, manifest.digest())?;
            let endpoint = self.endpoint(name.registry())?;
            let mount_from: Vec<String> = image
                .home()
                .filter(|(registry, repository)| {
                    *registry == name.registry() && *repository != name.repository()
                })
                .map(|(_, repository)| repository.to_owned())
                .into_iter()
                .collect();
            let target = Target {
                endpoint: &endpoint,
                repository: name.repository(),
                mount_from: &mount_from,
            };
            let mut seen = BTreeSet::new();
            let blobs: Vec<&Descriptor> = manifest
                .layers
                .iter()
                .chain([&manifest.config])
                .filter(|blob| seen.insert(&blob.digest))
                .collect();
            side_by_side(self.http.options.parallel, &blobs, |blob| {
                let open = |offset| -> Result<Box<dyn Read + Send>> {
                    Ok(Box::new(skip(image.blob(blob)?, offset)?))
                };
                target.blob(blob, &open)
            })?;
            self.put(&target, name, manifest)
        };
        push().map_err(|error| error.in_image(&name.to_string()))
    }

    /// Pushes one blob to the repository of `name`, unless it is there; `open` gives its bytes, and is called again
    /// when they must be sent again. For what is not an image.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; what `open` and its reader fail with.
    pub fn push_blob<R: Read + Send + 'static>(
        &self,
        name: &Reference,
        descriptor: &Descriptor,
        open: impl Fn() -> Result<R> + Sync,
    ) -> Result<()> {
        let push = || {
            let endpoint = self.endpoint(name.registry())?;
            let target = Target {
                endpoint: &endpoint,
                repository: name.repository(),
                mount_from: &[],
            };
            target.blob(descriptor, &|offset| Ok(Box::new(skip(open()?, offset)?)))
        };
        push().map_err(|error| error.in_image(&name.to_string()))
    }

    /// Pushes a manifest or an index as `name`, of which everything that it names is there. When it has a `subject`, it
    /// can be found by [`Registry::referrers`] afterwards, also in a registry that does not keep track of that itself.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::BadValue`] when `name` has another digest.
    pub fn push_document<T>(&self, name: &Reference, document: &Document<T>) -> Result<()> {
        let push = || {
            check_digest(name, document.digest())?;
            let endpoint = self.endpoint(name.registry())?;
            let target = Target {
                endpoint: &endpoint,
                repository: name.repository(),
                mount_from: &[],
            };
            self.put(&target, name, document)
        };
        push().map_err(|error| error.in_image(&name.to_string()))
    }

    fn put<T>(&self, target: &Target<'_>, name: &Reference, document: &Document<T>) -> Result<()> {
        let tracked =
            target.document(&push_place(name), document.descriptor(), document.bytes())?;
        if tracked {
            return Ok(());
        }
        self.note_referrer(target, document.descriptor(), document.bytes())
    }

    /// Deletes the manifest `name`: with a digest, the manifest and with it every tag that leads to it; with a tag
    /// alone, that tag. A registry that cannot delete tags says so.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::NoSuchImage`] when it is not there.
    pub fn delete(&self, name: &Reference) -> Result<()> {
        let address = format!("manifests/{}", place_of(name));
        self.delete_at(name, "delete a manifest from", &address)
    }

    /// Deletes a blob of the repository of `name`.
    ///
    /// # Errors
    ///
    /// See [`Registry`]; [`Error::NoSuchImage`] when it is not there.
    pub fn delete_blob(&self, name: &Reference, digest: &Digest) -> Result<()> {
        self.delete_at(name, "delete a blob from", &format!("blobs/{digest}"))
    }

    fn delete_at(&self, name: &Reference, operation: &'static str, place: &str) -> Result<()> {
        let endpoint = self.endpoint(name.registry())?;
        let request = Request::new(
            operation,
            Method::DELETE,
            endpoint.url(name.repository(), place),
        );
        let scopes = [scope(name.repository(), "pull,push,delete")];
        endpoint
            .request(&request, &scopes, |answer| match answer.status {
                200 | 202 | 204 => Ok(()),
                404 => Err(Failure::Final(Error::NoSuchImage {
                    wanted: name.to_string(),
                    available: Vec::new(),
                })),
                _ => Err(answer.refused(operation).into()),
            })
            .map_err(|error| error.in_image(&name.to_string()))
    }
}

/// By what a manifest is asked for.
fn place_of(name: &Reference) -> String {
    match (name.digest(), name.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    }
}

/// By what a manifest is put: its tag, also when a digest is named with it.
fn push_place(name: &Reference) -> String {
    match name.tag() {
        Some(tag) => tag.to_owned(),
        None => place_of(name),
    }
}

fn check_digest(name: &Reference, digest: &Digest) -> Result<()> {
    match name.digest() {
        Some(named) if named != digest => Err(Error::DigestMismatch {
            what: "what is pushed under a name with a digest",
            expected: named.clone(),
            found: digest.clone(),
        }),
        _ => Ok(()),
    }
}

/// What the answer is called, without parameters; what it calls itself if that is missing.
fn media_type_of(content_type: Option<&str>, bytes: &[u8]) -> MediaType {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Says {
        media_type: Option<MediaType>,
    }
    let called = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        .filter(|text| !text.is_empty());
    match called {
        Some(called) => MediaType::new(called),
        None => serde_json::from_slice::<Says>(bytes)
            .ok()
            .and_then(|says| says.media_type)
            .unwrap_or_else(|| MediaType::new(MediaType::OCI_MANIFEST)),
    }
}

fn parse<T: DeserializeOwned>(address: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::BadResponse {
        url: url::shown(address),
        reason: "it is not the JSON that it should be",
        found: excerpt(&source.to_string()),
    })
}

/// `reader` after its first `offset` bytes.
fn skip<R: Read>(mut reader: R, offset: u64) -> Result<R> {
    let skipped =
        std::io::copy(&mut (&mut reader).take(offset), &mut std::io::sink()).map_err(|source| {
            Error::from_io(source, |source| Error::Stream {
                operation: "read a blob",
                source,
            })
        })?;
    if skipped < offset {
        return Err(Error::Truncated {
            what: "the blob".to_owned(),
            expected: offset,
            found: skipped,
        });
    }
    Ok(reader)
}
