//! Warnings: what can be built, but is probably not as it was meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Stage;
use super::diagnostic::Diagnostic;
use super::instruction::{Command, InstructionKind, Word};
use super::source::{Source, Span};

/// What can be seen without evaluating anything.
pub(super) fn warn(source: &Arc<Source>, stages: &[Stage], messages: &mut Vec<Diagnostic>) {
    let mut names = BTreeMap::new();
    for (number, stage) in stages.iter().enumerate() {
        if let InstructionKind::From {
            name: Some(name), ..
        } = &stage.from.kind
        {
            let lower = name.text.to_lowercase();
            if lower != name.text {
                messages.push(
                    Diagnostic::warning(
                        "StageNameCasing",
                        source,
                        name.span,
                        format!("the name of stage {:?} has capital letters", name.text),
                    )
                    .label(format!("it is known as `{lower}`")),
                );
            }
            if matches!(lower.as_str(), "scratch" | "context") {
                messages.push(
                    Diagnostic::warning(
                        "ReservedStageName",
                        source,
                        name.span,
                        format!("{lower:?} means something else already"),
                    )
                    .label("choose another name"),
                );
            }
            if names.insert(lower.clone(), number).is_some() {
                messages.push(
                    Diagnostic::warning(
                        "DuplicateStageName",
                        source,
                        name.span,
                        format!("there is a stage {lower:?} already"),
                    )
                    .label("from here on, the name means this stage"),
                );
            }
        }
        let mut last: BTreeMap<&str, Span> = BTreeMap::new();
        for instruction in &stage.instructions {
            let kind = &instruction.kind;
            if let InstructionKind::Cmd(_)
            | InstructionKind::Entrypoint(_)
            | InstructionKind::Healthcheck(_) = kind
                && let Some(earlier) = last.insert(kind.name(), instruction.span)
            {
                messages.push(
                    Diagnostic::warning(
                        "MultipleInstructionsDisallowed",
                        source,
                        earlier,
                        format!("this {} is without effect", kind.name()),
                    )
                    .label("a later one of the same stage takes its place"),
                );
            }
            if let InstructionKind::Cmd(Command::Exec(_))
            | InstructionKind::Entrypoint(Command::Exec(_))
            | InstructionKind::Run {
                command: Command::Exec(_),
                ..
            } = kind
                && !source.slice(instruction.span).trim_end().ends_with(']')
            {
                messages.push(
                    Diagnostic::warning(
                        "TextAfterList",
                        source,
                        instruction.span,
                        "what follows the list is without effect",
                    )
                    .label("leave it out, or write a line for the shell"),
                );
            }
            match kind {
                InstructionKind::Maintainer(_) => messages.push(
                    Diagnostic::warning(
                        "MaintainerDeprecated",
                        source,
                        instruction.span,
                        "MAINTAINER is out of use",
                    )
                    .label("write LABEL org.opencontainers.image.authors=…"),
                ),
                InstructionKind::Cmd(Command::Shell(_))
                | InstructionKind::Entrypoint(Command::Shell(_)) => messages.push(
                    Diagnostic::warning(
                        "JSONArgsRecommended",
                        source,
                        instruction.span,
                        format!(
                            "{} runs in a shell, which does not pass signals on",
                            kind.name()
                        ),
                    )
                    .label("write a list: [\"program\", \"argument\"]"),
                ),
                InstructionKind::Arg(list) => {
                    for (name, _) in list {
                        secret(source, name, messages);
                    }
                }
                InstructionKind::Env(list) => {
                    for (name, _) in list {
                        secret(source, name, messages);
                    }
                }
                _ => {}
            }
        }
    }
}

fn secret(source: &Arc<Source>, name: &Word, messages: &mut Vec<Diagnostic>) {
    let lower = name.text.to_lowercase();
    let mut parts = lower.split(['_', '-']);
    let secret = parts.any(|part| {
        matches!(
            part,
            "apikey"
                | "auth"
                | "credential"
                | "credentials"
                | "key"
                | "password"
                | "pword"
                | "passwd"
                | "secret"
                | "token"
        )
    });
    if secret && !lower.contains("public") {
        messages.push(
            Diagnostic::warning(
                "SecretsUsedInArgOrEnv",
                source,
                name.span,
                format!(
                    "{:?} looks like a secret, and everybody can read it in the image",
                    name.text
                ),
            )
            .label("use RUN --mount=type=secret"),
        );
    }
}
