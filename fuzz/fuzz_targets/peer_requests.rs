//! `cargo fuzz run --features libfuzzer peer_requests`
#![no_main]

potluck_fuzz::fuzz!("peer_requests");
