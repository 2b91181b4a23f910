//! `cargo fuzz run --features libfuzzer typed`
#![no_main]

potluck_fuzz::fuzz!("typed");
