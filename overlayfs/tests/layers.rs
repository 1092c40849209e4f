//! Many layers, long paths, and layers that are more than a path.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Holder, Scratch, fd_path};
use overlayfs::{
    Error, Features, Fsync, Index, Interface, Layer, MAX_LOWER_LAYERS, Marks, Merged, Metacopy,
    NfsExport, Options, Overlay, Redirect, RedirectDir, Uuid, Verity, Xino,
};

const INTERFACES: [Interface; 3] = [Interface::Auto, Interface::OnePage, Interface::Classic];

#[test]
#[ignore = "needs root"]
fn five_hundred_layers_are_stacked() {
    // Two at a time would open more files than a process may by default.
    let _alone = common::alone();
    for interface in INTERFACES {
        let scratch = Scratch::new();
        let layers: Vec<PathBuf> = (0..MAX_LOWER_LAYERS)
            .map(|number| {
                let name = format!("a layer with a name that is rather long/{number}");
                scratch.write(&format!("{name}/own{number}"), "");
                scratch.write(&format!("{name}/shared"), &number.to_string());
                scratch.path(&name)
            })
            .collect();
        let mounted = Overlay::bottom_up(&layers)
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .interface(interface)
            .mount(scratch.dir("merged"))
            .unwrap();
        assert_eq!(
            fs::read_dir(mounted.target()).unwrap().count(),
            MAX_LOWER_LAYERS + 1
        );
        assert_eq!(
            fs::read_to_string(mounted.target().join("shared")).unwrap(),
            "499"
        );
        mounted.close().unwrap();
        let merged = Merged::bottom_up(&layers).unwrap();
        assert_eq!(merged.walk().count(), MAX_LOWER_LAYERS + 1);
        let shared = merged.lookup("shared").unwrap().unwrap();
        assert_eq!(
            std::io::read_to_string(shared.open().unwrap()).unwrap(),
            "499"
        );
    }
}

/// A directory whose path from the root has more than 4,096 bytes, and its path.
fn deep(scratch: &Scratch, name: &str) -> PathBuf {
    let mut path = scratch.dir(name);
    let mut at = fs::File::open(&path).unwrap();
    for _ in 0..20 {
        let part = "d".repeat(250);
        rustix::fs::mkdirat(&at, part.as_str(), rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        at = rustix::fs::openat(&at, part.as_str(), flags, rustix::fs::Mode::empty())
            .unwrap()
            .into();
        path.push(part);
    }
    path
}

#[test]
#[ignore = "needs root"]
fn paths_longer_than_the_kernels_limit_can_be_layers() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        let (base, upper) = (deep(&scratch, "base"), deep(&scratch, "both"));
        assert!(base.as_os_str().len() > 4096);
        // Within such a directory, through its descriptor.
        let both = overlayfs_open(&upper);
        for name in ["upper", "work"] {
            rustix::fs::mkdirat(&both, name, rustix::fs::Mode::RWXU).unwrap();
        }
        let mounted = Overlay::bottom_up([&base])
            .upper(upper.join("upper"), upper.join("work"))
            .interface(interface)
            .mount(scratch.dir("merged"))
            .unwrap();
        fs::write(mounted.target().join("file"), "file").unwrap();
        mounted.close().unwrap();
        assert_eq!(
            fs::read_to_string(fd_path(&both).join("upper/file")).unwrap(),
            "file"
        );
    }
}

/// As many layers as there can be, each with a path as long as there can be, and by each kind
/// of name: so much is too long for any page.
#[test]
#[ignore = "needs root"]
fn five_hundred_layers_can_have_the_longest_paths() {
    // Two at a time would open more files than a process may by default.
    let _alone = common::alone();
    let ways = INTERFACES
        .map(|interface| (interface, false))
        .into_iter()
        .chain([(Interface::OnePage, true)]);
    for (interface, by_descriptor) in ways {
        let scratch = Scratch::new();
        let mut parent = scratch.dir("layers");
        while parent.as_os_str().len() < 3800 {
            parent.push("a,b:c\\d ".repeat(20));
        }
        parent.push("p".repeat(4095 - 4 - 1 - parent.as_os_str().len()));
        fs::create_dir_all(&parent).unwrap();
        let layers: Vec<PathBuf> = (0..MAX_LOWER_LAYERS)
            .map(|number| parent.join(format!("{number:03}")))
            .collect();
        for layer in &layers {
            // With its final NUL it is PATH_MAX.
            assert_eq!(layer.as_os_str().len(), 4095);
            fs::create_dir(layer).unwrap();
            fs::write(
                fd_path(&overlayfs_open(layer)).join(layer.file_name().unwrap()),
                "",
            )
            .unwrap();
        }
        let overlay = if by_descriptor {
            Overlay::bottom_up(layers.iter().map(|layer| overlayfs_open(layer)))
        } else {
            Overlay::bottom_up(&layers)
        };
        let mounted = overlay
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .interface(interface)
            .mount(scratch.dir("merged"))
            .unwrap();
        let seen = fs::read_dir(mounted.target()).unwrap().count();
        assert_eq!(seen, MAX_LOWER_LAYERS, "{interface:?} {by_descriptor}");
        mounted.close().unwrap();
    }
}

fn overlayfs_open(path: &Path) -> OwnedFd {
    let mut at: OwnedFd = fs::File::open("/").unwrap().into();
    for part in path.components().skip(1) {
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        at = rustix::fs::openat(&at, part.as_os_str(), flags, rustix::fs::Mode::empty()).unwrap();
    }
    at
}

#[test]
#[ignore = "needs root"]
fn trees_deeper_than_a_path_can_say_are_read_and_copied() {
    let scratch = Scratch::new();
    let inside = deep(&scratch, "base");
    let below = inside.strip_prefix(scratch.path("base")).unwrap();
    let file = overlayfs_open(&inside);
    fs::write(fd_path(&file).join("file"), "deep").unwrap();
    let merged = Merged::bottom_up([scratch.path("base")]).unwrap();
    assert_eq!(merged.walk().count(), 21);
    let entry = merged.lookup(below.join("file")).unwrap().unwrap();
    assert_eq!(
        std::io::read_to_string(entry.open().unwrap()).unwrap(),
        "deep"
    );
    let options = overlayfs::CopyOptions::new().durability(overlayfs::Durability::ProcessDeath);
    merged.flatten(scratch.path("copy"), options).unwrap();
    assert_eq!(
        Merged::bottom_up([scratch.path("copy")])
            .unwrap()
            .walk()
            .count(),
        21
    );
}

#[test]
#[ignore = "needs root"]
fn features_are_what_mounting_shows() {
    let features = Features::probe().unwrap();
    assert!(features.mount && features.redirect_dir && features.index && features.metacopy);
    assert!(features.volatile, "Linux 5.10 has it");
    let scratch = Scratch::new();
    let mount = |options: Options| {
        scratch.dir("base");
        let number = fs::read_dir(scratch.path("")).unwrap().count();
        Overlay::bottom_up([scratch.path("base")])
            .upper(
                scratch.dir(&format!("upper{number}")),
                scratch.dir(&format!("work{number}")),
            )
            // Tmpfs has attributes for ordinary users since Linux 6.6.
            .tolerate_missing_xattrs()
            .options(options)
            .mount_detached()
    };
    let asked = [
        (
            features.redirect_dir,
            Options::new().redirect_dir(RedirectDir::On),
            "redirect_dir",
        ),
        (
            features.metacopy,
            Options::new().metacopy(Metacopy::On),
            "metacopy",
        ),
        (features.index, Options::new().index(Index::On), "index"),
        (features.xino, Options::new().xino(Xino::On), "xino"),
        (
            features.nfs_export,
            Options::new().index(Index::On).nfs_export(NfsExport::On),
            "nfs_export",
        ),
        (
            features.volatile,
            Options::new().fsync(Fsync::Volatile),
            "volatile",
        ),
        (
            features.fsync_strict,
            Options::new().fsync(Fsync::Strict),
            "fsync",
        ),
        (true, Options::new().fsync(Fsync::Auto), "fsync"),
        (features.uuid_off, Options::new().uuid(Uuid::Off), "uuid"),
        (features.uuid, Options::new().uuid(Uuid::On), "uuid"),
        (features.uuid, Options::new().uuid(Uuid::Auto), "uuid"),
        (features.uuid, Options::new().uuid(Uuid::Null), "uuid"),
        (features.verity, Options::new().verity(Verity::On), "verity"),
        (
            features.verity,
            Options::new().verity(Verity::Require),
            "verity",
        ),
        (
            features.user_marks,
            Options::new().marks(Marks::User),
            "userxattr",
        ),
    ];
    for (has, options, word) in asked {
        match mount(options) {
            Ok(_) => assert!(has, "{word} works"),
            Err(error) => {
                assert!(!has, "{word}: {error}");
                assert!(
                    matches!(error, Error::Unsupported { feature, .. } if feature == word),
                    "{error}"
                );
            }
        }
    }
}

/// The mount table says what the kernel made of the options.
#[test]
#[ignore = "needs root"]
fn options_are_the_ones_that_the_mount_table_shows() {
    let features = Features::probe().unwrap();
    let (other, scratch) = (Scratch::new(), Scratch::new());
    let shown = |options: Options| {
        let number = fs::read_dir(scratch.path("")).unwrap().count();
        // With one filesystem xino has nothing to do, and with two uuid=off is no choice.
        let base = if options == Options::new().xino(Xino::On) {
            other.dir("base")
        } else {
            scratch.dir("base")
        };
        let mounted = Overlay::bottom_up([base])
            .upper(
                scratch.dir(&format!("upper{number}")),
                scratch.dir(&format!("work{number}")),
            )
            // Tmpfs has attributes for ordinary users since Linux 6.6.
            .tolerate_missing_xattrs()
            .options(options)
            .mount(scratch.dir("merged"))
            .unwrap();
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table
            .lines()
            .find(|line| line.contains(mounted.target().to_str().unwrap()))
            .unwrap();
        let options = line.rsplit(' ').next().unwrap().to_owned();
        mounted.close().unwrap();
        options
    };
    // Only what is not the kernel's own choice is shown.
    let mut asked = vec![
        (
            Options::new()
                .redirect_dir(RedirectDir::On)
                .metacopy(Metacopy::On),
            vec!["redirect_dir=on", "metacopy=on"],
        ),
        (
            Options::new().redirect_dir(RedirectDir::NoFollow),
            vec!["redirect_dir=nofollow"],
        ),
        (
            Options::new().index(Index::On).nfs_export(NfsExport::On),
            vec!["index=on", "nfs_export=on"],
        ),
        (Options::new().xino(Xino::On), vec!["xino=on"]),
        (Options::new().uuid(Uuid::Off), vec!["uuid=off"]),
        (Options::new().fsync(Fsync::Volatile), vec!["volatile"]),
        (Options::new().marks(Marks::User), vec!["userxattr"]),
    ];
    if features.uuid {
        asked.push((Options::new().uuid(Uuid::On), vec!["uuid=on"]));
        asked.push((Options::new().uuid(Uuid::Null), vec!["uuid=null"]));
    }
    if features.verity {
        asked.push((Options::new().verity(Verity::On), vec!["verity=on"]));
        asked.push((
            Options::new().verity(Verity::Require),
            vec!["verity=require"],
        ));
    }
    if features.fsync_strict {
        asked.push((Options::new().fsync(Fsync::Strict), vec!["fsync=strict"]));
    }
    for (options, words) in asked {
        let line = shown(options);
        for word in words {
            assert!(
                line.split(',').any(|shown| shown.ends_with(word)),
                "{word}: {line}"
            );
        }
    }
}

/// A handle of a file in an overlay that can be exported opens that file again.
#[test]
#[ignore = "needs root"]
fn an_overlay_that_can_be_exported_gives_handles() {
    let _alone = common::alone();
    let scratch = Scratch::new();
    scratch.write("base/file", "file");
    for (export, works) in [(NfsExport::On, true), (NfsExport::Off, false)] {
        let mounted = Overlay::bottom_up([scratch.path("base")])
            .upper(
                scratch.dir(&format!("upper{works}")),
                scratch.dir(&format!("work{works}")),
            )
            .options(Options::new().index(Index::On).nfs_export(export))
            .mount(scratch.dir("merged"))
            .unwrap();
        let script = "import ctypes, os, sys\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            handle = ctypes.create_string_buffer(b'\\x80\\0\\0\\0', 136)\n\
            mount = ctypes.c_int()\n\
            if libc.name_to_handle_at(-100, sys.argv[1].encode(), handle, ctypes.byref(mount), 0):\n\
            \x20   sys.exit(3)\n\
            at = os.open(sys.argv[2], os.O_RDONLY)\n\
            fd = libc.open_by_handle_at(at, handle, os.O_RDONLY)\n\
            sys.stdout.write(os.read(fd, 100).decode() if fd >= 0 else os.strerror(ctypes.get_errno()))\n";
        let output = Command::new("python3")
            .args(["-c", script])
            .arg(mounted.target().join("file"))
            .arg(mounted.target())
            .output()
            .unwrap();
        let read = String::from_utf8_lossy(&output.stdout) == "file";
        assert_eq!(read, works, "{export:?}: {output:?}");
        mounted.close().unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn contents_can_come_from_a_data_only_layer() {
    let scratch = Scratch::new();
    scratch.write("data/objects/1234", "contents");
    scratch.write("base/file", "");
    fs::File::options()
        .write(true)
        .open(scratch.path("base/file"))
        .unwrap()
        .set_len(8)
        .unwrap();
    overlayfs::write_metacopy(scratch.path("base/file"), Marks::Trusted, None).unwrap();
    let redirect = Redirect::Absolute("/objects/1234".into());
    overlayfs::write_redirect(scratch.path("base/file"), Marks::Trusted, &redirect).unwrap();
    let merged = Merged::bottom_up([scratch.path("base")])
        .unwrap()
        .data_only(scratch.path("data"))
        .unwrap();
    let file = merged.lookup("file").unwrap().unwrap();
    assert_eq!(
        std::io::read_to_string(file.open().unwrap()).unwrap(),
        "contents"
    );
    assert!(merged.lookup("objects").unwrap().is_none());

    let mounted = Overlay::bottom_up([scratch.path("base")])
        .data_only(scratch.path("data"))
        .options(
            Options::new()
                .redirect_dir(RedirectDir::On)
                .metacopy(Metacopy::On),
        )
        .mount(scratch.dir("merged"));
    if Features::probe().unwrap().data_only_layers {
        let mounted = mounted.unwrap();
        assert_eq!(
            fs::read_to_string(mounted.target().join("file")).unwrap(),
            "contents"
        );
    } else {
        assert!(matches!(mounted.unwrap_err(), Error::Unsupported { .. }));
    }
}

#[test]
#[ignore = "needs root"]
fn idmapped_layers_show_other_owners() {
    let _alone = common::alone();
    let scratch = Scratch::new();
    scratch.write("base/file", "");
    let holder = Holder::new();
    // On a filesystem that can be idmapped: tmpfs can since Linux 6.3, ext4 since 5.12.
    let made = overlayfs::idmapped(
        scratch.path("base"),
        fs::File::open(holder.namespace_path()).unwrap(),
    );
    if kernel() < (6, 3) {
        let error = made.unwrap_err();
        assert!(matches!(error, Error::Mount { .. }), "{error}");
    } else {
        let layer = overlayfs::attach(made.unwrap(), scratch.dir("idmapped")).unwrap();
        let mounted = Overlay::bottom_up([layer.target()])
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .mount(scratch.dir("merged"))
            .unwrap();
        assert_eq!(
            mounted.target().join("file").metadata().unwrap().uid(),
            100_000
        );
        assert_eq!(scratch.path("base/file").metadata().unwrap().uid(), 0);
    }
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap(), parts.next().unwrap())
}

#[test]
#[ignore = "needs root"]
fn detached_mounts_are_layers_where_the_kernel_takes_them() {
    let scratch = Scratch::new();
    let lower = common::tmpfs("1m");
    fs::write(fd_path(&lower).join("file"), "detached").unwrap();
    let made = Overlay::bottom_up([Layer::from(lower)])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .mount_detached();
    if Features::probe().unwrap().detached_layers {
        let root = made.unwrap();
        assert_eq!(
            fs::read_to_string(fd_path(&root).join("file")).unwrap(),
            "detached"
        );
    } else {
        let error = made.unwrap_err();
        assert!(
            matches!(error, Error::Unsupported { since: "6.15", .. }),
            "{error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_detached_mount_can_become_read_only_and_writable() {
    let scratch = Scratch::new();
    scratch.dir("base");
    let root = Overlay::bottom_up([scratch.path("base")])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .mount_detached()
        .unwrap();
    overlayfs::set_read_only(&root, true).unwrap();
    let refused = fs::write(fd_path(&root).join("file"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    overlayfs::set_read_only(&root, false).unwrap();
    fs::write(fd_path(&root).join("file"), "").unwrap();
}
