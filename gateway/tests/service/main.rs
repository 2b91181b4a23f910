//! A gateway in the process of the test, over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod hub;
mod oci;
mod random_faults;
mod tls;
mod world;
