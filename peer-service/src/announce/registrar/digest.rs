//! Compares the index's registrations with this peer's, by their digests. Pure.
//!
//! If the index reports a different digest, it is asked again a moment later, because the set may
//! be changing. Only a second mismatch makes the registrar register everything again.
#![deny(
    clippy::disallowed_methods,
    reason = "pure: time, randomness and I/O come in from outside"
)]

use potluck_core::SetDigest;

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DigestVerdict {
    /// The digests match, or the difference was accepted before.
    Fine,
    /// The digests differ for the first time: ask again.
    AskAgain,
    /// The index reported the same wrong digest twice: register everything again.
    RegisterAgain,
    /// Registering everything again did not help: the digest is accepted from now on.
    Accepted,
}

/// The mismatches so far.
#[derive(Debug, Default)]
pub(crate) struct DigestCheck {
    /// The digest of the last mismatch; `None` after a match.
    mismatch: Option<SetDigest>,
    /// Whether everything was registered again because of a mismatch, without a match since.
    has_registered_again: bool,
    /// A digest that the index still reported after that. It is accepted: registering again would
    /// not change it.
    accepted: Option<SetDigest>,
}

impl DigestCheck {
    /// Compares this peer's own digest with the one that the index reports. `has_lost` says that the
    /// index may have lost registrations: then it need not be asked again.
    pub(crate) fn compare(
        &mut self,
        own: SetDigest,
        reported: SetDigest,
        has_lost: bool,
    ) -> DigestVerdict {
        if own == reported {
            *self = Self::default();
            return DigestVerdict::Fine;
        }
        if self.accepted == Some(reported) {
            return DigestVerdict::Fine;
        }
        if self.mismatch.replace(reported) != Some(reported) && !has_lost {
            return DigestVerdict::AskAgain;
        }
        self.mismatch = None;
        if std::mem::replace(&mut self.has_registered_again, true) {
            self.has_registered_again = false;
            self.accepted = Some(reported);
            return DigestVerdict::Accepted;
        }
        DigestVerdict::RegisterAgain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> SetDigest {
        SetDigest::try_from(&[n; 32][..]).unwrap()
    }

    #[test]
    fn a_mismatch_must_repeat_before_everything_is_registered_again() {
        let mut check = DigestCheck::default();
        assert_eq!(
            check.compare(digest(1), digest(2), false),
            DigestVerdict::AskAgain
        );
        assert_eq!(
            check.compare(digest(1), digest(3), false),
            DigestVerdict::AskAgain
        );
        assert_eq!(
            check.compare(digest(1), digest(3), false),
            DigestVerdict::RegisterAgain
        );
        assert_eq!(check.compare(digest(1), digest(1), false), DigestVerdict::Fine);
        assert_eq!(
            check.compare(digest(1), digest(3), false),
            DigestVerdict::AskAgain
        );
    }

    #[test]
    fn an_index_that_may_have_lost_registrations_is_not_asked_again() {
        let mut check = DigestCheck::default();
        assert_eq!(check.compare(digest(1), digest(1), true), DigestVerdict::Fine);
        assert_eq!(
            check.compare(digest(1), digest(2), true),
            DigestVerdict::RegisterAgain
        );
    }

    #[test]
    fn a_digest_that_registering_again_does_not_change_is_accepted() {
        let mut check = DigestCheck::default();
        let verdicts = [(); 5].map(|()| check.compare(digest(1), digest(2), false));
        assert_eq!(
            verdicts,
            [
                DigestVerdict::AskAgain,
                DigestVerdict::RegisterAgain,
                DigestVerdict::AskAgain,
                DigestVerdict::Accepted,
                DigestVerdict::Fine,
            ]
        );
        // A match forgets what was accepted.
        assert_eq!(check.compare(digest(1), digest(1), false), DigestVerdict::Fine);
        assert_eq!(
            check.compare(digest(1), digest(2), false),
            DigestVerdict::AskAgain
        );
    }
}
