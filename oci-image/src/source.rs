//! Places on disk that hold images.

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::Archive;
use crate::artifact::{self, Artifact};
use crate::blob::Blobs;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::docker_archive::{self, Item};
use crate::document::{Document, ManifestOrIndex};
use crate::error::{Error, Result, TarProblem};
use crate::image::Image;
use crate::layout;
use crate::limits::Limits;
use crate::manifest::{self, Index, Manifest};
use crate::media_type::Role;
use crate::platform::Platform;

/// How deep indexes may be nested.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;

/// Opens the image at `path` for the platform of this machine.
///
/// `path` is that of an OCI layout directory, an OCI archive or a `docker save` archive (both possibly compressed), told
/// apart by content. `path:name` chooses one of several images in it. With the feature `registry`, `docker://REFERENCE`
/// is an image in a registry, pulled as `Registry::default` does it.
///
/// # Errors
///
/// Everything that can be wrong with an image's documents; each error names the image. Layers are verified when they
/// are read.
pub fn open(path: impl AsRef<Path>) -> Result<Image> {
    let path = path.as_ref();
    let name = path.display().to_string();
    #[cfg(feature = "registry")]
    if let Some(reference) = name.strip_prefix("docker://") {
        return crate::Registry::default().image(&reference.parse()?, &Platform::host());
    }
    let (place, wanted) = split_name(path);
    let open = || Source::open(&place)?.image(wanted.as_deref(), &Platform::host());
    open().map_err(|error| error.in_image(&name))
}

/// Splits `PATH:NAME`. A path that exists as a whole has no name.
fn split_name(path: &Path) -> (PathBuf, Option<String>) {
    if path.exists() {
        return (path.to_owned(), None);
    }
    let bytes = path.as_os_str().as_bytes();
    for (i, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b':') {
        let place = Path::new(std::ffi::OsStr::from_bytes(&bytes[..i]));
        if place.exists() {
            return (
                place.to_owned(),
                Some(String::from_utf8_lossy(&bytes[i + 1..]).into_owned()),
            );
        }
    }
    (path.to_owned(), None)
}

/// What a [`Source`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceKind {
    /// An OCI layout in a directory.
    OciLayout,
    /// An OCI layout in a tar file; today's `docker save` writes this.
    OciArchive,
    /// The archive that `docker save` wrote before Docker 25, and that other tools call `docker-archive`.
    DockerArchive,
}

/// A place on disk that holds images.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    limits: Limits,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Layout {
        kind: SourceKind,
        blobs: Arc<Blobs>,
        index: Box<Document<Index>>,
    },
    Docker {
        archive: Archive,
        items: Vec<Item>,
    },
}

impl Source {
    /// Opens the source at `path` with the default [`Limits`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPath`], [`Error::NotAnImage`], and what can be wrong with a layout's index or an archive.
    pub fn open(path: impl AsRef<Path>) -> Result<Source> {
        Source::open_with(path, Limits::default())
    }

    /// Opens the source at `path` within `limits`, which also hold for the images had from it.
    ///
    /// # Errors
    ///
    /// As for [`Source::open`].
    pub fn open_with(path: impl AsRef<Path>, limits: Limits) -> Result<Source> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoSuchPath {
                path: path.to_owned(),
            },
            _ => Error::Io {
                operation: "open",
                path: path.to_owned(),
                source,
            },
        })?;
        let contents = if metadata.is_dir() {
            Contents::Layout {
                kind: SourceKind::OciLayout,
                index: Box::new(layout::read_directory(path, &limits)?),
                blobs: Arc::new(Blobs::Directory(path.to_owned())),
            }
        } else {
            let archive = open_archive(path, &limits)?;
            if archive.contains(layout::INDEX) && archive.contains(layout::MARKER) {
                Contents::Layout {
                    kind: SourceKind::OciArchive,
                    index: Box::new(layout::read_archive(&archive, &limits)?),
                    blobs: Arc::new(Blobs::Archive(archive)),
                }
            } else {
                let items = docker_archive::items(&archive, &limits)?;
                Contents::Docker { archive, items }
            }
        };
        Ok(Source {
            path: path.to_owned(),
            limits,
            contents,
        })
    }

    /// What kind of source it is.
    pub fn kind(&self) -> SourceKind {
        match &self.contents {
            Contents::Layout { kind, .. } => *kind,
            Contents::Docker { .. } => SourceKind::DockerArchive,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its images; images without a name are not among them.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.contents {
            Contents::Layout { index, .. } => index
                .manifests
                .iter()
                .filter_map(|descriptor| names_of(descriptor).next())
                .map(str::to_owned)
                .collect(),
            Contents::Docker { items, .. } => items
                .iter()
                .flat_map(|item| item.repo_tags.iter().cloned())
                .collect(),
        };
        names.dedup();
        names
    }

    /// The image called `name`, or the only one; of an image for several platforms the one that fits `platform`
    /// best.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchImage`], [`Error::SeveralImages`], [`Error::NoPlatform`], and what can be wrong with the
    /// image's documents.
    pub fn image(self, name: Option<&str>, platform: &Platform) -> Result<Image> {
        let label = match name {
            Some(name) => format!("{}:{name}", self.path.display()),
            None => self.path.display().to_string(),
        };
        let context = label.clone();
        let open = || -> Result<Image> {
            match self.contents {
                Contents::Layout {
                    ref blobs,
                    ref index,
                    ..
                } => {
                    let manifest = choose(index, blobs, name, platform, &self.limits)?;
                    Image::new(label, Arc::clone(blobs), manifest, self.limits.clone())
                }
                Contents::Docker { archive, items } => {
                    let item = choose_item(&items, name)?;
                    let mut names = HashMap::new();
                    let manifest =
                        docker_archive::manifest(&archive, item, &self.limits, &mut names)?;
                    let blobs = Arc::new(Blobs::Members { archive, names });
                    Image::new(label, blobs, manifest, self.limits)
                }
            }
        };
        open().map_err(|error| error.in_image(&context))
    }
}

impl Source {
    /// What refers to the manifest `subject`, of all types or of one: manifests that the layout's index leads to, and
    /// those that stand in the index that is kept under the subject's digest as a tag.
    ///
    /// # Errors
    ///
    /// What is wrong with a document; [`Error::IndexDepth`].
    pub fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let Contents::Layout { blobs, index, .. } = &self.contents else {
            return Ok(Vec::new());
        };
        let list = || {
            let mut found: Vec<Descriptor> = Vec::new();
            let mut seen = HashSet::new();
            let mut todo: Vec<(Descriptor, usize)> = index
                .manifests
                .iter()
                .rev()
                .map(|one| (one.clone(), 0))
                .collect();
            while let Some((descriptor, depth)) = todo.pop() {
                let is_index = match descriptor.media_type.role() {
                    Role::Manifest => false,
                    Role::Index => true,
                    _ => continue,
                };
                if !seen.insert(descriptor.digest.clone()) {
                    continue;
                }
                let bytes = blobs.read_document(&descriptor, self.limits.document_bytes)?;
                if let Some((of, entry)) = artifact::referrer(&descriptor, bytes.clone())?
                    && of.digest == *subject
                {
                    found.push(entry);
                }
                if is_index {
                    if depth == MAX_INDEX_DEPTH {
                        return Err(Error::IndexDepth {
                            limit: MAX_INDEX_DEPTH,
                        });
                    }
                    let inner = Document::<Index>::parse(descriptor, bytes)?;
                    let inner = inner.manifests.iter().rev();
                    todo.extend(inner.map(|one| (one.clone(), depth + 1)));
                }
                if todo.len() as u64 > self.limits.entries {
                    return Err(Error::Limit {
                        what: "a list",
                        found: todo.len() as u64,
                        unit: "entries",
                        limit: self.limits.entries,
                        setting: "entries",
                    });
                }
            }
            found.retain(|one| {
                artifact_type.is_none() || one.artifact_type.as_deref() == artifact_type
            });
            Ok(found)
        };
        list().map_err(|error: Error| error.in_image(&self.path.display().to_string()))
    }

    /// The content that is no image and that `descriptor` leads to; see [`Source::referrers`].
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedMediaType`] when it is no manifest, or is in a `docker save` archive, which has none; what is
    /// wrong with the manifest.
    pub fn artifact(&self, descriptor: &Descriptor) -> Result<Artifact> {
        let name = format!("{}:{}", self.path.display(), descriptor.digest);
        let open = || {
            let unsupported = || Error::UnsupportedMediaType {
                digest: descriptor.digest.clone(),
                found: descriptor.media_type.clone(),
                expected: "a manifest in an OCI layout",
            };
            let Contents::Layout { blobs, .. } = &self.contents else {
                return Err(unsupported());
            };
            let bytes = blobs.read_document(descriptor, self.limits.document_bytes)?;
            match ManifestOrIndex::parse(descriptor.clone(), bytes)? {
                ManifestOrIndex::Manifest(manifest) => {
                    Ok(Artifact::new(name.clone(), *manifest, Arc::clone(blobs)))
                }
                ManifestOrIndex::Index(_) => Err(unsupported()),
            }
        };
        open().map_err(|error| error.in_image(&name))
    }
}

/// A file whose very start is no tar header is no archive at all; that is better told than a checksum.
fn open_archive(path: &Path, limits: &Limits) -> Result<Archive> {
    Archive::open(path, limits).map_err(|error| match error.cause() {
        Error::Tar {
            offset: 0,
            problem: TarProblem::Checksum { .. } | TarProblem::Number { .. },
        } => Error::NotAnImage {
            path: path.to_owned(),
            reason: "it is neither a directory nor a tar archive",
        },
        _ => error,
    })
}

/// All names of an image in a layout: the short one, and the full one that Docker and containerd add.
fn names_of(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    [Descriptor::CONTAINERD_NAME, Descriptor::REF_NAME]
        .into_iter()
        .filter_map(|key| descriptor.annotations.get(key))
        .map(String::as_str)
}

/// Whether `known` is what somebody means by `wanted`: the name itself, or its end (`busybox:latest` or `latest` for
/// `docker.io/library/busybox:latest`).
fn means(known: &str, wanted: &str) -> bool {
    let ends = |wanted: &str| {
        known == wanted
            || known
                .strip_suffix(wanted)
                .is_some_and(|before| before.ends_with(['/', ':']))
    };
    ends(wanted) || (!wanted.contains(':') && ends(&format!("{wanted}:latest")))
}

/// Whether something in the index of a layout may be an image, and is not merely kept beside images.
fn is_image(descriptor: &Descriptor) -> bool {
    let is_list = |name: &String| {
        name.replacen('-', ":", 1)
            .parse::<Digest>()
            .is_ok_and(|digest| artifact::fallback_tag(&digest) == *name)
    };
    matches!(descriptor.media_type.role(), Role::Manifest | Role::Index)
        && descriptor.artifact_type.is_none()
        && !descriptor
            .annotations
            .get(Descriptor::REF_NAME)
            .is_some_and(is_list)
}

fn choose(
    index: &Index,
    blobs: &Blobs,
    name: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> Result<Document<Manifest>> {
    let images: Vec<&Descriptor> = index
        .manifests
        .iter()
        .filter(|descriptor| is_image(descriptor))
        .collect();
    let available = || -> Vec<String> {
        images
            .iter()
            .map(|descriptor| {
                names_of(descriptor)
                    .next()
                    .map_or_else(|| descriptor.digest.to_string(), str::to_owned)
            })
            .collect()
    };
    let candidates: Vec<&Descriptor> = match name {
        None => images.clone(),
        Some(name) => {
            let by = |matches: &dyn Fn(&str) -> bool| -> Vec<&Descriptor> {
                images
                    .iter()
                    .copied()
                    .filter(|descriptor| {
                        descriptor.digest.to_string() == name || names_of(descriptor).any(matches)
                    })
                    .collect()
            };
            let exact = by(&|known| known == name);
            if exact.is_empty() {
                by(&|known| means(known, name))
            } else {
                exact
            }
        }
    };
    let mut candidates = candidates;
    // The same image twice is no choice.
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(&candidate.digest));
    let found = match candidates.as_slice() {
        [] => {
            return Err(Error::NoSuchImage {
                wanted: name.unwrap_or("any").to_owned(),
                available: available(),
            });
        }
        [only] => only,
        [first, rest @ ..] => {
            // Several platforms of one image may stand side by side under one name, or under none.
            let same = rest
                .iter()
                .all(|other| names_of(other).next() == names_of(first).next());
            if !same
                || candidates
                    .iter()
                    .all(|candidate| candidate.platform.is_none())
            {
                return Err(Error::SeveralImages {
                    available: available(),
                });
            }
            manifest::select(candidates.iter().copied(), platform)?
        }
    };
    resolve(found.clone(), blobs, platform, limits)
}

/// Follows indexes down to a manifest.
fn resolve(
    mut descriptor: Descriptor,
    blobs: &Blobs,
    platform: &Platform,
    limits: &Limits,
) -> Result<Document<Manifest>> {
    for _ in 0..=MAX_INDEX_DEPTH {
        let bytes = blobs.read_document(&descriptor, limits.document_bytes)?;
        match ManifestOrIndex::parse(descriptor, bytes)? {
            ManifestOrIndex::Manifest(manifest) => return Ok(*manifest),
            ManifestOrIndex::Index(index) => descriptor = index.select(platform)?.clone(),
        }
    }
    Err(Error::IndexDepth {
        limit: MAX_INDEX_DEPTH,
    })
}

fn choose_item<'a>(items: &'a [Item], name: Option<&str>) -> Result<&'a Item> {
    let available = || {
        items
            .iter()
            .flat_map(|item| item.repo_tags.iter().cloned())
            .collect()
    };
    let found: Vec<&Item> = match name {
        None => items.iter().collect(),
        Some(name) => {
            let by = |matches: &dyn Fn(&String) -> bool| -> Vec<&Item> {
                items
                    .iter()
                    .filter(|item| item.repo_tags.iter().any(matches))
                    .collect()
            };
            let exact = by(&|known| known == name);
            if exact.is_empty() {
                by(&|known| means(known, name))
            } else {
                exact
            }
        }
    };
    match found.as_slice() {
        [] => Err(Error::NoSuchImage {
            wanted: name.unwrap_or("any").to_owned(),
            available: available(),
        }),
        [only] => Ok(only),
        _ => Err(Error::SeveralImages {
            available: available(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_be_short() {
        for (known, wanted) in [
            ("latest", "latest"),
            ("docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/library/busybox:latest", "busybox"),
            ("docker.io/library/busybox:latest", "latest"),
            ("busybox:1.36", "1.36"),
        ] {
            assert!(means(known, wanted), "{known} {wanted}");
        }
        for (known, wanted) in [
            ("docker.io/library/busybox:latest", "box:latest"),
            ("docker.io/library/busybox:1", "busybox"),
            ("latest", "test"),
            ("a", ""),
        ] {
            assert!(!means(known, wanted), "{known} {wanted}");
        }
    }

    #[test]
    fn a_path_with_a_colon_is_a_path_if_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("a");
        let colon = dir.path().join("a:b");
        std::fs::create_dir(&plain).unwrap();
        assert_eq!(split_name(&colon), (plain.clone(), Some("b".to_owned())));
        std::fs::create_dir(&colon).unwrap();
        assert_eq!(split_name(&colon), (colon.clone(), None));
        let long = PathBuf::from(format!("{}:x.io/y:1", plain.display()));
        assert_eq!(split_name(&long), (plain, Some("x.io/y:1".to_owned())));
    }
}
