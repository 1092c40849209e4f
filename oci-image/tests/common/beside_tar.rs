//! Unpacking beside GNU tar, and everything that can be known of the result.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use oci_image::{Error, Limits, Skipped, UnpackOptions, Unpacker, Whiteouts};

/// All extended attributes.
pub const XATTRS: &[&str] = &["--xattrs", "--xattrs-include=*"];

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (
                String::from_utf8_lossy(name).into_owned(),
                value[..n].to_vec(),
            )
        })
        .collect()
}

/// The time of a directory that was changed during the test.
pub const NEW: &str = "new";

/// Everything that can be known of a tree, by name.
pub fn facts(root: &Path) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let contents = if stat.is_file() {
            oci_image::Digest::sha256(&fs::read(&path).unwrap()).to_string()
        } else if stat.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            stat.rdev().to_string()
        };
        if stat.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            names.sort();
            todo.extend(names.into_iter().rev());
        }
        let links = if stat.is_dir() {
            String::new()
        } else {
            inodes
                .entry(stat.ino())
                .or_insert_with(|| name.clone())
                .clone()
        };
        let attributes: Vec<String> = xattrs(&path)
            .into_iter()
            .map(|(name, value)| format!("{name}={value:x?}"))
            .collect();
        // A directory that no entry speaks of is of the moment when it was made.
        let is_new = stat.is_dir()
            && (stat.modified().unwrap().elapsed()).is_ok_and(|age| age < Duration::from_hours(1));
        let modified = if is_new {
            NEW.to_owned()
        } else {
            format!("{}.{:09}", stat.mtime(), stat.mtime_nsec())
        };
        let fact = format!(
            "{:o} {}:{} {modified} {contents} {links} {attributes:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
        );
        facts.insert(name, fact);
    }
    facts
}

/// Unpacks as we do it into a new directory, and tells what was left out.
pub fn ours(archive: &Path, dir: &Path) -> Result<Vec<Skipped>, Error> {
    fs::create_dir(dir).unwrap();
    Unpacker::new(UnpackOptions::new(Whiteouts::Apply), Limits::default())
        .unpack(
            std::io::BufReader::new(File::open(archive).unwrap()),
            File::open(dir).unwrap(),
        )
        .map(|report| report.skipped)
}

/// Unpacks as GNU tar does it into a new directory, with these kinds of attributes.
pub fn theirs(archive: &Path, dir: &Path, attributes: &[&str]) -> Output {
    fs::create_dir(dir).unwrap();
    Command::new("tar")
        .args(["--numeric-owner", "-p"])
        .args(attributes)
        .arg("-C")
        .arg(dir)
        .arg("-xf")
        .arg(archive)
        .env("LC_ALL", "C")
        .output()
        .unwrap()
}
