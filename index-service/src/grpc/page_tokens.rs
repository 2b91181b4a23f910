//! Page tokens: encode where a page ended, valid only for the same query and until the index
//! restarts.
//!
//! A token is the hex form of the position and a keyed checksum over position and query. The
//! checksum keeps clients from depending on the content, and rejects tokens of other queries or
//! earlier runs, which would give wrong pages. A token protects no secret.

use std::hash::{BuildHasher as _, Hash, RandomState};

use potluck_core::FileId;

use crate::catalog::{ListingCursor, SearchCursor};

/// Encodes and checks page tokens.
#[derive(Debug, Default)]
pub(crate) struct PageTokens {
    key: RandomState,
}

/// The token was not issued for this query by this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this page token is not of this question, or the index has been restarted: start again without one")]
pub(crate) struct PageError;

/// A position that a token can encode.
pub(crate) trait PagePosition: Sized {
    /// Encodes the position.
    fn to_bytes(&self) -> Vec<u8>;
    /// Decodes a position; `None` if the bytes encode no position of this kind.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl PageTokens {
    /// The token for a position in the answer to a query; empty if there is no position.
    pub(crate) fn token<P: PagePosition>(&self, question: &impl Hash, position: Option<P>) -> String {
        position.map_or_else(String::new, |position| {
            let mut bytes = position.to_bytes();
            let sum = self.checksum(question, &bytes);
            bytes.extend(sum);
            hex::encode(bytes)
        })
    }

    /// Decodes a token that was issued for this query; `None` if the token is empty.
    ///
    /// # Errors
    /// [`PageError`] if the token is invalid or was issued for another query or by an earlier run.
    pub(crate) fn position<P: PagePosition>(
        &self,
        question: &impl Hash,
        token: &str,
    ) -> Result<Option<P>, PageError> {
        /// Hex digits of the longest position (48 bytes) and its checksum (8 bytes).
        const LONGEST: usize = 2 * (48 + 8);
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > LONGEST {
            return Err(PageError);
        }
        let bytes = hex::decode(token).map_err(|_| PageError)?;
        let (bytes, sum) = bytes.split_last_chunk::<8>().ok_or(PageError)?;
        if *sum != self.checksum(question, bytes) {
            return Err(PageError);
        }
        P::from_bytes(bytes).map(Some).ok_or(PageError)
    }

    fn checksum(&self, question: &impl Hash, bytes: &[u8]) -> [u8; 8] {
        self.key.hash_one((question, bytes)).to_le_bytes()
    }
}

impl PagePosition for SearchCursor {
    fn to_bytes(&self) -> Vec<u8> {
        [self.name.to_le_bytes(), self.file.to_le_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (name, file) = bytes.split_first_chunk()?;
        Some(Self {
            name: u32::from_le_bytes(*name),
            file: u32::from_le_bytes(file.try_into().ok()?),
        })
    }
}

impl PagePosition for ListingCursor {
    fn to_bytes(&self) -> Vec<u8> {
        let (from, to) = self.slots;
        [
            from.to_le_bytes().as_slice(),
            &to.to_le_bytes(),
            &self.providers.to_le_bytes(),
            self.file.as_bytes(),
        ]
        .concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (from, bytes) = bytes.split_first_chunk()?;
        let (to, bytes) = bytes.split_first_chunk()?;
        let (providers, file) = bytes.split_first_chunk()?;
        Some(Self {
            slots: (u32::from_le_bytes(*from), u32::from_le_bytes(*to)),
            providers: u64::from_le_bytes(*providers),
            file: FileId::try_from(file).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_question_only() {
        let pages = PageTokens::default();
        let cursor = SearchCursor {
            name: 7,
            file: u32::MAX,
        };
        let token = pages.token(&"one", Some(cursor));
        assert_eq!(pages.position(&"one", &token), Ok(Some(cursor)));
        assert_eq!(pages.position::<SearchCursor>(&"two", &token), Err(PageError));
        assert_eq!(
            PageTokens::default().position::<SearchCursor>(&"one", &token),
            Err(PageError),
            "another run"
        );
        assert_eq!(
            pages.position::<ListingCursor>(&"one", &token),
            Err(PageError),
            "another kind"
        );
        assert_eq!(pages.position::<SearchCursor>(&"one", ""), Ok(None));
        assert_eq!(pages.token::<SearchCursor>(&"one", None), "");
    }

    #[test]
    fn anything_else_is_refused() {
        let pages = PageTokens::default();
        let good = pages.token(
            &1,
            Some(ListingCursor {
                slots: (1, 2),
                providers: 3,
                file: FileId([1; 32]),
            }),
        );
        assert!(pages.position::<ListingCursor>(&1, &good).is_ok());
        for bad in [
            "x",
            "00",
            "é",
            &good[2..],
            &format!("{good}00"),
            &"0".repeat(1_000_000),
        ] {
            assert_eq!(pages.position::<ListingCursor>(&1, bad), Err(PageError));
        }
    }
}
