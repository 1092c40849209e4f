//! Names of containers.

use std::str::FromStr;

/// The name of a container, as runc allows it: it also becomes the name of a control group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContainerId(String);

impl ContainerId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
            return Err(
                "a container's name is made of letters, digits, and `_ + - .`; choose another"
                    .to_owned(),
            );
        }
        if text.len() > 255 {
            return Err(
                "a container's name has at most 255 bytes; choose a shorter one".to_owned(),
            );
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_anywhere() {
        for good in ["a", "my-container_1.2+x", "..."] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ü", "a\n"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
