//! `cofferdam-runtime spec`: a configuration to begin with.

use std::fs::File;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};

use crate::cli::Spec;

/// The version of the runtime-spec whose properties are known here.
pub(crate) const OCI_VERSION: &str = "1.3.0";

/// What is written: what runc writes, but without a terminal and ambient capabilities, and with a
/// cgroup namespace.
pub(crate) const DEFAULT: &str = include_str!("default.json");

/// Writes the default configuration into the bundle.
pub(crate) fn write(options: &Spec) -> Result<()> {
    let path = options.bundle.join("config.json");
    match File::create_new(&path).and_then(|mut file| file.write_all(DEFAULT.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
            "{} exists and is not overwritten; remove it first, or name another directory with --bundle",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_understood_whole() {
        let (config, unknown) = crate::load::parse(DEFAULT).unwrap();
        assert_eq!(unknown, [""; 0]);
        assert_eq!(config.oci_version.as_deref(), Some(OCI_VERSION));
    }
}
