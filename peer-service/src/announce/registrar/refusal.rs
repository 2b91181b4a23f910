//! What a refusal of the index calls for, and how long to wait after it. Pure but for the jitter.

use std::time::Duration;

use potluck_core::Reason;
use rand::RngExt as _;

/// First and longest wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(15);

/// Wait after a refusal that only its owner can mend, such as a quota.
pub(crate) const OWNER_WAIT: Duration = Duration::from_secs(60);

/// What a refused batch calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Something in it is wrong, and a smaller batch finds out what.
    File,
    /// Too much of it.
    Quota,
    /// Everything has to be told again.
    LeaseUnknown,
    /// Nothing to do with what was sent, and only its owner can mend it.
    Peer,
    /// The index cannot store anything now; leases go on.
    Store,
    /// Try again later.
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

/// The wait after the `failures`th failure in a row, before jitter.
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
    fn waits_grow_and_are_capped() {
        assert_eq!(back_off(1), FIRST_WAIT);
        assert_eq!(back_off(2), FIRST_WAIT * 2);
        assert_eq!(back_off(u32::MAX), MAX_WAIT);
        assert!(jittered(MAX_WAIT) <= MAX_WAIT);
    }
}
