//! Every mark that can be written is one that the kernel obeys, and every mark that the kernel
//! writes is one that can be read.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::OnLoop;
use overlayfs::{
    EntryMarks, Features, Marks, Merged, Metacopy, Opaque, Options, Overlay, Redirect, RedirectDir,
    VerityDigest, Whiteout, write_impure, write_metacopy, write_opaque, write_origin,
    write_redirect,
};

/// On ext4, which has attributes of both classes on every kernel.
struct Layers(OnLoop);

impl Layers {
    fn new() -> Self {
        Layers(OnLoop::made_by("mke2fs", &["-q", "-t", "ext4"]))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.dir("").join(name)
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    fn mount(&self, marks: Marks) -> overlayfs::Mounted {
        let options = match marks {
            Marks::Trusted => Options::new()
                .redirect_dir(RedirectDir::On)
                .metacopy(Metacopy::On),
            Marks::User => Options::new(),
        };
        Overlay::bottom_up([self.path("base"), self.path("app")])
            .upper(self.0.dir("upper"), self.0.dir("work"))
            .options(options.marks(marks))
            .mount(self.0.dir("merged"))
            .unwrap()
    }
}

/// What is in a tree, as the kernel shows it and as this crate does.
fn seen(mounted: &overlayfs::Mounted, merged: &Merged) -> Vec<PathBuf> {
    fn walk(root: &Path, at: &Path, found: &mut Vec<PathBuf>) {
        let mut names: Vec<_> = fs::read_dir(root.join(at))
            .unwrap()
            .map(|entry| at.join(entry.unwrap().file_name()))
            .collect();
        names.sort();
        for path in names {
            found.push(path.clone());
            if root.join(&path).is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(mounted.target(), Path::new(""), &mut found);
    let ours: Vec<_> = merged
        .walk()
        .map(|entry| entry.unwrap().path().to_owned())
        .collect();
    assert_eq!(found, ours);
    found
}

#[test]
#[ignore = "needs root"]
fn the_kernel_obeys_what_is_written() {
    let _alone = common::alone();
    for marks in [Marks::Trusted, Marks::User] {
        let layers = Layers::new();
        for file in ["whiteout/a", "whiteout/b", "opaque/below", "moved/inside"] {
            layers.write(&format!("base/{file}"), "below");
        }
        layers.write("base/metacopy", "contents");
        layers.write("app/whiteout/c", "above");
        layers.write("app/opaque/above", "above");
        let app = layers.path("app");
        Whiteout::Device
            .write(app.join("whiteout/a"), marks)
            .unwrap();
        write_opaque(app.join("opaque"), marks, Opaque::Replaces).unwrap();
        let mut expected = vec!["metacopy", "moved", "moved/inside"];
        if marks == Marks::Trusted {
            // Ordinary users' overlays follow neither.
            fs::create_dir(app.join("here")).unwrap();
            write_redirect(app.join("here"), marks, &Redirect::Sibling("moved".into())).unwrap();
            fs::create_dir(app.join("whiteout/there")).unwrap();
            write_redirect(
                app.join("whiteout/there"),
                marks,
                &Redirect::Absolute("/moved".into()),
            )
            .unwrap();
            let copy = fs::File::create(app.join("metacopy")).unwrap();
            copy.set_len(8).unwrap();
            copy.set_permissions(fs::Permissions::from_mode(0o600))
                .unwrap();
            write_metacopy(app.join("metacopy"), marks, None).unwrap();
            expected = vec!["here", "here/inside", "metacopy", "moved", "moved/inside"];
        }
        expected.extend([
            "opaque",
            "opaque/above",
            "whiteout",
            "whiteout/b",
            "whiteout/c",
        ]);
        if marks == Marks::Trusted {
            expected.extend(["whiteout/there", "whiteout/there/inside"]);
        }
        let mounted = layers.mount(marks);
        let merged = Merged::bottom_up([layers.path("base"), app.clone()])
            .unwrap()
            .marks(marks)
            .unwrap();
        let expected: Vec<_> = expected.into_iter().map(PathBuf::from).collect();
        assert_eq!(seen(&mounted, &merged), expected, "{marks:?}");
        let file = mounted.target().join("metacopy");
        assert_eq!(fs::read_to_string(&file).unwrap(), "contents");
        if marks == Marks::Trusted {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        mounted.close().unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn the_kernel_obeys_whiteouts_that_are_attributes_where_it_has_them() {
    let _alone = common::alone();
    // Linux 6.7 brought both the one and, in a kernel that has data-only layers as well, the
    // other.
    let known = Features::probe().unwrap().data_only_layers;
    for marks in [Marks::Trusted, Marks::User] {
        let layers = Layers::new();
        layers.write("base/dir/hidden", "below");
        layers.write("base/dir/shown", "below");
        fs::create_dir_all(layers.path("app/dir")).unwrap();
        let whiteout = layers.path("app/dir/hidden");
        Whiteout::Attribute.write(&whiteout, marks).unwrap();
        write_opaque(layers.path("app/dir"), marks, Opaque::HasAttributeWhiteouts).unwrap();
        // The top directory says that there are any.
        write_opaque(layers.path("app"), marks, Opaque::HasAttributeWhiteouts).unwrap();
        let read = EntryMarks::read(&whiteout, marks).unwrap();
        assert_eq!(read.whiteout, Some(Whiteout::Attribute));
        let mounted = layers.mount(marks);
        let there = mounted.target().join("dir/hidden").exists();
        assert_eq!(there, !known, "{marks:?}");
        let mut names: Vec<_> = fs::read_dir(mounted.target().join("dir"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(
            names.len(),
            if known { 1 } else { 2 },
            "{marks:?}: {names:?}"
        );
        mounted.close().unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_writes_is_read_and_written_back() {
    let _alone = common::alone();
    let layers = Layers::new();
    layers.write("base/dir/file", "contents");
    layers.write("base/dir/gone", "contents");
    layers.write("base/old/file", "contents");
    layers.write("base/replaced/file", "contents");
    fs::create_dir_all(layers.path("app")).unwrap();
    let mounted = layers.mount(Marks::Trusted);
    let root = mounted.target();
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(root.join("dir/gone")).unwrap();
    fs::rename(root.join("old"), root.join("new")).unwrap();
    fs::remove_dir_all(root.join("replaced")).unwrap();
    fs::create_dir(root.join("replaced")).unwrap();
    mounted.close().unwrap();
    let read =
        |name: &str| EntryMarks::read(layers.path("upper").join(name), Marks::Trusted).unwrap();

    let file = read("dir/file");
    assert_eq!(file.metacopy, Some(None));
    let origin = file.origin.clone().unwrap().unwrap();
    assert!(!origin.is_upper && !origin.handle.is_empty());
    assert!(read("dir").impure);
    assert_eq!(read("dir/gone").whiteout, Some(Whiteout::Device));
    assert_eq!(read("new").redirect, Some(Redirect::Sibling("old".into())));
    assert_eq!(read("replaced").opaque, Some(Opaque::Replaces));

    // The same again by hand, on things that have no marks.
    let copy = layers.write("upper/dir/copy", "");
    write_metacopy(&copy, Marks::Trusted, None).unwrap();
    write_origin(&copy, Marks::Trusted, Some(&origin)).unwrap();
    assert_eq!(read("dir/copy"), file);
    let digest = VerityDigest {
        algorithm: 1,
        digest: vec![7; 32],
    };
    write_metacopy(&copy, Marks::Trusted, Some(&digest)).unwrap();
    assert_eq!(read("dir/copy").metacopy, Some(Some(digest)));
    fs::create_dir(layers.path("upper/plain")).unwrap();
    assert_eq!(read("plain"), EntryMarks::default());
    write_impure(layers.path("upper/plain"), Marks::Trusted).unwrap();
    assert!(read("plain").impure);
    write_origin(layers.path("upper/plain"), Marks::Trusted, None).unwrap();
    assert_eq!(read("plain").origin, Some(None));
}
