//! The events of peers that the driver of a download receives.

use std::time::Duration;

use potluck_core::Problem;

use crate::download::peers::rpc::{availability::PeerReport, client::PeerClient};

/// An event of a peer.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The peer is connected; with the round-trip time of a call without data.
    Connected(Box<PeerClient>, Duration),
    /// The peer's availability, or a change to it.
    Availability(PeerReport),
    /// The peer reports a different number of units: one of the two takes a collection for a file.
    UnitCountMismatch,
    /// The connection was lost or failed; it is retried later.
    Lost(Problem),
    /// The peer is this peer itself or violates the protocol; it is not retried.
    Unusable(Problem),
}
