//! `cargo fuzz run --features libfuzzer certificate`
#![no_main]

potluck_fuzz::fuzz!("certificate");
