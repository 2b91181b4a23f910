//! `cargo fuzz run --features libfuzzer names`
#![no_main]

potluck_fuzz::fuzz!("names");
