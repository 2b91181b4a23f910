//! Peers in the process of the test, over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod announce;
mod control_access;
mod discovery;
mod download;
mod library;
mod upload;
