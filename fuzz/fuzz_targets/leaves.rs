//! `cargo fuzz run --features libfuzzer leaves`
#![no_main]

potluck_fuzz::fuzz!("leaves");
