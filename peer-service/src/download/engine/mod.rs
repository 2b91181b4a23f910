//! The data path of one download.
//!
//! | module | purpose |
//! |---|---|
//! | `driver` | feeds events to the swarm, and executes its actions |
//! | `request` | calls a peer, and has each unit verified and written |
//! | `assembler` | assembles units from the chunks of a call |
//! | `chunk_list` | the bytes of a unit, in the received chunks |
//! | `verifier` | verifies units against the id |
//! | [`disk_pool`] | the threads that verify and write |
//! | `rate_limit` | limits the rate |
//! | `active` | the running download as content that other peers can request |

pub(crate) mod active;
pub(crate) mod assembler;
pub(crate) mod chunk_list;
pub mod disk_pool;
pub(crate) mod driver;
pub(crate) mod rate_limit;
pub(crate) mod request;
pub(crate) mod verifier;
