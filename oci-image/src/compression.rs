//! How a layer is compressed, told by its bytes.

use std::io::{self, BufRead, Read};

use crate::error::{Error, Result};
use crate::limits::Limits;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly in several members.
    Gzip,
    /// Zstandard, possibly in several frames.
    Zstd,
}

impl Compression {
    /// Tells the compression by a stream's first bytes; four are enough.
    pub fn detect(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // Skippable frames (0x184D2A5x) may come first; `pzstd` and chunked images have them.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Compression::None => "uncompressed",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// The uncompressed bytes of a stream.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

/// What libzstd says when a frame refers further back than it may.
const WINDOW_TOO_LARGE: &str = "Frame requires too much memory for decoding";

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `input` and decodes accordingly.
    pub(crate) fn new(mut input: R, limits: &Limits) -> Result<Decoder<R>> {
        let failed = |source| {
            Error::from_io(source, |source| Error::Stream {
                operation: "read the start of a blob",
                source,
            })
        };
        let compression = Compression::detect(input.fill_buf().map_err(failed)?);
        Ok(match compression {
            Compression::None => Decoder::Plain(input),
            Compression::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input)))
            }
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?;
                // What libzstd knows of: 2^10 to 2^31 bytes.
                let log = limits.zstd_window_bytes.max(1).ilog2().clamp(10, 31);
                decoder.window_log_max(log).map_err(failed)?;
                Decoder::Zstd(Box::new(decoder))
            }
        })
    }

    pub(crate) fn compression(&self) -> Compression {
        match self {
            Decoder::Plain(_) => Compression::None,
            Decoder::Gzip(_) => Compression::Gzip,
            Decoder::Zstd(_) => Compression::Zstd,
        }
    }

    /// What a failed [`Read::read`] means after `offset` bytes.
    pub(crate) fn failed(&self, error: io::Error, offset: u64, limits: &Limits) -> Error {
        let compression = self.compression().name();
        Error::from_io(error, |source| {
            if source.to_string() == WINDOW_TOO_LARGE {
                let limit = limits.zstd_window_bytes;
                return Error::Limit {
                    what: "what a Zstandard frame refers back to",
                    found: limit + 1,
                    unit: "bytes or more",
                    limit,
                    setting: "zstd_window_bytes",
                };
            }
            Error::Decompress {
                compression,
                offset,
                source,
            }
        })
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        match self {
            Decoder::Plain(input) => input,
            Decoder::Gzip(decoder) => decoder.get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(input) => input.read(buf),
            Decoder::Gzip(decoder) => decoder.read(buf),
            Decoder::Zstd(decoder) => decoder.read(buf),
        }
    }
}
