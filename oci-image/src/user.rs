//! The user of an image's configuration, resolved in the image's own root.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result, excerpt};
use crate::limits::{Limits, check_bytes};

/// What an image's configuration says about its user: `user`, `uid`, `user:group`, `uid:gid`, and mixtures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserSpec {
    /// Name or number; root if absent.
    user: Option<NameOrId>,
    group: Option<NameOrId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NameOrId {
    Name(String),
    Id(u32),
}

/// Whose process it is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// Further groups, ascending.
    pub groups: Vec<u32>,
    /// The home directory; `/` when the image does not say.
    pub home: PathBuf,
    /// The name, when `/etc/passwd` has one.
    pub name: Option<String>,
}

impl FromStr for UserSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<UserSpec> {
        let (user, group) = match text.split_once(':') {
            None => (text, None),
            Some((user, group)) => (user, Some(group)),
        };
        let part = |kind: &'static str, text: &str| -> Result<Option<NameOrId>> {
            if text.is_empty() {
                return Ok(None);
            }
            if text.contains([':', '\n', '\0', '/']) {
                return Err(Error::BadValue {
                    what: kind,
                    text: excerpt(text),
                    reason: "write USER, UID, USER:GROUP or UID:GID",
                });
            }
            Ok(Some(match number(kind, text)? {
                Some(id) => NameOrId::Id(id),
                None => NameOrId::Name(text.to_owned()),
            }))
        };
        Ok(UserSpec {
            user: part("user", user)?,
            group: part("group", group.unwrap_or_default())?,
        })
    }
}

/// A number if `text` is one; one that no process can have is an error, not a name and not another number
/// (CVE-2024-40635).
fn number(kind: &'static str, text: &str) -> Result<Option<u32>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        // The last number means "leave as it is" to the kernel.
        Ok(id) if id != u32::MAX && !text.starts_with('+') => Ok(Some(id)),
        _ => Err(Error::IdOutOfRange {
            kind,
            text: excerpt(text),
        }),
    }
}

impl UserSpec {
    /// Looks the user and the groups up in `/etc/passwd` and `/etc/group` below `root`, which may be hostile: links
    /// are followed within it, only regular files are read, and not more than
    /// [`Limits::user_file_bytes`] of them.
    ///
    /// A number needs no entry. A user named without a group gets the groups that list it, as with Docker.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchUser`], [`Error::IdOutOfRange`], [`Error::Limit`] or [`Error::Io`].
    #[doc(alias = "openat2")]
    pub fn resolve(&self, root: impl AsFd, limits: &Limits) -> Result<User> {
        let passwd = read_in_root(&root, "etc/passwd", limits)?;
        let mut user = User {
            uid: match self.user {
                Some(NameOrId::Id(id)) => id,
                _ => 0,
            },
            gid: 0,
            groups: Vec::new(),
            home: PathBuf::from("/"),
            name: None,
        };
        let line = lines(&passwd, 7).find(|fields| match &self.user {
            Some(NameOrId::Name(name)) => fields[0] == name,
            _ => fields[2].parse() == Ok(user.uid),
        });
        match line {
            Some(fields) => {
                let id = |kind, text: &str| {
                    number(kind, text)?.ok_or_else(|| Error::IdOutOfRange {
                        kind,
                        text: excerpt(text),
                    })
                };
                user.uid = id("user", fields[2])?;
                user.gid = id("group", fields[3])?;
                if fields[5].starts_with('/') {
                    user.home = PathBuf::from(fields[5]);
                }
                user.name = Some(fields[0].to_owned());
            }
            None => {
                if let Some(NameOrId::Name(name)) = &self.user {
                    return Err(Error::NoSuchUser {
                        kind: "user",
                        name: excerpt(name),
                        file: "/etc/passwd",
                    });
                }
            }
        }
        match &self.group {
            Some(NameOrId::Id(id)) => user.gid = *id,
            Some(NameOrId::Name(name)) => {
                let group = read_in_root(&root, "etc/group", limits)?;
                user.gid = lines(&group, 4)
                    .find(|fields| fields[0] == name)
                    .and_then(|fields| number("group", fields[2]).ok().flatten())
                    .ok_or_else(|| Error::NoSuchUser {
                        kind: "group",
                        name: excerpt(name),
                        file: "/etc/group",
                    })?;
            }
            None => {
                if let Some(name) = &user.name {
                    let group = read_in_root(&root, "etc/group", limits)?;
                    user.groups = lines(&group, 4)
                        .filter(|fields| fields[3].split(',').any(|member| member == name))
                        .filter_map(|fields| number("group", fields[2]).ok().flatten())
                        .collect();
                    user.groups.sort_unstable();
                    user.groups.dedup();
                }
            }
        }
        Ok(user)
    }
}

/// Lines of colon-separated fields; lines with too few are no entries.
fn lines(text: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(move |found| found.len() >= fields)
}

/// The text of a file in the root; empty when there is none.
fn read_in_root(root: &impl AsFd, path: &'static str, limits: &Limits) -> Result<String> {
    let failed = |source: std::io::Error| Error::Io {
        operation: "read in the image's root",
        path: PathBuf::from("/").join(path),
        source,
    };
    // First without opening it in earnest: what opening a device does is up to its driver.
    let found = match crate::rootdir::openat2_in_root(
        root.as_fd(),
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    ) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(failed(errno.into())),
    };
    let stat = rustix::fs::fstat(&found).map_err(|errno| failed(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    let file = std::fs::File::open(crate::rootdir::proc_path(&found)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limits.user_file_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    check_bytes(
        "/etc/passwd or /etc/group of the image",
        bytes.len() as u64,
        limits.user_file_bytes,
        "user_file_bytes",
    )?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
