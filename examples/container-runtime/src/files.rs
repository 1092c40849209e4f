//! Files that other programs read.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Writes a file so that nobody reads a part of it.
pub(crate) fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it has no name",
        ));
    };
    let mut part = OsString::from(".");
    part.push(name);
    part.push(format!(".{}", std::process::id()));
    let part = path.with_file_name(part);
    fs::write(&part, text)?;
    fs::rename(&part, path).inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}
