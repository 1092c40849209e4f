//! Reading `config.json`: types, version, and properties that nobody knows.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::error::Category;

use crate::config::{Config, Process, Resources};
use crate::{refuse, warn};

/// No engine writes more than a few hundred KiB.
const LARGEST: u64 = 16 << 20;

/// Reads the configuration of a bundle, and refuses what cannot be honoured. Its text, too.
pub(crate) fn load(bundle: &Path) -> Result<(String, Config)> {
    let path = bundle.join("config.json");
    let text = read(&path)?;
    let (config, unknown) = parse(&text).with_context(|| path.display().to_string())?;
    for property in unknown {
        warn(&format!(
            "{}: {property}: unknown property, ignored",
            path.display()
        ));
    }
    Ok((text, config))
}

/// Reads a configuration that has been read before.
pub(crate) fn again(path: &Path) -> Result<Config> {
    let (config, _) = parse(&read(path)?).with_context(|| path.display().to_string())?;
    Ok(config)
}

/// A process by itself, as `exec` is given one.
pub(crate) fn process(text: &str) -> Result<Process> {
    let (process, unknown) = understand::<Process>(text)?;
    if let Some(path) = unknown.first() {
        bail!("{path}: unknown property; remove it, or correct its name");
    }
    refuse::in_process(&process)?;
    Ok(process)
}

/// Limits by themselves, as `update` is given them.
pub(crate) fn resources(text: &str) -> Result<Resources> {
    let (resources, unknown) = understand::<Resources>(text)?;
    if let Some(path) = unknown.first() {
        bail!("{path}: unknown property; remove it, or correct its name");
    }
    Ok(resources)
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    // A FIFO in its place would be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let read = rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .map(File::from)
        .and_then(|file| {
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            file.take(LARGEST + 1).read_to_string(&mut text)
        });
    read.with_context(|| {
        format!(
            "cannot read {}; name the bundle with --bundle, or make the file with `cofferdam-runtime spec`",
            path.display()
        )
    })?;
    if text.len() as u64 > LARGEST {
        bail!(
            "{} is larger than 16 MiB; is it a config.json?",
            path.display()
        );
    }
    Ok(text)
}

/// The configuration, and unknown properties at its top, which are to be ignored.
pub(crate) fn parse(text: &str) -> Result<(Config, Vec<String>)> {
    let (config, unknown) = understand::<Config>(text)?;
    version(config.oci_version.as_deref())?;
    // Deeper down a property changes what its neighbours mean, so that going on without it may run
    // something else than was asked for.
    if let Some(path) = unknown.iter().find(|path| path.contains(['.', '['])) {
        bail!("{path}: unknown property; remove it, or correct its name");
    }
    refuse::what_cannot_be_honoured(&config)?;
    Ok((config, unknown))
}

/// The value, and where there are unknown properties in it.
fn understand<T: for<'de> Deserialize<'de>>(text: &str) -> Result<(T, Vec<String>)> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let parsed = {
        let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
        let mut note = |path: serde_ignored::Path<'_>| unknown.push(written(&path));
        T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note))
    };
    match parsed.and_then(|value| json.end().map(|()| value)) {
        Ok(value) => Ok((value, unknown)),
        // Where the text is no JSON at all, line and column tell more than a path.
        Err(error) if error.classify() != Category::Data => bail!("{error}"),
        Err(error) => match track.path().to_string() {
            top if top == "." => bail!("{error}"),
            path => bail!("{path}: {error}"),
        },
    }
}

/// A path as `process.args[0]`.
fn written(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", written(parent)),
        Path::Map { parent, key } => match written(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => written(parent),
    }
}

fn version(version: Option<&str>) -> Result<()> {
    let Some(version) = version else {
        bail!("ociVersion: missing; write the version of the runtime-spec, such as \"1.2.1\"");
    };
    let number = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Option<Vec<u64>> = number.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([1, 0..=3, _]) => Ok(()),
        Some([1, _, _]) => {
            warn(&format!(
                "ociVersion: {version} is newer than this runtime, which knows 1.3"
            ));
            Ok(())
        }
        Some([_, _, _]) => bail!("ociVersion: {version} is not supported; this runtime knows 1.x"),
        _ => bail!("ociVersion: \"{version}\" is not a version such as \"1.2.1\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn errors_of_type_tell_where() {
        let message = error(r#"{"ociVersion": "1.0.2", "process": {"args": ["a", 5]}}"#);
        assert!(message.starts_with("process.args[1]: "), "{message}");
        let message =
            error(r#"{"ociVersion": "1.0.2", "linux": {"resources": {"pids": {"limit": "1"}}}}"#);
        assert!(
            message.starts_with("linux.resources.pids.limit: "),
            "{message}"
        );
        let message = error(r#"{"ociVersion": "1.0.2", "process": {"user": {"uid": -1}}}"#);
        assert!(message.starts_with("process.user.uid: "), "{message}");
        for text in [
            "{",
            r#"{"ociVersion": "1.0.2","#,
            r#"{"process": {"args": [1 2]}}"#,
        ] {
            assert!(!error(text).contains('?'), "{}", error(text));
        }
        assert!(error("{").contains("line 1"));
        assert!(
            error("[]").contains("expected an object"),
            "{}",
            error("[]")
        );
        let message = error(r#"{"ociVersion": "1.0.2", "process": {"user": [0, 0]}}"#);
        assert!(message.starts_with("process.user: "), "{message}");
        assert!(error(r#"{"ociVersion": "1.0.2"} x"#).contains("trailing"));
    }

    #[test]
    fn unknown_properties_are_told_at_the_top_and_refused_below() {
        let (_, unknown) =
            parse(r#"{"ociVersion": "1.0.2", "x-mine": {"a": 1}, "annotations": {"b": "c"}}"#)
                .unwrap();
        assert_eq!(unknown, ["x-mine"]);
        let message =
            error(r#"{"ociVersion": "1.0.2", "mounts": [{"destination": "/", "opts": []}]}"#);
        assert!(message.starts_with("mounts[0].opts: "), "{message}");
        let message =
            error(r#"{"ociVersion": "1.0.2", "linux": {"resources": {"cpu": {"share": 1}}}}"#);
        assert!(
            message.starts_with("linux.resources.cpu.share: "),
            "{message}"
        );
    }

    #[test]
    fn what_must_be_there_is_missed() {
        for (linux, place) in [
            (
                r#""uidMappings": [{"containerID": 0, "size": 1}]"#,
                "uidMappings[0]",
            ),
            (r#""namespaces": [{}]"#, "namespaces[0]"),
            (r#""seccomp": {}"#, "seccomp"),
            (
                r#""resources": {"hugepageLimits": [{"pageSize": "2MB"}]}"#,
                "resources.hugepageLimits[0]",
            ),
        ] {
            let message = error(&format!(
                r#"{{"ociVersion": "1.3.0", "linux": {{{linux}}}}}"#
            ));
            let expected = format!("linux.{place}: missing field ");
            assert!(message.starts_with(&expected), "{message}");
        }
    }

    #[test]
    fn the_version_is_checked() {
        for good in ["1.0.0", "1.0.2-dev", "1.2.1", "1.3.0+x", "1.9.0"] {
            assert!(version(Some(good)).is_ok(), "{good}");
        }
        for bad in ["2.0.0", "0.9.0", "1", "1.0", "", "one.two.three", "1.0.0.0"] {
            assert!(version(Some(bad)).is_err(), "{bad}");
        }
        assert!(error("{}").starts_with("ociVersion: missing"));
    }

    #[test]
    fn null_is_the_same_as_nothing() {
        assert!(
            parse(r#"{"ociVersion": "1.0.2", "linux": {"seccomp": null, "devices": null, "resources": null, "maskedPaths": null}, "mounts": null, "hooks": {}}"#)
                .is_ok()
        );
    }
}
