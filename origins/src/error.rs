//! What can go wrong at an origin.

use std::time::Duration;

use potluck_core::{Problem, Reason};

/// Why an origin did not deliver. Messages name the host and never a query or a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The text is not a reference to an origin.
    #[error("{0}")]
    InvalidReference(String),
    /// The policy refuses a host or a scheme.
    #[error("{0}")]
    Refused(String),
    /// No connection, or it broke.
    #[error("cannot reach {host}: {cause}")]
    Unreachable {
        /// The host.
        host: String,
        /// The cause.
        cause: String,
    },
    /// No byte for too long.
    #[error("{host} sent nothing for {} s", .after.as_secs())]
    TimedOut {
        /// The host.
        host: String,
        /// The time waited.
        after: Duration,
    },
    /// Too many requests, or an overloaded server.
    #[error("{host} is busy (HTTP {status})")]
    Busy {
        /// The host.
        host: String,
        /// The status: 429 or 5xx.
        status: u16,
        /// The delay that the server asks for.
        retry_after: Option<Duration>,
    },
    /// The origin does not have it.
    #[error("{host} does not have {what} (HTTP {status})")]
    NotFound {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
    },
    /// The origin wants other credentials.
    #[error("{host} denies access to {what} (HTTP {status}): {advice}")]
    Denied {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What to do next.
        advice: String,
    },
    /// The content is not the one that was described before.
    #[error("{what} at {host} changed: start again")]
    Changed {
        /// The host.
        host: String,
        /// What changed.
        what: String,
    },
    /// The response is not what HTTP or the request asks for.
    #[error("{host} answers wrongly: {what}")]
    Invalid {
        /// The host.
        host: String,
        /// What is wrong.
        what: String,
    },
}

impl OriginError {
    /// Whether the same request may succeed later.
    pub const fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Busy { .. }
        )
    }
}

impl From<OriginError> for Problem {
    fn from(error: OriginError) -> Self {
        let reason = match &error {
            OriginError::InvalidReference(_) => Reason::InvalidArgument,
            OriginError::Refused(_) => Reason::OriginRefused,
            OriginError::Unreachable { .. } => Reason::Unreachable,
            OriginError::TimedOut { .. } => Reason::TimedOut,
            OriginError::Busy { .. } => Reason::Busy,
            OriginError::NotFound { .. } => Reason::NotFound,
            OriginError::Denied { .. } => Reason::OriginDenied,
            OriginError::Changed { .. } => Reason::OriginChanged,
            OriginError::Invalid { .. } => Reason::OriginInvalid,
        };
        let problem = Self::new(reason, error.to_string());
        match error {
            OriginError::Busy {
                retry_after: Some(delay),
                ..
            } => problem.retry_after(delay),
            _ => problem,
        }
    }
}
