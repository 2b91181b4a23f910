//! The index: which peers have which files.
//!
//! | module | its one job |
//! |---|---|
//! | [`options`] | flags, environment, configuration |
//! | [`address`] | which address a peer may register |
//! | [`quota`] | bounds on what callers may use |
//! | [`server`] | assembly: listener, services, shutdown |

pub mod address;
pub mod options;
pub mod quota;
pub mod server;

pub use options::{Config, Options, OptionsError, StoreConfig};
pub use server::{RunError, ServeError, run, serve};
