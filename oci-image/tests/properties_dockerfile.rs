//! What is parsed is printed so that it is parsed again to the same.

use oci_image::dockerfile::{BuildOptions, Dockerfile, IgnoreFile};
use oci_image::{ImageConfig, Platform};
use proptest::prelude::*;

/// Lines of which most are instructions.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "b/c",
        "$X",
        "${Y:-z}",
        "${P##*/}",
        "${P/a/b}",
        "\"q r\"",
        "'s t'",
        "\\ ",
        "\\",
        "=",
        "x=y",
        "a=\"b c\"",
        "<<EOF",
        "<<-'E'",
        "[",
        "]",
        "[\"a\", \"b c\"]",
        "\n",
        "\\\n",
        "# c\n",
        "--from=x",
        "--chown=a\\ b",
        "--link",
        "EOF\n",
        "\tE\n",
        "é",
        "CMD",
        "AS",
        "--",
        "--interval=3s",
        "--mount=type=cache,target=/c",
        "'",
        "\"",
        "`",
        "80",
        "\r\n",
    ]);
    let name = prop::sample::select(vec![
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK CMD",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
        "ONBUILD COPY",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
        "run",
        "Copy",
    ]);
    let pieces = prop::collection::vec((piece, any::<bool>()), 0..6);
    prop::collection::vec((name, pieces), 0..4).prop_map(|lines| {
        let mut text = "FROM a\n".to_owned();
        for (name, pieces) in lines {
            text.push_str(name);
            text.push(' ');
            for (piece, blank) in pieces {
                text.push_str(piece);
                if blank {
                    text.push(' ');
                }
            }
            text.push('\n');
        }
        text
    })
}

/// The parsed form without places.
fn shape(file: &Dockerfile) -> String {
    let text = format!("{:?} {:?}", file.globals(), file.stages());
    let mut kept = String::new();
    for (number, part) in text.split("span: @").enumerate() {
        let part = if number == 0 {
            part
        } else {
            part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
        };
        kept.push_str(part);
    }
    kept
}

proptest! {
    #[test]
    fn what_is_printed_is_parsed_to_the_same(text in text()) {
        let Ok(file) = Dockerfile::parse("Dockerfile", text) else {
            return Ok(());
        };
        let printed = file.to_string();
        let again = match Dockerfile::parse("printed", printed.clone()) {
            Ok(again) => again,
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{printed}"))),
        };
        prop_assert_eq!(&printed, &again.to_string());
        // The text of a trigger keeps the blanks that its instruction does not.
        if !printed.contains("ONBUILD") {
            prop_assert_eq!(shape(&file), shape(&again), "{}", printed);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        if let Err(error) = Dockerfile::parse("Dockerfile", format!("FROM a\n{text}")) {
            prop_assert!(error.to_string().starts_with("error"));
        }
        if let Ok(ignore) = IgnoreFile::parse(&text) {
            let _ = ignore.ignores("a/b");
        }
    }

    #[test]
    fn every_message_shows_a_line(text in text()) {
        let evaluate = || {
            let file = Dockerfile::parse("Dockerfile", text.clone())?;
            for stage in file.plan(&BuildOptions::new())?.stages() {
                stage.evaluate(&ImageConfig::new(&Platform::new("linux", "amd64")))?;
            }
            Ok::<(), oci_image::Error>(())
        };
        if let Err(error) = evaluate() {
            let shown = error.to_string();
            prop_assert!(shown.contains("--> Dockerfile:") && shown.contains('^'), "{}", shown);
        }
    }
}
