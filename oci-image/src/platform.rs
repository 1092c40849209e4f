//! Platforms, and which images run on which.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, excerpt};

/// An operating system and a processor, in Go's words (`linux`, `amd64`, `arm64`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// The processor, such as `amd64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// The processor's variant, such as `v7` of `arm` or `v3` of `amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The version of the operating system.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features that the operating system must have.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Platform {
    /// A platform without a version.
    pub fn new(os: impl Into<String>, architecture: impl Into<String>) -> Platform {
        Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: None,
            os_version: None,
            os_features: Vec::new(),
            other: serde_json::Map::new(),
        }
    }

    /// The same with a variant of the processor.
    pub fn with_variant(mut self, variant: impl Into<String>) -> Platform {
        self.variant = Some(variant.into());
        self
    }

    /// The platform without its level of `amd64` or `arm64`: what is made for every processor of the kind. Variants of
    /// other architectures, which cannot run each other's programs, stay.
    #[must_use]
    pub fn without_level(mut self) -> Platform {
        if self.architecture == "amd64" || self.architecture == "arm64" {
            self.variant = None;
        }
        self
    }

    /// The platform on which this program runs.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        let mut platform = Platform::new(std::env::consts::OS, architecture);
        platform.variant = variant.map(str::to_owned);
        platform
    }

    /// How well something for `offered` runs here: the lower the better, `None` when it does not.
    pub(crate) fn accepts(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.level() == offered.level() {
            return Some(0);
        }
        match (self.level(), offered.level()) {
            (Some(here), Some(there)) if there < here => Some(here - there),
            _ => None,
        }
    }

    /// The variant as a number that grows with what the processor can do.
    fn level(&self) -> Option<u32> {
        let default = match self.architecture.as_str() {
            "amd64" => "v1",
            "arm" => "v7",
            "arm64" => "v8",
            _ => "",
        };
        let variant = match self.variant.as_deref() {
            None | Some("") => default,
            Some(variant) => variant,
        };
        let (major, minor) = variant
            .strip_prefix('v')?
            .split_once('.')
            .unwrap_or((variant.strip_prefix('v')?, "0"));
        Some(major.parse::<u32>().ok()?.checked_mul(100)? + minor.parse::<u32>().ok()?.min(99))
    }
}

#[cfg(target_arch = "x86_64")]
fn amd64_level() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => Some("v4"),
        (_, true, _) => Some("v3"),
        (true, ..) => Some("v2"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> Option<&'static str> {
    None
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = self
            .variant
            .as_deref()
            .filter(|variant| !variant.is_empty())
        {
            write!(f, "/{variant}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `linux/arm64` or `linux/arm/v7`.
    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(plain) => Ok(Platform::new(*os, *architecture)),
            [os, architecture, variant] if parts.iter().all(plain) => {
                Ok(Platform::new(*os, *architecture).with_variant(*variant))
            }
            _ => Err(Error::BadValue {
                what: "platform",
                text: excerpt(text),
                reason: "write it as linux/amd64 or linux/arm/v7",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(wanted: &str, offered: &[&str]) -> Option<usize> {
        let wanted: Platform = wanted.parse().unwrap();
        offered
            .iter()
            .enumerate()
            .filter_map(|(i, text)| Some((wanted.accepts(&text.parse().unwrap())?, i)))
            .min()
            .map(|(_, i)| i)
    }

    #[test]
    fn takes_the_nearest_variant_that_runs() {
        let arm = [
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/arm/v6",
        ];
        assert_eq!(best("linux/arm/v7", &arm), Some(1));
        assert_eq!(best("linux/arm/v6", &arm), Some(3));
        assert_eq!(best("linux/arm64", &arm), Some(2));
        assert_eq!(
            best("linux/amd64/v3", &["linux/amd64", "linux/amd64/v4"]),
            Some(0)
        );
        assert_eq!(
            best(
                "linux/amd64/v3",
                &["linux/amd64", "linux/amd64/v3", "linux/amd64/v2"]
            ),
            Some(1)
        );
        assert_eq!(best("linux/amd64", &["linux/amd64/v2"]), None);
        assert_eq!(
            best("linux/s390x", &["linux/amd64", "linux/s390x"]),
            Some(1)
        );
        assert_eq!(best("linux/amd64", &["windows/amd64"]), None);
    }

    #[test]
    fn levels_are_left_out_and_variants_are_not() {
        for (text, without) in [
            ("linux/amd64/v3", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            let platform: Platform = text.parse().unwrap();
            assert_eq!(platform.without_level().to_string(), without);
        }
    }

    #[test]
    fn refuses_what_is_no_platform() {
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/a b",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
