//! What the many downloaders of one file tell each other through this peer.

pub(crate) mod availability;
pub(crate) mod in_flight_sends;
