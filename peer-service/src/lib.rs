//! The peer service: shares files, serves verified pieces, and downloads one file from many peers at once.
//!
//! | module | its one job |
//! |---|---|
//! | [`bits`] | a set of units as a bitfield |
//! | [`offer`] | what can be served: the seam between the library, running transfers and the open port |
//! | [`swarm`] | which peer is asked for which unit, and when: a pure state machine |

pub mod bits;
pub mod offer;
pub mod swarm;
