//! One registry at one address: requests with the right credentials, redirects without them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::Method;

use super::challenge::Challenge;
use super::credentials::{self, Credentials};
use super::http::{Answer, Body, Failure, Http, Request, check_passing};
use super::options::HUB_ADDRESS;
use super::url;
use crate::error::{Error, Result, excerpt};

/// Redirects after each other.
const MAX_REDIRECTS: usize = 5;
/// Bytes of a token service's answer.
const MAX_TOKEN: u64 = 1 << 20;
/// What a token is good for when its service does not say; the protocol's own default.
const TOKEN_LIFE: u64 = 60;
/// A token that ends so soon is not used any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);

/// One registry at one address.
pub(crate) struct Endpoint {
    pub(crate) registry: String,
    pub(crate) http: Arc<Http>,
    /// `https://HOST[:PORT]`.
    base: String,
    /// How it wants to be told who asks, once that is known.
    wants: Mutex<Option<Wants>>,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

#[derive(Clone)]
enum Wants {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// The fields are the protocol's.
#[derive(Deserialize)]
#[expect(clippy::struct_field_names)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

/// What is wanted in a repository, as token services name it.
pub(crate) fn scope(repository: &str, actions: &str) -> String {
    format!("repository:{repository}:{actions}")
}

impl Endpoint {
    /// Finds out how `registry` is to be talked to.
    pub(crate) fn find(http: &Arc<Http>, registry: &str) -> Result<Endpoint> {
        // Docker's registry has another name than its images.
        let host = match registry {
            "docker.io" => HUB_ADDRESS,
            host => host,
        };
        let address = format!("https://{host}");
        if host.contains(['/', '@', '?', '#']) || url::origin(&address).is_none() {
            return Err(Error::BadValue {
                what: "registry",
                text: excerpt(registry),
                reason: "write it as HOST or HOST:PORT",
            });
        }
        let settings = http.options.settings(host);
        let plain = settings.is_some_and(|settings| settings.plain_http);
        let may_be_plain =
            settings.is_some_and(|settings| settings.insecure) || url::is_loopback(host);
        let scheme = if plain || (may_be_plain && !speaks_tls(http, host)) {
            "http"
        } else {
            "https"
        };
        Ok(Endpoint {
            registry: registry.to_owned(),
            http: Arc::clone(http),
            base: format!("{scheme}://{host}"),
            wants: Mutex::default(),
            tokens: Mutex::default(),
        })
    }

    /// The address of something in a repository.
    pub(crate) fn url(&self, repository: &str, rest: &str) -> String {
        format!("{}/v2/{repository}/{rest}", self.base)
    }

    /// The address of something of the registry as a whole.
    pub(crate) fn root_url(&self, rest: &str) -> String {
        format!("{}/v2/{rest}", self.base)
    }

    /// Sends a request, again if it may help, and gives what `read` makes of the answer.
    pub(crate) fn request<T>(
        &self,
        request: &Request<'_>,
        scopes: &[String],
        mut read: impl FnMut(Answer) -> Result<T, Failure>,
    ) -> Result<T> {
        self.http.persist(&request.url, || {
            let answer = check_passing(self.send(request, scopes)?, request.operation)?;
            read(answer)
        })
    }

    /// Sends a request once; answers the registry's question who asks, and follows redirects.
    pub(crate) fn send(&self, request: &Request<'_>, scopes: &[String]) -> Result<Answer, Failure> {
        let mut to = request.url.clone();
        let mut answered = false;
        let mut redirects = 0;
        loop {
            let ours = url::origin(&to) == url::origin(&self.base);
            let authorization = if ours {
                self.authorization(scopes)?
            } else {
                None
            };
            let answer = self.http.send(request, &to, authorization.as_deref())?;
            match answer.status {
                401 if ours && !answered => {
                    self.learn(&answer, scopes, authorization.is_some())?;
                    answered = true;
                }
                401 if ours => {
                    return Err(self
                        .unauthorized(scopes, "the credentials are wrong or do not suffice")
                        .into());
                }
                301 | 302 | 303 | 307 | 308
                    if matches!(request.method, Method::GET | Method::HEAD) =>
                {
                    redirects += 1;
                    to = redirected(&answer, redirects)?;
                }
                _ => return Ok(answer),
            }
        }
    }

    fn unauthorized(&self, scopes: &[String], reason: &'static str) -> Error {
        Error::Unauthorized {
            registry: self.registry.clone(),
            scope: scopes.join(" "),
            reason,
        }
    }

    fn credentials(&self, scopes: &[String]) -> Result<Option<Credentials>> {
        let options = &self.http.options;
        if let Some(given) = options
            .settings(&self.registry)
            .and_then(|host| host.credentials.clone())
        {
            return Ok(Some(given));
        }
        let repository = scopes
            .first()
            .and_then(|scope| scope.strip_prefix("repository:"))
            .and_then(|rest| rest.rsplit_once(':'))
            .map_or("", |(repository, _)| repository);
        credentials::find(&options.credential_files, &self.registry, repository)
    }

    /// The `Authorization` header, if the registry is known to want one.
    fn authorization(&self, scopes: &[String]) -> Result<Option<String>, Failure> {
        let wants = self
            .wants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match wants {
            None => Ok(None),
            Some(Wants::Basic) => match self.credentials(scopes)? {
                Some(Credentials::Password { user, password }) => {
                    Ok(Some(credentials::basic(&user, &password)))
                }
                Some(Credentials::Bearer(token)) => Ok(Some(format!("Bearer {token}"))),
                _ => Err(self
                    .unauthorized(scopes, "it wants a name and a password and there are none")
                    .into()),
            },
            Some(Wants::Bearer { realm, service }) => {
                let token = self.token(&realm, service.as_deref(), scopes)?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    /// Notes how the registry wants to be told who asks.
    fn learn(&self, answer: &Answer, scopes: &[String], had_sent: bool) -> Result<()> {
        let challenges: Vec<Challenge> = answer
            .headers
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(Challenge::parse)
            .collect();
        let bearer = challenges
            .iter()
            .filter(|challenge| challenge.is("bearer"))
            .find_map(|challenge| {
                challenge
                    .get("realm")
                    .map(|realm| (realm, challenge.get("service")))
            });
        let wants = match bearer {
            Some((realm, service)) => {
                let realm = url::join(&answer.url, realm)?;
                if url::is_https(&self.base) && !url::is_https(&realm) {
                    return Err(Error::BadResponse {
                        url: url::shown(&answer.url),
                        reason: "it asks for credentials without TLS",
                        found: url::shown(&realm),
                    });
                }
                Wants::Bearer {
                    realm,
                    service: service.map(str::to_owned),
                }
            }
            None if challenges.iter().any(|challenge| challenge.is("basic")) => {
                if had_sent {
                    return Err(
                        self.unauthorized(scopes, "the credentials are wrong or do not suffice")
                    );
                }
                Wants::Basic
            }
            None => {
                return Err(Error::BadResponse {
                    url: url::shown(&answer.url),
                    reason: "it wants to know who asks, but in no way that is known here (Basic, Bearer)",
                    found: excerpt(answer.header("www-authenticate").unwrap_or_default()),
                });
            }
        };
        // What it does not take any more is not used again.
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&scopes.join(" "));
        *self.wants.lock().unwrap_or_else(PoisonError::into_inner) = Some(wants);
        Ok(())
    }

    /// A token for `scopes`: one that is there, or a new one.
    ///
    /// <https://distribution.github.io/distribution/spec/auth/token/>
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<String, Failure> {
        let key = scopes.join(" ");
        // Held while a token is fetched: several threads want the same.
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, end)) = tokens.get(&key)
            && *end > Instant::now() + TOKEN_MARGIN
        {
            return Ok(token.clone());
        }
        let credentials = self.credentials(scopes)?;
        let (request, authorization);
        let form;
        match &credentials {
            Some(Credentials::Bearer(token)) => return Ok(token.clone()),
            Some(Credentials::Identity(identity)) => {
                let mut text =
                    url::with_query("?grant_type=refresh_token", "client_id", "cofferdam");
                text = url::with_query(&text, "service", service.unwrap_or_default());
                text = url::with_query(&text, "scope", &key);
                text = url::with_query(&text, "refresh_token", identity);
                form = text.split_off(1);
                request = Request::new("get a token from", Method::POST, realm.to_owned())
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(Body::Bytes(form.as_bytes()));
                authorization = None;
            }
            other => {
                let mut address = realm.to_owned();
                if let Some(service) = service {
                    address = url::with_query(&address, "service", service);
                }
                for scope in scopes {
                    address = url::with_query(&address, "scope", scope);
                }
                authorization = match other {
                    Some(Credentials::Password { user, password }) => {
                        address = url::with_query(&address, "account", user);
                        Some(credentials::basic(user, password))
                    }
                    _ => None,
                };
                request = Request::new("get a token from", Method::GET, address);
            }
        }
        let bytes = self.fetch_token(&request, authorization.as_deref(), scopes)?;
        // serde's message could quote a token.
        let bad = |reason| Error::BadResponse {
            url: url::shown(realm),
            reason,
            found: format!("{} bytes", bytes.len()),
        };
        let answer: Token =
            serde_json::from_slice(&bytes).map_err(|_| bad("its answer is no token in JSON"))?;
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| bad("its answer holds no token"))?;
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad("its token holds characters that no token has").into());
        }
        let life = Duration::from_secs(answer.expires_in.unwrap_or(TOKEN_LIFE).clamp(10, 86_400));
        tokens.insert(key, (token.clone(), Instant::now() + life));
        Ok(token)
    }

    fn fetch_token(
        &self,
        request: &Request<'_>,
        authorization: Option<&str>,
        scopes: &[String],
    ) -> Result<Vec<u8>, Failure> {
        let mut to = request.url.clone();
        let mut redirects = 0;
        loop {
            let ours = url::origin(&to) == url::origin(&request.url);
            let answer = self
                .http
                .send(request, &to, authorization.filter(|_| ours))?;
            let mut answer = check_passing(answer, request.operation)?;
            match answer.status {
                200 => return answer.read(request.operation, MAX_TOKEN),
                401 | 403 => {
                    return Err(self
                        .unauthorized(scopes, "its token service does not accept the credentials")
                        .into());
                }
                301 | 302 | 303 | 307 | 308 if request.method == Method::GET => {
                    redirects += 1;
                    to = redirected(&answer, redirects)?;
                }
                _ => return Err(answer.refused(request.operation).into()),
            }
        }
    }
}

/// Where a redirect leads, if it may be followed.
fn redirected(answer: &Answer, redirects: usize) -> Result<String> {
    let bad = |reason, found: &str| Error::BadResponse {
        url: url::shown(&answer.url),
        reason,
        found: url::shown(found),
    };
    let location = answer.header("location").unwrap_or_default();
    if location.is_empty() {
        return Err(bad("a redirect leads nowhere", location));
    }
    if redirects > MAX_REDIRECTS {
        return Err(bad("there are too many redirects", location));
    }
    let to = url::join(&answer.url, location)?;
    if url::is_https(&answer.url) && !url::is_https(&to) {
        return Err(bad("a redirect leads away from TLS", location));
    }
    Ok(to)
}

/// Whether there is TLS at all. A certificate that is not trusted is TLS, too: without it nothing is tried.
fn speaks_tls(http: &Http, host: &str) -> bool {
    let request = Request::new("reach", Method::GET, format!("https://{host}/v2/"));
    match http
        .send(&request, &request.url, None)
        .map_err(Failure::into_error)
    {
        Ok(_) => true,
        Err(Error::Network { source, .. }) => source.get_ref().is_some_and(|inner| {
            let tls = match inner.downcast_ref::<ureq::Error>() {
                Some(ureq::Error::Rustls(tls)) => Some(tls),
                _ => inner.downcast_ref::<rustls::Error>(),
            };
            // What answers otherwise than by a message of TLS does not speak it.
            tls.is_some_and(|tls| !matches!(tls, rustls::Error::InvalidMessage(_)))
        }),
        Err(_) => false,
    }
}
