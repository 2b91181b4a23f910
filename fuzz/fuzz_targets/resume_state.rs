//! `cargo fuzz run --features libfuzzer resume_state`
#![no_main]

potluck_fuzz::fuzz!("resume_state");
