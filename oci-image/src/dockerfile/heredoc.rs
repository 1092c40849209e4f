//! Texts within a Dockerfile: `<<NAME`.

use super::expand::Expander;
use super::instruction::{Heredoc, Word};

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
