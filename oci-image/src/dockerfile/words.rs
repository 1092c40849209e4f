//! Taking the rest of a line apart: into flags, words, pairs and lists.

use std::ops::Range;

use super::instruction::Word;
use super::lines::LogicalLine;

/// A part of a logical line.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) line: &'a LogicalLine,
    start: usize,
    end: usize,
}

impl<'a> Part<'a> {
    pub(super) fn new(line: &'a LogicalLine, range: Range<usize>) -> Part<'a> {
        Part {
            line,
            start: range.start,
            end: range.end,
        }
        .trim()
    }

    pub(super) fn text(&self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn word(&self) -> Word {
        Word {
            text: self.text().to_owned(),
            span: self.line.span(self.start..self.end),
        }
    }

    fn trim(mut self) -> Part<'a> {
        let text = self.text();
        self.start += text.len() - text.trim_start().len();
        self.end = self.start + text.trim().len();
        self
    }

    /// The part `range` of this one, offsets from its start.
    fn sub(&self, range: Range<usize>) -> Part<'a> {
        Part {
            line: self.line,
            start: self.start + range.start,
            end: self.start + range.end,
        }
    }

    /// The first word and what follows it.
    pub(super) fn split_first(&self) -> (Part<'a>, Part<'a>) {
        let text = self.text();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        (self.sub(0..end), self.sub(end..text.len()).trim())
    }

    /// The words between blanks.
    pub(super) fn split(&self) -> Vec<Word> {
        let mut rest = *self;
        let mut words = Vec::new();
        while !rest.is_empty() {
            let (word, more) = rest.split_first();
            words.push(word.word());
            rest = more;
        }
        words
    }

    /// The words between blanks that are not quoted; quotes and escapes stay in them.
    pub(super) fn split_quoted(&self, escape: char) -> Vec<Part<'a>> {
        let text = self.text();
        let mut words = Vec::new();
        let mut start = None;
        let mut quote = None;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            if quote.is_none() && c.is_whitespace() {
                words.extend(start.take().map(|start| self.sub(start..at)));
                continue;
            }
            start.get_or_insert(at);
            match quote {
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(open) if c == open => quote = None,
                Some('\'') => {}
                _ if c == escape => {
                    chars.next();
                }
                _ => {}
            }
        }
        words.extend(start.map(|start| self.sub(start..text.len())));
        words
    }

    /// Name and value of `NAME=VALUE`.
    pub(super) fn split_pair(&self) -> Option<(Part<'a>, Part<'a>)> {
        let at = self.text().find('=')?;
        Some((self.sub(0..at), self.sub(at + 1..self.text().len())))
    }

    /// The words that start with `--` before the others, without quotes and escapes, and what follows them.
    pub(super) fn flags(&self) -> (Vec<Word>, Part<'a>) {
        let mut rest = *self;
        let mut flags = Vec::new();
        while rest.text().starts_with("--") {
            let mut text = String::new();
            let mut end = rest.text().len();
            let mut quote = None;
            let mut chars = rest.text().char_indices();
            while let Some((at, c)) = chars.next() {
                match quote {
                    None if c.is_whitespace() => {
                        end = at;
                        break;
                    }
                    None if c == '\'' || c == '"' => quote = Some(c),
                    Some(open) if c == open => quote = None,
                    _ if c == '\\' => text.extend(chars.next().map(|(_, c)| c)),
                    _ => text.push(c),
                }
            }
            let flag = rest.sub(0..end);
            rest = rest.sub(end..rest.text().len()).trim();
            if text == "--" {
                break;
            }
            flags.push(Word {
                text,
                span: flag.line.span(flag.start..flag.end),
            });
        }
        (flags, rest)
    }

    /// The words of a list in JSON: `None` if it is no JSON, an error if its members are no texts.
    pub(super) fn json(&self) -> Option<Result<Vec<String>, ()>> {
        if !self.text().starts_with('[') {
            return None;
        }
        // What follows the list is left out, as everywhere; a check warns of it.
        let values: Vec<serde_json::Value> = serde_json::Deserializer::from_str(self.text())
            .into_iter()
            .next()?
            .ok()?;
        Some(
            values
                .into_iter()
                .map(|value| match value {
                    serde_json::Value::String(text) => Ok(text),
                    _ => Err(()),
                })
                .collect(),
        )
    }
}
