//! Parses an argument that names a transfer: its number, or the id of its file.

use std::str::FromStr;

use crate::arguments::id::IdArgument;

/// Identifies a transfer on the command line. A text of 8 or more decimal digits may be either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransferTarget {
    /// The text as given.
    pub(crate) text: String,
    /// The number shown by `potluck transfers`, if it can be one.
    pub(crate) number: Option<u64>,
    /// The id of the file, if it can be one.
    pub(crate) id: Option<IdArgument>,
}

impl FromStr for TransferTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, id) = (text.parse().ok(), text.parse().ok());
        if number.is_none() && id.is_none() {
            return Err(
                "give the number of a transfer, or at least the first 8 digits of its file's id"
                    .to_owned(),
            );
        }
        Ok(Self {
            text: text.to_owned(),
            number,
            id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_number_or_an_id_or_may_be_both() {
        let parse = |text: &str| text.parse::<TransferTarget>();
        let kinds = |text: &str| parse(text).map(|it| (it.number.is_some(), it.id.is_some()));
        assert_eq!(kinds("3"), Ok((true, false)));
        assert_eq!(kinds("3f9a1234"), Ok((false, true)));
        assert_eq!(kinds("12345678"), Ok((true, true)));
        for bad in ["", "x", "-1", "3f9a"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
