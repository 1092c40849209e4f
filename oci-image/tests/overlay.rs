//! What an overlay gathered in its upper directory, given as an iterator of entries, becomes a layer.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use common::{Arena, run, unpack_with};
use oci_image::{
    Compression, Entry, EntryKind, LayerWriter, Metadata, PackOptions, UnpackOptions, Whiteouts,
    diff, walk,
};

/// Mounts an overlay for a moment, changes what it shows, and copies that.
const CHANGE: &str = r#"
    cd "$1" && mkdir lower upper work merged &&
    mkdir -p lower/kept lower/gone/deep lower/renewed && echo a > lower/kept/file && echo b > lower/kept/removed &&
    echo c > lower/renewed/old && echo d > lower/plain && ln lower/plain lower/other &&
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,index=off,metacopy=off,redirect_dir=off \
        overlay merged &&
    rm merged/kept/removed && rm -r merged/gone && rm -r merged/renewed && mkdir merged/renewed &&
    echo new > merged/renewed/new && echo changed > merged/plain && chmod 700 merged/kept &&
    ln -s nowhere merged/link && mkfifo merged/pipe && chown 5:6 merged/kept/file &&
    cp -a merged shown && umount merged
"#;

/// The entries of an upper directory: what overlayfs has for marks, as the marks of a layer.
fn changes(upper: &Path) -> impl Iterator<Item = oci_image::Result<Entry>> {
    walk(upper).unwrap().flat_map(|entry| {
        let Ok(mut entry) = entry else {
            return vec![entry];
        };
        let path = upper.join(&entry.path);
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.file_type().is_char_device() && stat.rdev() == 0 {
            entry.kind = EntryKind::Whiteout;
        }
        let mut value = [0; 1];
        let opaque = stat.is_dir()
            && rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut value) == Ok(1)
            && value == *b"y";
        let mark = opaque.then(|| Entry {
            path: entry.path.clone(),
            kind: EntryKind::Opaque,
            metadata: Metadata::new(0),
        });
        [Some(entry), mark].into_iter().flatten().map(Ok).collect()
    })
}

#[test]
#[ignore = "needs root"]
fn a_layer_of_the_changes_gives_what_the_overlay_showed() {
    let arena = Arena::new();
    let base = arena.root();
    // The mount is seen by nobody else, and ends with the script.
    run(Command::new("unshare")
        .args(["--mount", "sh", "-ec", CHANGE, "sh"])
        .arg(&base));
    let options = PackOptions::new().compression(Compression::None);
    let mut writer = LayerWriter::new(Vec::new(), options).unwrap();
    writer.append_all(changes(&base.join("upper"))).unwrap();
    let (_, layer) = writer.finish().unwrap();

    // Carried out over what was below.
    let applied = UnpackOptions::new(Whiteouts::Apply);
    unpack_with(&layer, &base.join("lower"), &applied).unwrap();
    let left: Vec<_> = diff(base.join("lower"), base.join("shown"))
        .unwrap()
        .map(|change| change.unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // And as overlayfs had it.
    let again = base.join("again");
    fs::create_dir(&again).unwrap();
    unpack_with(&layer, &again, &UnpackOptions::new(Whiteouts::Overlay)).unwrap();
    // Whiteouts have no time of their own, and so the directories that they are in are named, too.
    let left: Vec<_> = diff(base.join("upper"), &again)
        .unwrap()
        .map(|change| change.unwrap().entry)
        .filter(|entry| !matches!(entry.kind, EntryKind::Char { .. } | EntryKind::Directory))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    for whiteout in ["gone", "kept/removed"] {
        let stat = fs::symlink_metadata(again.join(whiteout)).unwrap();
        assert!(stat.file_type().is_char_device() && stat.rdev() == 0);
    }
    let mut value = [0; 1];
    let opaque = rustix::fs::getxattr(again.join("renewed"), "trusted.overlay.opaque", &mut value);
    assert_eq!((opaque, value), (Ok(1), *b"y"));
    assert!(File::open(again.join("renewed/new")).is_ok());
}
