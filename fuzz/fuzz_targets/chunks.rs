//! `cargo fuzz run --features libfuzzer chunks`
#![no_main]

potluck_fuzz::fuzz!("chunks");
