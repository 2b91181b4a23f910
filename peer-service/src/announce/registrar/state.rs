//! The state that a registrar reports.

use potluck_core::{Problem, model::Address};

/// The state of the registration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrarStatus {
    /// Whether the index holds this peer's lease.
    pub registered: bool,
    /// The address that the index gives to other peers.
    pub advertised: Option<Address>,
    /// Why the peer is not registered, or what the index refused.
    pub error: Option<Problem>,
    /// Number of this peer's files in the index, as of its last answer.
    pub file_count: u64,
}

/// The part of the announce set that the index has acknowledged.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acknowledged {
    /// Number of the last acknowledged change; `None` before the first lease.
    pub(crate) up_to: Option<u64>,
    /// A refusal that will last, such as an exceeded quota.
    pub(crate) blocked: Option<Problem>,
}
