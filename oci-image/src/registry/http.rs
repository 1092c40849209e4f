//! Requests and answers, without a word of what they are about.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, Method, Request as HttpRequest};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, SendBody};

use super::options::RegistryOptions;
use super::progress::Progress;
use super::retry;
use super::url;
use crate::error::{Error, Result, excerpt};

/// Bytes of an answer that is an error.
const MAX_MESSAGE: u64 = 64 << 10;
const CONNECT: Duration = Duration::from_secs(30);
/// Where distributions keep the certificates of the authorities that they trust.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What goes with a request.
pub(crate) enum Body<'a> {
    Empty,
    Bytes(&'a [u8]),
    /// So many bytes, from a reader that is made anew for each attempt.
    Stream(u64, &'a dyn Fn() -> Result<Box<dyn Read + Send>>),
}

/// A request, as it is before anything is known of credentials.
pub(crate) struct Request<'a> {
    /// Stands in errors, before the address.
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Body<'a>,
}

impl<'a> Request<'a> {
    pub(crate) fn new(operation: &'static str, method: Method, url: String) -> Request<'a> {
        Request {
            operation,
            method,
            url,
            headers: Vec::new(),
            body: Body::Empty,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Request<'a> {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: Body<'a>) -> Request<'a> {
        self.body = body;
        self
    }
}

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Where it came from, after redirects.
    pub(crate) url: String,
    pub(crate) body: Box<dyn Read + Send>,
}

/// Why something did not work, and whether to try again.
pub(crate) enum Failure {
    Final(Error),
    Passing(Error, Option<Duration>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failure::Final(error) | Failure::Passing(error, _) => error,
        }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(crate) fn read(&mut self, operation: &'static str, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        (&mut self.body)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| broken(operation, &self.url, error))?;
        if bytes.len() as u64 > limit {
            return Err(Failure::Final(Error::Limit {
                what: "a document",
                found: bytes.len() as u64,
                unit: "bytes",
                limit,
                setting: "document_bytes",
            }));
        }
        Ok(bytes)
    }

    /// An answer that is an error, with what the registry says of it.
    pub(crate) fn refused(mut self, operation: &'static str) -> Error {
        #[derive(Deserialize)]
        struct Messages {
            errors: Vec<Message>,
        }
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Message {
            code: String,
            message: String,
        }
        let mut bytes = Vec::new();
        // Half a message is better than none.
        let _ = (&mut self.body).take(MAX_MESSAGE).read_to_end(&mut bytes);
        let message = match serde_json::from_slice::<Messages>(&bytes) {
            Ok(Messages { errors }) => errors
                .iter()
                .take(3)
                .map(|error| format!("{}: {}", error.code, error.message))
                .collect::<Vec<_>>()
                .join("; "),
            Err(_) => String::new(),
        };
        Error::Refused {
            operation,
            url: url::shown(&self.url),
            status: self.status,
            message: excerpt(&message.escape_debug().to_string()),
        }
    }

    fn wait(&self) -> Option<Duration> {
        self.header("retry-after")
            .and_then(|text| retry::retry_after(text, SystemTime::now()))
    }
}

/// A body that must come fast enough: what drips is as good as what stands still, whatever it is.
struct Watched {
    body: Box<dyn Read + Send>,
    url: String,
    stall: Duration,
    least_rate: u64,
    /// For how long it was waited since the rate was last looked at, and what came. A reader that takes its time is not
    /// the sender's fault.
    waited: Duration,
    received: u64,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        let n = self.body.read(buf)?;
        self.waited += start.elapsed();
        self.received += n as u64;
        if n == 0 || self.waited < self.stall {
            return Ok(n);
        }
        let within = std::mem::take(&mut self.waited);
        let received = std::mem::take(&mut self.received);
        let least = within.as_millis() * u128::from(self.least_rate) / 1000;
        if u128::from(received) < least {
            let url = url::shown(&self.url);
            return Err(Error::Stalled {
                url,
                received,
                within,
            }
            .into_io());
        }
        Ok(n)
    }
}

/// What all endpoints share: settings and connections.
#[derive(Debug)]
pub(crate) struct Http {
    pub(crate) options: RegistryOptions,
    agents: Mutex<HashMap<String, Agent>>,
    system: OnceLock<Arc<Vec<Certificate<'static>>>>,
}

impl Http {
    pub(crate) fn new(options: RegistryOptions) -> Http {
        Http {
            options,
            agents: Mutex::default(),
            system: OnceLock::new(),
        }
    }

    /// Connections to a host, with what is set for it.
    fn agent(&self, authority: &str) -> Result<Agent> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(authority) {
            return Ok(agent.clone());
        }
        let host = self.options.settings(authority);
        let roots = match host {
            Some(host) if !host.authorities.is_empty() => {
                let roots = certificates(&host.authorities);
                if roots.is_empty() {
                    return Err(Error::BadValue {
                        what: "certificate authorities",
                        text: authority.to_owned(),
                        reason: "there is no certificate among them; give PEM, from -----BEGIN CERTIFICATE-----",
                    });
                }
                Arc::new(roots)
            }
            _ => Arc::clone(self.system.get_or_init(|| Arc::new(system_certificates()))),
        };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(roots))
            .disable_verification(host.is_some_and(|host| host.insecure))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent: Agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // Redirects are followed here, where it is known who may see the credentials.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cofferdam-oci-image/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .accept_encoding("identity")
            .input_buffer_size(256 << 10)
            .output_buffer_size(256 << 10)
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(self.options.stall))
            .timeout_per_write(Some(self.options.stall))
            .build()
            .new_agent();
        agents.insert(authority.to_owned(), agent.clone());
        Ok(agent)
    }

    /// Sends a request once, to `to`, and does not follow redirects.
    pub(crate) fn send(
        &self,
        request: &Request<'_>,
        to: &str,
        authorization: Option<&str>,
    ) -> Result<Answer, Failure> {
        let bad = |reason, found: &str| Error::BadResponse {
            url: url::shown(to),
            reason,
            found: excerpt(found),
        };
        let mut builder = HttpRequest::builder()
            .method(request.method.clone())
            .uri(to);
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = authorization {
            // A value that is no header value would be told in the error.
            builder = builder.header(
                "authorization",
                ureq::http::HeaderValue::try_from(authorization)
                    .map(|mut value| {
                        value.set_sensitive(true);
                        value
                    })
                    .map_err(|_| bad("credentials or token cannot be sent in a header", "***"))?,
            );
        }
        let (length, body) = match &request.body {
            Body::Empty => (
                // Servers want to know that nothing comes.
                matches!(request.method, Method::POST | Method::PUT | Method::PATCH).then_some(0),
                SendBody::none(),
            ),
            Body::Bytes(bytes) => (
                Some(bytes.len() as u64),
                SendBody::from_owned_reader(io::Cursor::new(bytes.to_vec())),
            ),
            Body::Stream(size, open) => (Some(*size), SendBody::from_owned_reader(open()?)),
        };
        if let Some(length) = length {
            builder = builder.header("content-length", length);
        }
        let http = builder
            .body(body)
            .map_err(|error| bad("the request cannot be made", &error.to_string()))?;
        let agent = self.agent(&url::authority(to))?;
        // A registry that has got a blob hashes it before it answers.
        let patience = match request.body {
            Body::Stream(..) => self.options.stall.max(self.options.answer),
            _ => self.options.stall,
        };
        let http = agent
            .configure_request(http)
            .timeout_per_read(Some(patience))
            // Headers that drip.
            .timeout_recv_response(Some(patience))
            .build();
        let answer = agent
            .run(http)
            .map_err(|error| self.failed(request.operation, to, error))?;
        let (parts, body) = answer.into_parts();
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            url: to.to_owned(),
            body: Box::new(Watched {
                body: Box::new(body.into_reader()),
                url: to.to_owned(),
                stall: self.options.stall,
                least_rate: self.options.least_rate,
                waited: Duration::ZERO,
                received: 0,
            }),
        })
    }

    fn failed(&self, operation: &'static str, to: &str, error: ureq::Error) -> Failure {
        let network = |source| Error::Network {
            operation,
            url: url::shown(to),
            source,
        };
        match error {
            ureq::Error::Io(source) => match source.downcast::<Error>() {
                // Of what was to be sent, not of the network.
                Ok(error) => Failure::Final(error),
                Err(source) => broken(operation, to, source),
            },
            ureq::Error::Timeout(
                ureq::Timeout::PerRead | ureq::Timeout::PerWrite | ureq::Timeout::RecvResponse,
            ) => Failure::Passing(
                Error::Stalled {
                    url: url::shown(to),
                    received: 0,
                    within: self.options.stall,
                },
                None,
            ),
            error @ ureq::Error::Timeout(_) => {
                Failure::Passing(network(io::Error::other(error)), None)
            }
            error => Failure::Final(network(io::Error::other(error))),
        }
    }

    /// Does `once` until it works, fails for good or has failed too often.
    pub(crate) fn persist<T>(
        &self,
        url: &str,
        mut once: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T> {
        let mut attempt = 1;
        loop {
            let (error, asked) = match once() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error, asked)) => (error, asked),
            };
            self.pause(url, attempt, error, asked)?;
            attempt += 1;
        }
    }

    /// Waits after a failed attempt, or gives the failure back if it was the last.
    pub(crate) fn pause(
        &self,
        url: &str,
        attempt: u32,
        error: Error,
        asked: Option<Duration>,
    ) -> Result<()> {
        let wait = asked
            .unwrap_or_default()
            .max(retry::backoff(self.options.first_wait, attempt));
        if attempt >= self.options.attempts || wait > self.options.longest_wait {
            return Err(error);
        }
        self.options.listener.tell(|| Progress::Retrying {
            url: url::shown(url),
            attempt,
            wait,
            reason: error.to_string(),
        });
        std::thread::sleep(wait);
        Ok(())
    }
}

/// An answer that may be better later is a failure that passes.
pub(crate) fn check_passing(answer: Answer, operation: &'static str) -> Result<Answer, Failure> {
    if retry::is_retryable(answer.status) {
        let wait = answer.wait();
        return Err(Failure::Passing(answer.refused(operation), wait));
    }
    Ok(answer)
}

/// A connection that fails or breaks.
pub(crate) fn broken(operation: &'static str, url: &str, source: io::Error) -> Failure {
    let source = match source.downcast::<Error>() {
        // It came too slowly.
        Ok(error) => return Failure::Passing(error, None),
        Err(source) => source,
    };
    let passes = match source.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::TimedOut
        | io::ErrorKind::WouldBlock
        | io::ErrorKind::NotConnected => true,
        // What the HTTP client wraps: a body that ends early or does not come.
        io::ErrorKind::Other => source.get_ref().is_some_and(|inner| {
            matches!(
                inner.downcast_ref::<ureq::Error>(),
                Some(ureq::Error::Timeout(_) | ureq::Error::Protocol(_))
            )
        }),
        _ => false,
    };
    let error = Error::Network {
        operation,
        url: url::shown(url),
        source,
    };
    if passes {
        Failure::Passing(error, None)
    } else {
        Failure::Final(error)
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// The certificates that this machine trusts: `$SSL_CERT_FILE`, or where the distribution keeps them.
fn system_certificates() -> Vec<Certificate<'static>> {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    named
        .into_iter()
        .chain(BUNDLES.map(Into::into))
        .find_map(|path| std::fs::read(path).ok())
        .map(|pem| certificates(&pem))
        .unwrap_or_default()
}
