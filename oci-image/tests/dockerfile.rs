//! Dockerfiles: what is read, what is refused and how it is shown, and what a build would do.

use oci_image::dockerfile::{
    Action, Base, BuildOptions, Command, CopySource, Dockerfile, From, IgnoreFile, InstructionKind,
    MountKind, Network, Program, Severity, Sharing,
};
use oci_image::{Error, ImageConfig, Platform};

fn parse(text: &str) -> Dockerfile {
    Dockerfile::parse("Dockerfile", text).unwrap_or_else(|error| panic!("{error}"))
}

fn message(text: &str) -> String {
    match Dockerfile::parse("Dockerfile", text) {
        Err(error @ Error::Dockerfile { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn base() -> ImageConfig {
    ImageConfig::new(&Platform::new("linux", "amd64"))
}

/// The evaluated last stage on top of nothing.
fn build(text: &str, options: &BuildOptions) -> oci_image::dockerfile::EvaluatedStage {
    let plan = parse(text).plan(options).unwrap();
    let mut built = std::collections::BTreeMap::new();
    for stage in plan.stages() {
        let evaluated = match stage.base() {
            Base::Stage(number) => stage.evaluate_after(&built[number]),
            _ => stage.evaluate(&base()),
        };
        built.insert(stage.number(), evaluated.unwrap());
    }
    built.pop_last().unwrap().1
}

fn action(text: &str) -> Action {
    build(&format!("FROM scratch\n{text}"), &BuildOptions::new())
        .steps
        .pop()
        .unwrap()
        .action
}

#[test]
fn lines_go_on_and_comments_do_not_count() {
    let file = parse(
        "\u{feff}# syntax=docker/dockerfile:1\n# a comment\n\nFrom scratch as Build\r\nRUN echo a \\\n  # within\n   && \\\t \n  echo \\\\\nENV \\\n A=b\n",
    );
    assert_eq!(
        file.directives().syntax.as_deref(),
        Some("docker/dockerfile:1")
    );
    assert_eq!(file.stages()[0].name().as_deref(), Some("build"));
    let instructions = &file.stages()[0].instructions;
    let InstructionKind::Run { command, .. } = &instructions[0].kind else {
        panic!("{instructions:?}");
    };
    assert_eq!(
        *command,
        Command::Shell("echo a    &&   echo \\\\".to_owned())
    );
    let InstructionKind::Env(pairs) = &instructions[1].kind else {
        panic!("{instructions:?}");
    };
    assert_eq!(file.source().slice(pairs[0].1.span), "b");
    assert_eq!(file.source().position(pairs[0].1.span.start).line, 10);
}

#[test]
fn the_escape_character_can_be_chosen() {
    let file = parse("# escape=`\nFROM scratch\nCOPY a `\n  c:\\dir\\\n");
    let InstructionKind::Copy(copy) = &file.stages()[0].instructions[0].kind else {
        panic!();
    };
    assert_eq!(copy.destination.text, "c:\\dir\\");
    // After a comment, it is a comment.
    let file = parse("# hello\n# escape=`\nFROM scratch\n");
    assert_eq!(file.directives().escape, '\\');
    assert!(message("# escape=x\nFROM scratch\n").contains("cannot be the escape character"));
    assert!(message("# escape=`\n# escape=`\nFROM scratch\n").contains("twice"));
}

#[test]
fn all_errors_are_shown_where_they_stand() {
    assert_eq!(
        message(
            "FROM scratch\nCOPPY . /src\n\nRUN --mout=type=tmpfs,target=/t \\\n\ttrue\nCOPY --form=a b c\n"
        ),
        "error: there is no instruction `COPPY`
 --> Dockerfile:2:1
  |
2 | COPPY . /src
  | ^^^^^ did you mean `COPY`?

error: RUN has no flag `--mout`
 --> Dockerfile:4:5
  |
4 | RUN --mout=type=tmpfs,target=/t \\
  |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean `--mount`?

error: COPY has no flag `--form`
 --> Dockerfile:6:6
  |
6 | COPY --form=a b c
  |      ^^^^^^^^ did you mean `--from`?"
    );
    // Wide characters, tabs and control characters do not move the mark.
    assert_eq!(
        message("FROM scratch\n\tENV ä=\u{1b}1 b\n"),
        "error: there is no `=` in \"b\"
 --> Dockerfile:2:11
  |
2 |     ENV ä=\u{fffd}1 b
  |              ^ ENV takes pairs NAME=VALUE; quote a value with blanks"
    );
}

#[test]
fn what_cannot_be_built_is_refused() {
    for (text, expected) in [
        ("", "the file has no instructions"),
        ("# only a comment\n", "the file has no instructions"),
        ("ARG A=1\n", "there is no stage"),
        (
            "RUN true\nFROM scratch\n",
            "RUN comes before the first FROM",
        ),
        ("FROM\n", "FROM needs an image"),
        ("FROM a b\n", "\"b\" is not expected here"),
        ("FROM a AS 1\n", "cannot be the name of a stage"),
        ("FROM scratch\nENV A\n", "ENV needs a pair"),
        ("FROM scratch\nENV A=1 =2\n", "the name before `=` is empty"),
        (
            "FROM scratch\nCOPY a\n",
            "COPY needs a source and a destination",
        ),
        (
            "FROM scratch\nCOPY --link=x a b\n",
            "\"x\" is no value of `--link`",
        ),
        (
            "FROM scratch\nCOPY --chown a b\n",
            "the flag `--chown` has no value",
        ),
        (
            "FROM scratch\nCOPY --chown=1 --chown=2 a b\n",
            "is there twice",
        ),
        (
            "FROM scratch\nCOPY --from=$A a b\n",
            "cannot hold a variable",
        ),
        (
            "FROM scratch\nCOPY a <<EOF\nEOF\n",
            "a text cannot be the destination",
        ),
        (
            "FROM scratch\nRUN <<EOF\ntrue\n",
            "the text \"EOF\" does not end",
        ),
        ("FROM scratch\nRUN\n", "RUN needs a command"),
        (
            "FROM scratch\nRUN --network=all true\n",
            "there is no \"all\"",
        ),
        (
            "FROM scratch\nRUN --mount=type=bnd,target=/a true\n",
            "no mount of type \"bnd\"",
        ),
        (
            "FROM scratch\nRUN --mount=type=cache true\n",
            "needs a `target`",
        ),
        (
            "FROM scratch\nRUN --mount=type=cache,tagret=/a true\n",
            "did you mean `target`?",
        ),
        (
            "FROM scratch\nRUN --mount=type=tmpfs,target=/a,id=b true\n",
            "has no `id`",
        ),
        (
            "FROM scratch\nCMD [\"a\", 1]\n",
            "something else than texts",
        ),
        ("FROM scratch\nSHELL bash\n", "SHELL needs a list"),
        (
            "FROM scratch\nONBUILD FROM a\n",
            "FROM cannot follow ONBUILD",
        ),
        (
            "FROM scratch\nONBUILD ONBUILD RUN a\n",
            "ONBUILD cannot follow ONBUILD",
        ),
        (
            "FROM scratch\nHEALTHCHECK --interval=1 CMD a\n",
            "is no value of `--interval`",
        ),
        ("FROM scratch\nHEALTHCHECK NONE a\n", "has no arguments"),
        ("FROM scratch\nHEALTHCHECK a\n", "no health check of type"),
        ("FROM scratch\nUSER --a=b c\n", "USER has no flag"),
    ] {
        let found = message(text);
        assert!(found.contains(expected), "{text:?}: {found}");
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    for (text, expected) in [
        ("FROM $A\n", "is empty here"),
        ("FROM ${A:?choose-one}\n", "`A` is unset: choose-one"),
        ("FROM Upper\n", "--> Dockerfile:1:6"),
        ("FROM --platform=x scratch\n", "--> Dockerfile:1:6"),
        ("FROM scratch\nCOPY --from=3 a b\n", "there is no stage 3"),
        (
            "FROM scratch AS a\nCOPY --from=a a b\n",
            "cannot copy from itself",
        ),
        ("FROM scratch\nCOPY $A b\n", "is empty here"),
        ("FROM scratch\nCOPY a b c\n", "must be a directory"),
        ("FROM scratch\nCOPY --chmod=999 a b\n", "is no mode"),
        (
            "FROM scratch\nCOPY http://registry.example/a b\n",
            "use ADD",
        ),
        (
            "FROM scratch\nADD --checksum=sha256:1 http://registry.example/a b\n",
            "is not a digest",
        ),
        ("FROM scratch\nENV A=${B\n", "missing"),
        ("FROM scratch\nENV A='\n", "is not closed"),
        ("FROM scratch\nEXPOSE 70000\n", "is no port"),
        ("FROM scratch\nEXPOSE 9-8\n", "ends before it starts"),
        ("FROM scratch\nEXPOSE 80/icmp\n", "no protocol"),
        ("FROM scratch\nSTOPSIGNAL SIGNOTHING\n", "no signal"),
        ("FROM scratch\nUSER $A\n", "the user is empty"),
    ] {
        let evaluate = || {
            for stage in parse(text).plan(&BuildOptions::new())?.stages() {
                stage.evaluate(&base())?;
            }
            Ok::<(), Error>(())
        };
        let found = evaluate().unwrap_err().to_string();
        assert!(found.contains(expected), "{text:?}: {found}");
    }
}

#[test]
fn stages_that_are_not_needed_are_not_planned() {
    let text = "ARG V=1\nFROM debian:$V AS one\nFROM one AS two\nFROM alpine AS unused\nFROM scratch\nCOPY --from=TWO a b\nRUN --mount=from=0,target=/m --mount=from=busybox,target=/n true\n";
    let file = parse(text);
    let plan = file
        .plan(&BuildOptions::new().arg("V", "2").arg("X", "y"))
        .unwrap();
    let numbers: Vec<_> = plan
        .stages()
        .iter()
        .map(oci_image::dockerfile::PlannedStage::number)
        .collect();
    assert_eq!(numbers, [0, 1, 3]);
    assert_eq!(*plan.stages()[0].base(), Base::Image("debian:2".to_owned()));
    assert_eq!(*plan.stages()[1].base(), Base::Stage(0));
    assert_eq!(plan.stages()[2].needs().len(), 2);
    assert!(plan.stages()[2].images().contains("busybox"));
    assert_eq!(plan.unused_args(), ["X"]);
    let target = file.plan(&BuildOptions::new().target("Unused")).unwrap();
    assert_eq!(target.stages().len(), 1);
    let error = file.plan(&BuildOptions::new().target("unusd")).unwrap_err();
    assert!(
        error.to_string().contains("did you mean unused?"),
        "{error}"
    );
}

#[test]
fn arguments_are_seen_where_they_are_declared() {
    let text = "ARG A=global\nFROM base AS a\nENV BEFORE=x$A\nARG A\nARG B=$A-b C\nENV AFTER=$A B=env\nRUN true\n";
    let built = build(text, &BuildOptions::new());
    let config = &built.config.config;
    assert_eq!(config.env, ["BEFORE=x", "AFTER=global", "B=env"]);
    let Action::Run(run) = &built.steps.last().unwrap().action else {
        panic!();
    };
    // The environment of the image goes before the arguments of the build.
    assert_eq!(run.env, ["BEFORE=x", "AFTER=global", "B=env", "A=global"]);
    let built = build(
        text,
        &BuildOptions::new()
            .arg("A", "called")
            .arg("HTTP_PROXY", "p"),
    );
    assert_eq!(built.config.config.env[1], "AFTER=called");
    let Action::Run(run) = &built.steps.last().unwrap().action else {
        panic!();
    };
    assert!(run.env.contains(&"HTTP_PROXY=p".to_owned()));
    // A stage has those of the stage that it is based on, and of no other.
    let based = "FROM base AS a\nARG A=of-a B=of-a\nFROM base AS b\nARG C\nENV C=x$C\nFROM a\nCOPY --from=b / /\nARG B C=$A$B\nENV ALL=$A,$B,$C\n";
    for (args, all) in [
        (&[][..], "ALL=of-a,of-a,of-aof-a"),
        (&["A", "B", "C"], "ALL=called,called,called"),
    ] {
        let options = args.iter().fold(BuildOptions::new(), |options, name| {
            options.arg(*name, "called")
        });
        assert_eq!(build(based, &options).config.config.env, [all]);
    }
    let platform = build(
        "FROM --platform=$BUILDPLATFORM base\nARG TARGETARCH\nARG TARGETVARIANT\nENV T=$TARGETARCH$TARGETVARIANT N=x$TARGETOS\n",
        &BuildOptions::new().platform("linux/arm/v7".parse().unwrap()),
    );
    assert_eq!(platform.config.config.env, ["T=armv7", "N=x"]);
}

#[test]
fn texts_are_files_and_scripts() {
    let text = "ARG x\nENV A=1\nCOPY --chmod=0644 <<one <<-'two' /dst/\n$A \\$A \"$A\"\none\n\t$A\n\ttwo\n";
    let Action::Copy(copy) = action(text.trim_start_matches("ARG x\n")) else {
        panic!();
    };
    assert_eq!(
        copy.sources,
        [
            CopySource::Inline {
                name: "one".to_owned(),
                contents: "1 $A \"1\"\n".to_owned()
            },
            CopySource::Inline {
                name: "two".to_owned(),
                contents: "$A\n".to_owned()
            },
        ]
    );
    let program = |text: &str| match action(text) {
        Action::Run(run) => run.program,
        other => panic!("{other:?}"),
    };
    let shell =
        |line: &str| Program::Args(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()]);
    assert_eq!(program("RUN <<EOF\necho $A\nEOF\n"), shell("echo $A\n"));
    assert_eq!(
        program("RUN <<EOF\n#!/usr/bin/python3\nprint()\nEOF\n"),
        Program::Script {
            name: "EOF".to_owned(),
            contents: "#!/usr/bin/python3\nprint()\n".to_owned()
        }
    );
    assert_eq!(
        program("RUN cat <<A >a; cat <<B\na\nA\nb\nB\n"),
        shell("cat <<A >a; cat <<B\na\nA\nb\nB")
    );
    assert_eq!(
        program("RUN [\"a\", \"<<EOF\"]\n"),
        Program::Args(vec!["a".to_owned(), "<<EOF".to_owned()])
    );
}

#[test]
fn copies_mounts_and_the_rest_have_plain_values() {
    let Action::Copy(copy) = action(
        "WORKDIR /srv\nENV U=5 N='a b'\nCOPY --chown=$U:$U --link --parents --exclude=*.o --exclude=\"b c\" --from=debian x* \"y\" $N ./d/\n",
    ) else {
        panic!();
    };
    assert_eq!(copy.from, From::Image("debian".to_owned()));
    assert_eq!(copy.destination, "/srv/d/");
    assert_eq!(copy.chown.as_deref(), Some("5:5"));
    assert!(copy.link && copy.parents);
    assert_eq!(copy.exclude, ["*.o", "b c"]);
    assert_eq!(
        copy.sources,
        ["x*", "y", "a b"].map(|path| CopySource::Path(path.to_owned()))
    );
    let Action::Add(add) = action(
        "ADD --keep-git-dir --unpack=false https://registry.example/a.git#v1 https://registry.example/a.tar [\"x.tar\" /\n",
    ) else {
        panic!();
    };
    assert!(matches!(
        add.sources[..],
        [CopySource::Git(_), CopySource::Url(_), CopySource::Path(_)]
    ));
    assert_eq!((add.keep_git_dir, add.unpack), (true, Some(false)));

    let Action::Run(run) = action(
        "ENV T=/t\nRUN --network=none --mount=type=cache,target=$T,sharing=locked,mode=0700 --mount=src=a,dst=b,rw --mount=type=secret,id=k,required,env=K --mount='type=tmpfs,\"target=/a,b\",size=64m' true\n",
    ) else {
        panic!();
    };
    assert_eq!(run.network, Network::None);
    assert!(matches!(
        &run.mounts[0].kind,
        MountKind::Cache { id, sharing: Sharing::Locked, mode: 0o700, .. } if id == "/t"
    ));
    assert_eq!(run.mounts[1].target.as_deref(), Some("/b"));
    assert!(!run.mounts[1].read_only);
    assert!(matches!(
        &run.mounts[2].kind,
        MountKind::Secret { required: true, env: Some(env), .. } if env == "K"
    ));
    assert_eq!(run.mounts[3].target.as_deref(), Some("/a,b"));
    assert_eq!(
        run.mounts[3].kind,
        MountKind::Tmpfs {
            size: Some(64 << 20)
        }
    );
}

#[test]
fn triggers_of_the_base_come_first() {
    let mut config = base();
    config.config.on_build = vec!["COPY a /a".to_owned(), "ENV X=1".to_owned()];
    config.config.cmd = vec!["old".to_owned()];
    let plan = parse("FROM base\nENTRYPOINT [\"e\"]\nENV Y=$X\nONBUILD RUN <<E\nx\nE\n")
        .plan(&BuildOptions::new())
        .unwrap();
    let built = plan.stages()[0].evaluate(&config).unwrap();
    let history: Vec<_> = built
        .history(None)
        .into_iter()
        .map(|entry| (entry.created_by.unwrap(), entry.empty_layer))
        .collect();
    assert_eq!(
        history,
        [
            ("COPY a /a".to_owned(), false),
            ("ENV X=1".to_owned(), true),
            ("ENTRYPOINT [\"e\"]".to_owned(), true),
            ("ENV Y=1".to_owned(), true),
            ("ONBUILD RUN <<E\nx\nE".to_owned(), true),
        ]
    );
    assert_eq!(built.config.config.on_build, ["RUN <<E\nx\nE"]);
    assert!(built.config.config.cmd.is_empty());
    config.config.on_build = vec!["NOTHING".to_owned()];
    let error = plan.stages()[0].evaluate(&config).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("ONBUILD trigger 1 of the base image:1:1"),
        "{error}"
    );
}

#[test]
fn checks_warn_and_can_be_left_out() {
    let text = "FROM scratch AS Name\nMAINTAINER me\nCMD a\nCMD [\"b\"] c\nENV API_KEY=1\nRUN a \\\n\n b\n";
    let rules: Vec<_> = parse(text)
        .warnings()
        .iter()
        .map(|warning| {
            assert_eq!(warning.severity(), Severity::Warning);
            warning.rule().unwrap()
        })
        .collect();
    assert_eq!(
        rules,
        [
            "StageNameCasing",
            "MaintainerDeprecated",
            "JSONArgsRecommended",
            "MultipleInstructionsDisallowed",
            "TextAfterList",
            "SecretsUsedInArgOrEnv",
            "NoEmptyContinuation",
        ]
    );
    assert_eq!(parse(&format!("# check=skip=all\n{text}")).warnings(), []);
    let one = parse(&format!("# check=skip=JSONArgsRecommended\n{text}"));
    assert_eq!(one.warnings().len(), rules.len() - 1);
    assert!(message(&format!("# check=error=true\n{text}")).starts_with("error[StageNameCasing]"));
}

#[test]
fn patterns_of_what_is_left_out() {
    for (patterns, ignored, kept) in [
        ("a", "a a/b a/b/c", "b/a ab"),
        ("/a/", "a a/b", "b"),
        ("*.o", "x.o .o", "a/x.o x.oo"),
        ("**/*.o", "x.o a/x.o a/b/x.o", "x"),
        ("a/**", "a/b a/b/c", "a b/a"),
        ("a/**/b", "a/b a/x/b a/x/y/b a/b/c", "b ab"),
        ("**", "a a/b", ""),
        ("*\n!a\n!b/c", "b c b/d", "a a/x b/c"),
        ("a\n!a/b\na/b/c", "a a/b/c", "a/b"),
        ("!a\na", "a", "b"),
        ("# x\n \n  a  ", "a", "# x"),
        ("./a/../b", "b", "a"),
        ("[a-c]?\\*", "ax* bb*", "dx* ax**"),
        ("[^a]", "b", "a"),
    ] {
        let ignore = IgnoreFile::parse(patterns).unwrap();
        for path in ignored.split(' ') {
            assert!(ignore.ignores(path), "{patterns:?} {path}");
        }
        for path in kept.split_terminator(' ') {
            assert!(!ignore.ignores(path), "{patterns:?} {path}");
        }
    }
    for bad in ["!", "[a", "[]", "[a-]", "a\\"] {
        assert!(IgnoreFile::parse(bad).is_err(), "{bad}");
    }
    let ignore = IgnoreFile::parse("*\n!a/b\n!**/keep").unwrap();
    assert!(ignore.may_hold_exceptions("x"));
    let ignore = IgnoreFile::parse("*\n!a/b").unwrap();
    assert!(ignore.may_hold_exceptions("a") && !ignore.may_hold_exceptions("x"));
}
