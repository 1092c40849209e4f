//! Words as a shell would expand them: quotes, escapes and variables with their modifiers.

use super::glob::Glob;

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExpandError(pub(super) String);

type Result<T> = std::result::Result<T, ExpandError>;

/// How words are expanded.
#[derive(Clone, Copy)]
pub(super) struct Expander<'a> {
    /// The value of a variable.
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    /// What takes a character's meaning away.
    pub(super) escape: char,
    /// Quotes and escapes stay as they are, and so do variables that have no value.
    pub(super) raw: bool,
}

impl<'a> Expander<'a> {
    pub(super) fn new(escape: char, lookup: &'a dyn Fn(&str) -> Option<String>) -> Expander<'a> {
        Expander {
            lookup,
            escape,
            raw: false,
        }
    }

    /// Expands to exactly one word, blanks included.
    pub(super) fn word(&self, text: &str) -> Result<String> {
        Ok(self.run(text)?.0)
    }

    /// Expands to as many words as blanks outside quotes make of it, those of values included.
    pub(super) fn words(&self, text: &str) -> Result<Vec<String>> {
        Ok(self.run(text)?.1)
    }

    /// Whether all quotes are closed, whatever variables hold.
    pub(super) fn quotes(&self, text: &str) -> Result<()> {
        let mut scan = Scan::new(*self, text, MAX_WORD);
        while let Some(c) = scan.next() {
            match c {
                '\'' => drop(scan.single_quoted()?),
                '"' => drop(scan.double_quoted()?),
                c if c == self.escape => drop(scan.next()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Expands variables in a text in which quotes mean nothing, such as a heredoc.
    pub(super) fn text(&self, text: &str) -> Result<String> {
        let mut scan = Scan::new(*self, text, MAX_TEXT);
        let mut expanded = String::new();
        while let Some(c) = scan.next() {
            match c {
                '$' => expanded.push_str(&scan.dollar()?),
                c if c == self.escape => match scan.next() {
                    Some(next) if next == '$' || next == self.escape => expanded.push(next),
                    next => {
                        expanded.push(c);
                        expanded.extend(next);
                    }
                },
                c => expanded.push(c),
            }
        }
        Ok(expanded)
    }

    fn run(&self, text: &str) -> Result<(String, Vec<String>)> {
        let mut scan = Scan::new(*self, text, MAX_WORD);
        let (text, words) = scan.until(None, false)?;
        Ok((text, words.finish()))
    }
}

/// A text on its way to being words.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: Option<String>,
}

impl Words {
    /// A character that may part words.
    fn push(&mut self, c: char) {
        if c.is_whitespace() {
            self.done.extend(self.current.take());
        } else {
            self.push_raw(c);
        }
    }

    fn push_raw(&mut self, c: char) {
        self.current.get_or_insert_default().push(c);
    }

    fn finish(mut self) -> Vec<String> {
        self.done.extend(self.current.take());
        self.done
    }
}

/// Substitutions within substitutions; more is no Dockerfile that a person wrote.
const MAX_DEPTH: usize = 64;

/// Bytes that variables may put into a word. Linux gives no program a longer one (`MAX_ARG_STRLEN`), and a file in which
/// each line doubles a variable must not take all memory.
const MAX_WORD: usize = 128 << 10;
/// Bytes that variables may put into the text of a heredoc.
const MAX_TEXT: usize = 4 << 20;

struct Scan<'a> {
    expander: Expander<'a>,
    chars: Vec<char>,
    at: usize,
    depth: usize,
    /// Bytes that variables may put in, and those that they may yet.
    most: usize,
    left: usize,
}

fn fail<T>(message: impl Into<String>) -> Result<T> {
    Err(ExpandError(message.into()))
}

impl<'a> Scan<'a> {
    fn new(expander: Expander<'a>, text: &str, most: usize) -> Scan<'a> {
        Scan {
            expander,
            chars: text.chars().collect(),
            at: 0,
            depth: 0,
            most,
            left: most,
        }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Expands up to `stop`, which is taken, or to the end.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<(String, Words)> {
        let mut text = String::new();
        let mut words = Words::default();
        loop {
            let Some(c) = self.next() else {
                return match stop {
                    None => Ok((text, words)),
                    Some(stop) => fail(format!("the `{stop}` of a substitution is missing")),
                };
            };
            if Some(c) == stop {
                return Ok((text, words));
            }
            match c {
                '\'' => {
                    let quoted = self.single_quoted()?;
                    words.current.get_or_insert_default().push_str(&quoted);
                    text.push_str(&quoted);
                }
                '"' => {
                    let quoted = self.double_quoted()?;
                    words.current.get_or_insert_default().push_str(&quoted);
                    text.push_str(&quoted);
                }
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                    text.push_str(&value);
                }
                c if c == self.expander.escape => {
                    if self.expander.raw || keep_escapes {
                        words.push_raw(c);
                        text.push(c);
                    }
                    // At the end it takes nothing's meaning away.
                    if let Some(c) = self.next() {
                        words.push_raw(c);
                        text.push(c);
                    }
                }
                c => {
                    words.push(c);
                    text.push(c);
                }
            }
        }
    }

    fn single_quoted(&mut self) -> Result<String> {
        let mut text = String::new();
        if self.expander.raw {
            text.push('\'');
        }
        loop {
            match self.next() {
                None => return fail("a single quote (') is not closed"),
                Some('\'') => break,
                Some(c) => text.push(c),
            }
        }
        if self.expander.raw {
            text.push('\'');
        }
        Ok(text)
    }

    fn double_quoted(&mut self) -> Result<String> {
        let raw = self.expander.raw;
        let escape = self.expander.escape;
        let mut text = String::new();
        if raw {
            text.push('"');
        }
        loop {
            match self.next() {
                None => return fail("a double quote (\") is not closed"),
                Some('"') => break,
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) if c == escape => {
                    if raw {
                        text.push(c);
                    }
                    match self.next() {
                        None => return fail("a double quote (\") is not closed"),
                        Some(next) => {
                            // Within these quotes, it says nothing about other characters.
                            if !raw && next != '"' && next != '$' && next != escape {
                                text.push(c);
                            }
                            text.push(next);
                        }
                    }
                }
                Some(c) => text.push(c),
            }
        }
        if raw {
            text.push('"');
        }
        Ok(text)
    }

    /// What is put in for a `$` and what stands after it.
    fn dollar(&mut self) -> Result<String> {
        let value = self.substitution()?;
        match self.left.checked_sub(value.len()) {
            Some(left) => self.left = left,
            None => return self.too_much(),
        }
        Ok(value)
    }

    fn too_much<T>(&self) -> Result<T> {
        fail(format!(
            "its variables put in more than {} KiB",
            self.most >> 10
        ))
    }

    fn substitution(&mut self) -> Result<String> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match (self.expander.lookup)(&name) {
                None if self.expander.raw => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.at += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fail("substitutions are nested too deep");
        }
        let start = self.at;
        let value = self.braces()?;
        self.depth -= 1;
        Ok(value.unwrap_or_else(|| {
            let inside: String = self.chars[start..self.at].iter().collect();
            format!("${{{inside}")
        }))
    }

    /// What stands after `${`; `None` where it stays as it is.
    fn braces(&mut self) -> Result<Option<String>> {
        match self.peek() {
            None => return fail("the `}` of a substitution is missing"),
            Some('{' | '}' | ':') => return fail("a substitution names no variable"),
            Some(_) => {}
        }
        let name = self.name();
        let modifier = match self.next() {
            None => return fail("the `}` of a substitution is missing"),
            Some('}') => {
                let value = (self.expander.lookup)(&name);
                return Ok(match value {
                    None if self.expander.raw => None,
                    value => Some(value.unwrap_or_default()),
                });
            }
            Some(c) => c,
        };
        let (with_empty, modifier) = if modifier == ':' {
            match self.next() {
                Some(c @ ('-' | '+' | '?')) => (true, c),
                Some(c) => return fail(format!("`:{c}` is no modifier of a substitution")),
                None => return fail("the `}` of a substitution is missing"),
            }
        } else {
            (false, modifier)
        };
        if modifier == '/' {
            return self.replace(&name);
        }
        if !matches!(modifier, '-' | '+' | '?' | '#' | '%') {
            return fail(format!("`{modifier}` is no modifier of a substitution"));
        }
        let is_pattern = matches!(modifier, '#' | '%');
        let (word, _) = self.until(Some('}'), is_pattern)?;
        let value = (self.expander.lookup)(&name);
        if value.is_none() && self.expander.raw {
            return Ok(None);
        }
        let missing = value
            .as_ref()
            .is_none_or(|value| with_empty && value.is_empty());
        Ok(Some(match modifier {
            '-' if missing => word,
            '+' if missing => String::new(),
            '+' => word,
            '?' if missing => {
                let problem = if value.is_none() { "unset" } else { "empty" };
                return fail(if word.is_empty() {
                    format!("`{name}` must not be {problem}")
                } else {
                    format!("`{name}` is {problem}: {word}")
                });
            }
            '#' | '%' => {
                let (longest, pattern) = match word.strip_prefix(modifier) {
                    Some(pattern) => (true, pattern),
                    None => (false, word.as_str()),
                };
                let pattern = Glob::new(pattern, self.expander.escape);
                let value: Vec<char> = value.unwrap_or_default().chars().collect();
                if modifier == '#' {
                    pattern.without_prefix(&value, longest)
                } else {
                    pattern.without_suffix(&value, longest)
                }
            }
            _ => value.unwrap_or_default(),
        }))
    }

    /// `${name/pattern/replacement}` and, with two slashes, every place.
    fn replace(&mut self, name: &str) -> Result<Option<String>> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let (pattern, _) = self.until(Some('/'), true)?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let Some(value) = (self.expander.lookup)(name) else {
            return Ok((!self.expander.raw).then(String::new));
        };
        let value: Vec<char> = value.chars().collect();
        let pattern = Glob::new(&pattern, self.expander.escape);
        match pattern.replaced(&value, &replacement, all, self.left) {
            Some(text) => Ok(Some(text)),
            None => self.too_much(),
        }
    }

    /// A variable's name: a word, a number, or one of the shell's own signs.
    fn name(&mut self) -> String {
        let start = self.at;
        let first = self.peek();
        let digits = first.is_some_and(char::is_numeric);
        if !digits && matches!(first, Some('@' | '*' | '#' | '?' | '-' | '$' | '!')) {
            self.at += 1;
        } else {
            while self.peek().is_some_and(|c| {
                if digits {
                    c.is_numeric()
                } else {
                    c.is_alphanumeric() || c == '_'
                }
            }) {
                self.at += 1;
            }
        }
        self.chars[start..self.at].iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String> {
        let lookup = |name: &str| {
            Some(
                match name {
                    "a" => "A",
                    "empty" => "",
                    "two" => "x y",
                    "path" => "foo/bar/baz.tar.gz",
                    _ => return None,
                }
                .to_owned(),
            )
        };
        Expander::new('\\', &lookup).word(text)
    }

    #[test]
    fn modifiers() {
        for (text, expected) in [
            ("$a ${a} $ab${a}b", "A A Ab"),
            ("\\$a '$a' \"$a\" \"\\$a\\x\"", "$a $a A $a\\x"),
            ("${a:-x}${empty:-x}${empty-x}${none-x}${none:-x}", "Axxx"),
            ("${a:+x}${empty:+x}${empty+x}${none+x}", "xx"),
            ("${a:?}${empty?}", "A"),
            ("${none:-${none:-${a}}}", "A"),
            ("${none:-'b c'}", "b c"),
            ("${path#*/}", "bar/baz.tar.gz"),
            ("${path##*/}", "baz.tar.gz"),
            ("${path%.*}", "foo/bar/baz.tar"),
            ("${path%%.*}", "foo/bar/baz"),
            ("${path/ba?/x}", "foo/x/baz.tar.gz"),
            ("${path//ba?/x}", "foo/x/x.tar.gz"),
            ("${path/nothing/x}", "foo/bar/baz.tar.gz"),
            ("$", "$"),
            ("a$", "a$"),
            ("$1$@", ""),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "${",
            "${}",
            "${a",
            "${:a}",
            "${{a}}",
            "${a:x}",
            "${a^}",
            "${a:",
            "${none:?}",
            "${empty:?no}",
            "'",
            "\"",
            "${path/x",
            "${path/x/",
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        assert!(expand(&"${none:-".repeat(100_000)).is_err());
    }

    #[test]
    fn what_variables_put_in_has_an_end() {
        let value = "x".repeat(MAX_WORD / 2);
        let lookup = |_: &str| Some(value.clone());
        let expander = Expander::new('\\', &lookup);
        assert_eq!(expander.word("$a$b").unwrap().len(), MAX_WORD);
        assert_eq!(
            expander.text(&"$a".repeat(3)).unwrap().len(),
            3 * MAX_WORD / 2
        );
        let long = "y".repeat(MAX_WORD / 2);
        for bad in [
            "$a$a$a",
            "${a:-$a}$a",
            "\"$a\"$a$a",
            &format!("${{a/x/{long}$a}}"),
        ] {
            let Err(ExpandError(message)) = expander.words(bad) else {
                panic!("it is expanded");
            };
            assert_eq!(message, "its variables put in more than 128 KiB");
        }
        assert!(
            expander
                .text(&"$a".repeat(2 * MAX_TEXT / MAX_WORD + 1))
                .is_err()
        );
    }

    #[test]
    fn words_are_parted_by_values() {
        let lookup = |_: &str| Some("x y".to_owned());
        let words = |text| Expander::new('\\', &lookup).words(text).unwrap();
        assert_eq!(words("a$v b \"$v\" ''"), ["ax", "y", "b", "x y", ""]);
    }
}
