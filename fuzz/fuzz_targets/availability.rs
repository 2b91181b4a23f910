//! `cargo fuzz run --features libfuzzer availability`
#![no_main]

potluck_fuzz::fuzz!("availability");
