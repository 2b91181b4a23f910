//! What things take in memory, roughly and rather too much, in bytes: what the quota on memory counts.

use potluck_core::model::Registration;

use crate::catalog::words;

/// One peer: its entry, its slot and the set of its files.
pub const PEER: u64 = 256;

/// One peer having one file.
pub(crate) const REGISTRATION: u64 = 24;

/// One file: its entry and its slot.
pub(crate) const FILE: u64 = 192;

/// What one or more registrations say of a file.
pub(crate) const CLAIM_COST: u64 = 112;

/// One file under one claim.
pub(crate) const SHA256_COST: u64 = 96;

/// One file bearing one name, because of what one or more registrations say.
pub(crate) const NAME_OF_FILE: u64 = 24;

/// One name holding one word.
pub(crate) const POSTING: u64 = 8;

/// One name.
pub(crate) fn name(text: &str) -> u64 {
    96 + text.len() as u64
}

/// One word.
pub(crate) fn word(text: &str) -> u64 {
    96 + text.len() as u64
}

/// The most that a registration of a known peer can add.
pub fn max_cost(registration: &Registration) -> u64 {
    let names: u64 = registration
        .names
        .iter()
        .map(|text| {
            let mut bytes = name(text) + NAME_OF_FILE;
            words::each_word(text, |text| bytes += word(text) + POSTING);
            bytes
        })
        .sum();
    REGISTRATION + FILE + CLAIM_COST + SHA256_COST + names
}
