//! Blobs as they come from a registry, over breaks of the connection.

use std::io::{self, Read};
use std::sync::Arc;

use ureq::http::Method;

use super::endpoint::{Endpoint, scope};
use super::http::{Answer, Failure, Http, Request, broken, check_passing};
use super::progress::Progress;
use super::url;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// A connection that has brought so much since it last broke has not failed before.
const FORGIVEN: u64 = 1 << 20;
/// Bytes between two events of progress.
const TELL: u64 = 256 << 10;

/// Where the blobs of a repository are: mirrors first, the registry itself last.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) http: Arc<Http>,
    pub(crate) places: Vec<(Arc<Endpoint>, String)>,
}

impl Remote {
    /// The registry and repository as the image is named.
    pub(crate) fn home(&self) -> Option<(&str, &str)> {
        self.places
            .last()
            .map(|(endpoint, repository)| (endpoint.registry.as_str(), repository.as_str()))
    }

    /// The bytes of a blob from `offset` on.
    pub(crate) fn open(
        self: &Arc<Remote>,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Download> {
        let mut download = Download {
            remote: Arc::clone(self),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            position: offset,
            place: 0,
            ranges: true,
            body: None,
            attempts: 0,
            mark: offset,
            skip: 0,
            told: offset,
        };
        download.tell(|download| {
            let (digest, size) = (download.digest.clone(), download.size);
            Progress::Started { digest, size }
        });
        download.connect()?;
        Ok(download)
    }
}

/// A blob that is being pulled. When the connection breaks, it goes on where it was: whoever hashes what is read keeps
/// the state of the hash.
pub(crate) struct Download {
    remote: Arc<Remote>,
    digest: Digest,
    size: u64,
    position: u64,
    /// Which of the places is being asked.
    place: usize,
    /// Whether the place can be asked for a part.
    ranges: bool,
    body: Option<Box<dyn Read + Send>>,
    /// Failed attempts since it last went well, and where that was.
    attempts: u32,
    mark: u64,
    /// Bytes of the body that are here already and are dropped.
    skip: u64,
    told: u64,
}

const OPERATION: &str = "pull a blob from";

impl Download {
    pub(crate) fn place(&self) -> String {
        self.address()
            .map_or_else(String::new, |(_, address)| url::shown(&address))
    }

    fn tell(&self, event: impl FnOnce(&Download) -> Progress) {
        self.remote.http.options.listener.tell(|| event(self));
    }

    fn address(&self) -> Option<(&(Arc<Endpoint>, String), String)> {
        let place = self.remote.places.get(self.place)?;
        Some((
            place,
            place.0.url(&place.1, &format!("blobs/{}", self.digest)),
        ))
    }

    /// Has a body that, after what is to be skipped, stands at `position`.
    fn connect(&mut self) -> Result<()> {
        while self.body.is_none() {
            match self.connect_once() {
                Ok((body, skip)) => {
                    self.body = Some(body);
                    self.skip = skip;
                }
                Err(failure) => self.failed(failure)?,
            }
        }
        Ok(())
    }

    /// After a failure: waits, or turns to the next place, or gives up.
    fn failed(&mut self, failure: Failure) -> Result<()> {
        self.body = None;
        if self.position - self.mark >= FORGIVEN {
            self.attempts = 0;
        }
        self.mark = self.position;
        self.attempts += 1;
        let address = self.place();
        let error = match failure {
            Failure::Final(error) => error,
            Failure::Passing(error, asked) => {
                match self
                    .remote
                    .http
                    .pause(&address, self.attempts, error, asked)
                {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                }
            }
        };
        if self.place + 1 < self.remote.places.len() {
            self.place += 1;
            self.attempts = 0;
            self.ranges = true;
            return Ok(());
        }
        Err(error)
    }

    fn connect_once(&mut self) -> Result<(Box<dyn Read + Send>, u64), Failure> {
        let missing = || Error::MissingBlob {
            digest: self.digest.clone(),
            place: self.place().into(),
        };
        let Some(((endpoint, repository), address)) = self.address() else {
            return Err(missing().into());
        };
        let mut request = Request::new(OPERATION, Method::GET, address);
        let partial = self.ranges && self.position > 0;
        if partial {
            request = request.header("range", format!("bytes={}-", self.position));
        }
        let answer = endpoint.send(&request, &[scope(repository, "pull")])?;
        let answer = check_passing(answer, OPERATION)?;
        match answer.status {
            200 => {
                self.check_length(&answer, self.size)?;
                // It gives everything: what is here already comes once more and is dropped.
                Ok((answer.body, self.position))
            }
            206 if partial => {
                let range = answer.header("content-range").unwrap_or_default();
                let right = format!("bytes {}-", self.position);
                if !range.starts_with(&right) {
                    let error = Error::BadResponse {
                        url: url::shown(&answer.url),
                        reason: "it sends another part of the blob than it was asked for",
                        found: crate::error::excerpt(range),
                    };
                    self.ranges = false;
                    return Err(Failure::Passing(error, None));
                }
                self.check_length(&answer, self.size - self.position)?;
                let (digest, offset) = (self.digest.clone(), self.position);
                self.tell(|_| Progress::Resumed { digest, offset });
                Ok((answer.body, 0))
            }
            // It cannot give a part: everything, then.
            416 if partial => {
                let error = answer.refused(OPERATION);
                self.ranges = false;
                Err(Failure::Passing(error, None))
            }
            404 => Err(missing().into()),
            _ => Err(answer.refused(OPERATION).into()),
        }
    }

    fn truncated(&self, found: u64) -> Failure {
        let error = Error::Truncated {
            what: format!("blob {} ({})", self.digest, self.place()),
            expected: self.size,
            found,
        };
        Failure::Passing(error, None)
    }

    /// A length that is wrong from the start is not worth a byte.
    fn check_length(&self, answer: &Answer, expected: u64) -> Result<(), Failure> {
        match answer.header("content-length").map(str::parse::<u64>) {
            Some(Ok(found)) if found > expected => Err(Error::Oversized {
                digest: self.digest.clone(),
                expected: self.size,
            }
            .into()),
            Some(Ok(found)) if found < expected => Err(Error::Truncated {
                what: format!("blob {} ({})", self.digest, self.place()),
                expected,
                found,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// All bytes are here: whether the sender thinks so, too.
    fn end(&mut self) -> Result<()> {
        let Some(mut body) = self.body.take() else {
            return Ok(());
        };
        // What breaks now breaks nothing.
        if matches!(body.read(&mut [0]), Ok(1..)) {
            return Err(Error::Oversized {
                digest: self.digest.clone(),
                expected: self.size,
            });
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.size - self.position).unwrap_or(usize::MAX);
        if left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            self.connect()?;
            let dropped = usize::try_from(self.skip).unwrap_or(usize::MAX);
            let wanted = if dropped > 0 { dropped } else { left };
            let most = wanted.min(buffer.len());
            let Some(body) = &mut self.body else {
                continue;
            };
            let failure = match body.read(&mut buffer[..most]) {
                Ok(0) => self.truncated(self.position),
                Ok(n) => {
                    if dropped == 0 {
                        self.position += n as u64;
                    } else {
                        self.skip -= n as u64;
                    }
                    if self.position == self.size {
                        self.end()?;
                    }
                    if dropped > 0 {
                        continue;
                    }
                    self.tell_moved();
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => broken(OPERATION, &self.place(), error),
            };
            self.failed(failure)?;
        }
    }

    fn tell_moved(&mut self) {
        let bytes = self.position - self.told;
        if bytes >= TELL || self.position == self.size {
            self.told = self.position;
            self.tell(|download| Progress::Moved {
                digest: download.digest.clone(),
                bytes,
            });
        }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_some(buffer).map_err(Error::into_io)
    }
}

impl Download {
    /// Tells that the blob is here and right.
    pub(crate) fn verified(&self) {
        self.tell(|download| Progress::Finished {
            digest: download.digest.clone(),
        });
    }
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("place", &self.place())
            .field("position", &self.position)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
