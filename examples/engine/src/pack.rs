//! `cofferdam pack`: from a directory to an image.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use oci_image::{ImageBuilder, LayoutWriter, PackOptions, Platform, walk};

use crate::cli::Pack;

/// Makes an image of a directory, and prints its digest.
pub(crate) fn pack(pack: &Pack) -> Result<ExitCode> {
    let (path, tag) = split(&pack.image);
    ensure!(
        !path.is_empty() && !tag.is_empty(),
        "`{}` names no image; write PATH or PATH:TAG",
        pack.image
    );
    let options = PackOptions::from_env()?.owner(0, 0);
    let mut image = ImageBuilder::new(&Platform::host());
    if let Some(seconds) = options.latest_time() {
        image = image.created(seconds);
    }
    for (name, value) in &pack.env {
        image = image.env(name, value);
    }
    if let Some(workdir) = &pack.workdir {
        image = image.working_dir(workdir);
    }
    if let Some(user) = &pack.user {
        image = image.user(user);
    }
    // Read the directory before the image is touched.
    let mut entries = walk(&pack.directory)?;
    let mut layout = LayoutWriter::open(path)?;
    let layer = layout.layer(&mut entries, &options)?;
    for socket in entries.sockets() {
        eprintln!(
            "cofferdam: left out, a socket is no file: {}",
            socket.display()
        );
    }
    let image = image
        .layer(layer, "cofferdam pack")
        .cmd(pack.command.iter().cloned());
    let manifest = layout.image(Some(tag), image)?;
    writeln!(io::stdout(), "{}", manifest.digest()).context("cannot print the image's digest")?;
    Ok(ExitCode::SUCCESS)
}

/// `PATH:TAG`; the tag has no slash, and is `latest` when it is left out.
fn split(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') && !Path::new(image).exists() => (path, tag),
        _ => (image, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_tag_is_what_follows_the_last_colon() {
        assert_eq!(split("./image"), ("./image", "latest"));
        assert_eq!(split("./image:v1"), ("./image", "v1"));
        assert_eq!(split("./a:b/image"), ("./a:b/image", "latest"));
        assert_eq!(split("./a:b/image:v1"), ("./a:b/image", "v1"));
    }
}
