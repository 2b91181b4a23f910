//! `cargo fuzz run --features libfuzzer join_code`
#![no_main]

potluck_fuzz::fuzz!("join_code");
