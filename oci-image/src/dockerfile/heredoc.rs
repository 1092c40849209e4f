//! Texts within a Dockerfile: `<<NAME`.

use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::expand::Expander;
use super::instruction::{Heredoc, InstructionKind, TransferSource, Word};
use super::lines::{Lines, without_end};
use super::source::{Source, Span};

/// A heredoc that `word` announces, still without its text.
pub(super) fn announced(word: &Word) -> Option<Heredoc> {
    let (descriptor, rest) = word.text.split_once("<<")?;
    if !descriptor.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (strip_tabs, name) = match rest.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, rest),
    };
    if name.is_empty() || name.contains('<') {
        return None;
    }
    let unset = |_: &str| None;
    let mut expander = Expander::new('\\', &unset);
    expander.raw = true;
    let quoted = expander.words(name).ok()?;
    expander.raw = false;
    // A variable in the name stays as it is.
    let literal = |name: &str| Some(format!("${name}"));
    expander.lookup = &literal;
    let plain = expander.words(name).ok()?;
    let [plain] = plain.as_slice() else {
        return None;
    };
    if plain.is_empty() {
        return None;
    }
    Some(Heredoc {
        name: plain.clone(),
        contents: String::new(),
        expand: quoted.first() == Some(plain),
        strip_tabs,
        descriptor: descriptor.parse().unwrap_or(0),
        span: word.span,
    })
}

/// Reads the text of a heredoc from the lines that follow, up to the one that ends it.
pub(super) fn read(
    source: &Arc<Source>,
    lines: &mut Lines<'_>,
    mut heredoc: Heredoc,
) -> Result<Heredoc, Diagnostic> {
    let start = lines.position();
    while let Some((end, line)) = lines.physical() {
        let mut line = without_end(line);
        if heredoc.strip_tabs {
            line = line.trim_start_matches('\t');
        }
        if line == heredoc.name {
            source
                .slice(Span::new(start, end))
                .clone_into(&mut heredoc.contents);
            return Ok(heredoc);
        }
    }
    Err(Diagnostic::error(
        source,
        heredoc.span,
        format!("the text {:?} does not end", heredoc.name),
    )
    .label(format!("a line `{}` must follow", heredoc.name)))
}

/// The heredocs of an instruction.
pub(super) fn of(kind: &InstructionKind) -> Vec<&Heredoc> {
    match kind {
        InstructionKind::Run { heredocs, .. } => heredocs.iter().collect(),
        InstructionKind::Copy(transfer) | InstructionKind::Add(transfer) => transfer
            .sources
            .iter()
            .filter_map(|source| match source {
                TransferSource::Heredoc(heredoc) => Some(heredoc),
                TransferSource::Path(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}
