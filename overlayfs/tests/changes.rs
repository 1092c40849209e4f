//! What an upper layer changed, against a mounted overlay that made the changes.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::Scratch;
use overlayfs::{
    ChangeKind, Error, Index, Marks, Metacopy, Opaque, Options, Overlay, Redirect, RedirectDir,
    Upper, Whiteout,
};

/// Two layers with a bit of everything.
fn layers(scratch: &Scratch) {
    scratch.write("base/etc/hosts", "localhost");
    scratch.write("base/etc/passwd", "root");
    scratch.write("base/bin/sh", "shell");
    scratch.write("base/usr/lib/libc", "c");
    scratch.write("base/usr/lib/libm", "m");
    scratch.write("base/var/log/old", "old");
    symlink("sh", scratch.path("base/bin/bash")).unwrap();
    scratch.write("app/srv/app/main", "main");
    scratch.write("app/etc/hosts", "localhost app");
    // Long ago, so that a change of time is never too small to be seen.
    for layer in ["base", "app"] {
        common::age(&scratch.path(layer));
    }
}

fn upper(scratch: &Scratch) -> Upper {
    Upper::over_bottom_up(
        [scratch.path("base"), scratch.path("app")],
        scratch.path("upper"),
    )
    .unwrap()
}

fn printed(upper: &Upper) -> Vec<String> {
    upper
        .changes()
        .map(|change| change.unwrap().to_string())
        .collect()
}

/// Mounts the layers, changes something, unmounts, and prints the changes.
fn after(scratch: &Scratch, options: Options, change: impl FnOnce(&Path)) -> Vec<String> {
    layers(scratch);
    let target = scratch.dir("merged");
    let mounted = Overlay::bottom_up([scratch.path("base"), scratch.path("app")])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .options(options)
        .mount(&target)
        .unwrap();
    change(&target);
    mounted.close().unwrap();
    printed(&upper(scratch))
}

#[test]
#[ignore = "needs root"]
fn added_modified_and_deleted_are_told_apart_in_order() {
    let scratch = Scratch::new();
    let changes = after(&scratch, Options::new(), |root| {
        fs::write(root.join("etc/hosts"), "changed").unwrap();
        fs::write(root.join("etc/new"), "new").unwrap();
        fs::remove_file(root.join("etc/passwd")).unwrap();
        fs::remove_dir_all(root.join("var/log")).unwrap();
        fs::create_dir_all(root.join("data/deep")).unwrap();
        fs::write(root.join("data/deep/file"), "").unwrap();
        fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
        // Opened for writing, so copied up, but not written.
        drop(
            fs::OpenOptions::new()
                .write(true)
                .open(root.join("usr/lib/libc"))
                .unwrap(),
        );
        fs::remove_file(root.join("usr/lib/libm")).unwrap();
        fs::create_dir(root.join("usr/lib/libm")).unwrap();
    });
    assert_eq!(
        changes,
        [
            "C /bin/sh",
            "A /data",
            "A /data/deep",
            "A /data/deep/file",
            "C /etc",
            "C /etc/hosts",
            "A /etc/new",
            "D /etc/passwd",
            "C /usr/lib",
            "C /usr/lib/libm",
            "C /var",
            "D /var/log",
        ]
    );
}

#[test]
#[ignore = "needs root"]
fn contents_and_metadata_are_told_apart() {
    let scratch = Scratch::new();
    after(&scratch, Options::new(), |root| {
        fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o755)).unwrap();
        // Same size, same time: only the bytes tell.
        let libc = fs::OpenOptions::new()
            .write(true)
            .open(root.join("usr/lib/libc"))
            .unwrap();
        let time = libc.metadata().unwrap().modified().unwrap();
        std::io::Write::write_all(&mut &libc, b"d").unwrap();
        libc.set_modified(time).unwrap();
        fs::remove_file(root.join("bin/bash")).unwrap();
        fs::write(root.join("bin/bash"), "file").unwrap();
    });
    let kinds: Vec<_> = upper(&scratch)
        .changes()
        .map(Result::unwrap)
        .filter(|change| change.path != Path::new("bin"))
        .map(|change| change.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            ChangeKind::TypeChanged,
            ChangeKind::Modified {
                contents: false,
                metadata: true
            },
            ChangeKind::Modified {
                contents: true,
                metadata: false
            },
        ]
    );
}

#[test]
#[ignore = "needs root"]
fn a_replaced_directory_is_opaque() {
    let scratch = Scratch::new();
    let changes = after(&scratch, Options::new(), |root| {
        fs::remove_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/libc"), "another").unwrap();
    });
    assert_eq!(changes, ["C /usr", "C /usr/lib", "A /usr/lib/libc"]);
    let kind = upper(&scratch)
        .changes()
        .map(Result::unwrap)
        .nth(1)
        .unwrap()
        .kind;
    assert_eq!(kind, ChangeKind::Replaced);
}

#[test]
#[ignore = "needs root"]
fn renames_of_directories_are_followed_or_refused() {
    let scratch = Scratch::new();
    let changes = after(
        &scratch,
        Options::new().redirect_dir(RedirectDir::On),
        |root| {
            fs::rename(root.join("usr/lib"), root.join("lib")).unwrap();
            fs::write(root.join("lib/libc"), "changed").unwrap();
            fs::remove_file(root.join("lib/libm")).unwrap();
        },
    );
    assert_eq!(
        changes,
        [
            "A /lib",
            "C /lib/libc",
            "D /lib/libm",
            "C /usr",
            "D /usr/lib"
        ]
    );
    let renamed = upper(&scratch).changes().next().unwrap().unwrap();
    assert_eq!(
        renamed.kind,
        ChangeKind::Renamed {
            from: "usr/lib".into(),
            replaces: false
        }
    );

    let refused = upper(&scratch).refuse_redirects();
    let error = refused.changes().find_map(Result::err).unwrap();
    assert!(
        matches!(
            error,
            Error::Refused {
                mark: "redirect",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn metacopies_are_followed_or_refused() {
    let scratch = Scratch::new();
    let options = Options::new()
        .metacopy(Metacopy::On)
        .redirect_dir(RedirectDir::On);
    let changes = after(&scratch, options, |root| {
        fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o700)).unwrap();
    });
    assert_eq!(changes, ["C /bin/sh"]);
    let upper = upper(&scratch);
    let entry = upper.merged().lookup("bin/sh").unwrap().unwrap();
    assert_eq!(entry.metadata().mode, 0o700);
    assert_eq!(
        std::io::read_to_string(entry.open().unwrap()).unwrap(),
        "shell"
    );

    let refused = upper.refuse_metacopies();
    let error = refused.changes().find_map(Result::err).unwrap();
    assert!(
        matches!(
            error,
            Error::Refused {
                mark: "metacopy",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_metacopy_without_its_lower_layer_is_an_error_of_its_own() {
    let scratch = Scratch::new();
    let options = Options::new()
        .metacopy(Metacopy::On)
        .redirect_dir(RedirectDir::On);
    after(&scratch, options, |root| {
        fs::set_permissions(root.join("bin/sh"), fs::Permissions::from_mode(0o700)).unwrap();
    });
    fs::remove_file(scratch.path("base/bin/sh")).unwrap();
    let upper = upper(&scratch);
    let entry = upper.merged().lookup("bin/sh").unwrap().unwrap();
    assert!(matches!(entry.open(), Err(Error::MissingContents { .. })));
}

#[test]
#[ignore = "needs root"]
fn hand_made_marks_are_understood_in_every_encoding() {
    let scratch = Scratch::new();
    layers(&scratch);
    scratch.dir("upper/usr/lib");
    scratch.dir("upper/bin");
    Whiteout::Device
        .write(scratch.path("upper/usr/lib/libm"), Marks::Trusted)
        .unwrap();
    Whiteout::Attribute
        .write(scratch.path("upper/bin/sh"), Marks::Trusted)
        .unwrap();
    overlayfs::write_opaque(
        scratch.path("upper/bin"),
        Marks::Trusted,
        Opaque::HasAttributeWhiteouts,
    )
    .unwrap();
    // A whiteout that hides nothing is no change.
    Whiteout::Device
        .write(scratch.path("upper/nothing"), Marks::Trusted)
        .unwrap();
    scratch.dir("upper/etc");
    overlayfs::write_opaque(scratch.path("upper/etc"), Marks::Trusted, Opaque::Replaces).unwrap();
    let changes = printed(&upper(&scratch));
    assert_eq!(
        changes,
        [
            "C /bin",
            "D /bin/sh",
            "C /etc",
            "C /usr",
            "C /usr/lib",
            "D /usr/lib/libm"
        ]
    );
}

#[test]
#[ignore = "needs root"]
fn a_redirect_that_the_layers_do_not_agree_about_is_refused() {
    let scratch = Scratch::new();
    layers(&scratch);
    scratch.dir("upper/elsewhere");
    let redirect = Redirect::Absolute("/usr/../etc".into());
    let error =
        overlayfs::write_redirect(scratch.path("upper/elsewhere"), Marks::Trusted, &redirect)
            .unwrap_err();
    assert!(
        matches!(
            error,
            Error::BadMark {
                mark: "redirect",
                ..
            }
        ),
        "{error}"
    );
    rustix::fs::setxattr(
        scratch.path("upper/elsewhere"),
        "trusted.overlay.redirect",
        b"/usr/../etc",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let error = upper(&scratch).changes().find_map(Result::err).unwrap();
    assert!(
        matches!(
            error,
            Error::BadMark {
                mark: "redirect",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn changes_of_the_top_directory_are_reported() {
    let scratch = Scratch::new();
    let changes = after(&scratch, Options::new(), |root| {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).unwrap();
    });
    assert_eq!(changes, ["C /"]);
}

/// Without privilege: no mount made this layer.
#[test]
fn a_layer_can_be_read_without_privilege() {
    let directory = tempfile::tempdir().unwrap();
    let (base, upper) = (
        directory.path().join("base"),
        directory.path().join("upper"),
    );
    fs::create_dir_all(base.join("sub")).unwrap();
    fs::create_dir_all(upper.join("sub")).unwrap();
    fs::write(base.join("sub/kept"), "kept").unwrap();
    fs::write(base.join("sub/gone"), "gone").unwrap();
    common::age(&base);
    fs::write(upper.join("sub/new"), "new").unwrap();
    Whiteout::Device
        .write(upper.join("sub/gone"), Marks::User)
        .unwrap();
    let upper = Upper::over_bottom_up([base], upper)
        .unwrap()
        .marks(Marks::User)
        .unwrap();
    assert_eq!(printed(&upper), ["C /sub", "D /sub/gone", "A /sub/new"]);
    let names: Vec<_> = upper
        .merged()
        .walk()
        .map(|entry| entry.unwrap().path().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            Path::new("sub"),
            Path::new("sub/kept"),
            Path::new("sub/new")
        ]
    );
}

#[test]
#[ignore = "needs root"]
fn names_that_share_a_copy_are_found_through_the_index() {
    let scratch = Scratch::new();
    scratch.write("base/a", "a");
    fs::hard_link(scratch.path("base/a"), scratch.path("base/b")).unwrap();
    fs::hard_link(scratch.path("base/a"), scratch.path("base/c")).unwrap();
    common::age(&scratch.path("base"));
    let mounted = Overlay::bottom_up([scratch.path("base")])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .options(Options::new().index(Index::On))
        .mount(scratch.dir("merged"))
        .unwrap();
    fs::write(mounted.target().join("a"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(mounted.target().join("b")).unwrap(),
        "changed"
    );
    fs::remove_file(mounted.target().join("c")).unwrap();
    mounted.close().unwrap();
    let upper = Upper::over_bottom_up([scratch.path("base")], scratch.path("upper")).unwrap();
    let error = upper.changes().find_map(Result::err).unwrap();
    assert!(matches!(error, Error::NeedsIndex { .. }), "{error}");
    let upper = upper.index(scratch.path("work")).unwrap();
    assert_eq!(printed(&upper), ["C /a", "D /c", "C /b"]);
}
