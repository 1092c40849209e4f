//! What host and lab say to each other over the one virtio-serial port between them.
//!
//! One port carries everything, in frames, so that a command's last output is always read before
//! its exit status. A frame is a kind (one byte), a length (four, little-endian) and that many
//! bytes.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The port's name, by which the lab finds its device node.
pub(crate) const PORT: &str = "cofferdam.lab";

/// How often each says that it is alive.
pub(crate) const PULSE: Duration = Duration::from_secs(5);

/// Longer frames than this are never sent; one that claims to be is a broken stream.
const LONGEST: usize = 1 << 20;

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Lab: the system is up and waits for its command.
    Ready,
    /// Host: run this.
    Start(Start),
    /// Host: bytes for the command's standard input.
    Stdin(Vec<u8>),
    /// Host: standard input has ended.
    StdinEnd,
    /// Host: the terminal's size is now rows and columns.
    Size(u16, u16),
    /// Lab: bytes from the command's standard output.
    Stdout(Vec<u8>),
    /// Lab: bytes from its standard error.
    Stderr(Vec<u8>),
    /// Lab: the command has ended with this status, as a shell would give it.
    Exit(u8),
    /// Lab: the command could not be run at all, and why.
    Refused(String),
    /// Either: nothing to say, but here, every [`PULSE`].
    Alive,
}

/// A command to run in the lab.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    argv: Vec<Vec<u8>>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    cwd: Vec<u8>,
    /// Rows and columns of the terminal to run it on, if on one.
    pub(crate) terminal: Option<(u16, u16)>,
}

impl Start {
    pub(crate) fn new(
        argv: &[OsString],
        env: &[(OsString, OsString)],
        cwd: &OsString,
        terminal: Option<(u16, u16)>,
    ) -> Self {
        let bytes = |s: &OsString| s.as_bytes().to_vec();
        Start {
            argv: argv.iter().map(bytes).collect(),
            env: env.iter().map(|(k, v)| (bytes(k), bytes(v))).collect(),
            cwd: bytes(cwd),
            terminal,
        }
    }

    pub(crate) fn argv(&self) -> Vec<OsString> {
        self.argv.iter().cloned().map(OsString::from_vec).collect()
    }

    pub(crate) fn env(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let pairs = self.env.iter().cloned();
        pairs.map(|(k, v)| (OsString::from_vec(k), OsString::from_vec(v)))
    }

    pub(crate) fn cwd(&self) -> OsString {
        OsString::from_vec(self.cwd.clone())
    }
}

impl Frame {
    /// Writes the frame in one piece and flushes it.
    pub(crate) fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, body): (u8, Vec<u8>) = match self {
            Frame::Ready => (1, Vec::new()),
            Frame::Start(start) => (2, serde_json::to_vec(start)?),
            Frame::Stdin(bytes) => (3, bytes.clone()),
            Frame::StdinEnd => (4, Vec::new()),
            Frame::Size(rows, columns) => (5, [rows.to_le_bytes(), columns.to_le_bytes()].concat()),
            Frame::Stdout(bytes) => (6, bytes.clone()),
            Frame::Stderr(bytes) => (7, bytes.clone()),
            Frame::Exit(status) => (8, vec![*status]),
            Frame::Refused(why) => (9, why.clone().into_bytes()),
            Frame::Alive => (10, Vec::new()),
        };
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= LONGEST)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "command line too long"))?;
        let mut message = Vec::with_capacity(body.len() + 5);
        message.push(kind);
        message.extend(length.to_le_bytes());
        message.extend(body);
        to.write_all(&message)?;
        to.flush()
    }

    /// Reads the next frame; `None` at the end of the stream.
    pub(crate) fn receive(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut head = [0; 5];
        let mut have = 0;
        while have < head.len() {
            match from.read(&mut head[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let [kind, a, b, c, d] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > LONGEST {
            return Err(broken(kind));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(match (kind, body.as_slice()) {
            (1, []) => Frame::Ready,
            (2, json) => Frame::Start(serde_json::from_slice(json)?),
            (3, _) => Frame::Stdin(body),
            (4, []) => Frame::StdinEnd,
            (5, &[a, b, c, d]) => {
                Frame::Size(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
            }
            (6, _) => Frame::Stdout(body),
            (7, _) => Frame::Stderr(body),
            (8, &[status]) => Frame::Exit(status),
            (9, text) => Frame::Refused(String::from_utf8_lossy(text).into_owned()),
            (10, []) => Frame::Alive,
            _ => return Err(broken(kind)),
        }))
    }
}

fn broken(kind: u8) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the lab and this program do not speak the same language (frame {kind})"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_as_it_was_sent() {
        let start = Start::new(
            &["sh".into(), OsString::from_vec(vec![0xff, b' '])],
            &[("A B".into(), "c=d".into())],
            &"/a b".into(),
            Some((24, 80)),
        );
        let frames = [
            Frame::Ready,
            Frame::Start(start),
            Frame::Stdin(b"in".to_vec()),
            Frame::StdinEnd,
            Frame::Size(50, 132),
            Frame::Stdout(vec![0; 70_000]),
            Frame::Stderr(Vec::new()),
            Frame::Exit(137),
            Frame::Refused("no such file".into()),
            Frame::Alive,
        ];
        let mut stream = Vec::new();
        for frame in &frames {
            frame.send(&mut stream).unwrap();
        }
        let mut stream = stream.as_slice();
        for frame in frames {
            assert_eq!(Frame::receive(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(Frame::receive(&mut stream).unwrap(), None);
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        for bytes in [&[1u8][..], &[99, 0, 0, 0, 0], &[3, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Frame::receive(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
