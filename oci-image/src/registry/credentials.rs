//! Who one is to a registry: given, or found in the files and helper programs of Docker and Podman.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Error, Result, excerpt};

/// The host that people name for Docker's registry, and what its credentials are filed under.
const HUB: &str = "docker.io";
const HUB_KEYS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];
const HUB_HELPER_KEY: &str = "https://index.docker.io/v1/";
/// Bytes of a file or a helper's answer.
const MAX: u64 = 1 << 20;

/// Who one is to a registry.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// A name and a password, or an access token in its place.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token service takes for other tokens (`identitytoken`).
    Identity(String),
    /// A token for the registry itself (`registrytoken`).
    Bearer(String),
}

impl Credentials {
    /// A name and a password.
    pub fn password(user: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials::Password {
            user: user.into(),
            password: password.into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => {
                write!(f, "Password {{ user: {user:?}, password: *** }}")
            }
            Credentials::Identity(_) => f.write_str("Identity(***)"),
            Credentials::Bearer(_) => f.write_str("Bearer(***)"),
        }
    }
}

/// The value of an `Authorization` header of the scheme Basic.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The files in which `docker login` and `podman login` leave credentials, in the order in which they are asked:
/// `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`, and
/// `$XDG_RUNTIME_DIR/containers/auth.json`.
pub(crate) fn usual_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let docker = variable("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".docker")))
        .map(|directory| directory.join("config.json"));
    let podman = variable("XDG_RUNTIME_DIR")
        .map(|directory| Path::new(&directory).join("containers/auth.json"));
    variable("REGISTRY_AUTH_FILE")
        .map(PathBuf::from)
        .into_iter()
        .chain(docker)
        .chain(podman)
        .collect()
}

/// The credentials for `repository` of `registry` in the first of `files` that has some. A file that is not there has
/// none.
pub(crate) fn find(
    files: &[PathBuf],
    registry: &str,
    repository: &str,
) -> Result<Option<Credentials>> {
    for file in files {
        if let Some(config) = read(file, registry)?
            && let Some(found) = look_up(&config, file, registry, repository)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn failed(registry: &str, from: impl fmt::Display, reason: impl fmt::Display) -> Error {
    Error::Credentials {
        registry: registry.to_owned(),
        from: from.to_string(),
        reason: excerpt(&reason.to_string()),
    }
}

fn read(path: &Path, registry: &str) -> Result<Option<Config>> {
    let failed = |reason: &dyn fmt::Display| failed(registry, path.display(), reason);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(&error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // serde's own message may quote what stands in the file: only the place is told.
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        failed(&format_args!(
            "it is no JSON of the expected form at line {}, column {}",
            error.line(),
            error.column()
        ))
    })
}

fn look_up(
    config: &Config,
    file: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<Credentials>> {
    let hosts: &[&str] = if registry == HUB {
        &HUB_KEYS
    } else {
        &[registry]
    };
    let helper = config
        .helpers
        .iter()
        .find(|(key, _)| hosts.contains(&normalise(key)))
        .map(|(_, helper)| helper);
    if let Some(helper) = helper
        && let Some(found) = ask_helper(helper, registry)?
    {
        return Ok(Some(found));
    }
    // Podman files credentials for parts of a registry, too: the longest that fits counts.
    let fits = |key: &str| {
        hosts.iter().any(|host| {
            key.strip_prefix(host).is_some_and(|rest| {
                rest.is_empty()
                    || rest.strip_prefix('/').is_some_and(|path| {
                        repository
                            .strip_prefix(path)
                            .is_some_and(|more| more.is_empty() || more.starts_with('/'))
                    })
            })
        })
    };
    let auth = config
        .auths
        .iter()
        .filter(|(key, _)| fits(normalise(key)))
        .max_by_key(|(key, _)| normalise(key).len())
        .map(|(_, auth)| auth);
    if let Some(auth) = auth
        && let Some(found) =
            of_auth(auth).map_err(|reason| failed(registry, file.display(), reason))?
    {
        return Ok(Some(found));
    }
    match &config.store {
        Some(store) => ask_helper(store, registry),
        None => Ok(None),
    }
}

/// Keys are hosts, or URLs as old versions wrote them: `https://index.docker.io/v1/`.
fn normalise(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    key.strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key)
}

fn of_auth(auth: &Entry) -> Result<Option<Credentials>, &'static str> {
    if !auth.registrytoken.is_empty() {
        return Ok(Some(Credentials::Bearer(auth.registrytoken.clone())));
    }
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity(auth.identitytoken.clone())));
    }
    if !auth.auth.is_empty() {
        let decoded = STANDARD
            .decode(auth.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("an `auth` is not Base64 of text")?;
        // Docker pads with zero bytes.
        let (user, password) = decoded
            .trim_end_matches('\0')
            .split_once(':')
            .ok_or("an `auth` has no colon between name and password")?;
        return Ok(Some(Credentials::password(user, password)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::password(&auth.username, &auth.password)));
    }
    // `docker login` with a helper leaves an empty entry.
    Ok(None)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// <https://github.com/docker/docker-credential-helpers>
fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credentials>> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let program = format!("docker-credential-{helper}");
    let failed = |reason: &dyn fmt::Display| failed(registry, &program, reason);
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(failed(
            &"its name may hold letters, digits, -, _ and . only",
        ));
    }
    let key = if registry == HUB {
        HUB_HELPER_KEY
    } else {
        registry
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not listen says so by its status.
        let _ = stdin.write_all(key.as_bytes());
    }
    let mut answer = Vec::new();
    let read = child
        .stdout
        .take()
        .map_or(Ok(0), |stdout| stdout.take(MAX).read_to_end(&mut answer));
    let status = child.wait().map_err(|error| failed(&error))?;
    read.map_err(|error| failed(&error))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        // The helpers' protocol knows no other way to say it.
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(&format_args!("{status}: {}", said.trim())));
    }
    let Helped { username, secret } = serde_json::from_slice(&answer)
        .map_err(|_| failed(&"its answer is no JSON with Username and Secret"))?;
    Ok(Some(match username.as_str() {
        "<token>" => Credentials::Identity(secret),
        _ => Credentials::password(username, secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, registry: &str, repository: &str) -> Option<Credentials> {
        let config = serde_json::from_str(json).unwrap();
        look_up(&config, Path::new("config.json"), registry, repository).unwrap()
    }

    #[test]
    fn hosts_are_found_in_every_spelling() {
        // me:secret
        let auth = r#"{"auth":"bWU6c2VjcmV0"}"#;
        let me = Some(Credentials::password("me", "secret"));
        for key in [
            "r.example",
            "https://r.example",
            "http://r.example/v2/",
            "r.example/v1/",
        ] {
            let json = format!(r#"{{"auths":{{"{key}":{auth}}}}}"#);
            assert_eq!(found(&json, "r.example", "a"), me, "{key}");
            assert_eq!(found(&json, "r.example:5000", "a"), None, "{key}");
            assert_eq!(found(&json, "r.example.org", "a"), None, "{key}");
            assert_eq!(found(&json, "other.example", "a"), None, "{key}");
        }
        let hub = format!(r#"{{"auths":{{"https://index.docker.io/v1/":{auth}}}}}"#);
        assert_eq!(found(&hub, "docker.io", "library/a"), me);
    }

    #[test]
    fn the_longest_part_of_a_registry_counts() {
        let json = r#"{"auths":{
            "r.example":{"username":"all","password":"x"},
            "r.example/team":{"username":"team","password":"x"},
            "r.example/team/app":{"identitytoken":"T"}}}"#;
        let user = |name: &str| Some(Credentials::password(name, "x"));
        assert_eq!(found(json, "r.example", "a"), user("all"));
        assert_eq!(found(json, "r.example", "teams/a"), user("all"));
        assert_eq!(found(json, "r.example", "team/a"), user("team"));
        assert_eq!(
            found(json, "r.example", "team/app"),
            Some(Credentials::Identity("T".to_owned()))
        );
    }

    #[test]
    fn secrets_are_in_no_message() {
        let bad = Entry {
            auth: "c2VjcmV0".to_owned(),
            ..Entry::default()
        };
        assert!(!of_auth(&bad).unwrap_err().contains("secret"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"x":{"auth":7,"password":"geheim"}}}"#).unwrap();
        let error = find(&[path], "x", "a").unwrap_err().to_string();
        assert!(
            error.contains("line 1") && !error.contains("geheim"),
            "{error}"
        );
        let debug = format!("{:?}", Credentials::password("me", "geheim"));
        assert!(debug.contains("me") && !debug.contains("geheim"));
    }

    #[test]
    fn helper_names_are_names() {
        for bad in ["", "../x", "a b", "a/b"] {
            assert!(ask_helper(bad, "x").is_err(), "{bad:?}");
        }
    }
}
