//! A filesystem whose directory entries do not say what they are.
//!
//! Apart from the other mistakes because it starts programs: between fork and exec they hold what
//! other threads have open, which keeps overlays in use.

mod common;

use std::fs;

use common::{OnLoop, Scratch};
use overlayfs::{Error, Interface, Overlay};

#[test]
#[ignore = "needs root"]
fn an_upper_without_file_types_in_its_directories_is_unsuitable() {
    for interface in [Interface::Auto, Interface::OnePage, Interface::Classic] {
        let scratch = Scratch::new();
        let typeless = OnLoop::made_by("mke2fs", &["-q", "-t", "ext2", "-O", "^filetype"]);
        let overlay = || {
            Overlay::bottom_up([scratch.dir("base")])
                .upper(typeless.dir("upper"), typeless.dir("work"))
                .interface(interface)
        };
        let merged = scratch.dir("merged");
        let error = overlay().mount(&merged).map(drop).unwrap_err();
        assert!(
            matches!(error, Error::UnsuitableUpper { missing, .. } if missing.contains("d_type")),
            "{error}"
        );
        assert!(fs::read_dir(&merged).unwrap().next().is_none());
    }
}
