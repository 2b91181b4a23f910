//! The calls of PeerService.
//!
//! | module | purpose |
//! |---|---|
//! | `service` | the handlers of all calls |
//! | `raw` | `Download` and `GetPieceHashes` without the generated codec |
//! | `wire` | conversions between messages and domain types |
//! | `call_kind` | the properties of calls that admission control needs |
//! | `idle_timeout` | ends streams whose receiver does not read |
//!
//! Invariant: no protobuf type and no gRPC status leaves this folder.

pub(crate) mod call_kind;
mod idle_timeout;
pub(crate) mod raw;
pub(crate) mod service;
#[cfg(test)]
mod tests;
pub(crate) mod wire;
