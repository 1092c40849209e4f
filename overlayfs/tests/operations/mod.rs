//! Operations on a tree, and what can be seen of it afterwards.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use overlayfs::{Kind, Merged};
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, lgetxattr,
    llistxattr, lremovexattr, lsetxattr, makedev, mknodat, renameat_with, utimensat,
};

/// A number that picks one of what is there when the operation is performed.
type Pick = u8;

#[derive(Clone, Debug)]
pub enum Operation {
    Create(Pick, Vec<u8>),
    Write(Pick, u16, Vec<u8>),
    Append(Pick, Vec<u8>),
    Truncate(Pick, u16),
    Unlink(Pick),
    Mkdir(Pick),
    Rmdir(Pick),
    RemoveAll(Pick),
    Rename(Pick, Pick),
    RenameOver(Pick, Pick),
    Exchange(Pick, Pick),
    Symlink(Pick, u8),
    Link(Pick, Pick),
    Chmod(Pick, u16),
    Chown(Pick, u8, u8),
    SetXattr(Pick, u8, Vec<u8>),
    RemoveXattr(Pick, u8),
    Mknod(Pick, u8),
    Utimes(Pick, u32),
}

pub fn operations(most: usize) -> impl Strategy<Value = Vec<Operation>> {
    use Operation as Op;
    let bytes = || prop::collection::vec(any::<u8>(), 0..6);
    let operation = prop_oneof![
        4 => (any::<Pick>(), bytes()).prop_map(|(pick, bytes)| Op::Create(pick, bytes)),
        2 => (any::<Pick>(), 0..5000_u16, bytes()).prop_map(|(pick, at, bytes)| Op::Write(pick, at, bytes)),
        1 => (any::<Pick>(), bytes()).prop_map(|(pick, bytes)| Op::Append(pick, bytes)),
        1 => (any::<Pick>(), 0..5000_u16).prop_map(|(pick, size)| Op::Truncate(pick, size)),
        2 => any::<Pick>().prop_map(Op::Unlink),
        5 => any::<Pick>().prop_map(Op::Mkdir),
        1 => any::<Pick>().prop_map(Op::Rmdir),
        1 => any::<Pick>().prop_map(Op::RemoveAll),
        4 => any::<(Pick, Pick)>().prop_map(|(from, to)| Op::Rename(from, to)),
        2 => any::<(Pick, Pick)>().prop_map(|(from, to)| Op::RenameOver(from, to)),
        1 => any::<(Pick, Pick)>().prop_map(|(from, to)| Op::Exchange(from, to)),
        1 => any::<(Pick, u8)>().prop_map(|(pick, target)| Op::Symlink(pick, target)),
        2 => any::<(Pick, Pick)>().prop_map(|(from, to)| Op::Link(from, to)),
        1 => any::<(Pick, u16)>().prop_map(|(pick, mode)| Op::Chmod(pick, mode)),
        1 => any::<(Pick, u8, u8)>().prop_map(|(pick, uid, gid)| Op::Chown(pick, uid, gid)),
        2 => (any::<Pick>(), any::<u8>(), bytes()).prop_map(|(pick, name, value)| Op::SetXattr(pick, name, value)),
        1 => any::<(Pick, u8)>().prop_map(|(pick, name)| Op::RemoveXattr(pick, name)),
        1 => any::<(Pick, u8)>().prop_map(|(pick, kind)| Op::Mknod(pick, kind)),
        1 => any::<(Pick, u32)>().prop_map(|(pick, time)| Op::Utimes(pick, time)),
    ];
    prop::collection::vec(operation, 0..=most)
}

/// Every path in a tree, in order, and which of them are directories. The top is left out.
fn list(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut all, mut directories) = (Vec::new(), vec![root.to_owned()]);
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        next += 1;
        let mut entries: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() && !path.is_symlink() {
                directories.push(path.clone());
            }
            all.push(path);
        }
    }
    (all, directories)
}

struct Place {
    existing: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Place {
    fn existing(&self, pick: Pick) -> Option<&Path> {
        (!self.existing.is_empty())
            .then(|| self.existing[usize::from(pick) % self.existing.len()].as_path())
    }

    /// A path that may or may not exist, in a directory that does.
    fn any(&self, pick: Pick) -> PathBuf {
        let names = ["a", "b", "c", "d"];
        let directory = &self.directories[usize::from(pick) / names.len() % self.directories.len()];
        directory.join(names[usize::from(pick) % names.len()])
    }
}

const XATTRS: [&str; 4] = [
    "trusted.one",
    "user.two",
    "trusted.overlay.three",
    "user.overlay.four",
];

/// Performs an operation, which may fail as it would for any user.
pub fn perform(root: &Path, operation: &Operation) {
    let (existing, directories) = list(root);
    let place = Place {
        existing,
        directories,
    };
    // Whether it was possible is for the kernel to say; only what is there afterwards counts.
    let _ = attempt(&place, operation);
}

fn attempt(place: &Place, operation: &Operation) -> std::io::Result<()> {
    let existing = |pick: &Pick| {
        place
            .existing(*pick)
            .ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    let file = |path: &Path| {
        // Opening a pipe would wait.
        if path.symlink_metadata()?.is_file() {
            Ok(())
        } else {
            Err(std::io::Error::other("no file"))
        }
    };
    match operation {
        Operation::Create(pick, bytes) => {
            let mut made = fs::File::create_new(place.any(*pick))?;
            made.write_all(bytes)
        }
        Operation::Write(pick, at, bytes) => {
            let path = existing(pick)?;
            file(path)?;
            let mut open = fs::OpenOptions::new().write(true).open(path)?;
            open.seek(SeekFrom::Start(u64::from(*at)))?;
            open.write_all(bytes)
        }
        Operation::Append(pick, bytes) => {
            let path = existing(pick)?;
            file(path)?;
            fs::OpenOptions::new()
                .append(true)
                .open(path)?
                .write_all(bytes)
        }
        Operation::Truncate(pick, size) => {
            let path = existing(pick)?;
            file(path)?;
            fs::OpenOptions::new()
                .write(true)
                .open(path)?
                .set_len(u64::from(*size))
        }
        Operation::Unlink(pick) => fs::remove_file(existing(pick)?),
        Operation::Mkdir(pick) => fs::create_dir(place.any(*pick)),
        Operation::Rmdir(pick) => fs::remove_dir(existing(pick)?),
        Operation::RemoveAll(pick) => fs::remove_dir_all(existing(pick)?),
        Operation::Rename(from, to) => fs::rename(existing(from)?, place.any(*to)),
        Operation::RenameOver(from, to) => fs::rename(existing(from)?, existing(to)?),
        Operation::Exchange(one, other) => Ok(renameat_with(
            CWD,
            existing(one)?,
            CWD,
            existing(other)?,
            RenameFlags::EXCHANGE,
        )?),
        Operation::Symlink(pick, target) => symlink(format!("target{target}"), place.any(*pick)),
        Operation::Link(from, to) => fs::hard_link(existing(from)?, place.any(*to)),
        Operation::Chmod(pick, mode) => {
            let path = existing(pick)?;
            if path.is_symlink() {
                return Ok(());
            }
            fs::set_permissions(path, fs::Permissions::from_mode(u32::from(*mode) & 0o7777))
        }
        Operation::Chown(pick, uid, gid) => lchown(
            existing(pick)?,
            Some(u32::from(*uid)),
            Some(u32::from(*gid)),
        ),
        Operation::SetXattr(pick, name, value) => {
            let name = XATTRS[usize::from(*name) % XATTRS.len()];
            Ok(lsetxattr(
                existing(pick)?,
                name,
                value,
                XattrFlags::empty(),
            )?)
        }
        Operation::RemoveXattr(pick, name) => Ok(lremovexattr(
            existing(pick)?,
            XATTRS[usize::from(*name) % XATTRS.len()],
        )?),
        Operation::Mknod(pick, kind) => {
            let (kind, device) = match kind % 4 {
                0 => (FileType::Fifo, 0),
                1 => (FileType::Socket, 0),
                2 => (FileType::CharacterDevice, makedev(1, 3)),
                _ => (FileType::BlockDevice, makedev(7, 200)),
            };
            Ok(mknodat(
                CWD,
                place.any(*pick),
                kind,
                Mode::from(0o640),
                device,
            )?)
        }
        Operation::Utimes(pick, time) => {
            let stamp = Timespec {
                tv_sec: i64::from(*time),
                tv_nsec: i64::from(*time % 1000),
            };
            let times = Timestamps {
                last_access: stamp,
                last_modification: stamp,
            };
            Ok(utimensat(
                CWD,
                existing(pick)?,
                &times,
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
    }
}

/// What can be seen of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub device: u64,
    pub modified: std::time::SystemTime,
    /// Of a file its bytes, of a link its target.
    pub contents: Vec<u8>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Of a file the first of its names, in order.
    pub first_name: PathBuf,
}

/// The first names of files, by what tells the files apart.
struct FirstNames<I>(BTreeMap<I, PathBuf>);

impl<I: Ord> FirstNames<I> {
    fn new() -> Self {
        FirstNames(BTreeMap::new())
    }

    fn of(&mut self, identity: I, kind: Kind, path: &Path) -> PathBuf {
        if kind == Kind::Directory {
            return path.to_owned();
        }
        self.0
            .entry(identity)
            .or_insert_with(|| path.to_owned())
            .clone()
    }
}

/// A tree as the kernel shows it.
pub fn of_directory(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut all, _) = list(root);
    all.sort();
    let mut names = FirstNames::new();
    all.into_iter()
        .map(|path| {
            let short = path.strip_prefix(root).unwrap().to_owned();
            (short.clone(), facts(&path, &short, &mut names))
        })
        .collect()
}

fn facts(path: &Path, short: &Path, names: &mut FirstNames<(u64, u64)>) -> Facts {
    let metadata = path.symlink_metadata().unwrap();
    let kind = match FileType::from_raw_mode(metadata.mode()) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::Socket,
    };
    let contents = match kind {
        Kind::File => fs::read(path).unwrap(),
        Kind::Symlink => fs::read_link(path).unwrap().into_os_string().into_vec(),
        _ => Vec::new(),
    };
    let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
    Facts {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        device: if is_device { metadata.rdev() } else { 0 },
        modified: metadata.modified().unwrap(),
        contents,
        xattrs: xattrs(path),
        first_name: names.of((metadata.dev(), metadata.ino()), kind, short),
    }
}

fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let length = llistxattr(path, &mut names[..]).unwrap();
    let mut found: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsString::from_vec(name.to_vec());
            let mut value = vec![0; 4096];
            let length = lgetxattr(path, &name, &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect();
    found.sort();
    found
}

/// A tree as this crate shows it.
pub fn of_merged(merged: &Merged) -> BTreeMap<PathBuf, Facts> {
    let mut names = FirstNames::new();
    let mut entries: Vec<_> = merged.walk().map(|entry| entry.unwrap()).collect();
    entries.sort_by(|one, other| one.path().cmp(other.path()));
    entries
        .into_iter()
        .map(|entry| {
            let metadata = entry.metadata();
            let mut contents = Vec::new();
            match metadata.kind {
                Kind::File => {
                    entry.open().unwrap().read_to_end(&mut contents).unwrap();
                    assert_eq!(contents.len() as u64, metadata.size);
                }
                Kind::Symlink => contents = entry.read_link().unwrap().into_os_string().into_vec(),
                _ => {}
            }
            let facts = Facts {
                kind: metadata.kind,
                mode: metadata.mode,
                owner: (metadata.uid, metadata.gid),
                device: metadata.device,
                modified: metadata.modified,
                contents,
                xattrs: entry.xattrs().unwrap(),
                first_name: names.of(entry.file_id(), metadata.kind, entry.path()),
            };
            (entry.path().to_owned(), facts)
        })
        .collect()
}
