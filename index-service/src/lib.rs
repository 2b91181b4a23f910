//! The index: which peers have which files.
//!
//! | module | its one job |
//! |---|---|
//! | [`options`] | flags, environment, configuration |
//! | [`address`] | which address a peer may register |
//! | [`catalog`] | what queries read: who has what, in memory |
//! | [`leases`] | how long each peer's registrations hold |
//! | [`quota`] | bounds on what callers may use |
//! | [`store`] | what survives a restart |
//! | [`watch`] | who watches which file |
//! | [`registry`] | catalog, leases and watchers, kept in step |
//! | [`commit`] | the one thread through which changes go, many to a flush |
//! | `grpc` | counts checked, requests parsed, calls answered, pages continued |
//! | `problem` | errors as the problems that callers are told |
//! | [`server`] | assembly: services, limits, shutdown |
//!
//! A change goes `service` -> [`commit`] -> [`store`] -> [`registry`] and is then answered; a question goes `service` -> [`registry`] and
//! touches no disk.

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
