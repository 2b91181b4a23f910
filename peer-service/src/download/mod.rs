//! Downloads: from a request for a file or folder to verified content under its final name.
//!
//! | module | responsibility |
//! |---|---|
//! | [`manager`] | all downloads of a peer: start, join, pause, resume, cancel, persist |
//! | [`context`] | the services that every download uses |
//! | `task` | one run of a download: metadata, recovery, the swarm, finalizing |
//! | `engine` | the data path: driver, requests, assembly, verification |
//! | `peers` | discovery of peers and connections to them |
//! | `storage` | target path, part file, resume state, finalizing |
//! | [`status`] | what the user requests and what a download reports |

pub mod context;
pub mod engine;
pub mod manager;
mod peers;
pub mod status;
pub(crate) mod storage;
mod task;
