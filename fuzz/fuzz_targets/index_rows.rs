//! `cargo fuzz run --features libfuzzer index_rows`
#![no_main]

potluck_fuzz::fuzz!("index_rows");
