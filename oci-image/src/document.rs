//! JSON documents that keep the bytes they were read from.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Index, Manifest};
use crate::media_type::{MediaType, Role};

/// A parsed document together with the bytes from which it was parsed.
///
/// The digest is that of the bytes, so it never changes by parsing and writing again.
#[derive(Clone, PartialEq)]
pub struct Document<T> {
    descriptor: Descriptor,
    bytes: Vec<u8>,
    parsed: T,
}

impl<T> Document<T> {
    /// The bytes, exactly as they were read.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.descriptor.digest
    }

    /// Media type, digest and size.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl<T: Serialize> Document<T> {
    /// A document made from a value; its bytes are the value's compact JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] when the value has no JSON form.
    pub fn new(media_type: impl Into<MediaType>, value: T) -> Result<Document<T>> {
        let bytes = serde_json::to_vec(&value).map_err(|source| Error::Json {
            document: "the value".to_owned(),
            source,
        })?;
        Ok(Document {
            descriptor: Descriptor::of(media_type, &bytes),
            bytes,
            parsed: value,
        })
    }
}

impl<T: DeserializeOwned> Document<T> {
    /// Parses `bytes`, which must already have been compared with the descriptor.
    pub(crate) fn parse(descriptor: Descriptor, bytes: Vec<u8>) -> Result<Document<T>> {
        let parsed = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            document: format!("{} {}", descriptor.media_type, descriptor.digest),
            source,
        })?;
        Ok(Document {
            descriptor,
            bytes,
            parsed,
        })
    }
}

impl<T> Deref for Document<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.parsed
    }
}

impl<T: fmt::Debug> fmt::Debug for Document<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("digest", &self.descriptor.digest)
            .field("parsed", &self.parsed)
            .finish_non_exhaustive()
    }
}

/// A manifest or an index.
#[derive(Clone, Debug)]
pub(crate) enum ManifestOrIndex {
    Manifest(Box<Document<Manifest>>),
    Index(Box<Document<Index>>),
}

impl ManifestOrIndex {
    /// Parses a document by its descriptor's media type, and by nothing else (CVE-2021-41190).
    pub(crate) fn parse(descriptor: Descriptor, bytes: Vec<u8>) -> Result<ManifestOrIndex> {
        check_unambiguous(&descriptor, &bytes)?;
        match descriptor.media_type.role() {
            Role::Manifest => {
                let document = Document::<Manifest>::parse(descriptor, bytes)?;
                check(
                    &document.descriptor,
                    document.schema_version,
                    document.media_type.as_ref(),
                )?;
                Ok(ManifestOrIndex::Manifest(Box::new(document)))
            }
            Role::Index => {
                let document = Document::<Index>::parse(descriptor, bytes)?;
                check(
                    &document.descriptor,
                    document.schema_version,
                    document.media_type.as_ref(),
                )?;
                Ok(ManifestOrIndex::Index(Box::new(document)))
            }
            _ => Err(Error::UnsupportedMediaType {
                digest: descriptor.digest,
                found: descriptor.media_type,
                expected: "an image manifest or an image index",
            }),
        }
    }
}

/// Parses the `index.json` of a layout, to which no descriptor leads.
pub(crate) fn parse_layout_index(bytes: Vec<u8>) -> Result<Document<Index>> {
    let descriptor = Descriptor::of(MediaType::OCI_INDEX, &bytes);
    check_unambiguous(&descriptor, &bytes)?;
    let document = Document::<Index>::parse(descriptor, bytes)?;
    check(
        &document.descriptor,
        document.schema_version,
        document.media_type.as_ref(),
    )?;
    Ok(document)
}

fn check(descriptor: &Descriptor, schema_version: u32, said: Option<&MediaType>) -> Result<()> {
    if schema_version != 2 {
        return Err(Error::BadField {
            document: format!("manifest {}", descriptor.digest),
            field: "schemaVersion",
            found: schema_version.to_string(),
            expected: "2; pull the image again with a current tool",
        });
    }
    match said {
        Some(said) if *said != descriptor.media_type => Err(Error::MediaTypeMismatch {
            digest: descriptor.digest.clone(),
            expected: descriptor.media_type.clone(),
            found: said.clone(),
        }),
        _ => Ok(()),
    }
}

/// Refuses a document that one reader could take for a manifest and another for an index.
fn check_unambiguous(descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
    let Keys(keys) = serde_json::from_slice(bytes).map_err(|source| Error::Json {
        document: format!("{} {}", descriptor.media_type, descriptor.digest),
        source,
    })?;
    let first = |names: [&'static str; 3]| names.into_iter().find(|name| keys.contains(*name));
    let manifest = first(["config", "layers", "fslayers"]);
    let index = first(["manifests"; 3]);
    match (manifest, index) {
        (Some(first), Some(second)) => Err(Error::AmbiguousDocument {
            digest: descriptor.digest.clone(),
            first,
            second,
        }),
        _ => Ok(()),
    }
}

/// The keys of an object in lower case: Go's decoder, which most tools use, does not tell cases apart.
struct Keys(BTreeSet<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    let lower = key.to_lowercase();
                    if keys.contains(&lower) {
                        return Err(serde::de::Error::custom(format_args!(
                            "the key {key:?} is there twice"
                        )));
                    }
                    keys.insert(lower);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(KeysVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(media_type: &str, json: &str) -> Result<ManifestOrIndex> {
        ManifestOrIndex::parse(
            Descriptor::of(media_type, json.as_bytes()),
            json.as_bytes().to_vec(),
        )
    }

    const CONFIG: &str = r#""config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;

    #[test]
    fn refuses_a_document_that_is_both() {
        for json in [
            format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[],"manifests":[]}}"#),
            format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[],"Manifests":[]}}"#),
            r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned(),
        ] {
            for media_type in [MediaType::OCI_MANIFEST, MediaType::OCI_INDEX] {
                assert!(
                    matches!(
                        parse(media_type, &json),
                        Err(Error::AmbiguousDocument { .. })
                    ),
                    "{json}"
                );
            }
        }
    }

    #[test]
    fn refuses_another_media_type_than_described() {
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}",{CONFIG},"layers":[]}}"#,
            MediaType::DOCKER_MANIFEST
        );
        assert!(matches!(
            parse(MediaType::OCI_MANIFEST, &json),
            Err(Error::MediaTypeMismatch { .. })
        ));
        assert!(parse(MediaType::DOCKER_MANIFEST, &json).is_ok());
        assert!(matches!(
            parse("text/plain", &json),
            Err(Error::UnsupportedMediaType { .. })
        ));
    }

    #[test]
    fn refuses_keys_that_are_there_twice() {
        let json = format!(r#"{{"schemaVersion":2,{CONFIG},"layers":[],"Layers":[]}}"#);
        assert!(matches!(
            parse(MediaType::OCI_MANIFEST, &json),
            Err(Error::Json { .. })
        ));
    }

    #[test]
    fn keeps_bytes_and_unknown_fields() {
        let json = format!(r#"{{ "schemaVersion":2,  {CONFIG},"layers":null,"x-new":[1] }}"#);
        let ManifestOrIndex::Manifest(document) = parse(MediaType::OCI_MANIFEST, &json).unwrap()
        else {
            panic!("a manifest was parsed as an index");
        };
        assert_eq!(document.bytes(), json.as_bytes());
        assert_eq!(*document.digest(), Digest::sha256(json.as_bytes()));
        assert_eq!(document.other["x-new"][0], 1);
    }
}
