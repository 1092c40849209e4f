//! From lines to instructions, stages and messages.

use std::sync::Arc;

use super::diagnostic::{Diagnostic, Severity, closest};
use super::directives::Directives;
use super::expand::Expander;
use super::flags::Flags;
use super::instruction::{
    Check, Command, Heredoc, Instruction, InstructionKind, NAMES, Transfer, TransferSource, Word,
};
use super::lines::{Lines, LogicalLine};
use super::source::{Source, Span};
use super::words::Part;
use super::{Dockerfile, Stage, checks, health, heredoc, mount, step};
use crate::error::{Error, Result};

type Parsed<T> = std::result::Result<T, Diagnostic>;

/// Parses a whole file.
pub(super) fn dockerfile(source: &Arc<Source>) -> Result<Dockerfile> {
    let mut messages = Vec::new();
    let bom = if source.text().starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let directives = Directives::read(source, bom).unwrap_or_else(|error| {
        messages.push(error);
        Directives::default()
    });
    let mut lines = Lines::new(source.text(), bom, directives.escape);
    let mut globals = Vec::new();
    let mut stages: Vec<Stage> = Vec::new();
    let mut any = false;
    while let Some(line) = lines.logical() {
        any = true;
        if let Some(span) = line.empty_continuation {
            messages.push(
                Diagnostic::warning(
                    "NoEmptyContinuation",
                    source,
                    span,
                    "an empty line within an instruction",
                )
                .label("the line before goes on; a later version may end it here"),
            );
        }
        let instruction = match instruction(source, &directives, &line, &mut lines) {
            Ok(instruction) => instruction,
            Err(error) => {
                messages.push(error);
                continue;
            }
        };
        match (&instruction.kind, stages.last_mut()) {
            (InstructionKind::From { .. }, _) => stages.push(Stage {
                from: instruction,
                instructions: Vec::new(),
            }),
            (InstructionKind::Arg(_), None) => globals.push(instruction),
            (_, Some(stage)) => stage.instructions.push(instruction),
            (kind, None) => messages.push(
                Diagnostic::error(
                    source,
                    instruction.span,
                    format!("{} comes before the first FROM", kind.name()),
                )
                .label("only ARG may stand here"),
            ),
        }
    }
    let has_errors =
        |messages: &[Diagnostic]| messages.iter().any(|m| m.severity() == Severity::Error);
    if stages.is_empty() && !has_errors(&messages) {
        let (message, help) = if any {
            ("there is no stage", "start one with FROM")
        } else {
            ("the file has no instructions", "start with FROM")
        };
        messages.push(Diagnostic::error(source, Span::new(0, 0), message).help(help));
    }
    checks::warn(source, &stages, &mut messages);
    let mut messages: Vec<_> = messages
        .into_iter()
        .filter(|message| {
            message
                .rule()
                .is_none_or(|rule| !directives.skip_all && !directives.skip.contains(rule))
        })
        .map(|message| {
            if directives.error {
                message.into_error()
            } else {
                message
            }
        })
        .collect();
    if has_errors(&messages) {
        messages.retain(|message| message.severity() == Severity::Error);
        return Err(Error::from(messages));
    }
    messages.sort_by_key(Diagnostic::span);
    Ok(Dockerfile {
        source: Arc::clone(source),
        directives,
        globals,
        stages,
        warnings: messages,
    })
}

/// Parses the text of one instruction, such as a trigger of a base image.
pub(super) fn trigger(source: &Arc<Source>) -> Parsed<Option<Instruction>> {
    let directives = Directives::default();
    let mut lines = Lines::new(source.text(), 0, directives.escape);
    let Some(line) = lines.logical() else {
        return Ok(None);
    };
    let found = instruction(source, &directives, &line, &mut lines)?;
    may_be_trigger(source, &found)?;
    Ok(Some(found))
}

fn instruction(
    source: &Arc<Source>,
    directives: &Directives,
    line: &LogicalLine,
    lines: &mut Lines<'_>,
) -> Parsed<Instruction> {
    let whole = Part::new(line, 0..line.text.len());
    let mut parser = Parser {
        source,
        directives,
        lines,
        end: line.span.end,
    };
    let kind = parser.kind(whole);
    Ok(Instruction {
        kind: kind?,
        span: Span::new(line.span.start, parser.end),
    })
}

struct Parser<'a, 's> {
    source: &'a Arc<Source>,
    directives: &'a Directives,
    lines: &'a mut Lines<'s>,
    /// Where the instruction ends, with its heredocs.
    end: usize,
}

impl Parser<'_, '_> {
    fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.source, span, message)
    }

    fn kind(&mut self, whole: Part<'_>) -> Parsed<InstructionKind> {
        let (name, rest) = whole.split_first();
        let upper = name.text().to_ascii_uppercase();
        let span = name.word().span;
        if !NAMES.contains(&upper.as_str()) {
            let shown: String = name.text().chars().take(40).collect();
            let error = self.error(span, format!("there is no instruction `{shown}`"));
            return Err(match closest(&upper, NAMES) {
                Some(near) => error.label(format!("did you mean `{near}`?")),
                None => error,
            });
        }
        let (flags, rest) = rest.flags();
        let flags = Flags {
            instruction: &upper,
            source: self.source,
            list: flags,
        };
        let missing = |what: &str| self.error(span, format!("{upper} needs {what}"));
        if rest.is_empty() && !matches!(upper.as_str(), "RUN" | "CMD" | "ENTRYPOINT") {
            let what = match upper.as_str() {
                "FROM" => "an image",
                "ENV" | "LABEL" => "a pair NAME=VALUE",
                "COPY" | "ADD" => "a source and a destination",
                "SHELL" => "a list such as [\"/bin/bash\", \"-c\"]",
                "ONBUILD" => "an instruction",
                "HEALTHCHECK" => "CMD with a command, or NONE",
                _ => "an argument",
            };
            return Err(missing(what));
        }
        match upper.as_str() {
            "FROM" => self.from(&flags, rest),
            "RUN" => self.run(&flags, rest, span),
            "COPY" => Ok(InstructionKind::Copy(self.transfer(&flags, rest, true)?)),
            "ADD" => Ok(InstructionKind::Add(self.transfer(&flags, rest, false)?)),
            "HEALTHCHECK" => self.healthcheck(&flags, rest),
            _ => {
                flags.only(&[])?;
                self.plain(&upper, rest)
            }
        }
    }

    /// The instructions that have no flags.
    fn plain(&mut self, name: &str, rest: Part<'_>) -> Parsed<InstructionKind> {
        Ok(match name {
            "ARG" => InstructionKind::Arg(
                rest.split_quoted(self.directives.escape)
                    .into_iter()
                    .map(|part| match part.split_pair() {
                        Some((name, value)) => (name.word(), Some(value.word())),
                        None => (part.word(), None),
                    })
                    .map(|(name, value)| {
                        if name.text.is_empty() {
                            return Err(self.error(name.span, "the name of the variable is empty"));
                        }
                        Ok((name, value))
                    })
                    .collect::<Parsed<_>>()?,
            ),
            "ENV" => InstructionKind::Env(self.pairs(name, rest)?),
            "LABEL" => InstructionKind::Label(self.pairs(name, rest)?),
            "CMD" => InstructionKind::Cmd(self.command(rest)?),
            "ENTRYPOINT" => InstructionKind::Entrypoint(self.command(rest)?),
            "SHELL" => match self.command(rest)? {
                Command::Exec(words) if !words.is_empty() => InstructionKind::Shell(words),
                _ => {
                    return Err(self
                        .error(rest.word().span, "SHELL needs a list in JSON")
                        .label("write [\"/bin/bash\", \"-c\"]"));
                }
            },
            "EXPOSE" => InstructionKind::Expose(rest.split()),
            "VOLUME" => {
                let words = self.list(rest)?;
                if words.is_empty() {
                    return Err(
                        self.error(rest.word().span, "VOLUME needs the path of a directory")
                    );
                }
                if let Some(empty) = words.iter().find(|word| word.text.trim().is_empty()) {
                    return Err(self.error(empty.span, "VOLUME needs the path of a directory"));
                }
                InstructionKind::Volume(words)
            }
            "USER" => InstructionKind::User(rest.word()),
            "WORKDIR" => InstructionKind::Workdir(rest.word()),
            "STOPSIGNAL" => InstructionKind::StopSignal(rest.word()),
            "MAINTAINER" => InstructionKind::Maintainer(rest.word()),
            _ => {
                // ONBUILD
                let start = rest.word().span.start;
                let instruction = Instruction {
                    kind: self.kind(rest)?,
                    span: Span::new(start, self.end),
                };
                may_be_trigger(self.source, &instruction)?;
                let mut text = rest.text().to_owned();
                for heredoc in heredoc::of(&instruction.kind) {
                    text.push('\n');
                    text.push_str(&heredoc.contents);
                    text.push_str(&heredoc.name);
                }
                InstructionKind::OnBuild {
                    instruction: Box::new(instruction),
                    text,
                }
            }
        })
    }

    fn from(&self, flags: &Flags<'_>, rest: Part<'_>) -> Parsed<InstructionKind> {
        flags.only(&["platform"])?;
        let platform = flags.one("platform")?;
        let words = rest.split();
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, word, name] if word.text.eq_ignore_ascii_case("as") => (image, Some(name)),
            [_, word, ..] => {
                return Err(self
                    .error(word.span, format!("{:?} is not expected here", word.text))
                    .label("write FROM IMAGE, or FROM IMAGE AS NAME"));
            }
            [] => return Err(self.error(rest.word().span, "FROM needs an image")),
        };
        if let Some(name) = name {
            let lower = name.text.to_lowercase();
            let good = lower.starts_with(|c: char| c.is_ascii_lowercase())
                && lower
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !good {
                return Err(self
                    .error(
                        name.span,
                        format!("{:?} cannot be the name of a stage", name.text),
                    )
                    .label("a letter, then letters, digits, `-`, `_` and `.`"));
            }
        }
        Ok(InstructionKind::From {
            image: image.clone(),
            platform,
            name: name.cloned(),
        })
    }

    fn run(&mut self, flags: &Flags<'_>, rest: Part<'_>, span: Span) -> Parsed<InstructionKind> {
        flags.only(&["mount", "network", "security"])?;
        let mounts = flags.all("mount")?;
        for mount in mounts.iter().filter(|mount| !mount.text.contains('$')) {
            // Whether a name is that of a stage is known when the build is planned.
            mount::Mount::parse(
                &mount.text,
                &mut |value| Ok(value.to_owned()),
                &mut |name| Ok(step::From::Image(name.to_owned())),
            )
            .map_err(|message| self.error(mount.span, message))?;
        }
        let network = flags.one("network")?;
        let security = flags.one("security")?;
        for (word, allowed) in [
            (&network, ["default", "none", "host"].as_slice()),
            (&security, &["sandbox", "insecure"]),
        ] {
            let Some(word) = word else { continue };
            if !allowed.contains(&word.text.as_str()) {
                return Err(self
                    .error(word.span, format!("there is no {:?} to choose", word.text))
                    .label(format!("it is one of: {}", allowed.join(", "))));
            }
        }
        let command = self.command(rest)?;
        let empty = match &command {
            Command::Shell(line) => line.is_empty(),
            Command::Exec(words) => words.is_empty(),
        };
        if empty {
            return Err(self.error(span, "RUN needs a command"));
        }
        let heredocs = match &command {
            Command::Shell(line) if line.contains("<<") => {
                let announced = rest
                    .split_quoted(self.directives.escape)
                    .iter()
                    .filter_map(|part| heredoc::announced(&part.word()))
                    .collect();
                self.contents(announced)?
            }
            _ => Vec::new(),
        };
        Ok(InstructionKind::Run {
            command,
            mounts,
            network,
            security,
            heredocs,
        })
    }

    fn transfer(&mut self, flags: &Flags<'_>, rest: Part<'_>, copy: bool) -> Parsed<Transfer> {
        flags.only(if copy {
            &["from", "chown", "chmod", "link", "parents", "exclude"]
        } else {
            &[
                "chown",
                "chmod",
                "link",
                "exclude",
                "checksum",
                "keep-git-dir",
                "unpack",
            ]
        })?;
        let mut words = self.list(rest)?;
        let json = matches!(rest.json(), Some(Ok(_)));
        let destination = match words.pop() {
            Some(destination) if !words.is_empty() => destination,
            _ => {
                let name = flags.instruction;
                return Err(self
                    .error(
                        rest.word().span,
                        format!("{name} needs a source and a destination"),
                    )
                    .label("only one of them is here"));
            }
        };
        if !json && heredoc::announced(&destination).is_some() {
            return Err(self
                .error(destination.span, "a text cannot be the destination")
                .label("a path belongs here"));
        }
        let sources: Vec<TransferSource> = words
            .into_iter()
            .map(|word| match heredoc::announced(&word).filter(|_| !json) {
                Some(heredoc) => TransferSource::Heredoc(heredoc),
                None => TransferSource::Path(word),
            })
            .collect();
        let announced = sources
            .iter()
            .filter_map(|source| match source {
                TransferSource::Heredoc(heredoc) => Some(heredoc.clone()),
                TransferSource::Path(_) => None,
            })
            .collect();
        let mut read = self.contents(announced)?.into_iter();
        let sources = sources
            .into_iter()
            .map(|source| match source {
                TransferSource::Heredoc(empty) => {
                    TransferSource::Heredoc(read.next().unwrap_or(empty))
                }
                path @ TransferSource::Path(_) => path,
            })
            .collect();
        let from = flags.one("from")?;
        if let Some(from) = from.as_ref().filter(|from| from.text.contains('$')) {
            return Err(self
                .error(from.span, "`--from` cannot hold a variable")
                .help("start a stage by FROM with a variable of ARG before the first FROM, and name that stage here"));
        }
        Ok(Transfer {
            from,
            chown: flags.one("chown")?,
            chmod: flags.one("chmod")?,
            link: flags.boolean("link")?.unwrap_or(false),
            parents: flags.boolean("parents")?.unwrap_or(false),
            exclude: flags.all("exclude")?,
            checksum: flags.one("checksum")?,
            keep_git_dir: flags.boolean("keep-git-dir")?.unwrap_or(false),
            unpack: flags.boolean("unpack")?,
            sources,
            destination,
        })
    }

    fn healthcheck(&self, flags: &Flags<'_>, rest: Part<'_>) -> Parsed<InstructionKind> {
        const OPTIONS: [&str; 5] = [
            "interval",
            "timeout",
            "start-period",
            "start-interval",
            "retries",
        ];
        let (kind, command) = rest.split_first();
        flags.only(&OPTIONS)?;
        match kind.text().to_ascii_uppercase().as_str() {
            "NONE" if command.is_empty() && flags.list.is_empty() => {
                Ok(InstructionKind::Healthcheck(Check::None))
            }
            "NONE" => Err(self
                .error(
                    rest.word().span,
                    "HEALTHCHECK NONE has no arguments and no flags",
                )
                .label("leave them out")),
            "CMD" => {
                let mut options = Vec::new();
                for name in OPTIONS {
                    let Some(value) = flags.one(name)? else {
                        continue;
                    };
                    let good = if name == "retries" {
                        value.text.parse::<i32>().is_ok_and(|n| n >= 0)
                    } else {
                        health::duration(&value.text).is_some_and(|n| n == 0 || n >= 1_000_000)
                    };
                    if !good {
                        return Err(self
                            .error(
                                value.span,
                                format!("{:?} is no value of `--{name}`", value.text),
                            )
                            .label(if name == "retries" {
                                "a number that is not negative"
                            } else {
                                "a time of at least 1ms, such as 30s or 1m30s"
                            }));
                    }
                    options.push((name.to_owned(), value));
                }
                if command.is_empty() {
                    return Err(self.error(kind.word().span, "HEALTHCHECK CMD needs a command"));
                }
                Ok(InstructionKind::Healthcheck(Check::Command {
                    command: self.command(command)?,
                    options,
                }))
            }
            _ => Err(self
                .error(
                    kind.word().span,
                    format!("there is no health check of type {:?}", kind.text()),
                )
                .label("it is CMD or NONE")),
        }
    }

    fn command(&self, rest: Part<'_>) -> Parsed<Command> {
        match rest.json() {
            Some(Ok(words)) => Ok(Command::Exec(words)),
            Some(Err(())) => Err(self.not_texts(rest)),
            None => Ok(Command::Shell(rest.text().to_owned())),
        }
    }

    fn not_texts(&self, rest: Part<'_>) -> Diagnostic {
        self.error(rest.word().span, "the list holds something else than texts")
            .label("put each word in double quotes")
    }

    /// Words in JSON or between blanks.
    fn list(&self, rest: Part<'_>) -> Parsed<Vec<Word>> {
        match rest.json() {
            Some(Ok(words)) => {
                let span = rest.word().span;
                Ok(words.into_iter().map(|text| Word { text, span }).collect())
            }
            Some(Err(())) => Err(self.not_texts(rest)),
            None => Ok(rest.split()),
        }
    }

    /// `NAME=VALUE …`, or `NAME VALUE` for one alone; quotes of a name must be closed in it.
    fn pairs(&self, name: &str, rest: Part<'_>) -> Parsed<Vec<(Word, Word)>> {
        let pairs = self.split_pairs(name, rest)?;
        for (key, _) in &pairs {
            let unset = |_: &str| Some(String::new());
            if let Err(error) = Expander::new(self.directives.escape, &unset).quotes(&key.text) {
                return Err(self.error(key.span, error.0));
            }
        }
        Ok(pairs)
    }

    fn split_pairs(&self, name: &str, rest: Part<'_>) -> Parsed<Vec<(Word, Word)>> {
        let words = rest.split_quoted(self.directives.escape);
        if words.first().is_some_and(|word| !word.text().contains('=')) {
            let (key, value) = rest.split_first();
            if value.is_empty() {
                return Err(self
                    .error(key.word().span, format!("{name} needs a pair NAME=VALUE"))
                    .label("there is no value"));
            }
            return Ok(vec![(key.word(), value.word())]);
        }
        words
            .into_iter()
            .map(|word| {
                let (key, value) = word.split_pair().ok_or_else(|| {
                    self.error(
                        word.word().span,
                        format!("there is no `=` in {:?}", word.text()),
                    )
                    .label(format!(
                        "{name} takes pairs NAME=VALUE; quote a value with blanks"
                    ))
                })?;
                if key.is_empty() {
                    return Err(self
                        .error(word.word().span, "the name before `=` is empty")
                        .label("write NAME=VALUE"));
                }
                Ok((key.word(), value.word()))
            })
            .collect()
    }

    /// Reads the texts that a line has announced.
    fn contents(&mut self, announced: Vec<Heredoc>) -> Parsed<Vec<Heredoc>> {
        let mut read = Vec::new();
        for heredoc in announced {
            read.push(heredoc::read(self.source, self.lines, heredoc)?);
            self.end = self.lines.position();
        }
        Ok(read)
    }
}

fn may_be_trigger(source: &Arc<Source>, instruction: &Instruction) -> Parsed<()> {
    match instruction.kind {
        InstructionKind::OnBuild { .. }
        | InstructionKind::From { .. }
        | InstructionKind::Maintainer(_) => Err(Diagnostic::error(
            source,
            instruction.span,
            format!("{} cannot follow ONBUILD", instruction.kind.name()),
        )),
        _ => Ok(()),
    }
}
