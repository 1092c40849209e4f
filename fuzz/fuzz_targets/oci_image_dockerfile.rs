//! Dockerfiles: what is parsed is printed and parsed to the same, and evaluated or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_image::dockerfile::{BuildOptions, Dockerfile, IgnoreFile};
use oci_image::{ImageConfig, Platform};

fuzz_target!(|text: &str| {
    if let Ok(ignore) = IgnoreFile::parse(text) {
        let _ = ignore.ignores("a/b/c") | ignore.may_hold_exceptions("a");
    }
    let file = match Dockerfile::parse("Dockerfile", text) {
        Ok(file) => file,
        Err(error) => {
            assert!(error.to_string().starts_with("error"));
            return;
        }
    };
    if let Ok(plan) = file.plan(&BuildOptions::new().arg("A", "b")) {
        for stage in plan.stages() {
            let _ = stage.evaluate(&ImageConfig::new(&Platform::new("linux", "amd64")));
        }
    }
    let printed = file.to_string();
    let again = Dockerfile::parse("printed", printed.clone()).expect("what was printed");
    assert_eq!(again.to_string(), printed);
});
