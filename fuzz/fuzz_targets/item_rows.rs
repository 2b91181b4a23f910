//! `cargo fuzz run --features libfuzzer item_rows`
#![no_main]

potluck_fuzz::fuzz!("item_rows");
