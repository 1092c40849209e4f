//! Blobs and documents as they go to a registry.

use std::io::{self, Read};
use std::sync::Arc;

use ureq::http::Method;

use super::endpoint::{Endpoint, scope};
use super::http::{Answer, Body, Failure, Request, check_passing};
use super::progress::{Listener, Progress};
use super::url;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result, excerpt};

/// Bytes between two events of progress.
const TELL: u64 = 256 << 10;
const OPERATION: &str = "push a blob to";

/// The bytes of a blob from an offset on.
pub(crate) type Open<'a> = dyn Fn(u64) -> Result<Box<dyn Read + Send>> + Sync + 'a;

/// A repository to which is pushed.
pub(crate) struct Target<'a> {
    pub(crate) endpoint: &'a Arc<Endpoint>,
    pub(crate) repository: &'a str,
    /// Other repositories of the registry that may have the blobs.
    pub(crate) mount_from: &'a [String],
}

impl Target<'_> {
    fn scopes(&self) -> Vec<String> {
        std::iter::once(scope(self.repository, "pull,push"))
            .chain(self.mount_from.iter().map(|from| scope(from, "pull")))
            .collect()
    }

    fn listener(&self) -> &Listener {
        &self.endpoint.http.options.listener
    }

    fn send(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        check_passing(
            self.endpoint.send(request, &self.scopes())?,
            request.operation,
        )
    }

    /// Whether the blob is there already.
    pub(crate) fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let address = self
            .endpoint
            .url(self.repository, &format!("blobs/{}", descriptor.digest));
        let request = Request::new("look for a blob in", Method::HEAD, address);
        self.endpoint
            .request(&request, &self.scopes(), |answer| match answer.status {
                200 => Ok(true),
                404 => Ok(false),
                _ => Err(answer.refused(request.operation).into()),
            })
    }

    /// Sees to it that the blob is there: it is, or another repository gives it, or it is sent.
    pub(crate) fn blob(&self, descriptor: &Descriptor, open: &Open<'_>) -> Result<()> {
        let digest = &descriptor.digest;
        if self.has(descriptor)? {
            self.listener().tell(|| Progress::Present {
                digest: digest.clone(),
            });
            return Ok(());
        }
        for from in self.mount_from {
            if self.mount(digest, from)? {
                self.listener().tell(|| Progress::Mounted {
                    digest: digest.clone(),
                    from: from.clone(),
                });
                return Ok(());
            }
        }
        self.listener().tell(|| Progress::Started {
            digest: digest.clone(),
            size: descriptor.size,
        });
        match self.endpoint.http.options.chunk {
            Some(chunk) if chunk < descriptor.size => self.in_chunks(descriptor, open, chunk),
            _ => self.in_one_piece(descriptor, open),
        }?;
        self.listener().tell(|| Progress::Finished {
            digest: digest.clone(),
        });
        Ok(())
    }

    /// Asks the registry to take the blob from another of its repositories.
    fn mount(&self, digest: &Digest, from: &str) -> Result<bool> {
        let address = self.endpoint.url(self.repository, "blobs/uploads/");
        let address = url::with_query(&address, "mount", &digest.to_string());
        let address = url::with_query(&address, "from", from);
        let request = Request::new("mount a blob in", Method::POST, address);
        let answer = self
            .endpoint
            .http
            .persist(&request.url, || self.send(&request))?;
        if answer.status == 202 {
            // It began an upload in place of it; that one is not needed. Registries end it by themselves, too.
            if let Ok(location) = upload_location(&answer) {
                let cancel = Request::new("cancel an upload to", Method::DELETE, location);
                let _ = self.endpoint.send(&cancel, &self.scopes());
            }
        }
        // Whatever else it says, the blob can be sent.
        Ok(answer.status == 201)
    }

    /// Begins an upload; gives where it goes, and the least bytes of a chunk.
    fn begin(&self) -> Result<(String, u64), Failure> {
        let address = self.endpoint.url(self.repository, "blobs/uploads/");
        let request = Request::new(OPERATION, Method::POST, address);
        let answer = self.send(&request)?;
        if answer.status != 202 {
            return Err(answer.refused(OPERATION).into());
        }
        let least = answer
            .header("oci-chunk-min-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok((upload_location(&answer)?, least))
    }

    fn in_one_piece(&self, descriptor: &Descriptor, open: &Open<'_>) -> Result<()> {
        let open = || -> Result<Box<dyn Read + Send>> {
            Ok(Box::new(Told {
                inner: open(0)?,
                digest: descriptor.digest.clone(),
                listener: self.listener().clone(),
                untold: 0,
            }))
        };
        let address = self.endpoint.url(self.repository, "blobs/uploads/");
        self.endpoint.http.persist(&address, || {
            let (location, _) = self.begin()?;
            let location = url::with_query(&location, "digest", &descriptor.digest.to_string());
            let request = Request::new(OPERATION, Method::PUT, location)
                .header("content-type", "application/octet-stream")
                .body(Body::Stream(descriptor.size, &open));
            let answer = self.send(&request)?;
            match answer.status {
                201 => Ok(()),
                // The upload is gone: begin anew.
                404 => Err(Failure::Passing(answer.refused(OPERATION), None)),
                _ => Err(answer.refused(OPERATION).into()),
            }
        })
    }

    fn in_chunks(&self, descriptor: &Descriptor, open: &Open<'_>, chunk: u64) -> Result<()> {
        let http = &self.endpoint.http;
        let address = self.endpoint.url(self.repository, "blobs/uploads/");
        let (mut location, least) = http.persist(&address, || self.begin())?;
        let chunk = chunk.max(least);
        let (mut offset, mut furthest, mut attempt) = (0, 0, 0);
        while offset < descriptor.size {
            let size = chunk.min(descriptor.size - offset);
            match self.chunk(descriptor, open, &location, offset, size) {
                Ok((next, received)) => {
                    location = next;
                    offset = received;
                    // A registry that loses what it had is not given patience anew.
                    if offset > furthest {
                        furthest = offset;
                        attempt = 0;
                    }
                }
                Err(failure) => {
                    let (error, asked) = match failure {
                        Failure::Final(error) => return Err(error),
                        Failure::Passing(error, asked) => (error, asked),
                    };
                    attempt += 1;
                    http.pause(&location, attempt, error, asked)?;
                    match http.persist(&location, || self.received(&location))? {
                        Some((next, received)) if received <= descriptor.size => {
                            location = next;
                            offset = received;
                        }
                        _ => {
                            (location, _) = http.persist(&address, || self.begin())?;
                            offset = 0;
                        }
                    }
                    let digest = descriptor.digest.clone();
                    self.listener()
                        .tell(|| Progress::Resumed { digest, offset });
                }
            }
        }
        let location = url::with_query(&location, "digest", &descriptor.digest.to_string());
        let request = Request::new(OPERATION, Method::PUT, location);
        http.persist(&request.url, || {
            let answer = self.send(&request)?;
            match answer.status {
                201 => Ok(()),
                _ => Err(answer.refused(OPERATION).into()),
            }
        })
    }

    /// Sends one chunk; gives where the next goes, and how many bytes the registry has.
    fn chunk(
        &self,
        descriptor: &Descriptor,
        open: &Open<'_>,
        location: &str,
        offset: u64,
        size: u64,
    ) -> Result<(String, u64), Failure> {
        let open = || -> Result<Box<dyn Read + Send>> {
            Ok(Box::new(Told {
                inner: Box::new(open(offset)?.take(size)),
                digest: descriptor.digest.clone(),
                listener: self.listener().clone(),
                untold: 0,
            }))
        };
        let request = Request::new(OPERATION, Method::PATCH, location.to_owned())
            .header("content-type", "application/octet-stream")
            .header("content-range", format!("{offset}-{}", offset + size - 1))
            .body(Body::Stream(size, &open));
        let answer = self.send(&request)?;
        match answer.status {
            // 202 is what is specified, 204 what some send.
            202 | 204 => {
                let received = range_end(&answer).unwrap_or(offset + size);
                let next = upload_location(&answer)?;
                if received <= offset || received > offset + size {
                    let error = Error::BadResponse {
                        url: url::shown(&answer.url),
                        reason: "it says that it has other bytes than it was sent",
                        found: excerpt(answer.header("range").unwrap_or_default()),
                    };
                    return Err(Failure::Passing(error, None));
                }
                Ok((next, received))
            }
            // It has other bytes than we think: it is asked.
            416 => Err(Failure::Passing(answer.refused(OPERATION), None)),
            _ => Err(answer.refused(OPERATION).into()),
        }
    }

    /// Asks how many bytes of an upload the registry has; nothing when it does not know the upload any more.
    fn received(&self, location: &str) -> Result<Option<(String, u64)>, Failure> {
        let request = Request::new(OPERATION, Method::GET, location.to_owned());
        let answer = self.send(&request)?;
        match answer.status {
            200 | 202 | 204 => {
                let next = upload_location(&answer).unwrap_or_else(|_| location.to_owned());
                Ok(Some((next, range_end(&answer).unwrap_or(0))))
            }
            404 => Ok(None),
            _ => Err(answer.refused(OPERATION).into()),
        }
    }

    /// Puts a manifest or an index in its place; says whether the registry keeps track of its subject.
    pub(crate) fn document(
        &self,
        place: &str,
        descriptor: &Descriptor,
        bytes: &[u8],
    ) -> Result<bool> {
        let address = self
            .endpoint
            .url(self.repository, &format!("manifests/{place}"));
        let request = Request::new("push a manifest to", Method::PUT, address)
            .header("content-type", descriptor.media_type.as_str())
            .body(Body::Bytes(bytes));
        self.endpoint.request(&request, &self.scopes(), |answer| {
            if answer.status != 201 {
                return Err(answer.refused(request.operation).into());
            }
            let said = answer
                .header("docker-content-digest")
                .and_then(|text| text.parse::<Digest>().ok());
            match said {
                Some(said)
                    if said.algorithm() == descriptor.digest.algorithm()
                        && said != descriptor.digest =>
                {
                    Err(Error::DigestMismatch {
                        what: "the manifest that was pushed",
                        expected: descriptor.digest.clone(),
                        found: said,
                    }
                    .into())
                }
                _ => Ok(answer.header("oci-subject").is_some()),
            }
        })
    }
}

/// Where an upload goes on. It may be another host, which then is sent no credentials.
fn upload_location(answer: &Answer) -> Result<String> {
    let bad = |reason, found: &str| Error::BadResponse {
        url: url::shown(&answer.url),
        reason,
        found: excerpt(found),
    };
    let location = answer
        .header("location")
        .ok_or_else(|| bad("it takes an upload but does not say where", ""))?;
    let to = url::join(&answer.url, location)?;
    if url::is_https(&answer.url) && !url::is_https(&to) {
        return Err(bad("an upload is to go on without TLS", &url::shown(&to)));
    }
    Ok(to)
}

/// How many bytes there are by a header `Range: 0-N`.
fn range_end(answer: &Answer) -> Option<u64> {
    let text = answer.header("range")?;
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let end: u64 = text.strip_prefix("0-")?.parse().ok()?;
    // Nothing and one byte look the same; a chunk is never one byte, and the first byte never comes alone.
    Some(if end == 0 { 0 } else { end.checked_add(1)? })
}

/// A reader that tells how far it is.
struct Told {
    inner: Box<dyn Read + Send>,
    digest: Digest,
    listener: Listener,
    untold: u64,
}

impl Read for Told {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.untold += n as u64;
        if self.untold >= TELL || (n == 0 && self.untold > 0) {
            let bytes = std::mem::take(&mut self.untold);
            self.listener.tell(|| Progress::Moved {
                digest: self.digest.clone(),
                bytes,
            });
        }
        Ok(n)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if self.untold > 0 {
            let bytes = self.untold;
            self.listener.tell(|| Progress::Moved {
                digest: self.digest.clone(),
                bytes,
            });
        }
    }
}
