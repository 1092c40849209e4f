//! Addresses: joined, compared, and shown without what may be secret.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::Uri;

use crate::error::{Error, Result, excerpt};

/// What needs no escape in a query's value.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b':')
    .remove(b'/');

/// `base` with one more `name=value` in its query.
pub(crate) fn with_query(base: &str, name: &str, value: &str) -> String {
    let separator = if base.contains('?') { '&' } else { '?' };
    format!(
        "{base}{separator}{name}={}",
        utf8_percent_encode(value, QUERY)
    )
}

/// An address for messages: the query of a redirect is often a signature that gives access.
pub(crate) fn shown(url: &str) -> String {
    excerpt(url.split(['?', '#']).next().unwrap_or_default())
}

/// What `location`, as `base` answered it, means.
pub(crate) fn join(base: &str, location: &str) -> Result<String> {
    let bad = |reason| Error::BadResponse {
        url: shown(base),
        reason,
        found: shown(location),
    };
    let uri: Uri = base.parse().map_err(|_| bad("the address is none"))?;
    let origin = origin(base).ok_or_else(|| bad("the address is none"))?;
    let joined = if location.starts_with("//") {
        format!("{}:{location}", uri.scheme_str().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else if location.contains("://") {
        location.to_owned()
    } else if location.starts_with('?') {
        format!("{origin}{}{location}", uri.path())
    } else {
        let parent = uri.path().rsplit_once('/').map_or("", |(parent, _)| parent);
        format!("{origin}{parent}/{location}")
    };
    let uri: Uri = joined
        .parse()
        .map_err(|_| bad("it leads to something that is no address"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(bad("it leads to something else than HTTP"));
    }
    // `user@host` in an address misleads people and programs about where it goes.
    if uri
        .authority()
        .is_none_or(|authority| authority.as_str().contains('@'))
    {
        return Err(bad("it leads to an address with a user in it"));
    }
    Ok(joined)
}

/// Scheme, host and port in full, in lower case: where credentials may go.
pub(crate) fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?;
    let host = uri.host()?.to_ascii_lowercase();
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!("{scheme}://{host}:{port}"))
}

pub(crate) fn is_https(url: &str) -> bool {
    url.get(..8)
        .is_some_and(|start| start.eq_ignore_ascii_case("https://"))
}

/// `HOST[:PORT]`, as it names a registry.
pub(crate) fn authority(url: &str) -> String {
    url.parse::<Uri>()
        .ok()
        .and_then(|uri| {
            uri.authority()
                .map(|authority| authority.as_str().to_owned())
        })
        .unwrap_or_default()
}

/// Whether a registry is on this machine.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The address of the next page in a `Link` header: `<…>; rel="next"`.
pub(crate) fn next_page(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (address, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        parameters
            .split(';')
            .any(|parameter| {
                let parameter = parameter.trim().to_ascii_lowercase();
                parameter == "rel=next" || parameter == "rel=\"next\""
            })
            .then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = "https://r.example:5000/v2/a/blobs/uploads/?x=1";
        for (location, joined) in [
            ("/v2/b?c=d", "https://r.example:5000/v2/b?c=d"),
            ("http://o.example/x", "http://o.example/x"),
            ("//o.example/x", "https://o.example/x"),
            ("id", "https://r.example:5000/v2/a/blobs/uploads/id"),
            ("?y=2", "https://r.example:5000/v2/a/blobs/uploads/?y=2"),
        ] {
            assert_eq!(join(base, location).unwrap(), joined);
        }
        for bad in [
            "ftp://o.example/",
            "https://",
            "https://u:p@o.example/",
            "a\nb",
            "file:///etc/passwd",
        ] {
            assert!(join(base, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(
            origin("https://A.example/x"),
            origin("https://a.example:443")
        );
        assert_ne!(origin("https://a.example"), origin("http://a.example"));
        assert_ne!(origin("https://a.example"), origin("https://a.example:444"));
        assert_ne!(origin("https://a.example"), origin("https://a.example.org"));
    }

    #[test]
    fn messages_hold_no_queries() {
        assert_eq!(
            shown("https://a.example/x?sig=secret"),
            "https://a.example/x"
        );
    }

    #[test]
    fn loopback_is_told_by_name_or_address() {
        for yes in [
            "localhost",
            "localhost:1",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:80",
        ] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in [
            "localhost.example",
            "10.0.0.1",
            "[fe80::1]",
            "127.0.0.1.example:80",
        ] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn pages_are_linked() {
        assert_eq!(
            next_page(r#"</v2/_catalog?last=a&n=1>; rel="next""#),
            Some("/v2/_catalog?last=a&n=1")
        );
        assert_eq!(next_page(r#"<a>; rel="prev", <b>; rel=next"#), Some("b"));
        assert_eq!(next_page("<a>; rel=\"prev\""), None);
        assert_eq!(next_page(""), None);
    }

    #[test]
    fn queries_are_escaped() {
        let url = with_query("https://a/x", "scope", "repository:a/b:pull,push");
        assert_eq!(url, "https://a/x?scope=repository:a/b:pull%2Cpush");
        assert_eq!(
            with_query(&url, "s", "a b&c=d"),
            format!("{url}&s=a%20b%26c%3Dd")
        );
    }
}
