//! Where blobs are, and reading them with their digest checked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::Archive;
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::limits::check_bytes;
#[cfg(feature = "registry")]
use crate::registry::{Download, Remote};

/// What holds the blobs of a source.
#[derive(Debug)]
pub(crate) enum Blobs {
    /// `blobs/` of a layout directory.
    Directory(PathBuf),
    /// `blobs/` in an archive.
    Archive(Archive),
    /// The members of a legacy docker-archive, by the digests that were found for them.
    Members {
        archive: Archive,
        names: HashMap<Digest, String>,
    },
    /// A repository of a registry.
    #[cfg(feature = "registry")]
    Registry(Arc<Remote>),
}

impl Blobs {
    /// Opens the blob of `descriptor`.
    pub(crate) fn open(&self, descriptor: &Descriptor) -> Result<BlobReader> {
        let hasher = Hasher::new(descriptor.digest.algorithm());
        self.resume(descriptor, hasher, 0)
    }

    /// How many blobs are worth opening side by side.
    pub(crate) fn parallel(&self) -> usize {
        match self {
            #[cfg(feature = "registry")]
            Blobs::Registry(remote) => remote.http.options.parallel,
            _ => 1,
        }
    }

    /// Opens the blob of `descriptor` after its first `offset` bytes, which `hasher` has taken in.
    pub(crate) fn resume(
        &self,
        descriptor: &Descriptor,
        hasher: Hasher,
        offset: u64,
    ) -> Result<BlobReader> {
        let digest = &descriptor.digest;
        let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let missing = |place: PathBuf| Error::MissingBlob {
            digest: digest.clone(),
            place,
        };
        let section = match self {
            Blobs::Directory(root) => {
                let path = root.join(&name);
                match open_regular(&path) {
                    Ok(section) => section,
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        return Err(missing(path));
                    }
                    Err(error) => return Err(error),
                }
            }
            Blobs::Archive(archive) => archive
                .member(&name)?
                .ok_or_else(|| missing(archive.path().join(&name)))?,
            Blobs::Members { archive, names } => {
                let name = names
                    .get(digest)
                    .ok_or_else(|| missing(archive.path().to_owned()))?;
                archive
                    .member(name)?
                    .ok_or_else(|| missing(archive.path().join(name)))?
            }
            #[cfg(feature = "registry")]
            Blobs::Registry(remote) => {
                let download = remote.open(descriptor, offset)?;
                return Ok(BlobReader {
                    input: Input::Registry(Box::new(download)),
                    digest: digest.clone(),
                    size: descriptor.size,
                    hasher: Some(hasher),
                    read: offset,
                    image: None,
                });
            }
        };
        BlobReader::new(section, descriptor, hasher, offset)
    }

    /// Reads a whole, verified document of at most `limit` bytes.
    pub(crate) fn read_document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        check_bytes("a document", descriptor.size, limit, "document_bytes")?;
        let mut reader = self.open(descriptor)?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|source| {
            Error::from_io(source, |source| Error::Stream {
                operation: "read a blob",
                source,
            })
        })?;
        Ok(bytes)
    }
}

/// Opens a regular file and nothing else: a FIFO would hang the reader, a device could do anything.
pub(crate) fn open_regular(path: &Path) -> Result<Section> {
    let failed = |source| Error::Io {
        operation: "open",
        path: path.to_owned(),
        source,
    };
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = if kind.is_fifo() {
            "it is a FIFO, not a file"
        } else {
            "it is not a regular file"
        };
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    Ok(Section {
        file: Arc::new(file),
        position: 0,
        end: metadata.len(),
        path: path.to_owned(),
    })
}

/// A part of a file, read by position so that several readers can share the file.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) file: Arc<File>,
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) path: PathBuf,
}

impl Section {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len())
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buf[..most], self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// The bytes of a blob as they are stored, or as they come from a registry.
///
/// The last bytes are given out only after length and digest of all were compared with the descriptor; when they
/// differ, the read fails with an [`io::Error`] that carries an [`Error`]: whoever has read everything without an
/// error has read the right bytes.
#[derive(Debug)]
pub struct BlobReader {
    input: Input,
    digest: Digest,
    size: u64,
    hasher: Option<Hasher>,
    read: u64,
    /// The image that errors name.
    image: Option<String>,
}

#[derive(Debug)]
enum Input {
    File(Section),
    #[cfg(feature = "registry")]
    Registry(Box<Download>),
}

impl Input {
    fn place(&self) -> String {
        match self {
            Input::File(section) => section.path.display().to_string(),
            #[cfg(feature = "registry")]
            Input::Registry(download) => download.place(),
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::File(section) => section.read(buf).map_err(|source| {
                if source.kind() == io::ErrorKind::Interrupted {
                    return source;
                }
                Error::Io {
                    operation: "read",
                    path: section.path.clone(),
                    source,
                }
                .into_io()
            }),
            #[cfg(feature = "registry")]
            Input::Registry(download) => download.read(buf),
        }
    }
}

impl BlobReader {
    fn new(
        mut section: Section,
        descriptor: &Descriptor,
        hasher: Hasher,
        offset: u64,
    ) -> Result<BlobReader> {
        let found = section.len();
        let digest = descriptor.digest.clone();
        if found < descriptor.size {
            return Err(Error::Truncated {
                what: format!("blob {digest} ({})", section.path.display()),
                expected: descriptor.size,
                found,
            });
        }
        if found > descriptor.size {
            return Err(Error::Oversized {
                digest,
                expected: descriptor.size,
            });
        }
        section.position += offset;
        Ok(BlobReader {
            input: Input::File(section),
            hasher: Some(hasher),
            digest,
            size: descriptor.size,
            read: offset,
            image: None,
        })
    }

    /// Lets errors name the image to which the blob belongs.
    pub(crate) fn of_image(mut self, name: &str) -> BlobReader {
        self.image = Some(name.to_owned());
        self
    }

    /// The blob's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn verify(&mut self) -> Result<()> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        // The file may have been cut since it was opened.
        if self.read < self.size {
            return Err(Error::Truncated {
                what: format!("blob {} ({})", self.digest, self.input.place()),
                expected: self.size,
                found: self.read,
            });
        }
        let found = hasher.finish();
        if found != self.digest {
            return Err(Error::DigestMismatch {
                what: "the blob",
                expected: self.digest.clone(),
                found,
            });
        }
        #[cfg(feature = "registry")]
        if let Input::Registry(download) = &self.input {
            download.verified();
        }
        Ok(())
    }

    fn read_verified(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.read += n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        if n == 0 || self.read == self.size {
            self.verify().map_err(Error::into_io)?;
        }
        Ok(n)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.read_verified(buf)
            .map_err(|error| match (&self.image, error.downcast::<Error>()) {
                (Some(image), Ok(error)) => error.in_image(image).into_io(),
                (None, Ok(error)) => error.into_io(),
                // Such as an interruption, after which the caller reads again.
                (_, Err(error)) => error,
            })
    }
}
