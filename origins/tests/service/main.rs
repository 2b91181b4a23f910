//! The client of origins against the stand-in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod hub;
mod origin;
