//! The first digits of a file id, for people who type or copy a part of it.
//!
//! Invariant: a prefix has [`MIN_DIGITS`] to [`MAX_DIGITS`] hex digits.

use std::{fmt, str::FromStr};

use crate::identity::id::{FileId, LEN};

/// Minimum number of digits: four bytes, which ten million random ids share with one other id in
/// four hundred.
pub const MIN_DIGITS: usize = 8;

/// Maximum number of digits: one less than a whole id has.
pub const MAX_DIGITS: usize = 2 * LEN - 1;

/// Why text is not a prefix of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the beginning of an id has {MIN_DIGITS} to {MAX_DIGITS} hex digits")]
pub struct IdPrefixError;

/// The first digits of a file id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdPrefix {
    /// The digits in the upper bits; the rest is zero.
    bytes: [u8; LEN],
    digits: u8,
}

impl IdPrefix {
    /// Whether the id begins with these digits.
    pub fn matches(&self, id: &FileId) -> bool {
        let whole = usize::from(self.digits / 2);
        let (prefix, id) = (&self.bytes, id.as_bytes());
        prefix[..whole] == id[..whole]
            && (self.digits.is_multiple_of(2) || prefix[whole] >> 4 == id[whole] >> 4)
    }

    /// The first four bytes, which every id with this prefix shares.
    pub fn first_bytes(&self) -> [u8; MIN_DIGITS / 2] {
        let (first, _) = self.bytes.split_at(MIN_DIGITS / 2);
        first.try_into().expect("the slice has this length")
    }
}

impl FromStr for IdPrefix {
    type Err = IdPrefixError;

    fn from_str(text: &str) -> Result<Self, IdPrefixError> {
        if !(MIN_DIGITS..=MAX_DIGITS).contains(&text.len()) {
            return Err(IdPrefixError);
        }
        let mut bytes = [0; LEN];
        for (i, digit) in text.chars().enumerate() {
            let value = digit.to_digit(16).ok_or(IdPrefixError)?;
            // A hex digit has four bits.
            bytes[i / 2] |= (value as u8) << if i % 2 == 0 { 4 } else { 0 };
        }
        // At most MAX_DIGITS, which fits.
        let digits = text.len() as u8;
        Ok(Self { bytes, digits })
    }
}

impl fmt::Display for IdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = hex::encode(self.bytes);
        f.write_str(&text[..usize::from(self.digits)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_matches_its_own_id_and_no_other() {
        let id = FileId::derive(7, &crate::Root([9; 32]));
        let text = id.to_string();
        for digits in MIN_DIGITS..=MAX_DIGITS {
            let prefix: IdPrefix = text[..digits].to_uppercase().parse().unwrap();
            assert!(prefix.matches(&id), "{digits}");
            assert_eq!(prefix.to_string(), text[..digits]);
            assert_eq!(prefix.first_bytes(), id.as_bytes()[..4]);
            // Another last digit.
            let mut other = id;
            other.0[(digits - 1) / 2] ^= if digits % 2 == 1 { 0x10 } else { 0x01 };
            assert!(!prefix.matches(&other), "{digits}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "3f9a123", &"a".repeat(64), "3f9a123g", "3f9a 123", "名前名前"] {
            assert_eq!(text.parse::<IdPrefix>(), Err(IdPrefixError), "{text}");
        }
    }
}
