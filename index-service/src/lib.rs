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
//! | [`server`] | assembly: listener, services, shutdown |

pub mod address;
pub mod catalog;
pub mod leases;
pub mod options;
pub mod quota;
pub mod server;
pub mod store;

pub use options::{Config, Options, OptionsError, StoreConfig};
pub use server::{RunError, ServeError, run, serve};
