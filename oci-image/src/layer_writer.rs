//! Writing a layer: the same entries give the same bytes, always.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::compression::Compression;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result, excerpt};
use crate::media_type::MediaType;
use crate::pack::{Contents, Entry, EntryKind};
use crate::pax;
use crate::rootdir::parts;
use crate::tar_header::{BLOCK, Header};
use crate::whiteout::{OPAQUE, PREFIX};

/// Levels of zstd above this refer back farther than every reader remembers, unless they are told not to.
const WIDE: i32 = 19;
/// 8 MiB as a power of two: what RFC 8878 asks readers for.
const WINDOW: u32 = 23;

/// How a layer is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackOptions {
    compression: Compression,
    level: Option<i32>,
    latest: Option<i64>,
    owner: Option<(u32, u32)>,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions::new()
    }
}

impl PackOptions {
    /// gzip, times and owners as they are.
    pub fn new() -> PackOptions {
        PackOptions {
            compression: Compression::Gzip,
            level: None,
            latest: None,
            owner: None,
        }
    }

    /// Like [`PackOptions::new`], with times clamped to the environment variable `SOURCE_DATE_EPOCH` if it is set.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] when the variable is no number of seconds.
    #[doc(alias = "SOURCE_DATE_EPOCH")]
    pub fn from_env() -> Result<PackOptions> {
        let options = PackOptions::new();
        let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
            return Ok(options);
        };
        let seconds = text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| Error::BadValue {
            what: "SOURCE_DATE_EPOCH",
            text: excerpt(&text.to_string_lossy()),
            reason: "set it to seconds since 1970, such as the output of `date +%s`, or unset it",
        })?;
        Ok(options.clamp_times(seconds))
    }

    /// How the layer is compressed.
    pub fn compression(mut self, compression: Compression) -> PackOptions {
        self.compression = compression;
        self
    }

    /// How hard the compressor tries: 0 to 9 for gzip (default 6), 1 to 22 for zstd (default 3).
    pub fn level(mut self, level: i32) -> PackOptions {
        self.level = Some(level);
        self
    }

    /// Replaces times after `seconds` since 1970 by that time.
    pub fn clamp_times(mut self, seconds: i64) -> PackOptions {
        self.latest = Some(seconds);
        self
    }

    /// The latest time that an entry may have, in seconds since 1970.
    pub fn latest_time(&self) -> Option<i64> {
        self.latest
    }

    /// Gives everything to one owner and one group, such as 0 and 0.
    pub fn owner(mut self, uid: u32, gid: u32) -> PackOptions {
        self.owner = Some((uid, gid));
        self
    }
}

/// A layer that has been written.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PackedLayer {
    /// The blob, as it stands in a manifest.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed layer, as it stands in a configuration.
    pub diff_id: Digest,
    /// Bytes of the uncompressed layer.
    pub uncompressed_size: u64,
}

/// Writes the entries of a layer as a compressed tar stream.
///
/// The bytes depend on the entries, their order and the options alone: not on the time, the machine or the directory
/// that the entries come from. [`walk`](crate::walk) gives entries in sorted order.
pub struct LayerWriter<W: Write> {
    out: Hashing<Compressor<Hashing<W>>>,
    options: PackOptions,
}

enum Compressor<W: Write> {
    None(W),
    Gzip(flate2::write::GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    written: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Hashing<W> {
        Hashing {
            inner,
            hasher: Hasher::new(Algorithm::Sha256),
            written: 0,
        }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(out) => out.write(buf),
            Compressor::Gzip(out) => out.write(buf),
            Compressor::Zstd(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::None(out) => out.flush(),
            Compressor::Gzip(out) => out.flush(),
            Compressor::Zstd(out) => out.flush(),
        }
    }
}

impl<W: Write> LayerWriter<W> {
    /// Writes the layer to `out`.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] for a compression level that does not exist, [`Error::Stream`] when the compressor cannot
    /// start.
    pub fn new(out: W, options: PackOptions) -> Result<LayerWriter<W>> {
        let out = Hashing::new(out);
        let bad_level = |level: i32, reason| Error::BadValue {
            what: "compression level",
            text: level.to_string(),
            reason,
        };
        let compressor = match options.compression {
            Compression::None => Compressor::None(out),
            Compression::Gzip => {
                let level = options.level.unwrap_or(6);
                let number = u32::try_from(level)
                    .ok()
                    .filter(|level| *level <= 9)
                    .ok_or_else(|| bad_level(level, "gzip has 0 to 9"))?;
                // No name, no time, and 255 for "unknown system".
                Compressor::Gzip(
                    flate2::GzBuilder::new()
                        .operating_system(255)
                        .write(out, flate2::Compression::new(number)),
                )
            }
            Compression::Zstd => {
                let level = options.level.unwrap_or(3);
                if !(1..=22).contains(&level) {
                    return Err(bad_level(level, "zstd has 1 to 22"));
                }
                let mut encoder =
                    zstd::stream::write::Encoder::new(out, level).map_err(write_error)?;
                if level > WIDE {
                    encoder.window_log(WINDOW).map_err(write_error)?;
                }
                Compressor::Zstd(encoder)
            }
        };
        Ok(LayerWriter {
            out: Hashing::new(compressor),
            options,
        })
    }

    /// Writes one entry.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] when the name cannot be in a layer, [`Error::Truncated`] when a file is shorter than it was
    /// said to be, [`Error::Stream`] when reading or writing fails.
    pub fn append(&mut self, entry: Entry) -> Result<()> {
        let name = entry_name(&entry)?;
        let metadata = &entry.metadata;
        let (flag, link, size) = match &entry.kind {
            EntryKind::Directory => (b'5', None, 0),
            EntryKind::Regular(contents) => (b'0', None, contents.size()),
            EntryKind::Whiteout | EntryKind::Opaque => (b'0', None, 0),
            EntryKind::Symlink(target) => (b'2', Some(target.as_os_str().as_bytes().to_vec()), 0),
            EntryKind::Hardlink(target) => (b'1', Some(relative(target)?), 0),
            EntryKind::Char { .. } => (b'3', None, 0),
            EntryKind::Block { .. } => (b'4', None, 0),
            EntryKind::Fifo => (b'6', None, 0),
        };
        let device = match entry.kind {
            EntryKind::Char { major, minor } | EntryKind::Block { major, minor } => {
                Some((major, minor))
            }
            _ => None,
        };
        let (uid, gid) = self.options.owner.unwrap_or((metadata.uid, metadata.gid));
        let mtime = match self.options.latest {
            Some(latest) if metadata.mtime >= (latest, 0) => (latest, 0),
            _ => metadata.mtime,
        };

        let mut records = Vec::new();
        let mut header = Header::new(flag);
        header.name(&name, &mut records);
        if let Some(link) = &link {
            if link.is_empty() || link.contains(&0) {
                return Err(bad_name(
                    &entry.path,
                    "the target of the link is empty or holds a zero byte",
                ));
            }
            header.link(link, &mut records);
        }
        header.octal(100..108, u64::from(metadata.mode & 0o7777));
        header.id(108..116, "uid", uid, &mut records);
        header.id(116..124, "gid", gid, &mut records);
        header.size(size, &mut records);
        header.mtime(mtime, &mut records);
        if let Some((major, minor)) = device
            && !header.device(major, minor)
        {
            return Err(bad_name(
                &entry.path,
                "its device number is too large for a layer",
            ));
        }
        // A hard link has what its file has.
        if !matches!(entry.kind, EntryKind::Hardlink(_)) {
            for (key, value) in &metadata.xattrs {
                if key.is_empty() || key.contains(&b'=') || key.contains(&0) {
                    return Err(bad_name(
                        &entry.path,
                        "the name of an extended attribute cannot be in a layer",
                    ));
                }
                pax::write(
                    &mut records,
                    &[b"SCHILY.xattr.", key.as_slice()].concat(),
                    value,
                );
            }
        }
        if !records.is_empty() {
            let mut extended = Header::new(b'x');
            let mut unused = Vec::new();
            let short = &name[..name.len().min(80)];
            extended.name(&[b"PaxHeaders/", short].concat(), &mut unused);
            extended.octal(100..108, 0o644);
            extended.size(records.len() as u64, &mut unused);
            self.write(&extended.finish())?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.write(&header.finish())?;
        match entry.kind {
            EntryKind::Regular(Contents::Bytes(bytes)) => self.write(&bytes)?,
            EntryKind::Regular(Contents::File(file, size)) => {
                let written = io::copy(&mut file.take(size), &mut self.out).map_err(write_error)?;
                if written < size {
                    return Err(Error::Truncated {
                        what: format!("file {}", entry.path.display()),
                        expected: size,
                        found: written,
                    });
                }
            }
            _ => {}
        }
        self.pad(size)
    }

    /// Writes all of `entries`.
    ///
    /// # Errors
    ///
    /// As for [`LayerWriter::append`], and the first error of `entries`.
    pub fn append_all(&mut self, entries: impl IntoIterator<Item = Result<Entry>>) -> Result<()> {
        entries
            .into_iter()
            .try_for_each(|entry| self.append(entry?))
    }

    /// Ends the layer and gives back where it was written.
    ///
    /// # Errors
    ///
    /// [`Error::Stream`] when writing fails.
    pub fn finish(mut self) -> Result<(PackedLayer, W)> {
        self.write(&[0; 2 * BLOCK])?;
        let uncompressed_size = self.out.written;
        let diff_id = self.out.hasher.finish();
        let (mut blob, media_type) = match self.out.inner {
            Compressor::None(out) => (out, MediaType::OCI_LAYER),
            Compressor::Gzip(out) => (
                out.finish().map_err(write_error)?,
                MediaType::OCI_LAYER_GZIP,
            ),
            Compressor::Zstd(out) => (
                out.finish().map_err(write_error)?,
                MediaType::OCI_LAYER_ZSTD,
            ),
        };
        blob.flush().map_err(write_error)?;
        let descriptor = Descriptor::new(media_type, blob.hasher.finish(), blob.written);
        Ok((
            PackedLayer {
                descriptor,
                diff_id,
                uncompressed_size,
            },
            blob.inner,
        ))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(write_error)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over > 0 {
            self.write(&[0; BLOCK][over..])?;
        }
        Ok(())
    }
}

impl<W: Write> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter")
            .field("options", &self.options)
            .field("written", &self.out.written)
            .finish_non_exhaustive()
    }
}

fn write_error(source: io::Error) -> Error {
    Error::Stream {
        operation: "write the layer",
        source,
    }
}

fn bad_name(path: &Path, reason: &'static str) -> Error {
    Error::BadValue {
        what: "entry",
        text: excerpt(&path.to_string_lossy()),
        reason,
    }
}

/// A path as it stands in a layer: relative, without `.` and `..`.
fn relative(path: &Path) -> Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    let parts: Vec<&[u8]> = parts(bytes).collect();
    if parts.contains(&b"..".as_slice()) || bytes.contains(&0) {
        return Err(bad_name(path, "it holds `..` or a zero byte"));
    }
    Ok(parts.join(&b'/'))
}

fn entry_name(entry: &Entry) -> Result<Vec<u8>> {
    let mut name = relative(&entry.path)?;
    let base = entry
        .path
        .file_name()
        .unwrap_or_else(|| OsStr::new(""))
        .as_bytes();
    if base.starts_with(PREFIX) {
        return Err(bad_name(
            &entry.path,
            "names that start with `.wh.` mean whiteouts; use EntryKind::Whiteout",
        ));
    }
    match entry.kind {
        EntryKind::Directory => {
            if name.is_empty() {
                name.push(b'.');
            }
            name.push(b'/');
        }
        EntryKind::Opaque => {
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(OPAQUE);
        }
        _ if name.is_empty() => {
            return Err(bad_name(
                &entry.path,
                "it names the root, which must be a directory",
            ));
        }
        EntryKind::Whiteout => {
            let at = name.len() - base.len();
            name.splice(at..at, PREFIX.iter().copied());
        }
        _ => {}
    }
    Ok(name)
}
