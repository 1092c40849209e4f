//! Layers with arbitrary marks: every lookup ends, without a panic and within the layers.

#![no_main]

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use overlayfs::{Kind, Marks, Upper};

/// Two layers with the same names, in which the files are as long as what they hold: a way
/// out of the layers would show by its length.
fn layers() -> &'static PathBuf {
    static LAYERS: OnceLock<PathBuf> = OnceLock::new();
    LAYERS.get_or_init(|| {
        let root = fuzz::scratch("layers");
        for layer in ["lower", "upper"] {
            for directory in ["a", "a/b", "c"] {
                fs::create_dir_all(root.join(layer).join(directory)).expect("made");
            }
            for file in ["a/f", "a/b/f", "c/g", "h"] {
                fs::write(root.join(layer).join(file), "inside").expect("written");
            }
        }
        fs::write(root.join("outside"), "outside").expect("written");
        root
    })
}

fn set(path: &PathBuf, mark: &str, value: Option<&[u8]>) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let name = CString::new(format!("user.overlay.{mark}")).expect("no NUL");
    match value {
        Some(value) => {
            let _ = rustix::fs::lsetxattr(&path, &name, value, rustix::fs::XattrFlags::empty());
        }
        None => drop(rustix::fs::lremovexattr(&path, &name)),
    }
}

fuzz_target!(|data: &[u8]| {
    let root = layers();
    let places = ["a", "a/b", "c", "a/f", "a/b/f", "c/g", "h"];
    let marks = ["redirect", "opaque", "metacopy", "whiteout"];
    for layer in ["upper", "lower"] {
        for place in places {
            for mark in marks {
                set(&root.join(layer).join(place), mark, None);
            }
        }
    }
    // Each mark: where, which, how long, and the value.
    let mut rest = data;
    while let [place, mark, length, tail @ ..] = rest {
        let layer = if place & 0x80 == 0 { "upper" } else { "lower" };
        let place = places[usize::from(place & 0x7f) % places.len()];
        let (value, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        set(
            &root.join(layer).join(place),
            marks[usize::from(*mark) % marks.len()],
            Some(value),
        );
        rest = tail;
    }
    let upper = Upper::over_bottom_up([root.join("lower")], root.join("upper"))
        .and_then(|upper| upper.marks(Marks::User))
        .expect("opened");
    for entry in upper.merged().walk() {
        let Ok(entry) = entry else { break };
        if entry.kind() == Kind::File
            && let Ok(file) = entry.open()
        {
            assert_eq!(std::io::read_to_string(file).expect("read"), "inside");
        }
    }
    for change in upper.changes() {
        let Ok(change) = change else { break };
        assert!(!change.path.is_absolute());
    }
});
