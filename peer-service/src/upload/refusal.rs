//! The problems of refused calls.

use std::time::Duration;

use potluck_core::{FileId, Problem, Reason, grpc::limiter::LimitError};

/// When a refused caller should retry: about the time until a slot becomes free.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// When a refused report of bad pieces may be sent again.
const RETRY_REPORT_AFTER: Duration = Duration::from_secs(30);

/// The problem if this peer does not have the content.
pub(crate) fn not_found(id: &FileId) -> Problem {
    Problem::new(Reason::NotFound, format!("this peer does not share {id}"))
}

/// The problem if too many calls of this kind are running; `calls` names them in the plural.
pub(crate) fn busy(calls: &str, limit: LimitError) -> Problem {
    let message = match limit {
        LimitError::Full => format!("this peer serves no more {calls} at once: try again"),
        LimitError::AddressShare => format!(
            "your address has reached its limit of {calls} that this peer serves at once: end \
             some, or try again"
        ),
    };
    Problem::new(Reason::Busy, message).retry_after(RETRY_AFTER)
}

/// The problem if too many reports of bad pieces wait to be checked.
pub(crate) fn too_many_reports() -> Problem {
    let message = "this peer has enough reports to check, and drops this one";
    Problem::new(Reason::RateLimited, message).retry_after(RETRY_REPORT_AFTER)
}
