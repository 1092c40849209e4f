//! Instructions as text that is parsed to the same instructions.

use std::fmt::{self, Write};

use super::instruction::{
    Check, Command, Heredoc, Instruction, InstructionKind, Transfer, TransferSource, Word,
};
use super::{Dockerfile, Stage};

impl fmt::Display for Dockerfile {
    /// One instruction a line; comments and continued lines are gone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(syntax) = &self.directives.syntax {
            writeln!(f, "# syntax={syntax}")?;
        }
        if self.directives.escape != '\\' {
            writeln!(f, "# escape={}", self.directives.escape)?;
        }
        let mut text = String::new();
        for instruction in &self.globals {
            writeln!(text, "{instruction}")?;
        }
        for stage in &self.stages {
            write!(text, "{stage}")?;
        }
        // Only at the end of a file can a word end like a line that goes on; going on once more keeps it.
        let escape = self.directives.escape;
        let last = text.trim_end();
        if self.ends_open(last) {
            return writeln!(f, "{last} {escape}");
        }
        f.write_str(&text)
    }
}

impl Dockerfile {
    /// Whether a text ends with a single escape character.
    fn ends_open(&self, text: &str) -> bool {
        let escape = self.directives.escape;
        text.strip_suffix(escape)
            .is_some_and(|rest| !rest.ends_with(escape))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.from)?;
        for instruction in &self.instructions {
            writeln!(f, "{instruction}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut heredocs: Vec<&Heredoc> = Vec::new();
        let (mut flags, mut rest) = (String::new(), String::new());
        match &self.kind {
            InstructionKind::From {
                image,
                platform,
                name,
            } => {
                flag(&mut flags, "platform", platform.as_ref())?;
                write!(rest, " {}", image.text)?;
                if let Some(name) = name {
                    write!(rest, " AS {}", name.text)?;
                }
            }
            InstructionKind::Arg(list) => {
                for (name, value) in list {
                    write!(rest, " {}", name.text)?;
                    if let Some(value) = value {
                        write!(rest, "={}", value.text)?;
                    }
                }
            }
            InstructionKind::Env(list) | InstructionKind::Label(list) => {
                // The form of one pair alone takes the rest of the line for the value.
                let alone = |word: &Word| {
                    word.text.is_empty()
                        || word.text.contains(|c: char| c == '=' || c.is_whitespace())
                };
                match list.as_slice() {
                    [(name, value)] if !alone(name) && needs_line(&value.text) => {
                        // An escape at the end takes only one of two blanks away.
                        let blank = if name.text.ends_with(['\\', '`']) {
                            " "
                        } else {
                            ""
                        };
                        write!(rest, " {} {blank}{}", name.text, value.text)?;
                    }
                    list => {
                        for (name, value) in list {
                            write!(rest, " {}={}", name.text, value.text)?;
                        }
                    }
                }
            }
            InstructionKind::Run {
                command,
                mounts,
                network,
                security,
                heredocs: texts,
            } => {
                flag(&mut flags, "mount", mounts)?;
                flag(&mut flags, "network", network.as_ref())?;
                flag(&mut flags, "security", security.as_ref())?;
                write!(rest, " {command}")?;
                heredocs.extend(texts);
            }
            InstructionKind::Copy(transfer) | InstructionKind::Add(transfer) => {
                heredocs.extend(print_transfer(&mut flags, &mut rest, transfer)?);
            }
            InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => {
                write!(rest, " {command}")?;
            }
            InstructionKind::Shell(words) => write!(rest, " {}", json(words))?,
            InstructionKind::Expose(words) => {
                words
                    .iter()
                    .try_for_each(|word| write!(rest, " {}", word.text))?;
            }
            InstructionKind::Volume(words) => print_list(&mut rest, words.iter())?,
            InstructionKind::User(word)
            | InstructionKind::Workdir(word)
            | InstructionKind::StopSignal(word)
            | InstructionKind::Maintainer(word) => {
                write!(rest, " {}", word.text)?;
            }
            InstructionKind::Healthcheck(Check::None) => rest.write_str(" NONE")?,
            InstructionKind::Healthcheck(Check::Command { command, options }) => {
                for (name, value) in options {
                    flag(&mut flags, name, [value])?;
                }
                write!(rest, " CMD {command}")?;
            }
            InstructionKind::OnBuild { instruction, .. } => write!(rest, " {instruction}")?,
        }
        write!(f, "{}{flags}", self.kind.name())?;
        // What follows the flags may look like one.
        if rest.starts_with(" --") {
            f.write_str(" --")?;
        }
        f.write_str(&rest)?;
        for heredoc in heredocs {
            write!(f, "\n{}{}", heredoc.contents, heredoc.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Shell(line) => f.write_str(line),
            Command::Exec(words) => f.write_str(&json(words)),
        }
    }
}

fn print_transfer<'t>(
    flags: &mut String,
    rest: &mut String,
    transfer: &'t Transfer,
) -> Result<Vec<&'t Heredoc>, fmt::Error> {
    flag(flags, "from", transfer.from.as_ref())?;
    flag(flags, "chown", transfer.chown.as_ref())?;
    flag(flags, "chmod", transfer.chmod.as_ref())?;
    for (name, set) in [
        ("link", transfer.link),
        ("parents", transfer.parents),
        ("keep-git-dir", transfer.keep_git_dir),
    ] {
        if set {
            write!(flags, " --{name}")?;
        }
    }
    if let Some(unpack) = transfer.unpack {
        write!(flags, " --unpack={unpack}")?;
    }
    flag(flags, "checksum", transfer.checksum.as_ref())?;
    flag(flags, "exclude", &transfer.exclude)?;
    let mut heredocs = Vec::new();
    let mut paths = Vec::new();
    for source in &transfer.sources {
        match source {
            TransferSource::Path(word) => paths.push(word),
            TransferSource::Heredoc(heredoc) => heredocs.push(heredoc),
        }
    }
    paths.push(&transfer.destination);
    if heredocs.is_empty() {
        print_list(rest, paths.into_iter())?;
        return Ok(heredocs);
    }
    for source in &transfer.sources {
        match source {
            TransferSource::Path(word) => write!(rest, " {}", word.text)?,
            TransferSource::Heredoc(heredoc) => write!(rest, " {}", announcement(heredoc))?,
        }
    }
    write!(rest, " {}", transfer.destination.text)?;
    Ok(heredocs)
}

fn announcement(heredoc: &Heredoc) -> String {
    let mut text = String::new();
    if heredoc.descriptor != 0 {
        let _ = write!(text, "{}", heredoc.descriptor);
    }
    text.push_str(if heredoc.strip_tabs { "<<-" } else { "<<" });
    if heredoc.expand {
        text.push_str(&heredoc.name);
    } else {
        let _ = write!(text, "'{}'", heredoc.name);
    }
    text
}

/// Words between blanks, or in JSON if blanks would part them otherwise.
fn print_list<'w>(f: &mut String, words: impl Iterator<Item = &'w Word>) -> fmt::Result {
    let words: Vec<String> = words.map(|word| word.text.clone()).collect();
    let plain = |word: &String| {
        !word.is_empty() && !word.contains(char::is_whitespace) && !word.contains("<<")
    };
    let starts = words.first().is_some_and(|word| word.starts_with('['));
    let ends = words.last().is_some_and(|word| word.ends_with(['\\', '`']));
    if words.iter().all(plain) && !starts && !ends {
        words.iter().try_for_each(|word| write!(f, " {word}"))
    } else {
        write!(f, " {}", json(&words))
    }
}

fn json(words: &[String]) -> String {
    // A list of texts always has a JSON form.
    serde_json::to_string(words).unwrap_or_default()
}

/// Whether a value has blanks outside quotes, so that it must have the line to itself.
fn needs_line(value: &str) -> bool {
    value.contains(char::is_whitespace) && value.trim() == value
}

/// A flag with each of its values; what parts words is escaped.
fn flag<'w>(f: &mut String, name: &str, values: impl IntoIterator<Item = &'w Word>) -> fmt::Result {
    for value in values {
        write!(f, " --{name}=")?;
        for c in value.text.chars() {
            if c.is_whitespace() || matches!(c, '\'' | '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(c)?;
        }
    }
    Ok(())
}
