//! The index: the service that knows which peers have which files.
//!
//! | module | its one job |
//! |---|---|
//! | [`options`] | flags, environment, configuration |
//! | [`address`] | the addresses that a peer may register |
//! | [`catalog`] | peers, files, names and claims in memory, for queries |
//! | [`leases`] | how long each peer's registrations last |
//! | [`quota`] | limits per caller and for the whole index |
//! | [`store`] | the data that survives a restart |
//! | [`watch`] | subscriptions to the providers of a file |
//! | [`registry`] | keeps catalog, leases and watchers consistent |
//! | [`commit`] | the one thread that makes changes, many per flush |
//! | `grpc` | the gRPC service: parses requests, answers calls, pages results |
//! | `problem` | maps errors to the problems that callers receive |
//! | [`server`] | assembly: services, limits, shutdown |
//!
//! A change goes from `grpc` to [`commit`], then to [`store`] and [`registry`]; the caller gets its
//! answer last. A query goes from `grpc` to [`registry`] and touches no disk.

pub mod address;
pub mod catalog;
pub mod commit;
pub mod grpc;
pub mod leases;
pub mod options;
mod problem;
pub mod quota;
pub mod registry;
mod searching;
pub mod server;
pub mod store;
pub mod watch;

pub use crate::options::{Config, Options, OptionsError, StoreConfig};
pub use crate::server::{RunError, ServeError, run, serve};
