//! The one error type of the crate.

mod words;

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::media_type::MediaType;
use crate::platform::Platform;
pub(crate) use words::excerpt;
use words::{advice, hint, names, others, said};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with an image.
///
/// The contexts [`Error::InImage`], [`Error::InLayer`] and [`Error::InEntry`] say where; [`Error::cause`] goes
/// past them to what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something is wrong in a named image.
    #[error("image {image}: {cause}")]
    InImage {
        /// The image as it was asked for.
        image: String,
        /// What is wrong.
        cause: Box<Error>,
    },
    /// Something is wrong in a layer.
    #[error("layer {layer}: {cause}")]
    InLayer {
        /// The digest of the layer's blob.
        layer: Digest,
        /// What is wrong.
        cause: Box<Error>,
    },
    /// Something is wrong with one entry of an archive.
    #[error("entry {entry:?} at byte {offset}: {cause}")]
    InEntry {
        /// The entry's name.
        entry: String,
        /// Where its header starts in the uncompressed archive, in bytes.
        offset: u64,
        /// What is wrong.
        cause: Box<Error>,
    },

    /// A system call on a path failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Reading from or writing to a stream failed.
    #[error("cannot {operation}: {source}")]
    Stream {
        /// What was tried.
        operation: &'static str,
        /// The stream's answer.
        source: io::Error,
    },

    /// A text is not a digest.
    #[error("{text:?} is not a digest: {reason}; write it as sha256:<64 lower-case hex digits>")]
    BadDigest {
        /// The text (shortened).
        text: String,
        /// Why.
        reason: &'static str,
    },
    /// A JSON document cannot be read as what it should be.
    #[error(
        "{document} is not valid: {source}; the image was made wrongly or is damaged, fetch or build it again"
    )]
    Json {
        /// Which document.
        document: String,
        /// The parser's answer, with line and column.
        source: serde_json::Error,
    },
    /// A document has a field that this version cannot act on.
    #[error("{document}: {field} is {found:?}, expected {expected}")]
    BadField {
        /// Which document.
        document: String,
        /// The field.
        field: &'static str,
        /// What it holds (shortened).
        found: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// Something is larger than a setting allows.
    #[error(
        "{what} has {found} {unit}, more than the limit of {limit}; raise `Limits::{setting}` if the image is trusted"
    )]
    Limit {
        /// What is too large.
        what: &'static str,
        /// Its size, or how much had been seen when it was stopped.
        found: u64,
        /// The unit of both numbers.
        unit: &'static str,
        /// The limit in force.
        limit: u64,
        /// The field of [`Limits`](crate::Limits).
        setting: &'static str,
    },
    /// A document says that it is of another media type than the descriptor that led to it (CVE-2021-41190).
    #[error(
        "{digest} is described as {expected} but calls itself {found}; refuse or rebuild this image"
    )]
    MediaTypeMismatch {
        /// The document.
        digest: Digest,
        /// What the descriptor says.
        expected: MediaType,
        /// What the document says.
        found: MediaType,
    },
    /// A document could be read both as a manifest and as an index (CVE-2021-41190).
    #[error(
        "{digest} holds both {first:?} and {second:?}, so it could be read as a manifest and as an index; refuse or rebuild this image"
    )]
    AmbiguousDocument {
        /// The document.
        digest: Digest,
        /// A field of the one.
        first: &'static str,
        /// A field of the other.
        second: &'static str,
    },
    /// A media type that cannot be used here.
    #[error("{digest} has media type {found}, expected {expected}")]
    UnsupportedMediaType {
        /// The content.
        digest: Digest,
        /// Its media type.
        found: MediaType,
        /// What was expected.
        expected: &'static str,
    },

    /// There is nothing at a path.
    #[error("there is no image at {}; give the path of an OCI layout directory, an OCI archive or a `docker save` archive", path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A path holds something, but no image.
    #[error("{} is not an image ({reason}); give the path of an OCI layout directory, an OCI archive or a `docker save` archive", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// What was looked for and not found.
        reason: &'static str,
    },
    /// A source has no image of the wanted name.
    #[error("there is no image {wanted:?} there; {}", others(available))]
    NoSuchImage {
        /// The wanted name.
        wanted: String,
        /// The names in the source.
        available: Vec<String>,
    },
    /// A source has several images and none was chosen.
    #[error("there are {} images; choose one by PATH:NAME, with NAME one of {}", available.len(), names(available))]
    SeveralImages {
        /// The names in the source.
        available: Vec<String>,
    },
    /// An index has nothing for a platform.
    #[error(
        "there is no image for {wanted}; there is one for {}",
        names(available)
    )]
    NoPlatform {
        /// The wanted platform.
        wanted: Box<Platform>,
        /// The platforms in the index.
        available: Vec<String>,
    },
    /// An index leads to an index, and so on.
    #[error("indexes are nested more than {limit} deep; refuse or rebuild this image")]
    IndexDepth {
        /// The limit.
        limit: usize,
    },
    /// The number of layers differs from the number of `rootfs.diff_ids`.
    #[error(
        "the manifest has {layers} layers, but the configuration has {diff_ids} diff_ids; the image was made wrongly, build it again"
    )]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },

    /// A blob that the image names is not there.
    #[error("blob {digest} is missing ({}); copy or pull the image again", place.display())]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// Where it should be.
        place: PathBuf,
    },
    /// A file that an archive's list names is not in the archive.
    #[error("{} lists {}, which is not in it; save the image again", archive.display(), member.display())]
    MissingMember {
        /// The archive.
        archive: PathBuf,
        /// The file that should be in it.
        member: PathBuf,
    },
    /// A blob, file or archive ends too early.
    #[error(
        "{what} ends after {found} bytes, {expected} expected: it is truncated; copy or pull the image again"
    )]
    Truncated {
        /// What ends.
        what: String,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A blob is larger than its descriptor says.
    #[error(
        "blob {digest} goes on after the {expected} bytes that its descriptor says; copy or pull the image again"
    )]
    Oversized {
        /// The blob.
        digest: Digest,
        /// Bytes that it should have.
        expected: u64,
    },
    /// Content does not hash to its digest.
    #[error(
        "{what} was tampered with or damaged: expected {expected}, found {found}; copy or pull the image again"
    )]
    DigestMismatch {
        /// `blob` or `uncompressed layer`.
        what: &'static str,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// A compressed stream cannot be inflated.
    #[error(
        "the {compression} stream is damaged after {offset} uncompressed bytes: {source}; copy or pull the image again"
    )]
    Decompress {
        /// `gzip` or `zstd`.
        compression: &'static str,
        /// How many bytes came out before.
        offset: u64,
        /// The decoder's answer.
        source: io::Error,
    },

    /// A registry could not be reached, or the connection broke and trying again did not help.
    #[error(
        "cannot {operation} {url}: {source}; check the registry's name, the network and proxy settings"
    )]
    Network {
        /// What was tried.
        operation: &'static str,
        /// Where, without the query, which may hold secrets.
        url: String,
        /// What the connection said.
        source: io::Error,
    },
    /// A registry refused a request.
    #[error("cannot {operation} {url}: the registry answered {status}{}{}", said(message), advice(*status))]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Where, without the query.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said (shortened), or nothing.
        message: String,
    },
    /// A registry wants credentials that it was not given, or refuses those that it was given.
    #[error(
        "{registry} refuses {scope:?}: {reason}; log in (`docker login {registry}`) as somebody who may do this"
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was asked for, such as `repository:team/app:pull`.
        scope: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A registry, or its token service, answered something that its protocol does not allow.
    #[error(
        "{url} answered against the protocol: {reason} ({found:?}); this may be no registry, or a hostile one"
    )]
    BadResponse {
        /// Where, without the query.
        url: String,
        /// What is wrong.
        reason: &'static str,
        /// What was found (shortened).
        found: String,
    },
    /// Data came too slowly for too long.
    #[error(
        "{url} stalled: {received} bytes in {} seconds; try again, or allow slower connections (`RegistryOptions::stall`)", within.as_secs_f32()
    )]
    Stalled {
        /// Where, without the query.
        url: String,
        /// Bytes in the time below.
        received: u64,
        /// The time that was watched.
        within: std::time::Duration,
    },
    /// A file with credentials, or a program that keeps them, does not work.
    #[error(
        "cannot get credentials for {registry} from {from}: {reason}; log in again or repair it"
    )]
    Credentials {
        /// The registry.
        registry: String,
        /// The file, or the helper program.
        from: String,
        /// What is wrong; holds no secrets.
        reason: String,
    },

    /// An archive's structure is wrong.
    #[error("the tar archive is damaged at byte {offset}: {problem}")]
    Tar {
        /// Where, in bytes of the uncompressed archive.
        offset: u64,
        /// What is wrong.
        problem: TarProblem,
    },
    /// An entry's name would lead out of the root, or names nothing.
    #[error("its name {reason}; refuse this image")]
    UnsafePath {
        /// Why it is refused.
        reason: &'static str,
    },
    /// The entry for the root is something else than a directory.
    #[error("it replaces the root by a {kind}; refuse this image")]
    RootNotDirectory {
        /// What it is.
        kind: &'static str,
    },
    /// The target of a hard link is not there.
    #[error("it is a hard link to {target:?}, which is not in this layer or below it")]
    HardlinkTarget {
        /// The target.
        target: String,
    },
    /// A whiteout names nothing that could be removed.
    #[error("it is a whiteout of {target:?}, which is no name; refuse this image")]
    BadWhiteout {
        /// What follows `.wh.`.
        target: String,
    },
    /// An owner has no place in the map.
    #[error(
        "it belongs to {kind} {id}, which is not mapped; give more subordinate ids or use `Ownership::Squash`"
    )]
    UnmappedId {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The id in the image.
        id: u64,
    },
    /// Making something in the root failed.
    #[error("cannot {operation}: {source}{}", hint(operation, source))]
    Unpack {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },

    /// A user or group of the configuration is not in the image.
    #[error(
        "there is no {kind} {name:?} in the image's {file}; name one that is there, or give a number"
    )]
    NoSuchUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// Where it was looked up.
        file: &'static str,
    },
    /// A number for a user or group that no process can have.
    #[error("{kind} {text:?} is out of range; a number from 0 to 4294967294 is possible")]
    IdOutOfRange {
        /// `user` or `group`.
        kind: &'static str,
        /// The text.
        text: String,
    },
    /// A value of the configuration or a setting has the wrong form.
    #[error("{what} {text:?} is not valid: {reason}")]
    BadValue {
        /// Which value.
        what: &'static str,
        /// The text (shortened).
        text: String,
        /// What is wrong and what would be right.
        reason: &'static str,
    },
    /// A Dockerfile cannot be built as it is.
    #[error("{diagnostics}")]
    Dockerfile {
        /// All that is wrong, each with its place.
        diagnostics: crate::dockerfile::Diagnostics,
    },
    /// The image has no command and none was given.
    #[error("the image names no command; give one after the image")]
    NoCommand,
}

/// What is wrong with the structure of a tar archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// The sum over a header is not what the header says.
    #[error("the header's checksum is {found}, expected {expected}")]
    Checksum {
        /// What the header says.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A number cannot be read.
    #[error("{field} is no number that fits: {text:?}")]
    Number {
        /// Which field.
        field: &'static str,
        /// What stands there (shortened).
        text: String,
    },
    /// An extended header is malformed.
    #[error("the extended header is malformed: {0}")]
    Pax(&'static str),
    /// A kind of entry that has no meaning in a layer.
    #[error("entries of type {0:?} are not supported")]
    Type(char),
    /// Readers would disagree about where the next header is or what this one means.
    #[error("it can be read in two ways: {0}")]
    Ambiguous(&'static str),
    /// A map of a sparse file makes no sense.
    #[error("the map of a sparse file is malformed: {0}")]
    Sparse(&'static str),
    /// An entry has no name.
    #[error("an entry has no name")]
    NoName,
    /// A name holds a zero byte.
    #[error("a name holds a zero byte")]
    ZeroInName,
    /// The archive ends within a header or an entry.
    #[error("it ends within an entry")]
    Truncated,
}

impl Error {
    /// What went wrong, without the contexts that say where.
    pub fn cause(&self) -> &Error {
        match self {
            Error::InImage { cause, .. }
            | Error::InLayer { cause, .. }
            | Error::InEntry { cause, .. } => cause.cause(),
            other => other,
        }
    }

    pub(crate) fn in_image(self, image: &str) -> Error {
        match self {
            Error::InImage { .. } => self,
            cause => Error::InImage {
                image: image.to_owned(),
                cause: Box::new(cause),
            },
        }
    }

    pub(crate) fn in_layer(self, layer: &Digest) -> Error {
        match self {
            Error::InLayer { .. } => self,
            cause => Error::InLayer {
                layer: layer.clone(),
                cause: Box::new(cause),
            },
        }
    }

    pub(crate) fn in_entry(self, entry: &[u8], offset: u64) -> Error {
        match self {
            // This already says where.
            Error::InEntry { .. } => self,
            cause => Error::InEntry {
                entry: excerpt(&String::from_utf8_lossy(entry)),
                offset,
                cause: Box::new(cause),
            },
        }
    }

    /// Carries a typed error through an API that only knows [`io::Error`].
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The typed error that an [`io::Error`] carries, or `otherwise` made of it.
    pub(crate) fn from_io(error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
        match error.downcast::<Error>() {
            Ok(typed) => typed,
            Err(plain) => otherwise(plain),
        }
    }
}
