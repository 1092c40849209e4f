//! Writing id maps: by this process or by `newuidmap` and `newgidmap`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::thread::CapabilitySet;

use crate::{Degradation, Error, IdMap, IdMapping, IdRange, UserMapping};

/// One of the two kinds of id, with what its files and programs are called.
struct Ids {
    which: &'static str,
    file: &'static str,
    helper: &'static str,
    subordinate: &'static str,
    own: u32,
    privileged: bool,
}

impl Ids {
    fn of_this_process() -> [Self; 2] {
        let effective = rustix::thread::capabilities(None)
            .map_or(CapabilitySet::empty(), |sets| sets.effective);
        [
            Self {
                which: "uid",
                file: "uid_map",
                helper: "newuidmap",
                subordinate: "/etc/subuid",
                own: rustix::process::geteuid().as_raw(),
                privileged: effective.contains(CapabilitySet::SETUID),
            },
            Self {
                which: "gid",
                file: "gid_map",
                helper: "newgidmap",
                subordinate: "/etc/subgid",
                own: rustix::process::getegid().as_raw(),
                privileged: effective.contains(CapabilitySet::SETGID),
            },
        ]
    }

    fn is_own(&self, map: &IdMap) -> bool {
        matches!(map.as_ranges(), [IdRange { outside, count: 1, .. }] if *outside == self.own)
    }
}

/// Refuses maps that the kernel cannot take, before a process is made.
pub(crate) fn check(mapping: &UserMapping) -> Result<(), Error> {
    let UserMapping::Exact { uids, gids } = mapping else {
        return Ok(());
    };
    for (which, map) in [("uid", uids), ("gid", gids)] {
        if let Some(defect) = map.defect() {
            return Err(Error::InvalidIdMap { which, defect });
        }
    }
    Ok(())
}

/// Maps the ids of the new user namespace of the process `pid`, which waits.
pub(crate) fn write(pid: u32, mapping: &UserMapping) -> Result<IdMapping, Error> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let [uids, gids] = Ids::of_this_process();
    let mut degraded = None;
    let (uid_map, gid_map) = match mapping {
        UserMapping::Exact { uids, gids } => (uids.clone(), gids.clone()),
        UserMapping::CallerAsRoot => (IdMap::single(0, uids.own), IdMap::single(0, gids.own)),
        UserMapping::Subordinate => {
            let user = user_name(uids.own);
            let own = uids.own;
            let mut map = |ids: &Ids| {
                subordinate(ids, user.as_deref(), own).unwrap_or_else(|reason| {
                    degraded.get_or_insert(reason);
                    IdMap::single(0, ids.own)
                })
            };
            (map(&uids), map(&gids))
        }
    };
    let mut done = Vec::new();
    for (ids, map) in [(&uids, uid_map), (&gids, gid_map)] {
        match write_one(pid, &directory, ids, &map) {
            Ok(()) => done.push(map),
            Err(Error::IdMapHelper { helper, message })
                if matches!(mapping, UserMapping::Subordinate) =>
            {
                degraded.get_or_insert(if message.is_empty() {
                    Degradation::HelperMissing { helper }
                } else {
                    Degradation::HelperFailed { helper, message }
                });
                let single = IdMap::single(0, ids.own);
                write_one(pid, &directory, ids, &single)?;
                done.push(single);
            }
            Err(Error::IdMapHelper { helper, message }) if message.is_empty() => {
                return Err(Error::IdMapHelper {
                    helper,
                    message: "it is not installed (package uidmap)".into(),
                });
            }
            Err(error) => return Err(error),
        }
    }
    let file = directory.join("setgroups");
    let setgroups = fs::read(&file)
        .map_err(Error::io_path("read", &file))?
        .trim_ascii()
        == b"allow";
    let gids = done.pop().unwrap_or_default();
    let uids = done.pop().unwrap_or_default();
    Ok(IdMapping {
        uids,
        gids,
        setgroups,
        degraded,
    })
}

/// Writes one map. A helper that is not installed is an error with an empty message.
fn write_one(pid: u32, directory: &Path, ids: &Ids, map: &IdMap) -> Result<(), Error> {
    if !ids.privileged && !ids.is_own(map) {
        return run_helper(pid, ids, map);
    }
    if ids.which == "gid" && !ids.privileged {
        // Otherwise a user could leave a group that denies access.
        let file = directory.join("setgroups");
        fs::write(&file, "deny").map_err(Error::io_path("write", file))?;
    }
    let path = directory.join(ids.file);
    fs::write(&path, map.to_kernel()).map_err(|source| Error::IdMap {
        path,
        map: map.to_kernel().trim_end().replace('\n', ", "),
        source,
    })
}

fn run_helper(pid: u32, ids: &Ids, map: &IdMap) -> Result<(), Error> {
    let mut helper = std::process::Command::new(ids.helper);
    helper.arg(pid.to_string());
    for range in map.as_ranges() {
        for number in [range.inside, range.outside, range.count] {
            helper.arg(number.to_string());
        }
    }
    let failed = |message: OsString| Error::IdMapHelper {
        helper: ids.helper,
        message,
    };
    match helper.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) if output.stderr.is_empty() => Err(failed(output.status.to_string().into())),
        Ok(output) => Err(failed(OsString::from_vec(output.stderr))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(failed(OsString::new())),
        Err(error) => Err(failed(error.to_string().into())),
    }
}

/// The name of a user in `/etc/passwd`.
fn user_name(uid: u32) -> Option<String> {
    // Without the file there are no names.
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Root and the caller's subordinate ids from 1 on.
fn subordinate(ids: &Ids, user: Option<&str>, uid: u32) -> Result<IdMap, Degradation> {
    let none = || Degradation::NoSubordinateIds {
        user: user.map_or_else(|| uid.to_string(), str::to_owned),
        file: ids.subordinate.into(),
    };
    // A file that cannot be read gives nobody anything.
    let text = fs::read_to_string(ids.subordinate).map_err(|_| none())?;
    let ranges = parse(&text, user, uid);
    if ranges.is_empty() {
        return Err(none());
    }
    let mut inside: u32 = 1;
    let mut map = vec![IdRange {
        inside: 0,
        outside: ids.own,
        count: 1,
    }];
    for (outside, count) in ranges {
        let Some(next) = inside.checked_add(count) else {
            break;
        };
        map.push(IdRange {
            inside,
            outside,
            count,
        });
        inside = next;
    }
    Ok(IdMap::ranges(map))
}

/// The ranges of a user in a file as described in `subuid(5)`; lines that are no ranges do not
/// count, as for the tools of shadow.
fn parse(text: &str, user: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let (owner, range) = line.split_once(':')?;
            let (first, count) = range.split_once(':')?;
            let mine = Some(owner) == user || owner.parse() == Ok(uid);
            let range = (first.parse().ok()?, count.trim_end().parse().ok()?);
            (mine && range.1 > 0).then_some(range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "\
alice:100000:65536
bob:165536:65536
1000:300000:10
# alice:1:1
alice:x:1
alice:5:0
";
        assert_eq!(
            parse(text, Some("alice"), 1000),
            [(100_000, 65_536), (300_000, 10)]
        );
        assert_eq!(parse(text, None, 1000), [(300_000, 10)]);
        assert_eq!(parse(text, Some("carol"), 7), []);
    }
}
