//! `cargo fuzz run --features libfuzzer index_store`
#![no_main]

potluck_fuzz::fuzz!("index_store");
