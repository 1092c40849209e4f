//! Users of a configuration are looked up in the image's own root, which may be hostile.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use common::Arena;
use oci_image::{Error, Limits, User, UserSpec};

fn resolve(root: &Path, text: &str) -> Result<User, Error> {
    let spec: UserSpec = text.parse()?;
    spec.resolve(File::open(root).unwrap(), &Limits::default())
}

fn arena() -> Arena {
    let arena = Arena::new();
    let etc = arena.root().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(
        etc.join("passwd"),
        "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:34:web:/srv:/bin/sh\nodd:x:77:99999999999::/:\n",
    )
    .unwrap();
    fs::write(
        etc.join("group"),
        "root:x:0:\nweb:x:34:\nlog:x:40:web,other\nadm:x:4:web\n",
    )
    .unwrap();
    arena
}

#[test]
fn names_numbers_and_mixtures() {
    let arena = arena();
    let root = arena.root();
    let triple = |text: &str| {
        let user = resolve(&root, text).unwrap();
        (
            user.uid,
            user.gid,
            user.groups,
            user.home.display().to_string(),
        )
    };
    let home = |path: &str| path.to_owned();
    assert_eq!(triple(""), (0, 0, vec![], home("/root")));
    assert_eq!(triple("web"), (33, 34, vec![4, 40], home("/srv")));
    assert_eq!(triple("33"), (33, 34, vec![4, 40], home("/srv")));
    assert_eq!(triple("web:log"), (33, 40, vec![], home("/srv")));
    assert_eq!(triple("web:7"), (33, 7, vec![], home("/srv")));
    assert_eq!(triple("1234"), (1234, 0, vec![], home("/")));
    assert_eq!(triple("1234:log"), (1234, 40, vec![], home("/")));
    assert_eq!(triple(":log"), (0, 40, vec![], home("/root")));
}

#[test]
fn what_is_not_there_or_out_of_range_is_an_error() {
    let arena = arena();
    let root = arena.root();
    for text in ["nobody", "web:nogroup"] {
        let error = resolve(&root, text).unwrap_err();
        assert!(matches!(error, Error::NoSuchUser { .. }), "{text}: {error}");
    }
    for text in [
        "4294967295",
        "4294967296",
        "-1",
        "2147483648000",
        "web:4294967295",
        "odd",
    ] {
        let error = resolve(&root, text).unwrap_err();
        assert!(
            matches!(error, Error::IdOutOfRange { .. }),
            "{text}: {error}"
        );
    }
    for text in ["a:b:c", "a/b", "a\nb"] {
        assert!(
            matches!(resolve(&root, text), Err(Error::BadValue { .. })),
            "{text:?}"
        );
    }
}

#[test]
fn a_root_without_files_knows_numbers_only() {
    let arena = Arena::new();
    assert_eq!(resolve(&arena.root(), "5:6").unwrap().uid, 5);
    assert_eq!(resolve(&arena.root(), "").unwrap().uid, 0);
    assert!(resolve(&arena.root(), "web").is_err());
}

#[test]
fn links_stay_in_the_root_and_strange_files_are_refused() {
    let arena = Arena::new();
    let root = arena.root();
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(arena.outside().join("secret"), "untouched").unwrap();
    // Absolute: within the root it leads to nothing.
    symlink(arena.outside().join("secret"), root.join("etc/passwd")).unwrap();
    assert!(matches!(
        resolve(&root, "web"),
        Err(Error::NoSuchUser { .. })
    ));
    fs::remove_file(root.join("etc/passwd")).unwrap();
    fs::write(root.join("real"), "web:x:9:9::/:\n").unwrap();
    symlink("/real", root.join("etc/passwd")).unwrap();
    assert_eq!(resolve(&root, "web").unwrap().uid, 9);
    fs::remove_file(root.join("etc/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("etc/passwd"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(matches!(resolve(&root, "web"), Err(Error::Io { .. })));
    fs::remove_file(root.join("etc/passwd")).unwrap();
    let huge = File::create(root.join("etc/passwd")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(matches!(resolve(&root, "web"), Err(Error::Limit { .. })));
}
