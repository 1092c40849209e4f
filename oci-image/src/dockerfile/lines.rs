//! Lines of the file joined to the lines of the language: continuations, comments, heredocs.

use std::ops::Range;

use super::source::Span;

/// An instruction as one line, with the way back to where its characters stand.
#[derive(Debug)]
pub(super) struct LogicalLine {
    pub(super) text: String,
    /// Pairs of an offset in `text` and one in the source from which on they run side by side.
    map: Vec<(usize, usize)>,
    pub(super) span: Span,
    /// A line without anything among those that were joined.
    pub(super) empty_continuation: Option<Span>,
}

impl LogicalLine {
    /// Where a part of the line stands in the source.
    pub(super) fn span(&self, range: Range<usize>) -> Span {
        let start = self.at(range.start);
        if range.is_empty() {
            return Span::new(start, start);
        }
        Span::new(start, self.at(range.end - 1) + 1)
    }

    fn at(&self, offset: usize) -> usize {
        let index = self.map.partition_point(|(logical, _)| *logical <= offset);
        match index.checked_sub(1).and_then(|index| self.map.get(index)) {
            Some((logical, source)) => source + (offset - logical),
            None => self.span.start,
        }
    }
}

/// Takes a source apart into lines.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    text: &'a str,
    position: usize,
    escape: char,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str, position: usize, escape: char) -> Lines<'a> {
        Lines {
            text,
            position,
            escape,
        }
    }

    /// Where the next line starts.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next line of the file with its end, and where it starts.
    pub(super) fn physical(&mut self) -> Option<(usize, &'a str)> {
        let rest = &self.text[self.position..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let start = self.position;
        self.position += length;
        Some((start, &rest[..length]))
    }

    /// The next line of the language that is no comment and not empty.
    pub(super) fn logical(&mut self) -> Option<LogicalLine> {
        loop {
            let (start, line) = self.physical()?;
            let line = without_end(line);
            let trimmed = line.trim_start();
            let start = start + (line.len() - trimmed.len());
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let (kept, mut goes_on) = self.continued(trimmed);
            let mut logical = LogicalLine {
                text: kept.to_owned(),
                map: vec![(0, start)],
                span: Span::new(start, start + kept.len()),
                empty_continuation: None,
            };
            while goes_on {
                let Some((start, line)) = self.physical() else {
                    break;
                };
                let line = without_end(line);
                let trimmed = line.trim_start();
                if trimmed.starts_with('#') {
                    continue;
                }
                if trimmed.is_empty() {
                    logical.empty_continuation = Some(Span::new(start, start + line.len()));
                    continue;
                }
                let (kept, more) = self.continued(line);
                logical.map.push((logical.text.len(), start));
                logical.text.push_str(kept);
                logical.span.end = start + kept.len();
                goes_on = more;
            }
            if !logical.text.trim().is_empty() {
                return Some(logical);
            }
        }
    }

    /// The line without the character that continues it, and whether there was one.
    fn continued<'l>(&self, line: &'l str) -> (&'l str, bool) {
        let end = line.trim_end_matches([' ', '\t']);
        match end.strip_suffix(self.escape) {
            Some(kept) if !kept.ends_with(self.escape) => (kept, true),
            _ => (line, false),
        }
    }
}

pub(super) fn without_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}
