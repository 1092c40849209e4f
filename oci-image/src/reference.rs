//! Names of images in registries, as Docker normalises them.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::{Error, Result, excerpt};

/// The registry that Docker means when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Its place for images with a name of one part.
const OFFICIAL: &str = "library/";
/// The longest registry and repository together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image in a registry: `registry/repository:tag@digest`.
///
/// ```
/// use oci_image::Reference;
///
/// let busybox: Reference = "busybox".parse()?;
/// assert_eq!(busybox.to_string(), "docker.io/library/busybox:latest");
/// let local: Reference = "localhost:5000/team/app:1.2".parse()?;
/// assert_eq!((local.registry(), local.repository(), local.tag()), ("localhost:5000", "team/app", Some("1.2")));
/// # Ok::<(), oci_image::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port if there is one: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` unless another tag or a digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same image by content: without the tag, with `digest`.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The short form that people write: without `docker.io/` and `library/`, where it still means
    /// the same image.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full
            .strip_prefix(DEFAULT_REGISTRY)
            .and_then(|rest| rest.strip_prefix('/'))
        {
            None => full,
            // Its first part would be taken for the registry.
            Some(rest) if split_registry(rest).0.is_some() => full,
            Some(rest) => match rest.strip_prefix(OFFICIAL) {
                // `library/a/b` is not official.
                Some(bare) if !bare.contains('/') => bare.to_owned(),
                _ => rest.to_owned(),
            },
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let bad = |reason| Error::BadValue {
            what: "image name",
            text: excerpt(text),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
        };
        let (registry, remainder) = split_registry(rest);
        // A colon in the last part starts the tag; the registry, which may have one, is gone already.
        let (repository, tag) = match remainder.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (remainder, None),
        };
        if let Some(registry) = registry
            && !is_registry(registry)
        {
            return Err(bad(
                "the registry is no host with an optional port, such as localhost:5000 or [::1]:5000",
            ));
        }
        if repository.is_empty() {
            return Err(bad(
                "it has no repository; write it as busybox, team/app:1.2 or registry.example/team/app",
            ));
        }
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad("the repository must be lower case"));
        }
        if !repository.split('/').all(is_component) {
            return Err(bad(
                "the repository may hold a-z, 0-9 and, between them, one of . _ __ or dashes",
            ));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad(
                "a tag has up to 128 of A-Z, a-z, 0-9, _, . and -, and starts with none of the last two",
            ));
        }
        if registry.is_none()
            && repository.len() == 64
            && repository.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(bad(
                "64 hexadecimal digits are an identifier; write sha256: before them or name a repository",
            ));
        }
        let registry = match registry {
            None | Some("index.docker.io") => DEFAULT_REGISTRY,
            Some(registry) => registry,
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{OFFICIAL}{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(bad(
                "registry and repository are longer than 255 characters",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// The first part is a registry when it could not be part of a repository on Docker's own.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            None if port.is_empty() => return true,
            None => return false,
            Some(port) => ("v6", Some(port)),
        }
    } else {
        match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let is_port = |port: &str| {
        !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Runs of a-z and 0-9, joined by `.`, `_`, `__` or any number of dashes.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !text
        .bytes()
        .all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'))
    {
        return false;
    }
    let mut runs = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    // Between two letters there is an empty run.
    let (first, last) = (text.bytes().next(), text.bytes().last());
    first.is_some_and(alphanumeric)
        && last.is_some_and(alphanumeric)
        && runs.all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_completed() {
        let with_digest = format!("docker.io/library/a@sha256:{HEX}");
        let with_both = format!("docker.io/library/a:1@sha256:{HEX}");
        for (text, full, familiar) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            ("docker.io/a", "docker.io/library/a:latest", "a:latest"),
            (
                "docker.io/a.io/b",
                "docker.io/a.io/b:latest",
                "docker.io/a.io/b:latest",
            ),
            (
                "docker.io/localhost/a",
                "docker.io/localhost/a:latest",
                "docker.io/localhost/a:latest",
            ),
            (
                "index.docker.io/team/a",
                "docker.io/team/a:latest",
                "team/a:latest",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "localhost:5000/a:b",
                "localhost:5000/a:b",
                "localhost:5000/a:b",
            ),
            (
                "quay.io/a/b/c",
                "quay.io/a/b/c:latest",
                "quay.io/a/b/c:latest",
            ),
            ("HOST/a", "HOST/a:latest", "HOST/a:latest"),
            (
                "10.0.0.1:80/a",
                "10.0.0.1:80/a:latest",
                "10.0.0.1:80/a:latest",
            ),
            ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("[fe80::1]/a", "[fe80::1]/a:latest", "[fe80::1]/a:latest"),
            (
                "a__b/c---d.e_f",
                "docker.io/a__b/c---d.e_f:latest",
                "a__b/c---d.e_f:latest",
            ),
            ("test:5000", "docker.io/library/test:5000", "test:5000"),
            (
                &format!("a@sha256:{HEX}"),
                &with_digest,
                &format!("a@sha256:{HEX}"),
            ),
            (
                &format!("a:1@sha256:{HEX}"),
                &with_both,
                &format!("a:1@sha256:{HEX}"),
            ),
        ] {
            let reference: Reference = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            for form in [full, familiar] {
                assert_eq!(form.parse::<Reference>().unwrap(), reference, "{form}");
            }
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(300);
        let long_tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "a:",
            "a:-b",
            "a:.b",
            "a:b c",
            "a_",
            "-a",
            "a..b",
            "a___b",
            "a@",
            "a@sha256:00",
            "a@b@c",
            "ho_st.x/a",
            "host:/a",
            "host:0/a",
            "host:99999/a",
            "host:x/a",
            "-h.x/a",
            "[::1/a",
            "[::g]/a",
            "[::1]x/a",
            "http://a/b",
            "a b",
            "ä",
            "a:b:c",
            HEX,
            &long,
            &long_tag,
            "docker.io/",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
