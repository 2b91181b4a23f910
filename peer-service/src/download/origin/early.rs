//! What became of bytes that were handed out before the SHA-256 of all bytes was compared.
//!
//! Invariant: the state leaves [`EarlyState::Pending`] once, and wrong bytes never become right ones.

use std::sync::atomic::{AtomicU8, Ordering};

/// Whether bytes that were handed out early were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyState {
    /// The SHA-256 is not known yet.
    Pending,
    /// They were right.
    Right,
    /// They were wrong, or nobody can tell.
    Wrong,
}

/// The bytes of one run that were handed out early, all together.
#[derive(Debug, Default)]
pub struct EarlyBytes(AtomicU8);

const PENDING: u8 = 0;
const RIGHT: u8 = 1;
const WRONG: u8 = 2;

impl EarlyBytes {
    /// Their state.
    pub fn state(&self) -> EarlyState {
        match self.0.load(Ordering::Acquire) {
            PENDING => EarlyState::Pending,
            RIGHT => EarlyState::Right,
            _ => EarlyState::Wrong,
        }
    }

    /// The SHA-256 of all bytes is right.
    pub fn set_right(&self) {
        // Wrong bytes stay wrong.
        let _ = self
            .0
            .compare_exchange(PENDING, RIGHT, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Some were wrong, were replaced, or will never be compared. No effect once they are known to
    /// be right.
    pub fn set_wrong(&self) {
        let _ = self
            .0
            .compare_exchange(PENDING, WRONG, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_stay_wrong() {
        let early = EarlyBytes::default();
        assert_eq!(early.state(), EarlyState::Pending);
        early.set_wrong();
        early.set_right();
        assert_eq!(early.state(), EarlyState::Wrong);
        let early = EarlyBytes::default();
        early.set_right();
        early.set_wrong();
        assert_eq!(early.state(), EarlyState::Right);
    }
}
