//! The index: which peers have which files.
//!
//! | module | its one job |
//! |---|---|
//! | [`options`] | flags, environment, configuration |
//! | [`address`] | which address a peer may register |
//! | [`catalog`] | what queries read: who has what, in memory |
//! | [`leases`] | how long each peer is believed to be there |
//! | [`quota`] | bounds on what callers may use |
//! | [`store`] | what survives a restart |
//! | [`watch`] | who watches which file |
//! | [`registry`] | catalog, leases and watchers, kept in step |
//! | [`commit`] | the one thread through which changes go, many to a flush |
//! | [`pages`] | page tokens |
//! | `searching` | where searches wait and run |
//! | `intake`, `request`, `problem`, `service` | gRPC: lists counted, requests checked, errors told, calls answered |
//! | [`server`] | assembly: services, limits, shutdown |
//!
//! A change goes `service` -> [`commit`] -> [`store`] -> [`registry`] and is then answered; a question goes `service` -> [`registry`] and
//! touches no disk.

pub mod address;
pub mod catalog;
pub mod commit;
mod intake;
pub mod leases;
pub mod options;
pub mod pages;
mod problem;
pub mod quota;
pub mod registry;
mod request;
mod searching;
pub mod server;
mod service;
pub mod store;
pub mod watch;

pub use options::{Config, Options, OptionsError, StoreConfig};
pub use server::{RunError, ServeError, run, serve};
