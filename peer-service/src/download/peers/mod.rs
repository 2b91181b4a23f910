//! The peers of a download: discovery, metadata requests and connections.
//!
//! | module | purpose |
//! |---|---|
//! | `discovery` | the list of candidates, from the index and from the user |
//! | `bootstrap` | asks candidates for metadata before the swarm starts |
//! | `peer_set` | the peers of the running swarm: connections, retries, bans |
//! | `connector` | keeps one peer connected |
//! | `connection_policy` | decides when other peers must be connected |
//! | `host` | fairness among hosts |
//! | `rpc` | the calls |
//! | `diagnostics` | explains why no peer serves the content |

pub(crate) mod bootstrap;
pub(crate) mod connection_policy;
pub(crate) mod connector;
pub(crate) mod diagnostics;
pub(crate) mod discovery;
pub(crate) mod event;
mod host;
pub(crate) mod peer_set;
pub(crate) mod rpc;
