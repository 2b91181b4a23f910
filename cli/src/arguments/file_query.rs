//! Parses an argument that names a file: an id or its first digits, a SHA-256, or a name.

use std::str::FromStr;

use potluck_core::{FileId, IdPrefix, Sha256};
use potluck_origins::{
    error::OriginError,
    reference::{FileUrl, OriginReference},
};

/// Marks the plain SHA-256 of a whole file.
const SHA256_PREFIX: &str = "sha256:";

/// Minimum hex digits of a name that may be meant as an id.
const MIN_ID_LIKE: usize = 4;

/// Identifies a file by id, by content, or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileQuery {
    /// A file id: 64 hex digits.
    Id(FileId),
    /// 8 to 63 hex digits: the first digits of an id, but also a possible name.
    IdPrefix {
        /// The digits.
        prefix: IdPrefix,
        /// The text as given.
        text: String,
    },
    /// `sha256:` and 64 hex digits.
    Sha256(Sha256),
    /// A file or a repository at an origin.
    Origin(OriginReference),
    /// Any other text.
    Name(String),
}

impl FromStr for FileQuery {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(hex) = text.strip_prefix(SHA256_PREFIX) {
            return hex.parse().map(Self::Sha256).map_err(|_| {
                format!(
                    "give 64 hex digits after `sha256:`, but this text has {} characters",
                    hex.chars().count()
                )
            });
        }
        if OriginReference::is_meant(text) {
            return text
                .parse()
                .map(Self::Origin)
                .map_err(|error: OriginError| error.to_string());
        }
        if text.is_empty() {
            return Err("give an id, a name, or sha256:HEX".into());
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        let text = text.to_owned();
        Ok(match text.parse() {
            Ok(prefix) => Self::IdPrefix { prefix, text },
            Err(_) => Self::Name(text),
        })
    }
}

impl FileQuery {
    /// The argument that this was parsed from.
    pub(crate) fn argument(&self) -> String {
        match self {
            Self::Id(id) => id.to_string(),
            Self::IdPrefix { text, .. } | Self::Name(text) => text.clone(),
            Self::Sha256(sum) => format!("{SHA256_PREFIX}{sum}"),
            Self::Origin(OriginReference::File(FileUrl { url, sha256 })) => match sha256 {
                Some(sum) => format!("{url}#sha256={sum}"),
                None => url.to_string(),
            },
            Self::Origin(origin) => origin.to_string(),
        }
    }

    /// A hint for a name that may be meant as an id but has too few or too many digits.
    pub(crate) fn id_length_hint(&self) -> Option<String> {
        let Self::Name(name) = self else { return None };
        let digits = name.len();
        let is_id_like = digits >= MIN_ID_LIKE && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id_like.then(|| {
            format!("an id has 64 hex digits; give all, or at least 8; this text has {digits}")
        })
    }
}

impl std::fmt::Display for FileQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "the id {id}"),
            Self::IdPrefix { text, .. } => {
                write!(f, "an id that begins with `{text}`, or this name")
            }
            Self::Sha256(sum) => write!(f, "the SHA-256 {sum}"),
            Self::Origin(origin) => write!(f, "{origin}"),
            Self::Name(name) => write!(f, "the name `{name}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hashes_and_names_are_distinguished() {
        let hex = "ab".repeat(32);
        assert!(matches!(hex.parse(), Ok(FileQuery::Id(_))));
        assert!(matches!(
            format!("sha256:{hex}").parse(),
            Ok(FileQuery::Sha256(_))
        ));
        for digits in [8, 63] {
            assert!(matches!(hex[..digits].parse(), Ok(FileQuery::IdPrefix { .. })));
        }
        assert_eq!("a b.bin".parse(), Ok(FileQuery::Name("a b.bin".into())));
        assert!("sha256:12".parse::<FileQuery>().is_err());
        assert!("".parse::<FileQuery>().is_err());
        for text in [&hex[..], "ABCDEF12", "a b.bin", &format!("sha256:{hex}")] {
            assert_eq!(text.parse::<FileQuery>().unwrap().argument(), text);
        }
    }

    #[test]
    fn an_id_with_too_few_or_too_many_digits_is_detected() {
        let hint = |text: &str| text.parse::<FileQuery>().unwrap().id_length_hint();
        assert!(hint("3f9a12").unwrap().contains("this text has 6"));
        assert!(hint(&"ab".repeat(33)).unwrap().contains("this text has 66"));
        assert_eq!(hint("deadbeef"), None);
        assert_eq!(hint("dea"), None);
        assert_eq!(hint("model.bin"), None);
    }
}
