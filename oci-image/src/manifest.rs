//! Manifests and indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::{Descriptor, null_as_default};
use crate::error::{Error, Result};
use crate::media_type::{MediaType, Role};
use crate::platform::Platform;

/// One image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What the document says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The type of artifact, for content that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration blob.
    pub config: Descriptor,
    /// The layer blobs, lowest first.
    #[serde(deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest to which this one refers, such as the image that a signature signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// A list of manifests, such as one image for several platforms, or all images of a layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What the document says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// The type of artifact, for content that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest to which this one refers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes by key.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Index {
    /// The entry that fits `platform` best.
    ///
    /// # Errors
    ///
    /// [`Error::NoPlatform`] when nothing fits.
    pub fn select(&self, platform: &Platform) -> Result<&Descriptor> {
        select(self.manifests.iter(), platform)
    }
}

/// The best of `candidates`: an entry without a platform is taken only when it is the only one.
pub(crate) fn select<'a>(
    candidates: impl Iterator<Item = &'a Descriptor> + Clone,
    platform: &Platform,
) -> Result<&'a Descriptor> {
    let images = candidates
        .filter(|candidate| matches!(candidate.media_type.role(), Role::Manifest | Role::Index));
    let mut best: Option<(u32, &Descriptor)> = None;
    for candidate in images.clone() {
        let Some(rank) = candidate
            .platform
            .as_ref()
            .and_then(|offered| platform.accepts(offered))
        else {
            continue;
        };
        // The first of equals wins, as in other tools.
        if best.is_none_or(|(best_rank, _)| rank < best_rank) {
            best = Some((rank, candidate));
        }
    }
    if let Some((_, found)) = best {
        return Ok(found);
    }
    let mut without = images
        .clone()
        .filter(|candidate| candidate.platform.is_none());
    if let (Some(only), None, 1) = (without.next(), without.next(), images.clone().count()) {
        return Ok(only);
    }
    Err(Error::NoPlatform {
        wanted: Box::new(platform.clone()),
        available: images
            .map(|candidate| {
                candidate
                    .platform
                    .as_ref()
                    .map_or_else(|| "an unnamed platform".to_owned(), Platform::to_string)
            })
            .collect(),
    })
}
