//! Settings of a registry client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::{self, Credentials};
use super::progress::{Listener, Progress};
use crate::limits::Limits;

/// Settings of a [`Registry`](crate::Registry) client.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) credential_files: Vec<PathBuf>,
    pub(crate) attempts: u32,
    pub(crate) first_wait: Duration,
    pub(crate) longest_wait: Duration,
    pub(crate) stall: Duration,
    pub(crate) least_rate: u64,
    pub(crate) answer: Duration,
    pub(crate) parallel: usize,
    pub(crate) chunk: Option<u64>,
    pub(crate) limits: Limits,
    pub(crate) listener: Listener,
}

/// What is set for one registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) credentials: Option<Credentials>,
    pub(crate) plain_http: bool,
    pub(crate) insecure: bool,
    pub(crate) authorities: Vec<u8>,
    pub(crate) mirrors: Vec<Mirror>,
}

#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    pub(crate) registry: String,
    pub(crate) prefix: String,
}

/// Docker's own registry is found elsewhere than its images' names say.
pub(crate) const HUB_ADDRESS: &str = "registry-1.docker.io";

fn image_host(registry: &str) -> &str {
    match registry {
        HUB_ADDRESS | "index.docker.io" => "docker.io",
        other => other,
    }
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions::new()
    }
}

impl RegistryOptions {
    /// No credentials, no mirrors; TLS for every registry, checked by the system's certificates, but plain HTTP for
    /// one on this machine (`localhost`, `127.…`, `[::1]`) that has no TLS.
    pub fn new() -> RegistryOptions {
        RegistryOptions {
            hosts: BTreeMap::new(),
            credential_files: Vec::new(),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_mins(1),
            stall: Duration::from_secs(30),
            least_rate: 64,
            answer: Duration::from_mins(5),
            parallel: 3,
            chunk: None,
            limits: Limits::default(),
            listener: Listener::default(),
        }
    }

    /// The same with the credentials of `docker login` and `podman login`: `$REGISTRY_AUTH_FILE`,
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json`, and the
    /// helper programs named there.
    pub fn from_env() -> RegistryOptions {
        let mut options = RegistryOptions::new();
        options.credential_files = credentials::usual_files();
        options
    }

    fn host(&mut self, registry: &str) -> &mut Host {
        self.hosts
            .entry(image_host(registry).to_owned())
            .or_default()
    }

    /// What is set for a registry, by the name that images have or by the one that it has itself.
    pub(crate) fn settings(&self, registry: &str) -> Option<&Host> {
        self.hosts.get(image_host(registry))
    }

    /// Also looks for credentials in this file, of the form of Docker's `config.json`.
    pub fn credential_file(mut self, path: impl Into<PathBuf>) -> RegistryOptions {
        self.credential_files.push(path.into());
        self
    }

    /// Credentials for `registry` (`HOST[:PORT]`, as in a [`Reference`](crate::Reference)). They go to that host, to
    /// the token service that it names, and nowhere on a redirect.
    pub fn credentials(mut self, registry: &str, credentials: Credentials) -> RegistryOptions {
        self.host(registry).credentials = Some(credentials);
        self
    }

    /// Talks to `registry` without TLS.
    pub fn plain_http(mut self, registry: &str) -> RegistryOptions {
        self.host(registry).plain_http = true;
        self
    }

    /// Does not check the certificate of `registry`, and talks without TLS if it has none.
    pub fn insecure(mut self, registry: &str) -> RegistryOptions {
        self.host(registry).insecure = true;
        self
    }

    /// Trusts these certificate authorities (PEM) for `registry`, in place of the system's.
    pub fn certificate_authorities(mut self, registry: &str, pem: &[u8]) -> RegistryOptions {
        self.host(registry).authorities.extend_from_slice(pem);
        self
    }

    /// Pulls from `mirror` (`HOST[:PORT][/PREFIX]`) before `registry` itself; several are asked in the order in which
    /// they were given. What is pulled by tag is what the mirror says; blobs are verified wherever they come from.
    pub fn mirror(mut self, registry: &str, mirror: &str) -> RegistryOptions {
        let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
        self.host(registry).mirrors.push(Mirror {
            registry: host.to_owned(),
            prefix: prefix.trim_end_matches('/').to_owned(),
        });
        self
    }

    /// How often a request is tried in all when the connection breaks or the registry is overloaded (408, 429, 5xx).
    /// Default 5; at least 1.
    pub fn attempts(mut self, attempts: u32) -> RegistryOptions {
        self.attempts = attempts.max(1);
        self
    }

    /// The wait before the second attempt; it doubles from attempt to attempt, up to 30 seconds. Default 0.5 seconds.
    pub fn first_wait(mut self, wait: Duration) -> RegistryOptions {
        self.first_wait = wait;
        self
    }

    /// The longest `Retry-After` that is waited for; a registry that asks for more gets an error in place of patience.
    /// Default 60 seconds.
    pub fn longest_wait(mut self, wait: Duration) -> RegistryOptions {
        self.longest_wait = wait;
        self
    }

    /// How long a connection may stand still before it counts as broken. Default 30 seconds.
    pub fn stall(mut self, time: Duration) -> RegistryOptions {
        self.stall = time;
        self
    }

    /// The bytes per second below which a connection that does move counts as broken, measured over the time of
    /// [`RegistryOptions::stall`]. Default 64.
    pub fn least_rate(mut self, bytes_per_second: u64) -> RegistryOptions {
        self.least_rate = bytes_per_second;
        self
    }

    /// How many blobs are pulled or pushed side by side. Default 3, as Docker; at least 1.
    pub fn parallel(mut self, blobs: usize) -> RegistryOptions {
        self.parallel = blobs.max(1);
        self
    }

    /// Pushes blobs in pieces of this many bytes, at least 2, so that a push that breaks goes on where it was. By default
    /// a blob is sent in one piece, which every registry takes.
    pub fn chunk(mut self, bytes: u64) -> RegistryOptions {
        self.chunk = Some(bytes.max(2));
        self
    }

    /// The caps for images that are pulled.
    pub fn limits(mut self, limits: Limits) -> RegistryOptions {
        self.limits = limits;
        self
    }

    /// Calls `listener` for what happens, from the threads on which it happens.
    pub fn progress(
        mut self,
        listener: impl Fn(&Progress) + Send + Sync + 'static,
    ) -> RegistryOptions {
        self.listener = Listener(Some(Arc::new(listener)));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_registry_is_one_under_all_its_names() {
        let options = RegistryOptions::new()
            .certificate_authorities("docker.io", b"one")
            .certificate_authorities("index.docker.io", b"two")
            .plain_http("other.example");
        for name in ["docker.io", "registry-1.docker.io", "index.docker.io"] {
            let settings = options.settings(name).unwrap();
            assert_eq!(settings.authorities, b"onetwo", "{name}");
            assert!(!settings.plain_http);
        }
        assert!(options.settings("other.example").unwrap().plain_http);
        assert!(options.settings("docker.io.example").is_none());
    }
}
