//! Where things are: the workspace and what the commands write below its target directory.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the workspace that this program was built from.
pub(crate) fn workspace() -> PathBuf {
    // Cargo says it at run time; a binary started by hand knows where it was built.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The target directory that cargo uses for the workspace.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// The cargo that runs this program, or the one in `PATH`.
pub(crate) fn cargo() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
