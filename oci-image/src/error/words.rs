//! Words of messages that depend on what they tell of.

use std::io;

/// A text from an image, short enough to be part of a message.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX: usize = 200;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX).collect();
    short.push('…');
    short
}

pub(super) fn names(available: &[String]) -> String {
    const MAX: usize = 10;
    if available.is_empty() {
        return "no names".to_owned();
    }
    let mut text = available
        .iter()
        .take(MAX)
        .map(|name| excerpt(name))
        .collect::<Vec<_>>()
        .join(", ");
    if available.len() > MAX {
        text.push_str(", …");
    }
    text
}

pub(super) fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

pub(super) fn advice(status: u16) -> &'static str {
    match status {
        400 | 405 | 415 => "; the registry does not support this, or forbids it",
        403 => "; log in as somebody who may do this",
        404 => "; check the name",
        429 => "; wait, or log in for a higher rate limit",
        500.. => "; try again later",
        _ => "",
    }
}

pub(super) fn others(available: &[String]) -> String {
    if available.is_empty() {
        "check the name, and that the image was pushed or added".to_owned()
    } else {
        format!("it has {}", names(available))
    }
}

pub(super) fn hint(operation: &str, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc_errno::ENOSPC) => "; make room or choose another directory",
        Some(libc_errno::EPERM) if operation.contains("device") => {
            "; without the privilege to make device nodes choose `Devices::Skip`"
        }
        Some(libc_errno::EPERM | libc_errno::EINVAL) if operation.contains("owner") => {
            "; without the privilege to give files away choose `Ownership::Squash`"
        }
        Some(libc_errno::EOPNOTSUPP) if operation.contains("attribute") => {
            "; this filesystem has no such attributes, choose another directory"
        }
        _ => "",
    }
}

/// Error numbers by name, without a dependency on libc.
mod libc_errno {
    use rustix::io::Errno;
    pub(super) const ENOSPC: i32 = Errno::NOSPC.raw_os_error();
    pub(super) const EPERM: i32 = Errno::PERM.raw_os_error();
    pub(super) const EINVAL: i32 = Errno::INVAL.raw_os_error();
    pub(super) const EOPNOTSUPP: i32 = Errno::OPNOTSUPP.raw_os_error();
}
