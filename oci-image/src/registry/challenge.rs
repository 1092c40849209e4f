//! What a registry answers when it wants to know who is asking: the header `WWW-Authenticate`.

/// One challenge of a `WWW-Authenticate` header: a scheme and its parameters.
///
/// <https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1>
///
/// ```
/// use oci_image::Challenge;
///
/// let challenges = Challenge::parse(r#"Bearer realm="https://auth.example/token",service="registry", Basic realm="x""#);
/// assert_eq!(challenges.len(), 2);
/// assert_eq!(challenges[0].get("service"), Some("registry"));
/// assert!(challenges[1].is("basic"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// All challenges of a header's value. What cannot be read ends the list: it is a server's text, and whoever wrote
    /// it wrongly is not understood.
    pub fn parse(header: &str) -> Vec<Challenge> {
        let mut parser = Parser { rest: header };
        let mut challenges: Vec<Challenge> = Vec::new();
        loop {
            parser.skip_commas();
            let Some(word) = parser.token() else {
                return challenges;
            };
            parser.skip_spaces();
            // `name=value` belongs to the scheme before it; a word alone is the next scheme.
            if parser.eat('=') {
                parser.skip_spaces();
                let (Some(value), Some(last)) = (parser.value(), challenges.last_mut()) else {
                    return challenges;
                };
                last.parameters.push((word.to_ascii_lowercase(), value));
            } else {
                challenges.push(Challenge {
                    scheme: word.to_ascii_lowercase(),
                    parameters: Vec::new(),
                });
            }
        }
    }

    /// The scheme in lower case, such as `bearer`.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Whether it is of this scheme, in any case.
    pub fn is(&self, scheme: &str) -> bool {
        self.scheme.eq_ignore_ascii_case(scheme)
    }

    /// The first parameter of this name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

impl std::fmt::Display for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.scheme)?;
        for (number, (name, value)) in self.parameters.iter().enumerate() {
            let separator = if number == 0 { " " } else { "," };
            write!(f, "{separator}{name}=\"")?;
            for c in value.chars() {
                if matches!(c, '"' | '\\') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
            f.write_str("\"")?;
        }
        Ok(())
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    fn skip_spaces(&mut self) {
        self.skip(|c| matches!(c, ' ' | '\t'));
    }

    fn skip_commas(&mut self) {
        self.skip(|c| matches!(c, ' ' | '\t' | ','));
    }

    fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> Option<String> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.rest.find(|c| !is_token(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return None;
        }
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(token.to_owned())
    }

    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            return self.token();
        }
        let mut value = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(chars.next()?),
                c => value.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let [bearer] = Challenge::parse(hub).try_into().unwrap();
        assert!(bearer.is("Bearer"));
        assert_eq!(bearer.get("scope"), Some("repository:a/b:pull,push"));
        let both = Challenge::parse(r#"basic realm=plain , BEARER Realm = "a \"b\" \\c" , x="" "#);
        assert_eq!(both.len(), 2);
        assert_eq!(both[0].get("realm"), Some("plain"));
        assert_eq!(both[1].get("realm"), Some(r#"a "b" \c"#));
        assert_eq!(both[1].get("x"), Some(""));
    }

    #[test]
    fn what_is_wrong_ends_the_list() {
        assert_eq!(Challenge::parse(""), []);
        assert_eq!(Challenge::parse("realm=\"x\""), []);
        assert_eq!(Challenge::parse("Bearer realm=\"x").len(), 1);
        assert_eq!(Challenge::parse("Bearer realm=\"x")[0].get("realm"), None);
        assert_eq!(Challenge::parse("Negotiate, Basic realm=x").len(), 2);
        // Base64 after the scheme, as Negotiate has it.
        assert!(Challenge::parse("Negotiate YWJj==")[0].is("negotiate"));
    }

    mod properties {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn what_is_read_is_read_again(text in r#"[A-Za-z=", \\a-z\t-]{0,60}"#) {
                for challenge in Challenge::parse(&text) {
                    prop_assert_eq!(Challenge::parse(&challenge.to_string()), vec![challenge]);
                }
            }
        }
    }
}
