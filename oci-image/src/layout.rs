//! The OCI image layout: `oci-layout`, `index.json` and `blobs/`, in a directory or in a tar file.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::archive::Archive;
use crate::blob::open_regular;
use crate::document::{Document, parse_layout_index};
use crate::error::{Error, Result, excerpt};
use crate::limits::{Limits, check_bytes};
use crate::manifest::Index;

pub(crate) const MARKER: &str = "oci-layout";
pub(crate) const INDEX: &str = "index.json";
pub(crate) const VERSION: &str = "1.0.0";

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// The index of the layout in the directory `path`.
pub(crate) fn read_directory(path: &Path, limits: &Limits) -> Result<Document<Index>> {
    let read = |name: &str| -> Result<Option<Vec<u8>>> {
        let path = path.join(name);
        let mut section = match open_regular(&path) {
            Ok(section) => section,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let found = section.len();
        check_bytes("a document", found, limits.document_bytes, "document_bytes")?;
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Io {
                operation: "read",
                path,
                source,
            })?;
        Ok(Some(bytes))
    };
    parse(path, read(MARKER)?.as_deref(), read(INDEX)?)
}

/// The index of the layout in `archive`.
pub(crate) fn read_archive(archive: &Archive, limits: &Limits) -> Result<Document<Index>> {
    let marker = archive.read(MARKER, limits.document_bytes)?;
    let index = archive.read(INDEX, limits.document_bytes)?;
    parse(archive.path(), marker.as_deref(), index)
}

fn parse(path: &Path, marker: Option<&[u8]>, index: Option<Vec<u8>>) -> Result<Document<Index>> {
    let not = |reason| Error::NotAnImage {
        path: path.to_owned(),
        reason,
    };
    let marker = marker.ok_or_else(|| not("it has no file `oci-layout`"))?;
    let marker: Marker = serde_json::from_slice(marker).map_err(|source| Error::Json {
        document: "oci-layout".to_owned(),
        source,
    })?;
    if !marker.version.starts_with("1.") {
        return Err(Error::BadField {
            document: "oci-layout".to_owned(),
            field: "imageLayoutVersion",
            found: excerpt(&marker.version),
            expected: "1.0.0",
        });
    }
    parse_layout_index(index.ok_or_else(|| not("it has no file `index.json`"))?)
}
