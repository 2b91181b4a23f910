//! The peer service: shares files, serves verified pieces, and downloads one file from many peers at once.
//!
//! | module | its one job |
//! |---|---|
//! | [`announce`] | what the index is told, and the task that tells it |
//! | [`content`] | what can be served: the seam between the library, running downloads and uploads |
//! | [`control`] | the service for the peer's owner, at an endpoint of its own |
//! | [`download`] | downloads: from a request to a verified file under its name |
//! | `fs` | work on blocking threads; reads from the page cache only |
//! | [`home`] | the peer's folder, its lock and its secret |
//! | [`library`] | shared files and collections, their hashes, and whether they are unchanged |
//! | [`limits`] | rate limits, upload slots and the in-flight budget |
//! | [`options`] | flags and environment, and what they mean |
//! | `problem` | failures of starting a peer, in words |
//! | [`server`] | a whole peer out of its parts, and how it stops |
//! | [`store`] | what the peer remembers over restarts |
//! | [`upload`] | the service that is open to other peers |

pub mod activity;
pub mod announce;
pub mod content;
pub mod control;
pub mod download;
mod durable;
mod file_system;
pub(crate) mod fs;
pub mod home;
pub mod library;
pub mod limits;
pub mod options;
mod problem;
pub mod server;
pub mod store;
pub mod upload;

pub use crate::options::{Config, ControlAt, LimitSettings, Options};
pub use crate::server::{Running, StartError, run, start};
