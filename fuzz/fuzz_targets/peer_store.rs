//! `cargo fuzz run --features libfuzzer peer_store`
#![no_main]

potluck_fuzz::fuzz!("peer_store");
