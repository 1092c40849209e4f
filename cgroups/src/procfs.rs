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
        let mut mounts = Vec::new();
        for line in text.lines() {
            if let Some(mount) = mount_line(line)? {
                mounts.push(mount);
            }
        }
        Ok(Self(mounts))
    }
}

fn mount_line(line: &str) -> Result<Option<MountEntry>, ParseError> {
    let fail = || ParseError::new("a line of mountinfo", line);
    // The number of optional fields before the lone hyphen varies.
    let (place, source) = line.split_once(" - ").ok_or_else(fail)?;
    let mut source = source.split(' ');
    let version = match source.next() {
        Some("cgroup") => Version::V1,
        Some("cgroup2") => Version::V2,
        _ => return Ok(None),
    };
    let options = source.nth(1).ok_or_else(fail)?;
    let mut place = place.split(' ').skip(2);
    let (device, root, mount_point) = (
        place.next().ok_or_else(fail)?,
        place.next().ok_or_else(fail)?,
        place.next().ok_or_else(fail)?,
    );
    let (major, minor) = device.split_once(':').ok_or_else(fail)?;
    Ok(Some(MountEntry {
        device: (
            major.parse().map_err(|_| fail())?,
            minor.parse().map_err(|_| fail())?,
        ),
        root: unescape(root),
        mount_point: unescape(mount_point),
        version,
        controllers: match version {
            Version::V1 => Controllers::parse_known(options, |c| c == ','),
            Version::V2 => Controllers::EMPTY,
        },
    }))
}

/// Undoes the kernel's octal escapes of space, tab, line break and backslash.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
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

/// The group of a process in one hierarchy: a line of `/proc/<pid>/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Of which interface.
    pub version: Version,
    /// The hierarchy's controllers, on v1.
    pub controllers: Controllers,
    /// The group, seen from the reader's cgroup namespace. Begins with `/..` when it is outside.
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
        let line = |line: &str| {
            let fail = || ParseError::new("a line of /proc/<pid>/cgroup", line);
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                return Err(fail());
            };
            if !path.starts_with('/') || id.parse::<u32>().is_err() {
                return Err(fail());
            }
            Ok(Membership {
                version: if id == "0" && controllers.is_empty() {
                    Version::V2
                } else {
                    Version::V1
                },
                controllers: Controllers::parse_known(controllers, |c| c == ','),
                path: PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)),
            })
        };
        text.lines().map(line).collect::<Result<_, _>>().map(Self)
    }
}

impl Memberships {
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
            Some(Path::new("/../y"))
        );
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
