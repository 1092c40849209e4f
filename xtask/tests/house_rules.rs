//! The rules that hold this workspace together, checked over its manifests and sources.
//!
//! Each rule is a function from what there is to the list of what is wrong; each is tried on a
//! bad sample too, since a rule that cannot fail holds nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};

fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .parent()
        .expect("xtask is in the workspace")
        .to_path_buf()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(workspace().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo reads the workspace")
}

fn folder(package: &Package) -> PathBuf {
    let dir = package
        .manifest_path
        .parent()
        .expect("a manifest is in a folder");
    dir.as_std_path()
        .strip_prefix(workspace())
        .unwrap_or(dir.as_std_path())
        .to_path_buf()
}

/// Published packages are the libraries; all others are programs and helpers.
fn is_library(package: &Package) -> bool {
    package
        .publish
        .as_ref()
        .is_none_or(|registries| !registries.is_empty())
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![dir.to_path_buf()];
    while let Some(dir) = next.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

// ---------------------------------------------------------------- libraries are independent

/// `(package, its dependencies of any kind)` of each library: none may be another library.
fn dependent(libraries: &[(String, Vec<String>)]) -> Vec<String> {
    let names: BTreeSet<&String> = libraries.iter().map(|(name, _)| name).collect();
    let mut wrong = Vec::new();
    for (name, dependencies) in libraries {
        for dependency in dependencies.iter().filter(|d| names.contains(d)) {
            wrong.push(format!("{name} depends on {dependency}"));
        }
    }
    wrong
}

#[test]
fn no_library_depends_on_another() {
    let libraries: Vec<_> = metadata()
        .packages
        .iter()
        .filter(|p| is_library(p))
        // Dependencies of all kinds: normal, for tests and for build scripts.
        .map(|p| {
            let dependencies = p.dependencies.iter().map(|d| d.name.clone()).collect();
            (p.name.to_string(), dependencies)
        })
        .collect();
    assert_eq!(
        libraries.len(),
        5,
        "there are five libraries: {libraries:?}"
    );
    assert_eq!(dependent(&libraries), [] as [String; 0]);
}

#[test]
fn a_dependency_between_libraries_would_be_found() {
    let sample = [
        ("a".to_owned(), vec!["serde".to_owned(), "b".to_owned()]),
        ("b".to_owned(), vec!["libc".to_owned()]),
    ];
    assert_eq!(dependent(&sample), ["a depends on b"]);
}

// ---------------------------------------------------------------- unsafe code has its place

/// The code of a Rust source: without comments, and with the contents of strings and characters
/// taken out, so that words are only found where they mean something.
fn code(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let starts = |at: usize, word: &str| {
        word.chars()
            .enumerate()
            .all(|(i, c)| bytes.get(at + i) == Some(&c))
    };
    while at < bytes.len() {
        let before = at.checked_sub(1).and_then(|i| bytes.get(i)).copied();
        let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        if starts(at, "//") {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            while at < bytes.len() {
                if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    at += 1;
                }
            }
            out.push(' ');
        } else if let Some(hashes) = raw_string(&bytes, at).filter(|_| !in_word) {
            let end: String = std::iter::once('"')
                .chain((0..hashes).map(|_| '#'))
                .collect();
            while bytes[at] != '"' {
                at += 1;
            }
            at += 1;
            while at < bytes.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
            out.push_str("\"\"");
        } else if bytes[at] == '"' {
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            out.push_str("\"\"");
        } else if bytes[at] == '\'' && is_char_literal(&bytes, at) {
            at += 1;
            while at < bytes.len() && bytes[at] != '\'' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            out.push_str("''");
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

/// The number of hashes of a raw string that starts here.
fn raw_string(bytes: &[char], at: usize) -> Option<usize> {
    let mut next = at;
    if matches!(bytes.get(next), Some('b' | 'c')) {
        next += 1;
    }
    if bytes.get(next) != Some(&'r') {
        return None;
    }
    let hashes = bytes[next + 1..].iter().take_while(|&&c| c == '#').count();
    (bytes.get(next + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Whether a quote starts a character and not a lifetime.
fn is_char_literal(bytes: &[char], at: usize) -> bool {
    bytes.get(at + 1) == Some(&'\\') || bytes.get(at + 2) == Some(&'\'')
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|w| !w.is_empty())
}

/// Whether a source file, by its path within a library, is where unsafe code may be: the module
/// `sys` of the library, or of what its tests share.
fn is_sys(path: &Path) -> bool {
    let of_tests = path.starts_with("tests") && path.components().count() == 3;
    path == Path::new("src/sys.rs")
        || path.starts_with("src/sys")
        || of_tests && path.ends_with("sys.rs")
}

/// Unsafe code outside `sys`, in files given with their paths within the library.
fn misplaced_unsafe(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, source) in files {
        if !is_sys(path) && words(&code(source)).any(|word| word == "unsafe") {
            wrong.push(format!(
                "{} has unsafe code outside a module sys",
                path.display()
            ));
        }
    }
    wrong
}

#[test]
fn unsafe_code_is_in_sys_only() {
    let mut wrong = Vec::new();
    for package in metadata().packages.iter().filter(|p| is_library(p)) {
        let root = workspace().join(folder(package));
        let mut files = Vec::new();
        for dir in ["src", "tests", "examples", "benches"] {
            for path in rust_files(&root.join(dir)) {
                let source = fs::read_to_string(&path).expect("sources are text");
                let within = path.strip_prefix(&root).expect("below the root");
                files.push((within.to_path_buf(), source));
            }
        }
        assert!(!files.is_empty(), "{} has no sources", package.name);
        let found = misplaced_unsafe(&files);
        wrong.extend(found.into_iter().map(|w| format!("{}: {w}", package.name)));
    }
    assert_eq!(wrong, [] as [String; 0]);
}

#[test]
fn unsafe_code_elsewhere_would_be_found() {
    let file = |path: &str, source: &str| (PathBuf::from(path), source.to_owned());
    let sample = [
        file("src/sys.rs", "unsafe { x() }"),
        file("src/sys/io.rs", "unsafe { x() }"),
        file("tests/common/sys.rs", "unsafe { x() }"),
        file("src/a.rs", "fn f() { let x = unsafe { g() }; }"),
        file("src/system.rs", "pub unsafe fn f() {}"),
        file("tests/t.rs", "unsafe impl Send for X {}"),
        file("tests/sys.rs", "unsafe { x() }"),
        file("examples/sys.rs", "unsafe { x() }"),
        file(
            "src/fine.rs",
            r##"// unsafe
            /* unsafe /* unsafe */ unsafe */
            #![deny(unsafe_code)]
            const A: &str = "unsafe \" unsafe"; const B: &str = r#"unsafe " unsafe"#;
            fn f<'a>(x: &'a str) -> char { '"' } // " unsafe
            "##,
        ),
    ];
    let found = misplaced_unsafe(&sample);
    let expected = [
        "src/a.rs",
        "src/system.rs",
        "tests/t.rs",
        "tests/sys.rs",
        "examples/sys.rs",
    ];
    assert_eq!(
        found,
        expected.map(|p| format!("{p} has unsafe code outside a module sys"))
    );
}

// ---------------------------------------------------------------- programs forbid unsafe code

/// Whether the root file of a crate forbids unsafe code.
fn forbids_unsafe(root: &str) -> bool {
    code(root)
        .split_whitespace()
        .collect::<String>()
        .contains("#![forbid(unsafe_code)]")
}

#[test]
fn programs_forbid_unsafe_code() {
    let mut wrong = Vec::new();
    let mut programs = 0;
    for package in &metadata().packages {
        let dir = folder(package);
        if !dir.starts_with("examples") && dir != Path::new("xtask") {
            continue;
        }
        for target in &package.targets {
            if !target
                .kind
                .iter()
                .any(|k| matches!(k, TargetKind::Bin | TargetKind::Lib))
            {
                continue;
            }
            programs += 1;
            if !forbids_unsafe(&fs::read_to_string(&target.src_path).expect("sources are text")) {
                wrong.push(format!("{} does not forbid unsafe code", target.src_path));
            }
        }
    }
    assert!(programs >= 4, "only {programs} programs were found");
    assert_eq!(wrong, [] as [String; 0]);
}

#[test]
fn a_program_that_does_not_forbid_it_would_be_found() {
    assert!(forbids_unsafe(
        "//! A program.\n#![forbid( unsafe_code )]\nfn main() {}"
    ));
    assert!(!forbids_unsafe("//! #![forbid(unsafe_code)]\nfn main() {}"));
    assert!(!forbids_unsafe("#![deny(unsafe_code)]\nfn main() {}"));
}

// ---------------------------------------------------------------- names

/// `(package, folder, whether it is published)`: programs have their folder's name, libraries
/// the project's name before it.
fn misnamed(packages: &[(String, PathBuf, bool)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, folder, published) in packages {
        let base = folder.file_name().unwrap_or_default().to_string_lossy();
        let expected = if *published {
            format!("cofferdam-{base}")
        } else {
            base.to_string()
        };
        if *name != expected {
            wrong.push(format!("{} holds {name}, not {expected}", folder.display()));
        }
    }
    wrong
}

#[test]
fn packages_are_named_after_their_folders() {
    let packages: Vec<_> = metadata()
        .packages
        .iter()
        .map(|p| (p.name.to_string(), folder(p), is_library(p)))
        .collect();
    assert_eq!(misnamed(&packages), [] as [String; 0]);
}

#[test]
fn a_package_with_another_name_would_be_found() {
    let package = |name: &str, folder: &str, published| (name.to_owned(), folder.into(), published);
    let sample = [
        package("vmm", "examples/vmm", false),
        package("cofferdam-vmm", "examples/vmm", false),
        package("cofferdam-cgroups", "cgroups", true),
        package("cgroups", "cgroups", true),
    ];
    assert_eq!(
        misnamed(&sample),
        [
            "examples/vmm holds cofferdam-vmm, not vmm",
            "cgroups holds cgroups, not cofferdam-cgroups"
        ]
    );
}

// ---------------------------------------------------------------- what each library has

/// What a library's folder lacks.
fn lacking(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in ["README.md", "CHANGELOG.md", "src/lib.rs"] {
        if fs::metadata(root.join(file)).is_ok_and(|m| m.is_file() && m.len() > 0) {
            continue;
        }
        wrong.push(format!("{file} is missing or empty"));
    }
    for dir in ["examples", "tests"] {
        if rust_files(&root.join(dir)).is_empty() {
            wrong.push(format!("{dir}/ has no Rust file"));
        }
    }
    let lib = fs::read_to_string(root.join("src/lib.rs")).unwrap_or_default();
    if !lib.contains("#![doc = include_str!(\"../README.md\")]") {
        wrong.push("src/lib.rs does not include README.md as its docs".to_owned());
    }
    wrong
}

#[test]
fn every_library_has_its_readme_changelog_examples_and_tests() {
    let mut wrong = Vec::new();
    for package in metadata().packages.iter().filter(|p| is_library(p)) {
        let found = lacking(&workspace().join(folder(package)));
        wrong.extend(found.into_iter().map(|w| format!("{}: {w}", package.name)));
    }
    assert_eq!(wrong, [] as [String; 0]);
}

#[test]
fn a_library_without_them_would_be_found() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert_eq!(lacking(dir.path()).len(), 6);
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
    };
    put("README.md", "# x");
    put("CHANGELOG.md", "");
    put("src/lib.rs", "#![doc = include_str!(\"../README.md\")]");
    put("tests/t.rs", "");
    assert_eq!(
        lacking(dir.path()),
        [
            "CHANGELOG.md is missing or empty",
            "examples/ has no Rust file"
        ]
    );
}

// ---------------------------------------------------------------- versions stand in one place

/// Lines of a member's manifest that give a version or a path to a dependency, instead of taking
/// it from the workspace.
fn own_versions(manifest: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut in_dependencies = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            in_dependencies = section
                .split('.')
                .any(|part| part.ends_with("dependencies"));
            // [dependencies.name] on several lines would hide a version from this check.
            let last = section.rsplit('.').next().unwrap_or_default();
            if in_dependencies && !last.ends_with("dependencies") {
                wrong.push(format!(
                    "{line} is a table of its own; write it on one line"
                ));
            }
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let is_own_version = !in_dependencies
            && ["version", "edition", "rust-version", "license"]
                .iter()
                .any(|key| line.starts_with(&format!("{key} =")));
        if is_own_version || in_dependencies && !line.contains("workspace = true") {
            wrong.push(line.to_owned());
        }
    }
    wrong
}

#[test]
fn versions_stand_in_the_root_manifest_only() {
    let mut wrong = Vec::new();
    for package in &metadata().packages {
        let manifest = fs::read_to_string(&package.manifest_path).expect("manifests are text");
        let found = own_versions(&manifest);
        wrong.extend(
            found
                .into_iter()
                .map(|line| format!("{}: {line}", package.name)),
        );
        for inherited in ["version", "edition", "rust-version", "license"] {
            if !manifest.contains(&format!("\n{inherited}.workspace = true")) {
                wrong.push(format!(
                    "{}: {inherited} is not the workspace's",
                    package.name
                ));
            }
        }
        if !manifest.contains("\n[lints]\nworkspace = true") {
            wrong.push(format!("{}: lints are not the workspace's", package.name));
        }
    }
    assert_eq!(wrong, [] as [String; 0]);
}

#[test]
fn a_version_in_a_member_would_be_found() {
    let sample = r#"
[package]
name = "x"
version = "0.1.0"
edition.workspace = true

[dependencies]
# comment
a.workspace = true
b = { workspace = true, features = ["x"] }
c = "1"
d = { path = "../d" }

[dev-dependencies]
e = { version = "2" }

[target.'cfg(unix)'.dependencies]
f = "3"

[dependencies.g]
workspace = true
"#;
    assert_eq!(
        own_versions(sample),
        [
            "version = \"0.1.0\"",
            "c = \"1\"",
            "d = { path = \"../d\" }",
            "e = { version = \"2\" }",
            "f = \"3\"",
            "[dependencies.g] is a table of its own; write it on one line",
        ]
    );
}
