//! Access control lists, as attributes and as text, beside GNU tar.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::beside_tar::{XATTRS, facts, ours, theirs};
use common::{Arena, Head, Tar, tar_directory, unpack_with};
use oci_image::{IdRange, Ownership, SkipReason, UnpackOptions, Whiteouts, Xattrs};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const UNDEFINED: u32 = u32::MAX;

/// An attribute's value: tag, permissions and id of each line.
fn acl(lines: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for (tag, permissions, id) in lines {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// `user::rwx`, somebody, `group::r-x`, some group, `mask::rwx`, `other::---`.
fn named(uid: u32, gid: u32) -> Vec<u8> {
    acl(&[
        (0x01, 7, UNDEFINED),
        (0x02, 6, uid),
        (0x04, 5, UNDEFINED),
        (0x08, 7, gid),
        (0x10, 7, UNDEFINED),
        (0x20, 0, UNDEFINED),
    ])
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    match rustix::fs::getxattr(path, name, value.as_mut_slice()) {
        Ok(n) => Some(value[..n].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[test]
#[ignore = "needs root"]
fn lists_are_those_that_gnu_tar_sets() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("d/sub")).unwrap();
    for name in ["before", "d/file", "d/sub/file"] {
        fs::write(tree.join(name), name).unwrap();
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    set(&tree.join("before"), ACCESS, &named(12_345, 54_321));
    set(&tree.join("d"), ACCESS, &named(12_346, 54_322));
    // What is in the directory has no list, though one made there now would get this one.
    set(&tree.join("d"), DEFAULT, &named(12_347, 54_323));
    let archive = dir.path().join("archive.tar");
    for attributes in [&["--acls"][..], XATTRS] {
        let format = [&["--format=posix", "--numeric-owner"], attributes].concat();
        tar_directory(&tree, &archive, &format);
        let (one, two) = (dir.path().join("ours"), dir.path().join("theirs"));
        assert_eq!(ours(&archive, &one).unwrap(), []);
        let output = theirs(&archive, &two, attributes);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(facts(&one), facts(&tree), "{attributes:?}");
        assert_eq!(facts(&one), facts(&two), "{attributes:?}");
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&two).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn a_default_list_of_a_layer_below_is_not_handed_on() {
    let arena = Arena::new();
    fs::create_dir(arena.root().join("d")).unwrap();
    set(&arena.root().join("d"), DEFAULT, &named(1, 2));
    let archive = Tar::new()
        .file("d/file", "")
        .dir("d/sub/")
        .head(&Head::new("d/pipe", b'6'))
        .end();
    unpack_with(
        &archive,
        &arena.root(),
        &UnpackOptions::new(Whiteouts::Apply),
    )
    .unwrap();
    for (name, mode) in [("d/file", 0o644), ("d/sub", 0o755), ("d/pipe", 0o644)] {
        let path = arena.root().join(name);
        assert_eq!(get(&path, ACCESS), None, "{name}");
        if path.is_dir() {
            assert_eq!(get(&path, DEFAULT), None, "{name}");
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
    }
}

fn with_text(text: &str) -> Vec<u8> {
    Tar::new()
        .pax(&[("SCHILY.acl.access", text.as_bytes())])
        .file("file", "")
        .end()
}

#[test]
#[ignore = "needs root"]
fn ids_in_lists_are_mapped_as_owners_are() {
    let text = "user::rwx,user:12345:rw-,group::r-x,group:54321:rwx,mask::rwx,other::---";
    let range = |outside| {
        vec![IdRange {
            inside: 0,
            outside,
            count: 65_536,
        }]
    };
    let mapped = Ownership::Mapped {
        uids: range(100_000),
        gids: range(200_000),
    };
    let attribute = Tar::new()
        .pax(&[(
            "SCHILY.xattr.system.posix_acl_access",
            &named(12_345, 54_321),
        )])
        .file("file", "")
        .end();
    for archive in [with_text(text), attribute] {
        let arena = Arena::new();
        let options = UnpackOptions::new(Whiteouts::Apply).ownership(mapped.clone());
        unpack_with(&archive, &arena.root(), &options).unwrap();
        assert_eq!(
            get(&arena.root().join("file"), ACCESS),
            Some(named(112_345, 254_321))
        );
        // Where everything is to belong to one, nobody else can be named.
        let arena = Arena::new();
        let options = common::options(Whiteouts::Apply);
        let report = unpack_with(&archive, &arena.root(), &options).unwrap();
        assert_eq!(
            report.skipped[0].reason,
            SkipReason::Xattr(ACCESS.to_owned())
        );
        assert_eq!(get(&arena.root().join("file"), ACCESS), None);
    }
}

#[test]
fn what_is_no_list_is_left_out_or_an_error() {
    for text in ["nonsense", "user:somebody:rwx", "user::rwx,user::rwx"] {
        let arena = Arena::new();
        let options = common::options(Whiteouts::Apply);
        let report = unpack_with(&with_text(text), &arena.root(), &options).unwrap();
        assert_eq!(
            report.skipped[0].reason,
            SkipReason::Xattr(ACCESS.to_owned()),
            "{text}"
        );
        let arena = Arena::new();
        let error = unpack_with(
            &with_text(text),
            &arena.root(),
            &options.xattrs(Xattrs::Strict),
        )
        .unwrap_err();
        assert!(error.to_string().contains("\"file\""), "{error}");
    }
}
