//! Maps the index's errors to the problems that callers receive. No other file chooses a reason for
//! an error.

use std::time::Duration;

use potluck_core::{Problem, Reason, collection::path::PathError, identity::id::IdError};

use crate::{
    address::AddressError,
    catalog::TermsError,
    commit::{self, CommitError},
    grpc::page_tokens::PageError,
    rate_limiter::RateExceeded,
    watch::{SubscriptionEnd, WatchError},
};

/// Retry delay if the index is busy at the moment.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// Retry delay if a condition has to change first.
const LATER: Duration = Duration::from_secs(30);

impl From<AddressError> for Problem {
    fn from(error: AddressError) -> Self {
        let reason = match error {
            AddressError::NotAHost | AddressError::NotOneMachine(_) | AddressError::LinkLocal(_) => {
                Reason::InvalidAddress
            }
            AddressError::Refused { .. } => Reason::AddressRefused,
        };
        Self::new(reason, error.to_string()).field("address.host")
    }
}

impl From<TermsError> for Problem {
    fn from(error: TermsError) -> Self {
        Self::new(Reason::InvalidQuery, error.to_string()).field("query")
    }
}

impl From<PageError> for Problem {
    fn from(error: PageError) -> Self {
        Self::new(Reason::InvalidPageToken, error.to_string()).field("page_token")
    }
}

impl From<RateExceeded> for Problem {
    fn from(error: RateExceeded) -> Self {
        Self::new(
            Reason::RateLimited,
            "too many calls from your address: wait as long as the retry delay says",
        )
        .retry_after(error.retry_after)
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        let (reason, wait) = match error {
            CommitError::TooManyFiles { .. } => (Reason::QuotaExceeded, None),
            CommitError::TooManyPeers { .. } | CommitError::Full | CommitError::TooMuchMemory { .. } => {
                (Reason::QuotaExceeded, Some(LATER))
            }
            CommitError::IdentityInUse { .. } => (Reason::IdentityInUse, Some(LATER)),
            CommitError::Busy | CommitError::Slow => (Reason::StoreUnavailable, Some(SOON)),
            CommitError::Store => (Reason::StoreUnavailable, Some(commit::MAX_RETRY_DELAY)),
            CommitError::Closed => (Reason::ShuttingDown, Some(SOON)),
        };
        Self {
            retry_after: wait,
            ..Self::new(reason, error.to_string())
        }
    }
}

impl From<WatchError> for Problem {
    fn from(error: WatchError) -> Self {
        let (reason, wait) = match error {
            WatchError::TooMany => (Reason::Busy, LATER),
            WatchError::Closed => (Reason::ShuttingDown, SOON),
        };
        Self::new(reason, error.to_string()).retry_after(wait)
    }
}

impl From<SubscriptionEnd> for Problem {
    fn from(ended: SubscriptionEnd) -> Self {
        match ended {
            SubscriptionEnd::TooSlow => {
                Self::new(Reason::Busy, "this watcher reads too slowly: watch again").retry_after(SOON)
            }
            SubscriptionEnd::Closed => WatchError::Closed.into(),
        }
    }
}

/// The problem with an invalid token. Reveals only the token's length.
pub(crate) fn token(error: &IdError) -> Problem {
    let length = match error {
        IdError::Bytes(length) | IdError::Length(length) => *length,
        IdError::NotHex => 0,
    };
    Problem::new(
        Reason::InvalidToken,
        format!("a token is 32 bytes, this has {length}"),
    )
    .field("token")
}

/// A field with an invalid value.
pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidArgument, message).field(field)
}

/// The problem with an invalid name.
pub(crate) fn bad_name(error: &PathError) -> Problem {
    Problem::new(Reason::InvalidName, error.to_string())
}
