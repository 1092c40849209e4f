//! Parser directives: `# syntax=`, `# escape=` and `# check=` before everything else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::source::{Source, Span};

/// What the directives of a Dockerfile say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Directives {
    /// The frontend that the file asks for, such as `docker/dockerfile:1`.
    pub syntax: Option<String>,
    /// What continues a line and takes a character's meaning away: `\` or `` ` ``.
    pub escape: char,
    /// Which checks are not made.
    pub skip: BTreeSet<String>,
    /// No check is made.
    pub skip_all: bool,
    /// What a check finds is an error.
    pub error: bool,
}

impl Default for Directives {
    fn default() -> Directives {
        Directives {
            syntax: None,
            escape: '\\',
            skip: BTreeSet::new(),
            skip_all: false,
            error: false,
        }
    }
}

impl Directives {
    /// Reads the directives; the first line that is none ends them.
    pub(super) fn read(source: &Arc<Source>, start: usize) -> Result<Directives, Diagnostic> {
        let mut directives = Directives::default();
        let mut seen = BTreeSet::new();
        let mut at = start;
        for line in source.text()[start..].split_inclusive('\n') {
            let span = Span::new(at, at + line.trim_end().len());
            at += line.len();
            let Some((key, value)) = directive(line) else {
                break;
            };
            let key = key.to_ascii_lowercase();
            if !matches!(key.as_str(), "escape" | "syntax" | "check") {
                // It is a comment, and directives come before comments.
                break;
            }
            if !seen.insert(key.clone()) {
                return Err(Diagnostic::error(
                    source,
                    span,
                    format!("the directive `{key}` is there twice"),
                )
                .label("leave one of them out"));
            }
            match key.as_str() {
                "syntax" => directives.syntax = Some(value.to_owned()),
                "escape" => {
                    directives.escape = match value {
                        "\\" => '\\',
                        "`" => '`',
                        _ => {
                            return Err(Diagnostic::error(
                                source,
                                span,
                                format!("{value:?} cannot be the escape character"),
                            )
                            .label("it is `\\` or a backquote"));
                        }
                    }
                }
                _ => directives
                    .check(value)
                    .map_err(|message| Diagnostic::error(source, span, message))?,
            }
        }
        Ok(directives)
    }

    /// `skip=A,B;error=true`
    fn check(&mut self, value: &str) -> Result<(), String> {
        for part in value.split(';').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key.trim(), value.trim()) {
                ("skip", "all") => self.skip_all = true,
                ("skip", names) => self
                    .skip
                    .extend(names.split(',').map(|name| name.trim().to_owned())),
                ("error", "true") => self.error = true,
                ("error", "false") => self.error = false,
                // What only newer versions know takes nothing away.
                ("experimental", _) => {}
                _ => {
                    return Err(format!(
                        "{part:?} means nothing in the directive `check`; write skip=NAME,NAME;error=true"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Key and value of `# key = value`.
fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let good = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|b| b.is_ascii_alphanumeric());
    (good && !value.is_empty()).then_some((key, value))
}
