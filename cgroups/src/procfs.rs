//! `/proc/<pid>/mountinfo` and `/proc/<pid>/cgroup`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::controller::Controllers;
use crate::error::ParseError;

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A hierarchy for each controller or group of controllers.
    #[doc(alias = "cgroup")]
    V1,
    /// The unified hierarchy.
    #[doc(alias = "cgroup2")]
    V2,
}

/// A mounted cgroup file system: a line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// `major:minor` of the file system; the same for every mount of one hierarchy.
    pub device: (u32, u32),
    /// The group that is mounted, seen from the reader's cgroup namespace.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// Of which interface.
    pub version: Version,
    /// The controllers, on v1.
    pub controllers: Controllers,
}

/// The cgroup mounts among the lines of a `mountinfo` file, in their order. Every other file
/// system is passed over.
///
/// Manual: `proc_pid_mountinfo(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountTable(pub Vec<MountEntry>);

impl FromStr for MountTable {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::from_bytes(text.as_bytes())
    }
}

impl MountTable {
    /// Paths need not be UTF-8.
    pub(crate) fn from_bytes(text: &[u8]) -> Result<Self, ParseError> {
        let mounts = lines(text).filter_map(|line| mount_line(line).transpose());
        mounts.collect::<Result<_, _>>().map(Self)
    }
}

/// The lines of a text. Not `str::lines`, which takes a carriage return away that may end a name.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let none = text.is_empty();
    text.split(|&byte| byte == b'\n').skip(usize::from(none))
}

fn unexpected(expected: &'static str, line: &[u8]) -> ParseError {
    ParseError::new(expected, &String::from_utf8_lossy(line))
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn mount_line(line: &[u8]) -> Result<Option<MountEntry>, ParseError> {
    const SEPARATOR: &[u8] = b" - ";
    let fail = || unexpected("a line of mountinfo", line);
    // The number of optional fields before the lone hyphen varies.
    let hyphen = line
        .windows(SEPARATOR.len())
        .position(|part| part == SEPARATOR)
        .ok_or_else(fail)?;
    let mut source = line[hyphen + SEPARATOR.len()..].split(|&byte| byte == b' ');
    let version = match source.next() {
        Some(b"cgroup") => Version::V1,
        Some(b"cgroup2") => Version::V2,
        _ => return Ok(None),
    };
    let options = source.nth(1).ok_or_else(fail)?;
    let mut place = line[..hyphen].split(|&byte| byte == b' ').skip(2);
    let (device, root, mount_point) = (
        place.next().ok_or_else(fail)?,
        place.next().ok_or_else(fail)?,
        place.next().ok_or_else(fail)?,
    );
    let mut numbers = device.splitn(2, |&byte| byte == b':');
    let mut half = || numbers.next().and_then(number).ok_or_else(fail);
    Ok(Some(MountEntry {
        device: (half()?, half()?),
        root: unescape(root),
        mount_point: unescape(mount_point),
        version,
        controllers: match version {
            Version::V1 => controllers(options),
            Version::V2 => Controllers::EMPTY,
        },
    }))
}

/// Undoes the kernel's octal escapes of space, tab, line break and backslash.
fn unescape(bytes: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|digits| bytes[at] == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)))
            .map(|d| {
                u32::from(d[0] - b'0') * 64 + u32::from(d[1] - b'0') * 8 + u32::from(d[2] - b'0')
            })
            .and_then(|code| u8::try_from(code).ok());
        out.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(out))
}

fn controllers(names: &[u8]) -> Controllers {
    Controllers::parse_known(&String::from_utf8_lossy(names), |c| c == ',')
}

/// The group of a process in one hierarchy: a line of `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Of which interface.
    pub version: Version,
    /// The hierarchy's controllers, on v1.
    pub controllers: Controllers,
    /// The group, seen from the reader's cgroup namespace. Begins with `/..` when it is outside.
    /// Ends in ` (deleted)` on v2 when the process has ended and the group was removed, but a group
    /// may also have such a name.
    pub path: PathBuf,
}

/// The groups of a process, a line for each hierarchy.
///
/// Manual: `cgroups(7)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memberships(pub Vec<Membership>);

impl FromStr for Memberships {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::from_bytes(text.as_bytes())
    }
}

fn membership_line(line: &[u8]) -> Option<Membership> {
    let mut fields = line.splitn(3, |&byte| byte == b':');
    let (id, names, group) = (fields.next()?, fields.next()?, fields.next()?);
    number(id)?;
    group.starts_with(b"/").then(|| Membership {
        version: if id == b"0" && names.is_empty() {
            Version::V2
        } else {
            Version::V1
        },
        controllers: controllers(names),
        path: path(group),
    })
}

impl Memberships {
    /// Names of groups need not be UTF-8.
    pub(crate) fn from_bytes(text: &[u8]) -> Result<Self, ParseError> {
        let read = |line| {
            membership_line(line).ok_or_else(|| unexpected("a line of /proc/<pid>/cgroup", line))
        };
        lines(text).map(read).collect::<Result<_, _>>().map(Self)
    }

    /// The group in the hierarchy of v2, or in that of v1 with any of these controllers.
    pub(crate) fn find(&self, version: Version, controllers: Controllers) -> Option<&Path> {
        self.0
            .iter()
            .find(|line| {
                line.version == version
                    && (version == Version::V2
                        || line.controllers.iter().any(|c| controllers.contains(c)))
            })
            .map(|line| line.path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::controller::Controller;

    #[test]
    fn reads_mounts_of_both_versions() {
        let text = "\
24 30 0:22 / /proc rw,relatime shared:13 - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
35 31 0:32 /docker/a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 master:3 - cgroup cgroup rw,cpu,cpuacct
37 31 0:34 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /mnt/with\\040space rw,relatime - cgroup2 none rw,nsdelegate
";
        let MountTable(mounts) = text.parse().expect("valid");
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[0].root, Path::new("/docker/a"));
        assert_eq!(mounts[0].controllers, Controller::Memory.into());
        assert_eq!(
            mounts[1].controllers,
            [Controller::Cpu, Controller::Cpuacct].into_iter().collect()
        );
        assert!(mounts[2].controllers.is_empty());
        assert_eq!(mounts[3].version, Version::V2);
        assert_eq!(mounts[3].mount_point, Path::new("/mnt/with space"));
    }

    #[test]
    fn reads_memberships() {
        let text = "4:memory:/a:b\n2:cpu,cpuacct:/\n9:name=systemd:/x\n0::/../y (deleted)\n";
        let groups: Memberships = text.parse().expect("valid");
        let find = |version, controller: Controller| groups.find(version, controller.into());
        assert_eq!(
            find(Version::V1, Controller::Memory),
            Some(Path::new("/a:b"))
        );
        assert_eq!(find(Version::V1, Controller::Cpuacct), Some(Path::new("/")));
        assert_eq!(find(Version::V1, Controller::Pids), None);
        assert_eq!(
            find(Version::V2, Controller::Pids),
            Some(Path::new("/../y (deleted)"))
        );
    }

    #[test]
    fn names_are_taken_as_they_are() {
        let groups = Memberships::from_bytes(b"0::/a\xff\r\n1:pids:/b (deleted)\n").expect("valid");
        let path = |index: usize| groups.0[index].path.as_os_str().as_bytes();
        assert_eq!(path(0), b"/a\xff\r");
        assert_eq!(path(1), b"/b (deleted)");
        let mounts = b"41 31 0:38 /x\xfe /m\xff\\134 rw - cgroup2 \xfd rw,nsdelegate\n";
        let MountTable(mounts) = MountTable::from_bytes(mounts).expect("valid");
        assert_eq!(mounts[0].root.as_os_str().as_bytes(), b"/x\xfe");
        assert_eq!(mounts[0].mount_point.as_os_str().as_bytes(), b"/m\xff\\");
    }

    #[test]
    fn refuses_lines_of_other_shapes() {
        for text in [
            "24 30 0:22 / /proc rw",
            "1 2 x / /m rw - cgroup cgroup rw",
            "1 2 0:1 / - cgroup c rw",
        ] {
            assert!(text.parse::<MountTable>().is_err(), "{text:?}");
        }
        for text in ["", "4:memory", "x:memory:/", "4:memory:relative"] {
            let parsed = text.parse::<Memberships>();
            assert_eq!(parsed.is_ok(), text.is_empty(), "{text:?}");
        }
    }
}
