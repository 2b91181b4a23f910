//! `cargo fuzz run --features libfuzzer members`
#![no_main]

potluck_fuzz::fuzz!("members");
