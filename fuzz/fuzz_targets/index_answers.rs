//! `cargo fuzz run --features libfuzzer index_answers`
#![no_main]

potluck_fuzz::fuzz!("index_answers");
