//! The state of one request.

use crate::types::{PeerKey, Time};

/// A unit requested from a peer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) peer: PeerKey,
    pub(crate) unit: u32,
    pub(crate) sent: Time,
    /// Bytes that arrived.
    pub(crate) received: u64,
    /// Bytes that did not arrive yet.
    pub(crate) outstanding_bytes: u64,
    /// Whether it was stolen from another peer.
    pub(crate) stolen: bool,
}
