//! The peer service: shares files, serves verified pieces, and downloads one file from many peers at once.
//!
//! | module | its one job |
//! |---|---|
//! | [`bits`] | a set of units as a bitfield |
//! | [`offer`] | what can be served: the seam between the library, running transfers and the open port |
//! | [`options`] | flags and environment, and what they mean |
//! | [`server`] | a whole peer out of its parts, and how it stops |
//! | [`swarm`] | which peer is asked for which unit, and when: pure |

pub mod bits;
pub mod offer;
pub mod options;
pub mod server;
pub mod swarm;

pub use options::{Config, ControlAt, LimitSettings, Options};
pub use server::{Running, StartError, run, start};
