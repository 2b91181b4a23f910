//! `cargo fuzz run --features libfuzzer ignore_rules`
#![no_main]

potluck_fuzz::fuzz!("ignore_rules");
