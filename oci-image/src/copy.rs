//! Copying images between all forms.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::archive_writer::{DockerArchiveWriter, OciArchiveWriter};
use crate::error::{Error, Result, excerpt};
use crate::image::Image;
use crate::layout_writer::{LayoutWriter, Temporary};
use crate::reference::Reference;

/// Where an image is copied to. As text it is written as other tools write it: `oci:PATH:NAME`,
/// `oci-archive:PATH:NAME` or `docker-archive:PATH:REFERENCE`; the names may be left out. With the feature `registry`,
/// `docker://REFERENCE`, too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destination {
    /// An OCI layout directory, made if it is not there; the image is added to those that are in it.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// The name of the image in it.
        name: Option<String>,
    },
    /// A new OCI archive.
    OciArchive {
        /// The file; it must not exist.
        path: PathBuf,
        /// The name of the image in it.
        name: Option<String>,
    },
    /// A new archive for `docker load`.
    DockerArchive {
        /// The file; it must not exist.
        path: PathBuf,
        /// The name of the image in it.
        name: Option<Reference>,
    },
    /// A registry, with the credentials of Docker and Podman; [`Registry::push`](crate::Registry::push) has settings.
    #[cfg(feature = "registry")]
    Registry {
        /// The image's name there.
        name: Reference,
    },
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Destination> {
        let bad = || Error::BadValue {
            what: "destination",
            text: excerpt(text),
            reason: "write it as oci:PATH:NAME, oci-archive:PATH:NAME, docker-archive:PATH:REFERENCE or docker://REFERENCE",
        };
        #[cfg(feature = "registry")]
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Destination::Registry {
                name: name.parse()?,
            });
        }
        let (form, rest) = text.split_once(':').ok_or_else(bad)?;
        let (path, name) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, name)) => (path, Some(name)),
        };
        if path.is_empty() || name == Some("") {
            return Err(bad());
        }
        let path = PathBuf::from(path);
        let owned = name.map(str::to_owned);
        match form {
            "oci" => Ok(Destination::OciLayout { path, name: owned }),
            "oci-archive" => Ok(Destination::OciArchive { path, name: owned }),
            "docker-archive" => Ok(Destination::DockerArchive {
                path,
                name: name.map(str::parse).transpose()?,
            }),
            _ => Err(bad()),
        }
    }
}

/// Copies `image` to `destination`, every blob verified on the way. A file appears under its name when it is whole.
/// Documents stay byte for byte what they are: one in Docker's schema 2 is so in an OCI layout, too, where skopeo, which
/// looks for OCI's media types alone, does not find it.
///
/// # Errors
///
/// What is wrong with the image, or [`Error::Io`] and [`Error::Stream`] when writing fails, also when there is a file
/// already.
pub fn copy(image: &Image, destination: &Destination) -> Result<()> {
    match destination {
        Destination::OciLayout { path, name } => {
            LayoutWriter::open(path)?.copy(image, name.as_deref())
        }
        Destination::OciArchive { path, name } => new_file(path, |out| {
            let mut writer = OciArchiveWriter::new(out)?;
            writer.image(image, name.as_deref())?;
            writer.finish()
        }),
        Destination::DockerArchive { path, name } => new_file(path, |out| {
            let mut writer = DockerArchiveWriter::new(out);
            writer.image(image, name.as_slice())?;
            writer.finish()
        }),
        #[cfg(feature = "registry")]
        Destination::Registry { name } => crate::Registry::default().push(image, name),
    }
}

fn new_file(
    path: &Path,
    write: impl FnOnce(BufWriter<File>) -> Result<BufWriter<File>>,
) -> Result<()> {
    let failed = |source| Error::Io {
        operation: "write",
        path: path.to_owned(),
        source,
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.symlink_metadata().is_ok() {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "it exists already; remove it or choose another name",
        )));
    }
    let temporary = Temporary::new(directory);
    let file = File::create_new(&temporary.path).map_err(failed)?;
    let file = write(BufWriter::with_capacity(128 << 10, file))?
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    temporary.rename(path)
}
