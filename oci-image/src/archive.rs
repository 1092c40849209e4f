//! Random access to the members of a tar file: an index is made once, contents are read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::blob::{Section, open_regular};
use crate::compression::{Compression, Decoder};
use crate::error::{Error, Result};
use crate::limits::{Limits, check_bytes};
use crate::tar_reader::{TarKind, TarReader};

/// A tar file and where its members are.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// How many links lead at most from a name to a file.
const MAX_LINKS: usize = 16;

impl Archive {
    /// Indexes the tar file at `path`; a compressed one is inflated into an unnamed temporary file first, as it
    /// cannot be read in place.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Archive> {
        let mut section = open_regular(path)?;
        let mut start = [0; 4];
        let n = section.read(&mut start).map_err(|source| Error::Io {
            operation: "read",
            path: path.to_owned(),
            source,
        })?;
        section.position = 0;
        let (file, length) = match Compression::detect(&start[..n]) {
            Compression::None => {
                let length = section.len();
                (section.file, length)
            }
            _ => inflate(section, limits)?,
        };
        let members = index(path, &file, length, limits)?;
        Ok(Archive {
            path: path.to_owned(),
            file,
            members,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The contents of a regular member; links between members are followed. `None` when there is no such member.
    pub(crate) fn member(&self, name: &str) -> Result<Option<Section>> {
        let mut name = normalise(name);
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Member::File { offset, size }) => {
                    return Ok(Some(Section {
                        file: Arc::clone(&self.file),
                        position: *offset,
                        end: offset + size,
                        path: self.path.join(&name),
                    }));
                }
                Some(Member::Link(target)) => name.clone_from(target),
            }
        }
        Err(Error::Io {
            operation: "follow the links of",
            path: self.path.join(name),
            source: std::io::Error::from(rustix::io::Errno::LOOP),
        })
    }

    /// A whole member of at most `limit` bytes.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(mut section) = self.member(name)? else {
            return Ok(None);
        };
        let size = section.len();
        check_bytes("a document", size, limit, "document_bytes")?;
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Io {
                operation: "read",
                path: self.path.join(name),
                source,
            })?;
        if (bytes.len() as u64) < size {
            return Err(Error::Truncated {
                what: self.path.join(name).display().to_string(),
                expected: size,
                found: bytes.len() as u64,
            });
        }
        Ok(Some(bytes))
    }
}

fn index(
    path: &Path,
    file: &Arc<File>,
    length: u64,
    limits: &Limits,
) -> Result<HashMap<String, Member>> {
    let section = Section {
        file: Arc::clone(file),
        position: 0,
        end: length,
        path: path.to_owned(),
    };
    let mut reader = TarReader::new(BufReader::new(SeekableSection { section, length }), limits);
    let mut members = HashMap::new();
    let mut bytes = 0;
    while let Some(entry) = reader.next_entry_by_seeking()? {
        let Ok(name) = std::str::from_utf8(&entry.path) else {
            continue;
        };
        let name = normalise(name);
        let utf8 = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok();
        let member = match entry.kind {
            TarKind::Regular => {
                let offset = reader.position();
                if entry.sparse.is_some() {
                    continue;
                }
                if offset.saturating_add(entry.size) > length {
                    return Err(Error::Truncated {
                        what: format!("{} (within {name:?})", path.display()),
                        expected: offset.saturating_add(entry.size),
                        found: length,
                    });
                }
                Member::File {
                    offset,
                    size: entry.size,
                }
            }
            TarKind::Symlink => {
                let Some(target) = utf8(&entry.link) else {
                    continue;
                };
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Member::Link(normalise(&format!("{parent}/{target}")))
            }
            TarKind::Hardlink => {
                let Some(target) = utf8(&entry.link) else {
                    continue;
                };
                Member::Link(normalise(&target))
            }
            _ => continue,
        };
        let link = match &member {
            Member::File { .. } => 0,
            Member::Link(target) => target.len(),
        };
        bytes += (size_of::<(String, Member)>() + name.len() + link) as u64;
        check_bytes(
            "the list of what is in the archive",
            bytes,
            limits.document_bytes,
            "document_bytes",
        )?;
        members.insert(name, member);
    }
    Ok(members)
}

/// A name without empty parts, `.` and `..`; what would climb out stays at the top, where it names nothing that is
/// not a member.
fn normalise(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn inflate(section: Section, limits: &Limits) -> Result<(Arc<File>, u64)> {
    let path = section.path.clone();
    let directory = std::env::temp_dir();
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io {
            operation,
            path,
            source,
        }
    };
    let mut file = File::from(
        rustix::fs::open(
            &directory,
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| failed("make a temporary file in", &directory)(errno.into()))?,
    );
    let mut decoder = Decoder::new(BufReader::with_capacity(128 << 10, section), limits)?;
    let mut buffer = vec![0; 128 << 10];
    let mut length = 0u64;
    loop {
        let n = decoder
            .read(&mut buffer)
            .map_err(|error| decoder.failed(error, length, limits))?;
        if n == 0 {
            break;
        }
        length += n as u64;
        check_bytes(
            "the uncompressed archive",
            length,
            limits.layer_bytes,
            "layer_bytes",
        )?;
        file.write_all(&buffer[..n])
            .map_err(failed("inflate into a temporary file", &path))?;
    }
    Ok((Arc::new(file), length))
}

/// A [`Section`] that can be moved, for skipping over contents while the index is made.
struct SeekableSection {
    section: Section,
    length: u64,
}

impl Read for SeekableSection {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.section.read(buf)
    }
}

impl Seek for SeekableSection {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(by) => self.section.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        let target = target.ok_or(rustix::io::Errno::INVAL)?;
        // Past the end is at the end: the next read then says that the archive is truncated.
        self.section.position = target.min(self.length);
        Ok(self.section.position)
    }
}
