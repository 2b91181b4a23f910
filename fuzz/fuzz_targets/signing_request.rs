//! `cargo fuzz run --features libfuzzer signing_request`
#![no_main]

potluck_fuzz::fuzz!("signing_request");
