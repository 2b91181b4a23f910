//! The peer service: shares files, serves verified pieces, and downloads one file from many peers
//! in parallel.
//!
//! | module | purpose |
//! |---|---|
//! | [`announce`] | the set of files to announce, and the task that announces them to the index |
//! | [`cache`] | what was fetched on behalf of others, and may be removed again |
//! | `catalog` | the library in memory; pure |
//! | [`content`] | content that can be served: the interface between library, downloads and uploads |
//! | [`control`] | the service for the peer's owner, on its own endpoint |
//! | [`download`] | downloads, from the request to the verified file |
//! | `fuzzing` | bodies of fuzz targets; not a stable interface |
//! | `fs` | blocking work, durable writes, reads from the page cache |
//! | [`home`] | the peer's home folder, its lock and its token |
//! | [`library`] | shared files and collections, their hashes, and change detection |
//! | [`limits`] | rate limits, upload slots and the in-flight budget |
//! | [`locality`] | where this machine is, and the bytes that cross the border of its zone |
//! | [`network`] | this peer in a private network |
//! | [`options`] | flags, environment variables and the resulting configuration |
//! | `problem` | startup errors as messages for the user |
//! | [`server`] | assembles, runs and stops a peer |
//! | [`store`] | persistent state |
//! | [`upload`] | the service for other peers |

pub mod activity;
pub mod announce;
pub mod cache;
mod catalog;
pub mod content;
pub mod control;
pub mod download;
pub(crate) mod fs;
#[doc(hidden)]
pub mod fuzzing;
pub mod home;
pub mod library;
pub mod limits;
pub mod locality;
mod metrics;
pub mod network;
pub mod options;
mod problem;
pub mod server;
pub mod store;
pub mod upload;

pub use crate::options::{Config, ControlAt, LimitSettings, Options};
pub use crate::server::{Running, StartError, run, start};
