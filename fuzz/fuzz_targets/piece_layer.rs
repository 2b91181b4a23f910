//! `cargo fuzz run --features libfuzzer piece_layer`
#![no_main]

potluck_fuzz::fuzz!("piece_layer");
