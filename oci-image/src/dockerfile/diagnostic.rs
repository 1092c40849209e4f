//! Messages about a Dockerfile, shown like a compiler's.

use std::fmt;
use std::sync::Arc;

use super::source::{Position, Source, Span};
use crate::error::Error;

/// How grave a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It cannot be built.
    Error,
    /// It can be built, but perhaps not as meant.
    Warning,
}

/// A message about a part of a Dockerfile.
///
/// It is shown with the line and a mark below the part:
///
/// ```text
/// error: there is no instruction `COPPY`
///  --> Dockerfile:2:1
///   |
/// 2 | COPPY . /src
///   | ^^^^^ did you mean `COPY`?
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic(Box<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    severity: Severity,
    rule: Option<&'static str>,
    message: String,
    label: String,
    help: Option<String>,
    span: Span,
    source: Arc<Source>,
}

impl Diagnostic {
    pub(super) fn error(
        source: &Arc<Source>,
        span: Span,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic(Box::new(Inner {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            label: String::new(),
            help: None,
            span,
            source: Arc::clone(source),
        }))
    }

    pub(super) fn warning(
        rule: &'static str,
        source: &Arc<Source>,
        span: Span,
        message: impl Into<String>,
    ) -> Diagnostic {
        let mut warning = Diagnostic::error(source, span, message);
        warning.0.severity = Severity::Warning;
        warning.0.rule = Some(rule);
        warning
    }

    /// Words beside the mark.
    pub(super) fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.0.label = label.into();
        self
    }

    /// What to do, on a line of its own.
    pub(super) fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.0.help = Some(help.into());
        self
    }

    pub(super) fn into_error(mut self) -> Diagnostic {
        self.0.severity = Severity::Error;
        self
    }

    /// How grave it is.
    pub fn severity(&self) -> Severity {
        self.0.severity
    }

    /// The name of the check that warns, as BuildKit has it, such as `StageNameCasing`; none for what is an error
    /// without any check.
    pub fn rule(&self) -> Option<&'static str> {
        self.0.rule
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Which part of the text it is about.
    pub fn span(&self) -> Span {
        self.0.span
    }

    /// Where that part starts.
    pub fn position(&self) -> Position {
        self.0.source.position(self.0.span.start)
    }

    /// The text.
    pub fn source(&self) -> &Arc<Source> {
        &self.0.source
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            severity,
            rule,
            message,
            label,
            help,
            span,
            source,
        } = &*self.0;
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        f.write_str(severity)?;
        if let Some(rule) = rule {
            write!(f, "[{rule}]")?;
        }
        let position = source.position(span.start);
        let number = position.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, ": {}", visible(message))?;
        writeln!(
            f,
            "{margin}--> {}:{}:{}",
            visible(source.name()),
            position.line,
            position.column
        )?;
        let line = source.line_at(span.start);
        let text = source.slice(line);
        let before = source.slice(Span::new(line.start, span.start.min(line.end)));
        // What goes on in the next line is marked up to the end of this one.
        let marked = source.slice(Span::new(
            span.start.min(line.end),
            span.end.clamp(span.start.min(line.end), line.end),
        ));
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", visible(text))?;
        write!(
            f,
            "{margin} | {}{}",
            " ".repeat(width(before)),
            "^".repeat(width(marked).max(1))
        )?;
        if !label.is_empty() {
            write!(f, " {}", visible(label))?;
        }
        if let Some(help) = help {
            write!(f, "\n{margin} = help: {}", visible(help))?;
        }
        Ok(())
    }
}

/// A text as it is shown: a tab as four blanks, other control characters as signs, so that a terminal obeys none.
fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => shown.push_str("    "),
            c if c.is_control() => shown.push('\u{fffd}'),
            c => shown.push(c),
        }
    }
    shown
}

fn width(text: &str) -> usize {
    visible(text).chars().count()
}

/// All messages about a Dockerfile that cannot be built; there is at least one error.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// The messages in the order of the text.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, diagnostic) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl From<Diagnostic> for Error {
    fn from(diagnostic: Diagnostic) -> Error {
        Error::Dockerfile {
            diagnostics: Diagnostics(vec![diagnostic]),
        }
    }
}

impl From<Vec<Diagnostic>> for Error {
    fn from(mut diagnostics: Vec<Diagnostic>) -> Error {
        diagnostics.sort_by_key(|diagnostic| diagnostic.0.span);
        Error::Dockerfile {
            diagnostics: Diagnostics(diagnostics),
        }
    }
}

/// The candidate that `text` was probably meant to be.
pub(super) fn closest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| {
            (
                distance(&text.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3 + 1 && *distance <= 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters must be put in, left out, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}
