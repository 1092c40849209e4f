//! Registries that break, lie, stall and try to get credentials.

mod common;
mod registries;

use std::io::{Read, Write};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Tar, assert_cause, gzip_layer, layout, noise};
use oci_image::{
    Credentials, Digest, Error, Image, Limits, Platform, Progress, Reference, Registry,
    RegistryOptions, Result,
};
use registries::{Blobs, Seen, Server, head, reply};

/// An image with one layer of so many bytes that hardly compress.
fn blobs(bytes: usize) -> Blobs {
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::new().dir("etc/").file("etc/noise", noise(bytes)).end();
    layout(&dir.path().join("x"), "x", &[gzip_layer(&tar)]);
    Blobs::read(&dir.path().join("x"))
}

/// Settings that do not wait long.
fn options(server: &Server) -> RegistryOptions {
    RegistryOptions::new()
        .plain_http(&server.host)
        .first_wait(Duration::from_millis(5))
        .longest_wait(Duration::from_secs(2))
        .stall(Duration::from_millis(400))
}

fn name(server: &Server) -> Reference {
    format!("{}/team/app:1", server.host).parse().unwrap()
}

fn image(options: RegistryOptions, server: &Server) -> Result<Image> {
    Registry::new(options).image(&name(server), &Platform::host())
}

/// Reads the layer's blob.
fn read_layer(image: &Image) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let layer = image.manifest().layers[0].clone();
    image
        .blob(&layer)?
        .read_to_end(&mut bytes)
        .map_err(|error| {
            error
                .downcast::<Error>()
                .unwrap_or_else(|error| panic!("an error of no type: {error}"))
        })?;
    Ok(bytes)
}

fn pull(options: RegistryOptions, server: &Server) -> Result<Vec<u8>> {
    read_layer(&image(options, server)?)
}

/// A server that has the image and treats the layer as `layer` says.
fn with_layer(
    blobs: &Blobs,
    layer: impl Fn(&Blobs, &Seen, usize, &mut std::net::TcpStream) + Send + Sync + 'static,
) -> Server {
    let blobs = blobs.clone();
    Server::start(move |request, number, stream| {
        if blobs.is_layer(request) {
            layer(&blobs, request, number, stream);
        } else if !blobs.serve(request, stream) {
            reply(stream, 404, &[], b"");
        }
    })
}

fn range_start(request: &Seen) -> Option<usize> {
    request
        .header("range")?
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

#[test]
fn a_good_registry_is_pulled_from() {
    let good = blobs(100_000);
    let server = with_layer(&good, |blobs, request, _, stream| {
        blobs.serve(request, stream);
    });
    assert_eq!(pull(options(&server), &server).unwrap(), good.layer);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_was() {
    let good = blobs(200_000);
    // A third at a time.
    let server = with_layer(&good, |blobs, request, _, stream| {
        let start = range_start(request).unwrap_or(0);
        let all = blobs.layer.len();
        let range = format!("bytes {start}-{}/{all}", all - 1);
        let status = if start == 0 { 200 } else { 206 };
        head(
            stream,
            status,
            &[("content-range", &range)],
            Some(all - start),
        );
        let end = (start + all / 3 + 1).min(all);
        let _ = stream.write_all(&blobs.layer[start..end]);
    });
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let options = options(&server).progress(move |event| heard.lock().unwrap().push(event.clone()));
    assert_eq!(pull(options, &server).unwrap(), good.layer);
    let starts: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| good.is_layer(seen))
        .map(range_start)
        .collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts[0].is_none() && starts[1] < starts[2], "{starts:?}");
    let events = events.lock().unwrap();
    let resumed = events
        .iter()
        .filter(|event| matches!(event, Progress::Resumed { .. }))
        .count();
    assert_eq!(resumed, 2, "{events:?}");
    let moved: u64 = events
        .iter()
        .map(|event| match event {
            Progress::Moved { digest, bytes } if *digest == Digest::sha256(&good.layer) => *bytes,
            _ => 0,
        })
        .sum();
    assert_eq!(moved, good.layer.len() as u64);
    assert!(matches!(events.last(), Some(Progress::Finished { .. })));
}

#[test]
fn a_registry_without_ranges_is_read_again_and_skipped() {
    let good = blobs(200_000);
    for answer in ["everything", "416", "another part"] {
        let server = with_layer(&good, move |blobs, request, number, stream| {
            let all = blobs.layer.len();
            if number == 0 {
                head(stream, 200, &[], Some(all));
                let _ = stream.write_all(&blobs.layer[..all / 2]);
                return;
            }
            match (range_start(request), answer) {
                (Some(_), "416") => reply(stream, 416, &[], b""),
                (Some(_), "another part") => {
                    let range = format!("bytes 0-{}/{all}", all - 1);
                    reply(stream, 206, &[("content-range", &range)], &blobs.layer);
                }
                _ => reply(stream, 200, &[], &blobs.layer),
            }
        });
        assert_eq!(
            pull(options(&server), &server).unwrap(),
            good.layer,
            "{answer}"
        );
    }
}

#[test]
fn one_that_always_breaks_is_given_up() {
    let good = blobs(50_000);
    let server = with_layer(&good, |blobs, _, _, stream| {
        head(stream, 200, &[], Some(blobs.layer.len()));
    });
    let error = pull(options(&server).attempts(3), &server).unwrap_err();
    assert_cause!(error, Error::Truncated { .. } | Error::Network { .. });
    let asked = server
        .seen()
        .iter()
        .filter(|seen| good.is_layer(seen))
        .count();
    assert_eq!(asked, 3);
}

#[test]
fn wrong_bytes_are_refused() {
    let good = blobs(50_000);
    let server = with_layer(&good, |blobs, _, _, stream| {
        let mut bytes = blobs.layer.clone();
        bytes[100] ^= 1;
        reply(stream, 200, &[], &bytes);
    });
    let image = image(options(&server), &server).unwrap();
    let error = read_layer(&image).unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
    let dir = tempfile::tempdir().unwrap();
    let store = oci_image::Store::open(dir.path().join("store")).unwrap();
    let error = store.add(&image, &name(&server)).unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
    assert!(error.to_string().contains(&server.host), "{error}");
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn sizes_are_what_the_descriptor_says() {
    let good = blobs(50_000);
    for extra in [-1isize, 1, 1_000_000] {
        let server = with_layer(&good, move |blobs, _, _, stream| {
            let mut bytes = blobs.layer.clone();
            bytes.resize(bytes.len().saturating_add_signed(extra), 0);
            reply(stream, 200, &[], &bytes);
        });
        let error = pull(options(&server), &server).unwrap_err();
        let right = match extra {
            -1 => matches!(error.cause(), Error::Truncated { .. }),
            _ => matches!(error.cause(), Error::Oversized { .. }),
        };
        assert!(right, "{extra}: {error}");
    }
}

#[test]
fn an_endless_body_ends() {
    let good = blobs(50_000);
    let server = with_layer(&good, |blobs, _, _, stream| {
        head(stream, 200, &[], None);
        let _ = stream.write_all(&blobs.layer);
        while stream.write_all(&[0; 4096]).is_ok() {}
    });
    let error = pull(options(&server), &server).unwrap_err();
    assert_cause!(error, Error::Oversized { .. });
    // So does an endless manifest, at the limit for documents.
    let server = Server::start(|request, _, stream| {
        if request.path.contains("/manifests/") {
            head(
                stream,
                200,
                &[("content-type", "application/vnd.oci.image.manifest.v1+json")],
                None,
            );
            while stream.write_all(&[b' '; 4096]).is_ok() {}
        }
    });
    let mut limits = Limits::default();
    limits.document_bytes = 100_000;
    let error = pull(options(&server).limits(limits), &server).unwrap_err();
    assert_cause!(error, Error::Limit { .. });
}

#[test]
fn what_stands_still_or_drips_counts_as_broken() {
    let good = blobs(50_000);
    for drip in [false, true] {
        let server = with_layer(&good, move |blobs, _, _, stream| {
            head(stream, 200, &[], Some(blobs.layer.len()));
            for byte in &blobs.layer {
                if drip && stream.write_all(&[*byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(60));
            }
        });
        let start = Instant::now();
        let error = pull(options(&server).attempts(2).least_rate(1000), &server).unwrap_err();
        assert_cause!(error, Error::Stalled { .. } | Error::Network { .. });
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

/// Whatever it is that drips: the head of an answer, a manifest, a token, or the reason for a refusal.
#[test]
fn documents_that_drip_count_as_broken() {
    fn drip(stream: &mut std::net::TcpStream) {
        // As blanks, what comes is right so far.
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(60));
        }
    }
    for what in ["head", "manifest", "token", "refusal"] {
        let server = Server::start(move |request, _, stream| match what {
            "head" => {
                let _ = stream.write_all(b"HTTP/1.1 200 X\r\nx-slow:");
                drip(stream);
            }
            "token" if !request.path.starts_with("/token") => {
                let challenge = [("www-authenticate", "Bearer realm=\"/token\"")];
                reply(stream, 401, &challenge, b"");
            }
            _ => {
                let status = if what == "refusal" { 403 } else { 200 };
                head(stream, status, &[], None);
                drip(stream);
            }
        });
        let start = Instant::now();
        let error = pull(options(&server).attempts(2).least_rate(1000), &server).unwrap_err();
        match what {
            "refusal" => assert_cause!(error, Error::Refused { status: 403, .. }),
            _ => assert_cause!(error, Error::Stalled { .. }),
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
    }
}

#[test]
fn an_overloaded_registry_is_given_time() {
    let good = blobs(1000);
    for status in [429, 503, 500] {
        let other = good.clone();
        let server = Server::start(move |request, number, stream| {
            if number < 2 {
                reply(stream, status, &[("retry-after", "0")], b"");
            } else {
                other.serve(request, stream);
            }
        });
        assert_eq!(pull(options(&server), &server).unwrap(), good.layer);
    }
    // One second is waited for; an hour is not.
    let server = Server::start(|_, number, stream| {
        let wait = if number == 0 { "1" } else { "3600" };
        let body = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        reply(stream, 429, &[("retry-after", wait)], body);
    });
    let start = Instant::now();
    let error = pull(options(&server), &server).unwrap_err();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_cause!(error, Error::Refused { status: 429, .. });
    assert!(error.to_string().contains("slow down"), "{error}");
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn credentials_stay_with_their_host() {
    let good = blobs(20_000);
    let other = good.clone();
    let elsewhere = Server::start(move |_, _, stream| reply(stream, 200, &[], &other.layer));
    let to = format!("http://{}/signed?signature=geheim", elsewhere.host);
    let other = good.clone();
    let server = Server::start(move |request, _, stream| {
        if request.header("authorization").is_none() {
            reply(
                stream,
                401,
                &[("www-authenticate", "Basic realm=\"x\"")],
                b"",
            );
        } else if other.is_layer(request) {
            reply(stream, 307, &[("location", &to)], b"");
        } else {
            other.serve(request, stream);
        }
    });
    let options = options(&server)
        .credentials(&server.host, Credentials::password("me", "secret"))
        // These are for another host and are not sent to this one.
        .credentials("registry.example", Credentials::password("other", "other"));
    assert_eq!(pull(options, &server).unwrap(), good.layer);
    assert!(!elsewhere.seen().is_empty());
    for seen in elsewhere.seen() {
        assert!(seen.header("authorization").is_none(), "{seen:?}");
    }
    for seen in server.seen() {
        // me:secret
        assert!(
            seen.header("authorization")
                .is_none_or(|sent| sent == "Basic bWU6c2VjcmV0"),
            "{seen:?}"
        );
    }
}

#[test]
fn a_redirects_target_cannot_ask_for_credentials() {
    let good = blobs(1000);
    let elsewhere = Server::start(|_, _, stream| {
        reply(
            stream,
            401,
            &[("www-authenticate", "Basic realm=\"x\"")],
            b"",
        );
    });
    let to = format!("http://{}/x", elsewhere.host);
    let server = with_layer(&good, move |_, _, _, stream| {
        reply(stream, 302, &[("location", &to)], b"");
    });
    let options = options(&server)
        .credentials(&server.host, Credentials::password("me", "secret"))
        .credentials(&elsewhere.host, Credentials::password("me", "secret"));
    let error = pull(options, &server).unwrap_err();
    assert_cause!(error, Error::Refused { status: 401, .. });
    assert!(
        elsewhere
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_none())
    );
}

#[test]
fn redirects_end_and_lead_to_http_only() {
    let good = blobs(1000);
    for location in [
        "/v2/round",
        "file:///etc/passwd",
        "",
        "http://me:pw@127.0.0.1/",
    ] {
        let other = good.clone();
        let server = Server::start(move |request, _, stream| {
            if other.is_layer(request) || request.path == "/v2/round" {
                reply(stream, 302, &[("location", location)], b"");
            } else {
                other.serve(request, stream);
            }
        });
        let error = pull(options(&server), &server).unwrap_err();
        assert!(
            matches!(error.cause(), Error::BadResponse { .. }),
            "{location}: {error}"
        );
        assert!(server.seen().len() < 12);
    }
}

#[test]
fn bad_tokens_and_challenges_are_refused() {
    for (token, known) in [
        ("not json", "is no token"),
        ("{}", "holds no token"),
        (r#"{"token":""}"#, "holds no token"),
        (r#"{"token":"a\r\nx-evil: 1"}"#, "characters"),
        (r#"{"token":"good but not accepted"}"#, "characters"),
        (r#"{"token":"not-accepted"}"#, "credentials"),
    ] {
        let server = Server::start(move |request, _, stream| {
            if request.path.starts_with("/token") {
                reply(stream, 200, &[], token.as_bytes());
            } else {
                reply(
                    stream,
                    401,
                    &[("www-authenticate", "Bearer realm=\"/token\",service=\"s\"")],
                    b"",
                );
            }
        });
        let error = pull(options(&server), &server).unwrap_err();
        assert!(error.to_string().contains(known), "{token}: {error}");
        assert!(!error.to_string().contains("evil"), "{error}");
    }
    for challenge in [
        "",
        "Bearer",
        "Negotiate",
        "Bearer realm=\"ftp://x/\"",
        "Bearer realm=\"http://me@x/\"",
    ] {
        let server = Server::start(move |_, _, stream| {
            reply(stream, 401, &[("www-authenticate", challenge)], b"");
        });
        let error = pull(options(&server), &server).unwrap_err();
        assert!(
            matches!(error.cause(), Error::BadResponse { .. }),
            "{challenge}: {error}"
        );
    }
}

#[test]
fn tokens_are_asked_for_once_and_sent_with_their_scope() {
    let good = blobs(5000);
    let other = good.clone();
    let server = Server::start(move |request, _, stream| {
        if request.path.starts_with("/token") {
            reply(
                stream,
                200,
                &[],
                br#"{"access_token":"abc","expires_in":300}"#,
            );
        } else if request.header("authorization") == Some("Bearer abc") {
            other.serve(request, stream);
        } else {
            reply(
                stream,
                401,
                &[(
                    "www-authenticate",
                    "Bearer realm=\"/token\",service=\"s x\"",
                )],
                b"",
            );
        }
    });
    let options = options(&server).credentials(&server.host, Credentials::password("me", "secret"));
    assert_eq!(pull(options, &server).unwrap(), good.layer);
    let seen = server.seen();
    let asked: Vec<_> = seen
        .iter()
        .filter(|one| one.path.starts_with("/token"))
        .collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/token?service=s%20x&scope=repository:team/app:pull&account=me"
    );
    assert_eq!(asked[0].header("authorization"), Some("Basic bWU6c2VjcmV0"));
}

#[test]
fn identity_tokens_are_exchanged() {
    let good = blobs(5000);
    let other = good.clone();
    let server = Server::start(move |request, _, stream| {
        if request.path == "/token" && request.method == "POST" {
            let form = String::from_utf8_lossy(&request.body).into_owned();
            let whole = "grant_type=refresh_token&client_id=cofferdam&service=s\
                         &scope=repository:team/app:pull&refresh_token=I%2Bd";
            let token = if form == whole { "abc" } else { "wrong" };
            reply(
                stream,
                200,
                &[],
                format!(r#"{{"access_token":"{token}"}}"#).as_bytes(),
            );
        } else if request.header("authorization") == Some("Bearer abc") {
            other.serve(request, stream);
        } else {
            reply(
                stream,
                401,
                &[("www-authenticate", "Bearer realm=\"/token\",service=\"s\"")],
                b"",
            );
        }
    });
    let options =
        options(&server).credentials(&server.host, Credentials::Identity("I+d".to_owned()));
    assert_eq!(pull(options, &server).unwrap(), good.layer);
}

#[test]
fn manifests_are_what_they_are_called() {
    let good = blobs(1000);
    let digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    for (headers, wanted) in [
        (vec![("content-type", "text/html")], "media type"),
        (
            vec![(
                "content-type",
                "application/vnd.docker.distribution.manifest.v2+json",
            )],
            "calls itself",
        ),
        (
            vec![
                ("content-type", "application/vnd.oci.image.manifest.v1+json"),
                ("docker-content-digest", digest),
            ],
            "expected sha256:0000",
        ),
    ] {
        let other = good.clone();
        let server =
            Server::start(move |_, _, stream| reply(stream, 200, &headers, &other.manifest));
        let error = pull(options(&server), &server).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    }
    // By digest, whatever the registry says.
    let other = good.clone();
    let server = Server::start(move |request, _, stream| {
        other.serve(request, stream);
    });
    let named: Reference = format!("{}/team/app@{digest}", server.host)
        .parse()
        .unwrap();
    let error = Registry::new(options(&server))
        .image(&named, &Platform::host())
        .unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let good = blobs(30_000);
    let broken = Server::start(|_, _, stream| reply(stream, 404, &[], b""));
    // Has the manifest, and breaks in the middle of the layer.
    let half = with_layer(&good, |blobs, _, _, stream| {
        head(stream, 200, &[], Some(blobs.layer.len()));
        let _ = stream.write_all(&blobs.layer[..10_000]);
    });
    let home = with_layer(&good, |blobs, request, _, stream| {
        let start = range_start(request).unwrap_or(0);
        let all = blobs.layer.len();
        let range = format!("bytes {start}-{}/{all}", all - 1);
        reply(
            stream,
            206,
            &[("content-range", &range)],
            &blobs.layer[start..],
        );
    });
    let options = options(&home)
        .attempts(2)
        .plain_http(&broken.host)
        .plain_http(&half.host)
        .credentials(&home.host, Credentials::password("me", "secret"))
        .mirror(&home.host, &format!("{}/proxy", broken.host))
        .mirror(&home.host, &half.host);
    assert_eq!(pull(options, &home).unwrap(), good.layer);
    assert!(
        broken
            .seen()
            .iter()
            .any(|seen| seen.path.starts_with("/v2/proxy/team/app/"))
    );
    // What the mirror gave before it broke was not asked for again.
    let seen = home.seen();
    let [asked] = seen.as_slice() else {
        panic!("{seen:?}")
    };
    assert!(range_start(asked).unwrap() > 0);
    for seen in broken.seen().iter().chain(&half.seen()) {
        assert!(seen.header("authorization").is_none());
    }
}

#[test]
fn a_store_goes_on_with_what_it_has_of_a_blob() {
    let good = blobs(300_000);
    let server = with_layer(&good, |blobs, request, number, stream| {
        let start = range_start(request).unwrap_or(0);
        let all = blobs.layer.len();
        let range = format!("bytes {start}-{}/{all}", all - 1);
        let status = if start == 0 { 200 } else { 206 };
        head(
            stream,
            status,
            &[("content-range", &range)],
            Some(all - start),
        );
        let end = if number == 0 { all / 2 } else { all };
        let _ = stream.write_all(&blobs.layer[start..end]);
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = oci_image::Store::open(&path).unwrap();
    let one = image(options(&server).attempts(1), &server).unwrap();
    store.add(&one, &name(&server)).unwrap_err();
    assert!(store.images().unwrap().is_empty());
    // A collection spares what came a moment ago; another process goes on.
    store.collect().unwrap();
    let store = oci_image::Store::open(&path).unwrap();
    store.add(&one, &name(&server)).unwrap();
    assert!(store.verify().unwrap().is_empty());
    let starts: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| good.is_layer(seen))
        .map(range_start)
        .collect();
    assert!(matches!(starts.as_slice(), [None, Some(1..)]), "{starts:?}");
    assert_eq!(std::fs::read_dir(path.join("ingest")).unwrap().count(), 0);

    // What is damaged of the first part is found out at the end, and everything is fetched anew.
    let other = oci_image::Store::open(dir.path().join("other")).unwrap();
    let digest = Digest::sha256(&good.layer);
    let part = dir
        .path()
        .join("other/ingest")
        .join(format!("sha256-{}", digest.hex()));
    std::fs::write(&part, vec![0; 1000]).unwrap();
    other.add(&one, &name(&server)).unwrap();
    assert!(other.verify().unwrap().is_empty());
}

/// The first layer that is asked for comes when the second is asked for too.
#[test]
fn blobs_are_pulled_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [b"one", b"two"].map(|text| {
        let tar = Tar::new().file("file", text).end();
        gzip_layer(&tar)
    });
    layout(&dir.path().join("x"), "x", &layers);
    let source = oci_image::open(dir.path().join("x")).unwrap();
    let config = Blobs::read(&dir.path().join("x"));
    let meeting = Barrier::new(2);
    let server = Server::start(move |request, _, stream| {
        let layer = layers
            .iter()
            .find(|(.., stored)| request.path.ends_with(&Digest::sha256(stored).to_string()));
        if let Some((.., stored)) = layer {
            meeting.wait();
            reply(stream, 200, &[], stored);
        } else {
            config.serve(request, stream);
        }
    });
    let store = oci_image::Store::open(dir.path().join("store")).unwrap();
    // One after the other, the first would stall.
    let options = options(&server).parallel(2).attempts(1);
    let image = image(options, &server).unwrap();
    assert_eq!(image.manifest().digest(), source.manifest().digest());
    store.add(&image, &name(&server)).unwrap();
    assert!(store.verify().unwrap().is_empty());
}

#[test]
fn lists_have_pages_and_an_end() {
    let server = Server::start(|request, _, stream| {
        let (page, link) = match request.path.as_str() {
            "/v2/team/app/tags/list" => (
                r#"{"tags":["a","b"]}"#,
                "</v2/team/app/tags/list?last=b>; rel=\"next\"",
            ),
            "/v2/team/app/tags/list?last=b" => (r#"{"tags":["c"]}"#, ""),
            _ => (
                r#"{"repositories":["round"]}"#,
                "</v2/_catalog?n=1>; rel=\"next\"",
            ),
        };
        reply(stream, 200, &[("link", link)], page.as_bytes());
    });
    let mut limits = Limits::default();
    limits.entries = 50;
    let client = Registry::new(options(&server).limits(limits));
    assert_eq!(client.tags(&name(&server)).unwrap(), ["a", "b", "c"]);
    let error = client.catalog(&server.host).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                setting: "entries",
                ..
            }
        ),
        "{error}"
    );
    // Each page is small; all together are not.
    let mut limits = Limits::default();
    limits.document_bytes = 100;
    let client = Registry::new(options(&server).limits(limits));
    let error = client.catalog(&server.host).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                setting: "document_bytes",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_push_that_breaks_goes_on_with_what_the_registry_has() {
    let bytes: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let descriptor = oci_image::Descriptor::of("application/octet-stream", &bytes);
    let got = Arc::new(Mutex::new(Vec::<u8>::new()));
    let kept = Arc::clone(&got);
    let server = Server::start(move |request, number, stream| {
        let mut got = kept.lock().unwrap();
        let has = |got: &Vec<u8>| format!("0-{}", got.len().saturating_sub(1));
        let place = ("location", "/v2/team/app/blobs/uploads/1?state=x");
        match request.method.as_str() {
            "HEAD" => reply(stream, 404, &[], b""),
            "POST" => reply(stream, 202, &[place], b""),
            "PATCH" => {
                let start = request
                    .header("content-range")
                    .unwrap()
                    .split('-')
                    .next()
                    .unwrap();
                if start.parse() != Ok(got.len()) {
                    return reply(stream, 416, &[], b"");
                }
                // The second gets half of its chunk and then breaks.
                let broken = number == 1;
                let end = if broken {
                    request.body.len() / 2
                } else {
                    request.body.len()
                };
                got.extend_from_slice(&request.body[..end]);
                if !broken {
                    reply(stream, 202, &[place, ("range", &has(&got))], b"");
                }
            }
            "GET" => reply(stream, 204, &[place, ("range", &has(&got))], b""),
            _ => reply(stream, 201, &[], b""),
        }
    });
    let body = bytes.clone();
    Registry::new(options(&server).chunk(3000))
        .push_blob(&name(&server), &descriptor, move || {
            Ok(std::io::Cursor::new(body.clone()))
        })
        .unwrap();
    assert_eq!(*got.lock().unwrap(), bytes);
    let seen = server.seen();
    let last = seen.last().unwrap();
    assert_eq!(last.method, "PUT");
    let digest = descriptor.digest.to_string();
    assert!(
        last.path.contains("state=x&digest=") && last.path.ends_with(&digest),
        "{}",
        last.path
    );
    let starts: Vec<_> = seen
        .iter()
        .filter_map(|one| one.header("content-range"))
        .collect();
    assert_eq!(starts, ["0-2999", "3000-5999", "4500-7499", "7500-9999"]);
}

/// It takes every chunk, and says that it has nothing, or more than there is, or loses what it had.
#[test]
fn a_push_to_a_registry_that_forgets_ends() {
    let bytes = vec![7; 10_000];
    let descriptor = oci_image::Descriptor::of("application/octet-stream", &bytes);
    for forgets in ["all", "what is sent", "what it had"] {
        let server = Server::start(move |request, number, stream| {
            let place = ("location", "/v2/team/app/blobs/uploads/1");
            let has = |range| [place, ("range", range)];
            match (request.method.as_str(), forgets) {
                ("HEAD", _) => reply(stream, 404, &[], b""),
                ("POST", _) => reply(stream, 202, &[place], b""),
                ("PATCH", "all") | ("GET", _) => reply(stream, 202, &has("0-0"), b""),
                ("PATCH", "what is sent") => reply(stream, 202, &has("0-9999999"), b""),
                ("PATCH", _) if number % 2 == 0 => reply(stream, 202, &has("0-2999"), b""),
                ("PATCH", _) => reply(stream, 503, &[], b""),
                _ => reply(stream, 201, &[], b""),
            }
        });
        let body = bytes.clone();
        let error = Registry::new(options(&server).chunk(3000).attempts(3))
            .push_blob(&name(&server), &descriptor, move || {
                Ok(std::io::Cursor::new(body.clone()))
            })
            .unwrap_err();
        assert_cause!(
            error,
            Error::BadResponse { .. } | Error::Refused { status: 503, .. }
        );
        assert!(
            server.seen().len() < 20,
            "{forgets}: {}",
            server.seen().len()
        );
    }
}

/// A registry of the specification's version 1.1 is asked itself, page by page, and told nothing by tags.
#[test]
fn what_refers_to_an_image_is_asked_of_the_registry() {
    let subject = oci_image::Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"{}");
    let one = |kind: &str, size: u64| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": size,
            "digest": Digest::sha256(kind.as_bytes()).to_string(), "artifactType": kind,
        })
    };
    let index = |manifests: &[serde_json::Value]| {
        serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        })
        .to_string()
    };
    let place = format!("/v2/team/app/referrers/{}", subject.digest);
    let pages = [
        index(&[one("a/x", 1), one("b/x", 2)]),
        index(&[one("a/x", 3)]),
    ];
    let tracks = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (asked, says) = (place.clone(), Arc::clone(&tracks));
    let server = Server::start(move |request, _, stream| {
        let kind = ("content-type", "application/vnd.oci.image.index.v1+json");
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        match request.method.as_str() {
            // The filter is a registry's own choice: this one does not know it.
            "GET" if path == asked && !query.contains("page=2") => {
                let next = format!("<{path}?page=2>; rel=\"next\"");
                reply(stream, 200, &[kind, ("link", &next)], pages[0].as_bytes());
            }
            "GET" if path == asked => reply(stream, 200, &[kind], pages[1].as_bytes()),
            "PUT" if says.load(std::sync::atomic::Ordering::Relaxed) => {
                reply(stream, 201, &[("oci-subject", "sha256:x")], b"");
            }
            "PUT" => reply(stream, 201, &[], b""),
            _ => reply(stream, 404, &[], b""),
        }
    });
    let client = Registry::new(options(&server));
    let sizes = |kind| -> Vec<u64> {
        let found = client
            .referrers(&name(&server), &subject.digest, kind)
            .unwrap();
        found.iter().map(|found| found.size).collect()
    };
    assert_eq!(sizes(None), [1, 2, 3]);
    assert_eq!(sizes(Some("a/x")), [1, 3]);
    assert!(
        server
            .seen()
            .iter()
            .any(|seen| seen.path == format!("{place}?artifactType=a/x"))
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "a/x", "config": subject, "layers": [], "subject": subject,
    });
    let manifest =
        oci_image::Document::new("application/vnd.oci.image.manifest.v1+json", manifest).unwrap();
    let target = name(&server).with_digest(manifest.digest().clone());
    for known in [true, false] {
        tracks.store(known, std::sync::atomic::Ordering::Relaxed);
        client.push_document(&target, &manifest).unwrap();
    }
    let puts: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT")
        .map(|seen| seen.path)
        .collect();
    let wanted = format!("/v2/team/app/manifests/{}", manifest.digest());
    assert_eq!(puts, [wanted.clone(), wanted]);
}
