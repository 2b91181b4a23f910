//! Calls to other peers' PeerService.
//!
//! Invariant: no protobuf type and no gRPC status leaves this folder.

pub(crate) mod availability;
pub(crate) mod client;
pub(crate) mod download_stream;
