//! Downloads: from what was asked for to a verified file in its place.
//!
//! | module | its one job |
//! |---|---|
//! | [`manager`] | all downloads of a peer: started, joined, paused, resumed, cancelled, persisted |
//! | [`context`] | what every download works with |
//! | `task` | the life of one download: metadata, recovery, the run, the end |
//! | `engine` | the data path: driver, requests, assembly, verification |
//! | `peers` | who is connected, and who there is |
//! | `storage` | target, part file, resume state, final name |
//! | [`status`] | what is asked of a download, and what it reports |

pub mod context;
pub mod engine;
pub mod manager;
mod peers;
pub mod status;
pub(crate) mod storage;
mod task;
