//! POSIX access control lists: the text that archives hold, and the form that the kernel takes.
//!
//! See acl(5) for the text, and `linux/posix_acl_xattr.h` for the attributes' values.

use crate::error::Result;
use crate::ownership::Ownership;

/// The attribute that holds who may do what with a file.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what new files in a directory begin with.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One line of a list, in the kernel's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// An access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Line>);

impl Acl {
    /// Reads `user::rwx,user:1000:r--,group::r-x,mask::r-x,other::---`, separated by commas or newlines, in the long
    /// or the short form, with or without the id that `star` and libarchive put at the end.
    ///
    /// Nothing comes of a list that is malformed, or that names somebody by a name alone: whose name that is only the
    /// machine knows on which the archive was made.
    pub(crate) fn from_text(text: &[u8]) -> Option<Acl> {
        let text = std::str::from_utf8(text).ok()?;
        let mut lines = Vec::new();
        for line in text.split([',', '\n']) {
            // What follows `#` says what the mask leaves of the line.
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                lines.push(line_from_text(line)?);
            }
        }
        Acl::new(lines)
    }

    /// Reads the value of an attribute.
    pub(crate) fn from_attribute(value: &[u8]) -> Option<Acl> {
        let (version, lines) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || lines.len() % 8 != 0 {
            return None;
        }
        let lines = lines
            .chunks_exact(8)
            .map(|line| Line {
                tag: u16::from_le_bytes([line[0], line[1]]),
                permissions: u16::from_le_bytes([line[2], line[3]]),
                id: u32::from_le_bytes([line[4], line[5], line[6], line[7]]),
            })
            .collect();
        Acl::new(lines)
    }

    /// The kernel wants the lines in order; it checks the rest itself.
    fn new(mut lines: Vec<Line>) -> Option<Acl> {
        lines.sort_unstable();
        (!lines.is_empty()).then_some(Acl(lines))
    }

    /// The value of the attribute.
    pub(crate) fn to_attribute(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for line in &self.0 {
            value.extend_from_slice(&line.tag.to_le_bytes());
            value.extend_from_slice(&line.permissions.to_le_bytes());
            value.extend_from_slice(&line.id.to_le_bytes());
        }
        value
    }

    /// The list with the ids that stand on disk for those of the image; nothing if it names somebody and everything
    /// is to belong to one.
    pub(crate) fn owned(mut self, ownership: &Ownership) -> Result<Option<Acl>> {
        for line in &mut self.0 {
            let id = match line.tag {
                USER => ownership.user(line.id)?,
                GROUP => ownership.group(line.id)?,
                _ => continue,
            };
            match id {
                Some(id) => line.id = id,
                None => return Ok(None),
            }
        }
        self.0.sort_unstable();
        Ok(Some(self))
    }
}

fn line_from_text(line: &str) -> Option<Line> {
    let mut parts = line.split(':').map(str::trim);
    let (kind, who, what) = (parts.next()?, parts.next()?, parts.next()?);
    let number = parts.next();
    if parts.next().is_some() {
        return None;
    }
    let tag = match (kind, who) {
        ("user" | "u", "") => USER_OBJ,
        ("user" | "u", _) => USER,
        ("group" | "g", "") => GROUP_OBJ,
        ("group" | "g", _) => GROUP,
        ("mask" | "m", "") => MASK,
        ("other" | "o", "") => OTHER,
        _ => return None,
    };
    let id = match tag {
        USER | GROUP => number.unwrap_or(who).parse().ok()?,
        _ => NO_ID,
    };
    let mut permissions = 0;
    for letter in what.bytes() {
        permissions |= match letter {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return None,
        };
    }
    Some(Line {
        tag,
        id,
        permissions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::IdRange;

    #[test]
    fn text_in_all_forms() {
        let long = Acl::from_text(
            b"user::rwx\ngroup::r-x\nuser:1000:rw-\t#effective:r--\nmask::r--\nother::---\n",
        );
        let short = Acl::from_text(b"o::,m::r,g::rx,u:somebody:rw:1000,u::rwx");
        assert_eq!(long, short);
        let acl = long.unwrap();
        assert_eq!(
            acl.to_attribute(),
            [
                &[2, 0, 0, 0][..],
                &[1, 0, 7, 0, 255, 255, 255, 255],
                &[2, 0, 6, 0, 232, 3, 0, 0],
                &[4, 0, 5, 0, 255, 255, 255, 255],
                &[16, 0, 4, 0, 255, 255, 255, 255],
                &[32, 0, 0, 0, 255, 255, 255, 255],
            ]
            .concat()
        );
        assert_eq!(Acl::from_attribute(&acl.to_attribute()), Some(acl));
    }

    #[test]
    fn what_is_no_list_is_none() {
        for text in [
            "",
            "user",
            "user::rwz",
            "somebody::rwx",
            "user:somebody:rwx",
            "mask:1:rwx",
            "user:1:rwx:2:3",
            "user:4294967296:r",
            "user:-1:r",
        ] {
            assert_eq!(Acl::from_text(text.as_bytes()), None, "{text:?}");
        }
        for value in [&b""[..], &[2, 0, 0, 0], &[1, 0, 0, 0], &[2, 0, 0, 0, 1]] {
            assert_eq!(Acl::from_attribute(value), None, "{value:?}");
        }
    }

    #[test]
    fn ids_are_mapped() {
        let range = |outside| {
            vec![IdRange {
                inside: 1000,
                outside,
                count: 1,
            }]
        };
        let map = Ownership::Mapped {
            uids: range(5),
            gids: range(6),
        };
        let acl = |text: &str| Acl::from_text(text.as_bytes()).unwrap();
        assert_eq!(
            acl("u:1000:r,g:1000:w").owned(&map).unwrap(),
            Some(acl("u:5:r,g:6:w"))
        );
        acl("u:1001:r").owned(&map).unwrap_err();
        let squash = Ownership::Squash { uid: 1, gid: 1 };
        assert_eq!(acl("u:1000:r").owned(&squash).unwrap(), None);
        assert_eq!(
            acl("u::r,o::r").owned(&squash).unwrap(),
            Some(acl("u::r,o::r"))
        );
    }
}
