//! Patterns of a substitution such as `${name#pattern}`.

/// A pattern of a substitution: `*`, `?` and what stands for itself.
pub(super) struct Glob(Vec<Piece>);

#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Any,
    One,
    Char(char),
}

impl Glob {
    pub(super) fn new(text: &str, escape: char) -> Glob {
        let mut pieces = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' => Piece::Any,
                '?' => Piece::One,
                c if c == escape => match chars.next() {
                    Some(c) => Piece::Char(c),
                    None => Piece::Char(escape),
                },
                c => Piece::Char(c),
            });
        }
        Glob(pieces)
    }

    /// The lengths of the beginnings of `value` that the pattern matches, one flag for each length.
    fn lengths(&self, value: &[char]) -> Vec<bool> {
        let mut reach = vec![false; value.len() + 1];
        reach[0] = true;
        for piece in &self.0 {
            let mut next = vec![false; value.len() + 1];
            match piece {
                Piece::Any => {
                    let mut seen = false;
                    for (to, from) in next.iter_mut().zip(&reach) {
                        seen |= *from;
                        *to = seen;
                    }
                }
                Piece::One | Piece::Char(_) => {
                    for (at, c) in value.iter().enumerate() {
                        next[at + 1] =
                            reach[at] && (*piece == Piece::One || *piece == Piece::Char(*c));
                    }
                }
            }
            reach = next;
        }
        reach
    }

    pub(super) fn without_prefix(&self, value: &[char], longest: bool) -> String {
        let lengths = self.lengths(value);
        let cut = if longest {
            lengths.iter().rposition(|hit| *hit)
        } else {
            lengths.iter().position(|hit| *hit)
        };
        value[cut.unwrap_or(0)..].iter().collect()
    }

    pub(super) fn without_suffix(&self, value: &[char], longest: bool) -> String {
        let reversed = Glob(self.0.iter().rev().copied().collect());
        let backwards: Vec<char> = value.iter().rev().copied().collect();
        reversed
            .without_prefix(&backwards, longest)
            .chars()
            .rev()
            .collect()
    }

    /// With the longest match at the first place, or at each, replaced; `None` if that makes more than `most` bytes.
    pub(super) fn replaced(
        &self,
        value: &[char],
        replacement: &str,
        all: bool,
        most: usize,
    ) -> Option<String> {
        let mut text = String::new();
        let mut at = 0;
        let mut after_match = false;
        let mut done = false;
        while at <= value.len() {
            let found = if done {
                None
            } else {
                self.lengths(&value[at..]).iter().rposition(|hit| *hit)
            };
            match found {
                Some(length) if length > 0 || !after_match => {
                    if text.len() + replacement.len() > most {
                        return None;
                    }
                    text.push_str(replacement);
                    done = !all;
                    if length > 0 {
                        at += length;
                        after_match = true;
                        continue;
                    }
                }
                _ => {}
            }
            after_match = false;
            text.extend(value.get(at));
            at += 1;
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replacements_make_has_an_end() {
        // Each place could be replaced by something long.
        let long = "y".repeat(64 << 10);
        let all = Glob::new("x", '\\').replaced(&['x'; 1000], &long, true, 128 << 10);
        assert_eq!(all, None);
    }
}
