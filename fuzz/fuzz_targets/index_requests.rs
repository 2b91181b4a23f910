//! `cargo fuzz run --features libfuzzer index_requests`
#![no_main]

potluck_fuzz::fuzz!("index_requests");
