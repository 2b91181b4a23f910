//! Fixtures of all integration tests. Only `[dev-dependencies]` name this crate.
//!
//! | module | fixtures |
//! |---|---|
//! | [`content`], [`records`] | files, folders and manifests; file records and registrations |
//! | [`services`] | a real index and real peers, in the process of the test |
//! | [`fakes`] | an index, a control service, misbehaving peers, and servers that are not Potluck |
//! | [`control`], [`transfer`] | calls of a peer's owner; waiting for the state of a transfer |
//! | [`system`] | programs, their memory and their system calls; small file systems |
//! | [`network`] | HTTP/2 by hand; proxies that damage or delay |
//! | [`wait`], [`background`] | waiting with a deadline; a runtime for tests that block |
//!
//! A fixture panics where it cannot do its work, so that the test fails there. The integration tests
//! of a crate may use everything. Its unit tests may use only what has no types of that crate: they
//! see those types twice, once from this crate and once from the crate under test.

#![allow(clippy::unwrap_used, reason = "a fixture that fails ends the test")]

pub mod background;
pub mod content;
pub mod control;
pub mod fakes;
pub mod network;
pub mod records;
pub mod services;
pub mod system;
pub mod transfer;
pub mod wait;

/// Enables logging: `POTLUCK_LOG=debug cargo test …`.
pub fn log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("POTLUCK_LOG") {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
    }
}
