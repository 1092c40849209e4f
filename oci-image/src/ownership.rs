//! Who owns what is unpacked.

use crate::error::{Error, Result};

/// A range of ids in an image and the ids that stand for them on disk; like a line of `/proc/self/uid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id as the image has it.
    pub inside: u32,
    /// The first id on disk.
    pub outside: u32,
    /// How many ids follow one another.
    pub count: u32,
}

/// Who owns what is unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ownership {
    /// As the image says; needs root, also root in a user namespace that maps the image's ids.
    Keep,
    /// By a map; an id that is in no range is an error.
    Mapped {
        /// For users.
        uids: Vec<IdRange>,
        /// For groups.
        gids: Vec<IdRange>,
    },
    /// Everything belongs to one user and one group; for a user who has only these. How many entries would have
    /// had another owner is told in [`UnpackReport::squashed`](crate::UnpackReport::squashed).
    Squash {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

impl Ownership {
    /// The owner and group on disk for those of the image.
    pub(crate) fn apply(&self, uid: u64, gid: u64) -> Result<(u32, u32)> {
        match self {
            Ownership::Keep => Ok((plain("uid", uid)?, plain("gid", gid)?)),
            Ownership::Mapped { uids, gids } => {
                Ok((mapped("uid", uid, uids)?, mapped("gid", gid, gids)?))
            }
            Ownership::Squash { uid, gid } => Ok((*uid, *gid)),
        }
    }

    /// The user on disk that stands for one of the image, if more than one can.
    pub(crate) fn user(&self, uid: u32) -> Result<Option<u32>> {
        match self {
            Ownership::Keep => plain("uid", uid.into()).map(Some),
            Ownership::Mapped { uids, .. } => mapped("uid", uid.into(), uids).map(Some),
            Ownership::Squash { .. } => Ok(None),
        }
    }

    /// The group on disk that stands for one of the image, if more than one can.
    pub(crate) fn group(&self, gid: u32) -> Result<Option<u32>> {
        match self {
            Ownership::Keep => plain("gid", gid.into()).map(Some),
            Ownership::Mapped { gids, .. } => mapped("gid", gid.into(), gids).map(Some),
            Ownership::Squash { .. } => Ok(None),
        }
    }
}

fn plain(kind: &'static str, id: u64) -> Result<u32> {
    match u32::try_from(id) {
        // The last number means "leave as it is" to the kernel.
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::IdOutOfRange {
            kind,
            text: id.to_string(),
        }),
    }
}

fn mapped(kind: &'static str, id: u64, ranges: &[IdRange]) -> Result<u32> {
    let wanted = plain(kind, id)?;
    ranges
        .iter()
        .find_map(|range| {
            let distance = wanted.checked_sub(range.inside)?;
            (distance < range.count).then(|| range.outside.checked_add(distance))?
        })
        .ok_or(Error::UnmappedId { kind, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_the_map_are_errors() {
        let ranges = vec![
            IdRange {
                inside: 0,
                outside: 1000,
                count: 1,
            },
            IdRange {
                inside: 1,
                outside: 100_000,
                count: 65536,
            },
        ];
        let map = Ownership::Mapped {
            uids: ranges.clone(),
            gids: ranges,
        };
        assert_eq!(map.apply(0, 1).unwrap(), (1000, 100_000));
        assert_eq!(map.apply(65536, 0).unwrap(), (165_535, 1000));
        assert!(matches!(
            map.apply(65537, 0),
            Err(Error::UnmappedId {
                kind: "uid",
                id: 65537
            })
        ));
        assert!(matches!(
            map.apply(0, 1 << 40),
            Err(Error::IdOutOfRange { kind: "gid", .. })
        ));
        assert!(Ownership::Keep.apply(u64::from(u32::MAX), 0).is_err());
        assert_eq!(
            Ownership::Squash { uid: 5, gid: 6 }
                .apply(1 << 40, 0)
                .unwrap(),
            (5, 6)
        );
    }
}
