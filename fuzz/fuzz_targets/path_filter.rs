//! `cargo fuzz run --features libfuzzer path_filter`
#![no_main]

potluck_fuzz::fuzz!("path_filter");
