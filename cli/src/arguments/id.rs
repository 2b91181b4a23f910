//! Parses an argument that is a file id, or its first digits.

use std::{fmt, str::FromStr};

use potluck_core::{FileId, IdPrefix};

/// A file id, or its first digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdArgument {
    /// All 64 digits.
    Whole(FileId),
    /// At least the first 8 digits.
    Prefix(IdPrefix),
}

impl IdArgument {
    /// Whether the argument stands for this id.
    pub(crate) fn matches(&self, id: &FileId) -> bool {
        match self {
            Self::Whole(whole) => whole == id,
            Self::Prefix(prefix) => prefix.matches(id),
        }
    }
}

impl FromStr for IdArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self::Whole)
            .or_else(|_| text.parse().map(Self::Prefix))
            .map_err(|_| "give the 64 hex digits of an id, or at least the first 8".to_owned())
    }
}

impl fmt::Display for IdArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(id) => id.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_whole_or_a_prefix() {
        let text = "3f9a".repeat(16);
        let whole: IdArgument = text.parse().unwrap();
        assert!(matches!(whole, IdArgument::Whole(_)));
        for digits in [8, 9, 63] {
            let prefix: IdArgument = text[..digits].parse().unwrap();
            assert!(prefix.matches(&text.parse().unwrap()));
            assert_eq!(prefix.to_string(), text[..digits]);
        }
        for bad in ["", "3f9a3f9", "3f9a3f9x", &"a".repeat(65)] {
            assert!(bad.parse::<IdArgument>().is_err(), "{bad}");
        }
    }
}
