//! The core crate against documents, golden vectors and servers that are not Potluck.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod docs;
mod golden;
mod private_network;
mod proto_style;
mod unreachable;
