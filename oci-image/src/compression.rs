//! How a layer is compressed, told by its bytes.

use std::io::{self, BufRead, Read};

use crate::error::{Error, Result};

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

/// The largest window that a Zstandard frame may ask for: 2^27 bytes, as the `zstd` program's own default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `input` and decodes accordingly.
    pub(crate) fn new(mut input: R) -> Result<Decoder<R>> {
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
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG_MAX)
                    .map_err(failed)?;
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
