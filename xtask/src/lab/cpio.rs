//! Archives that the kernel unpacks as its first file system.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// How many initramfs images are kept in the cache; each is a few MiB.
const KEPT: usize = 4;

/// An entry of the archive, with its path and mode as cpio wants them.
struct Entry {
    path: String,
    mode: u32,
    data: Vec<u8>,
}

/// A file tree that becomes a cpio archive of the "newc" kind, the one that the kernel unpacks.
#[derive(Default)]
pub(crate) struct Archive {
    entries: Vec<Entry>,
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.entries.push(Entry {
            path: path.to_owned(),
            mode: 0o040_755,
            data: Vec::new(),
        });
    }

    pub(crate) fn file(&mut self, path: &str, data: Vec<u8>) {
        self.entries.push(Entry {
            path: path.to_owned(),
            mode: 0o100_644,
            data,
        });
    }

    pub(crate) fn program(&mut self, path: &str, data: Vec<u8>) {
        self.file(path, data);
        if let Some(entry) = self.entries.last_mut() {
            entry.mode |= 0o111;
        }
    }

    /// The archive as the kernel reads it. See cpio(5), "new ASCII format".
    fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let trailer = Entry {
            path: "TRAILER!!!".to_owned(),
            mode: 0,
            data: Vec::new(),
        };
        for (index, entry) in self.entries.iter().chain([&trailer]).enumerate() {
            let size = u32::try_from(entry.data.len()).context("a file is too big for cpio")?;
            // Inode, mode, uid, gid, links, mtime, size, major and minor of the file system and
            // of the device, length of the name with its NUL, checksum. No times: the same
            // content must give the same archive.
            let fields = [
                u32::try_from(index)? + 1,
                entry.mode,
                0,
                0,
                1,
                0,
                size,
                0,
                0,
                0,
                0,
                u32::try_from(entry.path.len())? + 1,
                0,
            ];
            out.extend(b"070701");
            for field in fields {
                write!(out, "{field:08x}")?;
            }
            out.extend(entry.path.as_bytes());
            out.push(0);
            pad(&mut out);
            out.extend(&entry.data);
            pad(&mut out);
        }
        Ok(out)
    }

    /// The archive's file in `cache`, written if it is not there yet; its name tells its content.
    pub(crate) fn cached(&self, cache: &Path) -> Result<PathBuf> {
        let cpio = self.to_cpio()?;
        let mut name = "initramfs-".to_owned();
        for byte in Sha256::digest(&cpio).iter().take(16) {
            write!(name, "{byte:02x}")?;
        }
        let path = cache.join(name + ".cpio");
        if fs::metadata(&path).is_ok_and(|m| m.len() == cpio.len() as u64) {
            return Ok(path);
        }
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(cache)?;
            file.write_all(&cpio)?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        super::prune(cache, "initramfs-", KEPT);
        Ok(path)
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn archive(data: &str) -> Archive {
        let mut archive = Archive::default();
        archive.directory("dir");
        archive.file("dir/a file", data.as_bytes().to_vec());
        archive
    }

    #[test]
    fn busybox_unpacks_what_was_packed() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("busybox is needed: apt-get install busybox-static");
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all(&archive("content").to_cpio().unwrap())
            .unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success());
        let read = fs::read_to_string(dir.path().join("dir/a file")).unwrap();
        assert_eq!(read, "content");
    }

    #[test]
    fn the_cache_goes_by_content_and_keeps_few() {
        let dir = tempfile::tempdir().unwrap();
        let first = archive("1").cached(dir.path()).unwrap();
        assert_eq!(archive("1").cached(dir.path()).unwrap(), first);
        for n in 2..10 {
            let path = archive(&n.to_string()).cached(dir.path()).unwrap();
            assert_ne!(path, first);
            assert!(path.exists());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEPT);
        // A file cut short, by a full disk for instance, is not taken for the image.
        let path = archive("x").cached(dir.path()).unwrap();
        let whole = fs::metadata(&path).unwrap().len();
        fs::write(&path, "short").unwrap();
        archive("x").cached(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), whole);
    }
}
