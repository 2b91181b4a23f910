//! The peer service: shares files, serves verified pieces, and downloads one file from many peers at once.
//!
//! | module | its one job |
//! |---|---|
//! | [`activity`] | whether the peer moves data for somebody |
//! | [`bits`] | a set of units as a bitfield |
//! | `blocking`, `cached` | work on threads that may wait; reading only what is in memory |
//! | [`control`] | what the peer's owner may do with it, at an endpoint of its own |
//! | `durable` | files and folders that are still there after a loss of power |
//! | [`holdings`] | what this peer wants registered with the index |
//! | [`home`] | the peer's folder, its lock and its secret |
//! | [`library`] | what is shared: files, collections, their hashes, and whether they still are what they were |
//! | [`limits`] | bytes a second and uploads at once |
//! | [`offer`] | what can be served: the seam between the library, running transfers and the open port |
//! | [`options`] | flags and environment, and what they mean |
//! | `problem` | failures of starting a peer, in words |
//! | [`registrar`] | keeps the index told of the holdings |
//! | [`serve`] | the service that is open to other peers |
//! | [`server`] | a whole peer out of its parts, and how it stops |
//! | [`store`] | what the peer remembers over restarts |
//! | [`swarm`] | which peer is asked for which unit, and when: pure |
//! | [`transfer`] | downloads: from what was asked for to a verified file in its place |

pub mod activity;
pub mod bits;
mod blocking;
mod cached;
pub mod control;
mod durable;
mod file_system;
pub mod holdings;
pub mod home;
pub mod library;
pub mod limits;
pub mod offer;
pub mod options;
mod problem;
pub mod registrar;
pub mod serve;
pub mod server;
pub mod store;
pub mod swarm;
pub mod transfer;

pub use options::{Config, ControlAt, LimitSettings, Options};
pub use server::{Running, StartError, run, start};
