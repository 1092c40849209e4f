//! The flags of an instruction, such as `--from=build`.

use std::sync::Arc;

use super::diagnostic::{Diagnostic, closest};
use super::instruction::Word;
use super::source::Source;

/// The flags of one instruction; whoever wants one takes it out.
pub(super) struct Flags<'a> {
    pub(super) instruction: &'a str,
    pub(super) source: &'a Arc<Source>,
    pub(super) list: Vec<Word>,
}

impl Flags<'_> {
    /// Refuses flags that the instruction does not have.
    pub(super) fn only(&self, allowed: &[&str]) -> Result<(), Diagnostic> {
        for flag in &self.list {
            let name = name(flag);
            if allowed.contains(&name) {
                continue;
            }
            let message = format!("{} has no flag `--{name}`", self.instruction);
            let error = Diagnostic::error(self.source, flag.span, message);
            return Err(match closest(name, allowed.iter().copied()) {
                Some(near) => error.label(format!("did you mean `--{near}`?")),
                None if allowed.is_empty() => error.label("it has none"),
                None => error.label(format!("it has --{}", allowed.join(", --"))),
            });
        }
        Ok(())
    }

    /// All values of a flag.
    pub(super) fn all(&self, wanted: &str) -> Result<Vec<Word>, Diagnostic> {
        self.list
            .iter()
            .filter(|flag| name(flag) == wanted)
            .map(|flag| match flag.text.split_once('=') {
                Some((_, value)) if !value.is_empty() => Ok(Word {
                    text: value.to_owned(),
                    span: flag.span,
                }),
                _ => Err(Diagnostic::error(
                    self.source,
                    flag.span,
                    format!("the flag `--{wanted}` has no value"),
                )
                .label(format!("write --{wanted}=VALUE"))),
            })
            .collect()
    }

    /// The value of a flag that may be there once.
    pub(super) fn one(&self, wanted: &str) -> Result<Option<Word>, Diagnostic> {
        let mut all = self.all(wanted)?;
        if let Some(second) = all.get(1) {
            return Err(Diagnostic::error(
                self.source,
                second.span,
                format!("the flag `--{wanted}` is there twice"),
            )
            .label("leave one of them out"));
        }
        Ok(all.pop())
    }

    /// A flag that is `true` or `false`, and `true` if it has no value.
    pub(super) fn boolean(&self, wanted: &str) -> Result<Option<bool>, Diagnostic> {
        let mut found = None;
        for flag in self.list.iter().filter(|flag| name(flag) == wanted) {
            let value = match flag.text.split_once('=').map(|(_, value)| value) {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    return Err(Diagnostic::error(
                        self.source,
                        flag.span,
                        format!("{other:?} is no value of `--{wanted}`"),
                    )
                    .label("it is `true` or `false`"));
                }
            };
            if found.replace(value).is_some() {
                return Err(Diagnostic::error(
                    self.source,
                    flag.span,
                    format!("the flag `--{wanted}` is there twice"),
                )
                .label("leave one of them out"));
            }
        }
        Ok(found)
    }
}

fn name(flag: &Word) -> &str {
    let text = flag.text.trim_start_matches('-');
    text.split_once('=').map_or(text, |(name, _)| name)
}
