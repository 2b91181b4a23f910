//! `cargo fuzz run --features libfuzzer page_token`
#![no_main]

potluck_fuzz::fuzz!("page_token");
