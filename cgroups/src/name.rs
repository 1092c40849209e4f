//! Names of groups.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::controller::Controller;
use crate::error::{Error, NameProblem, Result};

/// A checked relative path of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupName<'a>(&'a Path);

impl<'a> GroupName<'a> {
    /// Checks a name for a group that is to be made.
    pub(crate) fn new(path: &'a Path) -> Result<Self> {
        Self::check(path, true)
    }

    /// Checks the name of a group that exists: someone else may have chosen a reserved one.
    pub(crate) fn existing(path: &'a Path) -> Result<Self> {
        Self::check(path, false)
    }

    fn check(path: &'a Path, new: bool) -> Result<Self> {
        let refuse = |problem| {
            Err(Error::InvalidName {
                name: path.to_owned(),
                problem,
            })
        };
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() {
            return refuse(NameProblem::Empty);
        }
        if bytes[0] == b'/' {
            return refuse(NameProblem::Absolute);
        }
        if bytes.iter().any(|byte| matches!(byte, 0 | b'\n')) {
            return refuse(NameProblem::ControlCharacter);
        }
        // Not `Path::components`, which silently drops some of what is refused here.
        for component in bytes.split(|&byte| byte == b'/') {
            match component {
                b"" => return refuse(NameProblem::Empty),
                b"." | b".." => return refuse(NameProblem::Dots),
                long if long.len() > 255 => return refuse(NameProblem::TooLong),
                name if new && is_reserved(name) => return refuse(NameProblem::Reserved),
                _ => {}
            }
        }
        Ok(Self(path))
    }

    pub(crate) fn path(self) -> &'a Path {
        self.0
    }

    /// The path of each group on the way, the nearest to the root first.
    pub(crate) fn prefixes(self) -> impl Iterator<Item = PathBuf> {
        let mut path = PathBuf::new();
        self.0.components().filter_map(move |component| {
            let Component::Normal(name) = component else {
                return None;
            };
            path.push(name);
            Some(path.clone())
        })
    }
}

/// Whether the kernel keeps such names for its files: `tasks`, `cgroup.…`, `memory.…`.
fn is_reserved(name: &[u8]) -> bool {
    if matches!(name, b"tasks" | b"notify_on_release" | b"release_agent") {
        return true;
    }
    let Some(dot) = name.iter().position(|&byte| byte == b'.') else {
        return false;
    };
    let prefix = &name[..dot];
    matches!(prefix, b"cgroup" | b"blkio" | b"irq")
        || Controller::ALL
            .iter()
            .any(|controller| controller.name().as_bytes() == prefix)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn problem(name: &[u8]) -> Option<NameProblem> {
        match GroupName::new(Path::new(OsStr::from_bytes(name))) {
            Err(Error::InvalidName { problem, .. }) => Some(problem),
            Err(other) => panic!("another error: {other}"),
            Ok(_) => None,
        }
    }

    #[test]
    fn every_bad_name_is_told_apart() {
        assert_eq!(problem(b"cofferdam/a.b-c_d"), None);
        assert_eq!(problem(b""), Some(NameProblem::Empty));
        assert_eq!(problem(b"a//b"), Some(NameProblem::Empty));
        assert_eq!(problem(b"a/"), Some(NameProblem::Empty));
        assert_eq!(problem(b"/a"), Some(NameProblem::Absolute));
        assert_eq!(problem(b"a/../b"), Some(NameProblem::Dots));
        assert_eq!(problem(b"./a"), Some(NameProblem::Dots));
        assert_eq!(problem(b"a\0b"), Some(NameProblem::ControlCharacter));
        assert_eq!(problem(b"a\nb"), Some(NameProblem::ControlCharacter));
        assert_eq!(problem(&[b'a'; 256]), Some(NameProblem::TooLong));
        assert_eq!(problem(b"x/memory.max"), Some(NameProblem::Reserved));
        assert_eq!(problem(b"tasks"), Some(NameProblem::Reserved));
        assert_eq!(problem(b"irq.pressure"), Some(NameProblem::Reserved));
        assert!(GroupName::existing(Path::new("cpu.slice")).is_ok());
    }
}
