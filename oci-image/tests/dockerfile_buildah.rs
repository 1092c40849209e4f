//! What a Dockerfile evaluates to is what buildah makes of it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use oci_image::dockerfile::{Base, BuildOptions, Dockerfile, IgnoreFile};
use oci_image::{ImageConfig, Platform, open};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Builds `context` with buildah; the image is the docker archive `target`.
fn buildah(scratch: &Path, context: &Path, target: &Path, args: &[&str]) -> Result<(), String> {
    let run = |args: &[&str]| {
        let output = Command::new("buildah")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(scratch.join("root"))
            .arg("--runroot")
            .arg(scratch.join("run"))
            .args(args)
            .env("TMPDIR", scratch)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    let context = context.display().to_string();
    let mut all = vec![
        "build",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "-t",
        "built:1",
    ];
    all.extend(args);
    all.push(&context);
    run(&all)?;
    let target = format!("docker-archive:{}:built:1", target.display());
    run(&["push", "--quiet", "built:1", &target])
}

fn ours(text: &str, options: &BuildOptions) -> ImageConfig {
    let file = Dockerfile::parse("Dockerfile", text).unwrap();
    let plan = file.plan(options).unwrap();
    let mut built = std::collections::BTreeMap::new();
    for stage in plan.stages() {
        let evaluated = match stage.base() {
            Base::Stage(number) => stage.evaluate_after(&built[number]),
            _ => stage.evaluate(&ImageConfig::new(&Platform::host())),
        };
        built.insert(stage.number(), evaluated.unwrap());
    }
    built.pop_last().unwrap().1.config
}

#[track_caller]
fn assert_same(text: &str, options: &BuildOptions, args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let context = dir.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("a"), "a").unwrap();
    fs::write(context.join("Dockerfile"), text).unwrap();
    let target = dir.path().join("built.tar");
    buildah(dir.path(), &context, &target, args).unwrap();
    let theirs = open(&target).unwrap().config().config.clone();
    let mut ours = ours(text, options).config;
    // Its own label.
    ours.labels.extend(
        theirs
            .labels
            .get_key_value("io.buildah.version")
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    for (what, ours, theirs) in [
        (
            "env",
            format!("{:#?}", ours.env),
            format!("{:#?}", theirs.env),
        ),
        (
            "labels",
            format!("{:#?}", ours.labels),
            format!("{:#?}", theirs.labels),
        ),
        ("user", ours.user, theirs.user),
        (
            "cmd",
            format!("{:?}", ours.cmd),
            format!("{:?}", theirs.cmd),
        ),
        (
            "entrypoint",
            format!("{:?}", ours.entrypoint),
            format!("{:?}", theirs.entrypoint),
        ),
        (
            "ports",
            format!("{:?}", ours.exposed_ports),
            format!("{:?}", theirs.exposed_ports),
        ),
        (
            "volumes",
            format!("{:?}", ours.volumes),
            format!("{:?}", theirs.volumes),
        ),
        ("directory", ours.working_dir, theirs.working_dir),
        ("signal", ours.stop_signal, theirs.stop_signal),
        (
            "check",
            format!("{:?}", ours.healthcheck),
            format!("{:?}", theirs.healthcheck),
        ),
        (
            "triggers",
            format!("{:?}", ours.on_build),
            format!("{:?}", theirs.on_build),
        ),
        (
            "shell",
            format!("{:?}", ours.shell),
            format!("{:?}", theirs.shell),
        ),
    ] {
        assert_eq!(ours, theirs, "{what}");
    }
}

#[test]
#[ignore = "needs root"]
fn configurations_are_those_of_buildah() {
    assert_same(
        r#"ARG V=1
FROM scratch AS base
ARG V
ARG W=w
ENV A=a B="b $V" C='$A' P=foo
ENV D=${A:+set} E=${N:-def} F=${W:-no} A=changed G=$A
ENV legacy the  rest "of" it \$A $A
LABEL "com.x y"="z $A" q=x\ y
WORKDIR x/$A
WORKDIR ../y
USER $W:$V
EXPOSE 80 90/udp
VOLUME ["/v $A", "/w"]
STOPSIGNAL SIGUSR1
SHELL ["/bin/bash", "-c"]
CMD echo $A
FROM base
ENTRYPOINT ["x", "$A"]
HEALTHCHECK --interval=1m30s --retries=3 CMD echo hi
ONBUILD COPY a b
COPY a /dst/
"#,
        &BuildOptions::new().arg("V", "2"),
        &["--build-arg", "V=2"],
    );
}

#[test]
#[ignore = "needs root"]
fn random_words_are_expanded_as_by_buildah() {
    let piece = prop_oneof![
        4 => "[a-z/.]{1,4}",
        2 => prop::sample::select(vec!["$A", "${A}", "$none", "${B:-x}", "${none:-yz}", "${A:+p}", "${none:+q}", "${none:-${A}}"])
            .prop_map(str::to_owned),
        1 => prop::sample::select(vec!["\\$A", "\\\\", "\\ ", "\\\"", "\\'", "\\x"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["'$A \\'", "\"$A \\\"\"", "\"\\$A\"", "\"'\"", "''", "\"\\x\""]).prop_map(str::to_owned),
    ];
    let word = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::new(ProptestConfig::default());
    let words = prop::collection::vec(word, 200)
        .new_tree(&mut runner)
        .unwrap()
        .current();
    let mut text = "FROM scratch\nENV A=\"a b\" B=\n".to_owned();
    for (number, word) in words.iter().enumerate() {
        // At the end of a line, two escapes are one that continues it for buildah.
        writeln!(text, "ENV V{number}=e{word}e").unwrap();
    }
    text.push_str("COPY a /\n");
    assert_same(&text, &BuildOptions::new(), &[]);
}

/// Files below a directory, relative to it.
fn files(root: &Path, below: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files(root, &format!("{path}/"), found);
        } else {
            found.insert(path);
        }
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_left_out_is_what_buildah_leaves_out() {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default().cases
    } else {
        8
    };
    let name = "[ab]{1,2}";
    let part = prop_oneof![3 => name, 1 => Just("*".to_owned()), 1 => Just("**".to_owned()),
        1 => Just("?".to_owned()), 1 => Just("a*".to_owned()), 1 => Just("[a]".to_owned())];
    // buildah looks into a directory that is left out only for exceptions that begin with its very name.
    let exception =
        (prop::collection::vec(name, 0..3), "[ab]|[*]|a[*]|[?]").prop_map(|(mut parts, last)| {
            parts.push(last);
            format!("!{}", parts.join("/"))
        });
    let pattern = prop_oneof![
        3 => prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/")),
        1 => exception,
    ];
    let strategy = (
        prop::collection::btree_set(prop::collection::vec(name, 1..4), 1..15),
        prop::collection::vec(pattern, 1..5),
    );
    let mut runner = TestRunner::new(ProptestConfig::default());
    for _ in 0..cases {
        let (paths, patterns) = strategy.new_tree(&mut runner).unwrap().current();
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        for path in &paths {
            let path = context.join(path.join("/"));
            let Some(parent) = path.parent() else {
                continue;
            };
            // What another name makes a file or a directory stays that.
            if fs::create_dir_all(parent).is_ok() && !path.exists() {
                fs::write(path, "").unwrap();
            }
        }
        let text = patterns.join("\n");
        let dockerfile = dir.path().join("Dockerfile");
        fs::write(&dockerfile, "FROM scratch\nCOPY . /\n").unwrap();
        fs::write(context.join(".dockerignore"), &text).unwrap();
        let ignore = IgnoreFile::find(&context, &dockerfile).unwrap();
        let mut expected = BTreeSet::new();
        files(&context, "", &mut expected);
        expected.retain(|path| !ignore.ignores(path));
        let target = dir.path().join("built.tar");
        let file = dockerfile.display().to_string();
        let mut found = BTreeSet::new();
        buildah(dir.path(), &context, &target, &["-f", &file]).unwrap();
        let root = dir.path().join("unpacked");
        fs::create_dir(&root).unwrap();
        open(&target)
            .unwrap()
            .unpack_flat(
                fs::File::open(&root).unwrap(),
                &oci_image::UnpackOptions::new(oci_image::Whiteouts::Apply),
            )
            .unwrap();
        files(&root, "", &mut found);
        assert_eq!(expected, found, "{text}\n{paths:?}");
    }
}
