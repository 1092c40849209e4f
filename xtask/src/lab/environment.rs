//! What a command in the lab finds in its environment.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Variables that mean the same in the lab. All others describe the caller's session.
const KEPT_VARIABLES: [&str; 10] = [
    "CARGO_HOME",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "CI",
    "COLORTERM",
    "LANG",
    "NO_COLOR",
    "PATH",
    "TERM",
    "TZ",
];
const KEPT_PREFIXES: [&str; 5] = ["CARGO_TERM_", "LC_", "PROPTEST_", "RUST_", "RUSTUP_"];

/// The environment of a command in the lab: root's, with what the caller set for the tools that
/// we know.
pub(super) fn of(caller: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut result: Vec<(OsString, OsString)> = Vec::new();
    let mut path = OsString::new();
    let mut home = OsString::from("/root");
    for (name, value) in caller {
        let Some(text) = name.to_str() else { continue };
        if text == "PATH" {
            path.clone_from(&value);
        } else if text == "HOME" {
            home.clone_from(&value);
        } else if KEPT_VARIABLES.contains(&text)
            || KEPT_PREFIXES.iter().any(|p| text.starts_with(p))
        {
            result.push((name, value));
        }
    }
    let home = Path::new(&home);
    // The lab's root has another home than the caller, whose cargo and rustup these are.
    for (name, dir) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
        if home.join(dir).is_dir() && !result.iter().any(|(n, _)| n == name) {
            result.push((name.into(), home.join(dir).into()));
        }
    }
    let mut dirs: Vec<PathBuf> = env::split_paths(&path)
        .filter(|d| d.is_absolute())
        .collect();
    let cargo = home.join(".cargo/bin");
    let system = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    for dir in system.map(PathBuf::from).into_iter().chain([cargo]) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    // Cannot fail: the parts come from a split.
    result.push(("PATH".into(), env::join_paths(dirs).unwrap_or(path)));
    for (name, value) in [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")] {
        result.push((name.into(), value.into()));
    }
    result.push(("SHELL".into(), "/bin/bash".into()));
    result.push(("COFFERDAM_LAB".into(), "1".into()));
    result
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_environment_is_roots_with_the_callers_tools() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".cargo")).unwrap();
        let caller = [
            ("PATH", OsString::from("/opt/bin:relative:/usr/bin")),
            ("HOME", dir.path().into()),
            ("SECRET_TOKEN", "x".into()),
            ("CARGO_MANIFEST_DIR", "/x".into()),
            ("PROPTEST_CASES", "7".into()),
        ];
        let result = of(caller.map(|(k, v)| (k.into(), v)).into_iter());
        let get = |name: &str| {
            let found = result.iter().find(|(n, _)| n == name);
            found.map(|(_, v)| v.to_str().unwrap())
        };
        assert_eq!(get("SECRET_TOKEN"), None);
        assert_eq!(get("CARGO_MANIFEST_DIR"), None);
        assert_eq!(get("PROPTEST_CASES"), Some("7"));
        assert_eq!(get("HOME"), Some("/root"));
        assert_eq!(
            get("CARGO_HOME").map(Path::new),
            Some(&*dir.path().join(".cargo"))
        );
        let path = get("PATH").unwrap();
        assert!(path.starts_with("/opt/bin:/usr/bin:"), "{path}");
        assert!(
            path.contains("/usr/sbin") && path.ends_with("/.cargo/bin"),
            "{path}"
        );
        assert!(!path.contains("relative"));
    }
}
