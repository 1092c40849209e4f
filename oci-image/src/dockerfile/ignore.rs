//! `.dockerignore`: which files of a context are left out.

use std::path::Path;

use super::read_text;
use crate::error::{Error, Result, excerpt};

/// The patterns of a `.dockerignore`, or of `--exclude`.
///
/// A pattern is matched against the whole path below the context: `*` and `?` stop at slashes, `**` does not, `[a-z]`
/// and `[^a-z]` are classes, `\` takes a character's meaning away. What is below something left out is left out, too.
/// A pattern after `!` takes files back in; the last pattern that matches decides.
///
/// ```
/// use oci_image::dockerfile::IgnoreFile;
///
/// let ignore = IgnoreFile::parse("**/*.o\nsecret\n!secret/public\n")?;
/// assert!(ignore.ignores("src/main.o") && ignore.ignores("secret/key"));
/// assert!(!ignore.ignores("secret/public") && !ignore.ignores("main.c"));
/// # Ok::<(), oci_image::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// Takes back in what it matches.
    negative: bool,
    parts: Vec<Part>,
}

/// What stands between two slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// `**`: any number of directories.
    Directories,
    Name(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Any,
    One,
    Char(char),
    Class {
        negative: bool,
        ranges: Vec<(char, char)>,
    },
}

impl IgnoreFile {
    /// Reads the lines of a `.dockerignore`.
    ///
    /// # Errors
    ///
    /// [`Error::BadValue`] when a pattern is malformed.
    pub fn parse(text: &str) -> Result<IgnoreFile> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        IgnoreFile::from_patterns(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .map(str::trim)
                .filter(|line| !line.is_empty()),
        )
    }

    /// The same from patterns without comments.
    ///
    /// # Errors
    ///
    /// As for [`IgnoreFile::parse`].
    pub fn from_patterns<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<IgnoreFile> {
        let patterns = patterns
            .into_iter()
            .map(|line| {
                Pattern::parse(line).map_err(|reason| Error::BadValue {
                    what: "pattern of .dockerignore",
                    text: excerpt(line),
                    reason,
                })
            })
            .collect::<Result<_>>()?;
        Ok(IgnoreFile { patterns })
    }

    /// Reads the file that belongs to a Dockerfile: `NAME.dockerignore` beside it, or `.dockerignore` in the context;
    /// nothing is left out if there is neither.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when it cannot be read, [`Error::BadValue`] when a pattern is malformed.
    pub fn find(context: impl AsRef<Path>, dockerfile: impl AsRef<Path>) -> Result<IgnoreFile> {
        let mut own = dockerfile.as_ref().as_os_str().to_owned();
        own.push(".dockerignore");
        for path in [own.into(), context.as_ref().join(".dockerignore")] {
            match read_text(&path) {
                Ok(text) => return IgnoreFile::parse(&text),
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(IgnoreFile::default())
    }

    /// Whether the file or directory at `path`, relative to the context, is left out.
    pub fn ignores(&self, path: impl AsRef<str>) -> bool {
        let parts: Vec<&str> = path
            .as_ref()
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .collect();
        if parts.is_empty() {
            return false;
        }
        let mut ignored = false;
        for pattern in &self.patterns {
            // A pattern that matches a directory above matches what is in it.
            if pattern.negative == ignored
                && (1..=parts.len()).any(|n| matches(&pattern.parts, &parts[..n]))
            {
                ignored = !pattern.negative;
            }
        }
        ignored
    }

    /// Whether some pattern could take back in what is below the ignored directory `path`: if not, it need not be
    /// looked at.
    pub fn may_hold_exceptions(&self, path: impl AsRef<str>) -> bool {
        let parts: Vec<&str> = path
            .as_ref()
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .collect();
        self.patterns
            .iter()
            .filter(|pattern| pattern.negative)
            .any(|pattern| {
                pattern
                    .parts
                    .iter()
                    .zip(&parts)
                    .try_for_each(|(part, name)| match part {
                        // From here on it can be anything.
                        Part::Directories => Err(true),
                        Part::Name(tokens) if name_matches(tokens, name) => Ok(()),
                        Part::Name(_) => Err(false),
                    })
                    .err()
                    .unwrap_or(pattern.parts.len() > parts.len())
            })
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl Pattern {
    fn parse(line: &str) -> std::result::Result<Pattern, &'static str> {
        let (negative, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if line.is_empty() {
            return Err("there is nothing after `!`");
        }
        let mut parts = Vec::new();
        for part in line.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                "**" => {
                    if parts.last() != Some(&Part::Directories) {
                        parts.push(Part::Directories);
                    }
                }
                part => parts.push(Part::Name(tokens(part)?)),
            }
        }
        Ok(Pattern { negative, parts })
    }
}

fn tokens(part: &str) -> std::result::Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut chars = part.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => {
                if tokens.last() == Some(&Token::Any) {
                    continue;
                }
                Token::Any
            }
            '?' => Token::One,
            '\\' => Token::Char(chars.next().ok_or("it ends with `\\`")?),
            '[' => {
                let negative = chars.next_if(|c| matches!(c, '^' | '!')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let mut bound = || match chars.next() {
                        None => Err("a `[` is not closed"),
                        Some('\\') => chars.next().ok_or("a `[` is not closed").map(Some),
                        Some(']') => Ok(None),
                        Some(c) => Ok(Some(c)),
                    };
                    let Some(low) = bound()? else { break };
                    let high = if chars.next_if_eq(&'-').is_some() {
                        match chars.next() {
                            None | Some(']') => return Err("a range in `[` has no end"),
                            Some('\\') => chars.next().ok_or("a `[` is not closed")?,
                            Some(c) => c,
                        }
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                if ranges.is_empty() {
                    return Err("a `[` holds nothing");
                }
                Token::Class { negative, ranges }
            }
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}

/// Dynamic programming over both lists: no pattern takes longer than their product.
fn matches(pattern: &[Part], path: &[&str]) -> bool {
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    for (number, part) in pattern.iter().enumerate() {
        let mut next = vec![false; path.len() + 1];
        match part {
            Part::Directories => {
                let last = number + 1 == pattern.len();
                let mut seen = false;
                for at in 0..=path.len() {
                    // At the end it matches what is in a directory, not the directory.
                    next[at] = seen || (reach[at] && !(last && number > 0));
                    seen |= reach[at];
                }
            }
            Part::Name(tokens) => {
                for at in 0..path.len() {
                    next[at + 1] = reach[at] && name_matches(tokens, path[at]);
                }
            }
        }
        reach = next;
    }
    !pattern.is_empty() && reach[path.len()]
}

fn name_matches(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    for token in tokens {
        let mut next = vec![false; name.len() + 1];
        if *token == Token::Any {
            let mut seen = false;
            for (to, from) in next.iter_mut().zip(&reach) {
                seen |= *from;
                *to = seen;
            }
        } else {
            for (at, &c) in name.iter().enumerate() {
                let hit = match token {
                    Token::Any | Token::One => true,
                    Token::Char(wanted) => c == *wanted,
                    Token::Class { negative, ranges } => {
                        *negative != ranges.iter().any(|(low, high)| (*low..=*high).contains(&c))
                    }
                };
                next[at + 1] = reach[at] && hit;
            }
        }
        reach = next;
    }
    reach[name.len()]
}
