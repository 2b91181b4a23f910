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
    /// This peer may not bind names.
    Names,
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
        Reason::RoleRequired => Refusal::Names,
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

/// The backoff after `failures` consecutive failures, before jitter. At most `lease` long, the
/// duration of the last lease: an index that returns has the peer again within one lease.
pub(crate) fn back_off(failures: u32, lease: Option<Duration>) -> Duration {
    let max = lease.map_or(MAX_WAIT, |lease| MAX_WAIT.min(lease.max(FIRST_WAIT)));
    FIRST_WAIT
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(max)
}

pub(crate) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_up_to_a_maximum() {
        for lease in [None, Some(Duration::from_secs(3600))] {
            assert_eq!(back_off(1, lease), FIRST_WAIT);
            assert_eq!(back_off(2, lease), FIRST_WAIT * 2);
            assert_eq!(back_off(u32::MAX, lease), MAX_WAIT);
        }
        assert!(jittered(MAX_WAIT) <= MAX_WAIT);
    }

    #[test]
    fn the_backoff_is_at_most_one_lease() {
        let lease = Duration::from_secs(4);
        assert_eq!(back_off(u32::MAX, Some(lease)), lease);
        assert_eq!(back_off(u32::MAX, Some(Duration::ZERO)), FIRST_WAIT);
    }
}
