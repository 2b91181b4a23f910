//! Downloads: from a request for a file or folder to verified content under its final name.
//!
//! | module | purpose |
//! |---|---|
//! | [`manager`] | all downloads of a peer: start, join, pause, resume, cancel, persist |
//! | [`context`] | the services that every download uses |
//! | `counters` | verified units and bans, for monitoring |
//! | [`origin`] | bytes from an origin, and content whose root is not known yet |
//! | [`outgoing`] | how connections to other peers are opened |
//! | `task` | one run of a download, step by step |
//! | [`engine`] | the data path: driver, requests, assembly, verification |
//! | `peers` | discovery of peers, connections and calls to them |
//! | [`seeding`] | how long a finished download is served |
//! | [`selection`] | chooses files of a collection by globs |
//! | `storage` | target path, part file, resume state, finalizing |
//! | [`status`] | the request for a download, and its status |
//!
//! Invariants: no byte counts, is served or gets its final name before it was verified against the
//! id, and nothing at the target is overwritten.
//!
//! Non-goal: which peer to ask for what; `potluck-swarm` decides that.

pub mod context;
pub(crate) mod counters;
pub mod engine;
pub mod manager;
pub mod origin;
pub mod outgoing;
pub(crate) mod peers;
pub mod seeding;
pub mod selection;
pub mod status;
pub(crate) mod storage;
pub(crate) mod task;
