//! Downloads: from what was asked for to a verified file in its place.
//!
//! | module | its one job |
//! |---|---|
//! | [`manager`] | all transfers of a peer: begun, joined, paused, resumed, cancelled, remembered |
//! | [`view`] | what is asked of a transfer, and what it shows of itself |
//! | [`context`] | what all transfers of a peer are given |
//! | `run` | the life of one transfer |
//! | `prepare`, `dialer` | what has to be known first, from whichever peer answers |
//! | `unserved` | why nobody serves it, in words |
//! | `existing` | what stands at the target already |
//! | `driver` | carries out what the swarm decides |
//! | `peers`, `sources` | who is connected, and who there is |
//! | `link`, `calls`, `chunks` | one other peer; one call to it; its answer |
//! | `receive`, `rope` | what an answer's bytes belong to; the bytes of a unit, where they came in |
//! | `allowance`, [`budget`] | how fast it may fetch, and how much it may have asked for, beside the others |
//! | `verify` | whether bytes are what the id commits to |
//! | [`verifying`] | on which threads that is done, and whether more may be read meanwhile |
//! | `live` | what a running transfer can serve already |
//! | `target`, `part`, `tree`, `resume`, `recover`, `place` | where it goes, its bytes on disk, and their end under its name |
//! | `report`, `rate`, `saved` | what it shows, bytes a second among it, and what the store remembers |

mod allowance;
pub mod budget;
mod calls;
mod chunks;
pub mod context;
mod dialer;
mod driver;
mod existing;
mod link;
mod live;
pub mod manager;
mod part;
mod peers;
mod place;
mod prepare;
mod rate;
mod receive;
mod recover;
mod report;
mod resume;
mod rope;
mod run;
mod saved;
mod sources;
mod target;
mod tree;
mod unserved;
mod verify;
pub mod verifying;
pub mod view;
