//! `cargo fuzz run --features libfuzzer manifest`
#![no_main]

potluck_fuzz::fuzz!("manifest");
