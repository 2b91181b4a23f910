//! `cargo fuzz run --features libfuzzer downloads`
#![no_main]

potluck_fuzz::fuzz!("downloads");
