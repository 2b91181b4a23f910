//! Page tokens: encode where a page ended, valid only for the same query and until the index
//! restarts.
//!
//! A token is the hex form of the position and a keyed checksum over position and query. The
//! checksum keeps clients from depending on the content, and rejects tokens of other queries or
//! earlier runs, which would give wrong pages. A token protects no secret.

use std::{
    cmp::Reverse,
    hash::{BuildHasher as _, Hash, RandomState},
};

use potluck_core::FileId;

use crate::catalog::{
    ListingCursor, PeerCursor, SearchCursor,
    cursor::{FileRank, Pass, Place, Tier},
    words::MatchLevel,
};

/// Encodes and checks page tokens.
#[derive(Debug, Default)]
pub(crate) struct PageTokens {
    key: RandomState,
}

/// The token was not issued for this query by this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this page token belongs to another query, or the index was restarted: start again without a \
     page token"
)]
pub(crate) struct PageTokenError;

/// A position that a token can encode.
pub(crate) trait PagePosition: Sized {
    /// Encodes the position.
    fn to_bytes(&self) -> Vec<u8>;
    /// Decodes a position; `None` if the bytes encode no position of this kind.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl PageTokens {
    /// Maximum length of a position, in bytes.
    pub(crate) const MAX_POSITION: usize = 59;

    /// The token for a position in the answer to a query; empty if there is no position.
    pub(crate) fn token<P: PagePosition>(&self, query: &impl Hash, position: Option<P>) -> String {
        position.map_or_else(String::new, |position| {
            let mut bytes = position.to_bytes();
            let sum = self.checksum(query, &bytes);
            bytes.extend(sum);
            hex::encode(bytes)
        })
    }

    /// Decodes a token that was issued for this query; `None` if the token is empty.
    ///
    /// # Errors
    /// [`PageTokenError`] if the token is invalid, or was issued for another query or by an earlier
    /// run.
    pub(crate) fn position<P: PagePosition>(
        &self,
        query: &impl Hash,
        token: &str,
    ) -> Result<Option<P>, PageTokenError> {
        /// Hex digits of the longest position and its checksum (8 bytes).
        const MAX_LENGTH: usize = 2 * (PageTokens::MAX_POSITION + 8);
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > MAX_LENGTH {
            return Err(PageTokenError);
        }
        let bytes = hex::decode(token).map_err(|_| PageTokenError)?;
        let (bytes, sum) = bytes.split_last_chunk::<8>().ok_or(PageTokenError)?;
        if *sum != self.checksum(query, bytes) {
            return Err(PageTokenError);
        }
        P::from_bytes(bytes).map(Some).ok_or(PageTokenError)
    }

    fn checksum(&self, query: &impl Hash, bytes: &[u8]) -> [u8; 8] {
        self.key.hash_one((query, bytes)).to_le_bytes()
    }
}

impl PagePosition for SearchCursor {
    fn to_bytes(&self) -> Vec<u8> {
        [
            [self.tier as u8, self.pass.number(), self.after.level as u8].as_slice(),
            &place_to_bytes(self.from),
            &place_to_bytes(self.to),
            &self.after.providers.0.to_le_bytes(),
            self.after.file.as_bytes(),
        ]
        .concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let ([tier, pass, level], bytes) = bytes.split_first_chunk()?;
        let (from, bytes) = bytes.split_first_chunk()?;
        let (to, bytes) = bytes.split_first_chunk()?;
        let (providers, file) = bytes.split_first_chunk()?;
        Some(Self {
            tier: Tier::from_number(*tier)?,
            pass: Pass::from_number(*pass)?,
            from: place_from_bytes(*from),
            to: place_from_bytes(*to),
            after: FileRank {
                level: MatchLevel::from_number(*level)?,
                providers: Reverse(u64::from_le_bytes(*providers)),
                file: FileId::try_from(file).ok()?,
            },
        })
    }
}

fn place_to_bytes((first, second): Place) -> [u8; 8] {
    (u64::from(first) << 32 | u64::from(second)).to_le_bytes()
}

const fn place_from_bytes(bytes: [u8; 8]) -> Place {
    let place = u64::from_le_bytes(bytes);
    ((place >> 32) as u32, place as u32)
}

impl PagePosition for PeerCursor {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u32::from_le_bytes(bytes.try_into().ok()?)))
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
    fn a_token_is_valid_for_its_query_only() {
        let pages = PageTokens::default();
        let cursor = SearchCursor {
            from: (7, u32::MAX),
            to: (u32::MAX, 9),
            ..SearchCursor::pass(Tier::Words, Pass::Others)
        };
        let token = pages.token(&"one", Some(cursor));
        assert_eq!(pages.position(&"one", &token), Ok(Some(cursor)));
        assert_eq!(
            pages.position::<SearchCursor>(&"two", &token),
            Err(PageTokenError)
        );
        assert_eq!(
            PageTokens::default().position::<SearchCursor>(&"one", &token),
            Err(PageTokenError),
            "another run"
        );
        assert_eq!(
            pages.position::<ListingCursor>(&"one", &token),
            Err(PageTokenError),
            "another kind"
        );
        assert_eq!(pages.position::<SearchCursor>(&"one", ""), Ok(None));
        assert_eq!(pages.token::<SearchCursor>(&"one", None), "");
    }

    #[test]
    fn invalid_tokens_are_refused() {
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
            assert_eq!(pages.position::<ListingCursor>(&1, bad), Err(PageTokenError));
        }
    }
}
