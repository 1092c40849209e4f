//! Debian's `docker-registry`, with every kind of authentication, and skopeo as the other client.

mod common;
mod registries;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{Arena, Tar, assert_cause, gzip_layer, layout, run, with_storage, zstd};
use oci_image::{
    ArtifactBuilder, Credentials, Digest, Document, Error, Image, Index, LayoutWriter, MediaType,
    Platform, Progress, Reference, Registry, RegistryOptions, Source, Store, copy, open,
};
use registries::{DockerRegistry, HTPASSWD, TokenService, tls};

/// An image of three layers, in a layout.
fn image(dir: &Path) -> Image {
    let layers: Vec<_> = (0..3u8)
        .map(|number| {
            let tar = Tar::new()
                .dir("etc/")
                .file(format!("etc/file{number}"), vec![number; 100_000])
                .file("etc/same", format!("{number}"))
                .end();
            match number {
                2 => (MediaType::OCI_LAYER_ZSTD, tar.clone(), zstd(&tar)),
                _ => gzip_layer(&tar),
            }
        })
        .collect();
    let path = dir.join("source");
    layout(&path, "latest", &layers);
    open(&path).unwrap()
}

fn name(registry: &DockerRegistry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host).parse().unwrap()
}

fn unpacked_file(image: &Image, path: &str) -> Vec<u8> {
    let arena = Arena::new();
    arena.unpack(image).unwrap();
    fs::read(arena.root().join(path)).unwrap()
}

/// A client that notes what happens.
fn listening(options: RegistryOptions) -> (Registry, Arc<Mutex<Vec<Progress>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let options = options.progress(move |event| heard.lock().unwrap().push(event.clone()));
    (Registry::new(options), events)
}

fn count(events: &Mutex<Vec<Progress>>, wanted: fn(&Progress) -> bool) -> usize {
    let mut events = events.lock().unwrap();
    let count = events.iter().filter(|event| wanted(event)).count();
    events.clear();
    count
}

#[test]
#[ignore = "needs root"]
fn what_is_pushed_is_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let (client, events) = listening(RegistryOptions::new());
    let first = name(&registry, "team/app:1");
    client.push(&source, &first).unwrap();
    let moved = |event: &Progress| matches!(event, Progress::Finished { .. });
    let present = |event: &Progress| matches!(event, Progress::Present { .. });
    let mounted = |event: &Progress| matches!(event, Progress::Mounted { .. });
    assert_eq!(count(&events, moved), 4);

    // Once more: nothing is sent.
    client
        .push(&source, &name(&registry, "team/app:2"))
        .unwrap();
    assert_eq!(count(&events, present), 4);

    let pulled = client.image(&first, &Platform::host()).unwrap();
    assert_eq!(pulled.manifest().bytes(), source.manifest().bytes());
    assert_eq!(unpacked_file(&pulled, "etc/file1"), vec![1; 100_000]);
    assert_eq!(unpacked_file(&pulled, "etc/same"), b"2");

    // To another repository of the registry: nothing is sent either.
    events.lock().unwrap().clear();
    client.push(&pulled, &name(&registry, "other:1")).unwrap();
    assert_eq!(count(&events, mounted), 4);

    // By digest, also in a fresh repository, and into a store and every other form.
    let by_digest = first.with_digest(source.manifest().digest().clone());
    assert!(client.image(&by_digest, &Platform::host()).is_ok());
    let wrong = first.with_digest(Digest::sha256(b""));
    assert!(matches!(
        client.image(&wrong, &Platform::host()).unwrap_err().cause(),
        Error::NoSuchImage { .. }
    ));
    assert!(matches!(
        client.push(&source, &wrong).unwrap_err().cause(),
        Error::DigestMismatch { .. }
    ));
    let store = Store::open(dir.path().join("store")).unwrap();
    store.add(&pulled, &first).unwrap();
    assert!(store.verify().unwrap().is_empty());
    for form in ["oci", "oci-archive", "docker-archive"] {
        let path = dir.path().join(form);
        copy(
            &pulled,
            &format!("{form}:{}", path.display()).parse().unwrap(),
        )
        .unwrap();
        let copied = open(&path).unwrap();
        assert_eq!(unpacked_file(&copied, "etc/file0"), vec![0; 100_000]);
        // And from every form back.
        let back = name(&registry, &format!("back:{form}"));
        copy(&copied, &format!("docker://{back}").parse().unwrap()).unwrap();
        let pulled = open(format!("docker://{back}")).unwrap();
        assert_eq!(unpacked_file(&pulled, "etc/file2"), vec![2; 100_000]);
        assert_eq!(pulled.config().digest(), source.config().digest());
    }
}

#[test]
#[ignore = "needs root"]
fn blobs_are_pushed_in_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let noise: Vec<u8> = (0..200_000u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    let tar = Tar::new().file("noise", &noise).end();
    let source = dir.path().join("source");
    layout(
        &source,
        "x",
        &[("application/vnd.oci.image.layer.v1.tar", tar.clone(), tar)],
    );
    let client = Registry::new(RegistryOptions::new().chunk(30_000).parallel(1));
    let target = name(&registry, "chunks:1");
    client.push(&open(&source).unwrap(), &target).unwrap();
    let pulled = client.image(&target, &Platform::host()).unwrap();
    assert_eq!(unpacked_file(&pulled, "noise"), noise);
}

#[test]
#[ignore = "needs root"]
fn skopeo_pulls_what_we_push_and_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let client = Registry::new(RegistryOptions::new());
    let ours = name(&registry, "ours:1");
    client.push(&source, &ours).unwrap();
    let skopeo = |args: &[&str]| {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir"])
            .arg(dir.path())
            .args(args))
    };
    let inspected = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{ours}")]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Digest"], source.manifest().digest().to_string());
    let copied = dir.path().join("copied");
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{ours}"),
        &format!("oci:{}:x", copied.display()),
    ]);
    assert_eq!(
        open(&copied).unwrap().manifest().digest(),
        source.manifest().digest()
    );
    for format in ["oci", "v2s2"] {
        let theirs = name(&registry, &format!("theirs:{format}"));
        let plain = dir.path().join("plain");
        if format == "v2s2" {
            // Docker's form knows no zstd.
            let tar = Tar::new().file("etc/file1", vec![1; 100_000]).end();
            layout(&plain, "x", &[gzip_layer(&tar)]);
        }
        let from = if format == "oci" { &copied } else { &plain };
        skopeo(&[
            "copy",
            "--dest-tls-verify=false",
            "--format",
            format,
            &format!("oci:{}:x", from.display()),
            &format!("docker://{theirs}"),
        ]);
        let pulled = client.image(&theirs, &Platform::host()).unwrap();
        let kind = if format == "oci" {
            MediaType::OCI_MANIFEST
        } else {
            MediaType::DOCKER_MANIFEST
        };
        assert_eq!(pulled.manifest().descriptor().media_type, kind);
        assert_eq!(unpacked_file(&pulled, "etc/file1"), vec![1; 100_000]);
    }
}

#[test]
#[ignore = "needs root"]
fn repositories_are_listed_and_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let client = Registry::new(RegistryOptions::new());
    for rest in ["a/x:2", "a/x:1", "b:latest"] {
        client.push(&source, &name(&registry, rest)).unwrap();
    }
    assert_eq!(client.catalog(&registry.host).unwrap(), ["a/x", "b"]);
    let tagged = name(&registry, "a/x:1");
    let mut tags = client.tags(&tagged).unwrap();
    tags.sort();
    assert_eq!(tags, ["1", "2"]);
    // This one cannot delete a tag alone, and says so.
    let error = client.delete(&tagged).unwrap_err();
    assert_cause!(error, Error::Refused { .. });
    let by_digest = tagged.with_digest(source.manifest().digest().clone());
    client.delete(&by_digest).unwrap();
    let error = client.delete(&by_digest).unwrap_err();
    assert_cause!(error, Error::NoSuchImage { .. });
    let error = client.image(&tagged, &Platform::host()).unwrap_err();
    assert!(error.to_string().contains(&tagged.to_string()), "{error}");
    let layer = &source.manifest().layers[0].digest;
    client.delete_blob(&tagged, layer).unwrap();
    let error = client.tags(&name(&registry, "nothing:1")).unwrap_err();
    assert!(error.to_string().contains("NAME_UNKNOWN"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn an_index_is_pushed_and_its_platforms_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let client = Registry::new(RegistryOptions::new());
    let target = name(&registry, "multi:1");
    let digest = source.manifest().digest().clone();
    client.push(&source, &target.with_digest(digest)).unwrap();
    let mut entry = source.manifest().descriptor().clone();
    entry.platform = Some(Platform::host());
    let index: Index = serde_json::from_value(serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": [entry],
    }))
    .unwrap();
    let index = Document::new(MediaType::OCI_INDEX, index).unwrap();
    client.push_document(&target, &index).unwrap();
    let pulled = client.image(&target, &Platform::host()).unwrap();
    assert_eq!(pulled.manifest().digest(), source.manifest().digest());
    assert_eq!(client.document(&target).unwrap().digest(), index.digest());
    let other: Platform = "linux/s390x".parse().unwrap();
    assert!(matches!(
        client.image(&target, &other).unwrap_err().cause(),
        Error::NoPlatform { .. }
    ));
}

#[test]
#[ignore = "needs root"]
fn what_refers_to_an_image_is_found_by_its_tag() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let client = Registry::new(RegistryOptions::new());
    let target = name(&registry, "signed:1");
    client.push(&source, &target).unwrap();
    let subject = source.manifest().digest().clone();
    assert_eq!(client.referrers(&target, &subject, None).unwrap(), []);
    // What refers to it is made in a layout, pushed from there, and read from here again.
    let path = dir.path().join("artifacts");
    let mut layout = LayoutWriter::open(&path).unwrap();
    for kind in ["application/x.signature", "application/x.sbom"] {
        let blob = layout.blob("text/plain", kind.as_bytes()).unwrap();
        let artifact = ArtifactBuilder::new(kind)
            .subject(source.manifest().descriptor().clone())
            .blob(blob)
            .annotation("made", "by a test");
        layout.artifact(None, artifact).unwrap();
    }
    let artifacts = Source::open(&path).unwrap();
    let made = artifacts.referrers(&subject, None).unwrap();
    for descriptor in &made {
        let artifact = artifacts.artifact(descriptor).unwrap();
        for _ in 0..2 {
            let name = target.with_digest(descriptor.digest.clone());
            client.push_artifact(&artifact, &name).unwrap();
        }
    }
    let all = client.referrers(&target, &subject, None).unwrap();
    assert_eq!(all, made);
    let [sbom] = client
        .referrers(&target, &subject, Some("application/x.sbom"))
        .unwrap()
        .try_into()
        .unwrap();
    let pulled = client.artifact(&target.with_digest(sbom.digest)).unwrap();
    assert_eq!(pulled.artifact_type(), "application/x.sbom");
    let mut text = String::new();
    let blob = &pulled.manifest().layers[0];
    pulled
        .blob(blob)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "application/x.sbom");
    let tag = format!("sha256-{}", subject.hex());
    assert!(client.tags(&target).unwrap().contains(&tag));
}

/// With a name in the environment it pulls that; otherwise from a registry of its own, that asks for nothing.
#[test]
#[ignore = "needs root"]
fn the_environments_credentials_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let given = std::env::var("COFFERDAM_TEST_PULL").ok();
    let own = given.is_none().then(|| DockerRegistry::start(&[]));
    let target: Reference = match (&own, given) {
        (_, Some(given)) => given.parse().unwrap(),
        (Some(own), None) => name(own, "x:1"),
        (None, None) => unreachable!(),
    };
    let client = Registry::default();
    let source = image(dir.path());
    client.push(&source, &target).unwrap();
    let pulled = client.image(&target, &Platform::host()).unwrap();
    assert_eq!(pulled.manifest().digest(), source.manifest().digest());
}

#[test]
#[ignore = "needs root"]
fn passwords_come_from_settings_files_and_helpers() {
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let registry = DockerRegistry::start(&[
        ("REGISTRY_AUTH", "htpasswd"),
        ("REGISTRY_AUTH_HTPASSWD_REALM", "test"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", htpasswd.to_str().unwrap()),
    ]);
    let source = image(dir.path());
    let target = name(&registry, "secret/app:1");
    let push = |options: RegistryOptions| Registry::new(options).push(&source, &target);
    let host = registry.host.as_str();
    for options in [
        RegistryOptions::new(),
        RegistryOptions::new().credentials(host, Credentials::password("me", "wrong")),
        RegistryOptions::new()
            .credentials("registry.example", Credentials::password("me", "secret")),
    ] {
        let error = push(options).unwrap_err();
        assert_cause!(error, Error::Unauthorized { .. });
        assert!(error.to_string().contains("docker login"), "{error}");
    }
    push(RegistryOptions::new().credentials(host, Credentials::password("me", "secret"))).unwrap();

    // me:secret
    let file = dir.path().join("auth.json");
    fs::write(
        &file,
        format!(r#"{{"auths":{{"{host}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#),
    )
    .unwrap();
    push(RegistryOptions::new().credential_file(&file)).unwrap();

    // Another process, as both find their settings in the environment.
    let bin = dir.path().join("bin");
    let docker = dir.path().join("docker");
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&docker).unwrap();
    let helper = bin.join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$1 $server\" = \"get {host}\" ] || exit 3\n\
         echo '{{\"ServerURL\":\"x\",\"Username\":\"me\",\"Secret\":\"secret\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    run(Command::new("chmod").arg("755").arg(&helper));
    for config in [
        format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#),
        r#"{"credsStore":"test"}"#.to_owned(),
        format!(r#"{{"auths":{{"https://{host}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#),
    ] {
        fs::write(docker.join("config.json"), config).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        run(Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_environments_credentials_are_used",
                "--ignored",
            ])
            .env("COFFERDAM_TEST_PULL", target.to_string())
            .env("DOCKER_CONFIG", &docker)
            .env_remove("REGISTRY_AUTH_FILE")
            .env("PATH", path));
    }
}

#[test]
#[ignore = "needs root"]
fn tokens_are_had_from_their_service() {
    let dir = tempfile::tempdir().unwrap();
    let service = TokenService::start(dir.path());
    let realm = format!("http://{}/token", service.server.host);
    let registry = DockerRegistry::start(&[
        ("REGISTRY_AUTH", "token"),
        ("REGISTRY_AUTH_TOKEN_REALM", &realm),
        ("REGISTRY_AUTH_TOKEN_SERVICE", "test registry"),
        ("REGISTRY_AUTH_TOKEN_ISSUER", "test issuer"),
        (
            "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE",
            service.authority.to_str().unwrap(),
        ),
    ]);
    let source = image(dir.path());
    let me = |password: &str| {
        let credentials = Credentials::password("me", password);
        Registry::new(RegistryOptions::new().credentials(&registry.host, credentials))
    };
    let target = name(&registry, "team/app:1");
    let error = me("wrong").push(&source, &target).unwrap_err();
    assert_cause!(error, Error::Unauthorized { .. });
    // Nobody may pull, but not push.
    let nobody = Registry::new(RegistryOptions::new());
    let error = nobody.push(&source, &target).unwrap_err();
    assert_cause!(error, Error::Unauthorized { .. });
    let client = me("secret");
    client.push(&source, &target).unwrap();
    let pulled = client.image(&target, &Platform::host()).unwrap();
    assert_eq!(unpacked_file(&pulled, "etc/file1"), vec![1; 100_000]);
    let pulled = nobody.image(&target, &Platform::host()).unwrap();
    assert_eq!(unpacked_file(&pulled, "etc/file1"), vec![1; 100_000]);

    let (client, events) = listening(
        RegistryOptions::new().credentials(&registry.host, Credentials::password("me", "secret")),
    );
    let pulled = client.image(&target, &Platform::host()).unwrap();
    client
        .push(&pulled, &name(&registry, "team/other:1"))
        .unwrap();
    let mounted = count(&events, |event| matches!(event, Progress::Mounted { .. }));
    assert_eq!(mounted, 4);
    assert_eq!(client.catalog(&registry.host).unwrap().len(), 2);
    // The password went to the registry's token service, and not to the registry.
    assert!(
        service
            .server
            .seen()
            .iter()
            .any(|seen| seen.header("authorization").is_some())
    );
}

#[test]
#[ignore = "needs root"]
fn certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = tls(dir.path());
    let registry = DockerRegistry::start(&[
        (
            "REGISTRY_HTTP_TLS_CERTIFICATE",
            certificates.chain.to_str().unwrap(),
        ),
        ("REGISTRY_HTTP_TLS_KEY", certificates.key.to_str().unwrap()),
    ]);
    let source = image(dir.path());
    let target = name(&registry, "app:1");
    let push = |options: RegistryOptions| Registry::new(options).push(&source, &target);
    // Also on this machine, where no TLS would be allowed.
    let error = push(RegistryOptions::new()).unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let authority = fs::read(&certificates.authority).unwrap();
    push(RegistryOptions::new().certificate_authorities(&registry.host, &authority)).unwrap();
    push(RegistryOptions::new().insecure(&registry.host)).unwrap();
    let error = push(RegistryOptions::new().certificate_authorities(&registry.host, b"none"));
    assert!(matches!(error.unwrap_err().cause(), Error::BadValue { .. }));
}

/// What podman pulls it can run; what it has built can be pulled.
#[test]
#[ignore = "needs root"]
fn podman_pulls_what_we_push_and_the_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(&[]);
    let source = image(dir.path());
    let client = Registry::new(RegistryOptions::new());
    let ours = name(&registry, "ours:1");
    client.push(&source, &ours).unwrap();
    let podman = |args: &[&str]| with_storage("podman", dir.path(), args);
    podman(&["pull", "--quiet", "--tls-verify=false", &ours.to_string()]);
    let id = podman(&["image", "inspect", "--format", "{{.Id}}", &ours.to_string()]);
    assert_eq!(id, source.config().digest().hex());
    let theirs = name(&registry, "theirs:1");
    podman(&[
        "push",
        "--quiet",
        "--tls-verify=false",
        &ours.to_string(),
        &theirs.to_string(),
    ]);
    let pulled = client.image(&theirs, &Platform::host()).unwrap();
    assert_eq!(pulled.config().digest(), source.config().digest());
    assert_eq!(unpacked_file(&pulled, "etc/file2"), vec![2; 100_000]);
    podman(&[
        "image",
        "rm",
        "--force",
        &ours.to_string(),
        &theirs.to_string(),
    ]);
}
