//! Maps the index's errors to the problems that callers receive. No other file chooses a reason for
//! an error.

use std::time::Duration;

use potluck_core::{Problem, Reason, collection::path::PathError, identity::id::IdError};

use crate::{
    address::AddressError,
    catalog::TermsError,
    commit::{self, CommitError},
    grpc::page_tokens::PageTokenError,
    network::{membership::MembershipError, private_network::NetworkError},
    rate_limiter::RateExceeded,
    watch::{SubscriptionEnd, WatchError},
};

/// Retry delay if the index is busy at the moment.
pub(crate) const SHORT_DELAY: Duration = Duration::from_secs(1);

/// Retry delay if a condition has to change first.
const LONG_DELAY: Duration = Duration::from_secs(30);

impl From<AddressError> for Problem {
    fn from(error: AddressError) -> Self {
        let reason = match error {
            AddressError::NotAHost
            | AddressError::NotOneMachine(_)
            | AddressError::LinkLocal(_) => Reason::InvalidAddress,
            AddressError::Refused { .. } | AddressError::Loopback { .. } => Reason::AddressRefused,
        };
        Self::new(reason, error.to_string()).field("address.host")
    }
}

impl From<TermsError> for Problem {
    fn from(error: TermsError) -> Self {
        Self::new(Reason::InvalidQuery, error.to_string()).field("query")
    }
}

impl From<PageTokenError> for Problem {
    fn from(error: PageTokenError) -> Self {
        Self::new(Reason::InvalidPageToken, error.to_string()).field("page_token")
    }
}

impl From<RateExceeded> for Problem {
    fn from(error: RateExceeded) -> Self {
        Self::new(
            Reason::RateLimited,
            "too many calls from your address: wait for the retry delay",
        )
        .retry_after(error.retry_after)
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        let (reason, retry_after) = match error {
            CommitError::TooManyFiles { .. } => (Reason::QuotaExceeded, None),
            CommitError::TooManyPeers { .. }
            | CommitError::Full
            | CommitError::TooMuchMemory { .. } => (Reason::QuotaExceeded, Some(LONG_DELAY)),
            CommitError::IdentityInUse { .. } => (Reason::IdentityInUse, Some(LONG_DELAY)),
            CommitError::Busy | CommitError::Slow => (Reason::StoreUnavailable, Some(SHORT_DELAY)),
            CommitError::Store => (Reason::StoreUnavailable, Some(commit::MAX_RETRY_DELAY)),
            CommitError::Closed => (Reason::ShuttingDown, Some(SHORT_DELAY)),
        };
        Self {
            retry_after,
            ..Self::new(reason, error.to_string())
        }
    }
}

impl From<WatchError> for Problem {
    fn from(error: WatchError) -> Self {
        let (reason, retry_after) = match error {
            WatchError::TooMany => (Reason::Busy, LONG_DELAY),
            WatchError::Closed => (Reason::ShuttingDown, SHORT_DELAY),
        };
        Self::new(reason, error.to_string()).retry_after(retry_after)
    }
}

impl From<SubscriptionEnd> for Problem {
    fn from(end: SubscriptionEnd) -> Self {
        match end {
            SubscriptionEnd::TooSlow => Self::new(
                Reason::Busy,
                "this watcher read its events too slowly and was dropped: watch again",
            )
            .retry_after(SHORT_DELAY),
            SubscriptionEnd::Closed => WatchError::Closed.into(),
        }
    }
}

impl From<MembershipError> for Problem {
    fn from(error: MembershipError) -> Self {
        let reason = match error {
            MembershipError::InvalidCode => Reason::InvalidCode,
            MembershipError::Revoked => Reason::Revoked,
            MembershipError::UnknownMember => Reason::NotAMember,
            MembershipError::Expired => Reason::CertificateExpired,
            MembershipError::RoleRequired { .. } | MembershipError::PeerOfAnotherMember => {
                Reason::RoleRequired
            }
            MembershipError::NoSuchMember => Reason::NotFound,
            MembershipError::OutOfRange(_) => Reason::InvalidArgument,
            MembershipError::TooMany(_) => Reason::QuotaExceeded,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<NetworkError> for Problem {
    /// Only a refusal is the caller's business; anything else is for the log of the index.
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Refused(refused) => refused.into(),
            other => {
                tracing::error!(error = %other, "an operation on the network's members failed");
                Self::new(
                    Reason::StoreUnavailable,
                    "the index cannot change its members at the moment: try again later, and check \
                     the index's log",
                )
                .retry_after(LONG_DELAY)
            }
        }
    }
}

/// The problem with an invalid token. Reveals only the token's length.
pub(crate) fn invalid_token(error: &IdError) -> Problem {
    let length = match error {
        IdError::Bytes(length) | IdError::Length(length) => *length,
        IdError::NotHex => 0,
    };
    Problem::new(
        Reason::InvalidToken,
        format!("a token has 32 bytes, but this one has {length}"),
    )
    .field("token")
}

/// A field with an invalid value.
pub(crate) fn invalid_field(field: &str, message: impl Into<String>) -> Problem {
    Problem::new(Reason::InvalidArgument, message).field(field)
}

/// The problem with an invalid name.
pub(crate) fn invalid_name(error: &PathError) -> Problem {
    Problem::new(Reason::InvalidName, error.to_string())
}
