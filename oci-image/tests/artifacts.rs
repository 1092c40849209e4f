//! Content that is no image, beside images in a layout.

mod common;

use std::io::Read;
use std::path::Path;

use common::Arena;
use oci_image::{
    ArtifactBuilder, Descriptor, Digest, Document, Error, ImageBuilder, Index, LayoutWriter,
    MediaType, Platform, Source, open,
};

const SBOM: &str = "application/x.sbom";

/// An image, what refers to it, and what refers to nothing.
fn write(path: &Path) -> Digest {
    let mut layout = LayoutWriter::open(path).unwrap();
    let image = ImageBuilder::new(&Platform::host()).created(0);
    let image = layout.image(Some("latest"), image).unwrap();
    let blob = layout.blob("text/plain", &b"a list"[..]).unwrap();
    let sbom = ArtifactBuilder::new(SBOM)
        .subject(image.descriptor().clone())
        .blob(blob)
        .annotation("made", "by a test");
    layout.artifact(None, sbom).unwrap();
    let signature = ArtifactBuilder::new("application/x.sig").subject(image.descriptor().clone());
    layout.artifact(Some("signature"), signature).unwrap();
    layout.artifact(None, ArtifactBuilder::new(SBOM)).unwrap();
    image.digest().clone()
}

#[test]
fn what_refers_to_an_image_is_found_and_read() {
    let arena = Arena::new();
    let path = arena.root().join("layout");
    let subject = write(&path);
    let source = Source::open(&path).unwrap();
    let all = source.referrers(&subject, None).unwrap();
    let types: Vec<_> = all.iter().map(|one| one.artifact_type.as_deref()).collect();
    assert_eq!(types, [Some(SBOM), Some("application/x.sig")]);
    assert_eq!(all[0].annotations["made"], "by a test");
    let only = source.referrers(&subject, Some(SBOM)).unwrap();
    assert_eq!(only, all[..1]);
    let artifact = source.artifact(&only[0]).unwrap();
    assert_eq!(artifact.artifact_type(), SBOM);
    assert_eq!(
        artifact.manifest().subject.as_ref().unwrap().digest,
        subject
    );
    assert_eq!(artifact.manifest().config, ArtifactBuilder::empty());
    let mut text = String::new();
    let blob = &artifact.manifest().layers[0];
    artifact
        .blob(blob)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "a list");
    let empty = source.artifact(&all[1]).unwrap();
    assert_eq!(empty.manifest().layers, [ArtifactBuilder::empty()]);
    assert_eq!(
        source.referrers(&Digest::sha256(b"other"), None).unwrap(),
        []
    );
}

#[test]
fn an_image_is_still_the_only_one() {
    let arena = Arena::new();
    let path = arena.root().join("layout");
    let digest = write(&path);
    assert_eq!(*open(&path).unwrap().manifest().digest(), digest);
}

#[test]
fn an_index_under_the_subjects_digest_is_followed() {
    let arena = Arena::new();
    let path = arena.root().join("layout");
    let subject = write(&path);
    let source = Source::open(&path).unwrap();
    let listed = source.referrers(&subject, None).unwrap();
    // As other tools have it: only the index of referrers is in the layout's index, under a name made of the digest.
    let index: Index = serde_json::from_value(serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": listed,
    }))
    .unwrap();
    let index = Document::new(MediaType::OCI_INDEX, index).unwrap();
    std::fs::write(
        path.join("blobs/sha256").join(index.digest().hex()),
        index.bytes(),
    )
    .unwrap();
    let layout = std::fs::read(path.join("index.json")).unwrap();
    let mut layout: serde_json::Value = serde_json::from_slice(&layout).unwrap();
    let manifests = layout["manifests"].as_array_mut().unwrap();
    manifests.retain(|one| one["artifactType"].is_null());
    let mut descriptor = index.descriptor().clone();
    descriptor.annotations.insert(
        Descriptor::REF_NAME.to_owned(),
        format!("sha256-{}", subject.hex()),
    );
    manifests.push(serde_json::to_value(descriptor).unwrap());
    std::fs::write(path.join("index.json"), layout.to_string()).unwrap();
    let source = Source::open(&path).unwrap();
    assert_eq!(source.referrers(&subject, None).unwrap(), listed);
    assert_eq!(*open(&path).unwrap().manifest().digest(), subject);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let arena = Arena::new();
    let mut layout = LayoutWriter::open(arena.root().join("layout")).unwrap();
    for bad in ["", "sbom", "/x", "text/"] {
        let error = layout
            .artifact(None, ArtifactBuilder::new(bad))
            .unwrap_err();
        assert!(matches!(error, Error::BadValue { .. }), "{error}");
    }
    let absent = Descriptor::of("text/plain", b"not there");
    let error = layout
        .artifact(None, ArtifactBuilder::new(SBOM).blob(absent))
        .unwrap_err();
    assert!(matches!(error, Error::MissingBlob { .. }), "{error}");
}
