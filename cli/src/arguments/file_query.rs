//! Parses an argument that names a file: an id, a SHA-256, or a name.

use std::str::FromStr;

use potluck_core::{FileId, Sha256, model::QueryKey};

/// Prefix of a plain SHA-256 of a whole file.
const SHA256_PREFIX: &str = "sha256:";

/// Number of hex digits from which a text is more likely a truncated id than a name.
const MIN_TRUNCATED_ID: usize = 32;

/// Identifies a file by id, by content, or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileQuery {
    /// A file id: 64 hex digits.
    Id(FileId),
    /// `sha256:` and 64 hex digits.
    Sha256(Sha256),
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
        if text.is_empty() {
            return Err("give an id, a name, or sha256:HEX".into());
        }
        Ok(text
            .parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Id))
    }
}

impl FileQuery {
    /// The query key for the index.
    pub(crate) fn query_key(&self) -> QueryKey {
        match self {
            Self::Id(id) => QueryKey::Id(*id),
            Self::Sha256(sum) => QueryKey::Sha256(*sum),
            Self::Name(name) => QueryKey::Name(name.clone()),
        }
    }

    /// A hint for a name that looks like a truncated id.
    pub(crate) fn truncated_id_hint(&self) -> Option<String> {
        let Self::Name(name) = self else { return None };
        let digits = name.len();
        (digits >= MIN_TRUNCATED_ID && name.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| format!("an id has 64 hex digits, but this text has {digits}"))
    }
}

impl std::fmt::Display for FileQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "the id {id}"),
            Self::Sha256(sum) => write!(f, "the SHA-256 {sum}"),
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
        assert_eq!("a b.bin".parse(), Ok(FileQuery::Name("a b.bin".into())));
        assert!("sha256:12".parse::<FileQuery>().is_err());
        assert!("".parse::<FileQuery>().is_err());
    }

    #[test]
    fn a_truncated_id_is_detected() {
        let truncated: FileQuery = "ab".repeat(31).parse().unwrap();
        assert!(truncated.truncated_id_hint().unwrap().contains("62"));
        assert_eq!("deadbeef".parse::<FileQuery>().unwrap().truncated_id_hint(), None);
    }
}
