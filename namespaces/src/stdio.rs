//! Where the standard streams of the program go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// A standard stream of the new process, as in [`std::process::Stdio`].
#[derive(Debug, Default)]
pub struct Stdio(pub(crate) Kind);

#[derive(Debug, Default)]
pub(crate) enum Kind {
    #[default]
    Inherit,
    Null,
    Piped,
    Fd(OwnedFd),
}

impl Stdio {
    /// The stream of this process. The default.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// `/dev/null` of this process's file system.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// A new pipe, whose other end is in [`Child`](crate::Child).
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }
}

impl From<OwnedFd> for Stdio {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Fd(fd))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        Self(Kind::Fd(file.into()))
    }
}

impl From<ChildStdin> for Stdio {
    fn from(pipe: ChildStdin) -> Self {
        Self(Kind::Fd(pipe.into()))
    }
}

impl From<ChildStdout> for Stdio {
    fn from(pipe: ChildStdout) -> Self {
        Self(Kind::Fd(pipe.into()))
    }
}

impl From<ChildStderr> for Stdio {
    fn from(pipe: ChildStderr) -> Self {
        Self(Kind::Fd(pipe.into()))
    }
}
