//! The examples do what they say.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Holder, Scratch, enter_private_namespace};

/// An example that cargo has built beside the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    // From target/debug/deps/test to target/debug.
    let directory = test.ancestors().nth(2).map(PathBuf::from).unwrap();
    Command::new(directory.join("examples").join(name))
}

/// Runs it with something typed into it, and returns what it prints.
fn run(command: &mut Command, typed: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text
}

fn throwaway(directory: &Path, script: &str, typed: &str) -> String {
    let mut command = example("throwaway");
    run(command.arg(directory).args(["sh", "-c", script]), typed)
}

#[test]
#[ignore = "needs root"]
fn a_throwaway_copy_is_kept_or_dropped() {
    let scratch = Scratch::new();
    scratch.write("etc/kept", "kept");
    scratch.write("etc/gone", "gone");
    common::age(&scratch.path("etc"));
    let directory = scratch.path("etc");
    let script = "rm gone; echo new > new";
    let text = throwaway(&directory, script, "n\n");
    assert!(text.contains("D /gone\nA /new\n"), "{text}");
    assert!(text.ends_with("dropped\n"), "{text}");
    assert!(directory.join("gone").exists() && !directory.join("new").exists());
    let text = throwaway(&directory, script, "y\n");
    assert!(text.ends_with("kept\n"), "{text}");
    assert!(!directory.join("gone").exists());
    assert_eq!(fs::read_to_string(directory.join("new")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(directory.join("kept")).unwrap(), "kept");
    let text = throwaway(&directory, "cat kept", "");
    assert!(text.ends_with("nothing changed\n"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn five_hundred_layers_are_mounted_and_walked() {
    enter_private_namespace();
    let text = run(&mut example("many_layers"), "");
    for line in ["from layer 0", "from layer 250", "from layer 499"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains("walked 500 entries"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_users_overlay_says_what_changed() {
    // Tmpfs has attributes for ordinary users since Linux 6.6, ext4 always had.
    let disk = common::OnLoop::made_by("mke2fs", &["-q", "-t", "ext4"]);
    let text = run(
        example("rootless_overlay").env("TMPDIR", disk.dir("temporary")),
        "",
    );
    assert!(text.contains("marks are User ones"), "{text}");
    assert!(text.ends_with("C /old\nD /older\n"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn idmapped_layers_have_other_owners() {
    // Of a kind that can be idmapped on every kernel that can idmap.
    let disk = common::OnLoop::made_by("mke2fs", &["-q", "-t", "ext4"]);
    for layer in ["base", "app"] {
        fs::write(disk.dir(layer).join(layer), "").unwrap();
    }
    let holder = Holder::new();
    let mut command = example("idmapped_layers");
    let text = run(
        command
            .arg(holder.namespace_path())
            .args([disk.dir("base"), disk.dir("app")]),
        "",
    );
    for layer in ["base", "app"] {
        assert!(
            text.contains(&format!(" 100000  100000 {layer}\n")),
            "{text}"
        );
    }
}
