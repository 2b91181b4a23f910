//! The programs under attack: an index, a peer and a downloader, in plaintext and in a private
//! network whose member attacks. Memory stays bounded, honest clients are served meanwhile, and
//! nothing is left afterwards.

#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

mod clients;
mod peers;
mod world;
