//! What `docker save` wrote before it wrote layouts: `manifest.json`, a configuration and `layer.tar` for each layer.
//!
//! Such an archive has no manifest in today's sense and no digests of its blobs. They are made here, so that the rest
//! of the crate sees one kind of image; the contents are verified by the configuration's `diff_ids`. The manifest is
//! OCI's, whose media types all tools find in a layout and in registries.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use serde::Deserialize;

use crate::archive::Archive;
use crate::blob::Section;
use crate::compression::Compression;
use crate::config::ImageConfig;
use crate::descriptor::{Descriptor, null_as_default};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::Manifest;
use crate::media_type::MediaType;

pub(crate) const MANIFEST: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Item {
    config: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    layers: Vec<String>,
}

/// The images in `archive`.
pub(crate) fn items(archive: &Archive, limits: &Limits) -> Result<Vec<Item>> {
    let bytes = archive
        .read(MANIFEST, limits.document_bytes)?
        .ok_or_else(|| Error::NotAnImage {
            path: archive.path().to_owned(),
            reason: "it has neither `index.json` nor `manifest.json`",
        })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        document: MANIFEST.to_owned(),
        source,
    })
}

/// Makes the manifest of `item`, and notes in `names` which member has which digest.
pub(crate) fn manifest(
    archive: &Archive,
    item: &Item,
    limits: &Limits,
    names: &mut HashMap<Digest, String>,
) -> Result<Document<Manifest>> {
    let config_bytes = archive
        .read(&item.config, limits.document_bytes)?
        .ok_or_else(|| missing(archive, &item.config))?;
    let config = Descriptor::of(MediaType::OCI_CONFIG, &config_bytes);
    check_name(&item.config, &config.digest)?;
    names.insert(config.digest.clone(), item.config.clone());
    let parsed = Document::<ImageConfig>::parse(config.clone(), config_bytes)?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != item.layers.len() {
        return Err(Error::LayerCount {
            layers: item.layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (name, diff_id) in item.layers.iter().zip(diff_ids) {
        let section = archive
            .member(name)?
            .ok_or_else(|| missing(archive, name))?;
        let layer = describe(section, diff_id)?;
        names.insert(layer.digest.clone(), name.clone());
        layers.push(layer);
    }
    Document::new(
        MediaType::OCI_MANIFEST,
        Manifest {
            schema_version: 2,
            media_type: Some(MediaType::new(MediaType::OCI_MANIFEST)),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: std::collections::BTreeMap::new(),
            other: serde_json::Map::new(),
        },
    )
}

/// An uncompressed layer has the digest that the configuration promises; it is checked when the layer is read. A
/// compressed one must be hashed now.
fn describe(section: Section, diff_id: &Digest) -> Result<Descriptor> {
    let path = section.path.clone();
    let failed = |source| Error::Io {
        operation: "read",
        path: path.clone(),
        source,
    };
    let size = section.len();
    let mut start = [0; 4];
    let n = section.clone().read(&mut start).map_err(failed)?;
    let media_type = match Compression::detect(&start[..n]) {
        Compression::None => {
            return Ok(Descriptor::new(MediaType::OCI_LAYER, diff_id.clone(), size));
        }
        Compression::Gzip => MediaType::OCI_LAYER_GZIP,
        Compression::Zstd => MediaType::OCI_LAYER_ZSTD,
    };
    let mut section = section;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 128 << 10];
    loop {
        match section.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(Descriptor::new(media_type, hasher.finish(), size))
}

/// Docker names the configuration by its hash; then it must be right.
fn check_name(name: &str, found: &Digest) -> Result<()> {
    let stem = name.strip_suffix(".json").unwrap_or(name);
    let hex = stem.strip_prefix("blobs/sha256/").unwrap_or(stem);
    match format!("sha256:{hex}").parse::<Digest>() {
        Ok(expected) if expected != *found => Err(Error::DigestMismatch {
            what: "the image configuration",
            expected,
            found: found.clone(),
        }),
        _ => Ok(()),
    }
}

fn missing(archive: &Archive, name: &str) -> Error {
    Error::MissingMember {
        archive: archive.path().to_owned(),
        member: PathBuf::from(name),
    }
}
