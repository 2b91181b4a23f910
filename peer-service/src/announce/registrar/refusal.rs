//! Classifies refusals by the index, and computes the backoff. Pure, except for the jitter.

use std::time::Duration;

use potluck_core::Reason;
use rand::RngExt as _;

/// First and maximum backoff after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(15);

/// Backoff after a refusal that only the owner can resolve, such as an exceeded quota.
pub(crate) const OWNER_WAIT: Duration = Duration::from_secs(60);

/// How the registrar reacts to a refused batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A file in the batch is invalid; smaller batches find it.
    File,
    /// The batch exceeds the quota.
    Quota,
    /// The index does not know the lease: register everything again.
    LeaseUnknown,
    /// The peer itself is refused, independent of the batch; only its owner can resolve that.
    Peer,
    /// The index cannot store anything now; leases stay valid.
    Store,
    /// Retry later.
    Temporary,
}

pub(crate) fn classify(reason: Reason) -> Refusal {
    match reason {
        Reason::LeaseUnknown => Refusal::LeaseUnknown,
        Reason::QuotaExceeded => Refusal::Quota,
        Reason::InvalidArgument
        | Reason::InvalidId
        | Reason::InvalidName
        | Reason::IdMismatch
        | Reason::OutOfRange => Refusal::File,
        Reason::InvalidToken
        | Reason::InvalidAddress
        | Reason::AddressRefused
        | Reason::Unauthenticated
        | Reason::IdentityInUse
        | Reason::PermissionDenied => Refusal::Peer,
        Reason::StoreUnavailable => Refusal::Store,
        _ => Refusal::Temporary,
    }
}

/// The backoff after `failures` consecutive failures, before jitter.
pub(crate) fn back_off(failures: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(MAX_WAIT)
}

pub(crate) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_up_to_a_maximum() {
        assert_eq!(back_off(1), FIRST_WAIT);
        assert_eq!(back_off(2), FIRST_WAIT * 2);
        assert_eq!(back_off(u32::MAX), MAX_WAIT);
        assert!(jittered(MAX_WAIT) <= MAX_WAIT);
    }
}
