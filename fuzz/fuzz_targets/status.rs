//! `cargo fuzz run --features libfuzzer status`
#![no_main]

potluck_fuzz::fuzz!("status");
